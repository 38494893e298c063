//! What is known of every object that is copied or shall be: the versions seen in both clusters, which pair of versions
//! was found to be in order, what is missing and who waits for it. Metadata only; one lock, never held across an await.

mod usage;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use kubeocean_api::name::ObjectKey;
use parking_lot::Mutex;
use tokio::sync::Notify;

pub(super) use self::usage::Usage;
use super::{
    directory::Pods,
    kind::{ObjectKind, ObjectRef},
    links::Links,
    ownership::Marks,
    plan::Scope,
    view::{Original, Revision},
    waiting::Waiting,
};
use crate::pods::{references::References, service_environment::ServiceStore, tokens::TokenStore};
use kubeocean_runtime::{
    clock::Clock,
    queue::{Queue, flow_of},
};

/// Everything a ppod needs beside itself: ConfigMaps, Secrets, tokens and the two Services.
#[derive(Debug)]
pub struct ObjectStore {
    /// Tokens of ppods.
    pub tokens: Arc<TokenStore>,
    /// Addresses of the computing cluster's API server and DNS.
    pub services: Arc<ServiceStore>,
    pub(super) pods: Pods,
    pub(super) clock: Arc<dyn Clock>,
    pub(crate) queue: Arc<Queue<ObjectRef>>,
    /// Told when the set of namespaces with missing objects changes.
    pub(super) missing_changed: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    entries: BTreeMap<ObjectRef, Entry>,
    missing: BTreeSet<ObjectRef>,
    /// Pods that wait for a missing object.
    waiting_for_missing: Waiting,
    /// Pods that wait for a copy to be replaced.
    waiting_for_replacement: Waiting,
    links: Links,
    /// Growth that the worker refused and nobody was told of yet.
    refused_growth: BTreeMap<ObjectRef, Refused>,
    releasing_all: bool,
}

impl State {
    fn place_of(&self, object: &ObjectRef) -> String {
        let known = self.entries.get(object).and_then(|entry| entry.place.clone());
        known.unwrap_or_else(|| object.copy_name())
    }

    /// Says whether the object was missing, and which pods waited for it.
    fn not_missing(&mut self, object: &ObjectRef) -> (bool, Vec<ObjectKey>) {
        (self.missing.remove(object), self.waiting_for_missing.take(object))
    }
}

/// A volume that cannot grow in the worker cluster.
#[derive(Debug, Clone)]
pub(super) struct Refused {
    /// UID of the vobj.
    pub uid: String,
    /// Why, without what only those who run the worker may see.
    pub reason: String,
}

#[derive(Debug, Default)]
struct Entry {
    original: Option<Revision>,
    copy: Option<Revision>,
    /// The pair of resource versions that was found, or made, to be in order.
    converged: Option<(String, String)>,
    /// Name of the copy, since the last time the pair was in order.
    place: Option<String>,
    /// The original stands for files of whatever node its pod is on.
    of_a_node: bool,
    /// What the looks since the copy was last in order tell of the original's marks.
    marks: Marks,
    idle_since: Option<Timestamp>,
    /// Serialises the work on one object, so that a hundred pods that share it cause one write.
    lock: Arc<tokio::sync::Mutex<()>>,
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.original.is_none()
            && self.copy.is_none()
            && self.idle_since.is_none()
            && Arc::strong_count(&self.lock) == 1
    }

    fn is_ready(&self) -> bool {
        let (Some(original), Some(copy), Some((good_original, good_copy))) =
            (&self.original, &self.copy, &self.converged)
        else {
            return false;
        };
        !original.deleting
            && !copy.deleting
            && original.resource_version == *good_original
            && copy.resource_version == *good_copy
    }
}

/// In which cluster something was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The vobj in the computing cluster.
    Original,
    /// The pobj in the worker cluster.
    Copy,
}

impl Entry {
    fn side(&self, side: Side) -> Option<&Revision> {
        match side {
            Side::Original => self.original.as_ref(),
            Side::Copy => self.copy.as_ref(),
        }
    }

    fn side_mut(&mut self, side: Side) -> &mut Option<Revision> {
        match side {
            Side::Original => &mut self.original,
            Side::Copy => &mut self.copy,
        }
    }
}

/// Objects of one namespace share a flow. Volumes have no namespace, and are of many tenants.
fn flow(object: &ObjectRef) -> u64 {
    let key = &object.key;
    flow_of(if key.namespace.is_empty() { &key.name } else { &key.namespace })
}

impl ObjectStore {
    /// An empty store. `cluster_domain` is the computing cluster's, as in the names of its Services.
    pub fn new(clock: Arc<dyn Clock>, cluster_domain: &str) -> Self {
        let pods = Pods::default();
        Self {
            tokens: Arc::new(TokenStore::new(pods.clone(), Arc::clone(&clock))),
            services: Arc::new(ServiceStore::new(pods.clone(), cluster_domain)),
            pods,
            clock,
            queue: Queue::with_flows("objects", flow),
            missing_changed: Notify::new(),
            state: Mutex::default(),
        }
    }

    /// Connects the store of pods. Until then nothing is ever released.
    pub fn connect(&self, directory: Arc<dyn super::PodDirectory>) {
        self.pods.connect(directory);
    }

    /// Pods of `namespace` came to refer, or ceased to refer, to these objects. Called by the store of pods, so that
    /// copies nobody uses go after a while and missing objects that nobody wants are forgotten.
    pub fn references_changed(&self, namespace: &str, references: &References) {
        let objects = references.objects().map(|(kind, name, _)| ObjectRef::new(kind, namespace, name));
        let known: Vec<ObjectRef> = {
            let state = self.state.lock();
            let behind = |object: ObjectRef| state.links.all_behind(object);
            objects
                .flat_map(behind)
                .filter(|object| state.entries.contains_key(object) || state.missing.contains(object))
                .collect()
        };
        self.queue.add_all(known);
    }

    /// Names of the copies of what pods of `namespace` refer to and of what those need, each with the name of what it is the
    /// copy of.
    pub fn copies_behind(&self, namespace: &str, references: &References) -> Vec<(String, String)> {
        let state = self.state.lock();
        let objects = references.objects().map(|(kind, name, _)| ObjectRef::new(kind, namespace, name));
        let all = objects.flat_map(|object| state.links.all_behind(object));
        all.map(|object| (state.place_of(&object), object.key.name.to_string())).collect()
    }

    /// Number of objects whose copies are in order, by kind.
    pub fn copied(&self, kind: ObjectKind) -> usize {
        let state = self.state.lock();
        state.entries.iter().filter(|(object, entry)| object.kind == kind && entry.is_ready()).count()
    }

    /// An object was seen in one of the clusters, in a watch or as the answer of a write.
    pub(super) fn seen(&self, object: &ObjectRef, side: Side, version: Revision) {
        let changed = {
            let state = &mut *self.state.lock();
            let entry = state.entries.entry(object.clone()).or_default();
            let slot = entry.side_mut(side);
            if slot.as_ref().is_some_and(|known| !version.is_current_beside(known)) {
                return;
            }
            *slot = Some(version);
            let changed = !entry.is_ready();
            if side == Side::Original {
                state.links.saw(object);
            }
            changed
        };
        if changed {
            self.queue.add(object.clone());
        }
    }

    /// An object vanished from a watch: it was deleted, or no longer carries the label that the watch selects.
    pub(super) fn vanished(&self, object: &ObjectRef, side: Side, uid: Option<&str>) {
        let (news, waiting) = {
            let state = &mut *self.state.lock();
            let Some(entry) = state.entries.get_mut(object) else { return };
            let slot = entry.side_mut(side);
            if uid.is_some_and(|uid| slot.as_ref().is_some_and(|known| known.uid != uid)) {
                return; // the end of a predecessor
            }
            let was_there = slot.take().is_some();
            let was_in_order = entry.converged.take().is_some();
            let waiting = match side {
                Side::Original => Vec::new(),
                Side::Copy => state.waiting_for_replacement.take(object),
            };
            (was_there || was_in_order, waiting)
        };
        // Each look at a missing object finds it missing; that must not be the reason for the next one.
        if news {
            self.queue.add(object.clone());
        }
        self.pods.wake(waiting);
    }

    /// The complete list of one kind on one side.
    pub(super) fn reset(&self, kind: ObjectKind, side: Side, all: Vec<(ObjectRef, Revision)>) {
        let present: BTreeSet<&ObjectRef> = all.iter().map(|(object, _)| object).collect();
        let gone: Vec<ObjectRef> = {
            let state = self.state.lock();
            let known = state.entries.iter().filter(|(object, _)| object.kind == kind);
            known
                .filter(|(object, entry)| entry.side(side).is_some() && !present.contains(object))
                .map(|(object, _)| object.clone())
                .collect()
        };
        for object in &gone {
            self.vanished(object, side, None);
        }
        for (object, version) in all {
            self.seen(&object, side, version);
        }
    }

    /// An unlabelled object appeared in a namespace where something is missing.
    pub(super) fn appeared(&self, object: &ObjectRef) {
        let waiting = {
            let mut state = self.state.lock();
            if !state.missing.contains(object) {
                return;
            }
            state.waiting_for_missing.take(object)
        };
        self.queue.add(object.clone());
        self.pods.wake(waiting);
    }

    /// Whether the copy is known to be in order, without asking anybody.
    pub(super) fn is_ready(&self, object: &ObjectRef) -> bool {
        self.state.lock().entries.get(object).is_some_and(Entry::is_ready)
    }

    /// The lock of an object.
    pub(super) fn lock_of(&self, object: &ObjectRef) -> Arc<tokio::sync::Mutex<()>> {
        Arc::clone(&self.state.lock().entries.entry(object.clone()).or_default().lock)
    }

    /// Whether the copy is known to exist, so that it has to be read rather than created.
    pub(super) fn has_copy(&self, object: &ObjectRef) -> bool {
        self.state.lock().entries.get(object).is_some_and(|entry| entry.copy.is_some())
    }

    /// Whether the marks that the original has now came after an earlier look, with no copy in order since: a look, or one
    /// before it that ended with a refused copy, may have put them on it.
    pub(super) fn marks_are_new(&self, object: &ObjectRef, scope: &Scope, original: &Original) -> bool {
        self.state.lock().entries.entry(object.clone()).or_default().marks.are_new(scope, original)
    }

    /// Whether anything is known of the object.
    pub(super) fn is_known(&self, object: &ObjectRef) -> bool {
        let state = self.state.lock();
        let known = |entry: &Entry| entry.original.is_some() || entry.copy.is_some();
        state.missing.contains(object) || state.entries.get(object).is_some_and(known)
    }

    /// Whether both sides exist and neither is being deleted, so that nobody waits for a release.
    pub(super) fn is_intact(&self, object: &ObjectRef) -> bool {
        let exists = |version: &Option<Revision>| version.as_ref().is_some_and(|version| !version.deleting);
        self.state
            .lock()
            .entries
            .get(object)
            .is_some_and(|entry| exists(&entry.original) && exists(&entry.copy))
    }

    /// The pair was found, or made, to be in order. Versions come from live reads and answers of writes.
    pub(super) fn converged(&self, object: &ObjectRef, place: &str, original: Revision, copy: Revision) {
        let pods = {
            let state = &mut *self.state.lock();
            let entry = state.entries.entry(object.clone()).or_default();
            if entry.place.as_deref() != Some(place) {
                entry.place = Some(place.to_owned());
            }
            entry.converged = Some((original.resource_version.clone(), copy.resource_version.clone()));
            entry.marks = Marks::default();
            for (slot, version) in [(&mut entry.original, original), (&mut entry.copy, copy)] {
                if slot.as_ref().is_none_or(|known| version.is_current_beside(known)) {
                    *slot = Some(version);
                }
            }
            entry.idle_since = None;
            // Those that could not be copied without it.
            let dependents = state.links.dependents(object);
            let waiting =
                dependents.filter(|it| state.entries.get(*it).is_some_and(|entry| !entry.is_ready()));
            self.queue.add_all(waiting.cloned());
            let (was_missing, mut pods) = state.not_missing(object);
            if was_missing {
                self.missing_changed.notify_one();
            }
            pods.extend(state.waiting_for_replacement.take(object));
            pods
        };
        // The event that they wait for is outdated when it comes after this, and wakes nobody.
        self.pods.wake(pods);
    }

    /// The original was read: whether it stands for files of whatever node its pod is on.
    pub(super) fn stands_for_node_files(&self, object: &ObjectRef, of_a_node: bool) {
        self.state.lock().entries.entry(object.clone()).or_default().of_a_node = of_a_node;
    }

    /// What of these objects, or of those they need, stands for files of a node.
    pub(super) fn node_files_behind(&self, objects: impl Iterator<Item = ObjectRef>) -> Option<ObjectRef> {
        let state = self.state.lock();
        let mut all = objects.flat_map(|object| state.links.all_behind(object));
        all.find(|object| state.entries.get(object).is_some_and(|entry| entry.of_a_node))
    }

    /// The name under which the copy was last found in order, or should be.
    pub(super) fn place_of(&self, object: &ObjectRef) -> String {
        self.state.lock().place_of(object)
    }

    /// The copy of `object` was found to need those of `needs`. What is newly needed is looked at again.
    pub(super) fn needs(&self, object: &ObjectRef, needs: &[ObjectRef]) {
        let state = &mut *self.state.lock();
        let (added, removed) = state.links.set(object, needs.iter().cloned().collect());
        for object in &added {
            if let Some(entry) = state.entries.get_mut(object) {
                entry.converged = None;
            }
        }
        self.queue.add_all(removed.into_iter().filter(|object| state.entries.contains_key(object)));
    }

    /// Whether another object that is copied needs this one.
    pub(super) fn is_needed_by_others(&self, object: &ObjectRef) -> bool {
        self.state.lock().links.dependents(object).next().is_some()
    }

    /// The worker does not give a volume more room.
    pub(super) fn growth_refused(&self, object: &ObjectRef, refused: Refused) {
        self.state.lock().refused_growth.insert(object.clone(), refused);
        self.queue.add(object.clone());
    }

    /// What was refused since the last call.
    pub(super) fn take_refused_growth(&self, object: &ObjectRef) -> Option<Refused> {
        self.state.lock().refused_growth.remove(object)
    }

    /// A release begins: from here on the copy is not ready, whatever the watches say.
    pub(super) fn unconverge(&self, object: &ObjectRef) {
        if let Some(entry) = self.state.lock().entries.get_mut(object) {
            entry.converged = None;
        }
    }

    /// A pod, or nobody in particular, needs an object that does not exist.
    pub(super) fn is_missing(&self, object: &ObjectRef, pod: Option<&ObjectKey>) {
        let mut state = self.state.lock();
        let new = state.missing.insert(object.clone());
        if let Some(pod) = pod {
            state.waiting_for_missing.add(object, pod);
        }
        drop(state);
        if new {
            self.missing_changed.notify_one();
        }
    }

    /// Nobody needs a missing object any more. A pod that waits for it all the same has come just now: it looks again.
    pub(super) fn not_missing(&self, object: &ObjectRef) {
        let (was_missing, pods) = self.state.lock().not_missing(object);
        if was_missing {
            self.missing_changed.notify_one();
        }
        self.pods.wake(pods);
    }

    /// Kinds and namespaces in which something is missing.
    pub(super) fn missing_places(&self) -> BTreeSet<(ObjectKind, Arc<str>)> {
        self.state
            .lock()
            .missing
            .iter()
            .map(|object| (object.kind, Arc::clone(&object.key.namespace)))
            .collect()
    }

    /// A pod waits for the copy's end.
    pub(super) fn wait_for_replacement(&self, object: &ObjectRef, pod: &ObjectKey) {
        let mut state = self.state.lock();
        state.entries.entry(object.clone()).or_default();
        state.waiting_for_replacement.add(object, pod);
    }

    /// A vpod is gone: it waits for nothing any more. What nobody waits for is looked at again.
    pub fn pod_gone(&self, pod: &ObjectKey) {
        self.services.pod_gone(pod);
        let objects = {
            let mut state = self.state.lock();
            state
                .waiting_for_missing
                .pod_gone(pod)
                .into_iter()
                .chain(state.waiting_for_replacement.pod_gone(pod))
        };
        self.queue.add_all(objects);
    }

    /// Since when nobody uses the object; the clock starts with the first call.
    pub(super) fn idle_since(&self, object: &ObjectRef, now: Timestamp) -> Timestamp {
        *self.state.lock().entries.entry(object.clone()).or_default().idle_since.get_or_insert(now)
    }

    /// Somebody uses the object again.
    pub(super) fn is_used(&self, object: &ObjectRef) {
        if let Some(entry) = self.state.lock().entries.get_mut(object) {
            entry.idle_since = None;
        }
    }

    /// Nothing of ours is left of the object.
    pub(super) fn forget_if_empty(&self, object: &ObjectRef) {
        let state = &mut *self.state.lock();
        if let Some(entry) = state.entries.get_mut(object) {
            entry.idle_since = None;
            if entry.is_empty() && !state.waiting_for_replacement.has(object) {
                state.entries.remove(object);
                let freed = state.links.forget(object);
                self.queue.add_all(freed.into_iter().filter(|object| state.entries.contains_key(object)));
            }
        }
    }

    /// From now on every object is released (TD-1301).
    pub(super) fn start_releasing_all(&self) {
        self.state.lock().releasing_all = true;
    }

    pub(super) fn is_releasing_all(&self) -> bool {
        self.state.lock().releasing_all
    }

    /// Every known object.
    pub(super) fn all(&self) -> Vec<ObjectRef> {
        self.state.lock().entries.keys().cloned().collect()
    }
}

#[cfg(test)]
mod tests;
