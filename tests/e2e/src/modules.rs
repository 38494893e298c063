//! Policy modules where the Syncer reads them.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kubeocean_api::keys::namespace;
use kubeocean_harness::Cluster;
use kubeocean_hostile_policies::digest;
use serde_json::{Value, json};

/// Puts a module into a ConfigMap of the namespace that policies are read from, and returns how an entry names it.
///
/// # Panics
/// The server refuses it.
pub async fn publish(worker: &Cluster, name: &str, module: &[u8]) -> Value {
    publish_in(worker, namespace::POLICIES, name, module).await
}

/// The same in a namespace of the worker cluster.
///
/// # Panics
/// The server refuses it.
pub async fn publish_in(worker: &Cluster, home: &str, name: &str, module: &[u8]) -> Value {
    let config_map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": home},
        "binaryData": {"policy.wasm": STANDARD.encode(module)},
    });
    worker.apply_objects(vec![config_map]).await.expect("a ConfigMap");
    json!({"configMap": {"name": name}, "digest": digest(module)})
}
