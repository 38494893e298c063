//! One entry asked about one pod and all its candidates: one work unit (PO-801, PO-802, PO-904, PO-1003).
//!
//! In: a question. Out: per candidate an answer or why there is none. Caller: `host`, on a worker thread. Invariant: an
//! entry in quarantine answers nothing, and after the deadline of the question no further call is begun.

use std::sync::Arc;
use std::time::Instant as Deadline;

use crate::config::PLACE_ROWS;
use crate::entry::counters::add;
use crate::entry::evaluate::{
    Instant, Lane, NoAnswer, Work, failed, has_time, measured, no_answer, not_pure, not_running, quarantined,
    row_by_row,
};
use crate::entry::health::Permission;
use crate::entry::memo::Lookup;
use crate::entry::running::Running;
use crate::entry::slot::Slot;
use crate::facts::{NodeFacts, PolicyFacts};
use crate::fault::{CallError, Fault, FaultKind};
use crate::place::answer::{PlaceAnswer, Stage, check_output};
use crate::place::facts::PodFacts;
use crate::place::health::PodHealth;
use crate::place::needs::PlaceRows;
use crate::wasm::bindings::types;
use crate::wasm::place_unit::PlaceUnit;

/// Longest row of which an answer is remembered: there is one for each pod that waits, and users write annotations as long as
/// they like. The module is asked again about longer ones.
const REMEMBERED_ROW_BYTES: usize = 8 << 10;

/// One pod and its candidates.
pub(crate) struct Question {
    pub(crate) stage: Stage,
    pub(crate) pod: Arc<PodFacts>,
    pub(crate) nodes: Vec<Arc<NodeFacts>>,
    /// When whoever asks no longer waits.
    pub(crate) deadline: Deadline,
}

impl Question {
    fn is_over(&self) -> bool {
        crate::clock::stopwatch() >= self.deadline
    }

    fn health<'q>(&'q self, running: &'q Running) -> PodHealth<'q> {
        PodHealth { all: &running.place_health, pod: &self.pod }
    }
}

/// Outcome of one candidate.
pub(crate) type PlaceOutcome = Result<Arc<PlaceAnswer>, NoAnswer>;

/// Answers a question in the order of its candidates.
pub(crate) fn evaluate(
    slot: &Slot,
    running: Option<&Arc<Running>>,
    facts: &Arc<PolicyFacts>,
    now: &Instant,
    question: &Question,
    work: &mut Work,
) -> Vec<PlaceOutcome> {
    let nobody = |none: &NoAnswer| question.nodes.iter().map(|_| Err(none.clone())).collect();
    let Some(running) = running else { return nobody(&not_running(slot)) };
    if question.is_over() {
        return nobody(&too_late());
    }
    let rows = rows_of(running, facts, now.civil.utc_offset_seconds, question);
    let health = question.health(running);
    work.changed |= health.forget_old(now.unix());
    let permission = health.ask(now.unix());
    match permission {
        Permission::Call => {}
        Permission::Stay => return nobody(&quarantined(&health)),
        Permission::Probe => {
            if let Err(error) = call(slot, running, now, question, &rows.only(std::iter::once(0))) {
                failed(slot, &health, now, &error, work);
                return nobody(&quarantined(&health));
            }
            health.recover();
            tracing::info!(entry = &*slot.label, "policy entry left quarantine");
            work.changed = true;
        }
    }
    match question.stage {
        Stage::Schedule => ask(slot, running, now, question, &rows, work),
        Stage::Admit => remembered(slot, running, now, question, &rows, work),
    }
}

/// What the entry sees of a question. Facts for an admission are made for it alone, so that nothing of them is known.
fn rows_of(running: &Running, facts: &Arc<PolicyFacts>, offset: i32, question: &Question) -> PlaceRows {
    let (needs, pod) = (&running.place_needs, &question.pod);
    if question.stage == Stage::Admit {
        return PlaceRows::project(needs, facts, pod, question.nodes.iter().map(AsRef::as_ref), offset);
    }
    // Whoever asks at the same time finds nothing known, and waits for nobody.
    let mut known = std::mem::take(&mut *running.place_known.lock());
    known.begin(facts, offset);
    let rows = PlaceRows::knowing(needs, facts, pod, &question.nodes, offset, &mut known);
    let mut place = running.place_known.lock();
    if place.len() < known.len() {
        std::mem::swap(&mut *place, &mut known);
    }
    // What is dropped is dropped without the lock.
    drop(place);
    rows
}

fn too_late() -> NoAnswer {
    NoAnswer {
        text: "Timeout: the time of the request is over".into(),
        loading: false,
        pending: false,
        retry_at: None,
    }
}

/// The start of the next minute of the local clock: a module may look at the clock, and no more closely than that
/// without a *later*.
fn next_minute(now: &Instant) -> i64 {
    let local = now.unix() + i64::from(now.civil.utc_offset_seconds);
    now.unix() + 60 - local.rem_euclid(60)
}

/// A waiting pod is asked about again and again, mostly with the same facts (PO-1003).
fn remembered(
    slot: &Slot,
    running: &Arc<Running>,
    now: &Instant,
    question: &Question,
    rows: &PlaceRows,
    work: &mut Work,
) -> Vec<PlaceOutcome> {
    let mut answers: Vec<Option<PlaceOutcome>> = Vec::with_capacity(rows.len());
    let mut missing = Vec::new();
    {
        let memo = running.place_memo.lock();
        for row in 0..rows.len() {
            let (counter, answer) = match memo.look_up(&rows.key(row), now.unix()) {
                Lookup::Hit(answer, _) => (&slot.counters.memo_hits, Some(Ok(answer))),
                // Placement promises nothing, so an old answer is only old.
                Lookup::Promised(_) | Lookup::Expired => (&slot.counters.memo_expired, None),
                Lookup::Miss => (&slot.counters.memo_misses, None),
            };
            add(counter, 1);
            if answer.is_none() {
                missing.push(row);
            }
            answers.push(answer);
        }
    }
    if !missing.is_empty() {
        let asked = ask(slot, running, now, question, &rows.only(missing.iter().copied()), work);
        let minute = next_minute(now);
        let mut memo = running.place_memo.lock();
        for (row, outcome) in missing.into_iter().zip(asked) {
            if let Ok(answer) = &outcome {
                let until = answer.valid_until.map_or(minute, |until| until.min(minute));
                let kept = PlaceAnswer { valid_until: Some(until), ..PlaceAnswer::clone(answer) };
                let key = rows.key(row);
                if key.len() <= REMEMBERED_ROW_BYTES {
                    memo.store(&key, &kept, now.unix(), rows.len());
                }
            }
            if let Some(place) = answers.get_mut(row) {
                *place = Some(outcome);
            }
        }
    }
    answers.into_iter().map(|answer| answer.unwrap_or_else(|| Err(too_late()))).collect()
}

/// Asks the module, and counts what it says.
fn ask(
    slot: &Slot,
    running: &Arc<Running>,
    now: &Instant,
    question: &Question,
    rows: &PlaceRows,
    work: &mut Work,
) -> Vec<PlaceOutcome> {
    let answers = if rows.len() <= PLACE_ROWS {
        batch(slot, running, now, question, rows, work)
    } else {
        let all: Vec<usize> = (0..rows.len()).collect();
        let parts = all.chunks(PLACE_ROWS).map(|part| rows.only(part.iter().copied()));
        parts.flat_map(|part| batch(slot, running, now, question, &part, work)).collect()
    };
    slot.counters.place.rows(answers.iter().flatten().map(|answer| answer.fit));
    add(&slot.counters.place.errors, answers.iter().filter(|answer| answer.is_err()).count());
    answers
}

/// One call for all rows; after a fault row by row in fresh instances, until three faults have occurred (PO-801).
fn batch(
    slot: &Slot,
    running: &Arc<Running>,
    now: &Instant,
    question: &Question,
    rows: &PlaceRows,
    work: &mut Work,
) -> Vec<PlaceOutcome> {
    if question.is_over() {
        return (0..rows.len()).map(|_| Err(too_late())).collect();
    }
    let error = match asked(slot, running, now, question, rows) {
        Ok(answers) => {
            recheck(slot, running, now, question.stage, rows, &answers);
            return answers.into_iter().map(Ok).collect();
        }
        Err(error) => error,
    };
    let health = question.health(running);
    failed(slot, &health, now, &error, work);
    // A lost time limit is lost for every row: the scheduler does not wait for three of them.
    let timeless = |error: &CallError| !has_time(Lane::Common, error);
    if matches!(error, CallError::Policy(_)) || rows.len() == 1 || timeless(&error) {
        let none = no_answer(&health, now, &error);
        return (0..rows.len()).map(|_| Err(none.clone())).collect();
    }
    row_by_row(
        rows.len(),
        error,
        |last| !timeless(last) && !question.is_over(),
        |row| asked(slot, running, now, question, &rows.only(std::iter::once(row))),
        |error| failed(slot, &health, now, error, work),
        |error| no_answer(&health, now, error),
    )
}

/// A work unit whose answers are given to whoever asks, and so recorded.
fn asked(
    slot: &Slot,
    running: &Arc<Running>,
    now: &Instant,
    question: &Question,
    rows: &PlaceRows,
) -> Result<Vec<Arc<PlaceAnswer>>, CallError> {
    let answers = call(slot, running, now, question, rows)?;
    slot.recorder.place.record(slot, running, now, question, rows, &answers);
    Ok(answers)
}

/// A work unit with its measurements.
fn call(
    slot: &Slot,
    running: &Running,
    now: &Instant,
    question: &Question,
    rows: &PlaceRows,
) -> Result<Vec<Arc<PlaceAnswer>>, CallError> {
    let span =
        tracing::trace_span!("place_unit", entry = &*slot.label, digest = %running.digest, rows = rows.len());
    let _in_span = span.enter();
    let note = |took| slot.counters.place.call(took);
    measured(&question.health(running), note, || run(running, question.stage, now.civil, rows))
}

/// One work unit: fresh instance, one call, output checked.
pub(crate) fn run(
    running: &Running,
    stage: Stage,
    now: types::Now,
    rows: &PlaceRows,
) -> Result<Vec<Arc<PlaceAnswer>>, CallError> {
    let Some(pre) = &running.prepared.place else {
        return Err(Fault::invalid("the module does not export place").into());
    };
    let mut unit = PlaceUnit::create(pre, &running.caller, &running.settings)?;
    let answers = run_in(running, &mut unit, stage, now, rows);
    running.dropped(unit.dropped_lines());
    answers
}

/// One call of an instance, output checked.
pub(crate) fn run_in(
    running: &Running,
    unit: &mut PlaceUnit,
    stage: Stage,
    now: types::Now,
    rows: &PlaceRows,
) -> Result<Vec<Arc<PlaceAnswer>>, CallError> {
    let needs = &running.place_needs;
    let (pod, nodes) = (rows.pod_frame(needs), rows.node_frame(needs));
    let output = unit.place(stage, now, &pod.frame(), &nodes.frame())?;
    Ok(check_output(&output, rows.len(), now.unix_seconds)?)
}

/// Runs one in so many batches again with the rows reversed. Reports, changes nothing (PO-1005).
fn recheck(
    slot: &Slot,
    running: &Running,
    now: &Instant,
    stage: Stage,
    rows: &PlaceRows,
    answers: &[Arc<PlaceAnswer>],
) {
    if rows.len() < 2 || !slot.counters.batch().is_multiple_of(slot.recheck_every.max(1)) {
        return;
    }
    match run(running, stage, now.civil, &rows.only((0..rows.len()).rev())) {
        Ok(again) if again.iter().rev().eq(answers) => return,
        // A busy machine, not another answer.
        Err(CallError::Fault(fault)) if fault.kind == FaultKind::Timeout => return,
        Ok(_) | Err(_) => {}
    }
    not_pure(slot, now);
}
