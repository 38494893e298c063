//! LogConfigs as a log agent's users write them, and the kind itself.

use kubeocean_harness::{Cluster, wait_until};
use serde_json::{Value, json};

use crate::pods::{DEADLINE, Objects};

/// Group and version.
pub const API: &str = "/apis/cls.cloud.tencent.com/v1";

/// Path of a LogConfig.
pub fn path(name: &str) -> String {
    format!("{}/{name}", all())
}

/// Path of all LogConfigs.
pub fn all() -> String {
    format!("{API}/logconfigs")
}

/// The kind as the agent brings it, but for its long schema.
fn kind() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "logconfigs.cls.cloud.tencent.com"},
        "spec": {
            "group": "cls.cloud.tencent.com", "scope": "Cluster",
            "names": {"kind": "LogConfig", "plural": "logconfigs", "singular": "logconfig", "shortNames": ["lc"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    })
}

/// Waits until the cluster serves the kind.
///
/// # Panics
/// It does not.
pub async fn serve(cluster: &Cluster) {
    cluster.apply_objects(vec![kind()]).await.expect("a kind");
    let objects = Objects::of(cluster).await;
    wait_until("the kind to be served", DEADLINE, async || objects.get(&all()).await.map(drop)).await;
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
