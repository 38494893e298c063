//! The core/v1 NodeSelector in its wire form (API section 3). Its meaning is the `node-labels` policy module's; here is
//! only what is wrong with one, in the module's words, for people (PO-531).

use std::collections::BTreeSet;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which nodes are meant: terms are ORed, the requirements inside a term ANDed. No terms means every node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic", "required" = ["nodeSelectorTerms"]))]
pub struct NodeSelector {
    /// Alternatives; a node matches if one of them does.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub node_selector_terms: Vec<NodeSelectorTerm>,
}

impl NodeSelector {
    /// Whether the selector has no terms and therefore means every node (API-301).
    pub fn selects_everything(&self) -> bool {
        self.node_selector_terms.is_empty()
    }

    /// Terms that can match no node, each with the reason.
    pub fn mistakes(&self) -> Vec<String> {
        let terms = self.node_selector_terms.iter().enumerate();
        terms
            .filter_map(|(index, term)| Some(format!("nodeSelectorTerms[{index}] {}", term.mistake()?)))
            .collect()
    }

    /// Number of facts about a node that must be read to evaluate the selector: distinct label keys, and the name.
    pub fn facts(&self) -> usize {
        let good = || self.node_selector_terms.iter().filter(|term| term.mistake().is_none());
        let keys: BTreeSet<&str> =
            good().flat_map(|term| &term.match_expressions).map(|one| one.key.as_str()).collect();
        keys.len() + usize::from(good().any(|term| !term.match_fields.is_empty()))
    }
}

impl NodeSelectorTerm {
    fn mistake(&self) -> Option<String> {
        if self.match_expressions.is_empty() && self.match_fields.is_empty() {
            return Some("has no requirement".to_owned());
        }
        let labels = self.match_expressions.iter().find_map(NodeSelectorRequirement::label_mistake);
        labels.or_else(|| self.match_fields.iter().find_map(NodeSelectorRequirement::field_mistake))
    }
}

impl NodeSelectorRequirement {
    fn label_mistake(&self) -> Option<String> {
        let operator = self.operator.as_str();
        if !is_label_key(&self.key) {
            return Some(format!("has {:?}, which is not a label key", self.key));
        }
        if let Some(value) = self.values.iter().find(|value| !value.is_empty() && !is_name(value)) {
            return Some(format!("has {value:?}, which is not a label value"));
        }
        match (operator, self.values.as_slice()) {
            ("In" | "NotIn", []) => Some(format!("has {operator} without values")),
            ("In" | "NotIn", _) | ("Exists" | "DoesNotExist", []) => None,
            ("Exists" | "DoesNotExist", _) => Some(format!("has {operator} with values")),
            ("Gt" | "Lt", [value]) if value.parse::<i64>().is_ok() => None,
            ("Gt" | "Lt", _) => Some(format!("has {operator} without exactly one integer")),
            _ => Some(format!("has the unknown operator {operator:?}")),
        }
    }

    fn field_mistake(&self) -> Option<String> {
        match (self.key.as_str(), self.operator.as_str(), self.values.as_slice()) {
            ("metadata.name", "In", [_, ..]) | ("metadata.name", "NotIn", [_]) => None,
            ("metadata.name", operator, _) => Some(format!("has {operator:?} on a field with other values")),
            (key, ..) => Some(format!("has the unknown field {key:?}")),
        }
    }
}

/// Longest name part of a label key, and longest label value.
const MAX_NAME: usize = 63;
/// Longest prefix of a label key.
const MAX_PREFIX: usize = 253;

fn is_name(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= MAX_NAME
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

fn is_label_key(text: &str) -> bool {
    let label = |part: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = part.as_bytes();
        bytes.first().is_some_and(|byte| inner(*byte))
            && bytes.last().is_some_and(|byte| inner(*byte))
            && bytes.iter().all(|byte| inner(*byte) || *byte == b'-')
    };
    match text.split_once('/') {
        None => is_name(text),
        Some((prefix, name)) => prefix.len() <= MAX_PREFIX && prefix.split('.').all(label) && is_name(name),
    }
}

/// Requirements that must all hold. A term without any matches nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-map-type" = "atomic"))]
pub struct NodeSelectorTerm {
    /// Requirements on labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub match_expressions: Vec<NodeSelectorRequirement>,
    /// Requirements on fields; only `metadata.name` exists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub match_fields: Vec<NodeSelectorRequirement>,
}

/// One requirement.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct NodeSelectorRequirement {
    /// Label key, or `metadata.name` in a field requirement.
    pub key: String,
    /// `In`, `NotIn`, `Exists`, `DoesNotExist`, `Gt` or `Lt`.
    pub operator: String,
    /// Values the operator compares with; empty for `Exists` and `DoesNotExist`, one integer for `Gt` and `Lt`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub values: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn requirement(key: &str, operator: &str, values: &[&str]) -> NodeSelectorRequirement {
        let values = values.iter().map(|value| (*value).to_owned()).collect();
        NodeSelectorRequirement { key: key.into(), operator: operator.into(), values }
    }

    #[rstest]
    #[case::of_labels(&[requirement("example.com/pool", "In", &["a", ""]), requirement("n", "Gt", &["3"])], &[], None)]
    #[case::of_names(&[], &[requirement("metadata.name", "In", &["a", "b"])], None)]
    #[case::empty(&[], &[], Some("nodeSelectorTerms[0] has no requirement"))]
    #[case::operator(&[requirement("pool", "in", &["a"])], &[], Some("nodeSelectorTerms[0] has the unknown operator \"in\""))]
    #[case::no_values(&[requirement("pool", "In", &[])], &[], Some("nodeSelectorTerms[0] has In without values"))]
    #[case::values(&[requirement("pool", "Exists", &["a"])], &[], Some("nodeSelectorTerms[0] has Exists with values"))]
    #[case::number(&[requirement("pool", "Lt", &["x"])], &[], Some("nodeSelectorTerms[0] has Lt without exactly one integer"))]
    #[case::key(&[requirement("-pool", "Exists", &[])], &[], Some("nodeSelectorTerms[0] has \"-pool\", which is not a label key"))]
    #[case::value(&[requirement("pool", "In", &["a b"])], &[], Some("nodeSelectorTerms[0] has \"a b\", which is not a label value"))]
    #[case::field(&[], &[requirement("spec.x", "In", &["a"])], Some("nodeSelectorTerms[0] has the unknown field \"spec.x\""))]
    #[case::names_not_in(&[], &[requirement("metadata.name", "NotIn", &["a", "b"])], Some("nodeSelectorTerms[0] has \"NotIn\" on a field with other values"))]
    fn a_term_that_can_match_nothing_is_told(
        #[case] labels: &[NodeSelectorRequirement],
        #[case] fields: &[NodeSelectorRequirement],
        #[case] mistake: Option<&str>,
    ) {
        let term = NodeSelectorTerm { match_expressions: labels.to_vec(), match_fields: fields.to_vec() };
        let selector = NodeSelector { node_selector_terms: vec![term] };
        assert_eq!(selector.mistakes(), mistake.into_iter().collect::<Vec<_>>());
        assert_eq!(selector.facts() > 0, mistake.is_none());
    }
}
