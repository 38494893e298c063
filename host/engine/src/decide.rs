//! Decides nodes: which policy governs each, and what it gives (PO-541, PO-601).
//!
//! In: the pipelines of this moment and at most [`crate::config::LEASE_ROWS`] nodes. Out: one decision per node, or the
//! nodes of a policy that may take long, which continue in a unit of their own. Caller: a worker thread of the engine.
//! Each entry is asked once for all nodes that got as far as it.
//! Invariant: no node waits for a module that has no say about it (policy spec section 14).

use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::answer::EntryVerdict;
use crate::civil::civil_now;
use crate::compose::{Draft, NodeDecision, Step, ungoverned};
use crate::entry::evaluate::{Ask, Instant, Lane, NoAnswer, Outcome, Work, evaluate};
use crate::entry::last_known::{StandIn, stand_in};
use crate::facts::{NodeFacts, PolicyFacts};
use crate::pipeline::{Entry, Pipelines, Policy, Role};

/// A decision with every step that led to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// The decision.
    pub decision: NodeDecision,
    /// Steps per policy, in the order in which policies were tried; ends with the one that governs. The binding's
    /// selector comes first, under an empty name.
    pub policies: Vec<(String, Vec<Step>)>,
}

/// Steps per policy, of one node.
pub(crate) type Trace = Vec<(String, Vec<Step>)>;

/// What all units of one decision share.
#[derive(Clone)]
pub(crate) struct Moment {
    pub(crate) pipelines: Arc<Pipelines>,
    pub(crate) binding: Arc<PolicyFacts>,
    pub(crate) process_zone: TimeZone,
    pub(crate) now: Timestamp,
}

/// When to look again at a node because of something outside the pipeline that governs it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Bounds {
    pub(crate) valid_until: Option<i64>,
    pub(crate) wake_at: Option<i64>,
}

/// A node no policy has taken so far.
pub(crate) struct Open {
    /// Its place in the caller's list.
    pub(crate) index: usize,
    node: Arc<NodeFacts>,
    /// From policies that did not govern: they may later.
    bounds: Bounds,
    /// What stands for the binding's selector, when that gave no answer.
    selector: Option<(Arc<str>, NoAnswer, StandIn)>,
}

impl Open {
    pub(crate) fn new(index: usize, node: Arc<NodeFacts>) -> Self {
        Self { index, node, bounds: Bounds::default(), selector: None }
    }
}

/// What became of a unit's nodes.
#[derive(Default)]
pub(crate) struct Decided {
    /// Decisions by place.
    pub(crate) done: Vec<(usize, NodeDecision)>,
    /// Nodes that wait for a policy that may take long, by its rank.
    pub(crate) apart: Vec<(usize, Vec<Open>)>,
}

/// Leaves the nodes the binding's selector selects; decides the others.
pub(crate) fn select(
    moment: &Moment,
    mut nodes: Vec<Open>,
    trace: Option<&mut Trace>,
    work: &mut Work,
) -> (Vec<Open>, Decided) {
    let mut decided = Decided::default();
    let Some(entry) = &moment.pipelines.binding_selector else { return (nodes, decided) };
    let at = Instant { at: moment.now, civil: civil_now(moment.now, &moment.process_zone) };
    let facts: Vec<Arc<NodeFacts>> = nodes.iter().map(|open| Arc::clone(&open.node)).collect();
    let mut drafts: Vec<Draft<'_>> = facts.iter().map(|node| Draft::new(node, trace.is_some())).collect();
    let outcomes = ask(entry, &moment.binding, &at, &drafts, work);
    if let (Some(trace), Some(draft), Some(outcome)) = (trace, drafts.first_mut(), outcomes.first()) {
        draft.explain(&entry.slot.entry, false, outcome);
        trace.push((String::new(), draft.take_steps()));
    }
    let mut outcomes = outcomes.into_iter().zip(&drafts);
    nodes.retain_mut(|open| match outcomes.next() {
        Some((Ok(said), _)) => {
            let wake_at = earliest(said.answer.valid_until, Some(said.refresh_at));
            let bounds = Bounds { valid_until: said.answer.valid_until, wake_at };
            if said.answer.verdict == EntryVerdict::Offer {
                open.bounds = bounds;
                return true;
            }
            decided.done.push((open.index, ungoverned(false, bounds)));
            false
        }
        Some((Err(why), draft)) => {
            let stand = stand(entry, draft, at.unix());
            open.selector = Some((Arc::clone(&entry.slot.entry), why, stand));
            true
        }
        None => true,
    });
    (nodes, decided)
}

/// Decides nodes by the policies from `start` on. A policy that may take long is run only in [`Lane::Apart`]; elsewhere
/// its nodes are handed back. `trace` collects the steps of one node.
pub(crate) fn decide_unit(
    moment: &Moment,
    start: usize,
    mut open: Vec<Open>,
    mut trace: Option<&mut Trace>,
    work: &mut Work,
) -> Decided {
    let mut decided = Decided::default();
    let mut governed: Vec<(usize, Arc<NodeFacts>, NodeDecision)> = Vec::new();
    for (rank, policy) in moment.pipelines.policies.iter().enumerate().skip(start) {
        let at = Instant { at: moment.now, civil: civil_now(moment.now, &policy.zone) };
        rest(policy, &governed.iter().map(|(_, node, _)| &**node).collect::<Vec<_>>());
        if open.is_empty() {
            continue;
        }
        if work.lane == Lane::Common && policy.may_take_long(at.unix()) {
            let nodes: Vec<&NodeFacts> = open.iter().map(|open| &*open.node).collect();
            let mut covered = covers(policy, &at, &nodes, work).into_iter();
            let (apart, left) = open.into_iter().partition(|_| covered.next().unwrap_or(true));
            open = left;
            decided.apart.push((rank, apart));
            continue;
        }
        let nodes: Vec<Arc<NodeFacts>> = open.iter().map(|open| Arc::clone(&open.node)).collect();
        let mut drafts: Vec<Draft<'_>> = nodes.iter().map(|node| Draft::new(node, trace.is_some())).collect();
        for (open, draft) in open.iter().zip(&mut drafts) {
            if let Some((entry, why, stand)) = &open.selector {
                draft.no_answer(entry, why, stand);
            }
        }
        run_pipeline(policy, &at, &mut drafts, work);
        let mut drafts = drafts.into_iter();
        open.retain_mut(|open| {
            let Some(mut draft) = drafts.next() else { return true };
            if let Some(trace) = &mut trace {
                trace.push((policy.name.clone(), draft.take_steps()));
            }
            draft.bound(open.bounds);
            if draft.is_not_applicable() {
                open.bounds = draft.bounds();
                return true;
            }
            let decision = draft.finish(&policy.name, policy.generation);
            governed.push((open.index, Arc::clone(&open.node), decision));
            false
        });
    }
    name_shadowed(moment, start, &mut governed, work);
    decided.done.extend(governed.into_iter().map(|(index, _, decision)| (index, decision)));
    decided.done.extend(open.into_iter().map(|open| (open.index, ungoverned(true, open.bounds))));
    decided.apart.retain(|(_, nodes)| !nodes.is_empty());
    decided
}

fn earliest(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    [a, b].into_iter().flatten().min()
}

/// Enforce entries in order, then the Audit ones on what is left.
fn run_pipeline(policy: &Policy, at: &Instant, drafts: &mut [Draft<'_>], work: &mut Work) {
    let enforce = policy.enforce.iter().filter(|entry| policy.invalid.is_none() || is_legacy_selector(entry));
    for entry in enforce.filter(|entry| leases(entry)) {
        rest_entry(entry, closed(drafts));
        let outcomes = ask(entry, &policy.facts, at, alive(drafts), work);
        let open = drafts.iter_mut().filter(|draft| !draft.is_not_applicable());
        for (draft, outcome) in open.zip(outcomes) {
            match &outcome {
                Ok(said) => {
                    draft.answer(&entry.slot.entry, &said.answer);
                    draft.refresh(said.refresh_at);
                }
                Err(why) => {
                    let stand = stand(entry, draft, at.unix());
                    draft.no_answer(&entry.slot.entry, why, &stand);
                }
            }
            draft.explain(&entry.slot.entry, false, &outcome);
        }
    }
    if let Some(message) = &policy.invalid {
        for draft in drafts.iter_mut().filter(|draft| !draft.is_not_applicable()) {
            draft.invalid(message);
        }
        for entry in policy.enforce.iter().chain(&policy.audit).filter(|entry| !is_legacy_selector(entry)) {
            rest_entry(entry, drafts.iter().map(|draft| draft.node));
        }
        return;
    }
    for entry in policy.audit.iter().filter(|entry| leases(entry)) {
        rest_entry(entry, closed(drafts));
        let outcomes = ask(entry, &policy.facts, at, alive(drafts), work);
        let mut differences = entry.slot.audit.lock();
        let open = drafts.iter_mut().filter(|draft| !draft.is_not_applicable());
        for (draft, outcome) in open.zip(outcomes) {
            let name = &draft.node.node_name;
            match outcome.as_ref().ok().and_then(|said| draft.audit_difference(&said.answer)) {
                Some(difference) if differences.get(name) != Some(&difference) => {
                    crate::entry::counters::add(&entry.slot.counters.audit_differences, 1);
                    differences.insert(name.clone(), difference);
                }
                Some(_) => {}
                None => {
                    differences.remove(name);
                }
            }
            draft.explain(&entry.slot.entry, true, &outcome);
        }
    }
}

/// The only entry of an invalid policy that is called: it says which nodes are held (PO-526).
fn is_legacy_selector(entry: &Entry) -> bool {
    entry.spec.name == crate::legacy::LEGACY_NODE_SELECTOR
}

fn alive<'a, 'n>(drafts: &'a [Draft<'n>]) -> impl Iterator<Item = &'a Draft<'n>> {
    drafts.iter().filter(|draft| !draft.is_not_applicable())
}

fn closed<'a>(drafts: &'a [Draft<'_>]) -> impl Iterator<Item = &'a NodeFacts> {
    drafts.iter().filter(|draft| draft.is_not_applicable()).map(|draft| draft.node)
}

/// A policy that does not govern these nodes has no standing answer about them and would change nothing there.
fn rest(policy: &Policy, nodes: &[&NodeFacts]) {
    for entry in policy.enforce.iter().chain(&policy.audit) {
        rest_entry(entry, nodes.iter().copied());
    }
}

fn rest_entry<'a>(entry: &Entry, nodes: impl Iterator<Item = &'a NodeFacts>) {
    let mut known = entry.slot.known.lock();
    let mut differences = entry.slot.audit.lock();
    if differences.is_empty() && !known.stands() {
        return;
    }
    for node in nodes {
        known.rest(&node.node_name);
        differences.remove(&node.node_name);
    }
}

/// An entry whose module only places, or that is used only for placement, has no part in a lease.
fn leases(entry: &Entry) -> bool {
    let wanted =
        entry.spec.decisions.as_ref().is_none_or(|list| list.contains(&crate::legacy::Decision::Lease));
    wanted && entry.slot.running().is_none_or(|running| running.lease)
}

fn ask<'a, 'n: 'a>(
    entry: &Entry,
    facts: &PolicyFacts,
    at: &Instant,
    drafts: impl IntoIterator<Item = &'a Draft<'n>>,
    work: &mut Work,
) -> Vec<Outcome> {
    let asks: Vec<Ask<'_>> =
        drafts.into_iter().map(|draft| Ask { node: draft.node, amounts: &draft.amounts }).collect();
    evaluate(&entry.slot, entry.slot.running().as_ref(), facts, at, &asks, work)
}

fn stand(entry: &Entry, draft: &Draft<'_>, now: i64) -> StandIn {
    let mut known = entry.slot.known.lock();
    let last = known.last(&draft.node.node_name);
    let stand = stand_in(entry.on_error(), last, draft.node.published.as_ref(), now);
    if matches!(stand, StandIn::Last(_)) {
        known.stand(&draft.node.node_name);
    } else {
        known.rest(&draft.node.node_name);
    }
    stand
}

/// Which nodes the selectors of a policy select. Selectors are code that came with the program; one that gives no answer
/// counts as covering.
fn covers(policy: &Policy, at: &Instant, nodes: &[&NodeFacts], work: &mut Work) -> Vec<bool> {
    let mut drafts: Vec<Draft<'_>> = nodes.iter().map(|node| Draft::new(node, false)).collect();
    for entry in policy.enforce.iter().filter(|entry| entry.role == Role::Selector && leases(entry)) {
        let outcomes = ask(entry, &policy.facts, at, alive(&drafts), work);
        let open = drafts.iter_mut().filter(|draft| !draft.is_not_applicable());
        for (draft, outcome) in open.zip(outcomes) {
            if let Ok(said) = outcome {
                draft.answer(&entry.slot.entry, &said.answer);
            }
        }
    }
    drafts.iter().map(|draft| !draft.is_not_applicable()).collect()
}

/// Names the younger policies that would cover a node, so that a policy nobody sees can say why.
fn name_shadowed(
    moment: &Moment,
    start: usize,
    governed: &mut [(usize, Arc<NodeFacts>, NodeDecision)],
    work: &mut Work,
) {
    let mut older: Vec<&str> = Vec::new();
    for policy in moment.pipelines.policies.iter().skip(start) {
        let by_older = |decision: &NodeDecision| {
            decision.governed_by.as_deref().is_some_and(|name| older.contains(&name))
        };
        let places: Vec<usize> = governed
            .iter()
            .enumerate()
            .filter(|(_, (_, _, decision))| by_older(decision))
            .map(|(place, _)| place)
            .collect();
        older.push(&policy.name);
        if places.is_empty() {
            continue;
        }
        let at = Instant { at: moment.now, civil: civil_now(moment.now, &policy.zone) };
        let nodes: Vec<Arc<NodeFacts>> = places
            .iter()
            .filter_map(|place| governed.get(*place).map(|(_, node, _)| Arc::clone(node)))
            .collect();
        let nodes: Vec<&NodeFacts> = nodes.iter().map(AsRef::as_ref).collect();
        let covered = covers(policy, &at, &nodes, work);
        for (place, _) in places.into_iter().zip(covered).filter(|(_, covered)| *covered) {
            if let Some((_, _, decision)) = governed.get_mut(place) {
                decision.shadowed.push(policy.name.clone());
            }
        }
    }
}
