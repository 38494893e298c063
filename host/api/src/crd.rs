//! The CustomResourceDefinitions, generated from the Rust types (API sections 1, 2, 9 and 11).
//!
//! The charts ship these documents; a test compares them. Transition rules only: they use `oldSelf`, so they never
//! condemn an object the original's schema accepted (API-901).

use serde_json::{Value, json};

use crate::{
    ClusterBindingSpec, ClusterBindingStatus, GROUP, ResourceLeasingPolicySpec, ResourceLeasingPolicyStatus,
    VERSION, schema::structural,
};

/// The CRD of [`crate::ClusterBinding`].
pub fn cluster_binding() -> Value {
    let mut spec = structural::<ClusterBindingSpec>();
    spec["properties"]["clusterID"]["x-kubernetes-validations"] =
        json!([{"rule": "self == oldSelf", "message": "clusterID is immutable"}]);
    spec["x-kubernetes-validations"] = json!([
        {
            "rule": "!has(oldSelf.mountNamespace) || oldSelf.mountNamespace == '' || (has(self.mountNamespace) && self.mountNamespace == oldSelf.mountNamespace)",
            "message": "mountNamespace cannot be changed once set",
            "fieldPath": ".mountNamespace",
        },
        {
            "rule": "(has(self.mountNamespace) ? self.mountNamespace : '') == (has(oldSelf.mountNamespace) ? oldSelf.mountNamespace : '') || !has(self.mountNamespace) || (self.mountNamespace.size() <= 63 && self.mountNamespace.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$'))",
            "message": "mountNamespace must be a DNS-1123 label",
        },
        {
            "rule": "self.secretRef == oldSelf.secretRef || (has(self.secretRef.name) && self.secretRef.name != '' && has(self.secretRef.namespace) && self.secretRef.namespace != '')",
            "message": "secretRef.name and secretRef.namespace are required",
            "fieldPath": ".secretRef",
        },
    ]);
    definition(&Kind {
        name: "ClusterBinding",
        plural: "clusterbindings",
        singular: "clusterbinding",
        short: "cb",
        description: "One leased worker cluster: where it is, which of its nodes may be leased, and how they appear in this cluster.",
        columns: json!([
            {"name": "ClusterID", "type": "string", "jsonPath": ".spec.clusterID"},
            {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
            {"name": "Nodes", "type": "integer", "jsonPath": ".status.nodes", "priority": 1},
            {"name": "Pods", "type": "integer", "jsonPath": ".status.pods", "priority": 1},
            {"name": "WorkerVersion", "type": "string", "jsonPath": ".status.workerVersion", "priority": 1},
            {"name": "CredentialsExpireAt", "type": "string", "jsonPath": ".status.credentialsExpireAt", "priority": 1},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ]),
        spec,
        status: structural::<ClusterBindingStatus>(),
        root_rules: json!([{"rule": "!has(oldSelf.spec) || has(self.spec)", "message": "spec cannot be removed"}]),
    })
}

/// The name of an entry of `spec.policies` that the short form takes for itself.
pub const RESERVED_ENTRY: &str = "binding-selector";
/// How further such names begin.
pub const RESERVED_ENTRY_PREFIX: &str = "legacy-";
/// Where the module of an entry may come from.
pub const MODULE_SOURCES: [&str; 4] = ["builtin", "configMap", "oci", "file"];

/// The CRD of [`crate::ResourceLeasingPolicy`].
pub fn resource_leasing_policy() -> Value {
    let mut spec = structural::<ResourceLeasingPolicySpec>();
    spec["x-kubernetes-validations"] = json!([
        {"rule": "self.cluster == oldSelf.cluster || self.cluster != ''", "message": "cluster cannot be emptied", "fieldPath": ".cluster"},
        {
            "rule": "(has(self.gracefulReclaimPeriodSeconds) ? self.gracefulReclaimPeriodSeconds : 0) == (has(oldSelf.gracefulReclaimPeriodSeconds) ? oldSelf.gracefulReclaimPeriodSeconds : 0) || !has(self.gracefulReclaimPeriodSeconds) || self.gracefulReclaimPeriodSeconds >= 0",
            "message": "gracefulReclaimPeriodSeconds must not be negative",
        },
    ]);
    let entry = &mut spec["properties"]["policies"]["items"];
    entry["properties"]["name"]["x-kubernetes-validations"] = json!([{
        "rule": format!("self != '{RESERVED_ENTRY}' && !self.startsWith('{RESERVED_ENTRY_PREFIX}')"),
        "message": format!("the names {RESERVED_ENTRY} and {RESERVED_ENTRY_PREFIX}* are reserved"),
    }]);
    entry["properties"]["module"]["x-kubernetes-validations"] = json!([{
        "rule": format!("[{}].filter(x, x).size() == 1", MODULE_SOURCES.map(|source| format!("has(self.{source})")).join(", ")),
        "message": "exactly one of builtin, configMap, oci and file is required",
    }]);
    definition(&Kind {
        name: "ResourceLeasingPolicy",
        plural: "resourceleasingpolicies",
        singular: "resourceleasingpolicy",
        short: "rlp",
        description: "What of this worker cluster's idle capacity is leased to a computing cluster, when, and under which conditions.",
        columns: json!([
            {"name": "Cluster", "type": "string", "jsonPath": ".spec.cluster"},
            {"name": "Phase", "type": "string", "jsonPath": ".status.phase"},
            {"name": "Active", "type": "boolean", "jsonPath": ".status.activeTimeWindow"},
            {"name": "Nodes", "type": "integer", "jsonPath": ".status.nodes", "priority": 1},
            {"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"},
        ]),
        spec,
        status: structural::<ResourceLeasingPolicyStatus>(),
        root_rules: json!([]),
    })
}

/// A CRD as the YAML document the charts ship and `kubeocean crd` prints.
pub fn to_yaml(crd: &Value) -> String {
    serde_saphyr::to_string(crd).expect("a JSON tree is always valid YAML")
}

struct Kind {
    name: &'static str,
    plural: &'static str,
    singular: &'static str,
    short: &'static str,
    description: &'static str,
    columns: Value,
    spec: Value,
    status: Value,
    root_rules: Value,
}

fn definition(kind: &Kind) -> Value {
    let mut root = json!({
        "type": "object",
        "description": kind.description,
        "properties": {
            "apiVersion": {"type": "string", "description": "Version of the schema of this object."},
            "kind": {"type": "string", "description": "Kind of this object."},
            "metadata": {"type": "object"},
            "spec": kind.spec,
            "status": kind.status,
        },
    });
    if kind.root_rules.as_array().is_some_and(|rules| !rules.is_empty()) {
        root["x-kubernetes-validations"] = kind.root_rules.clone();
    }
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{}.{GROUP}", kind.plural)},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": kind.name,
                "listKind": format!("{}List", kind.name),
                "plural": kind.plural,
                "singular": kind.singular,
                "shortNames": [kind.short],
            },
            "scope": "Cluster",
            "versions": [{
                "name": VERSION,
                "served": true,
                "storage": true,
                "additionalPrinterColumns": kind.columns,
                "schema": {"openAPIV3Schema": root},
                "subresources": {"status": {}},
            }],
        },
    })
}

#[cfg(test)]
mod tests;
