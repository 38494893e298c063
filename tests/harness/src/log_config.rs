//! The kind LogConfig, which a log agent brings along and a cluster may or may not serve.

use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::{Cluster, wait::try_wait_until};

/// For an API server that has just been told of the kind.
const DEADLINE: Duration = Duration::from_mins(1);

/// Group and version.
pub const API: &str = "/apis/cls.cloud.tencent.com/v1";

/// Path of all LogConfigs.
pub fn all() -> String {
    format!("{API}/logconfigs")
}

/// Path of a LogConfig.
pub fn path(name: &str) -> String {
    format!("{}/{name}", all())
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

impl Cluster {
    /// Waits until the cluster serves LogConfigs.
    ///
    /// # Errors
    /// The server refuses the kind, or does not serve it in time.
    pub async fn serve_log_configs(&self) -> Result<()> {
        self.apply_objects(vec![kind()]).await?;
        let client = self.client().await?;
        let list = http::Request::get(all()).body(Vec::new())?;
        try_wait_until("LogConfigs to be served", DEADLINE, async || {
            client.request::<Value>(list.clone()).await.map(drop)
        })
        .await
    }
}
