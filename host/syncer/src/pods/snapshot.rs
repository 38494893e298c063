//! Everything one pod plan is computed from.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use kubeocean_api::name::{ObjectKey, phys_name};

use super::{
    admission::Admission,
    names::Names,
    ownership::{Claim, Stamp},
    view::{Ppod, PpodStatus, Vpod},
    wording::Wording,
};
use crate::config::{StatusMessages, SyncerConfig};
use kubeocean_runtime::binding::Binding;

/// What holds for all pods of a binding.
#[derive(Clone, Debug)]
pub struct PodScope {
    /// What we write on ppods.
    pub stamp: Stamp,
    /// Namespace of all ppods.
    pub mount_namespace: Arc<str>,
    /// Whether the binding is being deleted: nothing new is created.
    pub binding_deleting: bool,
    /// `spec.directScheduling`.
    pub direct_scheduling: bool,
    /// `spec.podPriorityClassName`; empty for the default class.
    pub priority_class_name: Arc<str>,
    /// `spec.runningDaemonsetByDefault`.
    pub running_daemonset_by_default: bool,
    /// Namespace of our components, whose pods are never mapped.
    pub system_namespace: Arc<str>,
    /// How long the worker's scheduler may take (TD-804).
    pub scheduling_timeout: Duration,
    /// Which messages go up.
    pub messages: StatusMessages,
    /// Prefixes of keys that do not go up.
    pub metadata_deny: Vec<String>,
}

impl PodScope {
    /// What the binding and the settings say. `computing_cluster_uid` is the UID of the computing cluster's namespace
    /// `kube-system`.
    pub fn of(binding: &Binding, config: &SyncerConfig, computing_cluster_uid: &str) -> Self {
        Self {
            stamp: Stamp {
                binding: binding.name.as_str().into(),
                computing_cluster_uid: computing_cluster_uid.into(),
            },
            mount_namespace: binding.spec.mount_namespace.as_str().into(),
            binding_deleting: binding.deleting,
            direct_scheduling: binding.spec.direct_scheduling,
            priority_class_name: binding.spec.pod_priority_class_name.as_str().into(),
            running_daemonset_by_default: binding.spec.running_daemonset_by_default,
            system_namespace: config.system_namespace.as_str().into(),
            scheduling_timeout: config.scheduling_timeout,
            messages: config.pod_status_messages,
            metadata_deny: config.vnode_metadata_deny.clone(),
        }
    }
}

/// What is known of a vpod's vnode (TD-402).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VnodeState {
    /// No such vnode.
    Missing,
    /// A node that another binding, or nobody, manages.
    NotOurs,
    /// Ours.
    Ours {
        /// The worker node it stands for; `None` is a broken vnode (TD-403).
        worker_node: Option<Box<str>>,
        /// Whether it is being withdrawn.
        deleting: bool,
    },
}

/// What is known of a ppod that is not there.
#[derive(Clone, Debug, Default)]
pub enum Absence {
    /// Only that no watch shows it.
    #[default]
    Unproven,
    /// A live read found nothing.
    Confirmed,
    /// Its DELETED event was seen.
    Witnessed(Arc<LostPpod>),
}

impl Absence {
    /// Whether nothing is there for sure. A pod also leaves a watch when it loses the label the watch selects by, so
    /// the event of one that was not being deleted proves nothing by itself.
    pub fn is_proven(&self) -> bool {
        match self {
            Self::Unproven => false,
            Self::Confirmed => true,
            Self::Witnessed(lost) => lost.certain,
        }
    }
}

/// The last that was seen of a ppod.
#[derive(Clone, Debug)]
pub struct LostPpod {
    /// Its UID.
    pub uid: Arc<str>,
    /// UID of the vpod it named.
    pub virtual_uid: Box<str>,
    /// It was being deleted when it vanished, or a live read found nothing since.
    pub certain: bool,
    /// Its last status.
    pub status: PpodStatus,
}

/// One vpod, its ppod and what surrounds them.
#[derive(Clone, Debug)]
pub struct PodSnapshot {
    /// Key of the vpod.
    pub key: ObjectKey,
    /// Now, in whole seconds.
    pub now: Timestamp,
    /// The binding.
    pub scope: Arc<PodScope>,
    /// The vpod.
    pub vpod: Option<Arc<Vpod>>,
    /// UIDs of vpods that are known to be gone, among those the ppods here name.
    pub gone_vpods: BTreeSet<Box<str>>,
    /// Of those, the ones that were deleted by force: what is left of them is, too.
    pub forced_vpods: BTreeSet<Box<str>>,
    /// Whether the worker node of the ppod here is gone or not ready, so that nobody may be left to end the ppod.
    pub node_is_dead: bool,
    /// The vpod's vnode; [`VnodeState::Missing`] without a vpod.
    pub vnode: VnodeState,
    /// The pod at the place of the copy.
    pub ppod: Option<Arc<Ppod>>,
    /// How long we have seen that pod without a node, by our own clock: the worker's may differ.
    pub unscheduled_for: Duration,
    /// Ppods elsewhere that name this vpod.
    pub strays: Vec<Arc<Ppod>>,
    /// If there is no ppod: what proves it.
    pub absence: Absence,
    /// Hash of the vpod's status when the ppod's present status was mirrored.
    pub mirrored: Option<u64>,
    /// When the vpod's status was written last.
    pub status_written: Option<Timestamp>,
    /// Whether policies let the vpod have a copy.
    pub admission: Admission,
}

impl PodSnapshot {
    /// Where the copy of this vpod belongs (TD-301, TD-304).
    pub fn ppod_key(&self) -> ObjectKey {
        ppod_key(&self.scope.mount_namespace, &self.key)
    }

    /// How what the worker says about the ppod of this UID is told on `vpod`.
    pub fn wording<'a>(&'a self, vpod: &'a Vpod, ppod_uid: &'a str) -> Wording<'a> {
        Wording::new(self.scope.messages, move || {
            let worker_node = match &self.vnode {
                VnodeState::Ours { worker_node, .. } => worker_node.as_deref(),
                VnodeState::Missing | VnodeState::NotOurs => None,
            };
            Names::of(vpod, (&self.ppod_key(), ppod_uid), worker_node, [], [])
        })
    }

    /// The claim ppods are checked against.
    pub fn claim(&self) -> Claim<'_> {
        Claim { key: &self.key, uid: self.vpod.as_ref().map(|vpod| &*vpod.uid) }
    }
}

/// Where the copy of a vpod belongs.
pub fn ppod_key(mount_namespace: &Arc<str>, vpod: &ObjectKey) -> ObjectKey {
    ObjectKey::new(mount_namespace.clone(), phys_name(&vpod.name, &vpod.namespace))
}
