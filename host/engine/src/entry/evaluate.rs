//! One work unit of one entry: memo, guest call for what is missing, faults, quarantine (PO-801, PO-802, PO-1001).
//!
//! In: at most [`crate::config::LEASE_ROWS`] nodes with what earlier entries left of them. Out: per node an answer
//! or why there is none. Caller: `decide`, on a worker thread. Invariant: an entry in quarantine answers nothing, not
//! even from its memo, because its `onError` says what holds.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::counters::add;
use super::health::{Failure, MAX_FAULTS, Patient, Permission};
use super::memo::{Lookup, Memo};
use super::running::Running;
use super::slot::Slot;
use crate::answer::Answer;
use crate::compose::Amount;
use crate::facts::{NodeFacts, PolicyFacts};
use crate::fault::{CallError, Fault, FaultKind};
use crate::frame::{RowKey, project};
use crate::wasm::bindings::types;

/// Why a row has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NoAnswer {
    pub(crate) text: Arc<str>,
    /// The entry is still being fetched or loaded, so this may pass by itself.
    pub(crate) loading: bool,
    /// Nothing has failed so far: the first load is under way.
    pub(crate) pending: bool,
    /// When the entry is tried again by itself.
    pub(crate) retry_at: Option<i64>,
}

/// A good answer about one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) answer: Arc<Answer>,
    /// Unix second at which the row is asked again whatever the answer promised (PO-1004).
    pub(crate) refresh_at: i64,
    /// [`Memo::asked`] of the row.
    pub(crate) asked: u32,
}

/// Outcome of one row.
pub(crate) type Outcome = Result<Said, NoAnswer>;

/// One node to ask about.
pub(crate) struct Ask<'n> {
    pub(crate) node: &'n NodeFacts,
    /// What earlier entries left of its resources.
    pub(crate) amounts: &'n [Amount<'n>],
}

/// Time of a decision, in the policy's zone.
#[derive(Clone, Copy)]
pub(crate) struct Instant {
    pub(crate) at: Timestamp,
    pub(crate) civil: types::Now,
}

impl Instant {
    pub(crate) fn unix(&self) -> i64 {
        self.civil.unix_seconds
    }
}

/// Where a work unit runs, and so how much time it may lose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Beside the units of every other policy: after the first timeout of an entry its rows wait for a later unit.
    #[default]
    Common,
    /// On the threads of entries that may take long: after a fault its rows are tried one by one (PO-801).
    Apart,
}

/// One work unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Work {
    pub(crate) lane: Lane,
    /// Something changed that other nodes must hear about.
    pub(crate) changed: bool,
}

/// Rows that are asked together: distinct keys, and which asks wait for each.
struct Missing {
    keys: Vec<RowKey>,
    promised: Vec<Option<Arc<Answer>>>,
    waiting: Vec<Vec<usize>>,
}

/// Answers `asks` in their order.
pub(crate) fn evaluate(
    slot: &Slot,
    running: Option<&Arc<Running>>,
    facts: &PolicyFacts,
    now: &Instant,
    asks: &[Ask<'_>],
    work: &mut Work,
) -> Vec<Outcome> {
    let nobody = |none: &NoAnswer| asks.iter().map(|_| Err(none.clone())).collect();
    let Some(running) = running else {
        return nobody(&not_running(slot));
    };
    let Some(first) = asks.first() else { return Vec::new() };
    let permission = running.lease_health.lock().ask(now.unix());
    match permission {
        Permission::Call => {}
        Permission::Stay => return nobody(&quarantined(&running.lease_health)),
        Permission::Probe => {
            if !probe(slot, running, facts, now, first, work) {
                return nobody(&quarantined(&running.lease_health));
            }
        }
    }
    let mut outcomes: Vec<Option<Outcome>> = vec![None; asks.len()];
    let missing = look_up(slot, running, facts, now, asks, &mut outcomes);
    let mut fresh = Vec::with_capacity(missing.keys.len());
    if !missing.keys.is_empty() {
        let answers = batch(slot, running, now, &missing.keys, work);
        let mut memo = running.memo.lock();
        let broken = missing.promised.iter().zip(&answers).filter(|(promised, outcome)| {
            let both = promised.as_ref().zip(outcome.as_ref().ok());
            both.is_some_and(|(before, answer)| !before.same_decision(answer))
        });
        let broken = broken.count();
        if broken > 0 {
            broken_promises(slot, &mut memo, now, broken, work);
        }
        for ((key, waiting), outcome) in missing.keys.into_iter().zip(missing.waiting).zip(answers) {
            let outcome = match outcome {
                Ok(answer) => {
                    slot.counters.row(answer.verdict);
                    let nodes = waiting.iter().filter_map(|index| asks.get(*index));
                    let nodes = nodes.map(|ask| ask.node.node_name.as_str());
                    slot.recorder.record(slot, running, now, (&key, nodes), &answer);
                    let refresh_at = now.unix().saturating_add(memo.refresh_seconds());
                    let asked = memo.asked(&key, refresh_at);
                    fresh.push((key, Arc::clone(&answer)));
                    Ok(Said { answer, refresh_at, asked })
                }
                Err(none) => {
                    add(&slot.counters.errors, 1);
                    Err(none)
                }
            };
            for index in waiting {
                if let Some(place) = outcomes.get_mut(index) {
                    *place = Some(outcome.clone());
                }
            }
        }
    }
    learn(slot, now, asks, &outcomes);
    // Room is made for the nodes that are known, so these are known first: units that run side by side would otherwise
    // push out each other's lines.
    let mut memo = running.memo.lock();
    let nodes = slot.known.lock().len().max(asks.len());
    for (key, answer) in fresh {
        memo.store(&key, &answer, now.unix(), nodes);
    }
    drop(memo);
    let lost = NoAnswer { text: "Trap: no answer".into(), loading: false, pending: false, retry_at: None };
    outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| Err(lost.clone()))).collect()
}

/// Why an entry without a running version gives no answer.
pub(crate) fn not_running(slot: &Slot) -> NoAnswer {
    let failure = slot.failure();
    let pending = !slot.settled();
    let loading = failure.as_ref().is_none_or(|error| error.passing);
    let text: Arc<str> = failure.map_or_else(|| "Loading".to_owned(), |error| error.to_string()).into();
    NoAnswer { text, loading, pending, retry_at: None }
}

fn look_up(
    slot: &Slot,
    running: &Arc<Running>,
    facts: &PolicyFacts,
    now: &Instant,
    asks: &[Ask<'_>],
    outcomes: &mut [Option<Outcome>],
) -> Missing {
    let mut missing = Missing { keys: Vec::new(), promised: Vec::new(), waiting: Vec::new() };
    let mut seen: HashMap<RowKey, usize, ahash::RandomState> = HashMap::default();
    let mut key = Vec::with_capacity(128);
    let (mut hits, mut misses, mut expired) = (0, 0, 0);
    let memo = running.memo.lock();
    let before = slot.known.lock();
    for (index, (ask, outcome)) in asks.iter().zip(outcomes).enumerate() {
        row(running, facts, now, ask, &mut key);
        let promised = match memo.look_up(&key, now.unix()) {
            Lookup::Hit(answer, refresh_at) => {
                hits += 1;
                let asked = memo.asked(&key, refresh_at);
                if !before.is_last(&ask.node.node_name, asked) {
                    slot.recorder.shares(running, &key, &ask.node.node_name);
                }
                *outcome = Some(Ok(Said { answer, refresh_at, asked }));
                continue;
            }
            Lookup::Promised(answer) => {
                expired += 1;
                Some(answer)
            }
            Lookup::Expired => {
                expired += 1;
                None
            }
            Lookup::Miss => {
                misses += 1;
                None
            }
        };
        let known = seen.get(key.as_slice()).and_then(|place| missing.waiting.get_mut(*place));
        if let Some(waiting) = known {
            waiting.push(index);
            continue;
        }
        let shared: RowKey = key.as_slice().into();
        seen.insert(Arc::clone(&shared), missing.keys.len());
        missing.keys.push(shared);
        missing.promised.push(promised);
        missing.waiting.push(vec![index]);
    }
    add(&slot.counters.memo_hits, hits);
    add(&slot.counters.memo_misses, misses);
    add(&slot.counters.memo_expired, expired);
    missing
}

/// Writes the row of one node to `key`.
pub(super) fn row(running: &Running, facts: &PolicyFacts, now: &Instant, ask: &Ask<'_>, key: &mut Vec<u8>) {
    key.clear();
    let proposed = |resource: &str| Amount::proposed_of(ask.amounts, resource);
    project(&running.needs, ask.node, facts, &proposed, now.civil.utc_offset_seconds, key);
}

fn learn(slot: &Slot, now: &Instant, asks: &[Ask<'_>], outcomes: &[Option<Outcome>]) {
    let mut known = slot.known.lock();
    for (ask, outcome) in asks.iter().zip(outcomes) {
        if let Some(Ok(said)) = outcome {
            known.learn(&ask.node.node_name, &said.answer, said.asked, now.unix());
        }
    }
}

/// Rows are asked twice as often from now on, however many changed at once, so every node has to hear when.
fn broken_promises(slot: &Slot, memo: &mut Memo<Answer>, now: &Instant, rows: usize, work: &mut Work) {
    memo.distrust();
    work.changed = true;
    add(&slot.counters.impure, rows);
    let text = "NotPure: an answer changed before its valid-until";
    slot.note_error(text.to_owned(), now.at);
    tracing::warn!(entry = &*slot.label, refresh_seconds = memo.refresh_seconds(), "{text}");
}

/// One row to an entry in quarantine. True when it answers: back to work.
fn probe(
    slot: &Slot,
    running: &Arc<Running>,
    facts: &PolicyFacts,
    now: &Instant,
    first: &Ask<'_>,
    work: &mut Work,
) -> bool {
    let mut key = Vec::new();
    row(running, facts, now, first, &mut key);
    match call(slot, running, now, &[RowKey::from(key)]) {
        Ok(_) => {
            running.lease_health.lock().recover();
            tracing::info!(entry = &*slot.label, "policy entry left quarantine");
            work.changed = true;
            true
        }
        Err(error) => {
            failed(slot, &running.lease_health, now, &error, work);
            false
        }
    }
}

pub(crate) fn quarantined(health: &impl Patient) -> NoAnswer {
    NoAnswer {
        text: "Quarantined: the module failed too often".into(),
        loading: false,
        pending: false,
        retry_at: health.next_probe(),
    }
}

/// One call for all rows; after a fault row by row in fresh instances, until three faults have occurred (PO-801).
fn batch(
    slot: &Slot,
    running: &Arc<Running>,
    now: &Instant,
    keys: &[RowKey],
    work: &mut Work,
) -> Vec<Result<Arc<Answer>, NoAnswer>> {
    let error = match call(slot, running, now, keys) {
        Ok(answers) => {
            recheck(slot, running, now, keys, &answers);
            return answers.into_iter().map(Ok).collect();
        }
        Err(error) => error,
    };
    failed(slot, &running.lease_health, now, &error, work);
    // The module's own `Err` speaks about all rows, and one row alone would fault again: it gets the same input.
    if matches!(error, CallError::Policy(_)) || keys.len() == 1 || !has_time(work.lane, &error) {
        return keys.iter().map(|_| Err(no_answer(&running.lease_health, now, &error))).collect();
    }
    let lane = work.lane;
    row_by_row(
        keys.len(),
        error,
        |last| has_time(lane, last),
        |row| call(slot, running, now, keys.get(row..=row).unwrap_or_default()),
        |error| failed(slot, &running.lease_health, now, error, work),
        |error| no_answer(&running.lease_health, now, error),
    )
}

/// After a call for all `rows` ended with `error`: each in a fresh instance, until three faults have occurred or it may not
/// go on (PO-801). Rows that succeed keep their answers, the others have `none`; `failed` notes each call that fails.
pub(crate) fn row_by_row<A>(
    rows: usize,
    error: CallError,
    may_go_on: impl Fn(&CallError) -> bool,
    one: impl Fn(usize) -> Result<Vec<Arc<A>>, CallError>,
    mut failed: impl FnMut(&CallError),
    none: impl Fn(&CallError) -> NoAnswer,
) -> Vec<Result<Arc<A>, NoAnswer>> {
    let mut faults = 1;
    let mut last = error;
    (0..rows)
        .map(|row| {
            if faults >= MAX_FAULTS || !may_go_on(&last) {
                return Err(none(&last));
            }
            match one(row).map(|mut answers| answers.pop()) {
                Ok(Some(answer)) => Ok(answer),
                Ok(None) => Err(none(&last)),
                Err(error) => {
                    failed(&error);
                    faults += usize::from(matches!(error, CallError::Fault(_)));
                    last = error;
                    Err(none(&last))
                }
            }
        })
        .collect()
}

/// Beside the units of other policies one lost time limit is all an entry gets (policy spec section 14).
pub(crate) fn has_time(lane: Lane, error: &CallError) -> bool {
    lane == Lane::Apart || !matches!(error, CallError::Fault(fault) if fault.kind == FaultKind::Timeout)
}

pub(crate) fn no_answer(health: &impl Patient, now: &Instant, error: &CallError) -> NoAnswer {
    let retry_at = Some(health.retry_at(now.unix()));
    NoAnswer { text: error.to_string().into(), loading: false, pending: false, retry_at }
}

/// Notes a failed call.
pub(crate) fn failed(slot: &Slot, health: &impl Patient, now: &Instant, error: &CallError, work: &mut Work) {
    match error {
        CallError::Policy(text) => {
            health.failed(Failure::Err, now.unix());
            slot.note_error(format!("Err: {text}"), now.at);
        }
        CallError::Fault(fault) => {
            slot.note_fault(fault, now.at);
            if health.failed(Failure::Fault(fault.kind), now.unix()) {
                tracing::warn!(entry = &*slot.label, %fault, "policy entry is quarantined");
                work.changed = true;
            }
        }
    }
}

/// A work unit with its measurements.
fn call(
    slot: &Slot,
    running: &Running,
    now: &Instant,
    keys: &[RowKey],
) -> Result<Vec<Arc<Answer>>, CallError> {
    let span = tracing::trace_span!("policy_unit", entry = &*slot.label, digest = %running.digest, rows = keys.len());
    let _in_span = span.enter();
    measured(&running.lease_health, |took| slot.counters.call(took), || running.run(now.civil, keys))
}

/// Runs a work unit, and notes how long it took and that it answered.
pub(crate) fn measured<A>(
    health: &impl Patient,
    note: impl FnOnce(Duration),
    run: impl FnOnce() -> Result<A, CallError>,
) -> Result<A, CallError> {
    let started = crate::clock::stopwatch();
    let answers = contained(run);
    note(started.elapsed());
    if answers.is_ok() {
        health.answered();
    }
    answers
}

/// Runs a work unit. A panic here would be wasmtime's or ours; it counts as a trap of this entry.
pub(super) fn contained<A>(run: impl FnOnce() -> Result<A, CallError>) -> Result<A, CallError> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|_| {
        Err(Fault::new(FaultKind::Trap, "the host failed while it ran the module").into())
    })
}

/// Runs one in so many batches of several rows again with the rows reversed. Reports, changes nothing (PO-1005).
fn recheck(slot: &Slot, running: &Running, now: &Instant, keys: &[RowKey], answers: &[Arc<Answer>]) {
    if keys.len() < 2 || !slot.counters.batch().is_multiple_of(slot.recheck_every.max(1)) {
        return;
    }
    let reversed: Vec<RowKey> = keys.iter().rev().cloned().collect();
    match running.run(now.civil, &reversed) {
        Ok(again) if again.iter().rev().eq(answers) => return,
        // A busy machine, not another answer.
        Err(CallError::Fault(fault)) if fault.kind == FaultKind::Timeout => return,
        Ok(_) | Err(_) => {}
    }
    not_pure(slot, now);
}

/// The order of rows made a difference.
pub(crate) fn not_pure(slot: &Slot, now: &Instant) {
    add(&slot.counters.impure, 1);
    let text = "NotPure: the same rows in another order got other answers";
    slot.note_error(text.to_owned(), now.at);
    tracing::warn!(entry = &*slot.label, "{text}");
}
