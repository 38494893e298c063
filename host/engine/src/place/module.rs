//! One module asked about placement outside of any policy: for `kubeocean policy` and for benches.

use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::answer::Reason;
use crate::civil::civil_now;
use crate::cost::UnitCost;
use crate::facts::NodeFacts;
use crate::module::{CallFailed, Module};
use crate::place::answer::{Fit, PlaceAnswer, Stage};
use crate::place::evaluate::run_in;
use crate::place::facts::PodFacts;
use crate::place::needs::PlaceRows;
use crate::wasm::place_unit::PlaceUnit;

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
        self.open_place()?.place(stage, now, zone, pod, nodes)
    }

    /// An instance that answers several calls about places and tells what they cost. Decisions never use one.
    pub fn open_place(&self) -> Result<OpenPlace, CallFailed> {
        let pre = self.running.prepared.place.as_ref().filter(|_| self.running.place);
        let Some(pre) = pre else {
            return Err(CallFailed("WrongWorld: the module does not export place".to_owned()));
        };
        let unit = PlaceUnit::create(pre, &self.running.caller, &self.running.settings)?;
        Ok(OpenPlace { unit, module: self.clone() })
    }
}

/// See [`Module::open_place`].
pub struct OpenPlace {
    unit: PlaceUnit,
    module: Module,
}

impl std::fmt::Debug for OpenPlace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenPlace").field("module", &self.module).finish_non_exhaustive()
    }
}

impl OpenPlace {
    /// One call with all candidates.
    pub fn place(
        &mut self,
        stage: Stage,
        now: Timestamp,
        zone: &TimeZone,
        pod: &PodFacts,
        nodes: &[Arc<NodeFacts>],
    ) -> Result<Vec<PlaceRowAnswer>, CallFailed> {
        let (running, now) = (&self.module.running, civil_now(now, zone));
        let nodes = nodes.iter().map(AsRef::as_ref);
        let rows =
            PlaceRows::project(&running.place_needs, &self.module.facts, pod, nodes, now.utc_offset_seconds);
        let answers = run_in(running, &mut self.unit, stage, now, &rows)?;
        Ok(answers.iter().map(|answer| PlaceRowAnswer::from(&**answer)).collect())
    }

    /// What this instance has cost so far, `create` included.
    pub fn cost(&self) -> UnitCost {
        self.unit.cost()
    }
}
