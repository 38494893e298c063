//! Decides one chunk of nodes: which policy governs each, and what it gives (PO-541, PO-601).
//!
//! In: the pipelines of this moment and at most [`crate::config::LEASE_ROWS`] nodes. Out: one decision per node.
//! Caller: a worker thread of the engine. Each entry is asked once for all nodes that got as far as it.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::answer::EntryVerdict;
use crate::civil::civil_now;
use crate::compose::{Draft, NodeDecision, Step, ungoverned};
use crate::entry::evaluate::{Ask, Changed, Instant, Outcome, evaluate};
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

/// Decides `nodes`. `trace` collects steps for one node.
pub(crate) fn decide_chunk(
    pipelines: &Pipelines,
    binding: &Arc<PolicyFacts>,
    process_zone: &TimeZone,
    now: Timestamp,
    nodes: &[Arc<NodeFacts>],
    mut trace: Option<&mut Vec<(String, Vec<Step>)>>,
    changed: &mut Changed,
) -> Vec<NodeDecision> {
    let explain = trace.is_some();
    let mut done: Vec<Option<NodeDecision>> = vec![None; nodes.len()];
    // Bounds from policies that did not govern: they may later.
    let mut bounds: Vec<(Option<i64>, Option<i64>)> = vec![(None, None); nodes.len()];
    let mut selector_failed: BTreeMap<usize, (Arc<str>, crate::entry::evaluate::NoAnswer, StandIn)> =
        BTreeMap::new();
    if let Some(entry) = &pipelines.binding_selector {
        let at = Instant { at: now, civil: civil_now(now, process_zone) };
        let mut drafts: Vec<Draft<'_>> = nodes.iter().map(|node| Draft::new(node, explain)).collect();
        let outcomes = ask(entry, binding, &at, &drafts, changed);
        for (index, (outcome, draft)) in outcomes.into_iter().zip(&mut drafts).enumerate() {
            draft.explain(&entry.slot.entry, false, &outcome);
            if let Some(trace) = &mut trace {
                trace.push((String::new(), draft.take_steps()));
            }
            match outcome {
                Ok(answer) if answer.verdict == EntryVerdict::Offer => {
                    set(&mut bounds, index, |bound| bound.0 = answer.valid_until);
                }
                Ok(answer) => {
                    set(&mut done, index, |d| *d = Some(ungoverned(false, answer.valid_until, None)));
                }
                Err(why) => {
                    let stand = stand(entry, draft, at.unix());
                    selector_failed.insert(index, (Arc::clone(&entry.slot.entry), why, stand));
                }
            }
        }
    }
    for policy in &pipelines.policies {
        let open: Vec<usize> =
            (0..nodes.len()).filter(|index| done.get(*index).is_some_and(Option::is_none)).collect();
        if open.is_empty() {
            break;
        }
        let at = Instant { at: now, civil: civil_now(now, &policy.zone) };
        let mut drafts: Vec<(usize, Draft<'_>)> =
            open.iter().filter_map(|index| Some((*index, Draft::new(nodes.get(*index)?, explain)))).collect();
        for (index, draft) in &mut drafts {
            if let Some((entry, why, stand)) = selector_failed.get(index) {
                draft.no_answer(entry, why, stand);
            }
        }
        run_pipeline(policy, &at, &mut drafts, changed);
        for (index, mut draft) in drafts {
            if let Some(trace) = &mut trace {
                trace.push((policy.name.clone(), draft.take_steps()));
            }
            let (valid_until, retry_at) = bounds.get(index).copied().unwrap_or_default();
            draft.bound(valid_until, retry_at);
            if draft.is_not_applicable() {
                set(&mut bounds, index, |bound| *bound = (draft.valid_until(), draft.retry_at()));
            } else {
                set(&mut done, index, |place| *place = Some(draft.finish(&policy.name)));
            }
        }
    }
    let mut decisions: Vec<NodeDecision> = done
        .into_iter()
        .zip(bounds)
        .map(|(decision, (valid_until, retry_at))| {
            decision.unwrap_or_else(|| ungoverned(true, valid_until, retry_at))
        })
        .collect();
    name_shadowed(pipelines, now, nodes, &mut decisions, changed);
    decisions
}

fn set<T>(list: &mut [T], index: usize, change: impl FnOnce(&mut T)) {
    if let Some(place) = list.get_mut(index) {
        change(place);
    }
}

/// Enforce entries in order, then the Audit ones on what is left.
fn run_pipeline(policy: &Policy, at: &Instant, drafts: &mut [(usize, Draft<'_>)], changed: &mut Changed) {
    let enforce = policy.enforce.iter().filter(|entry| policy.invalid.is_none() || is_legacy_selector(entry));
    for entry in enforce.filter(|entry| leases(entry)) {
        let outcomes = ask(entry, &policy.facts, at, alive(drafts), changed);
        let open = drafts.iter_mut().map(|(_, draft)| draft).filter(|draft| !draft.is_not_applicable());
        for (draft, outcome) in open.zip(outcomes) {
            match &outcome {
                Ok(answer) => draft.answer(&entry.slot.entry, answer),
                Err(why) => {
                    let stand = stand(entry, draft, at.unix());
                    draft.no_answer(&entry.slot.entry, why, &stand);
                }
            }
            draft.explain(&entry.slot.entry, false, &outcome);
        }
    }
    if let Some(message) = &policy.invalid {
        for (_, draft) in drafts.iter_mut().filter(|(_, draft)| !draft.is_not_applicable()) {
            draft.invalid(message);
        }
        return;
    }
    for entry in policy.audit.iter().filter(|entry| leases(entry)) {
        let outcomes = ask(entry, &policy.facts, at, alive(drafts), changed);
        let mut differences = entry.slot.audit.lock();
        for ((_, draft), outcome) in
            drafts.iter_mut().filter(|(_, draft)| !draft.is_not_applicable()).zip(outcomes)
        {
            let name = &draft.node.node_name;
            match outcome.as_ref().ok().and_then(|answer| draft.audit_difference(answer)) {
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

fn alive<'a, 'n>(drafts: &'a [(usize, Draft<'n>)]) -> impl Iterator<Item = &'a Draft<'n>> {
    drafts.iter().map(|(_, draft)| draft).filter(|draft| !draft.is_not_applicable())
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
    changed: &mut Changed,
) -> Vec<Outcome> {
    let asks: Vec<Ask<'_>> =
        drafts.into_iter().map(|draft| Ask { node: draft.node, amounts: &draft.amounts }).collect();
    evaluate(&entry.slot, entry.slot.running().as_ref(), facts, at, &asks, changed)
}

fn stand(entry: &Entry, draft: &Draft<'_>, now: i64) -> StandIn {
    let last = entry.slot.known.lock().stand(&draft.node.node_name);
    stand_in(entry.on_error(), last, draft.node.published.as_ref(), now)
}

/// Names the younger policies that would cover a node, so that a policy nobody sees can say why. Only selectors are
/// asked; one that gives no answer counts as covering.
fn name_shadowed(
    pipelines: &Pipelines,
    now: Timestamp,
    nodes: &[Arc<NodeFacts>],
    decisions: &mut [NodeDecision],
    changed: &mut Changed,
) {
    for (rank, policy) in pipelines.policies.iter().enumerate().skip(1) {
        let older: Vec<&str> =
            pipelines.policies.iter().take(rank).map(|policy| policy.name.as_str()).collect();
        let mut drafts: Vec<(usize, Draft<'_>)> = nodes
            .iter()
            .zip(decisions.iter())
            .enumerate()
            .filter(|(_, (_, decision))| {
                decision.governed_by.as_deref().is_some_and(|name| older.contains(&name))
            })
            .map(|(index, (node, _))| (index, Draft::new(node, false)))
            .collect();
        if drafts.is_empty() {
            continue;
        }
        let at = Instant { at: now, civil: civil_now(now, &policy.zone) };
        for entry in policy.enforce.iter().filter(|entry| entry.role == Role::Selector && leases(entry)) {
            let outcomes = ask(entry, &policy.facts, &at, alive(&drafts), changed);
            let open = drafts.iter_mut().map(|(_, draft)| draft).filter(|draft| !draft.is_not_applicable());
            for (draft, outcome) in open.zip(outcomes) {
                if let Ok(answer) = outcome {
                    draft.answer(&entry.slot.entry, &answer);
                }
            }
        }
        for (index, draft) in drafts {
            if !draft.is_not_applicable() {
                set(decisions, index, |decision| decision.shadowed.push(policy.name.clone()));
            }
        }
    }
}
