//! The policies of the worker cluster and the modules they name, behind one lock.
//!
//! In: the policy watch, fetched modules, what the engine says. Out: the engine's list of policies, what nodes need to
//! know about the one that governs them, and a queue of policies whose object is to be looked at.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use jiff::Timestamp;
use kubeocean_api::{NodeSelector, name::fit_label_value};
use kubeocean_engine::{
    EntryMetrics, LoadCode, LoadError, MAX_ENTRIES, MAX_EVALUATORS, ModuleClaims, ModuleFetch, PolicySpec,
    PolicyStatus,
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    apply::speaks_of,
    finalizer,
    modules::{Fetched, ModuleKey, ModulePlaces, OciKey, Source, keep_good, source},
    view::PolicyView,
};
use crate::nodes::{index::Identity, plan::LabelOwner, vnode::GoverningPolicy};
use crate::tombstones::{Tombstones, Versioned};
use kubeocean_runtime::{
    clock::{Clock as _, SystemClock},
    queue::Queue,
    sink::Sink,
};

/// See the module documentation.
#[derive(Debug)]
pub struct PolicyStore {
    identity: Identity,
    places: ModulePlaces,
    state: Mutex<State>,
    pub(super) queue: Arc<Queue<Arc<str>>>,
    /// Notified when the engine's list changed.
    pub(super) engine_input: Notify,
    /// Notified when [`Self::wanted`] or [`Self::mislabelled`] changed.
    pub(super) wanted_modules: Notify,
    /// Notified when [`Self::resolution`] may have changed.
    pub(crate) resolved: Notify,
    /// Changes of policies so far that concern the engine, and how many of them it knows.
    changes: AtomicU64,
    engine_knows: AtomicU64,
    /// Taken while a finalizer is written, so that holding and releasing do not overtake each other.
    pub(super) finalizers: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    policies: BTreeMap<String, Arc<PolicyView>>,
    /// Policies that named our binding while we looked, or that a vnode of ours names.
    were_ours: BTreeSet<String>,
    modules: BTreeMap<ModuleKey, ModuleFetch>,
    look_ups: BTreeMap<ModuleKey, FailedLookUps>,
    mislabelled: BTreeSet<ModuleKey>,
    engine: HashMap<String, PolicyStatus>,
    written: HashMap<String, Timestamp>,
    /// Policies that went.
    left: Tombstones,
    /// Of the binding.
    binding_selector: Option<NodeSelector>,
}

/// That a module which is there could not be looked up. What it said before goes on deciding, so the engine does not know.
#[derive(Debug, Default)]
struct FailedLookUps {
    /// As long as it lasts.
    failure: Option<LoadError>,
    /// The last one, also when it is over.
    last: Option<(String, Timestamp)>,
    /// Changes of what fails, by step.
    counts: BTreeMap<LoadCode, u64>,
}

impl FailedLookUps {
    fn note(&mut self, key: &ModuleKey, failure: Option<LoadError>) {
        if let Some(new) = failure.as_ref().filter(|new| self.failure.as_ref() != Some(*new)) {
            tracing::warn!(?key, failure = %new, "a policy module could not be looked up; the known one goes on");
            self.last = Some((new.to_string(), SystemClock.now()));
            *self.counts.entry(new.code).or_default() += 1;
        }
        self.failure = failure;
    }
}

/// Summary of all policies of a binding for its condition `PoliciesResolved` (API-802).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// Condition status is True.
    pub resolved: bool,
    /// Condition reason.
    pub reason: &'static str,
    /// Condition message.
    pub message: String,
}

impl PolicyStore {
    /// An empty store.
    pub fn new(identity: Identity, places: ModulePlaces) -> Arc<Self> {
        Arc::new(Self {
            identity,
            places,
            state: Mutex::default(),
            queue: Queue::new("policies"),
            engine_input: Notify::new(),
            wanted_modules: Notify::new(),
            resolved: Notify::new(),
            changes: AtomicU64::new(0),
            engine_knows: AtomicU64::new(0),
            finalizers: tokio::sync::Mutex::new(()),
        })
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether a policy leases for this binding: it names it, and no other computing cluster holds it.
    fn is_ours(&self, policy: &PolicyView) -> bool {
        policy.spec.spec.cluster == self.identity.binding && !policy.taken(&self.identity.computing_uid)
    }

    /// A policy by name.
    pub fn get(&self, name: &str) -> Option<Arc<PolicyView>> {
        self.state.lock().policies.get(name).cloned()
    }

    /// Names of all policies.
    pub fn names(&self) -> Vec<String> {
        self.state.lock().policies.keys().cloned().collect()
    }

    /// What a vnode says about the policy that governs it.
    pub fn governing(&self, name: &str) -> Option<GoverningPolicy> {
        let policy = self.get(name)?;
        Some(GoverningPolicy {
            name: name.to_owned(),
            details: policy.details(),
            held: finalizer::is_held(&policy, &self.identity),
        })
    }

    /// Whether the value of a worker node's label `policy-applied` belongs to another binding.
    pub fn label_owner(&self, value: &str) -> LabelOwner {
        let state = self.state.lock();
        let named = state.policies.values().find(|policy| fit_label_value(policy.name()) == value);
        match named {
            Some(policy) if !self.is_ours(policy) => LabelOwner::Other,
            _ => LabelOwner::OursOrNobody,
        }
    }

    /// Whether a label value names a policy of this binding, or none that exists.
    pub fn may_clean_label(&self, value: &str) -> bool {
        self.label_owner(value) == LabelOwner::OursOrNobody
    }

    /// Whether the policy is of this binding, or was: it says who holds it, and what says nothing did so while we looked.
    pub(crate) fn was_ours(&self, policy: &PolicyView) -> bool {
        let us = &self.identity.binding;
        let held = match policy.held_for() {
            Some(holder) => holder == us,
            None => self.state.lock().were_ours.contains(policy.name()),
        };
        (held || policy.spec.spec.cluster == *us) && !policy.taken(&self.identity.computing_uid)
    }

    /// A vnode of ours names this policy.
    pub fn remember_ours(&self, name: &str) {
        self.state.lock().were_ours.insert(name.to_owned());
    }

    /// How many changes of policies that concern the engine there have been. Ask before [`Self::engine_list`], and tell it
    /// to [`Self::engine_took`].
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// The engine decides by a list that has the first `changes` changes.
    pub fn engine_took(&self, changes: u64) {
        self.engine_knows.store(changes, Ordering::Release);
    }

    /// The changes the engine decides by: to be asked before it is.
    pub fn known_to_engine(&self) -> u64 {
        self.engine_knows.load(Ordering::Acquire)
    }

    /// The engine's list.
    pub fn engine_list(&self) -> Vec<PolicySpec> {
        let state = self.state.lock();
        let ours = state.policies.values().filter(|policy| self.is_ours(policy) && !policy.deleting());
        ours.map(|policy| PolicySpec {
            name: policy.name().to_owned(),
            uid: policy.uid().to_owned(),
            created_unix: policy.created_unix(),
            generation: policy.generation(),
            spec: policy.spec.spec.clone(),
            modules: self.modules_of(policy, &state.modules),
        })
        .collect()
    }

    fn modules_of(
        &self,
        policy: &PolicyView,
        known: &BTreeMap<ModuleKey, ModuleFetch>,
    ) -> BTreeMap<String, ModuleFetch> {
        let entries = policy.spec.spec.policies.iter();
        entries
            .filter_map(|entry| {
                let fetch = match source(entry, &self.places) {
                    Source::Builtin => return None,
                    Source::Fetched(key) => known.get(&key).cloned().unwrap_or_default(),
                    Source::Refused(fetch) => fetch,
                };
                Some((entry.name.clone(), fetch))
            })
            .collect()
    }

    /// Modules that policies of ours name and that are fetched, with the digests they are pinned to. Those of entries that
    /// the engine refuses as too many are left out: nobody runs them, and their bytes would fill memory.
    pub fn wanted(&self) -> BTreeMap<ModuleKey, Vec<String>> {
        self.wanted_in(&self.state.lock())
    }

    fn wanted_in(&self, state: &State) -> BTreeMap<ModuleKey, Vec<String>> {
        let mut wanted: BTreeMap<ModuleKey, Vec<String>> = BTreeMap::new();
        let ours = state.policies.values().filter(|policy| self.is_ours(policy) && !policy.deleting());
        let mut ours: Vec<&Arc<PolicyView>> = ours.collect();
        // The engine's order (PO-541).
        ours.sort_by(|a, b| (a.created_unix(), a.name()).cmp(&(b.created_unix(), b.name())));
        let entries = ours.into_iter().flat_map(|policy| policy.spec.spec.policies.iter().take(MAX_ENTRIES));
        for entry in entries.take(MAX_EVALUATORS) {
            if let Source::Fetched(key) = source(entry, &self.places) {
                wanted.entry(key).or_default().extend(entry.module.digest.clone());
            }
        }
        wanted
    }

    /// The entries of a policy whose modules are fetched.
    fn keys_of(&self, policy: &PolicyView) -> Vec<(String, ModuleKey)> {
        let keys = policy.spec.spec.policies.iter().filter_map(|entry| match source(entry, &self.places) {
            Source::Fetched(key) => Some((entry.name.clone(), key)),
            Source::Builtin | Source::Refused(_) => None,
        });
        keys.collect()
    }

    /// The result of a fetch. One that came too late is nobody's: it would stay for ever.
    pub fn fetched(&self, key: &ModuleKey, fetched: impl Into<Fetched>) {
        let mut state = self.state.lock();
        let Some(digests) = self.wanted_in(&state).remove(key) else { return };
        let Fetched { module, stale } = keep_good(key, state.modules.get(key), fetched.into(), &digests);
        if stale.is_some() || state.look_ups.contains_key(key) {
            state.look_ups.entry(key.clone()).or_default().note(key, stale);
        }
        let fetch = shared(module, &state.modules);
        let same = match (state.modules.get(key), &fetch) {
            (Some(ModuleFetch::Ready(old)), ModuleFetch::Ready(new)) => old == new,
            (
                Some(ModuleFetch::Failed { code: a, message: m }),
                ModuleFetch::Failed { code: b, message: n },
            ) => a == b && m == n,
            _ => false,
        };
        if !same {
            state.modules.insert(key.clone(), fetch);
            drop(state);
            self.outdate();
        }
    }

    /// Takes the selector of the binding: what was decided by another one ends no lease any more.
    pub(crate) fn set_binding_selector(&self, selector: Option<&NodeSelector>) {
        let before = std::mem::replace(&mut self.state.lock().binding_selector, selector.cloned());
        if before.as_ref() != selector {
            self.outdate();
        }
    }

    /// What was decided up to now is by other policies, modules or another selector than these.
    pub(crate) fn outdate(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        self.engine_input.notify_one();
    }

    /// A module of a registry that its policy pins is there: nothing the registry says later is about it (PO-705), but for
    /// its labels.
    pub(super) fn has_pinned(&self, key: &ModuleKey) -> bool {
        let pinned = matches!(key, ModuleKey::Oci(OciKey { digest: Some(_), .. }));
        pinned && matches!(self.state.lock().modules.get(key), Some(ModuleFetch::Ready(_)))
    }

    /// Nothing is known of a module yet.
    pub(super) fn lacks(&self, key: &ModuleKey) -> bool {
        !self.state.lock().modules.contains_key(key)
    }

    /// Pinned modules of registries that the engine refused for what they say of themselves, although it may be their
    /// labels that are wrong. Whoever pushed them can mend those: the digest is that of the module alone.
    pub(super) fn mislabelled(&self) -> BTreeSet<ModuleKey> {
        self.state.lock().mislabelled.clone()
    }

    pub(super) fn is_mislabelled(&self, key: &ModuleKey) -> bool {
        self.state.lock().mislabelled.contains(key)
    }

    fn mislabelled_in(&self, state: &State) -> BTreeSet<ModuleKey> {
        // Labels that the policy names by their own digest stay what they are.
        let may_be_mended = |key: &ModuleKey| match key {
            ModuleKey::Oci(oci) => oci.digest.is_some() && oci.image.digest().is_none(),
            ModuleKey::ConfigMap(_) | ModuleKey::File(_) => false,
        };
        let has_labels = |key: &ModuleKey| match state.modules.get(key) {
            Some(ModuleFetch::Ready(module)) => module.claims != ModuleClaims::default(),
            _ => false,
        };
        let mut found = BTreeSet::new();
        for policy in state.policies.values() {
            let status = state.engine.get(policy.name()).filter(|status| speaks_of(status, policy));
            for entry in status.into_iter().flat_map(|status| &status.entries) {
                let refused = entry
                    .failure
                    .as_ref()
                    .is_some_and(|failure| failure.code == LoadCode::DescribeFailed && !failure.passing);
                if refused {
                    let of_entry = self.keys_of(policy).into_iter().filter(|(name, _)| *name == entry.name);
                    found.extend(
                        of_entry.map(|(_, key)| key).filter(|key| may_be_mended(key) && has_labels(key)),
                    );
                }
            }
        }
        found
    }

    /// Forgets modules nobody names.
    pub(super) fn forget_modules(&self) {
        let mut state = self.state.lock();
        let wanted = self.wanted_in(&state);
        state.modules.retain(|key, _| wanted.contains_key(key));
        state.look_ups.retain(|key, _| wanted.contains_key(key));
    }

    /// Adds to a status that what runs could not be looked up. What does not run has a reason of its own.
    fn add_failed_look_ups(&self, state: &State, status: &mut PolicyStatus) {
        let Some(policy) = state.policies.get(&status.name).filter(|policy| speaks_of(status, policy)) else {
            return;
        };
        for (name, key) in self.keys_of(policy) {
            let Some((text, at)) = state.look_ups.get(&key).and_then(|of| of.last.as_ref()) else { continue };
            let runs =
                status.entries.iter_mut().filter(|entry| entry.name == name && entry.failure.is_none());
            for entry in runs {
                if entry.last_error.as_ref().is_none_or(|(_, known)| known < at) {
                    entry.last_error = Some((text.clone(), *at));
                }
            }
        }
    }

    /// Adds look-ups that failed to what the engine counts (PO-1501).
    pub(super) fn count_failed_look_ups(&self, entries: &mut [EntryMetrics]) {
        let state = self.state.lock();
        for policy in state.policies.values() {
            for (name, key) in self.keys_of(policy) {
                let Some(look_ups) = state.look_ups.get(&key) else { continue };
                let label = format!("{}/{name}", policy.name());
                for entry in entries.iter_mut().filter(|entry| entry.entry == label) {
                    for (code, count) in &look_ups.counts {
                        *entry.counters.load_failures.entry(*code).or_default() += count;
                    }
                }
            }
        }
    }

    /// What the engine says; policies that changed are looked at.
    pub(super) fn set_engine_status(
        &self,
        statuses: Vec<PolicyStatus>,
    ) -> Vec<(Option<PolicyStatus>, PolicyStatus)> {
        let mut state = self.state.lock();
        let mut changed = Vec::new();
        let mut fresh = HashMap::new();
        for mut status in statuses {
            self.add_failed_look_ups(&state, &mut status);
            let before = state.engine.remove(&status.name);
            if before.as_ref() != Some(&status) {
                changed.push((before, status.clone()));
            }
            fresh.insert(status.name.clone(), status);
        }
        state.engine = fresh;
        let mislabelled = self.mislabelled_in(&state);
        let news = mislabelled != state.mislabelled;
        state.mislabelled = mislabelled;
        drop(state);
        if news {
            self.wanted_modules.notify_one();
        }
        self.resolved.notify_one();
        self.queue.add_all(changed.iter().map(|(_, status)| Arc::from(status.name.as_str())));
        changed
    }

    /// The time zone of each policy's windows, as the engine uses it (BU section 8).
    pub(crate) fn zones(&self) -> BTreeMap<String, String> {
        let state = self.state.lock();
        state.engine.values().map(|status| (status.name.clone(), status.zone.clone())).collect()
    }

    pub(super) fn engine_status(&self, name: &str) -> Option<PolicyStatus> {
        self.state.lock().engine.get(name).cloned()
    }

    pub(super) fn status_written(&self, name: &str) -> Option<Timestamp> {
        self.state.lock().written.get(name).copied()
    }

    pub(super) fn set_status_written(&self, name: &str, at: Timestamp) {
        self.state.lock().written.insert(name.to_owned(), at);
    }

    /// Looks at a policy's object again.
    pub fn wake(&self, name: &str) {
        self.queue.add(name.into());
    }

    /// Looks at every policy's object again.
    pub fn wake_all(&self) {
        self.queue.add_all(self.names().into_iter().map(Arc::from));
    }

    /// Summary for the binding's condition `PoliciesResolved`.
    pub fn resolution(&self) -> Resolution {
        let state = self.state.lock();
        let named = state.policies.values().filter(|p| p.spec.spec.cluster == self.identity.binding);
        let (ours, taken): (Vec<_>, Vec<_>) = named.partition(|p| !p.taken(&self.identity.computing_uid));
        let listed = |policies: &[&Arc<PolicyView>]| {
            policies.iter().map(|p| p.name().to_owned()).collect::<Vec<_>>().join(", ")
        };
        let not = |reason, message| Resolution { resolved: false, reason, message };
        if !taken.is_empty() {
            return not("PolicyTaken", format!("held by another computing cluster: {}", listed(&taken)));
        }
        if ours.is_empty() {
            return not(
                "NoPolicy",
                "no ResourceLeasingPolicy of the worker cluster names this binding".into(),
            );
        }
        let failing = |test: &dyn Fn(&PolicyStatus) -> bool| -> Vec<&Arc<PolicyView>> {
            ours.iter().copied().filter(|p| state.engine.get(p.name()).is_some_and(test)).collect()
        };
        let invalid: Vec<_> = ours
            .iter()
            .copied()
            .filter(|p| {
                p.spec.unreadable.is_some() || state.engine.get(p.name()).is_some_and(|s| s.valid.is_err())
            })
            .collect();
        if !invalid.is_empty() {
            return not("PolicyInvalid", listed(&invalid));
        }
        let missing = failing(&|status| {
            let not_found = |error: &LoadError| error.code == LoadCode::ModuleNotFound;
            status.not_ready().any(|entry| entry.failure.as_ref().is_some_and(not_found))
        });
        if !missing.is_empty() {
            return not("ModuleNotFound", listed(&missing));
        }
        let failed = failing(&|status| status.not_ready().next().is_some());
        if !failed.is_empty() {
            return not("ModuleFailed", listed(&failed));
        }
        Resolution { resolved: true, reason: "Resolved", message: listed(&ours) }
    }

    fn changed(&self, name: &str) {
        self.outdate();
        self.resolved.notify_one();
        self.queue.add(name.into());
        self.wanted_modules.notify_one();
    }

    /// The policy as an answer or the watch shows it. The answer to the release of the last finalizer shows one that is
    /// gone. What is known already is no news, nor what was before the policy went.
    pub fn saw(&self, policy: PolicyView) {
        if policy.deleting() && policy.metadata.finalizers.as_ref().is_none_or(Vec::is_empty) {
            return;
        }
        let name = policy.name().to_owned();
        let relevant = {
            let mut state = self.state.lock();
            let before = state.policies.get(&name).cloned();
            if !state.left.admit(before.as_ref().map(|before| &before.metadata), &policy.metadata) {
                return;
            }
            if policy.spec.spec.cluster == self.identity.binding {
                state.were_ours.insert(name.clone());
            } else if !policy.has_finalizer() {
                // Whoever holds it from now on is another.
                state.were_ours.remove(&name);
            }
            let relevant = before.as_ref().is_none_or(|before| concerns_engine(before, &policy));
            state.policies.insert(name.clone(), Arc::new(policy));
            relevant
        };
        if relevant {
            self.changed(&name);
        } else {
            self.queue.add(name.into());
        }
    }

    /// A policy is gone at a version.
    fn lost(&self, name: &str, uid: &str, at: u64) {
        {
            let mut state = self.state.lock();
            state.left.add(uid, at);
            state.policies.remove(name);
            state.were_ours.remove(name);
            state.engine.remove(name);
            state.written.remove(name);
        }
        self.changed(name);
    }
}

/// The same bytes under several names are kept once.
fn shared(mut fetch: ModuleFetch, known: &BTreeMap<ModuleKey, ModuleFetch>) -> ModuleFetch {
    if let ModuleFetch::Ready(module) = &mut fetch {
        let same = known.values().find_map(|known| match known {
            ModuleFetch::Ready(known) if known.bytes == module.bytes => Some(&known.bytes),
            _ => None,
        });
        if let Some(bytes) = same {
            module.bytes = Arc::clone(bytes);
        }
    }
    fetch
}

/// Everything but status, labels and finalizers. The finalizer counts when it vanishes: nodes put it back.
fn concerns_engine(before: &PolicyView, after: &PolicyView) -> bool {
    before.metadata.uid != after.metadata.uid
        || before.spec != after.spec
        || before.generation() != after.generation()
        || before.deleting() != after.deleting()
        || before.holder() != after.holder()
        || before.held_for() != after.held_for()
        || before.has_finalizer() && !after.has_finalizer()
}

impl Sink<PolicyView> for PolicyStore {
    fn apply(&self, policy: PolicyView) {
        self.saw(policy);
    }
    fn delete(&self, policy: PolicyView) {
        self.lost(policy.name(), policy.uid(), policy.metadata.version());
    }
    fn reset(&self, all: Vec<PolicyView>) {
        let there: BTreeSet<String> = all.iter().map(|policy| policy.name().to_owned()).collect();
        let known: Vec<Arc<PolicyView>> = self.state.lock().policies.values().cloned().collect();
        for gone in known.iter().filter(|policy| !there.contains(policy.name())) {
            self.lost(gone.name(), gone.uid(), gone.metadata.version());
        }
        for policy in all {
            self.saw(policy);
        }
        // Also without any policy, the engine's list is now known to be complete.
        self.engine_input.notify_one();
    }
}
