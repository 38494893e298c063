//! What somebody in a worker cluster says about copies, and what their pods are told of it (TD-1704 ff.).

use kubeocean_harness::wait_until;
use serde_json::{Value, json};

use crate::pods::{DEADLINE, Objects, Scene, text};

/// A kubelet's event about a pod of the worker cluster.
pub fn said_of(ppod: &Value, reason: &str, message: &str) -> Value {
    let metadata = &ppod["metadata"];
    let now = text(&ppod["status"]["startTime"]);
    json!({
        "apiVersion": "v1", "kind": "Event",
        "metadata": {"generateName": "said-", "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "namespace": metadata["namespace"], "name": metadata["name"],
            "uid": metadata["uid"], "fieldPath": "spec.containers{main}",
        },
        "type": "Warning", "reason": reason, "message": message, "count": 1,
        "firstTimestamp": now, "lastTimestamp": now,
        "source": {"component": "kubelet", "host": ppod["spec"]["nodeName"]},
    })
}

/// Stores an event in the worker cluster and returns its path.
pub async fn say(worker: &Objects, event: &Value) -> String {
    let collection = format!("/api/v1/namespaces/{}/events", text(&event["metadata"]["namespace"]));
    let stored = worker.create(&collection, event).await;
    format!("{collection}/{}", text(&stored["metadata"]["name"]))
}

/// The events of a pod that carry one of these reasons.
pub async fn events(scene: &Scene<'_>, pod: &str, reasons: &[&str]) -> Vec<Value> {
    let path =
        format!("/api/v1/namespaces/{}/events?fieldSelector=involvedObject.name%3D{pod}", scene.namespace);
    let mut all = scene.computing.list(&path).await;
    all.retain(|event| reasons.contains(&text(&event["reason"])));
    all
}

/// Waits until a pod has this one event of a reason, as often as said.
pub async fn wait_told(scene: &Scene<'_>, pod: &str, reason: &str, count: i64) -> Value {
    wait_until(&format!("{count} times {reason} on {pod}"), DEADLINE, async || {
        match events(scene, pod, &[reason]).await.as_slice() {
            [event] if event["count"] == count => Ok(event.clone()),
            other => Err(json!(other).to_string()),
        }
    })
    .await
}
