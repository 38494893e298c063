//! `kubeocean policy replay`, and that every command says about recorded decisions what the Syncer said.
//!
//! The records are those of a host, as the Syncer runs one.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

mod binary;
mod history;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{Arc, mpsc},
};

use binary::{file, json, said};
use history::decision;
use jiff::{Timestamp, tz::TimeZone};
use kubeocean_engine::{
    BindingFacts, Engine, EngineConfig, ModuleFetch, NodeDecision, NodeFacts, PolicyHost, PolicySpec, Record,
};
use kubeocean_harness::author::example_module;
use kubeocean_hostile_policies::{digest, guest};
use serde_json::{Value, json as value};
use tempfile::TempDir;

/// Half an hour before clocks go forward in Rome.
const BEGIN: i64 = 1_774_743_400;
const ROUNDS: i64 = 10;
const NODES: i64 = 500;

fn spec(night: &[u8]) -> Value {
    value!({
        "cluster": "b", "timeZone": "Europe/Rome",
        "policies": [
            {"name": "half", "module": {"builtin": "cpu-percentage"}, "settings": {"cpuPercent": 50}},
            {"name": "night", "module": {"configMap": {"name": "night"}, "digest": digest(night)},
             "settings": {"from": 3, "until": 7, "percent": 50}},
        ],
    })
}

fn node(round: i64, number: i64) -> NodeFacts {
    NodeFacts {
        node_name: format!("node-{number}"),
        labels: [("pool".to_owned(), format!("pool-{}", number % 7))].into(),
        allocatable: [("cpu".to_owned(), 64_000), ("nvidia.com/gpu".to_owned(), 1000 + number)].into(),
        used: [("cpu".to_owned(), 10 * number + round), ("nvidia.com/gpu".to_owned(), round)].into(),
        ready: true,
        schedulable: true,
        ..NodeFacts::default()
    }
}

struct Recorded {
    records: Vec<Record>,
    /// Of the last round.
    decisions: Vec<NodeDecision>,
    at: i64,
}

/// What a Syncer's host decides and records in ten rounds of 500 nodes and two modules.
fn recorded(night: &[u8]) -> Recorded {
    let engine = Engine::start(EngineConfig::default()).unwrap();
    let (tell, changes) = mpsc::channel();
    let binding = BindingFacts { name: "b".into(), cluster_id: "c1".into() };
    let changed = Box::new(move || {
        // The test may be over.
        let _ = tell.send(());
    });
    let host = PolicyHost::new(&engine, binding, TimeZone::UTC, changed);
    host.set_policies(vec![PolicySpec {
        name: "p".into(),
        uid: "p".into(),
        created_unix: 0,
        generation: 1,
        spec: serde_json::from_value(spec(night)).unwrap(),
        modules: BTreeMap::from([("night".to_owned(), ModuleFetch::Ready(Arc::<[u8]>::from(night).into()))]),
    }]);
    while !host.ready() {
        changes.recv().unwrap();
    }
    let mut all = Recorded { records: Vec::new(), decisions: Vec::new(), at: 0 };
    for round in 0..ROUNDS {
        let nodes: Vec<Arc<NodeFacts>> = (0..NODES).map(|number| Arc::new(node(round, number))).collect();
        all.at = BEGIN + round * 1800;
        all.decisions = host.decide(Timestamp::from_second(all.at).unwrap(), &nodes);
        let records = host.records();
        assert_eq!(records.len(), 1000, "the ring holds what was asked in this round");
        all.records.extend(records);
    }
    all
}

fn lines(records: &[Record]) -> String {
    records.iter().map(|record| serde_json::to_string(record).unwrap() + "\n").collect()
}

#[tokio::test]
async fn ten_thousand_recorded_decisions_replay_bit_for_bit() {
    let directory = tempfile::tempdir().unwrap();
    let night = example_module("night-gpu").await.unwrap();
    let recorded = recorded(&night);
    assert!(
        recorded.records.iter().any(|record| record.next_offset.is_some()),
        "the zone's next change is known"
    );
    let records = file(&directory, "decisions.jsonl", lines(&recorded.records).as_bytes());
    let (code, _, error) = said(&["policy", "replay", &records]);
    assert!(
        code == 2 && error.contains(&digest(&night)) && error.contains("--module FILE"),
        "{code}: {error}"
    );
    let module = file(&directory, "night.wasm", &night);
    let replay = ["policy", "replay", &records, "--module", &module];
    let (code, out, error) = said(&replay);
    println!("{out}");
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains("replayed 10000 records of 2 entries and 2 modules, 0 differ"), "{out}");

    // One bit of one answer.
    let mut wrong = recorded.records;
    let cap = wrong[4321].caps.values_mut().next().unwrap();
    *cap += 1;
    std::fs::write(&records, lines(&wrong)).unwrap();
    let (code, report) = json(&[&replay[..], &["-o", "json"]].concat());
    assert_eq!((code, report["differences"].as_array().unwrap().len()), (1, 1), "{report:#}");
    assert_eq!(report["differences"][0]["line"], 4322);
    std::fs::write(&records, "not json\n").unwrap();
    let (code, _, error) = said(&replay);
    assert!(code == 2 && error.contains("line 1 is no record"), "{code}: {error}");
    agreement(&directory, &night, &recorded.decisions, recorded.at, &wrong);
}

/// `simulate` and `test` decide the last round as the host did; what `explain` shows is [`PolicyHost::explain`], which the
/// steps of `test` are.
fn agreement(directory: &TempDir, night: &[u8], decisions: &[NodeDecision], at: i64, records: &[Record]) {
    let policy = value!({"kind": "ResourceLeasingPolicy", "metadata": {"name": "p"}, "spec": spec(night)});
    let policy = file(directory, "rlp.yaml", policy.to_string().as_bytes());
    let begin = Timestamp::from_second(at).unwrap();
    let header =
        value!({"kubeoceanSnapshot": 1, "binding": "b", "clusterId": "c1", "at": begin, "hashed": false});
    let mut snapshot = format!("{header}\n");
    for number in 0..NODES {
        let node = node(ROUNDS - 1, number);
        writeln!(snapshot, "{}", value!({"at": at, "node": node.node_name, "facts": node})).unwrap();
    }
    let snapshot = file(directory, "now.snap", snapshot.as_bytes());
    let module = format!("night={}", directory.path().join("night.wasm").display());
    let simulate = ["policy", "simulate", "-f", &policy, "--snapshot", &snapshot, "--module", &module];
    let (code, report) = json(&[&simulate[..], &["--for", "1s", "-o", "json"]].concat());
    assert_eq!(code, 0, "{report:#}");
    let asked: usize = decisions.len();
    for (number, decision) in decisions.iter().enumerate() {
        let mut simulated: NodeDecision =
            serde_json::from_value(report["atEnd"][format!("node-{number}")].clone()).unwrap();
        // The generation is that of an object, which a file is not.
        simulated.generation = decision.generation;
        assert_eq!(simulated, *decision, "node-{number}");
    }
    assert_eq!(asked, usize::try_from(NODES).unwrap());

    let zone = TimeZone::get("Europe/Rome").unwrap();
    let until = |unix: i64| {
        Timestamp::from_second(unix).unwrap().to_zoned(zone.clone()).strftime("%FT%T").to_string()
    };
    let last = &records[9000..];
    // Work units of one round run side by side: a record is known by what its module was told.
    let of = |entry: &str, resource: &str, node: &NodeFacts| {
        let fact = format!("available/{resource}");
        let available = value!(node.allocatable[resource] - node.used[resource]);
        let is_it = |record: &&Record| {
            record.entry == format!("p/{entry}") && record.facts.get(&fact) == Some(&available)
        };
        let record = last.iter().find(is_it).unwrap();
        let caps: BTreeMap<&String, String> = record
            .caps
            .iter()
            .map(|(resource, cap)| {
                (resource, if resource == "cpu" { format!("{cap}m") } else { cap.to_string() })
            })
            .collect();
        let mut answer =
            value!({"verdict": record.verdict, "caps": caps, "validUntil": record.valid_until.map(until)});
        answer["reason"] = value!(record.reason.as_ref().map(|reason| reason.code.clone()));
        answer
    };
    let cases: Vec<Value> = (0..100)
        .map(|number| {
            let node = node(ROUNDS - 1, number);
            let cpu = |map: &BTreeMap<String, i64>| value!({"cpu": format!("{}m", map["cpu"]), "nvidia.com/gpu": map["nvidia.com/gpu"]});
            value!({
                "name": node.node_name, "at": begin,
                "node": {"name": node.node_name, "labels": node.labels, "allocatable": cpu(&node.allocatable), "used": cpu(&node.used)},
                "expect": {"entries": {"half": of("half", "cpu", &node), "night": of("night", "nvidia.com/gpu", &node)}},
            })
        })
        .collect();
    let cases = value!({"policy": "rlp.yaml", "modules": {"night": "night.wasm"}, "cases": cases});
    let (code, out, error) =
        said(&["policy", "test", &file(directory, "cases.yaml", cases.to_string().as_bytes())]);
    assert_eq!(code, 0, "{out}{error}");
    assert!(out.contains("100 passed, 0 failed"), "{out}");
}

#[test]
fn two_modules_are_compared_over_records() {
    let directory = tempfile::tempdir().unwrap();
    let capped =
        |amount: &str| guest().with("LEASE", &format!("(call $cap_all (local.get $args) {amount})")).bytes();
    let (old, new) = (
        capped("(i64.const 7)"),
        capped("(i64.rem_s (call $number (local.get $args) (i32.const 0)) (i64.const 8))"),
    );
    let ours = digest(&old);
    let records: String = (0..16).map(|created| decision(created, &ours)).collect();
    let records = file(&directory, "r.jsonl", (records + &decision(0, "sha256:other")).as_bytes());
    let (old, new) = (file(&directory, "old.wasm", &old), file(&directory, "new.wasm", &new));
    let diff = ["policy", "diff", &old, &new, "--records", &records];
    let (code, out, error) = said(&diff);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("14 of 16 records differ; 1 records are of other modules"), "{out}");
    assert!(out.contains("line 1  ") && out.contains(r#"caps {"cpu":7} -> {"cpu":0}"#), "{out}");
    let (code, _, error) = said(&[&diff[..], &["--exit-code"]].concat());
    assert!(code == 1 && error.contains("14 decisions differ"), "{code}: {error}");
    let (code, out, _) = said(&["policy", "diff", &old, &old, "--records", &records, "--exit-code"]);
    assert!(code == 0 && out.contains("0 of 16"), "{code}: {out}");
    let (code, _, error) = said(&["policy", "diff", &new, &old, "--records", &records]);
    assert!(code == 2 && error.contains("none of the records was made by"), "{code}: {error}");
    let (code, _, error) = said(&["policy", "diff", &new, &old]);
    assert!(code == 2 && error.contains("--snapshot"), "{code}: {error}");
}
