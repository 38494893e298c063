//! Twin of `node-labels` (PO-531): evaluates the selector's JSON for every node anew.

use std::collections::BTreeMap;

use serde_json::Value;

/// A selector, for benches that decide many times.
#[derive(Clone, Debug)]
pub struct NodeLabelsTwin {
    selector: Value,
}

impl NodeLabelsTwin {
    /// Takes a Kubernetes NodeSelector (or null).
    pub fn new(selector: &Value) -> Self {
        Self { selector: selector.clone() }
    }

    /// Whether a node matches.
    pub fn matches(&self, labels: &BTreeMap<String, String>, name: &str) -> bool {
        node_labels(&self.selector, labels, name)
    }
}

/// Whether a node with `labels` and `name` matches the Kubernetes NodeSelector `selector`.
pub fn node_labels(selector: &Value, labels: &BTreeMap<String, String>, name: &str) -> bool {
    let empty = Vec::new();
    let terms = selector["nodeSelectorTerms"].as_array().unwrap_or(&empty);
    terms.is_empty() || terms.iter().any(|term| matches_term(term, labels, name).unwrap_or(false))
}

/// `None`: the term is malformed. Every requirement is checked before the term's verdict counts.
fn matches_term(term: &Value, labels: &BTreeMap<String, String>, name: &str) -> Option<bool> {
    let empty = Vec::new();
    let expressions = term["matchExpressions"].as_array().unwrap_or(&empty);
    let fields = term["matchFields"].as_array().unwrap_or(&empty);
    if expressions.is_empty() && fields.is_empty() {
        return Some(false);
    }
    let mut verdict = true;
    for requirement in expressions {
        verdict &= matches_label(requirement, labels)?;
    }
    for requirement in fields {
        verdict &= matches_field(requirement, name)?;
    }
    Some(verdict)
}

fn values(requirement: &Value) -> Vec<&str> {
    requirement["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

fn matches_label(requirement: &Value, labels: &BTreeMap<String, String>) -> Option<bool> {
    let key = requirement["key"].as_str()?;
    let values = values(requirement);
    if !is_key(key) || !values.iter().all(|value| value.is_empty() || is_name(value)) {
        return None;
    }
    let actual = labels.get(key).map(String::as_str);
    match (requirement["operator"].as_str()?, values.len()) {
        ("In", 1..) => Some(actual.is_some_and(|actual| values.contains(&actual))),
        ("NotIn", 1..) => Some(!actual.is_some_and(|actual| values.contains(&actual))),
        ("Exists", 0) => Some(actual.is_some()),
        ("DoesNotExist", 0) => Some(actual.is_none()),
        ("Gt", 1) => compare(actual, values[0], |actual, bound| actual > bound),
        ("Lt", 1) => compare(actual, values[0], |actual, bound| actual < bound),
        _ => None,
    }
}

fn compare(actual: Option<&str>, bound: &str, holds: fn(i64, i64) -> bool) -> Option<bool> {
    let bound = bound.parse().ok()?;
    Some(actual.and_then(|actual| actual.parse().ok()).is_some_and(|actual| holds(actual, bound)))
}

fn matches_field(requirement: &Value, name: &str) -> Option<bool> {
    if requirement["key"].as_str() != Some("metadata.name") {
        return None;
    }
    let values = values(requirement);
    match (requirement["operator"].as_str()?, values.len()) {
        ("In", 1..) => Some(values.contains(&name)),
        ("NotIn", 1) => Some(values[0] != name),
        _ => None,
    }
}

fn is_name(text: &str) -> bool {
    let mut inner = text.chars();
    let ends = inner.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && text.chars().last().is_some_and(|c| c.is_ascii_alphanumeric());
    ends && text.len() < 64 && inner.all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
}

fn is_key(key: &str) -> bool {
    let mut parts = key.rsplitn(2, '/');
    let name = parts.next().unwrap_or_default();
    let prefix_fits = parts.next().is_none_or(|prefix| {
        prefix.len() < 254
            && prefix
                .split('.')
                .all(|label| is_name(label) && label.chars().all(|c| !c.is_ascii_uppercase() && c != '_'))
    });
    is_name(name) && prefix_fits
}
