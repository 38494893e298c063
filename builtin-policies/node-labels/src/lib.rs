//! Built-in policy `node-labels`: selects nodes by labels or name.
//!
//! In: the labels the selector names; out: offer for a node that matches, else not-applicable (the policy does not
//! govern the node) or withhold. Runs as an ordinary module; `spec.nodeSelector` of a `ResourceLeasingPolicy` or a
//! `ClusterBinding` is translated to its settings. Invariant: a malformed term matches nothing (PO-531).

use kubeocean_policy_sdk::parse_plain_settings;
use kubeocean_policy_sdk::prelude::*;

/// Selects the nodes a policy is for.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// Kubernetes node selector; absent or without terms it matches every node
    #[serde(default)]
    pub node_selector: Option<NodeSelector>,
    /// What holds for a node that does not match
    #[serde(default)]
    pub on_mismatch: OnMismatch,
    /// What happens to pods on a node that is withheld; default: they stay
    #[serde(default)]
    pub reclaim: Option<ReclaimSettings>,
}

/// What holds for a node that does not match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum OnMismatch {
    /// The policy does not govern the node
    #[default]
    NotApplicable,
    /// The node is not leased
    Withhold,
}

/// Selects nodes by their labels or names.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(try_from = "Settings")]
#[schemars(with = "Settings")]
pub struct NodeLabels {
    needs: Needs,
    selector: Selector,
    on_mismatch: OnMismatch,
    reclaim: Reclaim,
}

impl TryFrom<Settings> for NodeLabels {
    type Error = String;

    fn try_from(settings: Settings) -> Result<Self, String> {
        let mut needs = Needs::new();
        let selector = Selector::new(settings.node_selector.as_ref(), &mut needs);
        for warning in selector.warnings() {
            log(Level::Warn, &format!("settings.nodeSelector.{warning}"));
        }
        let reclaim = settings.reclaim.map(ReclaimSettings::resolve).transpose()?.unwrap_or_default();
        Ok(Self { needs, selector, on_mismatch: settings.on_mismatch, reclaim })
    }
}

/// The text of both mismatch answers.
const MISMATCH: (&str, &str) = ("NodeSelectorMismatch", "the node does not match the node selector");

impl LeasePolicy for NodeLabels {
    fn parse_settings(settings: &str) -> Result<Self, String> {
        parse_plain_settings::<Settings>(settings)?.try_into()
    }

    fn needs(&self) -> Needs {
        self.needs.clone()
    }

    fn lease(&self, _now: &Now, node: Node<'_>) -> Lease {
        let (code, message) = MISMATCH;
        let answer = match self.on_mismatch {
            _ if self.selector.matches(node) => Lease::offer(),
            OnMismatch::NotApplicable => Lease::not_applicable(code, message),
            OnMismatch::Withhold => Lease::withhold(code, message),
        };
        answer.until(None).reclaim(self.reclaim)
    }
}

export_policy!(NodeLabels: lease, schema = include_str!("../settings.schema.json"));

#[cfg(test)]
mod tests;
