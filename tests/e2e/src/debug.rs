//! Debug containers, as `kubectl debug` adds them.

use serde_json::{Value, json};

use crate::pods::Objects;

/// The debug containers of a pod.
pub fn debug_containers(pod: &Value) -> Vec<Value> {
    pod["spec"]["ephemeralContainers"].as_array().cloned().unwrap_or_default()
}

/// Adds a debug container to a pod of either cluster.
///
/// # Panics
/// There is no such pod.
pub async fn debug(objects: &Objects, path: &str, container: Value) {
    let mut all = debug_containers(&objects.get(path).await.expect("the pod"));
    all.push(container);
    objects
        .merge(&format!("{path}/ephemeralcontainers"), &json!({"spec": {"ephemeralContainers": all}}))
        .await;
}
