//! The store of vpods and ppods: two watches write, everything else asks.
//!
//! It keeps who runs where, who refers to what, which ppod names which vpod, and what proves an absence (DELETED
//! events, live reads). Every change puts the vpod's key into the queue. Synchronous; no lock is held across an await.
//! Invariants: an older version never replaces a newer one; the answer of a write counts as an event; what a DELETED
//! event removed is not brought back by a late answer.

mod directory;
mod facts;
mod few_keys;
mod sinks;
mod state;

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use kubeocean_api::{
    keys::annotation,
    name::{ObjectKey, vnode_name_prefix},
};
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

pub use self::facts::{ByPhase, CopyOf, VpodOnNode};
use self::state::{Index, Origin, Proof, Put, owner_of};
use super::{
    admission::Admission,
    references::References,
    snapshot::{Absence, PodScope, PodSnapshot, VnodeState, ppod_key},
    view::{Deletion, Ppod, PpodStatus, Vpod},
    vpod_identity::VpodIdentity,
};
use crate::objects::PodDirectory;
use kubeocean_runtime::queue::{Queue, flow_of};

type VnodeListener = Box<dyn Fn(&str) + Send + Sync>;
type ReferenceListener = Box<dyn Fn(&str, &References) + Send + Sync>;
type CopyListener = Box<dyn Fn(&VpodIdentity) + Send + Sync>;
type EndListener = Box<dyn Fn(&ObjectKey) + Send + Sync>;

/// All pods of one binding.
pub struct PodStore {
    index: Mutex<Index>,
    scope: RwLock<Arc<PodScope>>,
    queue: Arc<Queue<ObjectKey>>,
    vnode_prefix: String,
    vnode_listeners: RwLock<Vec<VnodeListener>>,
    reference_listeners: RwLock<Vec<ReferenceListener>>,
    copy_listeners: RwLock<Vec<CopyListener>>,
    end_listeners: RwLock<Vec<EndListener>>,
}

impl PodStore {
    /// An empty store; vpods are recognised by the vnode names of `cluster_id`.
    pub fn new(cluster_id: &str, scope: PodScope) -> Arc<Self> {
        Arc::new(Self {
            index: Mutex::default(),
            scope: RwLock::new(Arc::new(scope)),
            queue: Queue::with_flows("pods", |vpod: &ObjectKey| flow_of(&vpod.namespace)),
            vnode_prefix: vnode_name_prefix(cluster_id),
            vnode_listeners: RwLock::default(),
            reference_listeners: RwLock::default(),
            copy_listeners: RwLock::default(),
            end_listeners: RwLock::default(),
        })
    }

    /// Keys of vpods that need a look.
    pub fn queue(&self) -> &Arc<Queue<ObjectKey>> {
        &self.queue
    }

    /// What holds for all pods at present.
    pub fn scope(&self) -> Arc<PodScope> {
        self.scope.read().clone()
    }

    /// Takes a changed binding. DaemonSet pods are looked at again when their treatment changed, all pods when the
    /// deletion of the binding was called off or began, and refused pods in any case: what was wrong may be right now.
    pub fn set_scope(&self, scope: PodScope) {
        let new = Arc::new(scope);
        let old = std::mem::replace(&mut *self.scope.write(), Arc::clone(&new));
        let daemonsets = old.running_daemonset_by_default != new.running_daemonset_by_default;
        let all = old.binding_deleting != new.binding_deleting;
        let refused: Vec<_> = self.index.lock().refused.values().cloned().collect();
        self.queue.add_all(refused);
        if daemonsets || all {
            let vpods: Vec<_> = {
                let index = self.index.lock();
                let vpods = index.vpods.values().map(|entry| &entry.vpod);
                vpods.filter(|vpod| all || vpod.daemonset).cloned().collect()
            };
            self.queue.add_all(vpods.iter().map(|vpod| vpod.key.clone()));
            // Whether they will run decides whether they use what they refer to.
            for vpod in &vpods {
                self.tell_references(vpod);
            }
        }
    }

    /// Registers who wants to know that pods of a vnode changed.
    pub fn on_vpod_change(&self, listener: impl Fn(&str) + Send + Sync + 'static) {
        self.vnode_listeners.write().push(Box::new(listener));
    }

    /// Registers who wants to know that pods of a namespace came or ceased to refer to objects.
    pub fn on_references_change(&self, listener: impl Fn(&str, &References) + Send + Sync + 'static) {
        self.reference_listeners.write().push(Box::new(listener));
    }

    /// Registers who wants to know that a vpod's ppod is gone, or that a vpod has ended that has none.
    pub fn on_copy_gone(&self, listener: impl Fn(&VpodIdentity) + Send + Sync + 'static) {
        self.copy_listeners.write().push(Box::new(listener));
    }

    /// Registers who wants to know that there is no vpod of a name any more.
    pub fn on_vpod_gone(&self, listener: impl Fn(&ObjectKey) + Send + Sync + 'static) {
        self.end_listeners.write().push(Box::new(listener));
    }

    /// A vnode appeared, changed or vanished; whether it is one of this binding.
    pub fn vnode_changed(&self, vnode: &str, ours: bool) {
        let (keys, concerned) = {
            let index = &mut *self.index.lock();
            let changed =
                if ours { index.our_vnodes.insert(vnode.into()) } else { index.our_vnodes.remove(vnode) };
            let keys: Vec<_> = index.by_vnode.get(vnode).into_iter().flatten().cloned().collect();
            let vpods = keys.iter().filter(|_| changed).filter_map(|key| index.vpods.get(key));
            let concerned: Vec<_> = vpods.map(|entry| Arc::clone(&entry.vpod)).collect();
            (keys, concerned)
        };
        self.queue.add_all(keys);
        // They begin, or cease, to use what they refer to.
        for vpod in &concerned {
            self.tell_references(vpod);
        }
    }

    /// The worker, which may have been out of reach, is there: its scheduler has all its time anew for what waits (TD-804).
    pub fn worker_is_back(&self) {
        let now = Instant::now();
        self.index.lock().unscheduled.values_mut().for_each(|since| *since = now);
    }

    /// The same for one ppod.
    pub(super) fn unscheduled_anew(&self, ppod: &ObjectKey) {
        if let Some(since) = self.index.lock().unscheduled.get_mut(ppod) {
            *since = Instant::now();
        }
    }

    /// All that is known of one pod. `vnode` answers for the vpod's node.
    pub fn snapshot(
        &self,
        key: &ObjectKey,
        now: Timestamp,
        vnode: impl FnOnce(&str) -> VnodeState,
    ) -> PodSnapshot {
        let scope = self.scope();
        let place = ppod_key(&scope.mount_namespace, key);
        let mut snapshot = {
            let index = self.index.lock();
            let entry = index.vpods.get(key);
            let copies = index.by_back_reference.get(key).into_iter().flatten();
            let strays: Vec<_> = copies
                .filter(|copy| **copy != place)
                .filter_map(|copy| index.ppods.get(copy))
                .cloned()
                .collect();
            let ppod = index.ppods.get(&place).cloned();
            let unscheduled_for = index.unscheduled.get(&place).map(Instant::elapsed).unwrap_or_default();
            let named =
                || strays.iter().chain(&ppod).filter_map(|it| it.annotation(annotation::VIRTUAL_POD_UID));
            let among = |is_one: &dyn Fn(&str) -> bool| -> BTreeSet<Box<str>> {
                named().filter(|uid| is_one(uid)).map(Into::into).collect()
            };
            PodSnapshot {
                gone_vpods: among(&|uid| index.gone_vpods.contains(uid)),
                forced_vpods: among(&|uid| index.forced_vpods.contains(uid)),
                key: key.clone(),
                now,
                vpod: entry.map(|entry| entry.vpod.clone()),
                node_is_dead: false,
                vnode: VnodeState::Missing,
                ppod,
                unscheduled_for,
                strays,
                absence: entry.map(|entry| entry.absence.clone()).unwrap_or_default(),
                mirrored: entry.and_then(|entry| entry.mirrored),
                status_written: entry.and_then(|entry| entry.status_written),
                admission: Admission::default(),
                scope,
            }
        };
        if let Some(vpod) = &snapshot.vpod {
            snapshot.vnode = vnode(&vpod.node);
        }
        snapshot
    }

    /// How long a vpod has been bound: since it was seen here, or, if a Syncer before saw it, since its scheduler said so.
    pub(super) fn bound_for(&self, key: &ObjectKey, now: Timestamp) -> Option<Duration> {
        let index = self.index.lock();
        let entry = index.vpods.get(key)?;
        let conditions = entry.vpod.status.conditions.list();
        let scheduled = conditions.iter().find(|it| it["type"] == "PodScheduled");
        let told = scheduled.and_then(|it| it["lastTransitionTime"].as_str()?.parse::<Timestamp>().ok());
        // The API has whole seconds.
        let told = told.and_then(|at| Duration::try_from(now.duration_since(at)).ok()).unwrap_or_default();
        Some(entry.since.elapsed().max(told.saturating_sub(Duration::from_secs(1))))
    }

    /// There is no ppod for this vpod, until the binding or who sits in its place changes.
    pub(super) fn refused(&self, key: &ObjectKey) {
        let place = ppod_key(&self.scope().mount_namespace, key);
        let index = &mut *self.index.lock();
        if let Some(entry) = index.vpods.get_mut(key) {
            entry.refused = Some(place.clone());
            index.refused.insert(place, key.clone());
        }
    }

    /// Policies are asked about a pod.
    pub(super) fn begin_admission(&self, key: &ObjectKey) {
        self.index.lock().asking.insert(key.clone(), false);
    }

    /// Whether policies let this pod have a copy for now. What changed while they were asked is asked about again, if they do
    /// not.
    pub(super) fn end_admission(&self, key: &ObjectKey, granted: bool) {
        let mut index = self.index.lock();
        let changed = index.asking.remove(key).unwrap_or_default();
        if granted {
            index.denied.remove(key);
        } else if index.vpods.contains_key(key) {
            index.denied.insert(key.clone());
            drop(index);
            self.queue.add_all(changed.then(|| key.clone()));
        }
    }

    /// Pods without admission, of one vnode or of all, are looked at again.
    pub fn wake_denied(&self, vnode: Option<&str>) {
        let keys: Vec<ObjectKey> = {
            let Index { vpods, denied, asking, .. } = &mut *self.index.lock();
            let here = |key: &ObjectKey| {
                vnode.is_none_or(|vnode| vpods.get(key).is_some_and(|entry| *entry.vpod.node == *vnode))
            };
            asking.iter_mut().filter(|(key, _)| here(key)).for_each(|(_, changed)| *changed = true);
            denied.iter().filter(|key| here(key)).cloned().collect()
        };
        self.queue.add_all(keys);
    }

    /// The answer of a write on the version that was known: nothing but what was written is new, so nobody is woken.
    pub(super) fn feed_vpod(&self, vpod: Vpod) {
        self.take_vpod(vpod);
    }

    /// A live read, or the answer of a write on whatever version there was. What it tells is told once: its event is no
    /// news any more and wakes nobody.
    pub(crate) fn saw_vpod(&self, vpod: Vpod) {
        let key = vpod.key.clone();
        if self.take_vpod(vpod) {
            self.queue.add(key);
        }
    }

    fn take_vpod(&self, vpod: Vpod) -> bool {
        let gone = self.index.lock().gone_vpods.contains(&vpod.uid);
        !gone && self.is_ours(&vpod) && self.put_vpod(vpod)
    }

    /// Like [`Self::feed_vpod`].
    pub(super) fn feed_ppod(&self, ppod: Ppod) {
        self.take_ppod(ppod);
    }

    /// Like [`Self::saw_vpod`].
    pub(super) fn saw_ppod(&self, ppod: Ppod) {
        self.queue.add_all(self.take_ppod(ppod));
    }

    /// The vpod it names, if there is something to tell.
    fn take_ppod(&self, ppod: Ppod) -> Option<ObjectKey> {
        let mut index = self.index.lock();
        if index.gone_ppods.contains(&ppod.uid) { None } else { index.put_ppod(ppod, Origin::Event) }
    }

    /// A ppod that was read because its status had been dropped.
    pub(super) fn reread_ppod(&self, ppod: Ppod) {
        let mut index = self.index.lock();
        if !index.gone_ppods.contains(&ppod.uid) {
            index.put_ppod(ppod, Origin::Read);
        }
    }

    /// A live read found no vpod of this key, or one with another UID than those in the snapshot.
    pub(super) fn confirm_vpod_gone(&self, key: &ObjectKey, live_uid: Option<&str>) {
        let index = &mut *self.index.lock();
        for copy in index.by_back_reference.get(key).into_iter().flatten() {
            let named = index.ppods.get(copy).and_then(|ppod| ppod.annotation(annotation::VIRTUAL_POD_UID));
            if let Some(uid) = named.filter(|uid| live_uid != Some(*uid)) {
                index.gone_vpods.insert(uid);
            }
        }
    }

    /// The API server said that a vpod is gone.
    pub(super) fn vpod_gone(&self, key: &ObjectKey, uid: &str) {
        self.remove_vpod(key, uid);
    }

    /// A live read found no ppod where the copy of this vpod belongs.
    pub(super) fn confirm_ppod_gone(&self, key: &ObjectKey) {
        let mut index = self.index.lock();
        let Some(entry) = index.vpods.get_mut(key) else { return };
        match &mut entry.absence {
            Absence::Unproven => entry.absence = Absence::Confirmed,
            Absence::Confirmed => {}
            Absence::Witnessed(lost) => Arc::make_mut(lost).certain = true,
        }
    }

    /// The API server said that a ppod is gone.
    pub(super) fn ppod_gone(&self, ppod: &ObjectKey, uid: &str) {
        self.remove_ppod(ppod, uid, None, Proof::Certain);
    }

    /// A deletion was accepted; its event follows.
    pub(super) fn ppod_deleting(&self, ppod: &ObjectKey, uid: &str, deletion: Deletion) {
        let mut index = self.index.lock();
        if let Some(ppod) = index.ppods.get_mut(ppod).filter(|ppod| *ppod.uid == *uid) {
            let deletion = Deletion {
                grace_seconds: deletion.grace_seconds.or(ppod.deletion.and_then(|it| it.grace_seconds)),
                ..deletion
            };
            Arc::make_mut(ppod).deletion = Some(deletion);
        }
    }

    /// The deletion of a vpod was finished, but finalizers keep it.
    pub(super) fn vpod_finished(&self, key: &ObjectKey, uid: &str, now: Timestamp) {
        let mut index = self.index.lock();
        if let Some(entry) = index.vpods.get_mut(key).filter(|entry| *entry.vpod.uid == *uid) {
            Arc::make_mut(&mut entry.vpod).deletion =
                Some(Deletion { deadline: now, grace_seconds: Some(0) });
        }
    }

    /// The vpod's status was written.
    pub(super) fn status_written(&self, key: &ObjectKey, uid: &str, now: Timestamp) {
        let mut index = self.index.lock();
        if let Some(entry) = index.vpods.get_mut(key).filter(|entry| *entry.vpod.uid == *uid) {
            entry.status_written = Some(now);
        }
    }

    /// A vpod with a status of this hash shows what `ppod` reported, whose copy here is dropped unless it has changed since.
    /// By now somebody else may have written another status: that is to be compared.
    pub(super) fn mirrored(&self, key: &ObjectKey, vpod_uid: &str, status: u64, ppod: &Ppod) {
        let index = &mut *self.index.lock();
        let Some(entry) = index.vpods.get_mut(key).filter(|entry| *entry.vpod.uid == *vpod_uid) else {
            return;
        };
        let Some(present) = index.ppods.get_mut(&ppod.key) else { return };
        if present.uid == ppod.uid && present.status.hash == ppod.status.hash {
            entry.mirrored = Some(status);
            if present.status.fields.is_some() {
                Arc::make_mut(present).status.fields = None;
            }
        }
    }

    fn is_ours(&self, vpod: &Vpod) -> bool {
        vpod.node.starts_with(&self.vnode_prefix)
    }

    /// Takes a version of a vpod and tells who is concerned; says whether it was news.
    fn put_vpod(&self, vpod: Vpod) -> bool {
        let (key, vnode) = (vpod.key.clone(), vpod.node.clone());
        let scope = self.scope();
        let (put, present, need_changed) = {
            let mut index = self.index.lock();
            let need = |index: &Index| {
                index.vpods.get(&key).is_some_and(|entry| index.needs_objects(&scope, &entry.vpod))
            };
            let needed = need(&index);
            let put = index.put_vpod(vpod);
            let need_changed = needed != need(&index);
            (put, index.vpods.get(&key).map(|entry| entry.vpod.clone()), need_changed)
        };
        let Put::News { references_changed, replaced } = put else { return false };
        if let Some(ended) = present.as_ref().filter(|vpod| vpod.status.phase.is_terminal()) {
            self.tell_ended_without_copy(&key, &ended.uid);
        }
        if let Some(replaced) = replaced {
            self.tell_references(&replaced);
        }
        if let Some(present) = present.filter(|_| references_changed || need_changed) {
            self.tell_references(&present);
        }
        self.tell(&vnode);
        true
    }

    fn remove_vpod(&self, key: &ObjectKey, uid: &str) {
        let (removed, has_copies) = {
            let mut index = self.index.lock();
            index.gone_vpods.insert(uid);
            (index.remove_vpod(key, uid), index.by_back_reference.contains_key(key))
        };
        self.tell_vpod_gone(key);
        self.tell_ended_without_copy(key, uid);
        if removed.is_some() || has_copies {
            self.queue.add(key.clone());
        }
        if let Some(vpod) = removed {
            self.tell_references(&vpod);
            self.tell(&vpod.node);
        }
    }

    fn remove_ppod(&self, key: &ObjectKey, uid: &str, last: Option<PpodStatus>, proof: Proof) {
        let (key, vpod, owner) = {
            let mut index = self.index.lock();
            if proof == Proof::Certain {
                index.gone_ppods.insert(uid);
            }
            self.queue.add_all(index.refused.get(key).cloned());
            let owner = index.ppods.get(key).filter(|ppod| *ppod.uid == *uid).and_then(|ppod| owner_of(ppod));
            let Some(vpod) = index.remove_ppod(key, uid, last, proof) else { return };
            let entry = index.vpods.get(&vpod).map(|entry| entry.vpod.clone());
            (vpod, entry, owner)
        };
        self.queue.add(key);
        self.tell_copy_gone(owner);
        if let Some(vpod) = vpod {
            self.tell_ended(&vpod);
            self.tell(&vpod.node);
        }
    }

    fn tell(&self, vnode: &str) {
        self.vnode_listeners.read().iter().for_each(|listener| listener(vnode));
    }

    /// Also of a vpod that is not known any more: a look at it may just have been under way.
    fn tell_vpod_gone(&self, key: &ObjectKey) {
        if !self.index.lock().vpods.contains_key(key) {
            self.end_listeners.read().iter().for_each(|listener| listener(key));
        }
    }

    fn tell_copy_gone(&self, owner: Option<VpodIdentity>) {
        if let Some(owner) = owner {
            self.copy_listeners.read().iter().for_each(|listener| listener(&owner));
        }
    }

    /// A copy that went while nobody looked has no end of its own that could be told.
    fn tell_ended_without_copy(&self, key: &ObjectKey, uid: &str) {
        let vpod = VpodIdentity { key: key.clone(), uid: uid.to_owned() };
        if !PodDirectory::has_copy(self, &vpod) {
            self.tell_copy_gone(Some(vpod));
        }
    }

    /// The ppod of this vpod is gone. If the vpod ended before, it used its objects up to now.
    fn tell_ended(&self, vpod: &Vpod) {
        if vpod.status.phase.is_terminal() {
            self.tell_references(vpod);
        }
    }

    fn tell_references(&self, vpod: &Vpod) {
        let listeners = self.reference_listeners.read();
        listeners.iter().for_each(|listener| listener(&vpod.key.namespace, &vpod.spec.references));
    }
}

impl fmt::Debug for PodStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let index = self.index.lock();
        f.debug_struct("PodStore")
            .field("vpods", &index.vpods.len())
            .field("ppods", &index.ppods.len())
            .finish_non_exhaustive()
    }
}
