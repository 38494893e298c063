//! The writes a plan may ask for. A plan is data: it can be compared, printed and replayed on a model.

use std::{collections::BTreeMap, fmt};

use kubeocean_api::{keys::annotation, name::ObjectKey};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    conditions::with_conditions,
    terms::Terms,
    view::{NodeAddress, NodeCondition, NodeView, Taint},
    vnode::Written,
    withdraw::Cause,
};

/// One write, or something as visible.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Action {
    /// Put our finalizer on the policy before a vnode is built from it (BU section 13).
    HoldPolicy {
        /// Name.
        policy: String,
    },
    /// POST the vnode, status included.
    CreateVnode {
        /// Name.
        name: String,
        /// Whole object.
        body: Value,
        /// To be remembered.
        #[serde(skip)]
        written: Written,
    },
    /// Merge patch on the vnode: taints, cordon, finalizer, keys that go.
    PatchVnode(NodeChanges),
    /// Merge patch on the status endpoint of all that differs: labels, annotations, status.
    UpdateVnode {
        /// Name.
        name: String,
        /// With UID, and the version it was computed from.
        patch: Value,
        /// To be remembered.
        #[serde(skip)]
        written: Written,
    },
    /// Merge patch of conditions, addresses and amounts that fell.
    PatchStatus {
        /// Name.
        name: String,
        /// UID.
        uid: String,
        /// Version the lists were built from.
        resource_version: String,
        /// All conditions.
        conditions: Vec<NodeCondition>,
        /// All addresses, if they change.
        addresses: Option<Vec<NodeAddress>>,
        /// Quantities that were above what others leave, and what they become.
        lowered: BTreeMap<String, String>,
        /// To be remembered, if the conditions are those of the worker node as it is.
        #[serde(skip)]
        written: Option<Written>,
    },
    /// Set or remove label `policy-applied` of the worker node.
    LabelWorkerNode {
        /// Name.
        node: String,
        /// Policy, or `None` to remove.
        policy: Option<String>,
    },
    /// Delete a pod of the vnode with its own grace period.
    DeletePod {
        /// Namespace and name.
        #[serde(serialize_with = "as_text")]
        key: ObjectKey,
        /// UID.
        uid: String,
        /// Why.
        why: PodDeletion,
    },
    /// DELETE the vnode.
    DeleteVnode {
        /// Name.
        name: String,
        /// UID.
        uid: String,
    },
    /// After a live check that no pod is left: remove the finalizer.
    ReleaseVnode {
        /// Name.
        name: String,
        /// UID.
        uid: String,
    },
    /// An event on the vnode.
    Event(VnodeEvent),
}

fn as_text<S: serde::Serializer>(key: &ObjectKey, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(key)
}

/// Why a pod is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum PodDeletion {
    /// The lease was reclaimed.
    Reclaimed,
    /// The vnode is withdrawn.
    Drained,
}

/// Changes of a vnode's metadata and spec, against the version they were computed from.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeChanges {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Version.
    pub resource_version: String,
    /// `None` removes a label.
    pub labels: BTreeMap<String, Option<String>>,
    /// `None` removes an annotation.
    pub annotations: BTreeMap<String, Option<String>>,
    /// The whole list.
    pub taints: Option<Vec<Taint>>,
    /// Cordon.
    pub unschedulable: Option<bool>,
    /// The whole list.
    pub finalizers: Option<Vec<String>>,
    /// What is known of the end of the lease once it is written, if that changes.
    #[serde(skip)]
    pub terms: Option<Terms>,
}

impl NodeChanges {
    /// No change of `vnode` yet.
    pub fn of(vnode: &NodeView) -> Self {
        Self {
            name: vnode.name().to_owned(),
            uid: vnode.uid().to_owned(),
            resource_version: vnode.resource_version().to_owned(),
            ..Self::default()
        }
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
            && self.annotations.is_empty()
            && self.taints.is_none()
            && self.unschedulable.is_none()
            && self.finalizers.is_none()
    }

    /// The JSON merge patch.
    pub fn patch(&self) -> Value {
        let mut metadata = json!({"uid": self.uid, "resourceVersion": self.resource_version});
        if !self.labels.is_empty() {
            metadata["labels"] = json!(self.labels);
        }
        if !self.annotations.is_empty() {
            metadata["annotations"] = json!(self.annotations);
        }
        if let Some(finalizers) = &self.finalizers {
            metadata["finalizers"] = json!(finalizers);
        }
        let mut spec = Map::new();
        if let Some(taints) = &self.taints {
            spec.insert("taints".into(), json!(taints));
        }
        if let Some(unschedulable) = self.unschedulable {
            spec.insert("unschedulable".into(), if unschedulable { true.into() } else { Value::Null });
        }
        let mut patch = json!({"metadata": metadata});
        if !spec.is_empty() {
            patch["spec"] = spec.into();
        }
        patch
    }
}

/// An event on a vnode (API-810).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VnodeEvent {
    /// Warning instead of Normal.
    pub warning: bool,
    /// Reason.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl VnodeEvent {
    /// The vnode is being withdrawn.
    pub fn draining(cause: Cause) -> Self {
        Self { warning: false, reason: "Draining", message: format!("withdrawing: {cause}") }
    }
}

impl Action {
    /// Whether the write says which policy the vnode is built from.
    pub fn names_policy(&self) -> bool {
        matches!(self, Self::CreateVnode { .. } | Self::UpdateVnode { .. })
    }

    /// Brings the status of a vnode to what it shall show; `None` when it shows that.
    pub fn show(vnode: &NodeView, shown: Shown<'_>) -> Option<Self> {
        let there = &vnode.status.conditions;
        let news = |wanted: &&NodeCondition| {
            !there.iter().any(|it| it.type_ == wanted.type_ && it.says_the_same_as(wanted))
        };
        let news: Vec<NodeCondition> = shown.conditions.iter().filter(news).cloned().collect();
        let conditions = with_conditions(there, &news, shown.removed);
        let changed = conditions != **there || !shown.lowered.is_empty();
        let addresses =
            shown.addresses.filter(|wanted| **wanted != *vnode.status.addresses).map(<[_]>::to_vec);
        (changed || addresses.is_some()).then(|| Self::PatchStatus {
            name: vnode.name().to_owned(),
            uid: vnode.uid().to_owned(),
            resource_version: vnode.resource_version().to_owned(),
            conditions,
            addresses,
            lowered: shown.lowered,
            written: shown.written,
        })
    }
}

/// What the status of a vnode shall show; what is not named stays.
#[derive(Clone, Debug, Default)]
pub struct Shown<'a> {
    /// Replaced by type, or added.
    pub conditions: &'a [NodeCondition],
    /// All of them.
    pub addresses: Option<&'a [NodeAddress]>,
    /// Types of conditions that go.
    pub removed: &'a [&'a str],
    /// Quantities by resource, of capacity and allocatable.
    pub lowered: BTreeMap<String, String>,
    /// To be remembered once it is written.
    pub written: Option<Written>,
}

/// The status part of a [`Action::PatchStatus`].
pub fn status_patch(
    conditions: &[NodeCondition],
    addresses: Option<&[NodeAddress]>,
    lowered: &BTreeMap<String, String>,
) -> Value {
    let mut status = json!({"conditions": conditions});
    if let Some(addresses) = addresses {
        status["addresses"] = json!(addresses);
    }
    if !lowered.is_empty() {
        status["capacity"] = json!(lowered);
        status["allocatable"] = json!(lowered);
    }
    status
}

/// Makes the patch of an [`Action::UpdateVnode`] one of the status alone, and returns what is to be remembered then: nothing
/// of it is about labels and annotations, but no event about changed amounts follows.
pub fn status_alone(patch: &mut Value, written: Written, before: Option<&Written>) -> Written {
    for map in ["labels", "annotations"] {
        patch["metadata"].as_object_mut().map(|metadata| metadata.remove(map));
    }
    Written { event_at: before.and_then(|before| before.event_at), ..written }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HoldPolicy { policy } => write!(f, "hold policy {policy}"),
            Self::CreateVnode { name, .. } => write!(f, "create vnode {name}"),
            Self::PatchVnode(changes) => {
                let mut parts = Vec::new();
                if changes.taints.is_some() {
                    parts.push("taints");
                }
                if changes.unschedulable.is_some() {
                    parts.push("cordon");
                }
                // What is remembered of the taints belongs to them.
                let annotations = changes.annotations.keys();
                if !changes.labels.is_empty()
                    || annotations.into_iter().any(|key| key != annotation::EXPECTED_METADATA)
                {
                    parts.push("metadata");
                }
                if changes.finalizers.is_some() {
                    parts.push("finalizer");
                }
                write!(f, "patch {} of vnode {}", parts.join(", "), changes.name)
            }
            Self::UpdateVnode { name, .. } => write!(f, "update vnode {name}"),
            Self::PatchStatus { name, lowered, .. } if lowered.is_empty() => {
                write!(f, "patch conditions of vnode {name}")
            }
            Self::PatchStatus { name, .. } => write!(f, "lower amounts of vnode {name}"),
            Self::LabelWorkerNode { node, policy: Some(policy) } => {
                write!(f, "label node {node} with {policy}")
            }
            Self::LabelWorkerNode { node, policy: None } => write!(f, "remove label of node {node}"),
            Self::DeletePod { key, why, .. } => write!(f, "delete pod {key} ({why:?})"),
            Self::DeleteVnode { name, .. } => write!(f, "delete vnode {name}"),
            Self::ReleaseVnode { name, .. } => write!(f, "release vnode {name}"),
            Self::Event(event) => write!(f, "event {}: {}", event.reason, event.message),
        }
    }
}
