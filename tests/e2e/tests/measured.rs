//! Policies that read what is used of nodes (PO-405): measured in the worker cluster, asked for while a policy reads it.
//!
//! A worker cluster has `metrics.k8s.io` from a server of its own. Here the kind is a custom resource of the same path,
//! which a client cannot tell apart, so that a test says what is measured.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kubeocean_api::keys::{condition_type, taint};
use kubeocean_e2e::commands::printed;
use kubeocean_e2e::leasing::{DEADLINE, Leasing, amount, is_offered};
use kubeocean_e2e::modules::publish;
use kubeocean_e2e::pods::{Objects, condition, pod_path};
use kubeocean_e2e::rights::{LimitedAccount, assert_rights, requests};
use kubeocean_e2e::storm::pass;
use kubeocean_e2e::users::told;
use kubeocean_harness::author::example_module;
use kubeocean_harness::{NodeShape, shared_site, wait_until};
use serde_json::{Value, json};

const ALL: &str = "/apis/metrics.k8s.io/v1beta1/nodes";

/// Has the worker cluster serve the kind, for all tests of this file.
async fn served() -> Objects {
    let site = shared_site().await;
    let worker = Objects::of(site.fleet().workers.first().unwrap()).await;
    let kind = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": "nodes.metrics.k8s.io",
            "annotations": {"api-approved.kubernetes.io": "unapproved, stands for a metrics server"},
        },
        "spec": {
            "group": "metrics.k8s.io", "scope": "Cluster",
            "names": {"plural": "nodes", "singular": "nodemetrics", "kind": "NodeMetrics", "listKind": "NodeMetricsList"},
            "versions": [{
                "name": "v1beta1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    });
    site.fleet().workers.first().unwrap().apply_objects(vec![kind]).await.unwrap();
    wait_until("the kind to be served", DEADLINE, async || {
        if worker.get(ALL).await.is_some() { Ok(()) } else { Err("404") }
    })
    .await;
    worker
}

/// Says what was used of a node some seconds ago.
async fn measure(worker: &Objects, node: &str, seconds_ago: i64, cpu: &str) {
    let at = Timestamp::now() - SignedDuration::from_secs(seconds_ago);
    let sample = json!({
        "apiVersion": "metrics.k8s.io/v1beta1", "kind": "NodeMetrics", "metadata": {"name": node},
        "timestamp": at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(), "window": "30s",
        "usage": {"cpu": cpu, "memory": "30Gi"},
    });
    let path = format!("{ALL}/{node}");
    if worker.get(&path).await.is_some() {
        worker.merge(&path, &sample).await;
    } else {
        worker.create(ALL, &sample).await;
    }
}

/// The example policy as the only entry; `module` is its module.
async fn tidal(leasing: &Leasing, module: &[u8], settings: Value) -> Value {
    let reference = publish(leasing.binding.worker(), leasing.binding.name(), module).await;
    json!({"policies": [{"name": "tidal", "module": reference, "settings": settings}]})
}

fn asked(leasing: &Leasing) -> usize {
    let (_, worker) = requests(&leasing.binding);
    worker.iter().filter(|event| event.uri.starts_with("/apis/metrics.k8s.io/")).count()
}

/// A person is told what is measured now, and what comes of it.
async fn explained(leasing: &Leasing, node: &str, cpu: i64) {
    let worker = leasing.binding.worker().kubeconfig_path();
    let worker = worker.to_str().unwrap();
    let explain = [
        "policy",
        "explain",
        node,
        "--kubeconfig",
        worker,
        "--binding",
        leasing.binding.name(),
        "-o",
        "json",
    ];
    let told: Value = serde_json::from_str(&printed(&explain).await).unwrap();
    assert_eq!(told["facts"]["usage"]["cpu"], cpu, "{told:#}");
    // 20 cores, less those, less 2 in reserve.
    assert_eq!(told["decision"]["amounts"]["cpu"], 18_000 - cpu, "{told:#}");
}

/// What a person records of a node is what is measured, and a simulation of the policy leases as much as the vnode publishes:
/// 12 cores and 60Gi.
async fn recorded(leasing: &Leasing, node: &str, module: &[u8], policy: &Value) {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let [snapshot, rlp, wasm] = ["now.snap", "rlp.yaml", "tidal_usage.wasm"].map(path);
    let [worker, computing] = [leasing.binding.worker(), leasing.binding.computing()]
        .map(|cluster| cluster.kubeconfig_path().to_str().unwrap().to_owned());
    let name = leasing.binding.name();
    let clusters = ["--kubeconfig", &worker, "--computing-kubeconfig", &computing, "--binding", name];
    let record = ["policy", "snapshot", "-o", &snapshot, "--output", "json"];
    let report: Value = serde_json::from_str(&printed(&[&record[..], &clusters].concat()).await).unwrap();
    assert!(report["measured"].as_u64() >= Some(1), "{report:#}");
    let text = std::fs::read_to_string(&snapshot).unwrap();
    let mut lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let line = lines.find(|line| line["node"] == node).unwrap();
    assert_eq!(line["facts"]["usage"], json!({"cpu": 6000, "memory": 30_u64 << 30}), "{line:#}");

    let mut whole = json!({"kind": "ResourceLeasingPolicy", "metadata": {"name": name}, "spec": policy});
    whole["spec"]["cluster"] = name.into();
    std::fs::write(&rlp, whole.to_string()).unwrap();
    std::fs::write(&wasm, module).unwrap();
    let module = format!("tidal={wasm}");
    let simulate = ["policy", "simulate", "-f", &rlp, "--snapshot", &snapshot];
    let how = ["--module", &module, "--for", "1h", "-ojson"];
    let simulated: Value = serde_json::from_str(&printed(&[&simulate[..], &how].concat()).await).unwrap();
    let decided = &simulated["atEnd"][node];
    let amounts = (&decided["amounts"]["cpu"], &decided["amounts"]["memory"]);
    assert_eq!(amounts, (&json!(12_000), &json!(60_u64 << 30)), "{decided:#}");
}

#[tokio::test]
async fn what_is_used_of_a_node_counts_while_a_policy_reads_it() {
    let worker = served().await;
    let module = example_module("tidal-usage").await.unwrap();
    let shape = NodeShape::new("20", "100Gi");
    let leasing = Leasing::start("measured", 1, &shape, json!({})).await;
    let node = leasing.nodes[0].clone();
    let has = async |what: &str, cpu: &str| {
        leasing.one(&node, what, |v| is_offered(v) && amount(v, "cpu") == Some(cpu)).await
    };
    has("the whole node", "20").await;
    measure(&worker, &node, 60, "6").await;
    assert_eq!(asked(&leasing), 0, "no policy reads it");

    let recording = leasing.record().await;
    let policy = tidal(&leasing, &module, json!({})).await;
    leasing.edit(policy.clone()).await;
    let vnode = has("what 6 used cores and 2 in reserve leave", "12").await;
    assert_eq!(amount(&vnode, "memory"), Some("60Gi"));
    let states = recording.states();
    let cpu: Vec<_> = states.iter().filter_map(|vnode| amount(vnode, "cpu")).collect();
    assert!(cpu.iter().all(|cpu| ["20", "12"].contains(cpu)), "nothing in between: {cpu:?}");
    recorded(&leasing, &node, &module, &policy).await;
    measure(&worker, &node, 30, "10").await;
    has("the mean of 6 and 10", "10").await;
    explained(&leasing, &node, 10_000).await;

    let busy = json!({"headroomPercent": 20, "busyAbove": {"cpu": "7"}});
    leasing.edit(tidal(&leasing, &module, busy).await).await;
    has("a larger reserve", "8").await;
    let home = "measured-users";
    leasing.binding.computing().create_namespace(home).await.unwrap();
    let computing = Objects::of(leasing.binding.computing()).await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "batch", "namespace": home},
        "spec": {
            "nodeName": leasing.vnode_name(&node), "automountServiceAccountToken": false,
            "tolerations": [{"key": taint::VNODE, "operator": "Exists"}],
            "containers": [{"name": "c", "image": "batch:1", "resources": {"requests": {"cpu": "1"}}}],
        },
    });
    computing.create(&format!("/api/v1/namespaces/{home}/pods"), &pod).await;
    let path = pod_path(home, "batch");
    let denied = |pod: &Value| {
        let told = condition(pod, condition_type::POLICY_ADMITTED);
        (told["status"] == "False" && told["reason"] == "Busy").then_some(())
    };
    computing.wait("the pod to be kept off a busy node", &path, denied).await;
    measure(&worker, &node, 0, "0").await;
    let running = |pod: &Value| (pod["status"]["phase"] == "Running").then_some(());
    computing.wait("the pod to run when the mean has fallen", &path, running).await;

    has("the mean of 6, 10 and 0, less the pod's core, and a reserve of 4", "11").await;

    leasing.edit(json!({})).await;
    has("the whole node", "20").await;
    let before = asked(&leasing);
    leasing.edit(json!({"resourceLimits": [{"resource": "cpu", "percent": 50}]})).await;
    has("half of it", "10").await;
    assert!(before > 0 && asked(&leasing) <= before + 1, "no policy reads it any more");
    assert_rights(&leasing.binding);
}

#[tokio::test]
async fn without_the_right_nothing_is_measured_and_that_is_told_once() {
    let worker = served().await;
    let module = example_module("tidal-usage").await.unwrap();
    let leasing = Leasing::start("unmeasured", 1, &NodeShape::new("20", "100Gi"), json!({})).await;
    let node = leasing.nodes[0].clone();
    measure(&worker, &node, 60, "6").await;
    leasing.edit(tidal(&leasing, &module, json!({})).await).await;
    leasing.one(&node, "what is measured to count", |v| amount(v, "cpu") == Some("12")).await;

    let limited = LimitedAccount::new(&leasing.binding).await;
    limited.hide_group("metrics.k8s.io").await;
    leasing.binding.write_kubeconfig(&limited.kubeconfig).await.unwrap();
    told(&leasing, "default", leasing.binding.name(), "FeatureDisabled").await;
    leasing.one(&node, "the whole node", |v| is_offered(v) && amount(v, "cpu") == Some("20")).await;
    let refused = || {
        let events = leasing.binding.worker().audit_events().unwrap();
        events.iter().filter(|event| event.uri == ALL && event.response_status.code == 403).count()
    };
    let before = refused();
    assert!(before > 1, "a server that has just begun refuses once, too");
    pass(Duration::from_secs(5)).await;
    assert_eq!(refused(), before, "nobody asks again");
}
