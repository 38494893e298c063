//! Answers do not depend on the processor. CONTRIBUTING.md tells how these tests run on another one.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use kubeocean_engine::{ModuleLimits, NodeFacts, Record};
use kubeocean_hostile_policies::{digest, guest};
use serde_json::{Value, json};

use crate::support::*;

/// Half an hour before clocks go forward in Rome.
const BEGIN: i64 = 1_774_743_400;
const ROUNDS: i64 = 20;
const NODES: i64 = 500;
/// Digest of the records, which hold every input and every answer. Whoever changes the scenario or what a record holds
/// writes the new one here, after all architectures have agreed on it.
const ANSWERS: &str = "sha256:e267a838abdccf5b786c89355a75dbb1aff3536d8713ddf7d70fe4343f990867";

fn frozen(name: &str) -> Arc<[u8]> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/policies/frozen/wit-1.0-sdk-0.2.0");
    std::fs::read(folder.join(name)).unwrap().into()
}

fn node_of(round: i64, number: i64) -> NodeFacts {
    NodeFacts {
        node_name: format!("node-{number}"),
        allocatable: [("cpu".to_owned(), 64_000), ("memory".to_owned(), (number + 1) << 30)].into(),
        used: [("cpu".to_owned(), 101 * number + round), ("memory".to_owned(), round * 4097)].into(),
        ready: true,
        schedulable: true,
        ..NodeFacts::default()
    }
}

/// What ten hours of 500 nodes and two modules record, the night in which clocks go forward among them.
#[test]
fn ten_thousand_answers_are_the_same_bits_and_replay() {
    let (share, windows) = (frozen("cpu-percentage.wasm"), frozen("time-windows.wasm"));
    let limits = json!({"limits": [
        {"resource": "cpu", "percent": 37, "quantity": "20.5"}, {"resource": "memory", "percent": 3},
        {"resource": "cpu", "reserve": "2", "of": "allocatable"},
    ]});
    let night = json!({"windows": [{"start": "00:30", "end": "06:15", "days": ["Sunday"]}]});
    let spec = policy(json!({"cluster": "binding", "timeZone": "Europe/Rome", "policies": []}))
        .module("share", &share, json!({ "settings": limits }))
        .module("night", &windows, json!({ "settings": night }));
    let host = host(vec![spec]);
    let mut records: Vec<Record> = Vec::new();
    for round in 0..ROUNDS {
        let nodes: Vec<Arc<NodeFacts>> = (0..NODES).map(|number| Arc::new(node_of(round, number))).collect();
        let now = jiff::Timestamp::from_second(BEGIN + round * 1800).unwrap();
        host.host.decide(now, &nodes);
        // The ring holds more than a round; what was asked earlier is there already.
        records.extend(host.host.records().into_iter().filter(|record| record.at == now.as_second()));
    }
    assert!(records.iter().any(|record| record.next_offset.is_some()), "the zone's next change is known");

    for (name, bytes) in [("p/share", &share), ("p/night", &windows)] {
        let mine: Vec<&Record> = records.iter().filter(|record| record.entry == name).collect();
        let settings: Value = serde_json::from_str(&mine[0].settings).unwrap();
        let module = engine().load_module(bytes, &settings, ModuleLimits::default(), &[]).unwrap();
        for record in mine {
            assert_eq!(module.replay(record).unwrap(), record.answer(), "{record:?}");
        }
    }
    // Parts of a round are decided side by side, so that a row of many nodes may be asked about twice.
    let lines: BTreeSet<String> = records
        .into_iter()
        .map(|record| serde_json::to_string(&Record { nodes: Vec::new(), ..record }).unwrap())
        .collect();
    assert_eq!(lines.len(), 20 * 501, "each node's share and the window, in each round");
    let lines: Vec<String> = lines.into_iter().collect();
    assert_eq!(digest(lines.join("\n").as_bytes()), ANSWERS);
}

/// Acceptance check 5: x86-64 makes other bits of `0 / 0` than arm64, which a module can read. The host makes them one.
#[test]
fn a_nan_has_one_pattern_of_bits() {
    let difference = "(f64.sub (f64.convert_i64_s (call $number (local.get $args) (i32.const 0)))
                               (f64.convert_i64_s (call $number (local.get $args) (i32.const 0))))";
    // Sign, exponent and the bit that makes it quiet: 0x0fff, on x86-64 alone 0x1fff.
    let cap = format!(
        "(call $cap_all (local.get $args) (i64.shr_u (i64.reinterpret_f64 (f64.div {difference} {difference})) (i64.const 51)))"
    );
    let spec =
        policy(json!({"cluster": "binding", "policies": []})).guest("nan", &guest().with("LEASE", &cap));
    assert_eq!(cpu(&host(vec![spec]).one(noon(), node("n1"))), 0x0fff);
}
