//! Questions about places, as schedulers and other processes put them (PO-608): the pod in them is a tenant's.

use std::{
    sync::{Arc, OnceLock, mpsc::channel},
    time::{Duration, Instant},
};

use jiff::{Timestamp, tz::TimeZone};
use kubeocean_api::place::Question;
use kubeocean_engine::{
    BindingFacts, Fit, ModuleFetch, NodeFacts, PlaceNode, PlaceRequest, PolicyHost, PolicySpec, module_digest,
};
use kubeocean_hostile_policies::place_guest;
use kubeocean_syncer::placement::facts_of_pod;
use serde_json::json;

use crate::{
    Target,
    module::{engine, node},
};

pub(crate) const TARGET: Target = Target {
    name: "place",
    run,
    prepare: || assert!(host().ready()),
    seeds,
    max_bytes: 8 << 10,
    max_seconds: 5,
    max_mebibytes: 2048,
    mutants: 1000,
};

/// Names of vnodes that are asked about; more are none of ours.
const CANDIDATES: usize = 4;

/// A host with one policy that places.
fn host() -> &'static PolicyHost {
    static HOST: OnceLock<PolicyHost> = OnceLock::new();
    HOST.get_or_init(|| {
        let (sender, changes) = channel();
        let on_change = Box::new(move || {
            // Nobody listens once the module has loaded.
            let _ = sender.send(());
        });
        let host = PolicyHost::new(engine(), BindingFacts::default(), TimeZone::UTC, on_change);
        let bytes = place_guest('a').bytes();
        let module = json!({"configMap": {"name": "m"}, "digest": module_digest(&bytes)});
        host.set_policies(vec![PolicySpec {
            name: "p".to_owned(),
            uid: "u".to_owned(),
            created_unix: 0,
            generation: 1,
            spec: serde_json::from_value(
                json!({"cluster": "c", "policies": [{"name": "x", "module": module}]}),
            )
            .unwrap(),
            modules: [("x".to_owned(), ModuleFetch::Ready(bytes.into()))].into(),
        }]);
        while !host.ready() {
            changes.recv_timeout(Duration::from_mins(1)).unwrap();
        }
        host
    })
}

fn run(bytes: &[u8]) {
    let Ok(question) = serde_json::from_slice::<Question>(bytes) else { return };
    let pod = facts_of_pod(&question.pod);
    for (resource, amount) in &pod.requests {
        assert!(*amount >= 0, "{resource}: {amount}");
    }
    let nodes: Vec<PlaceNode> = question
        .nodes
        .iter()
        .take(CANDIDATES)
        .map(|name| PlaceNode {
            facts: Arc::new(NodeFacts { vnode_name: name.clone(), ..node() }),
            policy: Some("p".into()),
        })
        .collect();
    let asked = nodes.len();
    let deadline = Instant::now() + Duration::from_mins(1);
    let request = PlaceRequest { stage: question.stage, pod: Arc::new(pod), nodes, deadline };
    let placements = host().place(Timestamp::UNIX_EPOCH, request);
    // The module accepts nodes without an amount that says otherwise, whatever the pod is.
    assert_eq!(placements.len(), asked);
    for placement in placements {
        assert_eq!((placement.fit, placement.reason), (Fit::Accept, None));
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let pods = [
        json!({}),
        json!({"metadata": {"name": "web-0", "namespace": "shop", "labels": {"app": "web"}, "annotations": {"a": "b"},
            "creationTimestamp": "2026-03-02T12:00:00Z",
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "web", "uid": "u", "controller": true}]},
            "spec": {"nodeSelector": {"pool": "a"}, "priority": 7, "priorityClassName": "high", "hostNetwork": true,
                "serviceAccountName": "web", "schedulerName": "default-scheduler",
                "overhead": {"cpu": "10m"},
                "initContainers": [{"name": "i", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1e3"}}}],
                "containers": [{"name": "c", "resources": {"requests": {"cpu": "500m", "memory": "1.5Gi"}, "limits": {"nvidia.com/gpu": "2"}}}]}}),
        json!({"spec": {"containers": [{"resources": {"requests": {"cpu": "9223372036854775807", "memory": "-1", "x": "1e400"}}}, 7]}}),
    ];
    let question = |(pod, stage)| json!({"stage": stage, "pod": pod, "nodes": ["vnode-c1-a", "vnode-c1-b"], "timeoutMilliseconds": 1000});
    let questions = pods.into_iter().zip(["schedule", "admit", "schedule"]).map(question);
    questions.map(|question| question.to_string().into_bytes()).collect()
}
