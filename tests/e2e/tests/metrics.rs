//! What a live Syncer's metrics say, compared with what the clusters hold (BU section 16): all of them, with their labels
//! and units, gone with what they are about, and none of a standby.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::Node;
use kube::{Api, api::DeleteParams};
use kubeocean_api::{
    keys::{condition_type, label},
    quantity::Rounding,
    resource::to_base_units,
};
use kubeocean_e2e::exposition::{Page, documented};
use kubeocean_e2e::pods::{DEADLINE, Scene, Stage, condition};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_harness::{BindingSpec, Program, wait_until};
use serde_json::{Value, json};

const BINDING: &str = "metrics";
/// What the token of the pod is good for.
const TOKEN_SECONDS: u32 = 3600;

async fn scrape(syncer: &Program) -> Page {
    Page::parse(&syncer.metrics().await.expect("a page of metrics"))
}

/// Name without `kubeocean_`, labels, value.
type Expected<'a> = (&'a str, &'a [(&'a str, &'a str)], f64);

/// Waits until the page shows these values. Each series also has the label `clusterbinding`.
async fn wait_values(syncer: &Program, what: &str, expected: &[Expected<'_>]) -> Page {
    wait_until(what, DEADLINE, async || {
        let page = scrape(syncer).await;
        let wrong: Vec<_> = expected
            .iter()
            .filter_map(|(name, labels, value)| {
                let labels = [&[("clusterbinding", BINDING)], *labels].concat();
                let found = page.value(&format!("kubeocean_{name}"), &labels);
                (found != Some(*value)).then(|| format!("{name} {labels:?}: {found:?}, not {value}"))
            })
            .collect();
        if wrong.is_empty() { Ok(page) } else { Err(wrong) }
    })
    .await
}

/// A pod that the worker's owner runs on the node.
async fn foreign_pod(stage: &Stage, node: &str) {
    let worker = stage.binding.worker();
    worker.create_namespace("metrics-foreign").await.expect("a namespace");
    let requests = json!({"cpu": "2", "memory": "1Gi"});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "online", "namespace": "metrics-foreign"},
        "spec": {"nodeName": node, "containers": [
            {"name": "c", "image": "example.test/online", "resources": {"requests": requests}},
        ]},
    });
    worker.apply_objects(vec![pod]).await.expect("a pod");
}

/// A pod of another binding: on a vnode that is not ours.
async fn pod_of_another_binding(scene: &Scene<'_>) {
    let mut pod = scene.pod("elsewhere", json!({"nodeName": "vnode-elsewhere-0"}));
    pod["spec"]["nodeSelector"] = Value::Null;
    scene.create_pod(&pod).await;
    let running = json!({"status": {"phase": "Running"}});
    scene.computing.merge(&format!("{}/status", scene.vpod("elsewhere")), &running).await;
}

/// A pod with a ConfigMap and a token; returns it as it runs.
async fn pod_with_objects(scene: &Scene<'_>, name: &str) -> Value {
    scene.create_object("configmaps", "settings", json!({"data": {"a": "1"}})).await;
    let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_SECONDS}});
    let volumes = json!([
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "identity", "projected": {"sources": [token]}},
    ]);
    let (vpod, _) = scene.run_pod(name, json!({"volumes": volumes})).await;
    vpod
}

fn published(vnode: &Value, resource: &str) -> i64 {
    let written = vnode["status"]["allocatable"][resource].as_str().expect("a published amount");
    to_base_units(resource, written, Rounding::Down).expect("an amount")
}

#[expect(clippy::cast_precision_loss, reason = "amounts of this test are small")]
fn number(amount: i64) -> f64 {
    amount as f64
}

#[tokio::test]
async fn a_live_scrape_tells_what_the_clusters_hold() {
    let stage = Stage::start_with(BindingSpec::new(BINDING), 2, &["--leader-elect=true"]).await;
    let mut standby = stage.binding.syncer(&["--leader-elect=true"]).await.expect("a standby");
    let scene = stage.scene("metrics-users").await;
    let [first, second] = [0, 1].map(|index| format!("vnode-{BINDING}-{BINDING}-{index}"));
    foreign_pod(&stage, "metrics-0").await;
    pod_of_another_binding(&scene).await;
    let vpod = pod_with_objects(&scene, "batch").await;

    let used = |node: &str| (vpod["spec"]["nodeName"] == node).then_some(10.0);
    let page = wait_values(
        &stage.syncer,
        "the metrics of two nodes",
        &[
            ("syncer_vnode_total", &[], 2.0),
            ("syncer_vnode_origin_resource", &[("node", &first), ("resource", "cpu")], 32_000.0),
            ("syncer_vnode_origin_resource", &[("node", &second), ("resource", "memory")], 131_072.0),
            (
                "syncer_vnode_origin_resource",
                &[("node", &second), ("resource", "ephemeral-storage")],
                102_400.0,
            ),
            ("syncer_vnode_available_resource", &[("node", &first), ("resource", "cpu")], 30_000.0),
            ("syncer_vnode_available_resource", &[("node", &first), ("resource", "memory")], 130_048.0),
            ("syncer_vnode_available_resource", &[("node", &second), ("resource", "cpu")], 32_000.0),
            ("syncer_vnode_physical_usage", &[("node", &first), ("resource", "cpu")], 2000.0),
            ("syncer_vnode_physical_usage", &[("node", &first), ("resource", "memory")], 1024.0),
            ("syncer_cluster_origin_resource", &[("resource", "cpu")], 64_000.0),
            ("syncer_cluster_available_resource", &[("resource", "cpu")], 62_000.0),
            ("syncer_cluster_physical_usage", &[("resource", "cpu")], 2000.0),
            ("syncer_cluster_virtual_usage", &[("resource", "cpu")], 10.0),
            ("syncer_virtual_pod_total", &[("phase", "Running")], 1.0),
            ("syncer_physical_pod_total", &[("phase", "Running")], 1.0),
            ("syncer_create_pod_total", &[], 1.0),
            ("syncer_create_pod_errors_total", &[], 0.0),
            ("syncer_pod_created_total", &[], 1.0),
            ("syncer_pod_created_failed_total", &[], 0.0),
            ("syncer_vnode_writes_total", &[("kind", "create")], 2.0),
            ("syncer_vnode_writes_total", &[("kind", "delete")], 0.0),
            ("syncer_reclaim_pods_total", &[("mode", "reclaimed")], 0.0),
            ("syncer_reclaim_pods_total", &[("mode", "drained")], 0.0),
            ("syncer_pod_creation_seconds_count", &[], 1.0),
            ("syncer_copied_objects", &[("kind", "ConfigMap")], 1.0),
            ("syncer_copied_objects", &[("kind", "Secret")], 0.0),
            ("syncer_queue_depth", &[("queue", "pods")], 0.0),
            ("syncer_node_lease_late_total", &[], 0.0),
            ("syncer_usage_drift_total", &[], 0.0),
            ("policy_offered", &[("rlp", BINDING), ("resource", "cpu")], 62_000.0),
            ("policy_available", &[("rlp", BINDING), ("resource", "cpu")], 62_000.0),
            ("policy_withheld_nodes", &[("rlp", BINDING)], 0.0),
            ("policy_overcommitted_nodes", &[("rlp", BINDING)], 0.0),
            ("policy_instances_in_use", &[], 0.0),
        ],
    )
    .await;
    let expected: BTreeSet<_> =
        documented().map(|metric| (metric.name.to_owned(), metric.kind.to_owned())).collect();
    assert_eq!(page.kinds(), &expected);
    let expected: BTreeMap<_, _> = documented().flat_map(|metric| metric.samples()).collect();
    for (name, labels) in page.samples() {
        assert_eq!(Some(&labels), expected.get(name), "{name}");
    }
    assert!(page.all_have("clusterbinding"));
    assert_eq!(page.values_of("clusterbinding"), [BINDING.to_owned()].into());
    assert_eq!(page.values_of("node"), [first.clone(), second.clone()].into());
    // What a policy that names none has is the process' own, by whatever name.
    let zones = page.values_of("zone");
    assert!(zones.len() == 1 && !zones.contains(""), "{zones:?}");
    let named = json!({"timeZone": "Asia/Kolkata"});
    stage.binding.policy(BINDING, named).await.expect("a policy");
    let zone: &[_] = &[("rlp", BINDING), ("zone", "Asia/Kolkata")];
    let in_zone = wait_values(&stage.syncer, "its own zone", &[("policy_time_zone_info", zone, 1.0)]).await;
    assert_eq!(in_zone.values_of("zone"), ["Asia/Kolkata".to_owned()].into());
    let phases = ["Pending", "Running", "Succeeded", "Failed", "Unknown"];
    assert_eq!(page.values_of("phase"), phases.map(str::to_owned).into());
    let of = |name: &str, labels: &[(&str, &str)]| {
        page.value(&format!("kubeocean_{name}"), &[&[("clusterbinding", BINDING)], labels].concat())
    };
    for node in [&first, &second] {
        let labels = [("node", node.as_str()), ("resource", "cpu")];
        let shown = of("syncer_vnode_virtual_usage", &labels).filter(|value| *value > 0.0);
        assert_eq!(shown, used(node));
        // What is told is what is published.
        let vnode = scene.computing.get(&format!("/api/v1/nodes/{node}")).await.expect("a vnode");
        assert_eq!(of("syncer_vnode_available_resource", &labels), Some(number(published(&vnode, "cpu"))));
        let labels = [("node", node.as_str()), ("resource", "memory")];
        let mebibytes = published(&vnode, "memory") >> 20;
        assert_eq!(of("syncer_vnode_available_resource", &labels), Some(number(mebibytes)));
        assert_eq!(condition(&vnode, condition_type::WORKER_REACHABLE)["status"], "True");
    }
    assert!(of("syncer_worker_watch_age_seconds", &[]).is_some_and(|age| age < 60.0));
    let left = of("syncer_token_expiry_seconds", &[]);
    assert!(left.is_some_and(|left| 0.0 < left && left <= f64::from(TOKEN_SECONDS)), "{left:?}");
    let waits = of("syncer_queue_wait_seconds_count", &[("queue", "pods")]);
    assert!(waits.is_some_and(|waits| waits > 0.0), "{waits:?}");
    let text = stage.syncer.metrics().await.expect("a page of metrics");
    assert!(text.contains("kubeocean_build_info{clusterbinding=\"metrics\",version=\""), "{text}");
    standby.wait_ready().await;
    assert_eq!(standby.metrics().await.expect("a page"), "# EOF\n", "a standby tells nothing");

    what_cannot_be_created_is_counted(&stage, &scene).await;
    what_is_gone_is_told_no_more(&stage, &scene, &first).await;
    assert_eq!(standby.metrics().await.expect("a page"), "# EOF\n");
    assert_rights(&stage.binding);
}

/// Each attempt at a copy is, and each that fails.
async fn what_cannot_be_created_is_counted(stage: &Stage, scene: &Scene<'_>) {
    let missing = json!({"volumes": [{"name": "settings", "configMap": {"name": "missing"}}]});
    scene.create_pod(&scene.pod("waits", missing)).await;
    wait_until("a failed attempt to be counted", DEADLINE, async || {
        let page = scrape(&stage.syncer).await;
        let [attempts, errors] = ["create_pod_total", "create_pod_errors_total"].map(|name| {
            page.value(&format!("kubeocean_syncer_{name}"), &[("clusterbinding", BINDING)])
                .unwrap_or_default()
        });
        if errors >= 1.0 && attempts > errors { Ok(()) } else { Err((attempts, errors)) }
    })
    .await;
    wait_values(
        &stage.syncer,
        "the pod to wait",
        &[("syncer_pod_created_total", &[], 1.0), ("syncer_virtual_pod_total", &[("phase", "Pending")], 1.0)],
    )
    .await;
    scene.computing.delete(&scene.vpod("waits"), Some(0)).await;
}

/// A lost copy is counted once; a withdrawn vnode takes its series along.
async fn what_is_gone_is_told_no_more(stage: &Stage, scene: &Scene<'_>, first: &str) {
    scene.worker.delete(&scene.ppod("batch"), Some(0)).await;
    wait_values(
        &stage.syncer,
        "the lost pod to be counted",
        &[
            ("syncer_pod_created_failed_total", &[], 1.0),
            ("syncer_virtual_pod_total", &[("phase", "Failed")], 1.0),
            ("syncer_virtual_pod_total", &[("phase", "Running")], 0.0),
            ("syncer_physical_pod_total", &[("phase", "Running")], 0.0),
        ],
    )
    .await;
    scene.computing.delete(&scene.vpod("batch"), Some(0)).await;
    let nodes: Api<Node> = Api::all(stage.binding.worker().client().await.expect("a client"));
    nodes.delete("metrics-1", &DeleteParams::default()).await.expect("a deleted node");
    let page = wait_values(
        &stage.syncer,
        "the metrics of one node",
        &[
            ("syncer_vnode_total", &[], 1.0),
            ("syncer_cluster_origin_resource", &[("resource", "cpu")], 32_000.0),
            ("policy_offered", &[("rlp", BINDING), ("resource", "cpu")], 30_000.0),
        ],
    )
    .await;
    assert_eq!(page.values_of("node"), [first.to_owned()].into());
    let selector = format!("{}%3D{BINDING}", label::CLUSTER_BINDING.replace('/', "%2F"));
    wait_until("as many vnodes as are told", DEADLINE, async || {
        let vnodes = scene.computing.list(&format!("/api/v1/nodes?labelSelector={selector}")).await;
        if vnodes.len() == 1 { Ok(()) } else { Err(vnodes.len()) }
    })
    .await;
}
