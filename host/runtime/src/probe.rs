//! Whether an API server answers: a small request of its own every few seconds, because a quiet watch says nothing.

use std::{sync::Arc, time::Duration};

use kube::Client;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::request::get_json;

/// Pause between two requests.
const EVERY: Duration = Duration::from_secs(15);
/// Longest wait for an answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Without an answer for so long a server counts as out of reach.
pub const UNREACHABLE_AFTER: Duration = Duration::from_mins(1);

/// When a server answered last.
#[derive(Debug, Clone)]
pub struct Reachability(Arc<Mutex<Instant>>);

impl Default for Reachability {
    /// Answered just now: whoever begins has a minute.
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }
}

impl Reachability {
    /// The server answered.
    pub fn answered(&self) {
        *self.0.lock() = Instant::now();
    }

    /// Time since the last answer.
    pub fn age(&self) -> Duration {
        self.0.lock().elapsed()
    }

    /// Whether there was no answer for [`UNREACHABLE_AFTER`].
    pub fn is_lost(&self) -> bool {
        self.age() >= UNREACHABLE_AFTER
    }
}

/// Asks for `path` until `cancel`; after each answer, and after each failure, `told` learns whether it was one. Any
/// object is an answer; that we may not read it is none, for then our watches do not work either.
pub async fn probe(client: Client, path: &str, cancel: CancellationToken, told: impl Fn(bool)) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let answer = tokio::select! {
            () = cancel.cancelled() => return,
            answer = tokio::time::timeout(LIMIT, get_json(&client, path)) => answer,
        };
        let failure = match answer {
            Ok(Ok(_)) => None,
            Ok(Err(error)) => Some(error.chain()),
            Err(_) => Some(format!("no answer within {} s", LIMIT.as_secs())),
        };
        if let Some(error) = &failure {
            tracing::debug!(path, error, "the API server does not answer");
        }
        told(failure.is_none());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_server_is_lost_a_minute_after_its_last_answer() {
        let worker = Reachability::default();
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(!worker.is_lost());
        worker.answered();
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(!worker.is_lost());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(worker.is_lost());
    }
}
