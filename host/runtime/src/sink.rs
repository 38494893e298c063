//! Where a watch stream ends: a synchronous index with one writer.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// An API server that has just begun does not know its roles yet, and refuses everything for some seconds.
const LASTING: Duration = Duration::from_secs(10);
/// A watch asks again much sooner; what was refused before such a pause was granted meanwhile.
const FORGOTTEN: Duration = Duration::from_mins(3);

/// Receives the objects of one watch, in order, from one task.
///
/// Implementations update their index and mark what became dirty; they never await and make no request.
pub trait Sink<T>: Send + Sync + 'static {
    /// An object was added or changed.
    fn apply(&self, object: T);
    /// An object was deleted; `object` is its last state.
    fn delete(&self, object: T);
    /// The complete list after the stream was (re)started. What is missing from it has vanished.
    fn reset(&self, all: Vec<T>);
    /// The server refuses to tell; it is asked again.
    fn denied(&self, _: Denial) {}
}

/// Why a server tells nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// It does not accept the credentials (401).
    Unauthorized,
    /// The role does not allow it (403).
    Forbidden,
}

/// Tells a role that lacks a right from a server that does not know its roles yet.
#[derive(Debug, Default)]
pub struct Refusals {
    /// The first and the last one.
    known: Mutex<Option<(Instant, Instant)>>,
}

impl Refusals {
    /// It was refused once more. Says whether it has been for so long that the right is missing.
    pub fn last(&self) -> bool {
        let now = Instant::now();
        let mut known = self.known.lock();
        let first = match *known {
            Some((first, last)) if now.duration_since(last) < FORGOTTEN => first,
            _ => now,
        };
        *known = Some((first, now));
        now.duration_since(first) >= LASTING
    }

    /// It was granted.
    pub fn ended(&self) {
        *self.known.lock() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_refusal_counts_when_it_lasts() {
        let refusals = Refusals::default();
        assert!(!refusals.last());
        tokio::time::advance(LASTING / 2).await;
        assert!(!refusals.last());
        refusals.ended();
        tokio::time::advance(LASTING).await;
        assert!(!refusals.last(), "it was granted meanwhile");
        tokio::time::advance(LASTING).await;
        assert!(refusals.last());
        tokio::time::advance(FORGOTTEN).await;
        assert!(!refusals.last(), "that was another time");
    }
}
