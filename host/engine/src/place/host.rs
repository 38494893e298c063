//! A host asked about placement: groups candidates by the policy that governs them, asks its entries side by side.
//!
//! In: a question with a deadline. Out: one [`Placement`] per candidate, in time. Invariant: an entry that is late or
//! failed stands as its `onError` says, and takes nobody else's answer with it (policy spec section 14).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use jiff::Timestamp;

use crate::civil::civil_now;
use crate::entry::evaluate::{Instant, Lane, NoAnswer, Work};
use crate::facts::NodeFacts;
use crate::host::PolicyHost;
use crate::legacy::{Decision, OnError};
use crate::pipeline::{Entry, Policy};
use crate::place::answer::Stage;
use crate::place::compose::{PlaceDraft, Placement};
use crate::place::evaluate::{PlaceOutcome, Question, evaluate};
use crate::place::explain::PlaceStep;
use crate::place::facts::PodFacts;

/// A candidate.
#[derive(Clone, Debug)]
pub struct PlaceNode {
    /// Facts of the vnode: labels, annotations, taints and `allocatable` are the vnode's, `used` is what pods bound to
    /// it request.
    pub facts: Arc<NodeFacts>,
    /// Policy that governs the node; `None`: nobody has a say (PO-605).
    pub policy: Option<Arc<str>>,
}

/// One pod and the vnodes it may go to.
#[derive(Clone, Debug)]
pub struct PlaceRequest {
    /// Who asks.
    pub stage: Stage,
    /// The pod.
    pub pod: Arc<PodFacts>,
    /// The candidates.
    pub nodes: Vec<PlaceNode>,
    /// When the answer must be there.
    pub deadline: std::time::Instant,
}

impl PolicyHost {
    /// Asks every entry that places, those of all policies side by side. Blocks until all have answered, at most until the
    /// deadline. Never fails.
    pub fn place(&self, now: Timestamp, request: PlaceRequest) -> Vec<Placement> {
        let PlaceRequest { stage, pod, nodes, deadline } = request;
        let mut placements = vec![Placement::default(); nodes.len()];
        let pipelines = self.inner.pipelines.load_full();
        let mut governed = by_policy(nodes);
        let mut asked = Vec::new();
        for policy in &pipelines.policies {
            let Some(Governed { places, nodes }) = governed.remove(policy.name.as_str()) else { continue };
            let question = Question { stage, pod: Arc::clone(&pod), nodes, deadline };
            asked.push((places, self.ask(policy, now, question)));
        }
        for (places, asked) in asked {
            for (index, placement) in places.into_iter().zip(asked.placements(None)) {
                if let Some(place) = placements.get_mut(index) {
                    *place = placement;
                }
            }
        }
        placements
    }

    /// Some entry of some policy has a say about placement.
    pub fn has_placement(&self) -> bool {
        let pipelines = self.inner.pipelines.load();
        pipelines.policies.iter().any(|policy| policy.enforce.iter().chain(&policy.audit).any(places))
    }

    /// What holds for the vnodes of this host when it cannot be asked at all: `Ignore` if that is what every entry that
    /// places says.
    pub fn place_on_error(&self) -> OnError {
        let pipelines = self.inner.pipelines.load();
        let mut entries = pipelines.policies.iter().flat_map(|policy| &policy.enforce);
        if entries.any(|entry| places(entry) && entry.on_error() != OnError::Ignore) {
            OnError::Deny
        } else {
            OnError::Ignore
        }
    }

    /// Asks the entries of one policy; nobody waits yet.
    pub(crate) fn ask<'p>(&self, policy: &'p Arc<Policy>, now: Timestamp, question: Question) -> Asked<'p> {
        let entries = policy.enforce.iter().map(|entry| (entry, false));
        let audits = policy.audit.iter().map(|entry| (entry, true));
        let entries: Vec<(&Entry, bool)> = entries.chain(audits).filter(|(entry, _)| places(entry)).collect();
        let question = Arc::new(question);
        let at = Instant { at: now, civil: civil_now(now, &policy.zone) };
        let (sender, answers) = channel();
        // An invalid policy runs no module (PO-526); what its entries would have said stands as for any failure.
        for (place, (entry, _)) in entries.iter().enumerate().filter(|_| policy.invalid.is_none()) {
            let (slot, facts) = (Arc::clone(&entry.slot), Arc::clone(&policy.facts));
            let (question, sender, host) = (Arc::clone(&question), sender.clone(), Arc::clone(&self.inner));
            let lane =
                if entry.may_take_long(Decision::Place, at.unix()) { Lane::Apart } else { Lane::Common };
            let job = move || {
                let mut work = Work { lane, ..Work::default() };
                let running = slot.running();
                let given = evaluate(&slot, running.as_ref(), &facts, &at, &question, &mut work);
                // Whoever asked may no longer wait.
                let _: Result<(), _> = sender.send((place, given));
                if work.changed {
                    (host.changed)();
                }
            };
            let pool = if lane == Lane::Apart {
                &self.inner.engine.inner.apart
            } else {
                &self.inner.engine.inner.units
            };
            pool.try_submit(job);
        }
        Asked { policy, question, entries, answers }
    }
}

/// A question whose entries have been asked.
pub(crate) struct Asked<'p> {
    policy: &'p Arc<Policy>,
    question: Arc<Question>,
    /// With whether it only reports, those that decide first.
    entries: Vec<(&'p Entry, bool)>,
    /// With the entry's place.
    answers: Receiver<(usize, Vec<PlaceOutcome>)>,
}

impl Asked<'_> {
    /// What holds for each candidate. Waits for the answers until the deadline; `trace` collects what the entries say about
    /// the first candidate.
    pub(crate) fn placements(self, mut trace: Option<&mut Vec<PlaceStep>>) -> Vec<Placement> {
        let mut drafts = vec![PlaceDraft::default(); self.question.nodes.len()];
        let mut outcomes = self.outcomes();
        for (place, (entry, audit)) in self.entries.iter().enumerate() {
            let given = outcomes.remove(&place);
            let given = given.unwrap_or_else(|| drafts.iter().map(|_| Err(late(self.policy))).collect());
            if *audit {
                note_differences(entry, &self.question, &drafts, &given);
            } else {
                for (draft, outcome) in drafts.iter_mut().zip(&given) {
                    match outcome {
                        Ok(answer) => draft.answer(&entry.slot.label, entry.spec.weight, answer),
                        Err(why) => {
                            draft.no_answer(&entry.slot.label, self.question.stage, entry.on_error(), why);
                        }
                    }
                }
            }
            if let (Some(steps), Some(draft), Some(outcome)) = (&mut trace, drafts.first(), given.first()) {
                steps.push(PlaceStep::new(entry, *audit, outcome, draft));
            }
        }
        drafts.into_iter().map(PlaceDraft::finish).collect()
    }

    /// Outcomes by the entry's place; an entry that is late, or found no room in the queue, is missing. What has come is taken
    /// even after the deadline.
    fn outcomes(&self) -> BTreeMap<usize, Vec<PlaceOutcome>> {
        let mut outcomes = BTreeMap::new();
        loop {
            let left = self.question.deadline.saturating_duration_since(crate::clock::stopwatch());
            let Ok((place, given)) = self.answers.recv_timeout(left) else { return outcomes };
            outcomes.insert(place, given);
        }
    }
}

/// Candidates of one policy, and their places in the request.
#[derive(Default)]
struct Governed {
    places: Vec<usize>,
    nodes: Vec<Arc<NodeFacts>>,
}

impl Governed {
    fn push(&mut self, place: usize, node: Arc<NodeFacts>) {
        self.places.push(place);
        self.nodes.push(node);
    }
}

/// Candidates by the policy that governs them. Facts are moved: counting one more reference to each of thousands is an
/// access to memory far apart.
fn by_policy(nodes: Vec<PlaceNode>) -> BTreeMap<Arc<str>, Governed> {
    let mut groups: BTreeMap<Arc<str>, Governed> = BTreeMap::new();
    let mut nodes = nodes.into_iter().enumerate().peekable();
    while let Some((place, node)) = nodes.next() {
        let Some(policy) = node.policy else { continue };
        // Candidates of one policy mostly come one after the other.
        let governed = groups.entry(Arc::clone(&policy)).or_default();
        governed.push(place, node.facts);
        while let Some((place, node)) = nodes.next_if(|(_, node)| node.policy.as_ref() == Some(&policy)) {
            governed.push(place, node.facts);
        }
    }
    groups
}

/// Whether an entry has a say about placement. One that never ran may have: its `onError` must hold at every stage.
fn places(entry: &Entry) -> bool {
    let wanted = entry.spec.decisions.as_ref().is_none_or(|list| list.contains(&Decision::Place));
    wanted && entry.slot.running().map_or(!entry.spec.module.is_builtin(), |running| running.place)
}

fn late(policy: &Policy) -> NoAnswer {
    let text = match &policy.invalid {
        Some(message) => format!("the policy is invalid: {message}").into(),
        None => "Timeout: no answer within the time of the request".into(),
    };
    NoAnswer { text, loading: false, pending: false, retry_at: None }
}

/// Notes what an Audit entry would have changed, the latest per node (PO-805).
fn note_differences(entry: &Entry, question: &Question, drafts: &[PlaceDraft], given: &[PlaceOutcome]) {
    let mut differences = entry.slot.place_audit.lock();
    for ((node, draft), outcome) in question.nodes.iter().zip(drafts).zip(given) {
        let Ok(answer) = outcome else { continue };
        let Some(change) = draft.difference(entry.spec.weight, answer) else {
            differences.remove(&node.node_name);
            continue;
        };
        let (pod, vnode) = (&question.pod, &node.vnode_name);
        let text = format!("{vnode}: {}/{} {change}", pod.namespace, pod.name);
        // A scheduler asks again about a pod that waits; that is no news.
        if differences.get(&node.node_name) != Some(&text) {
            crate::entry::counters::add(&entry.slot.counters.audit_differences, 1);
            differences.insert(node.node_name.clone(), text);
        }
    }
}

#[cfg(test)]
mod tests;
