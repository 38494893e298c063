//! The scheduler's extender protocol, `k8s.io/kube-scheduler/extender/v1`, as far as it is spoken.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What the scheduler asks.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Asked {
    /// The pod, whole.
    pub pod: Value,
    /// Candidates by name; only with `nodeCacheCapable`.
    #[serde(default)]
    pub node_names: Option<Vec<String>>,
}

/// Answer of `filter`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Filtered {
    /// Where the pod may go.
    pub node_names: Vec<String>,
    /// Where it may not go now, and why.
    pub failed_nodes: BTreeMap<String, String>,
    /// Where it may not go whatever else leaves the node.
    pub failed_and_unresolvable_nodes: BTreeMap<String, String>,
    /// Never set: a policy that fails is the policy's own affair.
    pub error: String,
}

/// One line of the answer of `prioritize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Priority {
    /// The node.
    pub host: String,
    /// 0..=10.
    pub score: i64,
}
