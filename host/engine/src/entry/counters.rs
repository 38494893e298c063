//! Numbers of one entry since the process started (PO-1501). Written without locks, read as a snapshot.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::answer::EntryVerdict;
use crate::fault::FaultKind;
use crate::load::error::LoadCode;
use crate::place::counters::{PlaceCounters, PlaceLive};

/// Upper bounds of the call duration buckets in microseconds; one more bucket holds what is longer.
pub const DURATION_BUCKETS_US: [u64; 12] =
    [5, 10, 25, 50, 100, 250, 500, 1_000, 5_000, 25_000, 100_000, 1_000_000];

/// Live counters.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) offered: AtomicU64,
    pub(crate) withheld: AtomicU64,
    pub(crate) not_applicable: AtomicU64,
    pub(crate) errors: AtomicU64,
    calls: CallTimes,
    /// Good calls with more than one row.
    batches: AtomicU64,
    pub(crate) memo_hits: AtomicU64,
    pub(crate) memo_misses: AtomicU64,
    pub(crate) memo_expired: AtomicU64,
    pub(crate) impure: AtomicU64,
    pub(crate) audit_differences: AtomicU64,
    pub(crate) place: PlaceLive,
    faults: [AtomicU64; FaultKind::ALL.len()],
}

/// How many calls there were of one kind, and how long they took.
#[derive(Debug, Default)]
pub(crate) struct CallTimes {
    pub(crate) calls: AtomicU64,
    pub(crate) durations: [AtomicU64; DURATION_BUCKETS_US.len() + 1],
    pub(crate) duration_us: AtomicU64,
}

impl CallTimes {
    pub(crate) fn call(&self, took: Duration) {
        add(&self.calls, 1);
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.duration_us.fetch_add(us, Ordering::Relaxed);
        if let Some(counter) = self.durations.get(bucket(us)) {
            add(counter, 1);
        }
    }
}

/// Counters of one entry at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EntryCounters {
    /// Guest rows that offered.
    pub offered: u64,
    /// Guest rows that withheld.
    pub withheld: u64,
    /// Guest rows that did not apply.
    pub not_applicable: u64,
    /// Rows for which no answer came.
    pub errors: u64,
    /// Guest calls.
    pub calls: u64,
    /// Rows answered from the memo.
    pub memo_hits: u64,
    /// Rows never asked before.
    pub memo_misses: u64,
    /// Rows whose answer had expired.
    pub memo_expired: u64,
    /// Broken promises and answers that depended on the order of rows (PO-1005, PO-1006).
    pub impure: u64,
    /// Decisions an Audit entry would have changed.
    pub audit_differences: u64,
    /// Failed loads by step.
    pub load_failures: BTreeMap<LoadCode, u64>,
    /// Log lines of the running module that were dropped.
    pub log_dropped: u64,
    /// Faults, in the order of [`FaultKind::ALL`].
    pub faults: [u64; FaultKind::ALL.len()],
    /// Calls by duration: one per bound of [`DURATION_BUCKETS_US`], then the longer ones.
    pub durations: [u64; DURATION_BUCKETS_US.len() + 1],
    /// Sum of all durations in microseconds.
    pub duration_us: u64,
    /// The same of placement.
    pub place: PlaceCounters,
}

impl EntryCounters {
    /// Rows for which no answer came, as in `status.policies[].errors`.
    pub fn rows_without_answer(&self) -> u64 {
        self.errors + self.place.errors
    }

    /// Rows a guest evaluated, as in `status.policies[].evaluations`.
    pub fn evaluations(&self) -> u64 {
        self.offered + self.withheld + self.not_applicable + self.errors + self.place.evaluations()
    }
}

pub(crate) fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(u64::try_from(n).unwrap_or(u64::MAX), Ordering::Relaxed);
}

/// Bucket of a duration.
fn bucket(us: u64) -> usize {
    DURATION_BUCKETS_US.iter().position(|max| us <= *max).unwrap_or(DURATION_BUCKETS_US.len())
}

impl Counters {
    pub(crate) fn row(&self, verdict: EntryVerdict) {
        let counter = match verdict {
            EntryVerdict::Offer => &self.offered,
            EntryVerdict::Withhold => &self.withheld,
            EntryVerdict::NotApplicable => &self.not_applicable,
        };
        add(counter, 1);
    }

    /// One more good call with several rows; how many there were.
    pub(crate) fn batch(&self) -> u64 {
        self.batches.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn fault(&self, kind: FaultKind) {
        if let Some(counter) = FaultKind::ALL.iter().position(|k| *k == kind).and_then(|i| self.faults.get(i))
        {
            add(counter, 1);
        }
    }

    pub(crate) fn call(&self, took: Duration) {
        self.calls.call(took);
    }

    pub(crate) fn snapshot(&self) -> EntryCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        EntryCounters {
            offered: read(&self.offered),
            withheld: read(&self.withheld),
            not_applicable: read(&self.not_applicable),
            errors: read(&self.errors),
            calls: read(&self.calls.calls),
            memo_hits: read(&self.memo_hits),
            memo_misses: read(&self.memo_misses),
            memo_expired: read(&self.memo_expired),
            impure: read(&self.impure),
            audit_differences: read(&self.audit_differences),
            load_failures: BTreeMap::new(),
            log_dropped: 0,
            faults: self.faults.each_ref().map(read),
            durations: self.calls.durations.each_ref().map(read),
            duration_us: read(&self.calls.duration_us),
            place: self.place.snapshot(),
        }
    }
}
