//! A pair of clusters: it starts, its parts work together, each can fail and come back.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kubeocean_harness::{Cluster, ClusterSpec, Component, NodeShape, shared, wait_until};

const DEADLINE: Duration = Duration::from_secs(30);

fn pod(namespace: &str) -> String {
    format!(
        "apiVersion: v1
kind: Pod
metadata: {{name: p, namespace: {namespace}}}
spec: {{containers: [{{name: c, image: example.test/i, resources: {{requests: {{cpu: 1}}}}}}]}}"
    )
}

async fn wait_running(cluster: &Cluster, namespace: &str) {
    wait_until("the pod to run", DEADLINE, async || {
        let phase = cluster
            .kubectl_text(&[
                "get",
                "pod",
                "p",
                "--namespace",
                namespace,
                "--output",
                "jsonpath={.status.phase}",
            ])
            .await
            .map_err(|error| format!("{error:#}"))?;
        if phase == "Running" { Ok(()) } else { Err(phase) }
    })
    .await;
}

#[tokio::test]
async fn a_pod_runs_on_a_fake_node_and_its_log_can_be_read() {
    let fleet = shared().await;
    let worker = fleet.worker();
    println!(
        "pair ready in {:?} ({:?}, {:?})",
        fleet.start_time(),
        fleet.computing.start_time(),
        worker.start_time()
    );
    worker.create_nodes("runs", 3, &NodeShape::new("4", "8Gi").gpus(1)).await.unwrap();
    worker.create_namespace("runs").await.unwrap();
    worker.apply(&pod("runs")).await.unwrap();
    wait_running(worker, "runs").await;
    let log = worker.kubectl_text(&["logs", "p", "--namespace", "runs"]).await.unwrap();
    assert_eq!(log.trim(), "hello from a fake container");
    let exec = worker.kubectl_text(&["exec", "p", "--namespace", "runs", "--", "echo", "hi"]).await.unwrap();
    assert_eq!(exec.trim(), "hi");
}

#[tokio::test]
async fn nodes_have_the_shape_that_was_asked_for() {
    let worker = shared().await.worker();
    let shape = NodeShape::new("4", "8Gi").pods(20).gpus(2).label("zone", "a");
    assert_eq!(worker.create_nodes("shape", 2, &shape).await.unwrap(), ["shape-0", "shape-1"]);
    let node = Api::<Node>::all(worker.client().await.unwrap()).get("shape-1").await.unwrap();
    let allocatable = node.status.unwrap().allocatable.unwrap();
    for (resource, amount) in [("cpu", "4"), ("memory", "8Gi"), ("pods", "20"), ("nvidia.com/gpu", "2")] {
        assert_eq!(allocatable[resource].0, amount, "{resource}");
    }
    assert_eq!(node.metadata.labels.unwrap()["zone"], "a");
}

#[tokio::test]
async fn programs_call_themselves_by_the_pinned_version() {
    let expected = kubeocean_harness::assets::kubernetes_version().unwrap();
    let version = shared().await.computing.kubectl_text(&["version"]).await.unwrap();
    assert!(version.contains(&format!("Client Version: {expected}")), "{version}");
    assert!(version.contains(&format!("Server Version: {expected}")), "{version}");
}

#[tokio::test]
async fn a_token_acts_as_its_service_account_and_the_audit_log_says_so() {
    let computing = &shared().await.computing;
    computing.create_namespace("audited").await.unwrap();
    let mark = computing.audit_mark().unwrap();
    let client = computing.service_account_client("audited", "default").await.unwrap();
    let refused = Api::<Node>::all(client).get("no-such-node").await.unwrap_err();
    assert!(matches!(refused, kube::Error::Api(status) if status.is_forbidden()));
    let events = computing.audit_events_since(mark).unwrap();
    let mine: Vec<_> = events
        .iter()
        .filter(|event| event.user.username == "system:serviceaccount:audited:default")
        .map(|event| (event.verb.as_str(), event.object_ref.name.as_str(), event.response_status.code))
        .collect();
    assert_eq!(mine, [("get", "no-such-node", 403)]);
}

#[tokio::test]
async fn a_cluster_survives_the_death_of_its_programs_and_leaves_no_directory() {
    let mut spec = ClusterSpec::worker("fragile");
    spec.audit = false;
    let cluster = Cluster::start(spec).await.unwrap();
    cluster.create_nodes("n", 1, &NodeShape::default()).await.unwrap();
    cluster.kill(Component::ApiServer).unwrap();
    cluster.client().await.unwrap().apiserver_version().await.unwrap_err();
    cluster.restart(Component::ApiServer).await.unwrap();
    cluster.kill(Component::Etcd).unwrap();
    cluster.restart(Component::Etcd).await.unwrap();
    cluster.restart_scheduler_with(&[]).await.unwrap();
    cluster.create_namespace("after").await.unwrap();
    cluster.apply(&pod("after")).await.unwrap();
    wait_running(&cluster, "after").await;
    let directory = cluster.directory().to_owned();
    assert!(directory.exists());
    drop(cluster);
    assert!(!directory.exists());
}
