//! Keeps the entries of a host as its policies want them: slots, wishes, loads (PO-703, PO-704).
//!
//! In: policy specs and module bytes. Out: [`Pipelines`] and loaded slots. Caller: `host`.
//! Invariant: an entry that is not asked to change is not touched.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::tz::TimeZone;
use kubeocean_api::validate;
use parking_lot::Mutex;

use crate::civil::civil_now;
use crate::config::{MAX_ENTRIES, MAX_EVALUATORS};
use crate::engine::Engine;
use crate::entry::slot::{Slot, Wanted, Wish};
use crate::facts::{NodeFacts, PolicyFacts};
use crate::host::{ModuleFetch, OnChange, PolicySpec};
use crate::legacy::{self, Enforcement, EntrySpec, LEGACY_NODE_SELECTOR, ModuleSource, from_entry};
use crate::load::builtin::builtin_with_digest;
use crate::load::cache::Digest;
use crate::load::error::{LoadCode, LoadError};
use crate::load::prepare::{Bytes, LoadInput};
use crate::load::trial::SAMPLE_NODES;
use crate::module::{ModuleLimits, call_limits};
use crate::pipeline::{Entry, Pipelines, Policy, Role};
use crate::record::Recorder;
use crate::wasm::unit::Caller;

/// Slots by policy and entry.
pub(crate) type Slots = BTreeMap<(String, String), Arc<Slot>>;

/// What a host is; shared with its background loads.
pub(crate) struct Inner {
    pub(crate) engine: Engine,
    pub(crate) binding: Arc<PolicyFacts>,
    pub(crate) zone: TimeZone,
    pub(crate) changed: OnChange,
    pub(crate) pipelines: ArcSwap<Pipelines>,
    /// Held while the pipelines are edited.
    pub(crate) edit: Mutex<()>,
    pub(crate) slots: Mutex<Slots>,
    pub(crate) samples: Mutex<VecDeque<Arc<NodeFacts>>>,
    pub(crate) recorder: Arc<Recorder>,
}

/// A load that is due.
pub(crate) struct Due {
    pub(crate) slot: Arc<Slot>,
    pub(crate) generation: u64,
    pub(crate) input: LoadInput,
}

impl Inner {
    pub(crate) fn policy(
        &self,
        slots: &mut Slots,
        spec: PolicySpec,
        budget: &mut usize,
        due: &mut Vec<Due>,
    ) -> Policy {
        let invalid = validate::policy(&spec.spec).err();
        let zone = spec.spec.time_zone.as_deref().and_then(|name| TimeZone::get(name).ok());
        let zone = zone.unwrap_or_else(|| self.zone.clone());
        let facts =
            Arc::new(PolicyFacts { binding: self.binding.binding.clone(), policy: spec.name.clone() });
        let legacy = legacy::from_legacy(&spec.spec);
        let legacy =
            legacy.into_iter().filter(|entry| invalid.is_none() || entry.name == LEGACY_NODE_SELECTOR);
        let mut enforce: Vec<Entry> =
            legacy.map(|entry| self.entry(slots, &facts, &zone, entry, None, due)).collect();
        let mut listed = Vec::new();
        for (index, entry) in spec.spec.policies.iter().enumerate() {
            let fits = index < MAX_ENTRIES && *budget > 0;
            *budget = budget.saturating_sub(1);
            let entry_spec = from_entry(entry);
            let fetch = spec.modules.get(&entry.name).cloned().unwrap_or_default();
            let fetch = if fits { fetch } else { too_many() };
            listed.push(self.entry(slots, &facts, &zone, entry_spec, Some(&fetch), due));
        }
        enforce.extend(listed.iter().filter(|entry| entry.spec.enforcement == Enforcement::Enforce).cloned());
        let audit =
            listed.iter().filter(|entry| entry.spec.enforcement == Enforcement::Audit).cloned().collect();
        let pinned = listed.iter().all(|entry| {
            !matches!(&entry.spec.module, ModuleSource::Fetched { digest: None, must_pin: true })
        });
        Policy {
            generation: spec.generation,
            zero_limits: validate::zero_limits(&spec.spec),
            name: spec.name,
            facts,
            zone,
            invalid,
            pinned,
            enforce,
            audit,
            listed,
        }
    }

    /// Finds or makes the slot of an entry and notes what is wanted of it. `fetch` is `None` for legacy entries.
    pub(crate) fn entry(
        &self,
        slots: &mut Slots,
        facts: &Arc<PolicyFacts>,
        zone: &TimeZone,
        spec: EntrySpec,
        fetch: Option<&ModuleFetch>,
        due: &mut Vec<Due>,
    ) -> Entry {
        let key = (facts.policy.clone(), spec.name.clone());
        let slot = slots
            .entry(key)
            .or_insert_with(|| Arc::new(Slot::new(&facts.policy, &spec.name, Arc::clone(&self.recorder))));
        let slot = Arc::clone(slot);
        let role = if spec.is_builtin("time-windows") {
            Role::TimeWindows
        } else if spec.is_builtin("node-labels") {
            Role::Selector
        } else {
            Role::Ordinary
        };
        let (bytes, named_digest, fetch_error) = source(&spec, fetch);
        let limits = call_limits(ModuleLimits { timeout_ms: spec.timeout_ms, memory_mib: spec.memory_mib });
        let wanted = Wanted {
            digest: bytes.as_ref().map(|(_, digest)| *digest),
            named_digest: named_digest.clone(),
            settings: spec.settings.clone(),
            decisions: spec.decisions.clone(),
            limits,
            fetch_error,
        };
        if let (Wish::Load(generation), Some((bytes, digest))) =
            (slot.wish(wanted, crate::clock::now()), bytes)
        {
            let must_pin = matches!(spec.module, ModuleSource::Fetched { must_pin: true, .. });
            let input = LoadInput {
                bytes,
                digest,
                wanted_digest: named_digest,
                must_pin: must_pin && !self.engine.config().allow_unpinned,
                settings: spec.settings.clone(),
                decisions: spec.decisions.clone(),
                caller: Caller { entry: Arc::clone(&slot.label), limits },
                facts: PolicyFacts::clone(facts),
                samples: self.samples.lock().iter().cloned().collect(),
                now: civil_now(crate::clock::now(), zone),
            };
            due.push(Due { slot: Arc::clone(&slot), generation, input });
        }
        Entry { spec, role, slot }
    }

    /// Loads what is due and makes the new picture visible. Built-in modules are loaded before that, because they
    /// cost microseconds and old policies know nothing else (PO-704); others in the background.
    pub(crate) fn commit(self: &Arc<Self>, pipelines: Pipelines, due: Vec<Due>) {
        let (now, later): (Vec<Due>, Vec<Due>) =
            due.into_iter().partition(|due| matches!(due.input.bytes, Bytes::Builtin(_)));
        let jobs = now
            .into_iter()
            .map(|due| {
                let host = Arc::clone(self);
                let job: Box<dyn FnOnce() -> bool + Send> = Box::new(move || host.load(&due));
                job
            })
            .collect();
        self.engine.inner.units.run_all(jobs);
        self.drop_unused_slots(&pipelines);
        self.pipelines.store(Arc::new(pipelines));
        for due in later {
            let host = Arc::downgrade(self);
            self.engine.inner.loads.submit(move || {
                let Some(host) = host.upgrade() else { return };
                if host.load(&due) {
                    (host.changed)();
                }
            });
        }
    }

    fn drop_unused_slots(&self, pipelines: &Pipelines) {
        let used: std::collections::BTreeSet<(String, String)> = pipelines
            .binding_selector
            .iter()
            .chain(pipelines.policies.iter().flat_map(|policy| policy.enforce.iter().chain(&policy.listed)))
            .map(|entry| (entry.slot.policy.to_string(), entry.slot.entry.to_string()))
            .collect();
        self.slots.lock().retain(|key, _| used.contains(key));
    }

    /// One load. True when its result was taken.
    fn load(&self, due: &Due) -> bool {
        let started = crate::clock::stopwatch();
        let loader = self.engine.loader();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| loader.load(&due.input)))
            .unwrap_or_else(|_| Err(LoadError::new(LoadCode::CompileFailed, "loading failed in the host")));
        let entry = &*due.slot.label;
        match &result {
            Ok(running) => {
                tracing::info!(entry, digest = %running.digest, took = ?started.elapsed(), "policy entry loaded");
            }
            Err(error) => tracing::warn!(entry, %error, "policy entry did not load"),
        }
        due.slot.loaded(due.generation, result, crate::clock::now())
    }

    /// Real nodes for trial calls.
    pub(crate) fn remember_samples(&self, nodes: &[Arc<NodeFacts>]) {
        let mut samples = self.samples.lock();
        for node in nodes.iter().take(SAMPLE_NODES) {
            samples.retain(|known| known.node_name != node.node_name);
            if samples.len() >= SAMPLE_NODES {
                samples.pop_front();
            }
            samples.push_back(Arc::clone(node));
        }
    }
}

fn too_many() -> ModuleFetch {
    let message = format!("at most {MAX_ENTRIES} entries in a policy and {MAX_EVALUATORS} in all policies");
    ModuleFetch::Failed { code: LoadCode::TooManyPolicies, message }
}

/// Bytes, the digest the policy names, and why there are no bytes.
fn source(
    spec: &EntrySpec,
    fetch: Option<&ModuleFetch>,
) -> (Option<(Bytes, Digest)>, Option<String>, Option<LoadError>) {
    let failed = |code, message: &str| (None, None, Some(LoadError::new(code, message)));
    if let Some(ModuleFetch::Failed { code: LoadCode::TooManyPolicies, message }) = fetch {
        return failed(LoadCode::TooManyPolicies, message);
    }
    match &spec.module {
        ModuleSource::Builtin(name) => match builtin_with_digest(name) {
            Some((bytes, digest)) => (Some((Bytes::Builtin(bytes), digest)), None, None),
            None => failed(LoadCode::ModuleNotFound, &format!("there is no built-in module {name:?}")),
        },
        ModuleSource::Fetched { digest, .. } => match fetch {
            None | Some(ModuleFetch::Pending) => (None, digest.clone(), None),
            Some(ModuleFetch::Ready(bytes)) => {
                (Some((Bytes::Fetched(Arc::clone(bytes)), Digest::of(bytes))), digest.clone(), None)
            }
            Some(ModuleFetch::Failed { code, message }) => {
                (None, digest.clone(), Some(LoadError::new(*code, message)))
            }
        },
        ModuleSource::Missing => {
            failed(LoadCode::ModuleNotFound, "exactly one of builtin, configMap, oci and file is required")
        }
    }
}
