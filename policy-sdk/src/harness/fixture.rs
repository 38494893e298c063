//! Nodes and pods of a test. In: JSON in the form of the YAML test cases; out: facts by name. Used by the harness.
//! Invariant: the same facts exist, and are absent or 0, as in the host (PO-404); a fact the host does not know fails.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::quantity::{Quantity, Rounding};

/// The facts of one node or pod.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fixture {
    texts: BTreeMap<String, String>,
    numbers: BTreeMap<String, i64>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Node,
    Pod,
}

/// Member -> fact.
const NODE_TEXTS: [(&str, &str); 7] = [
    ("name", "node.name"),
    ("vnodeName", "vnode.name"),
    ("arch", "node.arch"),
    ("os", "node.os"),
    ("bindingName", "binding.name"),
    ("clusterId", "cluster.id"),
    ("rlpName", "rlp.name"),
];
const NODE_MAPS: [(&str, &str); 3] =
    [("labels", "label/"), ("annotations", "annotation/"), ("taints", "taint/")];
const NODE_NUMBERS: [(&str, &str, i64); 4] = [
    ("ready", "node.ready", 1),
    ("schedulable", "node.schedulable", 1),
    ("created", "node.created", 0),
    ("vnodeExists", "vnode.exists", 1),
];
/// Member -> fact prefix, and which way a part of a unit goes (PO-202).
const NODE_AMOUNTS: [(&str, &str, Rounding); 6] = [
    ("allocatable", "allocatable/", Rounding::Down),
    ("used", "used/", Rounding::Up),
    ("leased", "leased/", Rounding::Up),
    ("usage", "usage/", Rounding::Up),
    ("available", "available/", Rounding::Down),
    ("proposed", "proposed/", Rounding::Down),
];
const POD_TEXTS: [(&str, &str); 7] = [
    ("name", "pod.name"),
    ("namespace", "pod.namespace"),
    ("serviceAccount", "pod.service-account"),
    ("priorityClass", "pod.priority-class"),
    ("schedulerName", "pod.scheduler-name"),
    ("ownerKind", "pod.owner-kind"),
    ("ownerName", "pod.owner-name"),
];
const POD_MAPS: [(&str, &str); 3] =
    [("labels", "label/"), ("annotations", "annotation/"), ("nodeSelector", "node-selector/")];
const POD_NUMBERS: [(&str, &str, i64); 4] = [
    ("priority", "pod.priority", 0),
    ("containers", "pod.containers", 1),
    ("hostNetwork", "pod.host-network", 0),
    ("created", "pod.created", 0),
];
const POD_AMOUNTS: [(&str, &str, Rounding); 2] =
    [("requests", "request/", Rounding::Up), ("limits", "limit/", Rounding::Up)];

impl Fixture {
    /// A node; see [`crate::node!`].
    ///
    /// # Panics
    ///
    /// When a member is unknown or has the wrong form.
    pub fn node(body: &Value) -> Self {
        let mut fixture = Self::read(body, Kind::Node, &NODE_TEXTS, &NODE_MAPS, &NODE_NUMBERS, &NODE_AMOUNTS);
        for (fact, default) in [("node.name", "node-1"), ("vnode.name", "vnode-c1-node-1")] {
            fixture.texts.entry(fact.to_owned()).or_insert_with(|| default.to_owned());
        }
        fixture
    }

    /// A pod; see [`crate::pod!`].
    ///
    /// # Panics
    ///
    /// When a member is unknown or has the wrong form.
    pub fn pod(body: &Value) -> Self {
        let mut fixture = Self::read(body, Kind::Pod, &POD_TEXTS, &POD_MAPS, &POD_NUMBERS, &POD_AMOUNTS);
        for (fact, default) in [("pod.name", "pod-1"), ("pod.namespace", "default")] {
            fixture.texts.entry(fact.to_owned()).or_insert_with(|| default.to_owned());
        }
        fixture
    }

    #[expect(clippy::panic, reason = "a fixture is test code; a wrong one must fail the test")]
    fn read(
        body: &Value,
        kind: Kind,
        texts: &[(&str, &str)],
        maps: &[(&str, &str)],
        numbers: &[(&str, &str, i64)],
        amounts: &[(&str, &str, Rounding)],
    ) -> Self {
        let mut fixture = Self { kind, ..Self::default() };
        for (_, fact, default) in numbers {
            fixture.numbers.insert((*fact).to_owned(), *default);
        }
        for (member, value) in object(body, "fixture") {
            if let Some((_, fact)) = texts.iter().find(|(name, _)| name == member) {
                fixture.texts.insert((*fact).to_owned(), text(value, member));
            } else if let Some((_, prefix)) = maps.iter().find(|(name, _)| name == member) {
                for (key, value) in object(value, member) {
                    fixture.texts.insert(format!("{prefix}{key}"), text(value, member));
                }
            } else if let Some((_, fact, _)) = numbers.iter().find(|(name, _, _)| name == member) {
                fixture.numbers.insert((*fact).to_owned(), number(value, member));
            } else if let Some((_, prefix, rounding)) = amounts.iter().find(|(name, _, _)| name == member) {
                for (resource, value) in object(value, member) {
                    let amount = quantity(value, resource).base_units(resource, *rounding);
                    fixture.numbers.insert(format!("{prefix}{resource}"), amount);
                }
            } else {
                panic!("a fixture has no member {member:?}");
            }
        }
        fixture
    }

    /// A text fact; `None` when the object does not have it.
    pub(super) fn text(&self, fact: &str) -> Option<&str> {
        let (name, optional) = split_optional(fact);
        let (names, maps): (&[_], &[_]) = match self.kind {
            Kind::Node => (&NODE_TEXTS, &NODE_MAPS),
            Kind::Pod => (&POD_TEXTS, &POD_MAPS),
        };
        let known = names.iter().any(|(_, fact)| *fact == name)
            || maps.iter().any(|(_, prefix)| name.starts_with(prefix));
        assert!(known || optional, "UnknownFact: there is no text fact {name:?}");
        self.texts.get(name).map(String::as_str)
    }

    /// A number fact; `None` when the object does not have it.
    #[expect(clippy::panic, reason = "PO-703 UnknownFact: the host refuses such a module")]
    pub(super) fn number(&self, fact: &str) -> Option<i64> {
        let (name, optional) = split_optional(fact);
        if let Some(number) = self.numbers.get(name) {
            return Some(*number);
        }
        match (self.kind, name.split_once('/')) {
            (Kind::Node, Some(("available", resource))) => {
                let used = self.number(&format!("used/{resource}")).unwrap_or(0);
                self.number(&format!("allocatable/{resource}")).map(|all| (all - used).max(0))
            }
            (Kind::Node, Some(("proposed", resource))) => self.number(&format!("available/{resource}")),
            (Kind::Node, Some(("allocatable" | "used" | "leased", _)))
            | (Kind::Pod, Some(("request", _))) => Some(0),
            (Kind::Node, Some(("usage", _))) | (Kind::Pod, Some(("limit", _))) => None,
            _ if optional => None,
            _ => panic!("UnknownFact: there is no number fact {name:?}"),
        }
    }
}

/// The name of a fact without the mark of optional facts.
fn split_optional(fact: &str) -> (&str, bool) {
    fact.strip_prefix('?').map_or((fact, false), |name| (name, true))
}

#[expect(clippy::panic, reason = "a fixture is test code; a wrong one must fail the test")]
fn object<'a>(value: &'a Value, member: &str) -> &'a Map<String, Value> {
    value.as_object().unwrap_or_else(|| panic!("{member} must be an object, not {value}"))
}

fn text(value: &Value, member: &str) -> String {
    value.as_str().unwrap_or_else(|| fail(member, value)).to_owned()
}

fn number(value: &Value, member: &str) -> i64 {
    value.as_bool().map(i64::from).or_else(|| value.as_i64()).unwrap_or_else(|| fail(member, value))
}

fn quantity(value: &Value, resource: &str) -> Quantity {
    serde_json::from_value(value.clone()).unwrap_or_else(|_| fail(resource, value))
}

#[expect(clippy::panic, reason = "a fixture is test code; a wrong one must fail the test")]
fn fail<T>(member: &str, value: &Value) -> T {
    panic!("{member} cannot be {value}")
}
