//! Host ports that others hold on a worker node are reserved on its vnode (acceptance check 17 of bottomup.md).

use kubeocean_api::keys::{label, namespace, taint};
use kubeocean_e2e::leasing::{DEADLINE, Leasing, is_offered, percent};
use kubeocean_e2e::pods::{Objects, Stage, condition, pod_path, text};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_harness::{BindingSpec, Cluster, NodeShape, shared_site, wait_until};
use serde_json::{Value, json};

const CSI_NODES: &str = "/apis/storage.k8s.io/v1/csinodes";

fn lease() -> Value {
    json!({"resourceLimits": [percent("cpu", 100)]})
}

/// The reservations of a binding.
async fn reservations(computing: &Objects, binding: &str) -> Vec<Value> {
    let selector = format!("{}%3D{binding}", label::CLUSTER_BINDING.replace('/', "%2F"));
    computing.list(&format!("/api/v1/namespaces/{}/pods?labelSelector={selector}", namespace::FAKE)).await
}

/// What a reservation holds, as `protocol/port`.
fn held(pod: &Value) -> Vec<String> {
    let ports = pod["spec"]["containers"][0]["ports"].as_array().cloned().unwrap_or_default();
    ports.iter().map(|port| format!("{}/{}", text(&port["protocol"]), port["hostPort"])).collect()
}

/// Waits until the binding has exactly one reservation, with these ports.
async fn reserved(computing: &Objects, binding: &str, ports: &[&str]) -> Value {
    wait_until(&format!("{binding} to reserve {ports:?}"), DEADLINE, async || {
        let all = reservations(computing, binding).await;
        match all.as_slice() {
            [one] if held(one) == ports => Ok(one.clone()),
            all => Err(all.iter().map(held).collect::<Vec<_>>()),
        }
    })
    .await
}

async fn none_reserved(computing: &Objects, binding: &str) {
    wait_until(&format!("{binding} to reserve nothing"), DEADLINE, async || {
        let all = reservations(computing, binding).await;
        if all.is_empty() { Ok(()) } else { Err(all.iter().map(held).collect::<Vec<_>>()) }
    })
    .await;
}

/// Starts a pod of the worker's own users on a node.
async fn online(worker: &Cluster, home: &str, name: &str, node: &str, spec: Value) {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": home},
        "spec": {"nodeName": node, "restartPolicy": "Never", "terminationGracePeriodSeconds": 0},
    });
    if let Value::Object(members) = spec {
        for (member, value) in members {
            pod["spec"][member] = value;
        }
    }
    worker.apply_objects(vec![pod]).await.expect("a pod of the worker's users");
}

fn container(name: &str, ports: &Value) -> Value {
    json!({"name": name, "image": "example.test/image", "ports": ports})
}

fn port(number: u16) -> Value {
    json!({"containerPort": number, "hostPort": number})
}

fn uid(object: &Value) -> String {
    text(&object["metadata"]["uid"]).to_owned()
}

#[tokio::test]
async fn held_ports_are_reserved_once_and_the_scheduler_minds_them() {
    let stage = Stage::start(BindingSpec::new("hostports"), 1).await;
    let scene = stage.scene("hostports-users").await;
    let (worker, home, node) = (stage.binding.worker(), "hostports-online", "hostports-0");
    worker.create_namespace(home).await.expect("a namespace");

    // Two pods, an init container and a pod in the node's own network say the same port.
    let udp = json!({"containerPort": 9090, "hostPort": 9090, "protocol": "UDP"});
    let spec = json!({
        "initContainers": [container("i", &json!([port(8080), udp]))],
        "containers": [container("c", &json!([port(8080)]))],
    });
    online(worker, home, "a", node, spec).await;
    let spec = json!({
        "hostNetwork": true,
        "containers": [container("c", &json!([{"containerPort": 8080}, {"containerPort": 7070}]))],
    });
    online(worker, home, "b", node, spec).await;
    let first = reserved(&scene.computing, "hostports", &["TCP/7070", "TCP/8080", "UDP/9090"]).await;
    let vnode = &stage.wait_vnodes().await[0];
    assert_eq!(first["spec"]["nodeName"], vnode["metadata"]["name"]);
    assert_eq!(first["metadata"]["ownerReferences"][0]["uid"], vnode["metadata"]["uid"]);
    assert!(text(&first["metadata"]["name"]).starts_with("fake-pod-for-hostport-"), "{first}");
    assert_eq!(first["spec"]["volumes"], Value::Null, "no token");
    let scheduled = |pod: &Value| (condition(pod, "PodScheduled")["status"] == "True").then_some(());
    let path = pod_path(namespace::FAKE, text(&first["metadata"]["name"]));
    scene.computing.wait("the reservation to be shown as scheduled", &path, scheduled).await;

    // Deleted by hand, it comes back.
    scene.computing.delete(&path, None).await;
    scene.computing.wait_gone(&path).await;
    let second = reserved(&scene.computing, "hostports", &["TCP/7070", "TCP/8080", "UDP/9090"]).await;
    assert_ne!(uid(&second), uid(&first));

    // A vpod that needs a held port is sent nowhere, one that needs another runs. Its port is its own to hold.
    let with_port = |number: u16| json!({"containers": [container("main", &json!([port(number)]))]});
    scene.create_pod(&scene.pod("clash", with_port(8080))).await;
    let refused =
        |pod: &Value| text(&condition(pod, "PodScheduled")["message"]).contains("free ports").then_some(());
    scene.computing.wait("the scheduler to refuse it", &scene.vpod("clash"), refused).await;
    let (_, ppod) = scene.run_pod("own", with_port(8181)).await;
    assert_eq!(ppod["spec"]["containers"][0]["ports"][0]["hostPort"], 8181);
    scene.worker.delete(&pod_path(home, "a"), Some(0)).await;
    reserved(&scene.computing, "hostports", &["TCP/7070", "TCP/8080"]).await;
    scene.create_pod(&scene.pod("next", with_port(8181))).await;
    scene.computing.wait("the scheduler to refuse it", &scene.vpod("next"), refused).await;
    scene.computing.delete(&scene.vpod("own"), Some(0)).await;
    scene.wait_running("next").await;

    // The last pod with a host port ends: nothing is reserved, and the vpod that waited runs.
    let done = json!({"status": {"phase": "Succeeded"}});
    scene.worker.merge(&format!("{}/status", pod_path(home, "b")), &done).await;
    none_reserved(&scene.computing, "hostports").await;
    scene.wait_running("clash").await;
    let copied = scene.copies("pods").await;
    let of_fake = |ppod: &&Value| ppod["metadata"]["labels"][label::VIRTUAL_NAMESPACE] == namespace::FAKE;
    assert_eq!(copied.iter().filter(of_fake).count(), 0, "no reservation runs anywhere");
    assert_rights(&stage.binding);
}

/// A pod on a vnode that looks like a reservation.
fn fake(name: &str, vnode: &str, labels: &Value, number: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace::FAKE, "labels": labels},
        "spec": {
            "nodeName": vnode, "tolerations": [{"operator": "Exists"}], "restartPolicy": "Never",
            "containers": [container("fake-container", &json!([port(number)]))],
        },
    })
}

#[tokio::test]
async fn a_restart_keeps_one_of_several_and_a_withdrawal_none() {
    let mut leasing = Leasing::start("ports-restart", 1, &NodeShape::new("8", "16Gi"), lease()).await;
    let (node, home) = ("ports-restart-0", "ports-restart-online");
    let (worker, vnode) = (leasing.binding.worker(), leasing.vnode_name(node));
    worker.create_namespace(home).await.expect("a namespace");
    online(worker, home, "a", node, json!({"containers": [container("c", &json!([port(8080)]))]})).await;
    let computing = Objects::of(leasing.binding.computing()).await;
    let before = reserved(&computing, "ports-restart", &["TCP/8080"]).await;

    // As the original left them, as a crash between making one and deleting the other left them, and one too many.
    leasing.syncer.kill();
    let legacy = json!({label::HOSTPORT_FAKE_POD: "true", label::MANAGED_BY: "kubeocean"});
    let ours = before["metadata"]["labels"].clone();
    let all = format!("/api/v1/namespaces/{}/pods", namespace::FAKE);
    for pod in [
        fake("legacy-equal", &vnode, &legacy, 8080),
        fake("legacy-other", &vnode, &legacy, 1234),
        fake("ports-restart-double", &vnode, &ours, 8080),
    ] {
        computing.create(&all, &pod).await;
    }
    leasing.syncer.restart().expect("a restarted Syncer");
    leasing.syncer.wait_ready().await;
    reserved(&computing, "ports-restart", &["TCP/8080"]).await;
    let on_vnode = format!("{all}?fieldSelector=spec.nodeName%3D{vnode}");
    wait_until("one of them to be left", DEADLINE, async || {
        let left = computing.list(&on_vnode).await;
        if left.len() == 1 { Ok(()) } else { Err(left.iter().map(held).collect::<Vec<_>>()) }
    })
    .await;

    // A vnode is withdrawn although there is a reservation, and made again with one.
    leasing.delete_policy("ports-restart").await;
    leasing.withdrawn(node).await;
    none_reserved(&computing, "ports-restart").await;
    leasing.edit(lease()).await;
    leasing.one(node, "a vnode again", is_offered).await;
    reserved(&computing, "ports-restart", &["TCP/8080"]).await;

    // A user deletes the vnode: the same.
    let old = leasing.vnode(node).await.and_then(|vnode| vnode.metadata.uid);
    let delete = ["delete", "node", "--wait=false", &vnode];
    leasing.binding.computing().kubectl_text(&delete).await.expect("a deletion");
    leasing
        .until("a reservation of the new vnode", DEADLINE, async || {
            let new = leasing.vnode(node).await.and_then(|vnode| vnode.metadata.uid);
            let all = reservations(&computing, "ports-restart").await;
            let owner = |pod: &Value| pod["metadata"]["ownerReferences"][0]["uid"].clone();
            let owners: Vec<_> = all.iter().map(owner).collect();
            if new.is_some() && new != old && owners == [json!(new)] { Ok(()) } else { Err((new, owners)) }
        })
        .await;
    assert_rights(&leasing.binding);
}

#[tokio::test]
async fn two_bindings_reserve_each_others_ports_and_one_leaves_without_the_other() {
    let one = Leasing::start("ports-one", 1, &NodeShape::new("8", "16Gi"), lease()).await;
    let (node, home) = ("ports-one-0", "ports-online");
    let selector = json!({"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "harness.test/node-set", "operator": "In", "values": ["ports-one"]}]},
    ]});
    let spec = BindingSpec::new("ports-two")
        .field("nodeSelector", selector)
        .mount_namespace(one.binding.mount_namespace());
    let binding = shared_site().await.bind(spec).await.expect("a binding");
    binding.policy("ports-two", lease()).await.expect("a policy");
    let mut syncer = binding.syncer(&[]).await.expect("a Syncer");
    syncer.wait_ready().await;
    let two = Leasing { binding, syncer, nodes: vec![node.to_owned()], started: std::time::Instant::now() };
    let (worker, computing) = (one.binding.worker(), Objects::of(one.binding.computing()).await);
    worker.create_namespace(home).await.expect("a namespace");
    online(worker, home, "a", node, json!({"containers": [container("c", &json!([port(5050)]))]})).await;
    for binding in ["ports-one", "ports-two"] {
        reserved(&computing, binding, &["TCP/5050"]).await;
    }
    let drivers = json!([{"name": "disk.csi", "nodeID": "i-0", "topologyKeys": null}]);
    let csi_node = json!({"metadata": {"name": node}, "spec": {"drivers": drivers}});
    Objects::of(worker).await.create(CSI_NODES, &csi_node).await;
    let copy = |leasing: &Leasing| format!("{CSI_NODES}/{}", leasing.vnode_name(node));
    for leasing in [&one, &two] {
        computing.wait("a copied CSINode", &copy(leasing), |_| Some(())).await;
    }

    // A copy of one is a stranger's pod for the other, and holds its port itself on its own vnode.
    one.binding.computing().create_namespace("ports-users").await.expect("a namespace");
    let pod = json!({
        "metadata": {"name": "web", "namespace": "ports-users"},
        "spec": {
            "nodeName": two.vnode_name(node), "terminationGracePeriodSeconds": 1,
            "automountServiceAccountToken": false,
            "tolerations": [{"key": taint::VNODE, "operator": "Exists"}],
            "containers": [container("main", &json!([port(6060)]))],
        },
    });
    computing.create("/api/v1/namespaces/ports-users/pods", &pod).await;
    reserved(&computing, "ports-one", &["TCP/5050", "TCP/6060"]).await;
    online(worker, home, "b", node, json!({"containers": [container("c", &json!([port(4040)]))]})).await;
    reserved(&computing, "ports-one", &["TCP/4040", "TCP/5050", "TCP/6060"]).await;
    let kept = reserved(&computing, "ports-two", &["TCP/4040", "TCP/5050"]).await;

    // One leaves.
    let bindings = one.bindings().await;
    bindings.delete("ports-one", &kube::api::DeleteParams::default()).await.expect("a deletion");
    one.until("the binding to go", DEADLINE * 2, async || {
        match bindings.get_opt("ports-one").await.expect("an answer") {
            None => Ok(()),
            Some(binding) => Err(binding.data["status"].to_string()),
        }
    })
    .await;
    assert_eq!(reservations(&computing, "ports-one").await, Vec::<Value>::new());
    assert_eq!(computing.get(&copy(&one)).await, None);
    let left = reserved(&computing, "ports-two", &["TCP/4040", "TCP/5050"]).await;
    assert_eq!(uid(&left), uid(&kept));
    assert!(computing.get(&copy(&two)).await.is_some());
    assert_rights(&two.binding);
}
