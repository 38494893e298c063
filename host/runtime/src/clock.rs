//! The one place that reads the wall clock. Everything else is handed the time.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio_util::sync::CancellationToken;

/// How often the clocks are compared.
const COMPARE: Duration = Duration::from_secs(1);
/// A difference that is neither load nor the slewing of a time daemon.
const JUMP: SignedDuration = SignedDuration::from_secs(2);

/// Source of the current time; tests pass their own.
pub trait Clock: Send + Sync + std::fmt::Debug {
    /// The current instant.
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }
}

/// RFC 3339 in UTC with whole seconds, the form Kubernetes writes.
pub fn rfc3339(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Parses RFC 3339; `None` for anything else (annotations can be edited by users).
pub fn parse_rfc3339(text: &str) -> Option<Timestamp> {
    text.parse().ok()
}

/// Calls `jumped` whenever the wall clock moved otherwise than time passed, until `cancel`: it was set, or the machine
/// slept. Whoever waits for a moment must then look again.
pub async fn watch_jumps(clock: &dyn Clock, cancel: CancellationToken, jumped: impl Fn()) {
    let mut before = (clock.now(), tokio::time::Instant::now());
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(COMPARE) => {}
        }
        let now = (clock.now(), tokio::time::Instant::now());
        let passed = SignedDuration::try_from(now.1 - before.1).unwrap_or(SignedDuration::MAX);
        let moved = now.0.duration_since(before.0);
        if moved.saturating_sub(passed).abs() > JUMP {
            tracing::info!(?moved, ?passed, "the clock jumped");
            jumped();
        }
        before = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};

    /// Time as tokio's paused clock tells it, and what somebody added.
    #[derive(Debug)]
    struct Adjusted(tokio::time::Instant, AtomicI64);

    impl Clock for Adjusted {
        fn now(&self) -> Timestamp {
            let passed = i64::try_from(self.0.elapsed().as_millis()).unwrap();
            Timestamp::from_millisecond(1_800_000_000_000 + passed + self.1.load(Ordering::Relaxed)).unwrap()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_is_set_is_noticed_and_one_that_is_slewed_is_not() {
        let clock = Adjusted(tokio::time::Instant::now(), AtomicI64::new(0));
        let (jumps, cancel) = (AtomicU32::new(0), CancellationToken::new());
        let watching = watch_jumps(&clock, cancel.clone(), || {
            jumps.fetch_add(1, Ordering::Relaxed);
        });
        let setting = async {
            for (offset, expected) in [(0, 0), (1500, 0), (-3_600_000, 1), (-3_600_000, 1), (60_000, 2)] {
                clock.1.store(offset, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_secs(10)).await;
                assert_eq!(jumps.load(Ordering::Relaxed), expected, "{offset}");
            }
            cancel.cancel();
        };
        tokio::join!(watching, setting);
    }
}
