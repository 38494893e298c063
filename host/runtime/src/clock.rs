//! The one place that reads the wall clock. Everything else is handed the time.

use jiff::Timestamp;

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
