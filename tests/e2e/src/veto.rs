//! Admission that refuses requests, as a quota or a webhook would: what the tests of refusals share.
//!
//! In: a cluster, and which requests of one kind are not to be. Out: a [`Veto`], which can begin and end.

use kubeocean_harness::{Cluster, wait_until};
use serde_json::json;

use crate::pods::DEADLINE;

/// What a veto says.
pub const WORDS: &str = "vetoed by a test";

/// An admission policy of one cluster.
#[derive(Clone, Copy, Debug)]
pub struct Veto<'a> {
    pub cluster: &'a Cluster,
    /// No other veto in the cluster has it.
    pub name: &'a str,
    /// `CREATE`, `UPDATE` or `DELETE`.
    pub operation: &'a str,
    /// API group and version, and the resource.
    pub of: [&'a str; 3],
    /// Which requests it looks at, as a CEL expression.
    pub condition: &'a str,
    /// Which of these it lets pass.
    pub allowed: &'a str,
    /// `Forbidden` is a 403, `Invalid` a 422.
    pub reason: &'a str,
}

impl Veto<'_> {
    /// Begins, and waits until what is tried is refused.
    ///
    /// # Panics
    /// The cluster does not take the policy, or does not obey it.
    pub async fn begin<T, E>(&self, mut attempt: impl AsyncFnMut() -> Result<T, E>) {
        let Self { cluster, name, operation, of: [group, version, resource], .. } = self;
        let rule = json!({
            "apiGroups": [group], "apiVersions": [version], "operations": [operation], "resources": [resource],
        });
        let policy = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "matchConstraints": {"resourceRules": [rule]},
                "matchConditions": [{"name": "one", "expression": self.condition}],
                "validations": [{"expression": self.allowed, "message": WORDS, "reason": self.reason}],
            },
        });
        let binding = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny"]},
        });
        cluster.apply_objects(vec![policy, binding]).await.expect("an admission policy");
        wait_until("requests to be refused", DEADLINE, async || attempt().await.is_err()).await;
    }

    /// Ends. The server may go on refusing for a moment.
    ///
    /// # Panics
    /// It has not begun.
    pub async fn end(&self) {
        let binding = format!("validatingadmissionpolicybinding/{}", self.name);
        self.cluster.kubectl_text(&["delete", &binding]).await.expect("an end");
    }
}
