//! Nodes of test cases, in the form the SDK's harness takes.
//!
//! Pure.

use std::{collections::BTreeMap, sync::Arc};

use kubeocean_api::{quantity::Rounding, resource::to_base_units};
use kubeocean_engine::{NodeFacts, Published};
use serde::Deserialize;

type Texts = BTreeMap<String, String>;
type Quantities = BTreeMap<String, Written>;

/// A quantity as people write it in YAML: `8`, `5.9` or `64Gi`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Scalar")]
pub(super) struct Written(pub(super) String);

#[derive(Deserialize)]
#[serde(untagged)]
enum Scalar {
    Int(i64),
    Float(f64),
    Text(String),
}

impl From<Scalar> for Written {
    fn from(scalar: Scalar) -> Self {
        Self(match scalar {
            Scalar::Int(number) => number.to_string(),
            Scalar::Float(number) => number.to_string(),
            Scalar::Text(text) => text,
        })
    }
}

/// A node as a file says it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct NodeForm {
    name: Option<String>,
    vnode_name: Option<String>,
    arch: String,
    os: String,
    binding_name: String,
    cluster_id: String,
    rlp_name: Option<String>,
    labels: Texts,
    annotations: Texts,
    taints: Texts,
    ready: Option<Flag>,
    schedulable: Option<Flag>,
    created: i64,
    vnode_exists: Option<Flag>,
    allocatable: Quantities,
    used: Quantities,
    leased: Quantities,
    usage: Quantities,
    /// Of a resource without `allocatable`: what is there and free.
    available: Quantities,
    published: Option<PublishedForm>,
}

/// What the vnode publishes before the decision.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PublishedForm {
    #[serde(default)]
    amounts: Quantities,
    #[serde(default = "yes")]
    offered: bool,
    #[serde(default)]
    valid_until: Option<i64>,
}

fn yes() -> bool {
    true
}

#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum Flag {
    Bool(bool),
    Number(i64),
}

impl Flag {
    pub(super) fn is_set(self) -> bool {
        match self {
            Self::Bool(flag) => flag,
            Self::Number(number) => number != 0,
        }
    }
}

/// A node and what the host around it says.
#[derive(Clone, Debug)]
pub(super) struct Fixture {
    pub(super) facts: Arc<NodeFacts>,
    pub(super) binding: String,
    pub(super) cluster_id: String,
    /// Name of the policy.
    pub(super) policy: Option<String>,
}

impl NodeForm {
    /// The facts, in base units.
    pub(super) fn facts(&self) -> Result<Fixture, String> {
        let mut allocatable = amounts("node.allocatable", &self.allocatable, Rounding::Down)?;
        let used = amounts("node.used", &self.used, Rounding::Up)?;
        for (resource, free) in amounts("node.available", &self.available, Rounding::Down)? {
            if allocatable.contains_key(&resource) || used.contains_key(&resource) {
                return Err(format!(
                    "node.available.{resource}: follows from allocatable and used, give these or that"
                ));
            }
            allocatable.insert(resource, free);
        }
        let published = self
            .published
            .as_ref()
            .map(|form| {
                let amounts = amounts("node.published.amounts", &form.amounts, Rounding::Down)?;
                Ok::<_, String>(Published { amounts, offered: form.offered, valid_until: form.valid_until })
            })
            .transpose()?;
        let text =
            |value: &Option<String>, default: &str| value.clone().unwrap_or_else(|| default.to_owned());
        let facts = NodeFacts {
            node_name: text(&self.name, "node-1"),
            vnode_name: text(&self.vnode_name, "vnode-c1-node-1"),
            labels: self.labels.clone(),
            annotations: self.annotations.clone(),
            taints: self.taints.clone(),
            arch: self.arch.clone(),
            os: self.os.clone(),
            allocatable,
            used,
            leased: amounts("node.leased", &self.leased, Rounding::Up)?,
            usage: amounts("node.usage", &self.usage, Rounding::Up)?,
            ready: self.ready.is_none_or(Flag::is_set),
            schedulable: self.schedulable.is_none_or(Flag::is_set),
            created_unix: self.created,
            vnode_exists: self.vnode_exists.is_none_or(Flag::is_set),
            published,
        };
        Ok(Fixture {
            facts: Arc::new(facts),
            binding: self.binding_name.clone(),
            cluster_id: self.cluster_id.clone(),
            policy: self.rlp_name.clone(),
        })
    }
}

/// Quantities in base units; `member` is where they are.
pub(super) fn amounts(
    member: &str,
    written: &Quantities,
    rounding: Rounding,
) -> Result<BTreeMap<String, i64>, String> {
    let one = |(resource, quantity): (&String, &Written)| {
        let amount = to_base_units(resource, &quantity.0, rounding)
            .map_err(|_| format!("{member}.{resource}: {:?} is no quantity", quantity.0))?;
        Ok((resource.clone(), amount))
    };
    written.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(text: &str) -> Result<Fixture, String> {
        serde_saphyr::from_str::<NodeForm>(text).map_err(|error| error.to_string())?.facts()
    }

    #[test]
    fn a_node_has_what_its_form_says_in_base_units() {
        let node = facts("{allocatable: {cpu: 1.5, memory: 1Ki}, used: {cpu: 100.5m}, ready: 0, rlpName: p}")
            .unwrap();
        assert_eq!(node.facts.allocatable, [("cpu".into(), 1500), ("memory".into(), 1024)].into());
        assert_eq!(node.facts.used["cpu"], 101);
        assert!(!node.facts.ready && node.facts.schedulable && node.facts.vnode_exists);
        assert_eq!((node.policy.as_deref(), node.facts.node_name.as_str()), (Some("p"), "node-1"));
    }

    #[test]
    fn what_is_available_is_given_or_follows() {
        assert_eq!(facts("{available: {cpu: 2}}").unwrap().facts.available("cpu"), 2000);
        assert!(facts("{available: {cpu: 2}, used: {cpu: 1}}").unwrap_err().contains("node.available.cpu"));
        assert!(facts("{used: {cpu: much}}").unwrap_err().contains("node.used.cpu: \"much\""));
    }
}
