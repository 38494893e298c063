//! The lasting part of an entry: it keeps its identity while module, settings and options change (PO-704).
//!
//! In: what the policy wants now, results of loads. Out: the version that runs, and the state shown to people.
//! Invariant: the running version changes in one step, and only to one that passed loading.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::counters::Counters;
use super::last_known::LastKnown;
use super::running::Running;
use crate::fault::Fault;
use crate::host::ModuleClaims;
use crate::legacy::Decision;
use crate::load::cache::Digest;
use crate::load::error::{LoadCode, LoadError};
use crate::record::Recorder;
use crate::wasm::unit::CallLimits;

/// Failed attempts after which a failure that may pass is shown as one for good. It is tried again all the same.
const PATIENT_ATTEMPTS: u32 = 4;
/// Wait after the first failed attempt; four times as long after each further one.
const FIRST_RETRY: Duration = Duration::from_millis(250);
/// Longest wait between two attempts.
const LAST_RETRY: Duration = Duration::from_mins(10);

/// State of an entry (PO-1502).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EntryState {
    /// Not yet run; a fetch or a load is going on.
    Loading,
    /// Decides, and is what the policy wants.
    Active,
    /// An older version decides, because the wanted one failed to load.
    Degraded,
    /// Never ran: a load step failed for good.
    Invalid,
    /// Failed too often; not called but for probes.
    Quarantined,
}

impl EntryState {
    /// All states.
    pub const ALL: [Self; 5] =
        [Self::Loading, Self::Active, Self::Degraded, Self::Invalid, Self::Quarantined];

    /// The exact name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Loading => "Loading",
            Self::Active => "Active",
            Self::Degraded => "Degraded",
            Self::Invalid => "Invalid",
            Self::Quarantined => "Quarantined",
        }
    }
}

/// What the policy wants of an entry; a change of it means a load.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Wanted {
    /// Digest of the fetched or embedded bytes; `None` while they are not there.
    pub(crate) digest: Option<Digest>,
    /// `sha256:<hex>` the policy names.
    pub(crate) named_digest: Option<String>,
    pub(crate) settings: Value,
    pub(crate) decisions: Option<Vec<Decision>>,
    pub(crate) limits: CallLimits,
    /// Nothing but a digest says which bytes are meant.
    pub(crate) must_pin: bool,
    pub(crate) claims: ModuleClaims,
    /// Failure of the fetch, or of naming the source.
    pub(crate) fetch_error: Option<LoadError>,
}

#[derive(Debug, Default)]
struct State {
    wanted: Option<Wanted>,
    /// Counts wishes; a load that finishes late for an older wish is ignored.
    generation: u64,
    failure: Option<LoadError>,
    /// Failed attempts to load what is wanted.
    attempts: u32,
    last_error: Option<(String, Timestamp)>,
    failures: BTreeMap<LoadCode, u64>,
}

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) policy: Arc<str>,
    pub(crate) entry: Arc<str>,
    /// `<policy>/<entry>`; the binding's selector belongs to no policy.
    pub(crate) label: Arc<str>,
    running: ArcSwapOption<Running>,
    state: Mutex<State>,
    pub(crate) known: Mutex<LastKnown>,
    pub(crate) counters: Counters,
    /// Audit: node -> difference.
    pub(crate) audit: Mutex<BTreeMap<String, String>>,
    /// Audit: node -> latest difference in placement.
    pub(crate) place_audit: Mutex<BTreeMap<String, String>>,
    pub(crate) recorder: Arc<Recorder>,
    /// One in so many batches is run again in reversed order (PO-1005).
    pub(crate) recheck_every: u64,
}

/// What to do after a wish.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Wish {
    /// Already so.
    Unchanged,
    /// Load and report with this generation.
    Load(u64),
    /// The bytes are missing.
    Wait,
}

/// What became of a load.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Loaded {
    /// The wish has changed meanwhile.
    Outdated,
    /// The result was taken.
    Taken,
    /// It failed and may succeed after this time.
    Again(Duration),
}

impl Slot {
    pub(crate) fn new(policy: &str, entry: &str, recorder: Arc<Recorder>, recheck_every: u64) -> Self {
        let label = if policy.is_empty() { entry.to_owned() } else { format!("{policy}/{entry}") };
        Self {
            policy: policy.into(),
            entry: entry.into(),
            label: label.into(),
            running: ArcSwapOption::empty(),
            state: Mutex::default(),
            known: Mutex::default(),
            counters: Counters::default(),
            audit: Mutex::default(),
            place_audit: Mutex::default(),
            recorder,
            recheck_every,
        }
    }

    /// The version that decides now.
    pub(crate) fn running(&self) -> Option<Arc<Running>> {
        self.running.load_full()
    }

    /// Notes what the policy wants. A failed fetch leaves what runs alone.
    pub(crate) fn wish(&self, wanted: Wanted, now: Timestamp) -> Wish {
        let mut state = self.state.lock();
        if state.wanted.as_ref() == Some(&wanted) {
            return Wish::Unchanged;
        }
        state.generation += 1;
        let failure = wanted.fetch_error.clone();
        let loadable = wanted.digest.is_some() && failure.is_none();
        if let Some(error) = &failure {
            state.last_error = Some((error.to_string(), now));
            *state.failures.entry(error.code).or_default() += 1;
        }
        state.failure = failure;
        state.attempts = 0;
        state.wanted = Some(wanted);
        if loadable { Wish::Load(state.generation) } else { Wish::Wait }
    }

    /// The load of this wish is still wanted.
    pub(crate) fn wants(&self, generation: u64) -> bool {
        self.state.lock().generation == generation
    }

    /// Nothing is wanted any more: a load that waits is forgotten, and one that is under way changes nothing.
    pub(crate) fn abandon(&self) {
        self.state.lock().generation += 1;
    }

    /// Takes the result of a load.
    pub(crate) fn loaded(
        &self,
        generation: u64,
        result: Result<Running, LoadError>,
        now: Timestamp,
    ) -> Loaded {
        let mut state = self.state.lock();
        if state.generation != generation {
            return Loaded::Outdated;
        }
        match result {
            Ok(running) => {
                state.failure = None;
                self.running.store(Some(Arc::new(running)));
                // What the version before would have changed says nothing about this one, and pods come seldom.
                self.place_audit.lock().clear();
            }
            Err(error) => {
                let again =
                    state.attempts > 0 && state.failure.as_ref().is_some_and(|last| last.code == error.code);
                if !again {
                    *state.failures.entry(error.code).or_default() += 1;
                }
                state.last_error = Some((error.to_string(), now));
                if !error.passing {
                    state.failure = Some(error);
                    return Loaded::Taken;
                }
                state.attempts += 1;
                let wait = FIRST_RETRY * 4_u32.pow((state.attempts - 1).min(8));
                let patient = state.attempts < PATIENT_ATTEMPTS;
                state.failure = Some(if patient { error } else { error.lasting() });
                return Loaded::Again(wait.min(LAST_RETRY));
            }
        }
        Loaded::Taken
    }

    /// A guest failed or refused; shown in status.
    pub(crate) fn note_error(&self, text: String, now: Timestamp) {
        self.state.lock().last_error = Some((text, now));
    }

    pub(crate) fn note_fault(&self, fault: &Fault, now: Timestamp) {
        self.counters.fault(fault.kind);
        self.note_error(fault.to_string(), now);
    }

    pub(crate) fn state(&self) -> EntryState {
        let running = self.running();
        let state = self.state.lock();
        match (&running, &state.failure) {
            (Some(running), _) if running.is_quarantined() => EntryState::Quarantined,
            (Some(_), Some(_)) => EntryState::Degraded,
            (Some(_), None) => EntryState::Active,
            (None, Some(failure)) if !failure.passing => EntryState::Invalid,
            (None, _) => EntryState::Loading,
        }
    }

    /// It runs, or the wanted version has failed: nothing to wait for (PO-704). A load that the machine hindered is
    /// waited for; a failed fetch is not, because it may take for ever.
    pub(crate) fn settled(&self) -> bool {
        let failed = |failure: &LoadError| !failure.passing || failure.code.is_fetch();
        self.running.load().is_some() || self.state.lock().failure.as_ref().is_some_and(failed)
    }

    /// Why the wanted version does not run.
    pub(crate) fn failure(&self) -> Option<LoadError> {
        self.state.lock().failure.clone()
    }

    /// Failed loads by step.
    pub(crate) fn load_failures(&self) -> BTreeMap<LoadCode, u64> {
        self.state.lock().failures.clone()
    }

    pub(crate) fn last_error(&self) -> Option<(String, Timestamp)> {
        self.state.lock().last_error.clone()
    }

    /// Digest of the wanted bytes, or the one the policy names while they are missing.
    pub(crate) fn wanted_digest(&self) -> Option<String> {
        let state = self.state.lock();
        let wanted = state.wanted.as_ref()?;
        wanted.named_digest.clone().or_else(|| wanted.digest.map(|digest| digest.to_string()))
    }
}
