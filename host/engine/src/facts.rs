//! What decisions are projected from, and the names under which modules ask for it (policy spec section 4).
//!
//! In: [`NodeFacts`] from the caller, fact names from an evaluator's `needs`. Out: one text or number of a row.
//! Invariant: no fact changes with the clock alone (PO-401), nothing undeclared leaves this file (PO-402).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Longest fact name in bytes.
const MAX_NAME_BYTES: usize = 330;

/// Everything lease facts are projected from. Amounts are in base units (PO-202): cpu in millicores, every other
/// resource in whole units.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub struct NodeFacts {
    /// Name of the worker node.
    pub node_name: String,
    /// Name its vnode has or would get.
    pub vnode_name: String,
    /// Labels of the worker node.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the worker node.
    pub annotations: BTreeMap<String, String>,
    /// Taint key -> `value:Effect`, several joined with `,` in sorted order.
    pub taints: BTreeMap<String, String>,
    /// CPU architecture as the node reports it.
    pub arch: String,
    /// Operating system as the node reports it.
    pub os: String,
    /// Allocatable, rounded down.
    pub allocatable: BTreeMap<String, i64>,
    /// Requests of others, rounded up.
    pub used: BTreeMap<String, i64>,
    /// Requests of this binding's own pods, rounded up.
    pub leased: BTreeMap<String, i64>,
    /// Measured usage; a resource without a measurement is absent.
    pub usage: BTreeMap<String, i64>,
    /// The node's Ready condition is True.
    pub ready: bool,
    /// The node is not cordoned.
    pub schedulable: bool,
    /// Creation time of the node in unix seconds.
    pub created_unix: i64,
    /// A vnode for this node exists.
    pub vnode_exists: bool,
    /// What the vnode publishes now; `None` without a vnode.
    pub published: Option<Published>,
}

impl NodeFacts {
    /// `max(0, allocatable - used)` of one resource; 0 for a resource the node does not have.
    pub fn available(&self, resource: &str) -> i64 {
        let allocatable = self.allocatable.get(resource).copied().unwrap_or(0);
        let used = self.used.get(resource).copied().unwrap_or(0);
        allocatable.saturating_sub(used).max(0)
    }
}

/// What a vnode publishes. Stands in for an entry that never answered (PO-803) and for an invalid policy (PO-526).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
pub struct Published {
    /// Allocatable of the vnode in base units.
    pub amounts: BTreeMap<String, i64>,
    /// False when it carries the out-of-window taint.
    pub offered: bool,
    /// `validUntil` of its decision annotation in unix seconds.
    pub valid_until: Option<i64>,
}

/// The binding all nodes of one host belong to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct BindingFacts {
    /// Name of the ClusterBinding.
    pub name: String,
    /// Its cluster id.
    pub cluster_id: String,
}

/// Facts that are the same for every row of a policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct PolicyFacts {
    pub(crate) binding: BindingFacts,
    pub(crate) policy: String,
}

/// A text fact about a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum TextFact {
    NodeName,
    VnodeName,
    Label(String),
    Annotation(String),
    Taint(String),
    Arch,
    Os,
    BindingName,
    ClusterId,
    PolicyName,
    /// Optional and unknown to this host.
    Absent,
}

/// A number fact about a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NumberFact {
    Allocatable(String),
    Available(String),
    Proposed(String),
    Used(String),
    Leased(String),
    Usage(String),
    Ready,
    Schedulable,
    Created,
    VnodeExists,
    /// Optional and unknown to this host.
    Absent,
}

/// The value that stands for an absent number in a frame.
pub(crate) const ABSENT_NUMBER: i64 = i64::MIN;

/// Why a fact name is refused (load error `UnknownFact`).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct UnknownFact(pub(crate) String);

pub(crate) fn check_name(name: &str) -> Result<(&str, bool), UnknownFact> {
    if name.len() > MAX_NAME_BYTES {
        return Err(UnknownFact(format!("a fact name of {} bytes is too long", name.len())));
    }
    Ok(name.strip_prefix('?').map_or((name, false), |rest| (rest, true)))
}

pub(crate) fn unknown(name: &str, optional: bool) -> Result<(), UnknownFact> {
    if optional {
        return Ok(());
    }
    Err(UnknownFact(format!("fact {:?} is not known to this version", crate::text::printable(name, 80))))
}

impl TextFact {
    pub(crate) fn parse(name: &str) -> Result<Self, UnknownFact> {
        let (plain, optional) = check_name(name)?;
        let known = match plain {
            "node.name" => Some(Self::NodeName),
            "vnode.name" => Some(Self::VnodeName),
            "node.arch" => Some(Self::Arch),
            "node.os" => Some(Self::Os),
            "binding.name" => Some(Self::BindingName),
            "cluster.id" => Some(Self::ClusterId),
            "rlp.name" => Some(Self::PolicyName),
            _ => keyed(plain).and_then(|(scope, key)| match scope {
                "label" => Some(Self::Label(key)),
                "annotation" => Some(Self::Annotation(key)),
                "taint" => Some(Self::Taint(key)),
                _ => None,
            }),
        };
        known.map_or_else(|| unknown(plain, optional).map(|()| Self::Absent), Ok)
    }

    pub(crate) fn read<'a>(&self, node: &'a NodeFacts, policy: &'a PolicyFacts) -> Option<&'a str> {
        match self {
            Self::NodeName => Some(&node.node_name),
            Self::VnodeName => Some(&node.vnode_name),
            Self::Label(key) => node.labels.get(key).map(String::as_str),
            Self::Annotation(key) => node.annotations.get(key).map(String::as_str),
            Self::Taint(key) => node.taints.get(key).map(String::as_str),
            Self::Arch => Some(&node.arch),
            Self::Os => Some(&node.os),
            Self::BindingName => Some(&policy.binding.name),
            Self::ClusterId => Some(&policy.binding.cluster_id),
            Self::PolicyName => Some(&policy.policy),
            Self::Absent => None,
        }
    }
}

impl NumberFact {
    pub(crate) fn parse(name: &str) -> Result<Self, UnknownFact> {
        let (plain, optional) = check_name(name)?;
        let known = match plain {
            "node.ready" => Some(Self::Ready),
            "node.schedulable" => Some(Self::Schedulable),
            "node.created" => Some(Self::Created),
            "vnode.exists" => Some(Self::VnodeExists),
            _ => keyed(plain).and_then(|(scope, resource)| match scope {
                "allocatable" => Some(Self::Allocatable(resource)),
                "available" => Some(Self::Available(resource)),
                "proposed" => Some(Self::Proposed(resource)),
                "used" => Some(Self::Used(resource)),
                "leased" => Some(Self::Leased(resource)),
                "usage" => Some(Self::Usage(resource)),
                _ => None,
            }),
        };
        known.map_or_else(|| unknown(plain, optional).map(|()| Self::Absent), Ok)
    }

    /// `proposed` of a resource comes from the caller, because it is the only fact earlier entries change.
    pub(crate) fn read(&self, node: &NodeFacts, proposed: &dyn Fn(&str) -> i64) -> i64 {
        let amount = |map: &BTreeMap<String, i64>, resource: &str| map.get(resource).copied().unwrap_or(0);
        match self {
            Self::Allocatable(r) => amount(&node.allocatable, r),
            Self::Available(r) => node.available(r),
            Self::Proposed(r) => proposed(r),
            Self::Used(r) => amount(&node.used, r),
            Self::Leased(r) => amount(&node.leased, r),
            Self::Usage(r) => node.usage.get(r).copied().unwrap_or(ABSENT_NUMBER),
            Self::Ready => i64::from(node.ready),
            Self::Schedulable => i64::from(node.schedulable),
            Self::Created => node.created_unix,
            Self::VnodeExists => i64::from(node.vnode_exists),
            Self::Absent => ABSENT_NUMBER,
        }
    }
}

/// `label/a.b/c` -> `("label", "a.b/c")`; an empty key is no fact.
pub(crate) fn keyed(name: &str) -> Option<(&str, String)> {
    name.split_once('/').filter(|(_, key)| !key.is_empty()).map(|(scope, key)| (scope, key.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fact_names_are_parsed_and_unknown_ones_need_a_question_mark() {
        assert_eq!(TextFact::parse("label/a.b/c").unwrap(), TextFact::Label("a.b/c".into()));
        assert_eq!(TextFact::parse("?label/a").unwrap(), TextFact::Label("a".into()));
        assert_eq!(TextFact::parse("?node.colour").unwrap(), TextFact::Absent);
        assert!(TextFact::parse("node.colour").is_err());
        assert!(TextFact::parse("label/").is_err());
        assert!(TextFact::parse(&format!("label/{}", "x".repeat(400))).is_err());
        assert_eq!(
            NumberFact::parse("available/nvidia.com/gpu").unwrap(),
            NumberFact::Available("nvidia.com/gpu".into())
        );
        assert!(NumberFact::parse("label/a").is_err());
        assert_eq!(NumberFact::parse("?power/watts").unwrap(), NumberFact::Absent);
    }

    #[test]
    fn amounts_of_a_missing_resource_are_zero_and_missing_usage_is_absent() {
        let node = NodeFacts {
            allocatable: BTreeMap::from([("cpu".into(), 100)]),
            used: BTreeMap::from([("cpu".into(), 150)]),
            ..NodeFacts::default()
        };
        let read = |name: &str| NumberFact::parse(name).unwrap().read(&node, &|_| 7);
        assert_eq!(read("available/cpu"), 0);
        assert_eq!(read("allocatable/memory"), 0);
        assert_eq!(read("usage/cpu"), ABSENT_NUMBER);
        assert_eq!(read("proposed/cpu"), 7);
    }
}
