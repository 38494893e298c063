//! Pods of test cases, in the form the SDK's harness takes.
//!
//! Pure.

use std::collections::BTreeMap;

use kubeocean_api::quantity::Rounding;
use kubeocean_engine::PodFacts;
use serde::Deserialize;

use super::fixture::{Flag, Written, amounts};

type Texts = BTreeMap<String, String>;
type Quantities = BTreeMap<String, Written>;

/// A pod as a file says it.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct PodForm {
    name: Option<String>,
    namespace: Option<String>,
    service_account: Option<String>,
    priority_class: Option<String>,
    scheduler_name: Option<String>,
    owner_kind: Option<String>,
    owner_name: Option<String>,
    labels: Texts,
    annotations: Texts,
    node_selector: Texts,
    priority: Option<i64>,
    containers: Option<i64>,
    host_network: Option<Flag>,
    created: Option<i64>,
    requests: Quantities,
    limits: Quantities,
}

impl PodForm {
    /// The facts, in base units.
    pub(super) fn facts(&self) -> Result<PodFacts, String> {
        let text =
            |value: &Option<String>, default: &str| value.clone().unwrap_or_else(|| default.to_owned());
        Ok(PodFacts {
            name: text(&self.name, "pod-1"),
            namespace: text(&self.namespace, "default"),
            service_account: self.service_account.clone(),
            priority_class: self.priority_class.clone(),
            scheduler_name: self.scheduler_name.clone(),
            owner_kind: self.owner_kind.clone(),
            owner_name: self.owner_name.clone(),
            labels: self.labels.clone(),
            annotations: self.annotations.clone(),
            node_selector: self.node_selector.clone(),
            requests: amounts("pod.requests", &self.requests, Rounding::Up)?,
            limits: amounts("pod.limits", &self.limits, Rounding::Up)?,
            priority: Some(self.priority.unwrap_or(0)),
            containers: self.containers.unwrap_or(1),
            host_network: self.host_network.is_some_and(Flag::is_set),
            created_unix: Some(self.created.unwrap_or(0)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_has_what_its_form_says_in_base_units() {
        let form: PodForm =
            serde_saphyr::from_str("{namespace: ci, requests: {cpu: 0.5, memory: 1.5Gi}, hostNetwork: 1}")
                .unwrap();
        let pod = form.facts().unwrap();
        assert_eq!((pod.name.as_str(), pod.namespace.as_str()), ("pod-1", "ci"));
        assert_eq!(pod.requests, [("cpu".into(), 500), ("memory".into(), 1_610_612_736)].into());
        assert_eq!((pod.host_network, pod.containers, pod.priority), (true, 1, Some(0)));
        let wrong: PodForm = serde_saphyr::from_str("{limits: {cpu: much}}").unwrap();
        assert!(wrong.facts().unwrap_err().contains("pod.limits.cpu"));
    }
}
