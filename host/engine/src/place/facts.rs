//! Facts about a pod, and which facts about a node exist for placement (policy spec section 4).
//!
//! About nodes the names are those of a lease, but labels, annotations, taints and amounts are the vnode's; what only
//! a lease knows is refused.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::facts::{ABSENT_NUMBER, NumberFact, UnknownFact, check_name, keyed, unknown};

/// Everything facts about a pod are projected from. Amounts are in base units (PO-202), rounded up, of the whole pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub struct PodFacts {
    /// Name.
    pub name: String,
    /// Namespace.
    pub namespace: String,
    /// ServiceAccount.
    pub service_account: Option<String>,
    /// Priority class.
    pub priority_class: Option<String>,
    /// Scheduler it is for.
    pub scheduler_name: Option<String>,
    /// Kind of its controller.
    pub owner_kind: Option<String>,
    /// Name of its controller.
    pub owner_name: Option<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// `spec.nodeSelector`.
    pub node_selector: BTreeMap<String, String>,
    /// What it requests.
    pub requests: BTreeMap<String, i64>,
    /// What it is limited to; a resource without a limit is absent.
    pub limits: BTreeMap<String, i64>,
    /// Priority; `None` before the API server has set it.
    pub priority: Option<i64>,
    /// Number of containers, without init and debug containers.
    pub containers: i64,
    /// It uses the network of its host.
    pub host_network: bool,
    /// Creation time in unix seconds; `None` before the API server has set it.
    pub created_unix: Option<i64>,
}

/// A text fact about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PodText {
    Name,
    Namespace,
    ServiceAccount,
    PriorityClass,
    SchedulerName,
    OwnerKind,
    OwnerName,
    Label(String),
    Annotation(String),
    NodeSelector(String),
    /// Optional and unknown to this host.
    Absent,
}

/// A number fact about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PodNumber {
    Request(String),
    Limit(String),
    Priority,
    Containers,
    HostNetwork,
    Created,
    /// Optional and unknown to this host.
    Absent,
}

impl PodText {
    pub(crate) fn parse(name: &str) -> Result<Self, UnknownFact> {
        let (plain, optional) = check_name(name)?;
        let known = match plain {
            "pod.name" => Some(Self::Name),
            "pod.namespace" => Some(Self::Namespace),
            "pod.service-account" => Some(Self::ServiceAccount),
            "pod.priority-class" => Some(Self::PriorityClass),
            "pod.scheduler-name" => Some(Self::SchedulerName),
            "pod.owner-kind" => Some(Self::OwnerKind),
            "pod.owner-name" => Some(Self::OwnerName),
            _ => keyed(plain).and_then(|(scope, key)| match scope {
                "label" => Some(Self::Label(key)),
                "annotation" => Some(Self::Annotation(key)),
                "node-selector" => Some(Self::NodeSelector(key)),
                _ => None,
            }),
        };
        known.map_or_else(|| unknown(plain, optional).map(|()| Self::Absent), Ok)
    }

    pub(crate) fn read<'p>(&self, pod: &'p PodFacts) -> Option<&'p str> {
        match self {
            Self::Name => Some(&pod.name),
            Self::Namespace => Some(&pod.namespace),
            Self::ServiceAccount => pod.service_account.as_deref(),
            Self::PriorityClass => pod.priority_class.as_deref(),
            Self::SchedulerName => pod.scheduler_name.as_deref(),
            Self::OwnerKind => pod.owner_kind.as_deref(),
            Self::OwnerName => pod.owner_name.as_deref(),
            Self::Label(key) => pod.labels.get(key).map(String::as_str),
            Self::Annotation(key) => pod.annotations.get(key).map(String::as_str),
            Self::NodeSelector(key) => pod.node_selector.get(key).map(String::as_str),
            Self::Absent => None,
        }
    }
}

impl PodNumber {
    pub(crate) fn parse(name: &str) -> Result<Self, UnknownFact> {
        let (plain, optional) = check_name(name)?;
        let known = match plain {
            "pod.priority" => Some(Self::Priority),
            "pod.containers" => Some(Self::Containers),
            "pod.host-network" => Some(Self::HostNetwork),
            "pod.created" => Some(Self::Created),
            _ => keyed(plain).and_then(|(scope, resource)| match scope {
                "request" => Some(Self::Request(resource)),
                "limit" => Some(Self::Limit(resource)),
                _ => None,
            }),
        };
        known.map_or_else(|| unknown(plain, optional).map(|()| Self::Absent), Ok)
    }

    pub(crate) fn read(&self, pod: &PodFacts) -> i64 {
        match self {
            Self::Request(r) => pod.requests.get(r).copied().unwrap_or(0),
            Self::Limit(r) => pod.limits.get(r).copied().unwrap_or(ABSENT_NUMBER),
            Self::Priority => pod.priority.unwrap_or(ABSENT_NUMBER),
            Self::Containers => pod.containers,
            Self::HostNetwork => i64::from(pod.host_network),
            Self::Created => pod.created_unix.unwrap_or(ABSENT_NUMBER),
            Self::Absent => ABSENT_NUMBER,
        }
    }
}

/// A number fact about a candidate vnode. What only a lease knows is unknown here.
pub(crate) fn node_number(name: &str) -> Result<NumberFact, UnknownFact> {
    match NumberFact::parse(name)? {
        NumberFact::Proposed(_)
        | NumberFact::Used(_)
        | NumberFact::Leased(_)
        | NumberFact::Created
        | NumberFact::VnodeExists => unknown(name, name.starts_with('?')).map(|()| NumberFact::Absent),
        known @ (NumberFact::Allocatable(_)
        | NumberFact::Available(_)
        | NumberFact::Usage(_)
        | NumberFact::Ready
        | NumberFact::Schedulable
        | NumberFact::Absent) => Ok(known),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_specification_is_known() {
        for name in [
            "pod.name",
            "pod.namespace",
            "pod.service-account",
            "pod.priority-class",
            "pod.scheduler-name",
            "pod.owner-kind",
            "pod.owner-name",
            "label/a",
            "annotation/a",
            "node-selector/a",
        ] {
            assert!(!matches!(PodText::parse(name), Ok(PodText::Absent) | Err(_)), "{name}");
            assert!(PodNumber::parse(name).is_err(), "{name}");
        }
        for name in
            ["request/cpu", "limit/cpu", "pod.priority", "pod.containers", "pod.host-network", "pod.created"]
        {
            assert!(!matches!(PodNumber::parse(name), Ok(PodNumber::Absent) | Err(_)), "{name}");
        }
        assert_eq!(PodText::parse("?pod.mood").unwrap(), PodText::Absent);
        assert!(PodText::parse("pod.mood").is_err());
    }

    #[test]
    fn facts_of_a_lease_alone_are_unknown_to_placement() {
        for name in ["allocatable/cpu", "available/cpu", "usage/cpu", "node.ready", "node.schedulable"] {
            assert!(node_number(name).is_ok(), "{name}");
        }
        for name in ["proposed/cpu", "used/cpu", "leased/cpu", "node.created", "vnode.exists"] {
            assert!(node_number(name).is_err(), "{name}");
            assert_eq!(node_number(&format!("?{name}")).unwrap(), NumberFact::Absent);
        }
    }

    #[test]
    fn a_request_is_zero_and_a_limit_absent_when_not_set() {
        let pod = PodFacts::default();
        let read = |name: &str| PodNumber::parse(name).unwrap().read(&pod);
        assert_eq!(
            (read("request/cpu"), read("limit/cpu"), read("pod.priority")),
            (0, ABSENT_NUMBER, ABSENT_NUMBER)
        );
    }
}
