//! Pods go only to virtual nodes that are set aside for their namespace.

use std::collections::BTreeMap;

use kubeocean_policy_sdk::prelude::*;

/// Pods go only to virtual nodes that are set aside for their namespace.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct NamespaceTenancy {
    /// Label of virtual nodes that names their tenant; nodes without it are everybody's
    #[serde(default = "tenant")]
    #[schemars(length(min = 1, max = 317))]
    label: String,
    /// Tenant of each namespace, by namespace; one that is not named is its own tenant
    #[serde(default)]
    tenants: BTreeMap<String, String>,
    /// Whether nodes without the label are nobody's instead of everybody's
    #[serde(default)]
    strict: bool,
}

fn tenant() -> String {
    "tenant".to_owned()
}

impl PlacePolicy for NamespaceTenancy {
    fn needs(&self) -> Needs {
        Needs::new().label(&self.label).pod_text("pod.namespace")
    }

    fn place(&self, _stage: Stage, _now: &Now, pod: Pod<'_>, node: Node<'_>) -> Fit {
        let namespace = pod.text("pod.namespace").unwrap_or_default();
        let tenant = self.tenants.get(namespace).map_or(namespace, String::as_str);
        match node.label(&self.label) {
            Some(owner) if owner == tenant => Fit::accept().score(100),
            None if !self.strict => Fit::accept(),
            // Whose the node is instead is not the pod's business.
            _ => Fit::reject(
                "OtherTenant",
                format!("the node is not for namespace {namespace}: it needs label {}={tenant}", self.label),
            ),
        }
    }
}

export_policy!(NamespaceTenancy: place);

#[cfg(test)]
mod tests {
    use super::*;

    fn placed(settings: &str, namespace: &str, node: Fixture) -> PlaceAnswer {
        Harness::<NamespaceTenancy>::new(settings)
            .pod(pod! { "namespace": namespace })
            .node(node)
            .place(Stage::Admit)
    }

    fn of(tenant: &str) -> Fixture {
        node! { "labels": {"tenant": tenant} }
    }

    #[test]
    fn pods_go_to_nodes_of_their_own() {
        assert_eq!(placed("{}", "ci", of("ci")).score, Some(100));
        let answer = placed("{}", "ci", of("web"));
        assert!(!answer.accepted);
        let reason = answer.reason.expect("a reason");
        assert_eq!(reason.code, "OtherTenant");
        assert_eq!(reason.message, "the node is not for namespace ci: it needs label tenant=ci");
    }

    #[test]
    fn several_namespaces_may_have_one_tenant() {
        let settings = r#"{"tenants": {"ci": "platform", "builds": "platform"}}"#;
        for namespace in ["ci", "builds", "platform"] {
            assert!(placed(settings, namespace, of("platform")).accepted, "{namespace}");
        }
        assert!(!placed(settings, "web", of("platform")).accepted);
        assert!(!placed(settings, "ci", of("ci")).accepted, "it is the platform's");
    }

    #[test]
    fn a_node_without_the_label_is_everybodys_unless_it_must_have_one() {
        let plain = || node! { "labels": {"zone": "a"} };
        assert_eq!((placed("{}", "ci", plain()).accepted, placed("{}", "ci", plain()).score), (true, None));
        assert!(!placed(r#"{"strict": true}"#, "ci", plain()).accepted);
    }
}
