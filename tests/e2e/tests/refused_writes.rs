//! What becomes of a vnode, its worker node and its port reservation whose changes somebody refuses.
//!
//! A program of its own: others assert that nothing is refused to a Syncer.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::time::Instant;

use http::Method;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use kubeocean_api::keys::{label, namespace, taint};
use kubeocean_e2e::leasing::{DEADLINE, Leasing, amount, is_offered, merge, percent, taint_of};
use kubeocean_e2e::pods::Objects;
use kubeocean_e2e::users::told;
use kubeocean_harness::{AuditEvent, BindingSpec, Cluster, NodeShape, shared_site, wait_until};
use serde_json::{Value, json};

const REFUSAL: &str = "vnode-refused";

/// Lets the API server refuse every change of a node beside its status where `condition` holds, as a webhook would, and
/// waits until it does: `nodes` are those of whoever it refuses.
async fn refuse_changes(cluster: &Cluster, name: &str, condition: &str, nodes: &Api<Node>, node: &str) {
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": name},
        "spec": {
            "matchConstraints": {"resourceRules": [
                {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["nodes"]},
            ]},
            "matchConditions": [{"name": "one", "expression": condition}],
            "validations": [{"expression": "false", "message": "change freeze", "reason": "Forbidden"}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": name},
        "spec": {"policyName": name, "validationActions": ["Deny"]},
    });
    cluster.apply_objects(vec![policy, binding]).await.unwrap();
    wait_until("changes of the node to be refused", DEADLINE, async || {
        try_change(nodes, node).await.is_err()
    })
    .await;
}

async fn allow_changes(cluster: &Cluster, name: &str) {
    let refusal = format!("validatingadmissionpolicybinding/{name}");
    cluster.kubectl_text(&["delete", &refusal]).await.unwrap();
}

/// The only change of a worker node that the charts let a Syncer make, without making it.
async fn try_change(nodes: &Api<Node>, node: &str) -> kube::Result<Node> {
    let dry = PatchParams { dry_run: true, ..PatchParams::default() };
    nodes
        .patch(node, &dry, &Patch::Merge(&json!({"metadata": {"labels": {label::POLICY_APPLIED: "tried"}}})))
        .await
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
    let (computing, vnode) = (leasing.binding.computing(), leasing.vnode_name(&node));
    let this = format!("object.metadata.name == '{vnode}'");
    refuse_changes(computing, REFUSAL, &this, &leasing.virtual_nodes().await, &vnode).await;
    // A taint that cannot be shown comes before each of the amounts that follow.
    merge(&leasing.worker_nodes().await, &node, json!({"spec": {"unschedulable": true}})).await;
    leasing.syncer.wait_log("change freeze", DEADLINE).await;
    leasing.foreign_pod(&node, "3").await;
    let vnode =
        leasing.one(&node, "what the foreign pod leaves", |vnode| amount(vnode, "cpu") == Some("5")).await;
    assert_eq!(taint_of(&vnode, taint::PHYSICAL_NODE_UNSCHEDULABLE), None, "it is refused");
    allow_changes(computing, REFUSAL).await;
    leasing
        .one(&node, "the cordon", |vnode| taint_of(vnode, taint::PHYSICAL_NODE_UNSCHEDULABLE).is_some())
        .await;
}

/// BU-408: what admission refuses for one node looks like a missing right, and is none.
#[tokio::test]
async fn a_node_whose_label_is_refused_keeps_no_other_from_its_own() {
    const NAME: &str = "label-refused";
    let binding = shared_site().await.bind(BindingSpec::new(NAME)).await.unwrap();
    let (worker, mount) = (binding.worker(), binding.mount_namespace());
    let nodes = worker.create_nodes(NAME, 2, &NodeShape::new("8", "16Gi")).await.unwrap();
    let [frozen, other] = [nodes[0].clone(), nodes[1].clone()];
    let account = format!("system:serviceaccount:{mount}:kubeocean-syncer");
    let as_syncer: Api<Node> =
        Api::all(worker.service_account_client(mount, "kubeocean-syncer").await.unwrap());
    let this = format!("object.metadata.name == '{frozen}' && request.userInfo.username == '{account}'");
    refuse_changes(worker, NAME, &this, &as_syncer, &frozen).await;
    try_change(&as_syncer, &other).await.unwrap();

    let mark = worker.audit_mark().unwrap();
    binding.policy(NAME, json!({"resourceLimits": [percent("cpu", 100)]})).await.unwrap();
    let started = Instant::now();
    let mut syncer = binding.syncer(&[]).await.unwrap();
    syncer.wait_ready().await;
    let leasing = Leasing { binding, syncer, nodes, started };
    leasing.all("open vnodes", DEADLINE, is_offered).await;
    let refused = |event: &AuditEvent| {
        let object = &event.object_ref;
        (event.verb.as_str(), object.resource.as_str(), event.response_status.code) == ("patch", "nodes", 403)
            && object.name == frozen
            && event.user.username == account
            && !event.uri.contains("dryRun")
    };
    leasing
        .until("the label to be refused", DEADLINE, async || {
            worker.audit_events_since(mark).unwrap().iter().any(refused)
        })
        .await;

    // The other one gets its label, and gets it again now that the refusal is known.
    let workers = leasing.worker_nodes().await;
    let shown = async |node: &str| {
        let node = workers.get(node).await.unwrap();
        node.labels().get(label::POLICY_APPLIED).cloned()
    };
    let labelled = async |node: &str| {
        leasing
            .until(&format!("the label of {node}"), DEADLINE * 2, async || match shown(node).await {
                Some(policy) if policy == NAME => Ok(()),
                other => Err(other),
            })
            .await;
    };
    labelled(&other).await;
    merge(&workers, &other, json!({"metadata": {"labels": {label::POLICY_APPLIED: null}}})).await;
    labelled(&other).await;
    assert_eq!(shown(&frozen).await, None);

    // Once it may, the node gets its own without anything else that happens.
    allow_changes(worker, NAME).await;
    labelled(&frozen).await;
    let path = format!(
        "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3D{NAME},reason%3DFeatureDisabled"
    );
    let disabled = Objects::of(leasing.binding.computing()).await.list(&path).await;
    assert_eq!(disabled, Vec::<Value>::new());
}

/// The administrator of the reservations' namespace is told of what it refuses.
#[tokio::test]
async fn a_port_reservation_that_a_quota_refuses_is_told_of_and_made_later() {
    let lease = json!({"resourceLimits": [percent("cpu", 100)]});
    let leasing = Leasing::start("ports-refused", 1, &NodeShape::new("8", "16Gi"), lease).await;
    let node = leasing.nodes[0].clone();
    leasing.one(&node, "an open vnode", is_offered).await;
    let (cluster, vnode) = (leasing.binding.computing(), leasing.vnode_name(&node));
    let computing = Objects::of(cluster).await;
    cluster.create_namespace(namespace::FAKE).await.unwrap();
    let quotas = format!("/api/v1/namespaces/{}/resourcequotas", namespace::FAKE);
    computing.create(&quotas, &json!({"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}})).await;
    let pods = format!("/api/v1/namespaces/{}/pods", namespace::FAKE);
    let probe = json!({
        "metadata": {"name": "probe"}, "spec": {"containers": [{"name": "c", "image": "probe:1"}]},
    });
    leasing
        .until("pods to be refused", DEADLINE, async || {
            computing.attempt(Method::POST, &format!("{pods}?dryRun=All"), &probe).await.is_err()
        })
        .await;

    let (worker, home) = (leasing.binding.worker(), "ports-refused-online");
    worker.create_namespace(home).await.unwrap();
    let online = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "online", "namespace": home},
        "spec": {"nodeName": node, "containers": [
            {"name": "c", "image": "online:1", "ports": [{"containerPort": 8080, "hostPort": 8080}]},
        ]},
    });
    worker.apply_objects(vec![online]).await.unwrap();
    told(&leasing, "default", &vnode, "HostPortsNotReserved").await;
    let on_vnode = format!("{pods}?fieldSelector=spec.nodeName%3D{vnode}");
    assert_eq!(computing.list(&on_vnode).await, Vec::<Value>::new());

    computing.delete(&format!("{quotas}/none"), None).await;
    let reserved = leasing
        .until("the reservation", DEADLINE, async || computing.list(&on_vnode).await.into_iter().next())
        .await;
    let ports = &reserved["spec"]["containers"][0]["ports"];
    assert_eq!((ports[0]["hostPort"].clone(), ports[1].clone()), (json!(8080), Value::Null));
}
