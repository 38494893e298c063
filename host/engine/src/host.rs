//! All policies of one binding: takes their specs, keeps their entries loaded, decides nodes.
//!
//! In: specs and module bytes from the Syncer. Out: decisions, status. Blocking calls; guest code runs on the
//! engine's threads. Invariant: a bad entry stops neither the host nor another entry (PO-704).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use kubeocean_api::{NodeSelector, ResourceLeasingPolicySpec, validate};
use parking_lot::Mutex;

use crate::civil::civil_now;
use crate::compose::NodeDecision;
use crate::config::{EngineError, LEASE_ROWS, MAX_ENTRIES, MAX_EVALUATORS};
use crate::decide::{Explanation, decide_chunk};
use crate::engine::Engine;
use crate::entry::evaluate::{Ask, Changed, Instant, evaluate};
use crate::entry::slot::{Slot, Wanted, Wish};
use crate::facts::{BindingFacts, NodeFacts, NumberFact, PolicyFacts};
use crate::legacy::{
    self, Decision, Enforcement, EntrySpec, LEGACY_NODE_SELECTOR, ModuleSource, from_binding_selector, from_entry,
};
use crate::load::builtin::builtin;
use crate::load::cache::Digest;
use crate::load::error::{LoadCode, LoadError};
use crate::load::prepare::{Bytes, LoadInput};
use crate::load::trial::SAMPLE_NODES;
use crate::module::{ModuleLimits, call_limits};
use crate::pipeline::{Entry, Pipelines, Policy, Role};
use crate::record::{Record, Recorder};
use crate::status::{AUDIT_SAMPLES, EntryMetrics, EntryStatus, PolicyStatus};
use crate::wasm::unit::Caller;

/// Bytes of a module that is not built in, as far as the caller has got with fetching them.
#[derive(Clone, Debug, Default)]
pub enum ModuleFetch {
    /// Being fetched.
    #[default]
    Pending,
    /// Here they are.
    Ready(Arc<[u8]>),
    /// The fetch failed; the caller may go on trying.
    Failed {
        /// At which step.
        code: LoadCode,
        /// Why.
        message: String,
    },
}

/// One policy as its object says.
#[derive(Clone, Debug)]
pub struct PolicySpec {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.creationTimestamp` in unix seconds; the oldest policy that applies governs a node.
    pub created_unix: i64,
    /// `metadata.generation`.
    pub generation: i64,
    /// `spec`.
    pub spec: ResourceLeasingPolicySpec,
    /// Bytes by entry name; built-in modules need none. A missing one is pending.
    pub modules: BTreeMap<String, ModuleFetch>,
}

/// Called when a background change makes earlier decisions outdated: a load ended, an entry was quarantined or came
/// back. Runs on an engine thread and must not block.
pub type OnChange = Box<dyn Fn() + Send + Sync>;

struct Inner {
    engine: Engine,
    binding: Arc<PolicyFacts>,
    zone: TimeZone,
    changed: OnChange,
    pipelines: ArcSwap<Pipelines>,
    /// Slots by policy and entry; taken by whoever edits the pipelines.
    slots: Mutex<BTreeMap<(String, String), Arc<Slot>>>,
    generations: Mutex<BTreeMap<String, i64>>,
    samples: Mutex<VecDeque<Arc<NodeFacts>>>,
    recorder: Arc<Recorder>,
}

/// See the module documentation. One per binding.
pub struct PolicyHost {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for PolicyHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicyHost").field("binding", &self.inner.binding.binding).finish_non_exhaustive()
    }
}

/// A load that is due.
struct Due {
    slot: Arc<Slot>,
    generation: u64,
    input: LoadInput,
}

impl PolicyHost {
    /// A host without policies. `process_zone` is the zone of policies that name none (PO-525).
    pub fn new(
        engine: &Engine,
        binding: BindingFacts,
        process_zone: TimeZone,
        changed: OnChange,
    ) -> Result<Self, EngineError> {
        Ok(Self {
            inner: Arc::new(Inner {
                engine: engine.clone(),
                binding: Arc::new(PolicyFacts { binding, policy: String::new() }),
                zone: process_zone,
                changed,
                pipelines: ArcSwap::default(),
                slots: Mutex::default(),
                generations: Mutex::default(),
                samples: Mutex::default(),
                recorder: Arc::default(),
            }),
        })
    }

    /// Sets the binding's selector, the implicit first entry of every pipeline (PO-532). Blocks while it loads.
    pub fn set_binding_selector(&self, selector: Option<&NodeSelector>) {
        let inner = &self.inner;
        let mut due = Vec::new();
        let mut slots = inner.slots.lock();
        let entry = from_binding_selector(selector)
            .map(|spec| inner.entry(&mut slots, &inner.binding, &inner.zone, spec, Some(&ModuleFetch::Pending), &mut due));
        let mut pipelines = Pipelines::clone(&inner.pipelines.load());
        pipelines.binding_selector = entry;
        inner.swap(&mut slots, pipelines);
        drop(slots);
        inner.start_loads(due);
    }

    /// Replaces all policies. Entries whose module, settings and limits did not change keep running untouched; a
    /// changed one keeps its old version until the new one has loaded (PO-704). Entries of built-in modules are
    /// loaded before this returns, others in the background.
    pub fn set_policies(&self, mut policies: Vec<PolicySpec>) {
        policies.sort_by(|a, b| (a.created_unix, &a.name).cmp(&(b.created_unix, &b.name)));
        let inner = &self.inner;
        let mut due = Vec::new();
        let mut slots = inner.slots.lock();
        let mut pipelines = Pipelines::clone(&inner.pipelines.load());
        let mut budget = MAX_EVALUATORS;
        *inner.generations.lock() = policies.iter().map(|p| (p.name.clone(), p.generation)).collect();
        pipelines.policies =
            policies.into_iter().map(|spec| Arc::new(inner.policy(&mut slots, spec, &mut budget, &mut due))).collect();
        inner.swap(&mut slots, pipelines);
        drop(slots);
        inner.start_loads(due);
    }

    /// Decides nodes, in their order. Blocks; large lists are split into work units of 256 rows that run in
    /// parallel. Never fails: what has no answer gets what `onError` says.
    pub fn decide(&self, now: Timestamp, nodes: &[Arc<NodeFacts>]) -> Vec<NodeDecision> {
        let inner = &self.inner;
        inner.remember_samples(nodes);
        let pipelines = inner.pipelines.load_full();
        let jobs = nodes
            .chunks(LEASE_ROWS)
            .map(|chunk| {
                let (inner, pipelines, chunk) = (Arc::clone(inner), Arc::clone(&pipelines), chunk.to_vec());
                let job: Box<dyn FnOnce() -> (Vec<NodeDecision>, Changed) + Send> = Box::new(move || {
                    let mut changed = Changed::default();
                    let decisions =
                        decide_chunk(&pipelines, &inner.binding, &inner.zone, now, &chunk, None, &mut changed);
                    (decisions, changed)
                });
                job
            })
            .collect();
        let mut any_changed = false;
        let mut decisions = Vec::with_capacity(nodes.len());
        for (result, chunk) in inner.engine.inner.units.run_all(jobs).into_iter().zip(nodes.chunks(LEASE_ROWS)) {
            match result {
                Some((chunk_decisions, changed)) => {
                    any_changed |= changed.0;
                    decisions.extend(chunk_decisions);
                }
                None => decisions.extend(chunk.iter().map(|node| crate::compose::undecided(node))),
            }
        }
        if any_changed {
            (inner.changed)();
        }
        decisions
    }

    /// Decides one node and tells every step.
    pub fn explain(&self, now: Timestamp, node: &Arc<NodeFacts>) -> Explanation {
        let (inner, pipelines, node) = (Arc::clone(&self.inner), self.inner.pipelines.load_full(), Arc::clone(node));
        let fallback = crate::compose::undecided(&node);
        let job: Box<dyn FnOnce() -> Explanation + Send> = Box::new(move || {
            let mut policies = Vec::new();
            let mut changed = Changed::default();
            let decision = decide_chunk(
                &pipelines,
                &inner.binding,
                &inner.zone,
                now,
                std::slice::from_ref(&node),
                Some(&mut policies),
                &mut changed,
            )
            .pop()
            .unwrap_or_default();
            Explanation { decision, policies }
        });
        let result = self.inner.engine.inner.units.run_all(vec![job]).pop().flatten();
        result.unwrap_or(Explanation { decision: fallback, policies: Vec::new() })
    }

    /// A worker node is gone: its last answers are dropped.
    pub fn forget_node(&self, node_name: &str) {
        for slot in self.inner.slots.lock().values() {
            slot.known.lock().forget(node_name);
            slot.audit.lock().remove(node_name);
        }
    }

    /// Every Enforce entry runs or has failed; before that nothing is written after a start (PO-704). The limit of
    /// 30 s is the caller's.
    pub fn ready(&self) -> bool {
        let pipelines = self.inner.pipelines.load();
        pipelines.policies.iter().flat_map(|policy| &policy.enforce).all(|entry| entry.slot.settled())
            && pipelines.binding_selector.as_ref().is_none_or(|entry| entry.slot.settled())
    }

    /// A loaded evaluator reads measured usage, so somebody has to measure it (PO-405).
    pub fn reads_usage(&self) -> bool {
        let reads = |slot: &Arc<Slot>| {
            slot.running().is_some_and(|r| r.needs.numbers.iter().any(|fact| matches!(fact, NumberFact::Usage(_))))
        };
        self.inner.slots.lock().values().any(reads)
    }

    /// Status of all policies, oldest first. May call time-windows modules; blocks.
    pub fn status(&self, now: Timestamp) -> Vec<PolicyStatus> {
        let pipelines = self.inner.pipelines.load_full();
        let jobs = pipelines
            .policies
            .iter()
            .map(|policy| {
                let (inner, policy) = (Arc::clone(&self.inner), Arc::clone(policy));
                let job: Box<dyn FnOnce() -> PolicyStatus + Send> = Box::new(move || inner.policy_status(&policy, now));
                job
            })
            .collect();
        self.inner.engine.inner.units.run_all(jobs).into_iter().flatten().collect()
    }

    /// Numbers of all entries, legacy ones included.
    pub fn metrics(&self) -> Vec<EntryMetrics> {
        let slots: Vec<Arc<Slot>> = self.inner.slots.lock().values().cloned().collect();
        slots
            .iter()
            .map(|slot| EntryMetrics {
                entry: slot.label.to_string(),
                state: slot.state(),
                counters: counters_of(slot),
            })
            .collect()
    }

    /// The last 1,000 guest answers, oldest first (PO-1007).
    pub fn records(&self) -> Vec<Record> {
        self.inner.recorder.snapshot()
    }
}

fn counters_of(slot: &Slot) -> crate::entry::counters::EntryCounters {
    let mut counters = slot.counters.snapshot();
    counters.log_dropped = slot.running().map_or(0, |running| running.dropped_lines());
    counters
}

impl Inner {
    fn policy(
        &self,
        slots: &mut BTreeMap<(String, String), Arc<Slot>>,
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
        let legacy = legacy.into_iter().filter(|entry| invalid.is_none() || entry.name == LEGACY_NODE_SELECTOR);
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
        let audit = listed.iter().filter(|entry| entry.spec.enforcement == Enforcement::Audit).cloned().collect();
        let pinned = listed.iter().all(|entry| {
            !matches!(&entry.spec.module, ModuleSource::Fetched { digest: None, must_pin: true })
        });
        Policy {
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
    fn entry(
        &self,
        slots: &mut BTreeMap<(String, String), Arc<Slot>>,
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
            digest: bytes.as_ref().map(|bytes| Digest::of(bytes.as_ref())),
            named_digest: named_digest.clone(),
            settings: spec.settings.clone(),
            decisions: spec.decisions.clone(),
            limits,
            fetch_error,
        };
        if let (Wish::Load(generation), Some(bytes)) = (slot.wish(wanted, crate::clock::now()), bytes) {
            let must_pin = matches!(spec.module, ModuleSource::Fetched { must_pin: true, .. });
            let input = LoadInput {
                bytes,
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

    /// Makes the new picture visible and drops the slots nobody uses any more.
    fn swap(&self, slots: &mut BTreeMap<(String, String), Arc<Slot>>, pipelines: Pipelines) {
        let used: std::collections::BTreeSet<(String, String)> = pipelines
            .binding_selector
            .iter()
            .chain(pipelines.policies.iter().flat_map(|policy| policy.enforce.iter().chain(&policy.listed)))
            .map(|entry| (entry.slot.policy.to_string(), entry.slot.entry.to_string()))
            .collect();
        slots.retain(|key, _| used.contains(key));
        self.pipelines.store(Arc::new(pipelines));
    }

    /// Built-in modules at once, because they cost microseconds and old policies know nothing else (PO-704); others
    /// in the background.
    fn start_loads(self: &Arc<Self>, due: Vec<Due>) {
        let (now, later): (Vec<Due>, Vec<Due>) =
            due.into_iter().partition(|due| matches!(due.input.bytes, Bytes::Builtin(_)));
        for due in later {
            let host = Arc::downgrade(self);
            self.engine.inner.loads.submit(move || {
                let Some(host) = host.upgrade() else { return };
                if host.load(&due) {
                    (host.changed)();
                }
            });
        }
        let jobs = now
            .into_iter()
            .map(|due| {
                let host = Arc::clone(self);
                let job: Box<dyn FnOnce() -> bool + Send> = Box::new(move || host.load(&due));
                job
            })
            .collect();
        self.engine.inner.units.run_all(jobs);
    }

    /// One load. True when its result was taken.
    fn load(&self, due: &Due) -> bool {
        let started = crate::clock::stopwatch();
        let loader = self.engine.loader();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| loader.load(&due.input)))
            .unwrap_or_else(|_| Err(LoadError::new(LoadCode::CompileFailed, "loading failed in the host")));
        let entry = &*due.slot.label;
        match &result {
            Ok(running) => tracing::info!(entry, digest = %running.digest, took = ?started.elapsed(), "policy entry loaded"),
            Err(error) => tracing::warn!(entry, %error, "policy entry did not load"),
        }
        due.slot.loaded(due.generation, result, crate::clock::now())
    }

    fn remember_samples(&self, nodes: &[Arc<NodeFacts>]) {
        let mut samples = self.samples.lock();
        for node in nodes.iter().take(SAMPLE_NODES) {
            samples.retain(|known| known.node_name != node.node_name);
            if samples.len() >= SAMPLE_NODES {
                samples.pop_front();
            }
            samples.push_back(Arc::clone(node));
        }
    }

    fn policy_status(&self, policy: &Policy, now: Timestamp) -> PolicyStatus {
        let at = Instant { at: now, civil: civil_now(now, &policy.zone) };
        let node = NodeFacts::default();
        let (mut active, mut next_change) = (policy.invalid.is_none(), None);
        for entry in policy.enforce.iter().filter(|e| e.role == Role::TimeWindows && policy.invalid.is_none()) {
            let asks = [Ask { node: &node, amounts: &[] }];
            let running = entry.slot.running();
            let outcome =
                evaluate(&entry.slot, running.as_ref(), &policy.facts, &at, &asks, &mut Changed::default()).pop();
            match outcome {
                Some(Ok(answer)) => {
                    active &= answer.verdict == crate::answer::EntryVerdict::Offer;
                    next_change = [next_change, answer.valid_until].into_iter().flatten().min();
                }
                _ => active = false,
            }
        }
        let slots = || policy.enforce.iter().map(|entry| &entry.slot);
        PolicyStatus {
            name: policy.name.clone(),
            generation: self.generations.lock().get(&policy.name).copied().unwrap_or_default(),
            valid: policy.invalid.clone().map_or(Ok(()), Err),
            zero_limits: policy.zero_limits.clone(),
            active,
            next_change,
            zone: policy.zone.iana_name().unwrap_or("local").to_owned(),
            entries: policy.listed.iter().map(entry_status).collect(),
            pinned: policy.pinned,
            stale: slots().any(|slot| slot.known.lock().is_stale(at.unix())),
        }
    }
}

fn entry_status(entry: &Entry) -> EntryStatus {
    let slot = &entry.slot;
    let running = slot.running();
    let digest = running.as_ref().map(|running| running.digest.to_string());
    let described = |part: fn(&crate::wasm::unit::Description) -> &String| {
        running.as_ref().map(|running| part(&running.description).clone())
    };
    let audit = (entry.spec.enforcement == Enforcement::Audit).then(|| {
        let differences = slot.audit.lock();
        (differences.len(), differences.values().take(AUDIT_SAMPLES).cloned().collect())
    });
    let decisions = running.as_ref().map(|running| {
        [(running.lease, Decision::Lease), (running.place, Decision::Place)]
            .into_iter()
            .filter(|(has, _)| *has)
            .map(|(_, decision)| decision)
            .collect()
    });
    EntryStatus {
        name: entry.spec.name.clone(),
        state: slot.state(),
        module: described(|d| &d.name),
        version: described(|d| &d.version),
        desired_digest: slot.wanted_digest().filter(|wanted| digest.as_ref() != Some(wanted)),
        digest,
        decisions: decisions.unwrap_or_default(),
        enforcement: entry.spec.enforcement,
        last_error: slot.last_error(),
        audit,
        counters: counters_of(slot),
    }
}

fn too_many() -> ModuleFetch {
    let message = format!("at most {MAX_ENTRIES} entries in a policy and {MAX_EVALUATORS} in all policies");
    ModuleFetch::Failed { code: LoadCode::TooManyPolicies, message }
}

/// Bytes, the digest the policy names, and why there are no bytes.
fn source(spec: &EntrySpec, fetch: Option<&ModuleFetch>) -> (Option<Bytes>, Option<String>, Option<LoadError>) {
    let failed = |code, message: &str| (None, None, Some(LoadError::new(code, message)));
    if let Some(ModuleFetch::Failed { code: LoadCode::TooManyPolicies, message }) = fetch {
        return failed(LoadCode::TooManyPolicies, message);
    }
    match &spec.module {
        ModuleSource::Builtin(name) => match builtin(name) {
            Some(bytes) => (Some(Bytes::Builtin(bytes)), None, None),
            None => failed(LoadCode::ModuleNotFound, &format!("there is no built-in module {name:?}")),
        },
        ModuleSource::Fetched { digest, .. } => match fetch {
            None | Some(ModuleFetch::Pending) => (None, digest.clone(), None),
            Some(ModuleFetch::Ready(bytes)) => (Some(Bytes::Fetched(Arc::clone(bytes))), digest.clone(), None),
            Some(ModuleFetch::Failed { code, message }) => {
                (None, digest.clone(), Some(LoadError::new(*code, message)))
            }
        },
        ModuleSource::Missing => {
            failed(LoadCode::ModuleNotFound, "exactly one of builtin, configMap, oci and file is required")
        }
    }
}
