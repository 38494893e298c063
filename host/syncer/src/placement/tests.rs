//! What the engine is told about pods and vnodes.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::tz::TimeZone;
use kubeocean_api::keys::{annotation, label};
use kubeocean_engine::{
    BindingFacts, Engine, EngineConfig, Fit, Placement, PodFacts, PolicyHost, PolicySpec, Stage,
};
use kubeocean_runtime::clock::{Clock, SystemClock};
use kubeocean_runtime::meta::PackedMeta;
use rstest::rstest;
use serde_json::json;

use super::{
    desk::{PlaceDesk, admission},
    facts::{pod_facts, vnode_facts},
};
use crate::{
    nodes::{
        index::Identity,
        store::{NodeStore, Readiness},
        view::NodeView,
        vnode::BindingView,
    },
    pods::{
        admission::{Admission, Denial},
        index::PodStore,
        tests::builders,
        view::Vpod,
    },
};

/// A desk of binding `b` with clusterID `c`, without policies, before its first lists.
pub(crate) fn desk() -> (Arc<NodeStore>, Arc<PolicyHost>, Arc<PlaceDesk>) {
    let engine = Engine::start(EngineConfig { threads: 1, ..EngineConfig::default() }).unwrap();
    let identity =
        Identity { binding: "b".into(), cluster_id: "c".into(), computing_uid: "computing".into() };
    let nodes = NodeStore::new(identity, BindingView::default(), Arc::default());
    let pods = PodStore::new("c", builders::scope());
    let facts = BindingFacts { name: "b".into(), cluster_id: "c".into() };
    let host = Arc::new(PolicyHost::new(&engine, facts, TimeZone::UTC, Box::new(|| {})));
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let desk = PlaceDesk::new(&nodes, &pods, &host, &clock);
    (nodes, host, desk)
}

#[test]
fn every_fact_of_a_pod_comes_from_its_metadata_and_spec() {
    let metadata: PackedMeta = serde_json::from_value(json!({
        "name": "web-0", "namespace": "shop", "creationTimestamp": "2026-03-02T12:00:00Z",
        "labels": {"app": "web"}, "annotations": {"team": "a"},
        "ownerReferences": [
            {"apiVersion": "v1", "kind": "Other", "name": "o", "uid": "1"},
            {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "2", "controller": true},
        ],
    }))
    .unwrap();
    let spec = json!({
        "serviceAccountName": "robot", "priorityClassName": "high", "priority": 1000, "schedulerName": "default-scheduler",
        "hostNetwork": true, "nodeSelector": {"pool": "gpu"}, "overhead": {"cpu": "100m"},
        "containers": [
            {"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}},
            {"name": "b", "resources": {"requests": {"cpu": "1"}}},
        ],
        "initContainers": [{"name": "i", "resources": {"limits": {"nvidia.com/gpu": "2"}}}],
    });
    let facts = pod_facts(&metadata, &spec);
    assert_eq!((facts.name.as_str(), facts.namespace.as_str(), facts.containers), ("web-0", "shop", 2));
    assert_eq!(
        (facts.owner_kind.as_deref(), facts.owner_name.as_deref()),
        (Some("StatefulSet"), Some("web"))
    );
    assert_eq!(
        (facts.priority, facts.host_network, facts.created_unix),
        (Some(1000), true, Some(1_772_452_800))
    );
    assert_eq!((facts.requests["cpu"], facts.requests["memory"]), (1600, 1 << 30));
    assert_eq!(facts.limits, [("memory".to_owned(), 2 << 30), ("nvidia.com/gpu".to_owned(), 2)].into());
    assert_eq!(facts.node_selector["pool"], "gpu");
    let nothing = pod_facts(&PackedMeta::default(), &json!(null));
    assert_eq!((nothing.service_account, nothing.priority, nothing.containers), (None, None, 0));
}

#[test]
fn facts_of_a_vnode_are_what_it_publishes() {
    let vnode: NodeView = serde_json::from_value(json!({
        "metadata": {"name": "vnode-c-n", "labels": {"pool": "x"}, "annotations": {"kubeocean.io/physical-node-name": "n"}},
        "spec": {"unschedulable": true, "taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}]},
        "status": {
            "allocatable": {"cpu": "1500m", "memory": "1Gi"},
            "nodeInfo": {"architecture": "arm64", "operatingSystem": "linux"},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }))
    .unwrap();
    let facts = vnode_facts(&vnode, [("cpu".to_owned(), 400)].into(), [("cpu".to_owned(), 300)].into());
    assert_eq!((facts.vnode_name.as_str(), facts.labels["pool"].as_str()), ("vnode-c-n", "x"));
    assert_eq!((facts.available("cpu"), facts.available("memory")), (1100, 1 << 30));
    assert_eq!(facts.usage["cpu"], 300, "of the worker node");
    assert_eq!((facts.taints["k"].as_str(), facts.arch.as_str()), ("v:NoSchedule", "arm64"));
    assert_eq!((facts.ready, facts.schedulable), (true, false));
}

/// A module that looks at the clock may change its mind without any event.
#[test]
fn a_rejected_pod_is_asked_about_again_within_six_minutes() {
    let waits: BTreeSet<Duration> = (0..100)
        .map(|number| {
            let rejected = Placement { fit: Fit::Reject, ..Placement::default() };
            match admission(rejected, &format!("uid-{number}")) {
                Admission::Denied(Denial { retry: Some(retry), .. }) => retry,
                other => panic!("{other:?}"),
            }
        })
        .collect();
    assert!(waits.first() >= Some(&Duration::from_mins(5)) && waits.last() < Some(&Duration::from_mins(6)));
    assert!(waits.len() > 10, "not all together");
}

/// Whoever asks too early must not take a vnode for a node of somebody else, where every pod may go.
#[test]
fn before_the_first_lists_a_scheduler_gets_no_answer() {
    let (nodes, _host, desk) = desk();
    let ask = || {
        let deadline = Instant::now() + Duration::from_secs(5);
        desk.place(Stage::Schedule, &Arc::new(PodFacts::default()), &["vnode-c-n".to_owned()], deadline)
    };
    assert_eq!(ask(), None);
    nodes.set_readiness(Readiness::Ready);
    assert!(ask().is_some_and(|answer| answer.rows.is_empty()), "there is no such vnode");
    nodes.set_readiness(Readiness::Listing);
    assert_eq!(ask(), None, "the worker's credentials have changed");
}

/// Policy `p` with an entry whose module nobody has fetched yet.
fn loading(on_error: &str) -> PolicySpec {
    let entry = json!({
        "name": "x", "module": {"configMap": {"name": "m"}, "digest": format!("sha256:{}", "0".repeat(64))},
        "decisions": ["place"], "onError": on_error,
    });
    PolicySpec {
        name: "p".into(),
        uid: "u".into(),
        created_unix: 1,
        generation: 1,
        spec: serde_json::from_value(json!({"cluster": "b", "policies": [entry]})).unwrap(),
        modules: BTreeMap::new(),
    }
}

/// PO-704, PO-803: a fresh leader gives its policies half a minute; then what their entries say of errors holds.
#[rstest]
#[case::ignored("Ignore", Admission::Granted)]
#[case::denied("Deny", Admission::Denied(Denial {
    code: "PoliciesLoading".into(),
    message: "Loading (policy p/x)".into(),
    retry: Some(Duration::from_secs(30)),
}))]
#[tokio::test(start_paused = true)]
async fn a_pod_waits_while_the_policies_of_a_fresh_leader_load(
    #[case] on_error: &str,
    #[case] stands: Admission,
) {
    let (nodes, host, desk) = desk();
    host.set_policies(vec![loading(on_error)]);
    let vnode = json!({"metadata": {
        "name": "vnode-c-n", "uid": "n", "resourceVersion": "1",
        "labels": {
            label::TYPE: "virtual-kubelet", label::CLUSTER_BINDING: "b", label::PHYSICAL_CLUSTER_ID: "c",
        },
        "annotations": {annotation::POLICIES_APPLIED: "p"},
    }});
    nodes.saw_vnode(serde_json::from_value(vnode).unwrap());
    let vpod = Vpod::from_json(&json!({
        "metadata": {"namespace": "shop", "name": "web-0", "uid": "v", "resourceVersion": "1"},
        "spec": {"nodeName": "vnode-c-n"}, "status": {"phase": "Pending"},
    }))
    .unwrap();
    assert_eq!(desk.admit(&vpod).await, Admission::Wait(None), "nobody knows when the lists are complete");
    nodes.set_readiness(Readiness::Ready);
    assert_eq!(desk.admit(&vpod).await, Admission::Wait(Some(Duration::from_secs(30))));
    tokio::time::advance(Duration::from_secs(29)).await;
    assert_eq!(desk.admit(&vpod).await, Admission::Wait(Some(Duration::from_secs(1))));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(desk.admit(&vpod).await, stands);
}
