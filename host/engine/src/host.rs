//! All policies of one binding: takes their specs, keeps their entries loaded, decides nodes.
//!
//! In: specs and module bytes from the Syncer. Out: decisions, status. Blocking calls; guest code runs on the
//! engine's threads. Invariant: a bad entry stops neither the host nor another entry (PO-704).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use kubeocean_api::{NodeSelector, ResourceLeasingPolicySpec};
use parking_lot::Mutex;

use crate::assemble::Inner;
use crate::compose::NodeDecision;
use crate::config::{LEASE_ROWS, MAX_EVALUATORS};
use crate::decide::{Decided, Explanation, Moment, Open, decide_unit, select};
use crate::engine::Engine;
use crate::entry::evaluate::{Lane, Work};
use crate::entry::running::Running;
use crate::entry::slot::Slot;
use crate::facts::{BindingFacts, NodeFacts, NumberFact, PolicyFacts};
use crate::legacy::from_binding_selector;
use crate::load::error::LoadCode;
use crate::numbers::EngineNumbers;
use crate::pipeline::Pipelines;
use crate::record::{Record, Recorded};
use crate::status::{EntryMetrics, PolicyStatus, counters_of, policy_status};

/// Bytes of a module that is not built in, as far as the caller has got with fetching them.
#[derive(Clone, Debug, Default)]
pub enum ModuleFetch {
    /// Being fetched.
    #[default]
    Pending,
    /// Here they are.
    Ready(FetchedModule),
    /// The fetch failed; the caller goes on trying.
    Failed {
        /// At which step.
        code: LoadCode,
        /// Why.
        message: String,
    },
    /// It cannot be had as the policy stands; nobody tries.
    Refused {
        /// At which step.
        code: LoadCode,
        /// Why.
        message: String,
    },
}

/// Bytes that were fetched, and what whoever fetched them knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedModule {
    /// The bytes.
    pub bytes: Arc<[u8]>,
    /// A signature holds for them that the program's own configuration accepts, so they need no digest (PO-706).
    pub signed: bool,
    /// What the artifact around them claims; loading fails if the module says something else (PO-1202).
    pub claims: ModuleClaims,
}

/// Name and version that somebody claims for a module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModuleClaims {
    /// `None` claims nothing.
    pub name: Option<String>,
    /// `None` claims nothing.
    pub version: Option<String>,
}

impl ModuleClaims {
    /// Holds the claims against what the module says. Only the module counts; an artifact that says something else was
    /// mislabelled, and the error names what differs.
    pub fn check(&self, name: &str, version: &str) -> Result<(), String> {
        for (what, claimed, said) in [("name", &self.name, name), ("version", &self.version, version)] {
            if let Some(claimed) = claimed.as_ref().filter(|claimed| *claimed != said) {
                return Err(format!("the artifact claims the {what} {claimed:?}, the module says {said:?}"));
            }
        }
        Ok(())
    }
}

impl From<Arc<[u8]>> for FetchedModule {
    /// Bytes of which nothing is known.
    fn from(bytes: Arc<[u8]>) -> Self {
        Self { bytes, signed: false, claims: ModuleClaims::default() }
    }
}

/// One policy as its object says.
#[derive(Clone, Debug)]
pub struct PolicySpec {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`: a policy deleted and made again is another one.
    pub uid: String,
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

/// See the module documentation. One per binding.
pub struct PolicyHost {
    pub(crate) inner: Arc<Inner>,
}

impl std::fmt::Debug for PolicyHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicyHost").field("binding", &self.inner.binding.binding).finish_non_exhaustive()
    }
}

impl PolicyHost {
    /// A host without policies. `process_zone` is the zone of policies that name none (PO-525).
    pub fn new(engine: &Engine, binding: BindingFacts, process_zone: TimeZone, changed: OnChange) -> Self {
        Self {
            inner: Arc::new(Inner {
                engine: engine.clone(),
                binding: Arc::new(PolicyFacts { binding, policy: String::new() }),
                zone: process_zone,
                changed,
                pipelines: ArcSwap::default(),
                edit: Mutex::default(),
                slots: Mutex::default(),
                samples: Mutex::default(),
                recorder: Arc::default(),
                digests: Mutex::default(),
                behind: Mutex::default(),
            }),
        }
    }

    /// Sets the binding's selector, the implicit first entry of every pipeline (PO-532). Blocks while it loads.
    pub fn set_binding_selector(&self, selector: Option<&NodeSelector>) {
        let inner = &self.inner;
        let _editing = inner.edit.lock();
        let mut due = Vec::new();
        let mut pipelines = Pipelines::clone(&inner.pipelines.load());
        pipelines.binding_selector = from_binding_selector(selector).map(|spec| {
            inner.entry(&mut inner.slots.lock(), &inner.binding, &inner.zone, spec, None, &mut due)
        });
        inner.commit(pipelines, due);
    }

    /// Replaces all policies. Entries whose module, settings and limits did not change keep running untouched; a
    /// changed one keeps its old version until the new one has loaded (PO-704). Entries of built-in modules are
    /// loaded before this returns, others in the background.
    pub fn set_policies(&self, mut policies: Vec<PolicySpec>) {
        policies.sort_by(|a, b| (a.created_unix, &a.name).cmp(&(b.created_unix, &b.name)));
        let inner = &self.inner;
        let _editing = inner.edit.lock();
        let mut due = Vec::new();
        let mut budget = MAX_EVALUATORS;
        let mut pipelines = Pipelines::clone(&inner.pipelines.load());
        pipelines.policies = policies
            .into_iter()
            .map(|spec| Arc::new(inner.policy(&mut inner.slots.lock(), spec, &mut budget, &mut due)))
            .collect();
        inner.commit(pipelines, due);
    }

    /// Decides nodes, in their order. Blocks until the last one is decided, see [`PolicyHost::decide_each`].
    pub fn decide(&self, now: Timestamp, nodes: &[Arc<NodeFacts>]) -> Vec<NodeDecision> {
        let mut decisions = vec![NodeDecision::default(); nodes.len()];
        self.decide_each(now, nodes, |index, decision| {
            if let Some(place) = decisions.get_mut(index) {
                *place = decision;
            }
        });
        decisions
    }

    /// Decides nodes and tells each decision with its place in `nodes` as soon as it is there, every place once. Blocks;
    /// large lists are split into work units of 256 rows that run in parallel, and policies with a module that may take
    /// long into units of their own, on other threads. Never fails: what has no answer gets what `onError` says.
    pub fn decide_each(
        &self,
        now: Timestamp,
        nodes: &[Arc<NodeFacts>],
        mut tell: impl FnMut(usize, NodeDecision),
    ) {
        let inner = &self.inner;
        inner.remember_samples(nodes);
        let moment = self.moment(now);
        let (sender, results) = channel();
        let all: Vec<(usize, &Arc<NodeFacts>)> = nodes.iter().enumerate().collect();
        for chunk in all.chunks(LEASE_ROWS) {
            let open = chunk.iter().map(|(index, node)| Open::new(*index, Arc::clone(node))).collect();
            let (inner, moment, sender) = (Arc::clone(inner), moment.clone(), sender.clone());
            self.inner.engine.inner.units.submit(move || {
                let mut work = Work::default();
                let (open, unselected) = select(&moment, open, None, &mut work);
                let decided = decide_unit(&moment, 0, open, None, &mut work);
                // The receiver waits below for as long as a sender lives.
                let _: Result<(), _> = sender.send((unselected.done, false));
                pass_on(&inner, &moment, &sender, decided, work);
            });
        }
        drop(sender);
        let mut missing: Vec<bool> = vec![true; nodes.len()];
        let mut any_changed = false;
        for (decisions, changed) in results {
            any_changed |= changed;
            for (index, decision) in decisions {
                if let Some(missing) = missing.get_mut(index) {
                    *missing = false;
                }
                tell(index, decision);
            }
        }
        // A unit that panicked has told nothing.
        for ((index, node), _) in nodes.iter().enumerate().zip(missing).filter(|(_, missing)| *missing) {
            tell(index, crate::compose::undecided(node));
        }
        if any_changed {
            (inner.changed)();
        }
    }

    fn moment(&self, now: Timestamp) -> Moment {
        Moment {
            pipelines: self.inner.pipelines.load_full(),
            binding: Arc::clone(&self.inner.binding),
            process_zone: self.inner.zone.clone(),
            now,
        }
    }

    /// Decides one node and tells every step.
    pub fn explain(&self, now: Timestamp, node: &Arc<NodeFacts>) -> Explanation {
        let (moment, node) = (self.moment(now), Arc::clone(node));
        let fallback = crate::compose::undecided(&node);
        let job: Box<dyn FnOnce() -> Explanation + Send> = Box::new(move || {
            let mut policies = Vec::new();
            let mut work = Work { lane: Lane::Apart, ..Work::default() };
            let (open, unselected) =
                select(&moment, vec![Open::new(0, node)], Some(&mut policies), &mut work);
            let decided = decide_unit(&moment, 0, open, Some(&mut policies), &mut work);
            // One node has one decision, of the one or the other.
            let decision =
                unselected.done.into_iter().chain(decided.done).map(|(_, decision)| decision).next();
            Explanation { decision: decision.unwrap_or_default(), policies }
        });
        let result = self.inner.engine.inner.apart.run_all(vec![job]).pop().flatten();
        result.unwrap_or(Explanation { decision: fallback, policies: Vec::new() })
    }

    /// Real nodes for the trial call of entries that load before the first decision (PO-703); a few are kept.
    pub fn remember_nodes(&self, nodes: &[Arc<NodeFacts>]) {
        self.inner.remember_samples(nodes);
    }

    /// A worker node is gone: its last answers are dropped.
    pub fn forget_node(&self, node_name: &str) {
        self.forget(|known| known != node_name);
    }

    /// Drops the last answers about all worker nodes but these.
    pub fn retain_nodes(&self, node_names: &BTreeSet<&str>) {
        self.forget(|known| node_names.contains(known));
    }

    fn forget(&self, keep: impl Fn(&str) -> bool) {
        let slots: Vec<Arc<Slot>> = self.inner.slots.lock().values().cloned().collect();
        for slot in slots {
            slot.known.lock().retain(&keep);
            slot.audit.lock().retain(|node, _| keep(node));
            slot.place_audit.lock().retain(|node, _| keep(node));
        }
        self.inner.samples.lock().retain(|node| keep(&node.node_name));
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
        self.some_running(|running| {
            let mut numbers = running.needs.numbers.iter().chain(&running.place_needs.node.numbers);
            numbers.any(|fact| matches!(fact, NumberFact::Usage(_)))
        })
    }

    /// A loaded evaluator of leases reads what leased pods ask for, so their coming and going may change its answer.
    pub fn reads_leased(&self) -> bool {
        self.some_running(|running| {
            running.needs.numbers.iter().any(|fact| matches!(fact, NumberFact::Leased(_)))
        })
    }

    fn some_running(&self, fits: impl Fn(&Running) -> bool) -> bool {
        let slots = self.inner.slots.lock();
        slots.values().any(|slot| slot.running().is_some_and(|running| fits(&running)))
    }

    /// Status of all policies, oldest first. May call time-windows modules; blocks.
    pub fn status(&self, now: Timestamp) -> Vec<PolicyStatus> {
        let pipelines = self.inner.pipelines.load_full();
        let jobs = pipelines
            .policies
            .iter()
            .map(|policy| {
                let policy = Arc::clone(policy);
                let job: Box<dyn FnOnce() -> PolicyStatus + Send> =
                    Box::new(move || policy_status(&policy, now));
                job
            })
            .collect();
        self.inner.engine.inner.units.run_all(jobs).into_iter().flatten().collect()
    }

    /// Numbers of the engine that decides, the same for all its hosts.
    pub fn engine_numbers(&self) -> EngineNumbers {
        self.inner.engine.numbers()
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

    /// The last 1,000 guest answers about leases and as many about places, oldest first; with a name only those about
    /// this worker node or vnode (PO-1007).
    pub fn decisions(&self, node: Option<&str>) -> Vec<Recorded> {
        self.inner.recorder.decisions(node)
    }

    /// The last 1,000 guest answers about leases, oldest first.
    pub fn records(&self) -> Vec<Record> {
        self.inner.recorder.snapshot()
    }
}

/// Decisions by place, and whether something changed that other nodes must hear about.
type Told = (Vec<(usize, NodeDecision)>, bool);

/// Tells what a unit decided, and lets the nodes it did not decide go on apart.
fn pass_on(inner: &Arc<Inner>, moment: &Moment, sender: &Sender<Told>, decided: Decided, work: Work) {
    // The receiver waits for as long as a sender lives.
    let _ = sender.send((decided.done, work.changed));
    for (rank, open) in decided.apart {
        let (moment, sender) = (moment.clone(), sender.clone());
        inner.engine.inner.apart.submit(move || {
            let mut work = Work { lane: Lane::Apart, ..Work::default() };
            let decided = decide_unit(&moment, rank, open, None, &mut work);
            // In this lane nothing is put off.
            let _ = sender.send((decided.done, work.changed));
        });
    }
}
