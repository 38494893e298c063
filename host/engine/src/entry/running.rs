//! A version of an entry that passed loading. Immutable but for what it remembers and its health, which die
//! with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use super::health::Health;
use super::memo::Memo;
use crate::answer::{Answer, check_output};
use crate::fault::{CallError, Fault};
use crate::frame::{FrameBuffers, Needs};
use crate::load::cache::Digest;
use crate::place::answer::PlaceAnswer;
use crate::place::health::PlaceHealth;
use crate::place::known_rows::KnownRows;
use crate::place::needs::PlaceNeeds;
use crate::wasm::bindings::types;
use crate::wasm::unit::{Caller, Description, LeaseUnit, Prepared};

/// Module, settings and limits that decide together.
pub(crate) struct Running {
    pub(crate) prepared: Prepared,
    pub(crate) digest: Digest,
    pub(crate) description: Description,
    pub(crate) settings: Arc<str>,
    pub(crate) caller: Caller,
    pub(crate) needs: Needs,
    pub(crate) place_needs: PlaceNeeds,
    /// It takes part in lease decisions.
    pub(crate) lease: bool,
    /// It takes part in placement decisions.
    pub(crate) place: bool,
    pub(crate) memo: Mutex<Memo<Answer>>,
    /// Answers about pods that wait for their admission (PO-1003).
    pub(crate) place_memo: Mutex<Memo<PlaceAnswer>>,
    /// Rows of vnodes that schedulers asked about.
    pub(crate) place_known: Mutex<KnownRows>,
    /// Of calls about leases.
    pub(crate) lease_health: Mutex<Health>,
    /// Of calls about pods.
    pub(crate) place_health: Mutex<PlaceHealth>,
    dropped_lines: AtomicU64,
}

impl std::fmt::Debug for Running {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Running")
            .field("entry", &self.caller.entry)
            .field("digest", &self.digest)
            .finish_non_exhaustive()
    }
}

impl Running {
    pub(crate) fn new(
        prepared: Prepared,
        digest: Digest,
        description: Description,
        settings: Arc<str>,
        caller: Caller,
    ) -> Self {
        let (lease, place) = (prepared.lease.is_some(), prepared.place.is_some());
        Self {
            prepared,
            digest,
            description,
            settings,
            caller,
            needs: Needs::default(),
            place_needs: PlaceNeeds::default(),
            lease,
            place,
            memo: Mutex::default(),
            place_memo: Mutex::default(),
            place_known: Mutex::default(),
            lease_health: Mutex::default(),
            place_health: Mutex::default(),
            dropped_lines: AtomicU64::new(0),
        }
    }

    /// One work unit: fresh instance, one call, output checked.
    pub(crate) fn run<K: AsRef<[u8]>>(
        &self,
        now: types::Now,
        keys: &[K],
    ) -> Result<Vec<Arc<Answer>>, CallError> {
        let Some(pre) = &self.prepared.lease else {
            return Err(Fault::invalid("the module does not export lease").into());
        };
        let mut unit = LeaseUnit::create(pre, &self.caller, &self.settings)?;
        let answers = self.call(&mut unit, now, keys);
        self.dropped(unit.dropped_lines());
        answers
    }

    /// One call in an instance that exists.
    pub(crate) fn call<K: AsRef<[u8]>>(
        &self,
        unit: &mut LeaseUnit,
        now: types::Now,
        keys: &[K],
    ) -> Result<Vec<Arc<Answer>>, CallError> {
        let output = unit.lease(now, self.frame(keys).frame())?;
        Ok(check_output(&output, keys.len(), now.unix_seconds, &self.needs.caps)?)
    }

    /// Rows as it reads them.
    pub(crate) fn frame<'k, K: AsRef<[u8]>>(&self, keys: &'k [K]) -> FrameBuffers<'k> {
        FrameBuffers::of_rows(
            self.needs.texts.len(),
            self.needs.numbers.len(),
            keys.iter().map(AsRef::as_ref),
        )
    }

    /// It is not called for leases, or not for the pods of some namespace.
    pub(crate) fn is_quarantined(&self) -> bool {
        self.lease_health.lock().is_quarantined() || self.place_health.lock().is_quarantined()
    }

    /// Names of all facts it reads, about nodes first, each once.
    pub(crate) fn fact_names(&self) -> Vec<String> {
        let mut names = self.needs.names.clone();
        for name in self.place_needs.node.names.iter().chain(&self.place_needs.pod_names) {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    /// An instance dropped so many log lines.
    pub(crate) fn dropped(&self, lines: u64) {
        self.dropped_lines.fetch_add(lines, Ordering::Relaxed);
    }

    /// Log lines dropped since this version runs.
    pub(crate) fn dropped_lines(&self) -> u64 {
        self.dropped_lines.load(Ordering::Relaxed)
    }
}
