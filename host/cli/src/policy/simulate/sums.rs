//! What a walk adds up to: what was offered over time, how often nodes changed, how many pods would have gone.
//!
//! Pure.

use std::{collections::BTreeMap, sync::Arc};

use kubeocean_api::resource::PODS;
use kubeocean_engine::{NodeDecision, Reclaim};
use serde::Serialize;

use super::walk::{Step, undecided};

pub(crate) type Amounts = BTreeMap<String, i64>;

/// A time in which the sums did not change.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Period {
    /// Unix seconds.
    pub(crate) from: i64,
    pub(crate) until: i64,
    /// Offered by all nodes together, base units.
    pub(crate) offered: Amounts,
    /// What others leave of all nodes.
    pub(crate) available: Amounts,
}

/// What came of a simulation.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Sums {
    pub(crate) periods: Vec<Period>,
    /// Resource times hours that were offered; cpu in cores.
    pub(crate) hours: BTreeMap<String, f64>,
    /// Most nodes at a time.
    pub(crate) nodes: usize,
    /// Decisions that changed what a vnode publishes.
    pub(crate) node_changes: usize,
    /// Pods of Kubeocean that would have been taken from nodes.
    pub(crate) pods_reclaimed: i64,
    /// Decisions about a node that an entry gave no answer to.
    pub(crate) undecided: usize,
    /// Instants at which something was decided.
    pub(crate) steps: usize,
    /// Resources that some entry limited, or that were withheld.
    #[serde(skip)]
    pub(crate) limited: std::collections::BTreeSet<String>,
    /// Decisions at the end, by node.
    pub(crate) at_end: BTreeMap<String, NodeDecision>,
}

#[derive(Debug)]
struct Node {
    offered: Amounts,
    available: Amounts,
    pods: i64,
    /// When its pods go, if nothing changes.
    reclaim_at: Option<i64>,
    decision: NodeDecision,
}

/// Adds up steps in the order of time.
#[derive(Debug, Default)]
pub(crate) struct Adder {
    nodes: BTreeMap<Arc<str>, Node>,
    open: Option<(i64, Amounts, Amounts)>,
    sums: Sums,
}

impl Adder {
    pub(crate) fn step(&mut self, step: Step) {
        self.reclaim_until(step.at);
        self.sums.steps += 1;
        for node in &step.gone {
            self.nodes.remove(node);
        }
        for decided in step.decided {
            let (decision, facts) = (decided.decision, decided.facts);
            let pods = facts.leased.get(PODS).copied().unwrap_or(0);
            self.sums.undecided += usize::from(undecided(&decision));
            self.sums.node_changes +=
                usize::from(decided.before.as_ref().is_some_and(|before| differs(before, &decision)));
            self.sums.limited.extend(decision.limited_by.keys().cloned());
            let offered = if decision.governed_by.is_some()
                && !decision.withheld
                && visible(&decision, &facts)
            {
                decision.amounts.clone()
            } else {
                self.sums.limited.extend(decision.amounts.keys().filter(|r| facts.available(r) > 0).cloned());
                Amounts::new()
            };
            let available = facts
                .allocatable
                .keys()
                .map(|resource| (resource.clone(), facts.available(resource)))
                .collect();
            let before = self.nodes.remove(&decided.node);
            let reclaim_at = reclaim_at(step.at, decided.before.as_ref(), &decision, before.as_ref());
            let node = Node { offered, available, pods, reclaim_at, decision };
            self.nodes.insert(decided.node, node);
        }
        self.reclaim_until(step.at);
        self.sums.nodes = self.sums.nodes.max(self.nodes.len());
        let (offered, available) = (self.total(|node| &node.offered), self.total(|node| &node.available));
        let same = self.open.as_ref().is_some_and(|(_, o, a)| (o, a) == (&offered, &available));
        if !same {
            self.close(step.at);
            self.open = Some((step.at, offered, available));
        }
    }

    pub(crate) fn end(mut self, until: i64) -> Sums {
        self.reclaim_until(until);
        self.close(until);
        self.sums.at_end =
            self.nodes.into_iter().map(|(name, node)| (name.to_string(), node.decision)).collect();
        self.sums
    }

    fn total(&self, amounts: impl Fn(&Node) -> &Amounts) -> Amounts {
        let mut total = Amounts::new();
        for (resource, amount) in self.nodes.values().flat_map(amounts) {
            let sum = total.entry(resource.clone()).or_default();
            *sum = sum.saturating_add(*amount);
        }
        total
    }

    fn close(&mut self, until: i64) {
        let Some((from, offered, available)) = self.open.take().filter(|(from, _, _)| *from < until) else {
            return;
        };
        for (resource, amount) in &offered {
            *self.sums.hours.entry(resource.clone()).or_default() +=
                super::plot::units(resource, *amount) * super::plot::hours(until - from);
        }
        self.sums.periods.push(Period { from, until, offered, available });
    }

    /// Pods whose time is over by then.
    fn reclaim_until(&mut self, now: i64) {
        for node in self.nodes.values_mut().filter(|node| node.reclaim_at.is_some_and(|at| at <= now)) {
            self.sums.pods_reclaimed += node.pods;
            node.reclaim_at = None;
        }
    }
}

/// A vnode is there, or is made.
fn visible(decision: &NodeDecision, facts: &kubeocean_engine::NodeFacts) -> bool {
    decision.may_create || facts.vnode_exists
}

fn differs(before: &NodeDecision, now: &NodeDecision) -> bool {
    (&before.governed_by, before.withheld, &before.amounts) != (&now.governed_by, now.withheld, &now.amounts)
}

/// When the node's pods go. A countdown that runs goes on while the node stays closed; it begins with the decision that
/// closes it, and a node no policy governs any more follows what the last one announced (BU-907).
fn reclaim_at(
    at: i64,
    before: Option<&NodeDecision>,
    now: &NodeDecision,
    known: Option<&Node>,
) -> Option<i64> {
    let lost = now.governed_by.is_none() && before.is_some_and(|before| before.governed_by.is_some());
    let running = known.and_then(|node| node.reclaim_at);
    let begins = |reclaim: Reclaim| match reclaim {
        Reclaim::Keep => None,
        Reclaim::Graceful(seconds) => Some(at.saturating_add(i64::from(seconds))),
        Reclaim::Force => Some(at),
    };
    if lost {
        let announced = before.map(|before| before.reclaim).unwrap_or_default();
        return Some(begins(announced).unwrap_or(at));
    }
    if now.governed_by.is_none() {
        return running;
    }
    if !now.withheld {
        return None;
    }
    let closed_before = before.is_some_and(|before| before.withheld && before.reclaim == now.reclaim);
    if closed_before { running } else { begins(now.reclaim) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::simulate::walk::Decided;
    use kubeocean_engine::{NodeFacts, Verdict};

    fn decision(cpu: i64, withheld: bool, reclaim: Reclaim) -> NodeDecision {
        NodeDecision {
            governed_by: Some("p".into()),
            verdict: if withheld { Verdict::Withhold } else { Verdict::Offer },
            withheld,
            reclaim,
            amounts: [("cpu".to_owned(), cpu)].into(),
            may_create: true,
            ..NodeDecision::default()
        }
    }

    fn step(at: i64, before: Option<&NodeDecision>, decision: &NodeDecision) -> Step {
        let facts = NodeFacts {
            allocatable: [("cpu".to_owned(), 4000)].into(),
            leased: [("pods".to_owned(), 3)].into(),
            ..NodeFacts::default()
        };
        let decided = Decided {
            node: "n".into(),
            facts: Arc::new(facts),
            decision: decision.clone(),
            before: before.cloned(),
        };
        Step { at, decided: vec![decided], gone: vec![] }
    }

    #[test]
    fn what_is_offered_adds_up_over_time_and_pods_go_when_their_time_is_over() {
        let open = decision(2000, false, Reclaim::Keep);
        let closed = decision(2000, true, Reclaim::Graceful(600));
        let mut adder = Adder::default();
        adder.step(step(0, None, &open));
        adder.step(step(3600, Some(&open), &closed));
        adder.step(step(4100, Some(&closed), &closed));
        assert_eq!(adder.sums.pods_reclaimed, 0);
        adder.step(step(4300, Some(&closed), &closed));
        adder.step(step(7200, Some(&closed), &open));
        let sums = adder.end(9000);
        assert_eq!((sums.node_changes, sums.pods_reclaimed, sums.nodes, sums.steps), (2, 3, 1, 5));
        assert!((sums.hours["cpu"] - 3.0).abs() < 1e-9, "{:?}", sums.hours);
        let spans: Vec<_> =
            sums.periods.iter().map(|p| (p.from, p.until, p.offered.get("cpu").copied())).collect();
        assert_eq!(spans, [(0, 3600, Some(2000)), (3600, 7200, None), (7200, 9000, Some(2000))]);
    }

    #[test]
    fn pods_stay_when_the_node_opens_in_time_and_go_when_no_policy_governs() {
        let open = decision(1, false, Reclaim::Keep);
        let closed = decision(1, true, Reclaim::Graceful(600));
        let lost = NodeDecision { selected: true, ..NodeDecision::default() };
        let mut adder = Adder::default();
        adder.step(step(0, None, &closed));
        adder.step(step(599, Some(&closed), &open));
        adder.step(step(1000, Some(&open), &open));
        assert_eq!(adder.sums.pods_reclaimed, 0);
        adder.step(step(1001, Some(&open), &lost));
        assert_eq!(adder.end(1002).pods_reclaimed, 3);
    }
}
