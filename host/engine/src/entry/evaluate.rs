//! One work unit of one entry: memo, guest call for what is missing, faults, quarantine (PO-801, PO-802, PO-1001).
//!
//! In: at most [`crate::config::LEASE_ROWS`] nodes with what earlier entries left of them. Out: per node an answer
//! or why there is none. Caller: `compose`, on a worker thread.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::counters::add;
use super::health::{MAX_FAULTS, Permission};
use super::memo::Lookup;
use super::running::Running;
use super::slot::Slot;
use crate::answer::Answer;
use crate::compose::Amount;
use crate::facts::{NodeFacts, PolicyFacts};
use crate::fault::{CallError, Fault};
use crate::frame::{RowKey, project};
use crate::wasm::bindings::types;

/// One in so many guest batches is run again with its rows reversed (PO-1005).
const AUDIT_EVERY: u64 = 1000;

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

/// Outcome of one row.
pub(crate) type Outcome = Result<Arc<Answer>, NoAnswer>;

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

/// Whether something changed that other nodes must hear about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Changed(pub(crate) bool);

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
    changed: &mut Changed,
) -> Vec<Outcome> {
    let Some(running) = running else {
        let failure = slot.failure();
        let pending = failure.is_none();
        let loading = failure.as_ref().is_none_or(|error| error.code.is_fetch());
        let text: Arc<str> = failure.map_or_else(|| "Loading".to_owned(), |error| error.to_string()).into();
        let none = NoAnswer { text, loading, pending, retry_at: None };
        return asks.iter().map(|_| Err(none.clone())).collect();
    };
    let mut outcomes: Vec<Option<Outcome>> = vec![None; asks.len()];
    let missing = look_up(slot, running, facts, now, asks, &mut outcomes);
    if !missing.keys.is_empty() {
        let answers = ask_guest(slot, running, now, &missing.keys, changed);
        let mut memo = running.memo.lock();
        let nodes = slot.known.lock().len().max(asks.len());
        for (((key, promised), waiting), outcome) in
            missing.keys.into_iter().zip(missing.promised).zip(missing.waiting).zip(answers)
        {
            match &outcome {
                Ok(answer) => {
                    if promised.is_some_and(|before| !before.same_decision(answer)) {
                        broken_promise(slot, &mut memo, now);
                    }
                    slot.counters.row(answer.verdict);
                    slot.recorder.record(slot, running, now, &key, answer);
                    memo.store(key, Arc::clone(answer), now.unix(), nodes);
                }
                Err(_) => add(&slot.counters.errors, 1),
            }
            for index in waiting {
                if let Some(place) = outcomes.get_mut(index) {
                    *place = Some(outcome.clone());
                }
            }
        }
    }
    learn(slot, now, asks, &outcomes);
    let lost = NoAnswer { text: "Trap: no answer".into(), loading: false, pending: false, retry_at: None };
    outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| Err(lost.clone()))).collect()
}

fn look_up(
    slot: &Slot,
    running: &Running,
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
    for (index, (ask, outcome)) in asks.iter().zip(outcomes).enumerate() {
        key.clear();
        project(
            &running.needs,
            ask.node,
            facts,
            &|r| Amount::proposed_of(ask.amounts, r),
            now.civil.utc_offset_seconds,
            &mut key,
        );
        let promised = match memo.look_up(&key, now.unix()) {
            Lookup::Hit(answer) => {
                hits += 1;
                *outcome = Some(Ok(answer));
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

fn learn(slot: &Slot, now: &Instant, asks: &[Ask<'_>], outcomes: &[Option<Outcome>]) {
    let mut known = slot.known.lock();
    for (ask, outcome) in asks.iter().zip(outcomes) {
        if let Some(Ok(answer)) = outcome {
            known.learn(&ask.node.node_name, answer, now.unix());
        }
    }
}

fn broken_promise(slot: &Slot, memo: &mut super::memo::Memo, now: &Instant) {
    memo.distrust();
    add(&slot.counters.impure, 1);
    let text = "NotPure: an answer changed before its valid-until";
    slot.note_error(text.to_owned(), now.at);
    tracing::warn!(entry = &*slot.label, refresh_seconds = memo.refresh_seconds(), "{text}");
}

/// Distinct rows to the guest, if it may be called.
fn ask_guest(
    slot: &Slot,
    running: &Arc<Running>,
    now: &Instant,
    keys: &[RowKey],
    changed: &mut Changed,
) -> Vec<Outcome> {
    let permission = running.health.lock().ask(now.unix());
    match permission {
        Permission::Call => batch(slot, running, now, keys, changed),
        Permission::Stay => keys.iter().map(|_| Err(quarantined(running))).collect(),
        Permission::Probe => {
            let Some((probe, _)) = keys.split_first() else { return Vec::new() };
            match call(slot, running, now, std::slice::from_ref(probe)) {
                Ok(_) => {
                    running.health.lock().recover();
                    tracing::info!(entry = &*slot.label, "policy entry left quarantine");
                    changed.0 = true;
                    batch(slot, running, now, keys, changed)
                }
                Err(error) => {
                    fault(slot, running, now, &error, changed);
                    keys.iter().map(|_| Err(quarantined(running))).collect()
                }
            }
        }
    }
}

fn quarantined(running: &Running) -> NoAnswer {
    let retry_at = running.health.lock().next_probe();
    NoAnswer {
        text: "Quarantined: the module failed too often".into(),
        loading: false,
        pending: false,
        retry_at,
    }
}

/// One call for all rows; after a fault row by row in fresh instances, until three faults have occurred (PO-801).
fn batch(
    slot: &Slot,
    running: &Arc<Running>,
    now: &Instant,
    keys: &[RowKey],
    changed: &mut Changed,
) -> Vec<Outcome> {
    let error = match call(slot, running, now, keys) {
        Ok(answers) => {
            recheck(slot, running, now, keys, &answers);
            return answers.into_iter().map(Ok).collect();
        }
        Err(error) => error,
    };
    let is_fault = fault(slot, running, now, &error, changed);
    // The module's own `Err` speaks about all rows, and one row alone would fault again: it gets the same input.
    if !is_fault || keys.len() == 1 {
        return keys.iter().map(|_| Err(no_answer(running, &error))).collect();
    }
    let mut faults = 1;
    keys.iter()
        .map(|key| {
            if faults >= MAX_FAULTS {
                return Err(no_answer(running, &error));
            }
            let one = call(slot, running, now, std::slice::from_ref(key));
            match one.map(|mut answers| answers.pop()) {
                Ok(Some(answer)) => Ok(answer),
                Ok(None) => Err(no_answer(running, &error)),
                Err(error) => {
                    faults += usize::from(fault(slot, running, now, &error, changed));
                    Err(no_answer(running, &error))
                }
            }
        })
        .collect()
}

fn no_answer(running: &Running, error: &CallError) -> NoAnswer {
    let retry_at = running.health.lock().next_probe();
    NoAnswer { text: error.to_string().into(), loading: false, pending: false, retry_at }
}

/// Notes a failed call. True for a fault, false for the module's own `Err`.
fn fault(slot: &Slot, running: &Running, now: &Instant, error: &CallError, changed: &mut Changed) -> bool {
    match error {
        CallError::Policy(text) => {
            slot.note_error(format!("Err: {}", crate::text::printable(text, 512)), now.at);
            false
        }
        CallError::Fault(fault) => {
            slot.note_fault(fault, now.at);
            if running.health.lock().fault(now.unix()) {
                tracing::warn!(entry = &*slot.label, %fault, "policy entry is quarantined");
                changed.0 = true;
            }
            true
        }
    }
}

/// A work unit with its measurements. A panic here would be wasmtime's or ours; it counts as a trap of this entry.
fn call(
    slot: &Slot,
    running: &Running,
    now: &Instant,
    keys: &[RowKey],
) -> Result<Vec<Arc<Answer>>, CallError> {
    let span = tracing::trace_span!("policy_unit", entry = &*slot.label, digest = %running.digest, rows = keys.len());
    let _in_span = span.enter();
    let started = crate::clock::stopwatch();
    let answers = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| running.run(now.civil, keys)))
        .unwrap_or_else(|_| {
            Err(Fault::new(crate::FaultKind::Trap, "the host failed while it ran the module").into())
        });
    slot.counters.call(started.elapsed());
    answers
}

/// Runs one in [`AUDIT_EVERY`] batches again with the rows reversed. Reports, changes nothing (PO-1005).
fn recheck(slot: &Slot, running: &Running, now: &Instant, keys: &[RowKey], answers: &[Arc<Answer>]) {
    let calls = slot.counters.calls.load(std::sync::atomic::Ordering::Relaxed);
    if keys.len() < 2 || !calls.is_multiple_of(AUDIT_EVERY) {
        return;
    }
    let reversed: Vec<RowKey> = keys.iter().rev().cloned().collect();
    let again = running.run(now.civil, &reversed);
    if again.is_ok_and(|again| again.iter().rev().eq(answers)) {
        return;
    }
    add(&slot.counters.impure, 1);
    let text = "NotPure: the same rows in another order got other answers";
    slot.note_error(text.to_owned(), now.at);
    tracing::warn!(entry = &*slot.label, "{text}");
}
