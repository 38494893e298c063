//! Decides recorded nodes over time, as a Syncer would have: one step per change of a node and per end of an answer.
//!
//! In: a host and a snapshot. Out: a [`Step`] per instant at which something was decided. Time is data, so a week takes as
//! long as its decisions. What a vnode would publish after a decision is what the next one about its node is told.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::Timestamp;
use kubeocean_engine::{NodeDecision, NodeFacts, PolicyHost, Published, Verdict};

use crate::policy::snapshot::file::{Change, Snapshot};

/// Attempts at decisions that an entry gave no answer to: a call's limit is of real time, and the machine may be busy.
const ATTEMPTS: usize = 5;

/// One node at one instant.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) node: Arc<str>,
    pub(crate) facts: Arc<NodeFacts>,
    pub(crate) decision: NodeDecision,
    /// What held before; `None`: nothing was decided yet.
    pub(crate) before: Option<NodeDecision>,
}

/// What was decided at one instant.
#[derive(Debug)]
pub(crate) struct Step {
    pub(crate) at: i64,
    pub(crate) decided: Vec<Decided>,
    /// Nodes that went.
    pub(crate) gone: Vec<Arc<str>>,
}

#[derive(Debug)]
struct Known {
    facts: Arc<NodeFacts>,
    decision: Option<NodeDecision>,
    published: Option<Published>,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Walk<'h> {
    host: &'h PolicyHost,
    changes: std::iter::Peekable<std::vec::IntoIter<Change>>,
    nodes: BTreeMap<Arc<str>, Known>,
    due: BTreeSet<(i64, Arc<str>)>,
    now: i64,
    until: i64,
    begun: bool,
}

impl<'h> Walk<'h> {
    /// From `from` until before `until`, unix seconds. What the snapshot says first holds before its begin, what it says
    /// last after its end.
    pub(crate) fn new(host: &'h PolicyHost, snapshot: &Snapshot, from: i64, until: i64) -> Self {
        let begin = snapshot.header.at.as_second();
        let mut changes = snapshot.changes.clone();
        for change in changes.iter_mut().filter(|change| change.at <= begin) {
            change.at = change.at.min(from);
        }
        let changes = changes.into_iter().peekable();
        Self { host, changes, nodes: BTreeMap::new(), due: BTreeSet::new(), now: from, until, begun: false }
    }

    /// The next instant at which something is decided, if there is one before the end.
    fn next_instant(&mut self) -> Option<i64> {
        if !self.begun {
            self.begun = true;
            return Some(self.now);
        }
        let change = self.changes.peek().map(|change| change.at);
        let due = self.due.first().map(|(at, _)| *at);
        [change, due].into_iter().flatten().min().map(|at| at.max(self.now)).filter(|at| *at < self.until)
    }

    /// Takes what happens up to this instant: which nodes are to be decided, and which went.
    fn take(&mut self, now: i64) -> (BTreeSet<Arc<str>>, Vec<Arc<str>>) {
        let mut dirty = BTreeSet::new();
        let mut gone = BTreeSet::new();
        while let Some(change) = self.changes.next_if(|change| change.at <= now) {
            if let Some(facts) = change.facts {
                gone.remove(&change.node);
                dirty.insert(Arc::clone(&change.node));
                if let Some(known) = self.nodes.get_mut(&change.node) {
                    known.facts = facts;
                } else {
                    let known = Known { published: facts.published.clone(), facts, decision: None };
                    self.nodes.insert(change.node, known);
                }
            } else {
                dirty.remove(&change.node);
                if self.nodes.remove(&change.node).is_some() {
                    self.host.forget_node(&change.node);
                    gone.insert(change.node);
                }
            }
        }
        while let Some((at, _)) = self.due.first()
            && *at <= now
            && let Some((_, node)) = self.due.pop_first()
        {
            if self.nodes.contains_key(&node) {
                dirty.insert(node);
            }
        }
        (dirty, gone.into_iter().collect())
    }

    fn decide(&mut self, now: i64, dirty: BTreeSet<Arc<str>>) -> Vec<Decided> {
        let Ok(at) = Timestamp::from_second(now) else { return Vec::new() };
        let names: Vec<Arc<str>> = dirty.into_iter().collect();
        let facts: Vec<Arc<NodeFacts>> = names
            .iter()
            .filter_map(|node| self.nodes.get(node))
            .map(|known| {
                let mut facts = NodeFacts::clone(&known.facts);
                facts.vnode_exists = known.published.is_some();
                facts.published.clone_from(&known.published);
                Arc::new(facts)
            })
            .collect();
        let decisions = decisions(self.host, at, &facts);
        let mut decided = Vec::with_capacity(names.len());
        for ((node, facts), decision) in names.into_iter().zip(facts).zip(decisions) {
            let Some(known) = self.nodes.get_mut(&node) else { continue };
            let existed = known.published.is_some();
            known.published = published(&decision, existed);
            let again = decision.valid_until.filter(|until| *until > now);
            // A module may look at whether there is a vnode: the Syncer asks again when it has made one.
            let changed = (existed != known.published.is_some()).then_some(now + 1);
            self.due.extend([again, changed].into_iter().flatten().min().map(|at| (at, Arc::clone(&node))));
            let before = known.decision.replace(decision.clone());
            decided.push(Decided { node, facts, decision, before });
        }
        decided
    }
}

impl Iterator for Walk<'_> {
    type Item = Step;

    fn next(&mut self) -> Option<Step> {
        let at = self.next_instant()?;
        self.now = at;
        let (dirty, gone) = self.take(at);
        let decided = self.decide(at, dirty);
        Some(Step { at, decided, gone })
    }
}

/// What the vnode publishes after a decision.
fn published(decision: &NodeDecision, existed: bool) -> Option<Published> {
    let stays = decision.governed_by.is_some() && (existed || decision.may_create);
    stays.then(|| Published {
        amounts: decision.amounts.clone(),
        offered: !decision.withheld,
        valid_until: decision.valid_until,
    })
}

/// Decides, and once more what an entry gave no answer to.
fn decisions(host: &PolicyHost, at: Timestamp, facts: &[Arc<NodeFacts>]) -> Vec<NodeDecision> {
    let mut decisions = host.decide(at, facts);
    for _ in 1..ATTEMPTS {
        let open: Vec<usize> = decisions
            .iter()
            .enumerate()
            .filter(|(_, decision)| ran_out_of_time(decision))
            .map(|(index, _)| index)
            .collect();
        if open.is_empty() {
            break;
        }
        let again: Vec<Arc<NodeFacts>> =
            open.iter().filter_map(|index| facts.get(*index)).map(Arc::clone).collect();
        for (index, decision) in open.into_iter().zip(host.decide(at, &again)) {
            if let Some(place) = decisions.get_mut(index) {
                *place = decision;
            }
        }
    }
    decisions
}

fn ran_out_of_time(decision: &NodeDecision) -> bool {
    let timeout = kubeocean_engine::FaultKind::Timeout.as_str();
    undecided(decision) && decision.reason.as_ref().is_some_and(|reason| reason.message.starts_with(timeout))
}

/// An entry that has a say gave no answer.
pub(crate) fn undecided(decision: &NodeDecision) -> bool {
    let failed = decision.reason.as_ref().is_some_and(|reason| reason.code == "ModuleFailed");
    decision.governed_by.is_some() && (decision.verdict == Verdict::Held || failed)
}
