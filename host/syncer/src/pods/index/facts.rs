//! What others ask of the pods: which are on a vnode, whose copy is this, how many are there.

use std::{collections::BTreeMap, sync::Arc};

use kubeocean_api::name::ObjectKey;

use super::{
    super::{
        ownership::{self, Claim},
        plan::{is_creatable, is_never_mapped},
        snapshot::ppod_key,
        view::{Phase, Ppod, Vpod},
    },
    PodStore,
};

/// A vpod as its vnode sees it: what keeps a vnode from being withdrawn, and what must leave it.
#[expect(clippy::struct_excessive_bools, reason = "independent facts about one pod, read by name")]
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VpodOnNode {
    /// Namespace and name.
    pub key: ObjectKey,
    /// UID, the precondition of its deletion.
    pub uid: Arc<str>,
    /// Phase.
    pub phase: Phase,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether a DaemonSet owns it.
    pub daemonset: bool,
    /// Whether it is never mapped, wherever it runs: a system namespace, or a port reservation (TD-404).
    pub system: bool,
    /// Whether it may stay outside the time windows.
    pub tolerates_out_of_window: bool,
}

/// Whose copy a pod of the worker cluster is.
#[derive(Clone, Debug)]
pub enum CopyOf {
    /// No watch shows the pod.
    Unknown,
    /// Nobody's here, or of a vpod that is gone.
    Foreign,
    /// A vpod's, proven.
    Vpod {
        /// The vpod.
        vpod: Arc<Vpod>,
        /// The copy.
        ppod: Arc<Ppod>,
    },
}

/// Pods by phase.
pub type ByPhase = BTreeMap<Phase, usize>;

impl PodStore {
    /// The vpods bound to a vnode, by name.
    pub fn on_vnode(&self, vnode: &str) -> Vec<VpodOnNode> {
        let scope = self.scope();
        let index = self.index.lock();
        let keys = index.by_vnode.get(vnode).into_iter().flatten();
        keys.filter_map(|key| index.vpods.get(key))
            .map(|entry| {
                let vpod = &entry.vpod;
                VpodOnNode {
                    key: vpod.key.clone(),
                    uid: vpod.uid.clone(),
                    phase: vpod.status.phase,
                    deleting: vpod.deletion.is_some(),
                    daemonset: vpod.daemonset,
                    system: is_never_mapped(&scope, &vpod.key),
                    tolerates_out_of_window: vpod.spec.tolerates_out_of_window,
                }
            })
            .collect()
    }

    /// Whose copy the pod with this key and UID is.
    pub fn original_of(&self, ppod: &ObjectKey, uid: &str) -> CopyOf {
        let scope = self.scope();
        let index = self.index.lock();
        let Some(ppod) = index.ppods.get(ppod).filter(|ppod| *ppod.uid == *uid) else {
            return CopyOf::Unknown;
        };
        let vpod = ppod.back_reference().and_then(|reference| index.vpods.get(&reference.key));
        let Some(vpod) = vpod.map(|entry| &entry.vpod) else { return CopyOf::Foreign };
        let claim = Claim { key: &vpod.key, uid: Some(&vpod.uid) };
        match ownership::check(ppod, &scope.stamp, claim).current() {
            Some(_) => CopyOf::Vpod { vpod: Arc::clone(vpod), ppod: Arc::clone(ppod) },
            None => CopyOf::Foreign,
        }
    }

    /// How many ppods of this binding exist (API-804). Other bindings may share the mount namespace.
    pub fn ppod_count(&self) -> usize {
        let scope = self.scope();
        self.index.lock().own_ppods(&scope.stamp).count()
    }

    /// This binding's vpods that are, or are to be, copied, and its ppods (BU-1601).
    pub fn by_phase(&self) -> (ByPhase, ByPhase) {
        let scope = self.scope();
        let index = self.index.lock();
        let (mut vpods, mut ppods) = (ByPhase::new(), ByPhase::new());
        let ours = |vpod: &&Arc<Vpod>| index.our_vnodes.contains(&vpod.node) && is_creatable(&scope, vpod);
        for vpod in index.vpods.values().map(|entry| &entry.vpod).filter(ours) {
            *vpods.entry(vpod.status.phase).or_default() += 1;
        }
        for ppod in index.own_ppods(&scope.stamp) {
            *ppods.entry(ppod.status.phase).or_default() += 1;
        }
        (vpods, ppods)
    }

    /// Pods bound to a vnode that have shown no sign of a copy, and have none.
    pub fn without_copy(&self, vnode: &str) -> Vec<Arc<Vpod>> {
        let mount = Arc::clone(&self.scope().mount_namespace);
        let index = self.index.lock();
        let keys = index.by_vnode.get(vnode).into_iter().flatten();
        keys.filter_map(|key| index.vpods.get(key))
            .filter(|entry| entry.vpod.place.is_some())
            .filter(|entry| !index.ppods.contains_key(&ppod_key(&mount, &entry.vpod.key)))
            .map(|entry| Arc::clone(&entry.vpod))
            .collect()
    }
}
