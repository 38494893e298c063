//! All policies of one binding: takes their specs, keeps their entries loaded, decides nodes.
//!
//! In: specs and module bytes from the Syncer. Out: decisions, status. Blocking calls; guest code runs on the
//! engine's threads. Invariant: a bad entry stops neither the host nor another entry (PO-704).

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use kubeocean_api::{NodeSelector, ResourceLeasingPolicySpec};
use parking_lot::Mutex;

use crate::assemble::Inner;
use crate::compose::NodeDecision;
use crate::config::{EngineError, LEASE_ROWS, MAX_EVALUATORS};
use crate::decide::{Explanation, decide_chunk};
use crate::engine::Engine;
use crate::entry::evaluate::Changed;
use crate::entry::slot::Slot;
use crate::facts::{BindingFacts, NodeFacts, NumberFact, PolicyFacts};
use crate::legacy::from_binding_selector;
use crate::load::error::LoadCode;
use crate::pipeline::Pipelines;
use crate::record::Record;
use crate::status::{EntryMetrics, PolicyStatus, counters_of, policy_status};

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

/// See the module documentation. One per binding.
pub struct PolicyHost {
    inner: Arc<Inner>,
}

impl std::fmt::Debug for PolicyHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicyHost").field("binding", &self.inner.binding.binding).finish_non_exhaustive()
    }
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
                edit: Mutex::default(),
                slots: Mutex::default(),
                samples: Mutex::default(),
                recorder: Arc::default(),
            }),
        })
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
                    let decisions = decide_chunk(
                        &pipelines,
                        &inner.binding,
                        &inner.zone,
                        now,
                        &chunk,
                        None,
                        &mut changed,
                    );
                    (decisions, changed)
                });
                job
            })
            .collect();
        let mut any_changed = false;
        let mut decisions = Vec::with_capacity(nodes.len());
        for (result, chunk) in
            inner.engine.inner.units.run_all(jobs).into_iter().zip(nodes.chunks(LEASE_ROWS))
        {
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
        let (inner, pipelines, node) =
            (Arc::clone(&self.inner), self.inner.pipelines.load_full(), Arc::clone(node));
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
            slot.running()
                .is_some_and(|r| r.needs.numbers.iter().any(|fact| matches!(fact, NumberFact::Usage(_))))
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
                let policy = Arc::clone(policy);
                let job: Box<dyn FnOnce() -> PolicyStatus + Send> =
                    Box::new(move || policy_status(&policy, now));
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
