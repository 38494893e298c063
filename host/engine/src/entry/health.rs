//! Quarantine (PO-802): an entry that keeps failing is not called, but probed with growing intervals.
//!
//! Pure: time is a parameter. Leases have one [`Health`], placement one per namespace of pods (`place::health`).

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::fault::FaultKind;

/// Faults within [`WINDOW_SECONDS`] that lead to quarantine; also the faults one work unit may have (PO-801).
pub(crate) const MAX_FAULTS: usize = 3;
/// Seconds in which the faults count.
const WINDOW_SECONDS: i64 = 60;
/// First wait until rows without an answer are asked again, in seconds; doubles with every failed call.
const FIRST_RETRY_SECONDS: i64 = 2;
/// Longest such wait, in seconds.
const LAST_RETRY_SECONDS: i64 = 300;
/// First wait for a probe, in seconds.
const FIRST_PROBE_SECONDS: i64 = 30;
/// Longest wait for a probe, in seconds.
const LAST_PROBE_SECONDS: i64 = 600;

/// May the entry be called?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permission {
    /// Yes.
    Call,
    /// One row, by this caller only.
    Probe,
    /// No.
    Stay,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Quarantine {
    next_probe: i64,
    wait_seconds: i64,
}

/// How a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// By the module's own `Err`, which is no step towards quarantine (PO-206).
    Err,
    /// By a fault.
    Fault(FaultKind),
}

/// Where work units of one kind note how they ended.
pub(crate) trait Patient {
    /// A call answered.
    fn answered(&self);
    /// A call failed. True when that led to quarantine.
    fn failed(&self, failure: Failure, now: i64) -> bool;
    /// When what has no answer is asked again.
    fn retry_at(&self, now: i64) -> i64;
    /// When the next probe is due; `None`: not in quarantine.
    fn next_probe(&self) -> Option<i64>;
}

impl Patient for Mutex<Health> {
    fn answered(&self) {
        self.lock().answered();
    }

    fn failed(&self, failure: Failure, now: i64) -> bool {
        let mut health = self.lock();
        health.failed();
        match failure {
            Failure::Err => false,
            Failure::Fault(kind) => {
                if kind == FaultKind::Timeout {
                    health.timed_out(now);
                }
                health.fault(now, None)
            }
        }
    }

    fn retry_at(&self, now: i64) -> i64 {
        self.lock().retry_at(now)
    }

    fn next_probe(&self) -> Option<i64> {
        self.lock().next_probe()
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct CountedFault {
    at: i64,
    /// Faults about the same one count once; `None`: about nobody in particular.
    about: Option<Box<str>>,
}

/// Faults of one running version.
#[derive(Debug, Default)]
pub(crate) struct Health {
    faults: VecDeque<CountedFault>,
    quarantine: Option<Quarantine>,
    /// Failed calls since the last one that answered, the module's own `Err` included.
    failed_in_a_row: u32,
    /// It answered a call for a decision.
    answered: bool,
    /// Last time it ran into its time limit.
    timed_out: Option<i64>,
}

impl Health {
    /// Asks for permission to call; a granted probe is not granted to anyone else until its result.
    pub(crate) fn ask(&mut self, now: i64) -> Permission {
        let Some(quarantine) = &mut self.quarantine else { return Permission::Call };
        if now < quarantine.next_probe {
            return Permission::Stay;
        }
        quarantine.wait_seconds = (quarantine.wait_seconds * 2).min(LAST_PROBE_SECONDS);
        quarantine.next_probe = now + quarantine.wait_seconds;
        Permission::Probe
    }

    /// A call answered.
    pub(crate) fn answered(&mut self) {
        self.answered = true;
        self.failed_in_a_row = 0;
    }

    /// A call failed, by a fault or by the module's own `Err`.
    pub(crate) fn failed(&mut self) {
        self.failed_in_a_row = self.failed_in_a_row.saturating_add(1);
    }

    /// A call ran into its time limit.
    pub(crate) fn timed_out(&mut self, now: i64) {
        self.timed_out = Some(now);
    }

    /// It has shown that it answers in time: the entry may run beside others (policy spec section 14).
    pub(crate) fn is_proven(&self, now: i64) -> bool {
        self.answered && self.timed_out.is_none_or(|at| now - at > WINDOW_SECONDS)
    }

    /// When rows without an answer are asked again: at the next probe, else soon, with growing intervals.
    pub(crate) fn retry_at(&self, now: i64) -> i64 {
        let wait = FIRST_RETRY_SECONDS << self.failed_in_a_row.saturating_sub(1).min(8);
        self.next_probe().unwrap_or(now + wait.min(LAST_RETRY_SECONDS))
    }

    /// One fault at `now`; of those about the same one only the latest counts. True when it led to quarantine.
    pub(crate) fn fault(&mut self, now: i64, about: Option<&str>) -> bool {
        let recent = |fault: &CountedFault| fault.at > now - WINDOW_SECONDS && fault.at <= now;
        self.faults.retain(|fault| recent(fault) && (about.is_none() || fault.about.as_deref() != about));
        self.faults.push_back(CountedFault { at: now, about: about.map(Into::into) });
        if self.quarantine.is_some() || self.faults.len() < MAX_FAULTS {
            return false;
        }
        self.quarantine =
            Some(Quarantine { next_probe: now + FIRST_PROBE_SECONDS, wait_seconds: FIRST_PROBE_SECONDS });
        true
    }

    /// The probe answered: back to work.
    pub(crate) fn recover(&mut self) {
        *self = Self { timed_out: self.timed_out, ..Self::default() };
    }

    /// Nothing is left that a later call would have to know.
    pub(crate) fn is_over(&self, now: i64) -> bool {
        let probed_lately = |at: i64| now < at.saturating_add(LAST_PROBE_SECONDS);
        let recent = |fault: &CountedFault| fault.at > now - WINDOW_SECONDS;
        !self.next_probe().is_some_and(probed_lately) && !self.faults.iter().any(recent)
    }

    pub(crate) fn is_quarantined(&self) -> bool {
        self.quarantine.is_some()
    }

    /// When the next probe is due.
    pub(crate) fn next_probe(&self) -> Option<i64> {
        self.quarantine.map(|quarantine| quarantine.next_probe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_faults_in_a_minute_quarantine_and_probes_double_up_to_ten_minutes() {
        let mut health = Health::default();
        assert!(!health.fault(0, None));
        assert!(!health.fault(59, None));
        assert!(!health.fault(61, None), "the first fault is too old to count");
        assert!(health.fault(62, None));
        assert_eq!(health.ask(91), Permission::Stay);
        let mut at = 92;
        for wait in [60, 120, 240, 480, 600, 600] {
            assert_eq!(health.ask(at), Permission::Probe);
            assert_eq!(health.ask(at), Permission::Stay, "one probe at a time");
            assert!(!health.fault(at, None));
            assert_eq!(health.next_probe(), Some(at + wait));
            at += wait;
        }
        health.recover();
        assert_eq!(health.ask(at), Permission::Call);
    }

    #[test]
    fn faults_about_the_same_pod_count_once() {
        let mut health = Health::default();
        for at in 0..10 {
            assert!(!health.fault(at, Some("a")));
        }
        assert!(!health.fault(10, Some("b")));
        assert!(!health.fault(69, Some("c")), "the last about a is too old to count");
        assert!(health.fault(69, Some("d")));
    }

    #[test]
    fn rows_without_an_answer_are_asked_again_soon_and_then_less_often() {
        let mut health = Health::default();
        let mut waits = Vec::new();
        for _ in 0..10 {
            health.failed();
            waits.push(health.retry_at(1000) - 1000);
        }
        assert_eq!(waits, [2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        health.answered();
        health.failed();
        assert_eq!(health.retry_at(1000), 1002, "a good answer begins anew");
        for _ in 0..3 {
            health.fault(0, None);
        }
        assert_eq!(health.retry_at(1), 30, "a quarantined entry is probed");
    }

    #[test]
    fn an_entry_is_proven_by_an_answer_until_it_runs_out_of_time() {
        let mut health = Health::default();
        assert!(!health.is_proven(0));
        health.answered();
        assert!(health.is_proven(0));
        health.timed_out(10);
        assert!(!health.is_proven(70));
        assert!(health.is_proven(71));
    }
}
