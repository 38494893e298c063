//! What becomes of a vnode, its worker node and its port reservation whose changes somebody refuses.
//!
//! A program of its own: others assert that nothing is refused to a Syncer.

use std::time::Instant;

use http::Method;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt};
use kubeocean_api::keys::{annotation, label, namespace, taint};
use kubeocean_api::{GROUP, VERSION};
use kubeocean_e2e::in_place::{change_image, wait_image};
use kubeocean_e2e::leasing::{
    DEADLINE, Leasing, amount, condition, is_offered, is_ready, merge, percent, taint_of,
};
use kubeocean_e2e::pods::{Objects, Stage};
use kubeocean_e2e::rights::features_off;
use kubeocean_e2e::users::told;
use kubeocean_e2e::veto::{Veto, WORDS};
use kubeocean_harness::{AuditEvent, BindingSpec, Cluster, NodeShape, shared_site};
use serde_json::{Value, json};

/// All changes of a node but for its status.
fn freeze_of_nodes<'a>(cluster: &'a Cluster, name: &'a str, condition: &'a str) -> Veto<'a> {
    let of = ["", "v1", "nodes"];
    Veto { cluster, name, operation: "UPDATE", of, condition, allowed: "false", reason: "Forbidden" }
}

fn dry_run() -> PatchParams {
    PatchParams { dry_run: true, ..PatchParams::default() }
}

/// The only change of a worker node that the charts let a Syncer make, without making it.
async fn try_change(nodes: &Api<Node>, node: &str) -> kube::Result<Node> {
    let change = json!({"metadata": {"labels": {label::POLICY_APPLIED: "tried"}}});
    nodes.patch(node, &dry_run(), &Patch::Merge(&change)).await
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
    let freeze = freeze_of_nodes(computing, "vnode-refusal", &this);
    let vnodes = leasing.virtual_nodes().await;
    freeze.begin(async || try_change(&vnodes, &vnode).await).await;
    // A taint that cannot be shown comes before each of the amounts that follow.
    merge(&leasing.worker_nodes().await, &node, json!({"spec": {"unschedulable": true}})).await;
    leasing.syncer.wait_log(WORDS, DEADLINE).await;
    leasing.foreign_pod(&node, "3").await;
    let vnode =
        leasing.one(&node, "what the foreign pod leaves", |vnode| amount(vnode, "cpu") == Some("5")).await;
    assert_eq!(taint_of(&vnode, taint::PHYSICAL_NODE_UNSCHEDULABLE), None, "it is refused");
    freeze.end().await;
    leasing
        .one(&node, "the cordon", |vnode| taint_of(vnode, taint::PHYSICAL_NODE_UNSCHEDULABLE).is_some())
        .await;
}

/// BU-908: a policy that may not be held governs nothing yet, and what others take counts nevertheless.
#[tokio::test]
async fn a_refused_change_of_the_policy_does_not_keep_amounts_up() {
    const NEXT: &str = "policy-refusal-next";
    let lease = json!({"resourceLimits": [percent("cpu", 100)]});
    let leasing = Leasing::start("policy-refusal", 1, &NodeShape::new("8", "16Gi"), lease.clone()).await;
    let node = leasing.nodes[0].clone();
    leasing.one(&node, "an open vnode", is_offered).await;
    let governed_by =
        |vnode: &Node| vnode.annotations().get(annotation::POLICIES_APPLIED).cloned().unwrap_or_default();

    let this = format!("object.metadata.name == '{NEXT}'");
    let freeze = Veto {
        cluster: leasing.binding.worker(),
        name: "policy-refusal",
        operation: "UPDATE",
        of: [GROUP, VERSION, "resourceleasingpolicies"],
        condition: &this,
        allowed: "false",
        reason: "Forbidden",
    };
    leasing.binding.policy(NEXT, lease).await.unwrap();
    let policies = leasing.policies().await;
    let change = json!({"metadata": {"annotations": {"example.com/tried": "yes"}}});
    freeze.begin(async || policies.patch(NEXT, &dry_run(), &Patch::Merge(&change)).await).await;
    leasing.delete_policy("policy-refusal").await;
    leasing.syncer.wait_log(WORDS, DEADLINE).await;
    leasing.foreign_pod(&node, "3").await;
    let vnode =
        leasing.one(&node, "what the foreign pod leaves", |vnode| amount(vnode, "cpu") == Some("5")).await;
    assert!(!governed_by(&vnode).contains(NEXT), "it is not held");
    freeze.end().await;
    leasing.one(&node, "the next policy", |vnode| governed_by(vnode).contains(NEXT)).await;
}

/// BU-908: whatever is wrong with a vnode's metadata, a worker node that is not ready must not look ready.
#[tokio::test]
async fn refused_metadata_does_not_keep_the_status_back() {
    let lease = json!({"resourceLimits": [percent("cpu", 100)]});
    let leasing = Leasing::start("metadata-refusal", 1, &NodeShape::new("8", "16Gi"), lease).await;
    let node = leasing.nodes[0].clone();
    leasing.one(&node, "an open vnode", |vnode| is_offered(vnode) && is_ready(vnode)).await;
    let vnode = leasing.vnode_name(&node);
    let this = format!("object.metadata.name == '{vnode}'");
    let freeze = Veto {
        cluster: leasing.binding.computing(),
        name: "metadata-refusal",
        operation: "UPDATE",
        of: ["", "v1", "nodes/status"],
        condition: &this,
        allowed: "object.metadata.labels == oldObject.metadata.labels",
        reason: "Invalid",
    };
    let vnodes = leasing.virtual_nodes().await;
    let change = json!({"metadata": {"labels": {"example.com/tried": "yes"}}});
    freeze.begin(async || vnodes.patch_status(&vnode, &dry_run(), &Patch::Merge(&change)).await).await;

    let workers = leasing.worker_nodes().await;
    // From now on nobody but this test says how the node is.
    let colour = json!({"metadata": {
        "annotations": {"kwok.x-k8s.io/node": null}, "labels": {"example.com/colour": "red"},
    }});
    merge(&workers, &node, colour).await;
    leasing.syncer.wait_log(WORDS, DEADLINE).await;
    let ready = json!({"type": "Ready", "status": "False", "reason": "Test", "message": "told by the test"});
    let patch = json!({"status": {"conditions": [ready]}});
    workers.patch_status(&node, &PatchParams::default(), &Patch::Strategic(&patch)).await.unwrap();
    let coloured = |vnode: &Node| vnode.labels().contains_key("example.com/colour");
    let shown =
        leasing.one(&node, "Ready=False", |vnode| condition(vnode, "Ready") == Some(("False", "Test"))).await;
    assert!(!coloured(&shown), "it is refused");
    freeze.end().await;
    leasing.one(&node, "the label", coloured).await;
}

/// The same for a pod: its users learn how it is.
#[tokio::test]
async fn refused_metadata_of_a_pod_does_not_keep_its_status_back() {
    const NAME: &str = "pod-metadata-refusal";
    let stage = Stage::start(BindingSpec::new(NAME), 1).await;
    let scene = stage.scene(NAME).await;
    scene.run_pod("told", json!({})).await;
    let this = format!("object.metadata.namespace == '{NAME}'");
    let freeze = Veto {
        cluster: stage.binding.computing(),
        name: NAME,
        operation: "UPDATE",
        of: ["", "v1", "pods/status"],
        condition: &this,
        allowed: "!has(object.metadata.labels) || !('example.com/colour' in object.metadata.labels)",
        reason: "Invalid",
    };
    let pods: Api<Pod> = Api::namespaced(stage.binding.computing().client().await.unwrap(), NAME);
    let colour = json!({"metadata": {"labels": {"example.com/colour": "red"}}});
    freeze.begin(async || pods.patch_status("told", &dry_run(), &Patch::Merge(&colour)).await).await;

    // What the worker adds to the copy goes up to the pod, together with its status.
    scene.worker.merge(&scene.ppod("told"), &colour).await;
    let ended = json!({"status": {"phase": "Succeeded"}});
    scene.worker.merge(&format!("{}/status", scene.ppod("told")), &ended).await;
    let succeeded = |pod: &Value| (pod["status"]["phase"] == "Succeeded").then(|| pod.clone());
    let told = scene.computing.wait("the end of the pod", &scene.vpod("told"), succeeded).await;
    let coloured = |pod: &Value| (pod["metadata"]["labels"]["example.com/colour"] == "red").then_some(());
    assert_eq!(coloured(&told), None, "it is refused");
    freeze.end().await;
    scene.computing.wait("the label", &scene.vpod("told"), coloured).await;
}

/// TD-808: what the worker's admission refuses is told on the pod, and tried again.
#[tokio::test]
async fn a_refused_change_of_a_running_pod_is_told_and_made_later() {
    const NAME: &str = "pod-change-refusal";
    const IMAGE: &str = "example.test/image:2";
    let stage = Stage::start(BindingSpec::new(NAME), 1).await;
    let scene = stage.scene(NAME).await;
    let (_, before) = scene.run_pod("web", json!({})).await;
    let (worker, copy) = (stage.binding.worker(), scene.copy_name("web"));
    let this = format!("object.metadata.name == '{copy}'");
    let freeze = Veto {
        cluster: worker,
        name: NAME,
        operation: "UPDATE",
        of: ["", "v1", "pods"],
        condition: &this,
        allowed: "object.spec.containers[0].image == oldObject.spec.containers[0].image",
        reason: "Forbidden",
    };
    let copies: Api<Pod> = Api::namespaced(worker.client().await.unwrap(), stage.binding.mount_namespace());
    let change = json!({"spec": {"containers": [{"name": "main", "image": "example.test/tried"}]}});
    freeze.begin(async || copies.patch(&copy, &dry_run(), &Patch::Strategic(&change)).await).await;

    change_image(&scene, "web", IMAGE).await;
    let message = scene.wait_event("web", "FailedUpdatePod").await;
    assert!(message.starts_with("the change of the pod was not accepted"), "{message}");
    assert!(!message.contains(WORDS), "the worker's words are for those who run it: {message}");
    let refused = scene.worker.get(&scene.ppod("web")).await.unwrap();
    assert_eq!(refused["spec"]["containers"], before["spec"]["containers"]);
    freeze.end().await;
    wait_image(&scene, "web", IMAGE).await;
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
    let freeze = freeze_of_nodes(worker, NAME, &this);
    freeze.begin(async || try_change(&as_syncer, &frozen).await).await;
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
    freeze.end().await;
    labelled(&frozen).await;
    let disabled = features_off(&Objects::of(leasing.binding.computing()).await, NAME).await;
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
