//! What a program asked of an API server, from its audit log.

use std::collections::BTreeMap;

use kubeocean_harness::AuditEvent;

/// Requests by verb and resource. Lease renewals are left out: they cost the same with and without pods.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestCount(BTreeMap<String, u32>);

impl RequestCount {
    /// Adds the requests of one user; `cluster` tells the lines of two clusters apart.
    pub fn add(&mut self, cluster: &str, user: &str, events: &[AuditEvent]) {
        let own = events.iter().filter(|event| event.user.username == user);
        for event in own.filter(|event| event.object_ref.resource != "leases") {
            let object = &event.object_ref;
            let slash = if object.subresource.is_empty() { "" } else { "/" };
            let line = format!("{cluster}: {} {}{slash}{}", event.verb, object.resource, object.subresource);
            *self.0.entry(line).or_default() += 1;
        }
    }

    /// Only the requests that change something.
    #[must_use]
    pub fn writes(user: &str, cluster: &str, events: &[AuditEvent]) -> Self {
        let writes: Vec<_> = events.iter().filter(|event| event.is_write()).cloned().collect();
        let mut count = Self::default();
        count.add(cluster, user, &writes);
        count
    }

    /// Adds what another count found.
    pub fn merge(&mut self, other: Self) {
        for (line, count) in other.0 {
            *self.0.entry(line).or_default() += count;
        }
    }

    /// The most writes of one user about a single object of a kind; `kind` is as in a path, `nodes/status` for example.
    pub fn most_writes_of_one(user: &str, kind: &str, events: &[AuditEvent]) -> u32 {
        let (resource, subresource) = kind.split_once('/').unwrap_or((kind, ""));
        let mut objects: BTreeMap<(&str, &str), u32> = BTreeMap::new();
        for event in events.iter().filter(|event| event.user.username == user && event.is_write()) {
            let object = &event.object_ref;
            if (object.resource.as_str(), object.subresource.as_str()) == (resource, subresource) {
                *objects.entry((object.namespace.as_str(), object.name.as_str())).or_default() += 1;
            }
        }
        objects.into_values().max().unwrap_or_default()
    }

    /// All of them.
    pub fn total(&self) -> u32 {
        self.0.values().sum()
    }

    /// One line per kind of request and its number, the most frequent first.
    pub fn lines(&self) -> Vec<(&str, u32)> {
        let mut lines: Vec<_> = self.0.iter().map(|(line, count)| (line.as_str(), *count)).collect();
        lines.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        lines
    }
}

#[cfg(test)]
mod tests {
    use kubeocean_harness::audit::{AuditObject, AuditStatus, AuditUser};

    use super::*;

    fn event(user: &str, verb: &str, resource: &str, subresource: &str) -> AuditEvent {
        AuditEvent {
            annotations: std::collections::BTreeMap::default(),
            id: String::new(),
            verb: verb.to_owned(),
            uri: String::new(),
            user: AuditUser { username: user.to_owned(), groups: Vec::new() },
            user_agent: String::new(),
            object_ref: AuditObject {
                resource: resource.to_owned(),
                subresource: subresource.to_owned(),
                ..AuditObject::default()
            },
            response_status: AuditStatus::default(),
            request_received_timestamp: String::new(),
        }
    }

    #[test]
    fn only_the_users_own_requests_about_anything_but_leases_count() {
        let mut count = RequestCount::default();
        let events = [
            event("us", "patch", "pods", "status"),
            event("us", "create", "pods", ""),
            event("us", "patch", "pods", "status"),
            event("us", "update", "leases", ""),
            event("them", "create", "pods", ""),
        ];
        count.add("worker", "us", &events);
        assert_eq!(count.total(), 3);
        assert_eq!(count.lines(), [("worker: patch pods/status", 2), ("worker: create pods", 1)]);
    }

    #[test]
    fn writes_about_one_object_are_told_from_those_about_others() {
        let named = |name: &str, event: AuditEvent| AuditEvent {
            object_ref: AuditObject { name: name.to_owned(), ..event.object_ref },
            ..event
        };
        let events = [
            named("a", event("us", "patch", "nodes", "status")),
            named("b", event("us", "patch", "nodes", "status")),
            named("b", event("us", "update", "nodes", "status")),
            named("b", event("us", "patch", "nodes", "")),
            named("b", event("us", "get", "nodes", "status")),
            named("a", event("them", "patch", "nodes", "status")),
        ];
        assert_eq!(RequestCount::most_writes_of_one("us", "nodes/status", &events), 2);
        assert_eq!(RequestCount::most_writes_of_one("us", "nodes", &events), 1);
        assert_eq!(RequestCount::most_writes_of_one("us", "pods", &events), 0);
    }

    #[test]
    fn writes_of_two_clusters_are_one_count() {
        let mut count = RequestCount::writes(
            "us",
            "a",
            &[event("us", "get", "nodes", ""), event("us", "patch", "nodes", "")],
        );
        count.merge(RequestCount::writes("us", "b", &[event("us", "create", "pods", "")]));
        assert_eq!((count.total(), count.lines().len()), (2, 2));
    }
}
