//! LogConfigs as a log agent's users write them, and the kind itself.

use kubeocean_harness::Cluster;
pub use kubeocean_harness::log_config::{API, all, path};
use serde_json::{Value, json};

/// Waits until the cluster serves the kind.
///
/// # Panics
/// It does not.
pub async fn serve(cluster: &Cluster) {
    cluster.serve_log_configs().await.expect("the kind");
}

/// A LogConfig with this `inputDetail`.
pub fn original(name: &str, input: &Value) -> Value {
    json!({
        "apiVersion": "cls.cloud.tencent.com/v1", "kind": "LogConfig",
        "metadata": {"name": name, "labels": {"team": "a"}},
        "spec": {"inputDetail": input, "clsDetail": {"topicId": "t", "advancedConfig": {"ClsAgentMaxDepth": 3}}},
    })
}

/// An `inputDetail`: the output of all pods of a namespace.
pub fn stdout(namespace: &str) -> Value {
    json!({"type": "container_stdout", "containerStdout": {"namespace": namespace}})
}
