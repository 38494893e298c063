//! The one place where the engine reads the clock.
//!
//! Decisions take their time as a parameter. Only what has no caller with a time does not: the instant of a
//! background load (for `lastErrorTime` and for the trial call of PO-703) and durations for metrics.

/// Now, for load results and trial calls.
pub(crate) fn now() -> jiff::Timestamp {
    jiff::Timestamp::now()
}

/// Start of a measured interval.
pub(crate) fn stopwatch() -> std::time::Instant {
    std::time::Instant::now()
}
