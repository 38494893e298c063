//! The trial call of a place evaluator (PO-703): twice, in two instances, in two orders.

use std::sync::Arc;

use crate::entry::running::Running;
use crate::facts::{NodeFacts, PolicyFacts};
use crate::fault::CallError;
use crate::load::error::{LoadCode, LoadError};
use crate::load::trial::{SAMPLE_NODES, synthetic};
use crate::place::answer::Stage;
use crate::place::evaluate::run;
use crate::place::facts::PodFacts;
use crate::place::needs::PlaceRows;
use crate::wasm::bindings::types;

/// A pod no cluster has.
fn pod() -> PodFacts {
    PodFacts {
        name: "trial".to_owned(),
        namespace: "default".to_owned(),
        service_account: Some("default".to_owned()),
        scheduler_name: Some("default-scheduler".to_owned()),
        requests: [("cpu".to_owned(), 500), ("memory".to_owned(), 1 << 30)].into(),
        priority: Some(0),
        containers: 1,
        created_unix: Some(1_700_000_000),
        ..PodFacts::default()
    }
}

/// Runs the trial, in both stages.
pub(crate) fn trial(
    running: &Running,
    facts: &PolicyFacts,
    samples: &[Arc<NodeFacts>],
    now: types::Now,
) -> Result<(), LoadError> {
    let made = synthetic();
    let nodes = made.iter().chain(samples.iter().take(SAMPLE_NODES).map(AsRef::as_ref));
    let rows = PlaceRows::project(&running.place_needs, facts, &pod(), nodes, now.utc_offset_seconds);
    let reversed = rows.only((0..rows.len()).rev());
    let failed = |error: CallError| LoadError::of_guest(LoadCode::TrialFailed, &error);
    for stage in [Stage::Schedule, Stage::Admit] {
        let forwards = run(running, stage, now, &rows).map_err(failed)?;
        let backwards = run(running, stage, now, &reversed).map_err(failed)?;
        if !forwards.iter().eq(backwards.iter().rev()) {
            let text = "the same candidates in another order got other answers";
            return Err(LoadError::new(LoadCode::NotPure, text));
        }
    }
    Ok(())
}
