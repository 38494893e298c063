//! One module asked about placement outside of any policy: for `kubeocean policy` and for benches.

use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::answer::Reason;
use crate::civil::civil_now;
use crate::facts::NodeFacts;
use crate::module::{CallFailed, Module};
use crate::place::answer::{Fit, PlaceAnswer, Stage};
use crate::place::evaluate::run;
use crate::place::facts::PodFacts;
use crate::place::needs::PlaceRows;

/// Answer of a module about one candidate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlaceRowAnswer {
    /// Whether the pod may go there.
    pub fit: Fit,
    /// How good a place it is, 0..=100; `None`: no opinion.
    pub score: Option<u8>,
    /// Why.
    pub reason: Option<Reason>,
}

impl From<&PlaceAnswer> for PlaceRowAnswer {
    fn from(answer: &PlaceAnswer) -> Self {
        Self { fit: answer.fit, score: answer.score, reason: answer.reason.as_deref().cloned() }
    }
}

impl Module {
    /// Names of the facts it reads for places: about vnodes, and about pods.
    pub fn place_facts(&self) -> (&[String], &[String]) {
        let needs = &self.running.place_needs;
        (&needs.node.names, &needs.pod_names)
    }

    /// One work unit: fresh instance, `create`, one call with all candidates, nothing memoised.
    pub fn place(
        &self,
        stage: Stage,
        now: Timestamp,
        zone: &TimeZone,
        pod: &PodFacts,
        nodes: &[Arc<NodeFacts>],
    ) -> Result<Vec<PlaceRowAnswer>, CallFailed> {
        if !self.running.place {
            return Err(CallFailed("WrongWorld: the module does not export place".to_owned()));
        }
        let now = civil_now(now, zone);
        let nodes = nodes.iter().map(AsRef::as_ref);
        let rows =
            PlaceRows::project(&self.running.place_needs, &self.facts, pod, nodes, now.utc_offset_seconds);
        let answers = run(&self.running, stage, now, &rows)?;
        Ok(answers.iter().map(|answer| PlaceRowAnswer::from(&**answer)).collect())
    }
}
