//! What the probes tell: alive while tasks run and make progress, ready as MC section 7 says. Neither depends on the
//! worker cluster.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::{Duration, Instant},
};

/// The reconcile loops must come by at least this often.
const PROGRESS_LIMIT: Duration = Duration::from_mins(5);

/// Health of one process, shared by its tasks.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    ready: AtomicBool,
    failed: AtomicBool,
    last_progress_millis: AtomicU64,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            ready: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            last_progress_millis: AtomicU64::new(0),
        }
    }
}

impl Health {
    /// Readiness: a standby that can read the Lease, or a leader whose computing-side lists are complete.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Whether the process is ready.
    pub fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed) && self.is_alive()
    }

    /// A task ended by itself or panicked: the process must be replaced.
    pub fn fail(&self) {
        self.failed.store(true, Ordering::Relaxed);
    }

    /// Called by the main loop each time it comes by.
    pub fn progress(&self) {
        let millis = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_progress_millis.store(millis, Ordering::Relaxed);
    }

    /// Whether the process works.
    pub fn is_alive(&self) -> bool {
        let last = Duration::from_millis(self.last_progress_millis.load(Ordering::Relaxed));
        !self.failed.load(Ordering::Relaxed) && self.started.elapsed().saturating_sub(last) < PROGRESS_LIMIT
    }
}
