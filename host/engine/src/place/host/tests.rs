//! What is answered about places while there is no room for a question.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use kubeocean_hostile_policies::{digest, place_guest};
use serde_json::json;

use super::{PlaceNode, PlaceRequest};
use crate::config::{EngineConfig, QUEUE_UNITS};
use crate::engine::Engine;
use crate::facts::{BindingFacts, NodeFacts};
use crate::host::{ModuleFetch, PolicyHost, PolicySpec};
use crate::place::answer::{Fit, Stage};
use crate::place::facts::PodFacts;

/// How long whoever asks would wait.
const PATIENCE: Duration = Duration::from_secs(20);

/// A policy by the name of what it says of errors; its module accepts every pod.
fn accepting(on_error: &str, bytes: &Arc<[u8]>) -> PolicySpec {
    let module = json!({"configMap": {"name": "m"}, "digest": digest(bytes)});
    let limits = json!({"timeoutMilliseconds": 1000});
    let entry = json!({"name": "x", "module": module, "onError": on_error, "limits": limits});
    PolicySpec {
        name: on_error.into(),
        uid: on_error.into(),
        created_unix: 1,
        generation: 1,
        spec: serde_json::from_value(json!({"cluster": "b", "policies": [entry]})).unwrap(),
        modules: [("x".to_owned(), ModuleFetch::Ready(Arc::clone(bytes).into()))].into(),
    }
}

/// PO-902: a scheduler does not wait for a place in the queue.
#[test]
fn where_the_queue_is_full_on_error_stands_at_once() {
    const POLICIES: [&str; 3] = ["Deny", "LastKnown", "Ignore"];
    let config = EngineConfig { threads: 1, pooling: false, ..EngineConfig::default() };
    let engine = Engine::start(config).unwrap();
    let (sender, changes) = channel();
    let on_change = Box::new(move || {
        // Nobody listens any more when everything is loaded.
        let _ = sender.send(());
    });
    let binding = BindingFacts { name: "b".into(), cluster_id: "c".into() };
    let host = PolicyHost::new(&engine, binding, TimeZone::UTC, on_change);
    let bytes = place_guest('a').bytes();
    host.set_policies(POLICIES.map(|on_error| accepting(on_error, &bytes)).into());
    while !host.ready() {
        changes.recv_timeout(3 * PATIENCE).expect("an entry neither loads nor fails");
    }
    let node = |policy: &str| PlaceNode {
        facts: Arc::new(NodeFacts { vnode_name: policy.into(), ..NodeFacts::default() }),
        policy: Some(policy.into()),
    };
    let ask = || {
        let request = PlaceRequest {
            stage: Stage::Schedule,
            pod: Arc::new(PodFacts::default()),
            nodes: POLICIES.map(node).into(),
            deadline: Instant::now() + PATIENCE,
        };
        host.place(Timestamp::UNIX_EPOCH, request)
    };
    let fits = || ask().iter().map(|answer| answer.fit).collect::<Vec<_>>();
    assert_eq!(fits(), [Fit::Accept; 3], "from now on they are known to answer in time");

    let units = &engine.inner.units;
    let (begun, begins) = channel();
    let (release, held) = channel::<()>();
    units.submit(move || {
        begun.send(()).unwrap();
        // Until it is released, or a test that fails has failed.
        let _ = held.recv_timeout(3 * PATIENCE);
    });
    begins.recv().unwrap();
    for _ in 0..QUEUE_UNITS {
        assert!(units.try_submit(|| {}));
    }
    let asked = Instant::now();
    assert_eq!(fits(), [Fit::Reject, Fit::Reject, Fit::Accept]);
    assert!(asked.elapsed() < PATIENCE, "it waited for room, or for an answer");

    drop(release);
    let (sender, drained) = channel();
    units.submit(move || sender.send(()).unwrap());
    drained.recv().unwrap();
    assert_eq!(fits(), [Fit::Accept; 3], "that was no fault of theirs");
}
