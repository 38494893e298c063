//! A histogram of durations that is written without a lock and read as numbers; who exposes them chooses the library.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Upper bounds of the buckets in milliseconds; what is longer counts in one more.
const BOUNDS_MILLIS: [u64; 9] = [1, 5, 25, 100, 500, 1_000, 5_000, 30_000, 300_000];

/// See the module documentation.
#[derive(Debug, Default)]
pub struct Durations {
    buckets: [AtomicU64; BOUNDS_MILLIS.len() + 1],
    sum_micros: AtomicU64,
}

/// What a histogram holds at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DurationNumbers {
    /// Of all durations.
    pub sum_seconds: f64,
    /// How many.
    pub count: u64,
    /// Upper bound in seconds, and how many lie below it but not below the bound before.
    pub buckets: Vec<(f64, u64)>,
}

impl Durations {
    /// Counts one.
    pub fn observe(&self, duration: Duration) {
        let at = BOUNDS_MILLIS.iter().position(|bound| duration <= Duration::from_millis(*bound));
        if let Some(bucket) = self.buckets.get(at.unwrap_or(BOUNDS_MILLIS.len())) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// What it holds.
    pub fn numbers(&self) -> DurationNumbers {
        let bounds = BOUNDS_MILLIS.iter().map(|millis| Duration::from_millis(*millis).as_secs_f64());
        let counts = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed));
        let buckets: Vec<(f64, u64)> = bounds.chain([f64::INFINITY]).zip(counts).collect();
        DurationNumbers {
            sum_seconds: Duration::from_micros(self.sum_micros.load(Ordering::Relaxed)).as_secs_f64(),
            count: buckets.iter().map(|(_, count)| count).sum(),
            buckets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_duration_is_counted_in_its_bucket_and_in_the_sum() {
        let durations = Durations::default();
        for millis in [0, 1, 2, 100, 600_000] {
            durations.observe(Duration::from_millis(millis));
        }
        let numbers = durations.numbers();
        let counted: Vec<_> = numbers.buckets.iter().filter(|(_, count)| *count > 0).copied().collect();
        assert_eq!(counted, [(0.001, 2), (0.005, 1), (0.1, 1), (f64::INFINITY, 1)]);
        assert_eq!(numbers.count, 5);
        assert!((numbers.sum_seconds - 600.103).abs() < 1e-9, "{}", numbers.sum_seconds);
    }
}
