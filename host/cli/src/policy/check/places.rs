//! What is tried with random pods and vnodes: an answer about a candidate does not depend on the others.
//!
//! A module that places promises nothing about later.

use std::sync::Arc;

use jiff::Timestamp;
use kubeocean_engine::{NodeFacts, PlaceRowAnswer, PodFacts, Stage};
use serde_json::Value;

use super::{
    pods::{PodVocabulary, pod},
    rows::{Random, Vocabulary, nodes},
    trials::{DAY, FIRST_MOMENT, Misbehaviour, Trial, attempted, json, local, moment},
};

/// Vnodes each module is tried on, over all pods.
pub(super) const ROWS: usize = 1000;
const STAGES: [Stage; 2] = [Stage::Schedule, Stage::Admit];
/// Each vnode is a step of both stages.
pub(super) const STEPS: usize = STAGES.len() * ROWS;
/// Candidates of one pod.
const CANDIDATES: usize = 25;

/// A pod at a moment.
struct Question<'q> {
    trial: &'q Trial<'q>,
    at: Timestamp,
    stage: Stage,
    pod: &'q PodFacts,
}

/// Asks about some vnodes for each of many pods at both stages, again in another order and about each vnode alone.
/// Returns how many pods there were.
pub(super) fn purity(trial: &Trial<'_>, settings: &Value, seed: u64) -> Result<usize, Misbehaviour> {
    let mut random = Random::new(seed);
    let (of_vnodes, of_pods) = trial.module.place_facts();
    let of_pods = PodVocabulary::new(of_pods, settings);
    let vnodes: Vec<Arc<NodeFacts>> = nodes(&mut random, &Vocabulary::new(of_vnodes, &[], settings), ROWS)
        .into_iter()
        .map(Arc::new)
        .collect();
    let mut asked = 0;
    for candidates in vnodes.chunks(CANDIDATES) {
        let pod = pod(&mut random, &of_pods, asked);
        let at = moment(FIRST_MOMENT + random.below(365 * DAY));
        for stage in STAGES {
            Question { trial, at, stage, pod: &pod }.purity(candidates)?;
        }
        asked += 1;
    }
    Ok(asked)
}

impl Question<'_> {
    fn purity(&self, candidates: &[Arc<NodeFacts>]) -> Result<(), Misbehaviour> {
        let forwards = self.ask(candidates)?;
        let reversed: Vec<Arc<NodeFacts>> = candidates.iter().rev().cloned().collect();
        let mut backwards = self.ask(&reversed)?;
        backwards.reverse();
        for ((vnode, answer), again) in candidates.iter().zip(&forwards).zip(&backwards) {
            self.compare(vnode, answer, again, "in another order")?;
            let alone = self.ask(std::slice::from_ref(vnode))?;
            if let Some(alone) = alone.first() {
                self.compare(vnode, answer, alone, "alone")?;
            }
            self.trial.bar.step();
        }
        Ok(())
    }

    fn ask(&self, candidates: &[Arc<NodeFacts>]) -> Result<Vec<PlaceRowAnswer>, Misbehaviour> {
        let Self { trial: Trial { module, zone, .. }, at, stage, pod } = *self;
        attempted(
            || module.place(stage, at, zone, pod, candidates),
            || {
                let vnodes: Vec<&NodeFacts> = candidates.iter().map(AsRef::as_ref).collect();
                format!("{} for {} among {}", self.when(), json(pod), json(&vnodes))
            },
        )
    }

    fn compare(
        &self,
        vnode: &NodeFacts,
        answer: &PlaceRowAnswer,
        again: &PlaceRowAnswer,
        how: &str,
    ) -> Result<(), Misbehaviour> {
        if answer == again {
            return Ok(());
        }
        Err(Misbehaviour {
            code: "NotPure",
            message: format!(
                "asked {how} {}, the same pod and vnode get another answer: {}; {}; {}",
                self.when(),
                difference(answer, again),
                json(self.pod),
                json(vnode)
            ),
        })
    }

    fn when(&self) -> String {
        let stage = match self.stage {
            Stage::Schedule => "schedule",
            Stage::Admit => "admit",
        };
        format!("at {} at stage {stage}", local(self.trial.zone, self.at))
    }
}

/// The first member that differs.
fn difference(a: &PlaceRowAnswer, b: &PlaceRowAnswer) -> String {
    if a.fit != b.fit {
        format!("{}, then {}", a.fit, b.fit)
    } else if a.score == b.score {
        format!("reason {}, then {}", json(&a.reason), json(&b.reason))
    } else {
        format!("score {}, then {}", json(&a.score), json(&b.score))
    }
}
