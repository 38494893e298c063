//! Numbers of the engine as a whole (PO-1501): of no entry, and the same for every host of a process.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the compile duration buckets in milliseconds; one more bucket holds what is longer.
pub const COMPILE_BUCKETS_MS: [u64; 6] = [50, 100, 250, 1_000, 5_000, 20_000];

/// The engine at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EngineNumbers {
    /// Work units that wait for a thread.
    pub queue_depth: usize,
    /// Instances of modules that exist: at most one per thread.
    pub instances_in_use: usize,
    /// Modules that were wanted and had been compiled.
    pub compile_hits: u64,
    /// Modules that were wanted and had to be compiled.
    pub compile_misses: u64,
    /// Compilations by duration, failed ones included: one per bound of [`COMPILE_BUCKETS_MS`], then the longer ones.
    pub compile_durations: [u64; COMPILE_BUCKETS_MS.len() + 1],
    /// Duration of all compilations in microseconds.
    pub compile_us: u64,
}

/// Live counters of the cache of compiled modules.
#[derive(Debug, Default)]
pub(crate) struct CompileCounters {
    wanted: AtomicU64,
    durations: [AtomicU64; COMPILE_BUCKETS_MS.len() + 1],
    us: AtomicU64,
}

impl CompileCounters {
    /// Somebody wants a module.
    pub(crate) fn wanted(&self) {
        self.wanted.fetch_add(1, Ordering::Relaxed);
    }

    /// It had to be compiled.
    pub(crate) fn compiled(&self, took: Duration) {
        let place = COMPILE_BUCKETS_MS.iter().position(|ms| took <= Duration::from_millis(*ms));
        if let Some(bucket) = self.durations.get(place.unwrap_or(COMPILE_BUCKETS_MS.len())) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.us.fetch_add(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The counters, as a part of the engine's numbers.
    pub(crate) fn read(&self) -> EngineNumbers {
        let compile_durations = std::array::from_fn(|at| {
            self.durations.get(at).map_or(0, |bucket| bucket.load(Ordering::Relaxed))
        });
        let compile_misses = compile_durations.iter().sum();
        EngineNumbers {
            compile_hits: self.wanted.load(Ordering::Relaxed).saturating_sub(compile_misses),
            compile_misses,
            compile_durations,
            compile_us: self.us.load(Ordering::Relaxed),
            ..EngineNumbers::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_compiled_was_known() {
        let counters = CompileCounters::default();
        for took in [Some(50), None, Some(51), Some(60_000), None, None] {
            counters.wanted();
            if let Some(ms) = took {
                counters.compiled(Duration::from_millis(ms));
            }
        }
        let numbers = counters.read();
        assert_eq!((numbers.compile_hits, numbers.compile_misses), (3, 3));
        assert_eq!(numbers.compile_durations, [1, 1, 0, 0, 0, 0, 1]);
        assert_eq!(numbers.compile_us, 60_101_000);
    }
}
