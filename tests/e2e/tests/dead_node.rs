//! A worker node that dies with pods on it (TD section 9, *Do better*): what users see, and how they get on.
//!
//! In: a node of the worker cluster that no kubelet, real or fake, stands behind; the test says what it would say. Out: the
//! vnode and its pods tell of it, and neither the end of a pod nor its successor waits for a node that never answers.

use kubeocean_api::keys::label;
use kubeocean_e2e::pods::{Objects, Scene, Stage, condition, text};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_harness::BindingSpec;
use kubeocean_harness::nodes::NODE_SET;
use serde_json::{Value, json};

const NODE: &str = "mortal";
const NODE_PATH: &str = "/api/v1/nodes/mortal";

/// What the node's kubelet, or the node controller in its place, says of it.
async fn node_says(worker: &Objects, ready: &str) {
    let conditions = json!([{
        "type": "Ready", "status": ready, "reason": if ready == "True" { "KubeletReady" } else { "NodeStatusUnknown" },
        "message": "", "lastHeartbeatTime": null, "lastTransitionTime": null,
    }]);
    worker.merge(&format!("{NODE_PATH}/status"), &json!({"status": {"conditions": conditions}})).await;
    // Its Lease is what the node controller looks at before it says so itself.
    if ready == "True" {
        let lease = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{NODE}");
        let renewed = json!({"spec": {"renewTime": format!("{:.6}", jiff::Timestamp::now())}});
        worker.merge(&lease, &renewed).await;
    }
}

async fn add_node(worker: &Objects, set: &str) {
    let amounts = json!({"cpu": "8", "memory": "16Gi", "pods": "110"});
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": NODE, "labels": {"kubernetes.io/hostname": NODE, "kubernetes.io/os": "linux", NODE_SET: set}},
        "status": {"capacity": amounts, "allocatable": amounts, "addresses": [
            {"type": "InternalIP", "address": "127.0.0.1"}, {"type": "Hostname", "address": NODE},
        ]},
    });
    worker.create("/api/v1/nodes", &node).await;
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": NODE, "namespace": "kube-node-lease"},
        "spec": {"holderIdentity": NODE, "leaseDurationSeconds": 3600},
    });
    worker.create("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", &lease).await;
    node_says(worker, "True").await;
}

/// A pod on the mortal node, started as its kubelet would.
async fn run_on_node(scene: &Scene<'_>, name: &str, vnode: &str) -> Value {
    let spec = json!({"nodeName": vnode, "terminationGracePeriodSeconds": 1});
    let pod = scene.create_pod(&scene.pod(name, spec)).await;
    let bound = |copy: &Value| (copy["spec"]["nodeName"] == NODE).then_some(());
    scene.worker.wait("its copy on the node", &scene.ppod(name), bound).await;
    let status = json!({"status": {
        "phase": "Running",
        "conditions": [{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}],
        "containerStatuses": [{
            "name": "main", "image": "example.test/image", "imageID": "", "ready": true, "restartCount": 0,
            "state": {"running": {"startedAt": "2026-01-02T03:04:05Z"}},
        }],
    }});
    scene.worker.merge(&format!("{}/status", scene.ppod(name)), &status).await;
    wait_ready(scene, name, "True").await;
    pod
}

/// What the node controller writes on the copies of a node that went silent, or its kubelet when it is back.
async fn pod_says(scene: &Scene<'_>, name: &str, ready: &str) {
    let status = json!({"status": {"conditions": [
        {"type": "Ready", "status": ready, "reason": if ready == "True" { "" } else { "NodeNotReady" }},
        {"type": "ContainersReady", "status": "True"},
    ]}});
    scene.worker.merge(&format!("{}/status", scene.ppod(name)), &status).await;
    wait_ready(scene, name, ready).await;
}

async fn wait_ready(scene: &Scene<'_>, name: &str, status: &str) {
    let shown = |pod: &Value| (condition(pod, "Ready")["status"] == status).then_some(());
    scene.computing.wait(&format!("{name} to be Ready={status}"), &scene.vpod(name), shown).await;
}

#[tokio::test]
async fn pods_of_a_dead_node_say_so_and_their_ends_and_successors_do_not_wait_for_it() {
    let stage = Stage::start(BindingSpec::new("dies"), 1).await;
    let scene = stage.scene("dead-node").await;
    add_node(&scene.worker, "dies").await;
    let vnode = format!("vnode-dies-{NODE}");
    let vnode_path = format!("/api/v1/nodes/{vnode}");
    let vnode_is = async |status: &str| {
        let shown = |node: &Value| (condition(node, "Ready")["status"] == status).then_some(());
        scene.computing.wait(&format!("the vnode to be Ready={status}"), &vnode_path, shown).await;
    };
    vnode_is("True").await;
    let forced = run_on_node(&scene, "forced", &vnode).await;
    run_on_node(&scene, "deleted", &vnode).await;
    run_on_node(&scene, "stays", &vnode).await;

    // The node dies: users see it on the node and on its pods, as of any other node.
    node_says(&scene.worker, "Unknown").await;
    vnode_is("Unknown").await;
    pod_says(&scene, "stays", "False").await;

    // A deleted pod waits for a kubelet that does not answer, as anywhere; pods elsewhere go on.
    scene.computing.delete(&scene.vpod("deleted"), None).await;
    let deleting = |pod: &Value| (!pod["metadata"]["deletionTimestamp"].is_null()).then_some(());
    scene.worker.wait("its copy to be deleted", &scene.ppod("deleted"), deleting).await;
    scene.barrier("elsewhere").await;
    assert!(scene.computing.get(&scene.vpod("deleted")).await.is_some());

    // Who does not want to wait deletes by force, and the successor of that name runs at once.
    scene.computing.delete(&scene.vpod("forced"), Some(0)).await;
    scene.worker.wait_gone(&scene.ppod("forced")).await;
    let (successor, _) = scene.run_pod("forced", json!({})).await;
    assert_ne!(successor["metadata"]["uid"], forced["metadata"]["uid"]);
    assert_ne!(text(&successor["spec"]["nodeName"]), vnode);

    // The node comes back: its pods are as they were, and what was deleted ends.
    node_says(&scene.worker, "True").await;
    vnode_is("True").await;
    pod_says(&scene, "stays", "True").await;
    scene.worker.delete(&scene.ppod("deleted"), Some(0)).await;
    scene.computing.wait_gone(&scene.vpod("deleted")).await;
    let stays = scene.worker.get(&scene.ppod("stays")).await.expect("the copy that stayed");
    assert_eq!(stays["metadata"]["labels"][label::CLUSTER_BINDING], "dies");

    // The node goes for good, and with it what was on it.
    scene.worker.delete(NODE_PATH, None).await;
    scene.worker.delete(&scene.ppod("stays"), Some(0)).await;
    let failed = |pod: &Value| (pod["status"]["reason"] == "PhysicalPodLost").then(|| pod.clone());
    let lost = scene.computing.wait("the pod to be lost", &scene.vpod("stays"), failed).await;
    assert_eq!(condition(&lost, "DisruptionTarget")["status"], "True");
    scene.computing.wait_gone(&vnode_path).await;
    assert_rights(&stage.binding);
}
