//! What each entry says about one pod on one vnode, for `kubeocean policy explain --pod`.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::answer::Reason;
use crate::host::PolicyHost;
use crate::pipeline::Entry;
use crate::place::answer::Fit;
use crate::place::compose::{PlaceDraft, Placement};
use crate::place::evaluate::{PlaceOutcome, Question};
use crate::place::host::{PlaceNode, PlaceRequest};

/// What one entry said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlaceStep {
    /// The entry.
    pub entry: String,
    /// It only reports.
    pub audit: bool,
    /// Its weight.
    pub weight: u8,
    /// Its answer; `None` when it gave none.
    pub fit: Option<Fit>,
    /// Its score; `None`: no opinion.
    pub score: Option<u8>,
    /// Its reason.
    pub reason: Option<Reason>,
    /// Why there was no answer.
    pub error: Option<String>,
    /// What holds after it.
    pub so_far: Fit,
}

impl PlaceStep {
    pub(crate) fn new(entry: &Entry, audit: bool, outcome: &PlaceOutcome, draft: &PlaceDraft) -> Self {
        let answer = outcome.as_ref().ok();
        Self {
            entry: entry.slot.entry.to_string(),
            audit,
            weight: entry.spec.weight,
            fit: answer.map(|answer| answer.fit),
            score: answer.and_then(|answer| answer.score),
            reason: answer.and_then(|answer| answer.reason.as_deref().cloned()),
            error: outcome.as_ref().err().map(|why| why.text.to_string()),
            so_far: draft.fit(),
        }
    }
}

impl PolicyHost {
    /// As [`PolicyHost::place`] for the first candidate, with what each entry said.
    pub fn explain_place(&self, now: Timestamp, request: PlaceRequest) -> (Placement, Vec<PlaceStep>) {
        let mut steps = Vec::new();
        let pipelines = self.inner.pipelines.load_full();
        let PlaceRequest { stage, pod, nodes, deadline } = request;
        let Some(PlaceNode { facts, policy: Some(governing) }) = nodes.into_iter().next() else {
            return (Placement::default(), steps);
        };
        let Some(policy) = pipelines.policies.iter().find(|policy| *policy.name == *governing) else {
            return (Placement::default(), steps);
        };
        let question = Question { stage, pod, nodes: vec![facts], deadline };
        let placement = self.ask(policy, now, question).placements(Some(&mut steps)).pop();
        (placement.unwrap_or_default(), steps)
    }
}
