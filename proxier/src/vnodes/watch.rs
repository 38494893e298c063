//! Follows the vnodes of one binding (PX-205).

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, runtime::watcher::Config};
use kubeocean_api::{keys::label, name::fit_label_value};
use kubeocean_runtime::{
    meta::trimmed_meta,
    partial_resource,
    sink::Sink,
    watch::{WatchHealth, WatchSpec, watch_into},
};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{Vnode, Vnodes, plan::ports_of};
use crate::binding::BindingPart;

/// The fields of a vnode that say where it is served.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct NodeView {
    #[serde(deserialize_with = "trimmed_meta")]
    metadata: ObjectMeta,
    #[serde(default)]
    status: NodeStatus,
}
partial_resource!(NodeView, k8s_openapi::api::core::v1::Node);

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeStatus {
    daemon_endpoints: DaemonEndpoints,
    node_info: NodeInfo,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct DaemonEndpoints {
    kubelet_endpoint: Endpoint,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Endpoint {
    port: Option<i64>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct NodeInfo {
    kubelet_version: String,
}

/// Where a binding's vnodes go.
#[derive(Debug)]
pub(crate) struct VnodeSink {
    /// All vnodes of the process.
    pub(crate) vnodes: Arc<Vnodes>,
    /// Whose these are.
    pub(crate) binding: Arc<BindingPart>,
}

impl VnodeSink {
    fn vnode(&self, node: NodeView) -> Vnode {
        let meta = node.metadata;
        let label = meta.labels.as_ref().and_then(|labels| labels.get(label::PROXIER_PORT));
        Vnode {
            name: meta.name.unwrap_or_default().into(),
            uid: meta.uid.unwrap_or_default(),
            created: meta.creation_timestamp.map(|time| time.0).unwrap_or_default(),
            ports: ports_of(label.map(String::as_str), node.status.daemon_endpoints.kubelet_endpoint.port),
            kubelet_version: node.status.node_info.kubelet_version,
            binding: Arc::clone(&self.binding),
            cut: CancellationToken::new(),
        }
    }
}

impl Sink<NodeView> for VnodeSink {
    fn apply(&self, node: NodeView) {
        self.vnodes.set(self.vnode(node));
    }
    fn delete(&self, node: NodeView) {
        let meta = node.metadata;
        let (name, uid) = (meta.name.as_deref().unwrap_or_default(), meta.uid.as_deref().unwrap_or_default());
        self.vnodes.remove(&self.binding, name, uid);
    }
    fn reset(&self, all: Vec<NodeView>) {
        self.vnodes.reset(&self.binding, all.into_iter().map(|node| self.vnode(node)).collect());
    }
}

/// Watches a binding's vnodes until cancelled.
pub(crate) async fn watch_vnodes(
    computing: Client,
    sink: Arc<VnodeSink>,
    health: Arc<WatchHealth>,
    cancel: CancellationToken,
) {
    let selector = format!(
        "{}={},{}={}",
        label::MANAGED_BY,
        label::MANAGED_BY_VALUE,
        label::CLUSTER_BINDING,
        fit_label_value(sink.binding.name())
    );
    let spec =
        WatchSpec { name: "vnodes", api: Api::all(computing), config: Config::default().labels(&selector) };
    watch_into(spec, sink, health, cancel).await;
}
