//! A leader that dies while the worker is out of reach (BU sections 1, 10 and 18): the next one renews the vnodes' Leases
//! from what the computing cluster says alone, so that no vnode is ever not Ready and no pod has to go.
//!
//! One test, because it freezes a server of its fleet.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Node};
use kube::{Api, ResourceExt};
use kubeocean_api::keys::{condition_type, namespace, taint};
use kubeocean_e2e::leasing::{DEADLINE, Leasing, amount, condition, is_offered, is_ready, percent, taint_of};
use kubeocean_e2e::pods::{Objects, pod_path};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_harness::{BindingSpec, Component, NodeShape, Program, ProgramSpec, shared_site};
use serde_json::{Value, json};

const NAME: &str = "failover";
/// What a Lease is worth (BU-1001): by then the next leader must have renewed it.
const LEASE: Duration = Duration::from_secs(40);
/// A minute without an answer, and the pause between two questions.
const NOTICED: Duration = Duration::from_mins(3);

async fn syncer(leasing_for: &kubeocean_harness::Binding<'_>, identity: &str) -> Program {
    let spec =
        ProgramSpec::syncer(leasing_for.name()).args(&["--leader-elect=true"]).env("POD_NAME", identity);
    Program::start(leasing_for.computing(), spec).await.expect("a Syncer")
}

/// A pod that runs on a vnode and has no reason to leave. Returns its path and UID.
async fn running_pod(leasing: &Leasing, computing: &Objects, vnode: &str) -> (String, Value) {
    let home = "failover-users";
    leasing.binding.computing().create_namespace(home).await.expect("a namespace");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "batch", "namespace": home},
        "spec": {
            "nodeName": vnode, "automountServiceAccountToken": false,
            "tolerations": [{"key": taint::VNODE, "operator": "Exists"}],
            "containers": [{"name": "c", "image": "batch:1", "resources": {"requests": {"cpu": "1"}}}],
        },
    });
    computing.create(&format!("/api/v1/namespaces/{home}/pods"), &pod).await;
    let running = |pod: &Value| (pod["status"]["phase"] == "Running").then(|| pod["metadata"]["uid"].clone());
    let path = pod_path(home, "batch");
    let uid = computing.wait("the pod to run", &path, running).await;
    (path, uid)
}

/// The oldest renewal among the vnodes' Leases.
async fn oldest_renewal(leasing: &Leasing) -> Timestamp {
    let client = leasing.binding.computing().client().await.expect("a client");
    let leases: Api<Lease> = Api::namespaced(client, namespace::NODE_LEASE);
    let mut oldest = Timestamp::MAX;
    for node in &leasing.nodes {
        let lease = leases.get_opt(&leasing.vnode_name(node)).await.expect("an answer");
        let renewed = lease.and_then(|lease| lease.spec?.renew_time).map_or(Timestamp::MIN, |time| time.0);
        oldest = oldest.min(renewed);
    }
    oldest
}

async fn renewed_since(leasing: &Leasing, since: Timestamp, within: Duration) {
    leasing
        .until("all Leases to be renewed", within, async || {
            let oldest = oldest_renewal(leasing).await;
            if oldest > since { Ok(()) } else { Err(oldest.to_string()) }
        })
        .await;
}

fn is_cut_off(vnode: &Node) -> bool {
    taint_of(vnode, taint::WORKER_UNREACHABLE).is_some_and(|taint| taint.effect == "NoSchedule")
        && condition(vnode, condition_type::WORKER_REACHABLE) == Some(("False", "NoWorkerWatch"))
}

#[tokio::test]
async fn no_vnode_and_no_pod_is_lost_with_a_leader() {
    let binding = shared_site().await.bind(BindingSpec::new(NAME)).await.expect("a binding");
    let nodes = binding.worker().create_nodes(NAME, 3, &NodeShape::new("8", "16Gi")).await.expect("nodes");
    binding.policy(NAME, json!({"resourceLimits": [percent("cpu", 50)]})).await.expect("a policy");
    let started = Instant::now();
    let first = syncer(&binding, "first").await;
    let mut leasing = Leasing { binding, syncer: first, nodes, started };
    leasing.all("three vnodes", DEADLINE, |vnode| is_ready(vnode) && is_offered(vnode)).await;
    let computing = Objects::of(leasing.binding.computing()).await;
    let (pod, uid) = running_pod(&leasing, &computing, &leasing.vnode_name(&leasing.nodes[0])).await;
    let mut second = syncer(&leasing.binding, "second").await;
    second.wait_ready().await;
    let recording = leasing.record().await;
    let uids: Vec<_> = leasing.vnodes().await.iter().map(ResourceExt::uid).collect();

    leasing.binding.worker().freeze(Component::ApiServer).expect("a frozen server");
    let killed = (Timestamp::now(), Instant::now());
    leasing.syncer.kill();
    leasing.syncer = second;
    leasing.syncer.wait_log("leading", DEADLINE).await;
    let taken = Timestamp::now();
    println!("the standby leads after {:?}", killed.1.elapsed());
    renewed_since(&leasing, taken.max(killed.0), LEASE).await;
    println!("all Leases renewed {:?} after the leader was killed", killed.1.elapsed());
    assert!(killed.1.elapsed() < LEASE, "{:?}", killed.1.elapsed());
    assert!(
        !leasing.syncer.log().contains("connected to the worker cluster"),
        "nothing is known of the worker"
    );
    leasing.syncer.wait_ready().await;

    // A minute later they say so, and go on: Leases are renewed, pods stay.
    leasing.all("vnodes that miss the worker", NOTICED, is_cut_off).await;
    renewed_since(&leasing, Timestamp::now(), LEASE).await;
    let stays = computing.get(&pod).await.expect("the pod");
    assert_eq!(stays["metadata"]["uid"], uid);
    assert!(stays["metadata"]["deletionTimestamp"].is_null(), "{stays}");
    assert_eq!(stays["status"]["phase"], "Running");

    leasing.binding.worker().thaw(Component::ApiServer).expect("a thawed server");
    leasing.edit(json!({"resourceLimits": [percent("cpu", 25)]})).await;
    let vnodes = leasing
        .all("the new leader's amounts", NOTICED, |vnode| {
            amount(vnode, "cpu") == Some("2") && taint_of(vnode, taint::WORKER_UNREACHABLE).is_none()
        })
        .await;
    assert_eq!(uids, vnodes.iter().map(ResourceExt::uid).collect::<Vec<_>>(), "the same vnodes");
    let bad: Vec<_> = recording.states().into_iter().filter(|vnode| !is_ready(vnode)).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert_eq!(computing.get(&pod).await.expect("the pod")["metadata"]["uid"], uid);
    assert_rights(&leasing.binding);
}
