//! Whether the worker permits files of its nodes to pods in the mount namespace.
//!
//! Pod Security refuses a pod's own `hostPath`, but does not look at what is behind its claims; a volume of a path would get
//! around the level that the namespace enforces (TD-605). It is asked about before a copy of such a volume is made, and before
//! a pod gets one that is there: the level may have been raised since.

use serde_json::Value;

use super::apply::Clusters;
use kubeocean_runtime::{
    error::ApplyError,
    request::{get_json, paths},
};

/// Label of a namespace: the level that it enforces.
const ENFORCED: &str = "pod-security.kubernetes.io/enforce";
/// Levels that permit no `hostPath`.
const CLOSED: [&str; 2] = ["baseline", "restricted"];

/// The level because of which files of nodes are closed. `None` if they are not, or if the role does not let us know: then
/// the worker's admission decides alone.
pub(super) async fn closed_by(clusters: &Clusters) -> Result<Option<String>, ApplyError> {
    let path = paths::cluster_core("namespaces", &clusters.scope.mount_namespace);
    match get_json(&clusters.worker, &path).await {
        Err(ApplyError::Forbidden { .. }) => Ok(None),
        answer => Ok(answer?.as_ref().and_then(closing_level).map(str::to_owned)),
    }
}

fn closing_level(namespace: &Value) -> Option<&str> {
    let level = namespace.pointer("/metadata/labels").and_then(|labels| labels.get(ENFORCED)?.as_str());
    level.filter(|level| CLOSED.contains(level))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_the_levels_that_permit_no_host_path_close_files_of_nodes() {
        let of = |labels: Value| closing_level(&json!({"metadata": {"labels": labels}})).map(str::to_owned);
        for level in CLOSED {
            assert_eq!(of(json!({(ENFORCED): level})).as_deref(), Some(level));
        }
        for labels in [
            json!({(ENFORCED): "privileged"}),
            json!({"pod-security.kubernetes.io/warn": "baseline"}),
            json!(null),
        ] {
            assert_eq!(of(labels), None);
        }
    }
}
