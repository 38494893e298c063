//! How much of a node is leased: what pods of others ask for is not, and what our own ask for does not count.
//!
//! The worked amounts of the specification, pods of every shape, and nodes that are never leased.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use kubeocean_api::keys::label;
use kubeocean_e2e::leasing::{DEADLINE, Leasing, amount, generous, is_offered, merge, percent};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_e2e::users::Users;
use kubeocean_harness::NodeShape;
use serde_json::{Value, json};

/// What a change of a foreign pod may take to reach the vnode.
const BOUND: Duration = Duration::from_secs(2);

/// Pods of the worker's own users on one node.
struct Foreign<'a> {
    leasing: &'a Leasing,
    node: &'a str,
    home: String,
    pods: Api<Pod>,
}

impl<'a> Foreign<'a> {
    async fn on(leasing: &'a Leasing, node: &'a str) -> Self {
        let worker = leasing.binding.worker();
        let home = format!("{}-foreign", leasing.binding.name());
        worker.create_namespace(&home).await.unwrap();
        let pods = Api::namespaced(worker.client().await.unwrap(), &home);
        Self { leasing, node, home, pods }
    }

    /// A pod on the node; `spec` has what differs from one plain container.
    async fn run(&self, name: &str, requests: Value, spec: Value) {
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": self.home},
            "spec": {
                "nodeName": self.node, "restartPolicy": "Never", "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "c", "image": "online:1", "resources": {"requests": requests}}],
            },
        });
        for (field, value) in spec.as_object().into_iter().flatten() {
            pod["spec"][field] = value.clone();
        }
        self.leasing.binding.worker().apply_objects(vec![pod]).await.unwrap();
    }

    async fn end(&self, name: &str) {
        self.pods.delete(name, &DeleteParams::default()).await.unwrap();
    }

    /// Waits until the vnode has these amounts; says how long it took.
    async fn leaves(&self, what: &str, cpu: &str, memory: &str) {
        let changed = Instant::now();
        self.leasing
            .one(self.node, &format!("cpu {cpu}, memory {memory}: {what}"), |vnode| {
                amount(vnode, "cpu") == Some(cpu) && amount(vnode, "memory") == Some(memory)
            })
            .await;
        println!("{what}: cpu {cpu}, memory {memory} after {:?} (bound {BOUND:?})", changed.elapsed());
        assert!(changed.elapsed() < generous(BOUND), "{what}: {:?}", changed.elapsed());
    }
}

#[tokio::test]
async fn amounts_follow_what_others_ask_for() {
    let shape = NodeShape::new("4", "8Gi").gpus(8);
    let leasing = Leasing::start("usage", 1, &shape, json!({})).await;
    let node = leasing.nodes[0].clone();
    leasing.one(&node, "the whole node", |v| is_offered(v) && amount(v, "cpu") == Some("4")).await;
    let foreign = Foreign::on(&leasing, &node).await;

    foreign.run("online", json!({"cpu": "1", "memory": "2Gi"}), json!({})).await;
    foreign.leaves("a pod came", "3", "6Gi").await;
    worked_amounts(&leasing, &foreign).await;
    users_pods_do_not_count(&leasing, &foreign).await;

    foreign.end("online").await;
    foreign.leaves("it was deleted", "4", "8Gi").await;
    shapes_of_pods(&foreign).await;

    let page = leasing.syncer.metrics().await.unwrap();
    let drift = "kubeocean_syncer_usage_drift_total{clusterbinding=\"usage\"} 0";
    assert!(page.lines().any(|line| line == drift), "{page}");
    assert_rights(&leasing.binding);
}

/// BU-506, beside a pod of 1 core and 2Gi on a node of 4 and 8Gi; and integers.
async fn worked_amounts(leasing: &Leasing, foreign: &Foreign<'_>) {
    let limits = |limits: Value| json!({"resourceLimits": limits});
    let quantity = |resource: &str, quantity: &str, percent: i64| json!({"resource": resource, "quantity": quantity, "percent": percent});
    for (what, policy, cpu, memory) in [
        ("half the cpu", json!([percent("cpu", 50)]), "1500m", "6Gi"),
        ("three quarters of memory", json!([percent("memory", 75)]), "3", "4608Mi"),
        ("one core", json!([quantity("cpu", "1", 80)]), "1", "6Gi"),
        ("half the memory", json!([quantity("memory", "5Gi", 50)]), "3", "3Gi"),
        ("both", json!([quantity("cpu", "3", 50), quantity("memory", "2Gi", 75)]), "1500m", "2Gi"),
        ("nothing", json!([percent("cpu", 0), {"resource": "memory", "quantity": "0"}]), "0", "0"),
    ] {
        leasing.edit(limits(policy)).await;
        foreign.leaves(what, cpu, memory).await;
    }
    let integers = limits(json!([percent("pods", 33), percent("nvidia.com/gpu", 30)]));
    leasing.edit(integers).await;
    leasing
        .one(foreign.node, "whole pods and GPUs", |vnode| {
            // The pod of others takes one of 110.
            amount(vnode, "pods") == Some("35") && amount(vnode, "nvidia.com/gpu") == Some("2")
        })
        .await;
    leasing.edit(json!({})).await;
    foreign.leaves("no limits", "3", "6Gi").await;
}

async fn users_pods_do_not_count(leasing: &Leasing, foreign: &Foreign<'_>) {
    let users = Users::of(leasing).await;
    users.run("batch", &leasing.vnode_name(foreign.node), &[]).await;
    leasing
        .until("the pod to be counted as ours", DEADLINE, async || {
            let page = leasing.syncer.metrics().await.map_err(|error| error.to_string())?;
            let line = page
                .lines()
                .find(|line| line.contains("vnode_virtual_usage") && line.contains("resource=\"cpu\""));
            if line.is_some_and(|line| line.ends_with(" 1000")) { Ok(()) } else { Err(format!("{line:?}")) }
        })
        .await;
    let vnode = leasing.vnode(foreign.node).await.unwrap();
    assert_eq!((amount(&vnode, "cpu"), amount(&vnode, "memory")), (Some("3"), Some("6Gi")));
    users.pods.delete("batch", &DeleteParams::default()).await.unwrap();
    users.gone("batch").await;
}

/// Largest phase, sidecars, overhead, pod-level requests, resize, completion.
async fn shapes_of_pods(foreign: &Foreign<'_>) {
    let requests = |cpu: &str| json!({"requests": {"cpu": cpu}});
    let starting = json!({"initContainers": [
        {"name": "s", "image": "s:1", "restartPolicy": "Always", "resources": requests("500m")},
        {"name": "i", "image": "i:1", "resources": requests("2")},
    ]});
    foreign.run("starting", json!({"cpu": "1"}), starting).await;
    foreign.leaves("a large init container beside a sidecar", "1500m", "8Gi").await;
    foreign.end("starting").await;
    foreign.leaves("it is gone", "4", "8Gi").await;

    let class = json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "usage-sandbox"},
        "handler": "sandbox", "overhead": {"podFixed": {"cpu": "250m", "memory": "1Gi"}},
    });
    foreign.leasing.binding.worker().apply_objects(vec![class]).await.unwrap();
    foreign.run("boxed", json!({"cpu": "1"}), json!({"runtimeClassName": "usage-sandbox"})).await;
    foreign.leaves("overhead is added", "2750m", "7Gi").await;
    foreign.end("boxed").await;
    foreign.leaves("it is gone", "4", "8Gi").await;

    foreign.run("bounded", json!({"cpu": "1"}), json!({"resources": {"requests": {"cpu": "2"}}})).await;
    foreign.leaves("a request of the whole pod", "2", "8Gi").await;
    foreign.end("bounded").await;
    foreign.leaves("it is gone", "4", "8Gi").await;

    foreign.run("shrinking", json!({"cpu": "1"}), json!({})).await;
    foreign.leaves("a small pod", "3", "8Gi").await;
    // Fake nodes cannot resize: this is what a kubelet reports of a container that is to shrink and has not yet.
    let parameters = PatchParams::default();
    let larger = json!({"status": {"containerStatuses": [{
        "name": "c", "image": "online:1", "imageID": "", "ready": true, "restartCount": 0,
        "allocatedResources": {"cpu": "2500m"},
    }]}});
    foreign.pods.patch_status("shrinking", &parameters, &Patch::Merge(&larger)).await.unwrap();
    foreign.leaves("it still has more than it asks for", "1500m", "8Gi").await;
    let done = json!({"status": {"phase": "Succeeded"}});
    foreign.pods.patch_status("shrinking", &parameters, &Patch::Merge(&done)).await.unwrap();
    foreign.leaves("it has completed", "4", "8Gi").await;
}

#[tokio::test]
async fn nodes_of_some_kinds_are_never_leased() {
    let shape = NodeShape::new("8", "16Gi").label(label::INSTANCE_TYPE, "external");
    let half = json!({"resourceLimits": [percent("cpu", 50)]});
    let leasing = Leasing::start("usage-never", 5, &shape, half).await;
    let workers = leasing.worker_nodes().await;
    let plain = leasing.nodes[4].clone();
    for (node, labels) in leasing.nodes.iter().zip([
        json!({}),
        json!({label::INSTANCE_TYPE: null, label::INSTANCE_TYPE_BETA: "eklet"}),
        json!({label::INSTANCE_TYPE: null, label::TYPE: "virtual-kubelet"}),
        json!({label::INSTANCE_TYPE: "vnode"}),
        json!({label::INSTANCE_TYPE: "m5.large"}),
    ]) {
        merge(&workers, node, json!({"metadata": {"labels": labels}})).await;
    }
    leasing.one(&plain, "half of the plain node", |vnode| amount(vnode, "cpu") == Some("4")).await;

    // What wakes a node: a pod, and an edit of the policy.
    for node in &leasing.nodes {
        Foreign::on(&leasing, node).await.run(&format!("on-{node}"), json!({"cpu": "4"}), json!({})).await;
    }
    leasing.one(&plain, "half of what is left", |vnode| amount(vnode, "cpu") == Some("2")).await;
    leasing.edit(json!({"resourceLimits": [percent("cpu", 25)]})).await;
    leasing.one(&plain, "a quarter", |vnode| amount(vnode, "cpu") == Some("1")).await;
    let vnodes = leasing.vnodes().await;
    assert_eq!(vnodes.len(), 1, "{vnodes:#?}");
    for node in &leasing.nodes[..4] {
        assert!(
            !workers.get(node).await.unwrap().metadata.labels.unwrap().contains_key(label::POLICY_APPLIED)
        );
    }
    assert_rights(&leasing.binding);
}
