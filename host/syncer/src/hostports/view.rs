//! A pod that reserves host ports on a vnode.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kubeocean_runtime::{meta::trimmed_meta, metadata_readers, partial_resource};
use serde::Deserialize;
use serde_json::Value;

use crate::nodes::{
    host_ports::{HostPort, host_ports},
    requests::WireSpec,
};

/// Type of the condition that a scheduler sets on what it bound.
pub const POD_SCHEDULED: &str = "PodScheduled";

/// The used part of a fake pod.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(from = "Wire")]
pub struct FakePod {
    /// Without managedFields.
    pub metadata: ObjectMeta,
    /// `spec.nodeName`.
    pub vnode: Box<str>,
    /// Reserved ports, sorted, each once.
    pub ports: Box<[HostPort]>,
    /// Phase Succeeded or Failed: schedulers do not count it any more.
    pub terminal: bool,
    /// All conditions, verbatim.
    pub conditions: Vec<Value>,
}

partial_resource!(FakePod, k8s_openapi::api::core::v1::Pod);
metadata_readers!(FakePod: name, uid);

#[derive(Deserialize)]
struct Wire {
    #[serde(deserialize_with = "trimmed_meta")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: WireSpec,
    #[serde(default)]
    status: WireStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct WireStatus {
    phase: String,
    conditions: Vec<Value>,
}

impl From<Wire> for FakePod {
    fn from(wire: Wire) -> Self {
        Self {
            ports: host_ports(wire.spec.ports()),
            vnode: wire.spec.node_name.into(),
            terminal: matches!(wire.status.phase.as_str(), "Succeeded" | "Failed"),
            conditions: wire.status.conditions,
            metadata: wire.metadata,
        }
    }
}

impl FakePod {
    /// A deletion is under way.
    pub fn deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// A deletion is under way that waits for a kubelet, and there is none.
    pub fn waits_for_its_end(&self) -> bool {
        self.deleting() && self.metadata.deletion_grace_period_seconds.is_some_and(|seconds| seconds > 0)
    }

    /// Whether it goes with the node of this UID.
    pub fn is_owned_by(&self, uid: &str) -> bool {
        self.metadata.owner_references.iter().flatten().any(|owner| owner.kind == "Node" && owner.uid == uid)
    }

    /// Whether it says that it is bound.
    pub fn is_scheduled(&self) -> bool {
        let scheduled =
            |condition: &Value| condition["type"] == POD_SCHEDULED && condition["status"] == "True";
        self.conditions.iter().any(scheduled)
    }
}
