//! How long a scheduler waits for the policies of 5,000 candidates: three entries, then the same with a fourth that loops.
//!
//! Prints p50, p99 and the longest of some hundred questions, as they come from a scheduler one after another. The time is
//! the host's, without HTTP and JSON around it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use kubeocean_engine::{
    BindingFacts, Engine, EngineConfig, Fit, ModuleFetch, NodeFacts, PlaceNode, PlaceRequest, PodFacts,
    PolicyHost, PolicySpec, Stage,
};
use kubeocean_hostile_policies::{digest, place_guest};
use serde_json::json;

const CANDIDATES: i64 = 5000;
const QUESTIONS: usize = 500;
/// Four fifths of the default of `--scheduler-extender-timeout`.
const DEADLINE: Duration = Duration::from_millis(800);

fn host(engine: &Engine, loops: bool) -> PolicyHost {
    let good: Arc<[u8]> = place_guest('a').bytes();
    let bad: Arc<[u8]> = place_guest('z').with("POISONED", "(call $forever)").bytes();
    let mut named: Vec<(String, Arc<[u8]>)> =
        (0..3).map(|i| (format!("good-{i}"), Arc::clone(&good))).collect();
    if loops {
        named.push(("loops".to_owned(), bad));
    }
    let policies: Vec<_> = named
        .iter()
        .map(|(name, bytes)| {
            // A machine that has no time shall show it, not lose answers; who loops has the default.
            let limits = json!({"timeoutMilliseconds": if name == "loops" { 100 } else { 1000 }});
            json!({"name": name, "onError": "Ignore", "limits": limits, "module": {"configMap": {"name": "m"}, "digest": digest(bytes)}})
        })
        .collect();
    let host = PolicyHost::new(engine, BindingFacts::default(), TimeZone::UTC, Box::new(|| {}));
    host.set_policies(vec![PolicySpec {
        name: "p".to_owned(),
        uid: String::new(),
        created_unix: 0,
        generation: 1,
        spec: serde_json::from_value(json!({"cluster": "b", "policies": policies})).expect("a valid spec"),
        modules: named.into_iter().map(|(name, bytes)| (name, ModuleFetch::Ready(bytes.into()))).collect(),
    }]);
    while !host.ready() {
        std::thread::yield_now();
    }
    host
}

fn candidates() -> Vec<PlaceNode> {
    (0..CANDIDATES)
        .map(|i| {
            let facts = NodeFacts {
                node_name: format!("node-{i}"),
                labels: [
                    ("pool".to_owned(), format!("pool-{}", i % 7)),
                    ("zone".to_owned(), format!("z{}", i % 3)),
                ]
                .into(),
                allocatable: [
                    ("cpu".to_owned(), 64_000),
                    ("a.test/fit".to_owned(), i % 2),
                    ("a.test/score".to_owned(), i % 100),
                    ("z.test/fit".to_owned(), 666),
                ]
                .into(),
                used: [("cpu".to_owned(), 1000 + i)].into(),
                ready: true,
                ..NodeFacts::default()
            };
            PlaceNode { facts: Arc::new(facts), policy: Some(Arc::from("p")) }
        })
        .collect()
}

fn main() {
    let engine = Engine::start(EngineConfig::default()).expect("the engine starts");
    let (nodes, pod) = (candidates(), Arc::new(PodFacts::default()));
    for loops in [false, true] {
        let host = host(&engine, loops);
        let mut took: Vec<Duration> = (0..QUESTIONS)
            .map(|_| {
                let nodes = nodes.clone();
                let started = Instant::now();
                let deadline = started + DEADLINE;
                let request = PlaceRequest { stage: Stage::Schedule, pod: Arc::clone(&pod), nodes, deadline };
                let answers = host.place(Timestamp::now(), request);
                let took = started.elapsed();
                let rejected = answers.iter().filter(|answer| answer.fit == Fit::Reject).count();
                assert_eq!(
                    rejected, 2500,
                    "a build without optimization is too slow for the limits of a call"
                );
                took
            })
            .collect();
        took.sort_unstable();
        let at = |share: usize| took.get((took.len() - 1) * share / 100).copied().unwrap_or_default();
        let entries = if loops { "3 entries and one that loops" } else { "3 entries" };
        println!(
            "place, {CANDIDATES} candidates, {entries}: p50 {:?}  p99 {:?}  longest {:?}",
            at(50),
            at(99),
            at(100)
        );
    }
}
