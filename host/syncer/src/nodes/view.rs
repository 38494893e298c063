//! The parts of nodes and worker pods that are used, trimmed while decoding.
//!
//! In: watch streams of both clusters. Out: values for the index and the planners. A pod is reduced to its request
//! vector, its host ports and its stamps at once, so that a foreign pod costs some 100 bytes.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kubeocean_api::keys::{annotation, label};
use serde::{Deserialize, Serialize};

use super::{
    host_ports::{HostPort, host_ports},
    meta::NodeMeta,
    requests::{self, Requests, WirePod},
};
use crate::tombstones::Versioned;
use kubeocean_runtime::{
    meta::PackedMeta,
    packed::{PackedObject, PackedTexts},
    partial_resource,
    shared::SharedText,
};

/// Text by key: labels, annotations, quantities by resource.
pub type Texts = BTreeMap<String, String>;

/// A node of either cluster, packed: all of them stay in memory.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(from = "WireNode")]
pub struct NodeView {
    /// Who it is.
    pub metadata: NodeMeta,
    /// All labels.
    pub labels: PackedTexts,
    /// All annotations but kubectl's last-applied copy.
    pub annotations: PackedTexts,
    /// Taints and cordon.
    pub spec: NodeSpec,
    /// What the kubelet reports, resp. what we wrote.
    pub status: NodeStatus,
}

/// A node as a watch decodes it: the view, and the identity the watch itself needs.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "WireNode")]
pub struct NodeObject {
    /// Name, UID and version.
    pub metadata: ObjectMeta,
    /// The view.
    pub view: Box<NodeView>,
}

partial_resource!(NodeObject, k8s_openapi::api::core::v1::Node);

impl NodeObject {
    /// The views of a list.
    pub fn views(all: Vec<Self>) -> Vec<NodeView> {
        all.into_iter().map(|object| *object.view).collect()
    }
}

impl From<WireNode> for NodeObject {
    fn from(wire: WireNode) -> Self {
        Self { metadata: wire.metadata.identity(), view: Box::new(wire.into()) }
    }
}

/// A node as it is decoded.
#[derive(Deserialize)]
struct WireNode {
    metadata: PackedMeta,
    #[serde(default)]
    spec: NodeSpec,
    #[serde(default)]
    status: NodeStatus,
}

impl From<WireNode> for NodeView {
    fn from(mut wire: WireNode) -> Self {
        Self {
            labels: std::mem::take(&mut wire.metadata.labels),
            annotations: std::mem::take(&mut wire.metadata.annotations),
            metadata: wire.metadata.into(),
            spec: wire.spec,
            status: wire.status,
        }
    }
}

/// Used part of a node's spec.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSpec {
    /// All taints.
    pub taints: Box<[Taint]>,
    /// Cordoned.
    pub unschedulable: bool,
}

/// A taint; its identity is (key, effect).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Taint {
    /// Key.
    pub key: SharedText,
    /// Value, mostly absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<SharedText>,
    /// `NoSchedule`, `PreferNoSchedule` or `NoExecute`.
    pub effect: SharedText,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_added: Option<SharedText>,
}

impl Taint {
    /// A taint without a time.
    pub fn new(key: &str, value: Option<&str>, effect: &str) -> Self {
        Self { key: key.into(), value: value.map(Into::into), effect: effect.into(), time_added: None }
    }

    /// Same (key, effect).
    pub fn is_same_as(&self, other: &Self) -> bool {
        self.key == other.key && self.effect == other.effect
    }

    /// The taint without its time.
    #[must_use]
    pub fn timeless(&self) -> Self {
        Self { time_added: None, ..self.clone() }
    }
}

/// `NoSchedule`.
pub const NO_SCHEDULE: &str = "NoSchedule";
/// `NoExecute`.
pub const NO_EXECUTE: &str = "NoExecute";

/// Used part of a node's status.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeStatus {
    /// Quantity by resource.
    pub allocatable: PackedTexts,
    /// Quantity by resource.
    pub capacity: PackedTexts,
    /// Conditions, in the order given.
    pub conditions: Box<[NodeCondition]>,
    /// Addresses, in the order given.
    pub addresses: Box<[NodeAddress]>,
    /// Verbatim, also fields newer than we are.
    pub node_info: PackedObject,
    /// Deprecated by Kubernetes; mirrored when present.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub phase: Option<String>,
    /// Kubelet port of a vnode.
    pub daemon_endpoints: DaemonEndpoints,
}

/// `status.daemonEndpoints`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonEndpoints {
    /// Where the kubelet, resp. the Proxier, listens.
    pub kubelet_endpoint: DaemonEndpoint,
}

/// A port, spelled as core/v1 does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct DaemonEndpoint {
    /// 0 = absent.
    #[serde(rename = "Port")]
    pub port: i32,
}

/// A node condition with its times as written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeCondition {
    /// Type.
    #[serde(rename = "type")]
    pub type_: SharedText,
    /// `True`, `False` or `Unknown`.
    pub status: SharedText,
    /// UpperCamelCase.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub reason: SharedText,
    /// For people.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub message: SharedText,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_heartbeat_time: Option<SharedText>,
    /// RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_transition_time: Option<SharedText>,
}

impl NodeCondition {
    /// Same statement, whenever it was made.
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        self.type_ == other.type_
            && self.status == other.status
            && self.reason == other.reason
            && self.message == other.message
    }
}

/// A node address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeAddress {
    /// `InternalIP`, `Hostname`, ...
    #[serde(rename = "type")]
    pub type_: SharedText,
    /// The address.
    pub address: String,
}

/// Condition type of a node that can run pods.
pub const READY: &str = "Ready";
/// Address type of vnodes and worker nodes.
pub const INTERNAL_IP: &str = "InternalIP";
/// Address type that carries a node's name.
pub const HOSTNAME: &str = "Hostname";

impl NodeView {
    /// `metadata.name`.
    pub fn name(&self) -> &str {
        &self.metadata.name
    }

    /// `metadata.uid`.
    pub fn uid(&self) -> &str {
        &self.metadata.uid
    }

    /// `metadata.resourceVersion`.
    pub fn resource_version(&self) -> &str {
        &self.metadata.resource_version
    }

    /// A label.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.get(key)
    }

    /// An annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key)
    }

    /// Which of two states of the node is newer; 0 when that cannot be told.
    pub fn version(&self) -> u64 {
        self.metadata.version()
    }

    /// A deletion is under way.
    pub fn terminating(&self) -> bool {
        self.metadata.deleting
    }

    /// The annotation, else the label of the same key: label values may be cut (BU section 4).
    pub fn annotation_or_label(&self, key: &str) -> Option<&str> {
        self.annotation(key).or_else(|| self.label(key))
    }

    /// A condition.
    pub fn condition(&self, type_: &str) -> Option<&NodeCondition> {
        self.status.conditions.iter().find(|condition| condition.type_ == type_)
    }

    /// The Ready condition is True.
    pub fn ready(&self) -> bool {
        self.condition(READY).is_some_and(|ready| ready.status == "True")
    }

    /// First address of a type.
    pub fn address(&self, type_: &str) -> Option<&str> {
        self.status.addresses.iter().find(|address| address.type_ == type_).map(|a| a.address.as_str())
    }

    /// A taint by key, whatever its effect.
    pub fn taint(&self, key: &str) -> Option<&Taint> {
        self.spec.taints.iter().find(|taint| taint.key == key)
    }

    /// Worker nodes of these kinds are never leased (BU-401).
    pub fn excluded(&self) -> bool {
        let instance = [label::INSTANCE_TYPE, label::INSTANCE_TYPE_BETA];
        instance
            .iter()
            .filter_map(|key| self.label(key))
            .any(|value| label::EXCLUDED_INSTANCE_TYPES.contains(&value))
            || self.label(label::TYPE) == Some(label::TYPE_VIRTUAL_KUBELET)
    }
}

/// A scheduled, not terminal pod of the worker cluster.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(from = "WirePod")]
pub struct WorkerPod {
    /// Name, namespace, uid and version only.
    pub metadata: ObjectMeta,
    /// `spec.nodeName`.
    pub node: String,
    /// Phase Succeeded or Failed.
    pub terminal: bool,
    /// What the pod asks for (scheduler's rule).
    pub requests: Requests,
    /// Ports of the node that it holds, sorted, each once.
    pub host_ports: Box<[HostPort]>,
    /// Who made it.
    pub stamp: Stamp,
}

partial_resource!(WorkerPod, k8s_openapi::api::core::v1::Pod);

/// Who a worker pod was made by (BU section 5 *Do better*, TD-1103).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Stamp {
    /// Not by Kubeocean: a user of the worker cluster.
    #[default]
    None,
    /// By a Syncer that stamps its pods.
    Stamped {
        /// Binding name.
        binding: String,
        /// Identity of the computing cluster.
        cluster_uid: String,
    },
    /// By the original, which leaves only the vnode's name.
    Legacy {
        /// Vnode name.
        vnode: String,
    },
}

impl From<WirePod> for WorkerPod {
    fn from(wire: WirePod) -> Self {
        let (labels, annotations) = (&wire.metadata.labels, &wire.metadata.annotations);
        let read = |map: &PackedTexts, key: &str| map.get(key).unwrap_or_default().to_owned();
        let stamp = if read(labels, label::MANAGED_BY) == label::MANAGED_BY_VALUE {
            let binding = read(labels, label::CLUSTER_BINDING);
            let cluster_uid = read(annotations, annotation::COMPUTING_CLUSTER_UID);
            if binding.is_empty() && cluster_uid.is_empty() {
                Stamp::Legacy { vnode: read(annotations, annotation::VIRTUAL_NODE_NAME) }
            } else {
                Stamp::Stamped { binding, cluster_uid }
            }
        } else {
            Stamp::None
        };
        let requests = requests::of_pod(&wire);
        let host_ports = host_ports(wire.spec.ports());
        Self {
            terminal: matches!(wire.status.phase.as_str(), "Succeeded" | "Failed"),
            node: wire.spec.node_name,
            requests,
            host_ports,
            stamp,
            metadata: wire.metadata.identity(),
        }
    }
}
