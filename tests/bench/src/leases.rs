//! How evenly and how often Leases are renewed, from the audit log.

use std::collections::BTreeMap;

use kubeocean_harness::AuditEvent;

/// Renewals by the second in which they arrived.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Renewals(BTreeMap<String, u32>);

impl Renewals {
    /// The writes of Leases of one user.
    pub fn of(user: &str, events: &[AuditEvent]) -> Self {
        let mut seconds: BTreeMap<String, u32> = BTreeMap::new();
        for event in events.iter().filter(|event| event.user.username == user && event.is_write()) {
            // The Syncer's own Lease as a leader is in another namespace.
            if event.object_ref.resource == "leases" && event.object_ref.namespace == "kube-node-lease" {
                let second = event.request_received_timestamp.split('.').next().unwrap_or_default();
                *seconds.entry(second.to_owned()).or_default() += 1;
            }
        }
        Self(seconds)
    }

    /// All of them.
    pub fn total(&self) -> u32 {
        self.0.values().sum()
    }

    /// The fullest second against the mean one; 1 is perfectly even. The first and the last second are not whole and
    /// do not count. `None` before there are three.
    pub fn unevenness(&self) -> Option<f64> {
        let whole: Vec<u32> = self.0.values().copied().collect();
        let whole = whole.get(1..whole.len().checked_sub(1)?)?;
        let seconds = f64::from(u32::try_from(whole.len()).ok()?);
        let mean = f64::from(whole.iter().sum::<u32>()) / seconds;
        Some(f64::from(*whole.iter().max()?) / mean)
    }
}

#[cfg(test)]
mod tests {
    use kubeocean_harness::audit::{AuditObject, AuditStatus, AuditUser};

    use super::*;

    fn event(user: &str, namespace: &str, second: u32) -> AuditEvent {
        AuditEvent {
            annotations: BTreeMap::default(),
            id: String::new(),
            verb: "patch".to_owned(),
            uri: String::new(),
            user: AuditUser { username: user.to_owned(), groups: Vec::new() },
            user_agent: String::new(),
            object_ref: AuditObject {
                resource: "leases".to_owned(),
                namespace: namespace.to_owned(),
                ..AuditObject::default()
            },
            response_status: AuditStatus::default(),
            request_received_timestamp: format!("2026-01-02T03:04:0{second}.123456Z"),
        }
    }

    #[test]
    fn the_fullest_second_is_held_against_the_mean_of_whole_seconds() {
        let mut events = vec![event("us", "kube-node-lease", 0)];
        for (second, count) in [(1, 2), (2, 6), (3, 4), (4, 1)] {
            events.extend((0..count).map(|_| event("us", "kube-node-lease", second)));
        }
        events.push(event("them", "kube-node-lease", 2));
        events.push(event("us", "kubeocean-system", 2));
        let renewals = Renewals::of("us", &events);
        assert_eq!(renewals.total(), 14);
        assert_eq!(renewals.unevenness(), Some(1.5));
        assert_eq!(Renewals::default().unevenness(), None);
    }
}
