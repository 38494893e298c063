//! Quarantine of placement (PO-802): by the namespace of the pods, and three different pods of it must have failed.
//!
//! In: how calls about pods ended. Out: whether the entry may be asked about a pod. Caller: `place::evaluate`. Invariant:
//! what a tenant writes into its pods keeps the module from no pod of another namespace, and from no lease.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::entry::health::{Failure, Health, Patient, Permission};
use crate::fault::FaultKind;
use crate::place::facts::PodFacts;

/// Namespaces whose faults are remembered. Of a further one they count for nothing, so it costs time but nobody's answer.
const MAX_NAMESPACES: usize = 1000;

/// Faults in questions about pods, of one running version.
#[derive(Debug, Default)]
pub(crate) struct PlaceHealth {
    /// Whether it answers, and in time, whoever's pod it is.
    common: Health,
    /// Namespaces with faults.
    by_namespace: BTreeMap<Box<str>, Health>,
}

impl PlaceHealth {
    /// It has shown that it answers in time.
    pub(crate) fn is_proven(&self, now: i64) -> bool {
        self.common.is_proven(now)
    }

    /// It is not asked about the pods of some namespace.
    pub(crate) fn is_quarantined(&self) -> bool {
        self.by_namespace.values().any(Health::is_quarantined)
    }

    fn failed(&mut self, pod: &PodFacts, failure: Failure, now: i64) -> bool {
        if failure == Failure::Fault(FaultKind::Timeout) {
            self.common.timed_out(now);
        }
        if self.by_namespace.len() >= MAX_NAMESPACES
            && !self.by_namespace.contains_key(pod.namespace.as_str())
        {
            self.by_namespace.retain(|_, health| !health.is_over(now));
            if self.by_namespace.len() >= MAX_NAMESPACES {
                return false;
            }
        }
        let health = self.by_namespace.entry(pod.namespace.as_str().into()).or_default();
        health.failed();
        matches!(failure, Failure::Fault(_)) && health.fault(now, Some(&pod.name))
    }
}

/// The health of one entry as questions about one pod see it.
pub(crate) struct PodHealth<'r> {
    pub(crate) all: &'r Mutex<PlaceHealth>,
    pub(crate) pod: &'r PodFacts,
}

impl PodHealth<'_> {
    /// Asks for permission to call.
    pub(crate) fn ask(&self, now: i64) -> Permission {
        let mut all = self.all.lock();
        all.by_namespace
            .get_mut(self.pod.namespace.as_str())
            .map_or(Permission::Call, |health| health.ask(now))
    }

    /// Forgets namespaces whose pods nobody has asked about for long. True when that ended a quarantine.
    pub(crate) fn forget_old(&self, now: i64) -> bool {
        let mut all = self.all.lock();
        let before = all.is_quarantined();
        all.by_namespace.retain(|_, health| !health.is_over(now));
        before && !all.is_quarantined()
    }

    /// The probe answered: back to work.
    pub(crate) fn recover(&self) {
        self.all.lock().by_namespace.remove(self.pod.namespace.as_str());
    }
}

impl Patient for PodHealth<'_> {
    fn answered(&self) {
        let mut all = self.all.lock();
        all.common.answered();
        if let Some(health) = all.by_namespace.get_mut(self.pod.namespace.as_str()) {
            health.answered();
        }
    }

    fn failed(&self, failure: Failure, now: i64) -> bool {
        self.all.lock().failed(self.pod, failure, now)
    }

    fn retry_at(&self, now: i64) -> i64 {
        let all = self.all.lock();
        all.by_namespace.get(self.pod.namespace.as_str()).unwrap_or(&all.common).retry_at(now)
    }

    fn next_probe(&self) -> Option<i64> {
        self.all.lock().by_namespace.get(self.pod.namespace.as_str())?.next_probe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fails(all: &Mutex<PlaceHealth>, namespace: &str, name: &str, now: i64) -> bool {
        let pod = PodFacts { namespace: namespace.into(), name: name.into(), ..PodFacts::default() };
        PodHealth { all, pod: &pod }.failed(Failure::Fault(FaultKind::Trap), now)
    }

    fn may(all: &Mutex<PlaceHealth>, namespace: &str, now: i64) -> Permission {
        let pod = PodFacts { namespace: namespace.into(), name: "any".into(), ..PodFacts::default() };
        PodHealth { all, pod: &pod }.ask(now)
    }

    #[test]
    fn three_pods_of_a_namespace_quarantine_it_alone() {
        let all = Mutex::default();
        for at in 0..10 {
            assert!(!fails(&all, "shop", "a", at), "one pod however often");
        }
        assert!(!fails(&all, "bank", "a", 9) && !fails(&all, "mill", "a", 9) && !fails(&all, "shop", "b", 9));
        assert!(!all.lock().is_quarantined(), "three namespaces, but not three pods of one");
        assert!(fails(&all, "shop", "c", 9));
        assert!(all.lock().is_quarantined());
        assert_eq!((may(&all, "shop", 10), may(&all, "bank", 10)), (Permission::Stay, Permission::Call));
        assert_eq!(may(&all, "shop", 39), Permission::Probe);
    }

    #[test]
    fn a_quarantine_nobody_probes_ends_ten_minutes_after_the_probe_was_due() {
        let all = Mutex::default();
        for name in ["a", "b", "c"] {
            fails(&all, "shop", name, 0);
        }
        let pod = PodFacts { namespace: "bank".into(), ..PodFacts::default() };
        let other = PodHealth { all: &all, pod: &pod };
        assert!(!other.forget_old(629) && all.lock().is_quarantined());
        assert!(other.forget_old(630) && !all.lock().is_quarantined());
    }

    #[test]
    fn the_number_of_remembered_namespaces_is_bounded() {
        let all = Mutex::default();
        for namespace in 0..2 * MAX_NAMESPACES {
            fails(&all, &namespace.to_string(), "a", 0);
        }
        assert_eq!(all.lock().by_namespace.len(), MAX_NAMESPACES);
        fails(&all, "new", "a", 60);
        assert_eq!(all.lock().by_namespace.len(), 1, "what no longer counts goes first");
    }
}
