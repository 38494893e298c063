//! Kubernetes node selectors. In: the API's `NodeSelector`; out: a [`Selector`] that knows its columns, and its verdict
//! per node. Used by `node-labels` and by any policy that selects nodes. Invariant: a malformed term matches nothing
//! and never makes the selector fail (PO-531), so one typo cannot widen what is leased.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::needs::{Needs, TextColumn};
use crate::row::Node;

/// Terms are ORed; an absent or empty list matches every node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelector {
    /// The terms; a node that matches one of them matches.
    pub node_selector_terms: Option<Vec<NodeSelectorTerm>>,
}

/// Requirements are ANDed; a term without any matches no node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct NodeSelectorTerm {
    /// Requirements on labels.
    pub match_expressions: Option<Vec<NodeSelectorRequirement>>,
    /// Requirements on fields; only `metadata.name` exists.
    pub match_fields: Option<Vec<NodeSelectorRequirement>>,
}

/// One requirement.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
pub struct NodeSelectorRequirement {
    /// Label key, or `metadata.name` for fields.
    pub key: String,
    /// In, NotIn, Exists, DoesNotExist, Gt or Lt; another word makes the term match nothing.
    pub operator: String,
    /// Values for In and NotIn (at least one), Gt and Lt (exactly one integer).
    #[serde(default)]
    pub values: Option<Vec<String>>,
}

/// A node selector with its facts declared.
#[derive(Clone, Debug)]
pub struct Selector {
    /// `None` matches every node. Terms that match nothing are left out.
    terms: Option<Vec<Vec<Requirement>>>,
    warnings: Vec<String>,
}

#[derive(Clone, Debug)]
struct Requirement {
    column: TextColumn,
    test: Test,
}

#[derive(Clone, Debug)]
enum Test {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
    Gt(i64),
    Lt(i64),
}

impl Selector {
    /// Compiles `selector` and declares the labels (and `node.name`, if fields are matched) in `needs`.
    pub fn new(selector: Option<&NodeSelector>, needs: &mut Needs) -> Self {
        let terms = selector.and_then(|selector| selector.node_selector_terms.as_deref()).unwrap_or_default();
        if terms.is_empty() {
            return Self { terms: None, warnings: Vec::new() };
        }
        let mut warnings = Vec::new();
        let mut compiled = Vec::with_capacity(terms.len());
        for (index, term) in terms.iter().enumerate() {
            match compile_term(term, needs) {
                Ok(requirements) => compiled.push(requirements),
                Err(fault) => {
                    warnings.push(format!("nodeSelectorTerms[{index}] matches no node: {fault}"));
                }
            }
        }
        Self { terms: Some(compiled), warnings }
    }

    /// Terms that match nothing, and why.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether `node` matches.
    pub fn matches(&self, node: Node<'_>) -> bool {
        let Some(terms) = &self.terms else { return true };
        terms.iter().any(|term| term.iter().all(|requirement| requirement.matches(node)))
    }
}

fn compile_term(term: &NodeSelectorTerm, needs: &mut Needs) -> Result<Vec<Requirement>, String> {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return Err("it has no requirement".to_owned());
    }
    // All tests before any column, so that a term that is dropped reads nothing.
    let labels = expressions.iter().map(label_test).collect::<Result<Vec<_>, _>>()?;
    let names = fields.iter().map(field_test).collect::<Result<Vec<_>, _>>()?;
    let labels = expressions.iter().map(|requirement| format!("label/{}", requirement.key)).zip(labels);
    let names = names.into_iter().map(|test| ("node.name".to_owned(), test));
    Ok(labels.chain(names).map(|(fact, test)| Requirement { column: needs.add_text(fact), test }).collect())
}

fn label_test(requirement: &NodeSelectorRequirement) -> Result<Test, String> {
    let values = requirement.values.as_deref().unwrap_or_default();
    if !is_label_key(&requirement.key) {
        return Err(format!("{:?} is not a label key", requirement.key));
    }
    if let Some(value) = values.iter().find(|value| !is_label_value(value)) {
        return Err(format!("{value:?} is not a label value"));
    }
    match (requirement.operator.as_str(), values) {
        ("In" | "NotIn", []) => Err(format!("{} needs values", requirement.operator)),
        ("In", values) => Ok(Test::In(values.to_vec())),
        ("NotIn", values) => Ok(Test::NotIn(values.to_vec())),
        ("Exists", []) => Ok(Test::Exists),
        ("DoesNotExist", []) => Ok(Test::DoesNotExist),
        ("Exists" | "DoesNotExist", _) => Err(format!("{} takes no values", requirement.operator)),
        ("Gt", [value]) => integer(value).map(Test::Gt),
        ("Lt", [value]) => integer(value).map(Test::Lt),
        ("Gt" | "Lt", _) => Err(format!("{} needs exactly one value", requirement.operator)),
        (operator, _) => Err(format!("{operator:?} is not an operator")),
    }
}

fn integer(value: &str) -> Result<i64, String> {
    value.parse().map_err(|_| format!("{value:?} is not an integer"))
}

/// `metadata.name` with In and any number of values, or NotIn with one (API-303).
fn field_test(requirement: &NodeSelectorRequirement) -> Result<Test, String> {
    let values = requirement.values.as_deref().unwrap_or_default();
    if requirement.key != "metadata.name" {
        return Err(format!("field {:?} is not supported", requirement.key));
    }
    match (requirement.operator.as_str(), values) {
        ("In", [_, ..]) => Ok(Test::In(values.to_vec())),
        ("NotIn", [_]) => Ok(Test::NotIn(values.to_vec())),
        ("In", []) => Err("In needs values".to_owned()),
        ("NotIn", _) => Err("NotIn on a field needs exactly one value".to_owned()),
        (operator, _) => Err(format!("{operator:?} is not an operator for fields")),
    }
}

impl Requirement {
    fn matches(&self, node: Node<'_>) -> bool {
        let actual = node.text_at(self.column);
        match &self.test {
            Test::In(values) => actual.is_some_and(|actual| values.iter().any(|value| value == actual)),
            Test::NotIn(values) => actual.is_none_or(|actual| values.iter().all(|value| value != actual)),
            Test::Exists => actual.is_some(),
            Test::DoesNotExist => actual.is_none(),
            Test::Gt(bound) => number(actual).is_some_and(|actual| actual > *bound),
            Test::Lt(bound) => number(actual).is_some_and(|actual| actual < *bound),
        }
    }
}

fn number(text: Option<&str>) -> Option<i64> {
    text?.parse().ok()
}

/// Longest name part of a label key, and longest label value.
const MAX_NAME: usize = 63;
/// Longest prefix of a label key.
const MAX_PREFIX: usize = 253;

/// Begins and ends with a letter or digit, with `-`, `_` and `.` allowed between.
fn is_name(text: &str) -> bool {
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    bytes.len() <= MAX_NAME
        && edge(bytes.first())
        && edge(bytes.last())
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
}

fn is_label_value(text: &str) -> bool {
    text.is_empty() || is_name(text)
}

fn is_label_key(text: &str) -> bool {
    match text.split_once('/') {
        None => is_name(text),
        Some((prefix, name)) => is_dns_subdomain(prefix) && is_name(name),
    }
}

/// Labels of lower-case letters, digits and `-`, joined with `.`.
fn is_dns_subdomain(text: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    text.len() <= MAX_PREFIX
        && text.split('.').all(|label| {
            let bytes = label.as_bytes();
            bytes.first().is_some_and(|byte| inner(*byte))
                && bytes.last().is_some_and(|byte| inner(*byte))
                && bytes.iter().all(|byte| inner(*byte) || *byte == b'-')
        })
}

#[cfg(test)]
mod tests;
