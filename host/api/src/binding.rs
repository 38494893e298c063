//! ClusterBinding: one leased worker cluster, as users of the computing cluster declare it (API section 1).

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Condition, GROUP, NodeSelector, VERSION};

/// One leased worker cluster. Cluster-scoped; a `metadata.namespace` in a manifest is dropped by the API server
/// (API-104).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ClusterBinding {
    /// `cloud.tencent.com/v1beta1`.
    #[serde(default = "api_version")]
    pub api_version: String,
    /// `ClusterBinding`.
    #[serde(default = "kind")]
    pub kind: String,
    /// Standard object metadata.
    pub metadata: ObjectMeta,
    /// What is wanted. The schema does not require it (API-103).
    #[serde(default)]
    pub spec: ClusterBindingSpec,
    /// What was observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ClusterBindingStatus>,
}

fn api_version() -> String {
    format!("{GROUP}/{VERSION}")
}
fn kind() -> String {
    "ClusterBinding".to_owned()
}

impl kube::Resource for ClusterBinding {
    type DynamicType = ();
    type Scope = kube::core::ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "ClusterBinding".into()
    }
    fn group((): &()) -> Cow<'_, str> {
        GROUP.into()
    }
    fn version((): &()) -> Cow<'_, str> {
        VERSION.into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        "clusterbindings".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Which worker cluster to lease from, and how its nodes appear in this cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["clusterID", "secretRef"]))]
pub struct ClusterBindingSpec {
    /// Short identity of the worker cluster in names, labels and finalizers, for example `cls-dc-east`. It cannot be
    /// changed and must be unique among the bindings of this cluster.
    #[serde(rename = "clusterID", default)]
    #[schemars(length(max = 24), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub cluster_id: String,
    /// Secret in this cluster that holds the worker cluster's kubeconfig under the data key `kubeconfig`.
    #[serde(default)]
    pub secret_ref: SecretRef,
    /// Which worker nodes may be leased at all; absent or without terms means all of them. The policies in the worker
    /// cluster choose among these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<NodeSelector>,
    /// Namespace of the worker cluster that receives the copies of pods, ConfigMaps, Secrets and claims. It must exist.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mount_namespace: String,
    /// Accepted for compatibility and without effect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub service_namespaces: Vec<String>,
    /// Whether virtual nodes come without the taint `kubeocean.io/vnode:NoSchedule`. By default they carry it, so
    /// that only pods that tolerate it are leased out.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub disable_node_default_taint: bool,
    /// PriorityClass of the pods in the worker cluster. By default `kubeocean-default` with the value -10000, so that
    /// the worker cluster's own pods come first.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub pod_priority_class_name: String,
    /// Whether DaemonSet pods run on virtual nodes. By default only those annotated
    /// `kubeocean.io/running-daemonset: "true"` do.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub running_daemonset_by_default: bool,
    /// Whether pods are put on the worker node by name, past the worker cluster's scheduler. By default they are
    /// scheduled there by a required node affinity.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub direct_scheduling: bool,
}

/// Name and namespace of a Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct SecretRef {
    /// Name of the Secret.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Namespace of the Secret.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
}

/// What was observed of a binding.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClusterBindingStatus {
    /// `Pending`, `Ready` or `Failed`; `Ready` follows the condition of that name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// What was observed, one condition per aspect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// When the phase last became `Ready`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last_sync_time: Option<String>,
    /// Generation of the spec the status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Number of virtual nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<i32>,
    /// Number of pods in the worker cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<i32>,
    /// Kubernetes version of the worker cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub worker_version: Option<String>,
    /// When the worker credentials expire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub credentials_expire_at: Option<String>,
}
