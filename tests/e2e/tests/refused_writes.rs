//! What becomes of a vnode whose changes somebody refuses.
//!
//! A program of its own: others assert that nothing is refused to a Syncer.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use kube::api::{Patch, PatchParams};
use kubeocean_api::keys::taint;
use kubeocean_e2e::leasing::{DEADLINE, Leasing, amount, is_offered, merge, percent, taint_of};
use kubeocean_harness::NodeShape;
use serde_json::json;

const REFUSAL: &str = "vnode-refused";

/// Lets the API server refuse every change of the vnode beside its status, as a webhook would, and waits until it does.
async fn refuse_changes(leasing: &Leasing, vnode: &str) {
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": REFUSAL},
        "spec": {
            "matchConstraints": {"resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["nodes"]},
            ]},
            "matchConditions": [{"name": "one", "expression": format!("object.metadata.name == '{vnode}'")}],
            "validations": [{"expression": "false", "message": "change freeze", "reason": "Forbidden"}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": REFUSAL},
        "spec": {"policyName": REFUSAL, "validationActions": ["Deny"]},
    });
    leasing.binding.computing().apply_objects(vec![policy, binding]).await.unwrap();
    let nodes = leasing.virtual_nodes().await;
    let (dry, label) = (
        PatchParams { dry_run: true, ..PatchParams::default() },
        json!({"metadata": {"labels": {"a": "b"}}}),
    );
    let refused = async || nodes.patch(vnode, &dry, &Patch::Merge(&label)).await.is_err();
    leasing.until("changes of the vnode to be refused", DEADLINE, refused).await;
}

/// BU-906: the amounts are written last; whoever refuses what comes before them does not keep them up.
#[tokio::test]
async fn a_refused_change_does_not_keep_amounts_up() {
    let leasing = Leasing::start(
        "vnode-refusal",
        1,
        &NodeShape::new("8", "16Gi"),
        json!({"resourceLimits": [percent("cpu", 100)]}),
    )
    .await;
    let node = leasing.nodes[0].clone();
    leasing.one(&node, "an open vnode", is_offered).await;
    refuse_changes(&leasing, &leasing.vnode_name(&node)).await;
    // A taint that cannot be shown comes before each of the amounts that follow.
    merge(&leasing.worker_nodes().await, &node, json!({"spec": {"unschedulable": true}})).await;
    leasing.syncer.wait_log("change freeze", DEADLINE).await;
    leasing.foreign_pod(&node, "3").await;
    let vnode =
        leasing.one(&node, "what the foreign pod leaves", |vnode| amount(vnode, "cpu") == Some("5")).await;
    assert_eq!(taint_of(&vnode, taint::PHYSICAL_NODE_UNSCHEDULABLE), None, "it is refused");
    let refusal = format!("validatingadmissionpolicybinding/{REFUSAL}");
    leasing.binding.computing().kubectl_text(&["delete", &refusal]).await.unwrap();
    leasing
        .one(&node, "the cordon", |vnode| taint_of(vnode, taint::PHYSICAL_NODE_UNSCHEDULABLE).is_some())
        .await;
}
