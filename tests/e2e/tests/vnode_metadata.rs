//! A vnode between its authors: the worker node behind it, users of the computing cluster, and the Syncer.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use kubeocean_api::keys::{annotation, condition_type, finalizer, label, namespace, taint};
use kubeocean_e2e::leasing::{
    DEADLINE, Leasing, amount, condition, generous, is_offered, is_ready, merge, percent, taint_of,
};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_e2e::users::told;
use kubeocean_harness::site::SYSTEM_NAMESPACE;
use kubeocean_harness::{BindingSpec, NodeShape};
use serde_json::{Value, json};

fn share(percentage: i64) -> Value {
    json!({"resourceLimits": [percent("cpu", percentage)]})
}

/// The effects of a node's taints of one key.
fn effects<'n>(node: &'n Node, key: &str) -> Vec<&'n str> {
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    taints.filter(|taint| taint.key == key).map(|taint| taint.effect.as_str()).collect()
}

fn is_cordoned(node: &Node) -> bool {
    node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true)
}

#[tokio::test]
async fn users_and_the_worker_write_on_one_vnode() {
    let selector = json!({"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "harness.test/node-set", "operator": "In", "values": ["vnode-meta", "vnode-meta-b"]},
    ]}]});
    let shape = NodeShape::new("8", "16Gi").label("zone", "z1").label("secret.example/rack", "r7");
    let mut leasing = Leasing::start_as(
        BindingSpec::new("vnode-meta").field("nodeSelector", selector),
        1,
        &shape,
        share(50),
        &["--proxier-address=192.0.2.7", "--vnode-metadata-deny=secret.example/"],
    )
    .await;
    let node = leasing.nodes[0].clone();
    let vnode = leasing.one(&node, "an open vnode", is_offered).await;
    check_address(&leasing, &vnode);
    assert_eq!(vnode.labels()["zone"], "z1");
    assert!(!vnode.labels().contains_key("secret.example/rack"));

    users_edits_survive(&leasing, &node).await;
    the_workers_cordon_is_shown(&leasing, &node).await;
    a_broken_record_is_made_anew(&mut leasing, &node).await;
    a_vnode_without_its_labels_is_adopted(&leasing, &node).await;
    a_node_of_somebody_else_is_left_alone(&leasing, &shape).await;
    assert_rights(&leasing.binding);
}

fn check_address(leasing: &Leasing, vnode: &Node) {
    let status = vnode.status.as_ref().unwrap();
    let addresses: Vec<_> =
        status.addresses.iter().flatten().map(|a| (a.type_.as_str(), a.address.as_str())).collect();
    let name = leasing.vnode_name(&leasing.nodes[0]);
    assert_eq!(addresses, [("InternalIP", "192.0.2.7"), ("Hostname", name.as_str())]);
    assert_eq!(vnode.annotations()[annotation::PROMETHEUS_URL], format!("192.0.2.7:9006/{name}"));
}

/// Labels, annotations, a taint of our key with another effect, and a cordon.
async fn users_edits_survive(leasing: &Leasing, node: &str) {
    let (nodes, name) = (leasing.virtual_nodes().await, leasing.vnode_name(node));
    let marks = json!({
        "metadata": {
            "labels": {"team": "red", "zone": "tampered", label::PROXIER_PORT: "20000"},
            "annotations": {"team": "red", annotation::POLICIES_APPLIED: null},
        },
        "spec": {
            "unschedulable": true,
            "taints": [
                {"key": taint::VNODE, "effect": "NoSchedule"},
                {"key": taint::VNODE, "effect": "PreferNoSchedule"},
                {"key": taint::WORKER_UNREACHABLE, "effect": "NoSchedule"},
            ],
        },
    });
    let port = nodes.get(&name).await.unwrap().labels()[label::PROXIER_PORT].clone();
    merge(&nodes, &name, marks).await;
    leasing
        .one(node, "what is managed to come back", |vnode| {
            vnode.labels()["zone"] == "z1"
                && vnode.labels()[label::PROXIER_PORT] == port
                && vnode.annotations().get(annotation::POLICIES_APPLIED).is_some_and(|p| p == "vnode-meta")
                && taint_of(vnode, taint::WORKER_UNREACHABLE).is_none()
        })
        .await;
    leasing.edit(share(25)).await;
    let vnode = leasing.one(node, "cpu 2", |vnode| amount(vnode, "cpu") == Some("2")).await;
    assert_eq!((vnode.labels()["team"].as_str(), vnode.annotations()["team"].as_str()), ("red", "red"));
    let mut effects = effects(&vnode, taint::VNODE);
    effects.sort_unstable();
    assert_eq!(effects, ["NoSchedule", "PreferNoSchedule"]);
    assert!(is_cordoned(&vnode), "a user's cordon stays");
}

async fn the_workers_cordon_is_shown(leasing: &Leasing, node: &str) {
    let workers = leasing.worker_nodes().await;
    merge(&workers, node, json!({"spec": {"unschedulable": true}})).await;
    let cordoned = Instant::now();
    leasing
        .one(node, "the worker's cordon", |vnode| {
            effects(vnode, taint::PHYSICAL_NODE_UNSCHEDULABLE) == ["NoSchedule"]
        })
        .await;
    println!("the worker's cordon was shown after {:?}", cordoned.elapsed());
    merge(&workers, node, json!({"spec": {"unschedulable": null}})).await;
    let vnode = leasing
        .one(node, "the worker's cordon to end", |v| {
            taint_of(v, taint::PHYSICAL_NODE_UNSCHEDULABLE).is_none()
        })
        .await;
    assert!(is_cordoned(&vnode), "a user's cordon is another one");
    merge(
        &leasing.virtual_nodes().await,
        &leasing.vnode_name(node),
        json!({"spec": {"unschedulable": null}}),
    )
    .await;
}

/// Nobody knows from the annotation what was mirrored; the server's own records tell.
async fn a_broken_record_is_made_anew(leasing: &mut Leasing, node: &str) {
    assert!(leasing.syncer.stop().await.unwrap().success());
    let broken = json!({"metadata": {"annotations": {annotation::EXPECTED_METADATA: "broken"}}});
    merge(&leasing.virtual_nodes().await, &leasing.vnode_name(node), broken).await;
    merge(&leasing.worker_nodes().await, node, json!({"metadata": {"labels": {"zone": null}}})).await;
    leasing.syncer.restart().unwrap();
    leasing.syncer.wait_ready().await;
    let vnode = leasing
        .one(node, "the record to be made anew", |vnode| {
            vnode.annotations()[annotation::EXPECTED_METADATA] != "broken"
        })
        .await;
    assert!(!vnode.labels().contains_key("zone"), "what came from the worker went with it");
    assert_eq!((vnode.labels()["team"].as_str(), vnode.annotations()["team"].as_str()), ("red", "red"));
}

async fn a_vnode_without_its_labels_is_adopted(leasing: &Leasing, node: &str) {
    let (nodes, name) = (leasing.virtual_nodes().await, leasing.vnode_name(node));
    let before = nodes.get(&name).await.unwrap();
    let stripped = json!({"metadata": {
        "labels": {label::MANAGED_BY: null, label::CLUSTER_BINDING: null}, "finalizers": null,
    }});
    merge(&nodes, &name, stripped).await;
    let after = leasing
        .one(node, "the labels and the finalizer back", |vnode| {
            vnode.labels().contains_key(label::MANAGED_BY)
                && vnode.labels().contains_key(label::CLUSTER_BINDING)
                && vnode.finalizers().iter().any(|held| held == finalizer::VNODE)
        })
        .await;
    assert_eq!(before.uid(), after.uid());
    assert_eq!(before.labels()[label::PROXIER_PORT], after.labels()[label::PROXIER_PORT]);
}

async fn a_node_of_somebody_else_is_left_alone(leasing: &Leasing, shape: &NodeShape) {
    let (nodes, name) = (leasing.virtual_nodes().await, leasing.vnode_name("vnode-meta-b-0"));
    let theirs =
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": {"is": "real"}}});
    leasing.binding.computing().apply_objects(vec![theirs]).await.unwrap();
    leasing.binding.worker().create_nodes("vnode-meta-b", 1, shape).await.unwrap();
    told(leasing, "default", "vnode-meta", "VirtualNodeConflict").await;
    let node = nodes.get(&name).await.unwrap();
    assert!(node.finalizers().is_empty() && !node.labels().contains_key(label::MANAGED_BY));
    // Out of the way, and the vnode comes.
    nodes.delete(&name, &DeleteParams::default()).await.unwrap();
    leasing.one("vnode-meta-b-0", "a vnode in its place", is_offered).await;
}

/// TD-1401: without a flag, a vnode has the address of a Proxier that serves, and keeps it while none does.
#[tokio::test]
async fn a_vnode_has_the_address_of_a_ready_proxier() {
    let mut leasing = Leasing::start("vnode-proxier", 1, &NodeShape::new("8", "16Gi"), share(50)).await;
    let node = leasing.nodes[0].clone();
    let address = |vnode: &Node| {
        let status = vnode.status.as_ref()?;
        let ours = status.addresses.iter().flatten().find(|it| it.type_ == "InternalIP")?;
        Some(ours.address.clone())
    };
    let proxied = |vnode: &Node, status: &str| {
        condition(vnode, condition_type::PROXIER_READY).is_some_and(|(it, _)| it == status)
    };
    leasing.one(&node, "a vnode without an address", |v| address(v).is_none() && proxied(v, "False")).await;

    let client = leasing.binding.computing().client().await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client, SYSTEM_NAMESPACE);
    let make = async |name: &str, binding: &str| {
        let pod = json!({
            "metadata": {"name": name, "labels": {
                "app.kubernetes.io/component": "proxier", "app.kubernetes.io/name": "kubeocean-proxier",
                "app.kubernetes.io/managed-by": "kubeocean-manager", "app.kubernetes.io/instance": binding,
            }},
            "spec": {"schedulerName": "nobody", "containers": [{"name": "proxier", "image": "proxier"}]},
        });
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    };
    let serve = async |name: &str, ip: &str, ready: &str| {
        let conditions = json!([{"type": "Ready", "status": ready}]);
        let status = json!({"status": {
            "phase": "Running", "podIP": ip, "podIPs": [{"ip": ip}], "conditions": conditions,
        }});
        pods.patch_status(name, &PatchParams::default(), &Patch::Strategic(&status)).await.unwrap();
    };
    make("vnode-proxier-other", "another").await;
    serve("vnode-proxier-other", "192.0.2.66", "True").await;
    make("vnode-proxier-1", "vnode-proxier").await;
    serve("vnode-proxier-1", "192.0.2.11", "False").await;
    make("vnode-proxier-2", "vnode-proxier").await;
    serve("vnode-proxier-2", "192.0.2.12", "True").await;
    let has = |vnode: &Node, ip: &str| address(vnode).as_deref() == Some(ip);
    let shown = leasing.one(&node, "an address", |v| address(v).is_some() && proxied(v, "True")).await;
    assert!(has(&shown, "192.0.2.12"), "the only one that is ours and ready: {:?}", address(&shown));
    let url = format!("192.0.2.12:9006/{}", leasing.vnode_name(&node));
    assert_eq!(shown.annotations()[annotation::PROMETHEUS_URL], url);

    serve("vnode-proxier-2", "192.0.2.12", "False").await;
    leasing.one(&node, "the last address", |v| has(v, "192.0.2.12") && proxied(v, "False")).await;
    serve("vnode-proxier-1", "192.0.2.11", "True").await;
    leasing.one(&node, "the address that serves", |v| has(v, "192.0.2.11") && proxied(v, "True")).await;

    // TD section 16: another one serves, elsewhere, when the Syncer comes back.
    leasing.syncer.kill();
    serve("vnode-proxier-1", "192.0.2.11", "False").await;
    serve("vnode-proxier-2", "192.0.2.12", "True").await;
    leasing.syncer.restart().expect("a restart");
    leasing.syncer.wait_ready().await;
    let moved = leasing.one(&node, "the new address", |v| has(v, "192.0.2.12") && proxied(v, "True")).await;
    assert_eq!(moved.annotations()[annotation::PROMETHEUS_URL], url);

    let now = DeleteParams::default().grace_period(0);
    pods.delete("vnode-proxier-2", &now).await.unwrap();
    leasing.one(&node, "its last address", |v| has(v, "192.0.2.12") && proxied(v, "False")).await;
    for name in ["vnode-proxier-1", "vnode-proxier-other"] {
        pods.delete(name, &now).await.unwrap();
    }
    assert_rights(&leasing.binding);
}

#[tokio::test]
async fn a_vnode_is_as_ready_as_its_node_and_its_lease_pauses_meanwhile() {
    let leasing = Leasing::start("vnode-ready", 1, &NodeShape::new("8", "16Gi"), share(50)).await;
    let node = leasing.nodes[0].clone();
    leasing.one(&node, "an open vnode", |vnode| is_offered(vnode) && is_ready(vnode)).await;
    let recording = leasing.record().await;
    let workers = leasing.worker_nodes().await;
    // From now on nobody but this test says how the node is.
    merge(&workers, &node, json!({"metadata": {"annotations": {"kwok.x-k8s.io/node": null}}})).await;
    let tell = async |status: &str| {
        let ready = json!({"type": "Ready", "status": status, "reason": "Test", "message": status});
        let patch = json!({"status": {"conditions": [ready]}});
        workers.patch_status(&node, &PatchParams::default(), &Patch::Strategic(&patch)).await.unwrap();
        let told = Instant::now();
        leasing
            .one(&node, &format!("Ready={status}"), |v| condition(v, "Ready") == Some((status, "Test")))
            .await;
        println!("Ready={status} was passed on after {:?} (bound 2 s)", told.elapsed());
        assert!(told.elapsed() < generous(Duration::from_secs(2)));
    };
    renewed(&leasing, &node).await;
    tell("False").await;
    let paused = renewed(&leasing, &node).await;
    let quiet = Instant::now();
    leasing.until("two missed renewals", DEADLINE, async || quiet.elapsed() > Duration::from_secs(21)).await;
    let late = renewed(&leasing, &node).await.duration_since(paused);
    // One may have been under way.
    assert!(late.as_secs() < 5, "renewed {late:?} after the node was not ready");
    tell("True").await;
    let again = Timestamp::now();
    leasing
        .until("the Lease to be renewed again", DEADLINE, async || renewed(&leasing, &node).await > again)
        .await;
    let states = recording.states();
    let mut seen: Vec<&str> = states.iter().filter_map(|vnode| Some(condition(vnode, "Ready")?.0)).collect();
    seen.dedup();
    assert_eq!(seen, ["True", "False", "True"], "no flapping");
    assert_rights(&leasing.binding);
}

/// When the vnode's Lease was renewed last. That of a vnode which was just made may have to come first.
async fn renewed(leasing: &Leasing, node: &str) -> Timestamp {
    let client = leasing.binding.computing().client().await.unwrap();
    let leases: Api<Lease> = Api::namespaced(client, namespace::NODE_LEASE);
    let name = leasing.vnode_name(node);
    let lease = leasing.until("a Lease", DEADLINE, async || leases.get_opt(&name).await.unwrap()).await;
    lease.spec.unwrap().renew_time.unwrap().0
}
