//! Numbers of placement of one entry since the process started (PO-1501).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::entry::counters::{CallTimes, DURATION_BUCKETS_US, add};
use crate::place::answer::Fit;

/// Live counters.
#[derive(Debug, Default)]
pub(crate) struct PlaceLive {
    accepted: AtomicU64,
    rejected: AtomicU64,
    later: AtomicU64,
    pub(crate) errors: AtomicU64,
    calls: CallTimes,
}

/// Counters of placement of one entry at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlaceCounters {
    /// Guest rows that accepted.
    pub accepted: u64,
    /// Guest rows that rejected.
    pub rejected: u64,
    /// Guest rows that said later.
    pub later: u64,
    /// Rows for which no answer came.
    pub errors: u64,
    /// Guest calls.
    pub calls: u64,
    /// Calls by duration: one per bound of [`DURATION_BUCKETS_US`], then the longer ones.
    pub durations: [u64; DURATION_BUCKETS_US.len() + 1],
    /// Sum of all durations in microseconds.
    pub duration_us: u64,
}

impl PlaceCounters {
    /// Rows a guest was asked about.
    pub(crate) fn evaluations(&self) -> u64 {
        self.accepted + self.rejected + self.later + self.errors
    }
}

impl PlaceLive {
    pub(crate) fn rows(&self, fits: impl Iterator<Item = Fit>) {
        let (mut accepted, mut rejected, mut later) = (0, 0, 0);
        for fit in fits {
            match fit {
                Fit::Accept => accepted += 1,
                Fit::Reject => rejected += 1,
                Fit::Later(_) => later += 1,
            }
        }
        add(&self.accepted, accepted);
        add(&self.rejected, rejected);
        add(&self.later, later);
    }

    pub(crate) fn call(&self, took: Duration) {
        self.calls.call(took);
    }

    pub(crate) fn snapshot(&self) -> PlaceCounters {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PlaceCounters {
            accepted: read(&self.accepted),
            rejected: read(&self.rejected),
            later: read(&self.later),
            errors: read(&self.errors),
            calls: read(&self.calls.calls),
            durations: self.calls.durations.each_ref().map(read),
            duration_us: read(&self.calls.duration_us),
        }
    }
}
