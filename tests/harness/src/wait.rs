//! Waiting for a condition, with a deadline and the last state seen in the message.
//!
//! The one place where tests spend time: nothing else in the test code sleeps.

use std::fmt::Debug;
use std::future::Future;
use std::panic::Location;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Short against everything that is waited for, long against the cost of one look.
const INTERVAL: Duration = Duration::from_millis(20);

/// What one look at the world says: `Some`, `Ok` and `true` are the end of waiting; an `Err` describes the state seen.
pub trait Look {
    type Value;
    /// The value, or a description of what was seen instead.
    fn settle(self) -> Result<Self::Value, String>;
}

impl<T> Look for Option<T> {
    type Value = T;
    fn settle(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".to_owned())
    }
}

impl<T, S: Debug> Look for std::result::Result<T, S> {
    type Value = T;
    fn settle(self) -> Result<T, String> {
        self.map_err(|state| format!("{state:?}"))
    }
}

impl Look for bool {
    type Value = ();
    fn settle(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("false".to_owned()) }
    }
}

/// Looks every 20 ms until the look settles, and returns its value.
///
/// `what` completes the sentence "waited 5s for ...". A look that returns `Err(state)` makes the better message.
///
/// # Panics
/// After `deadline`, at the caller's line, with the last state seen.
#[track_caller]
pub fn wait_until<L: Look>(
    what: &str,
    deadline: Duration,
    look: impl AsyncFnMut() -> L,
) -> impl Future<Output = L::Value> {
    let caller = Location::caller();
    async move {
        match try_wait_until(what, deadline, look).await {
            Ok(value) => value,
            #[expect(clippy::panic, reason = "a condition that never came is a failed test")]
            Err(error) => panic!("{error} (at {caller})"),
        }
    }
}

/// Like [`wait_until`], but returns the failure. For code that cleans up or tries again.
///
/// # Errors
/// The deadline passed; the message holds the last state seen.
pub async fn try_wait_until<L: Look>(
    what: &str,
    deadline: Duration,
    mut look: impl AsyncFnMut() -> L,
) -> Result<L::Value> {
    let started = Instant::now();
    let mut seen = "nothing yet".to_owned();
    loop {
        let left = deadline.saturating_sub(started.elapsed());
        // A look that hangs (a request to a stopped server) must not outlive the deadline. One that answers at once is
        // heard even when no time is left, so the deadline is checked again after it.
        match tokio::time::timeout(left, look()).await.map(Look::settle) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(state)) => seen = state,
            Err(_) => {}
        }
        if started.elapsed() >= deadline {
            return Err(anyhow!("waited {deadline:?} for {what}; last seen: {seen}"));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_condition_that_comes_returns_its_value() {
        let mut looks = 0;
        let value = wait_until("the third look", Duration::from_secs(5), async || {
            looks += 1;
            (looks == 3).then_some(looks)
        })
        .await;
        assert_eq!(value, 3);
    }

    #[tokio::test]
    async fn a_condition_that_never_comes_reports_the_last_state() {
        let error =
            try_wait_until("pigs to fly", Duration::from_millis(50), async || Err::<(), _>("on the ground"))
                .await
                .unwrap_err();
        assert_eq!(error.to_string(), "waited 50ms for pigs to fly; last seen: \"on the ground\"");
    }

    #[tokio::test]
    async fn a_look_that_hangs_ends_at_the_deadline() {
        let error = try_wait_until("a stuck look", Duration::from_millis(50), async || {
            std::future::pending::<Option<()>>().await
        })
        .await
        .unwrap_err();
        assert!(error.to_string().contains("a stuck look"), "{error}");
    }
}
