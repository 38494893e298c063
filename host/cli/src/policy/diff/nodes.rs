//! Decisions of two versions about the same nodes through time, and where they differ.
//!
//! [`compare`] is pure.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use kubeocean_api::resource::from_base_units;
use kubeocean_engine::{Engine, NodeDecision, PolicySpec};
use serde::Serialize;

use crate::{
    failure::Failure,
    policy::{
        local::{LocalHost, zone_of},
        simulate::{binding, sums::Adder, walk::Walk},
        snapshot::file::Snapshot,
    },
    progress::Steps,
};

/// What one version comes to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Totals {
    pub(super) hours: BTreeMap<String, f64>,
    pub(super) node_changes: usize,
    pub(super) pods_reclaimed: i64,
    pub(super) undecided: usize,
}

/// Decisions of one version: by node, from which instant on; `None` while the node is not there.
#[derive(Debug, Default)]
pub(super) struct Decisions {
    pub(super) decisions: BTreeMap<Arc<str>, Vec<(i64, Option<NodeDecision>)>>,
    pub(super) totals: Totals,
}

/// A time in which two versions decide differently about a node, always in the same way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Interval {
    pub(super) node: String,
    /// Unix seconds.
    pub(super) from: i64,
    pub(super) until: i64,
    pub(super) what: String,
}

/// Decides all nodes from `from` to `until`.
pub(super) fn walk(
    engine: &Engine,
    snapshot: &Snapshot,
    policies: Vec<PolicySpec>,
    from: i64,
    until: i64,
) -> Result<Decisions, Failure> {
    let local = LocalHost::new(engine, binding(snapshot), zone_of(&policies));
    local.set(policies);
    local.all_run(Timestamp::from_second(from).unwrap_or(Timestamp::MIN))?;
    let bar = Steps::long("deciding", u64::try_from(until - from).unwrap_or(0));
    let mut found = Decisions::default();
    let mut adder = Adder::default();
    for step in Walk::new(&local.host, snapshot, from, until) {
        bar.at(u64::try_from(step.at - from).unwrap_or(0));
        for decided in &step.decided {
            let known = found.decisions.entry(Arc::clone(&decided.node)).or_default();
            known.push((step.at, Some(decided.decision.clone())));
        }
        for gone in &step.gone {
            found.decisions.entry(Arc::clone(gone)).or_default().push((step.at, None));
        }
        adder.step(step);
    }
    bar.end();
    let sums = adder.end(until);
    found.totals = Totals {
        hours: sums.hours,
        node_changes: sums.node_changes,
        pods_reclaimed: sums.pods_reclaimed,
        undecided: sums.undecided,
    };
    Ok(found)
}

/// Where they differ, by node and time.
pub(super) fn compare(old: &Decisions, new: &Decisions, until: i64) -> Vec<Interval> {
    let none = Vec::new();
    let names: std::collections::BTreeSet<&Arc<str>> =
        old.decisions.keys().chain(new.decisions.keys()).collect();
    let mut found = Vec::new();
    for node in names {
        let (a, b) = (old.decisions.get(node).unwrap_or(&none), new.decisions.get(node).unwrap_or(&none));
        let instants: std::collections::BTreeSet<i64> = a.iter().chain(b).map(|(at, _)| *at).collect();
        let mut instants = instants.into_iter().peekable();
        let mut open: Option<Interval> = None;
        while let Some(at) = instants.next() {
            let end = instants.peek().copied().unwrap_or(until);
            let what = difference(held(a, at), held(b, at));
            match (&mut open, what) {
                (Some(interval), Some(what)) if interval.what == what => interval.until = end,
                (_, what) => {
                    found.extend(open.take());
                    open = what.map(|what| Interval { node: node.to_string(), from: at, until: end, what });
                }
            }
        }
        found.extend(open);
    }
    found
}

/// What holds at an instant.
fn held(decisions: &[(i64, Option<NodeDecision>)], at: i64) -> Option<&NodeDecision> {
    let next = decisions.partition_point(|(from, _)| *from <= at);
    decisions.get(next.checked_sub(1)?)?.1.as_ref()
}

/// What a vnode and its pods notice; names of policies and entries do not count.
fn difference(old: Option<&NodeDecision>, new: Option<&NodeDecision>) -> Option<String> {
    let (Some(old), Some(new)) = (old, new) else { return None };
    let state = |decision: &NodeDecision| {
        if decision.governed_by.is_none() {
            "not leased"
        } else if decision.withheld {
            "withheld"
        } else {
            "offered"
        }
    };
    let mut parts = Vec::new();
    if state(old) != state(new) {
        parts.push(format!("{} -> {}", state(old), state(new)));
    }
    if old.governed_by.is_some() && new.governed_by.is_some() {
        for (resource, before) in &old.amounts {
            let after = new.amounts.get(resource).copied().unwrap_or(0);
            if *before != after {
                let shown = |amount| from_base_units(resource, amount).to_string();
                parts.push(format!("{resource} {} -> {}", shown(*before), shown(after)));
            }
        }
        if old.withheld && new.withheld && old.reclaim != new.reclaim {
            parts.push(format!("reclaim {:?} -> {:?}", old.reclaim, new.reclaim));
        }
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(amount: i64) -> NodeDecision {
        NodeDecision {
            governed_by: Some("p".into()),
            amounts: [("cpu".to_owned(), amount)].into(),
            ..NodeDecision::default()
        }
    }

    fn decisions(all: Vec<(i64, Option<NodeDecision>)>) -> Decisions {
        Decisions { decisions: [("n".into(), all)].into(), totals: Totals::default() }
    }

    #[test]
    fn differences_have_a_begin_and_an_end() {
        let old = decisions(vec![(0, Some(cpu(1000))), (10, Some(cpu(2000))), (30, None)]);
        let new = decisions(vec![
            (0, Some(cpu(1000))),
            (5, Some(cpu(500))),
            (10, Some(cpu(1500))),
            (12, Some(cpu(1500))),
            (20, Some(cpu(2000))),
            (30, None),
        ]);
        let found: Vec<_> =
            compare(&old, &new, 40).into_iter().map(|one| (one.from, one.until, one.what)).collect();
        assert_eq!(found, [(5, 10, "cpu 1 -> 500m".to_owned()), (10, 20, "cpu 2 -> 1500m".to_owned())]);
        let closed = NodeDecision { withheld: true, ..cpu(1000) };
        let new = decisions(vec![(0, Some(closed)), (30, None)]);
        assert_eq!(compare(&old, &new, 40)[0].what, "offered -> withheld");
        assert!(compare(&old, &old, 40).is_empty());
    }
}
