//! Numbers for metrics and for the status of policies.

use std::{collections::BTreeMap, sync::atomic::Ordering};

use super::NodeStore;
use crate::nodes::{
    index::Snapshot,
    snapshot::{Amounts, Usage, available, base, published},
};

/// How much the nodes of a policy are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyUsage {
    /// Nodes it governs.
    pub governed: usize,
    /// Of these, nodes for which a module of it does not answer.
    pub failed: usize,
    /// Of these, nodes that are withheld.
    pub withheld: usize,
    /// Nodes it would cover if no older policy did, and one of these.
    pub shadowed: usize,
    /// A policy that shadows it.
    pub shadowed_by: Option<String>,
    /// Vnodes built from it, or about to be.
    pub built: usize,
}

/// Numbers of one vnode for metrics (BU-1601), in base units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VnodeNumbers {
    /// Vnode name.
    pub vnode: String,
    /// What the node has.
    pub origin: Amounts,
    /// What it publishes: that is what can be used, also while a decision waits for its turn or is not made.
    pub available: Amounts,
    /// Requests of others and of this binding's pods.
    pub usage: Usage,
}

/// Numbers of one policy for metrics (PO-1501), summed over the nodes it governs, in base units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyNumbers {
    /// What its nodes publish.
    pub offered: Amounts,
    /// What others leave of its nodes.
    pub available: Amounts,
    /// Nodes that are withheld.
    pub withheld: usize,
    /// Nodes that publish less than this binding's pods there ask for (PO-603).
    pub overcommitted: usize,
}

impl NodeStore {
    /// Nodes and vnodes of a policy.
    pub fn policy_usage(&self, policy: &str) -> PolicyUsage {
        let state = self.state.lock();
        let mut usage = PolicyUsage { built: state.index.built_from(policy), ..PolicyUsage::default() };
        for (_, decided) in state.index.decided() {
            if decided.governed_by.as_deref() == Some(policy) {
                usage.governed += 1;
                usage.failed += usize::from(decided.failed);
                usage.withheld += usize::from(decided.withheld);
            } else if decided.shadowed.iter().any(|name| name == policy) {
                usage.shadowed += 1;
                usage.shadowed_by = usage.shadowed_by.max(decided.governed_by.clone());
            }
        }
        usage
    }

    /// Numbers of all vnodes, by name.
    pub fn numbers(&self) -> Vec<VnodeNumbers> {
        let state = self.state.lock();
        let mut numbers: Vec<VnodeNumbers> = state
            .index
            .vnodes()
            .map(|vnode| {
                let snapshot = state.index.snapshot(vnode.name());
                VnodeNumbers {
                    vnode: vnode.name().to_owned(),
                    origin: origin(&snapshot),
                    available: published(vnode).amounts,
                    usage: snapshot.usage,
                }
            })
            .collect();
        numbers.sort_by(|a, b| a.vnode.cmp(&b.vnode));
        numbers
    }

    /// Numbers of all policies that govern a node, by name.
    pub fn policy_numbers(&self) -> BTreeMap<String, PolicyNumbers> {
        let state = self.state.lock();
        let mut all: BTreeMap<String, PolicyNumbers> = BTreeMap::new();
        for (vnode, decided) in state.index.decided() {
            let Some(policy) = &decided.governed_by else { continue };
            let snapshot = state.index.snapshot(vnode);
            let offered = snapshot.vnode.as_deref().map(published).unwrap_or_default().amounts;
            let (origin, usage) = (origin(&snapshot), &snapshot.usage);
            let numbers = all.entry(policy.clone()).or_default();
            add(&mut numbers.offered, &offered);
            add(&mut numbers.available, &available(&origin, &usage.others));
            numbers.withheld += usize::from(decided.withheld);
            let used = |resource: &str| usage.own.get(resource).copied().unwrap_or(0);
            let over = offered.iter().any(|(resource, offered)| used(resource) > *offered);
            numbers.overcommitted += usize::from(over);
        }
        all
    }

    /// Counts the sums of requests anew; returns how many vnodes had wrong ones.
    pub(in crate::nodes) fn recount(&self) -> usize {
        let wrong = self.state.lock().index.recount();
        let count = wrong.len();
        self.counters.usage_drift.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.queue.add_all(wrong);
        count
    }
}

/// What the worker node has; nothing once it is gone.
fn origin(snapshot: &Snapshot) -> Amounts {
    snapshot.pnode.as_deref().map(base).unwrap_or_default()
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (resource, amount) in more {
        let entry = sum.entry(resource.clone()).or_default();
        *entry = entry.saturating_add(*amount);
    }
}
