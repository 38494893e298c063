//! What the built-in modules and modules that place cost, in fuel, which is the same on every machine: a change of it is a change of the module
//! or of the ABI, and is written down (policy spec section 16).
//!
//! `KUBEOCEAN_FUEL=write` writes the file anew.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use kubeocean_engine::{Engine, EngineConfig, ModuleLimits, NodeFacts, PodFacts, Stage, builtin};
use kubeocean_hostile_policies::place_guest;
use serde_json::{Value, json};

use crate::support::*;

fn settings() -> [(&'static str, Value); 3] {
    [
        (
            "cpu-percentage",
            json!({"limits": [{"resource": "cpu", "percent": 50, "quantity": "40"}, {"resource": "memory", "percent": 80}]}),
        ),
        (
            "node-labels",
            json!({"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [
                {"key": "pool", "operator": "In", "values": ["online", "batch"]}
            ]}]}}),
        ),
        (
            "time-windows",
            json!({"windows": [{"start": "18:00", "end": "08:00", "days": ["Monday", "Friday"]}]}),
        ),
    ]
}

#[test]
fn a_row_costs_what_is_written_down() {
    let config = EngineConfig { metered: true, pooling: false, threads: 1, ..EngineConfig::default() };
    let engine = Engine::start(config).unwrap();
    let nodes: Vec<NodeFacts> = (0..256).map(|number| node(&format!("node-{number}"))).collect();
    let mut measured: BTreeMap<String, [u64; 2]> = BTreeMap::new();
    for (name, settings) in settings() {
        let bytes: Arc<[u8]> = builtin(name).unwrap().into();
        let module = engine.load_module(&bytes, &settings, ModuleLimits::default(), &[]).unwrap();
        let mut open = module.open().unwrap();
        open.lease(noon(), &jiff::tz::TimeZone::UTC, &nodes[..1]).unwrap();
        let fresh = open.cost().fuel.unwrap();
        open.lease(noon(), &jiff::tz::TimeZone::UTC, &nodes).unwrap();
        measured.insert(name.to_owned(), [fresh, (open.cost().fuel.unwrap() - fresh).div_ceil(256)]);
    }
    for (name, bytes) in placing() {
        measured.insert(name.to_owned(), place_costs(&engine, &bytes, &nodes));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/engine/fuel.json");
    if std::env::var_os("KUBEOCEAN_FUEL").is_some() {
        std::fs::write(&path, serde_json::to_string_pretty(&measured).unwrap() + "\n").unwrap();
    }
    let written: BTreeMap<String, [u64; 2]> =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    assert_eq!(measured, written, "[fresh unit with one row, one of 256 rows]");
    let plain = engine_without_fuel();
    assert_eq!(plain, None, "the engine that decides counts nothing");
}

/// The oldest modules that place which this release runs, so that only the host changes what they cost, and one by hand.
fn placing() -> [(&'static str, Arc<[u8]>); 3] {
    let frozen = |name: &str| -> Arc<[u8]> {
        let folder =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/policies/frozen/wit-1.0-sdk-0.2.0");
        std::fs::read(folder.join(name)).unwrap().into()
    };
    [
        ("place by hand", place_guest('a').bytes()),
        ("place by lease-and-place 0.2.0", frozen("lease-and-place.wasm")),
        ("place by place-only 0.2.0", frozen("place-only.wasm")),
    ]
}

fn place_costs(engine: &Engine, bytes: &Arc<[u8]>, nodes: &[NodeFacts]) -> [u64; 2] {
    let module = engine.load_module(bytes, &json!({}), ModuleLimits::default(), &[]).unwrap();
    let pod =
        PodFacts { name: "web".into(), namespace: "shop".into(), priority: Some(1), ..PodFacts::default() };
    let nodes: Vec<Arc<NodeFacts>> = nodes.iter().cloned().map(Arc::new).collect();
    let mut open = module.open_place().unwrap();
    let mut ask = |nodes: &[Arc<NodeFacts>]| {
        open.place(Stage::Schedule, noon(), &jiff::tz::TimeZone::UTC, &pod, nodes).unwrap();
        open.cost().fuel.unwrap()
    };
    let fresh = ask(&nodes[..1]);
    [fresh, (ask(&nodes) - fresh).div_ceil(256)]
}

fn engine_without_fuel() -> Option<u64> {
    let bytes: Arc<[u8]> = builtin("time-windows").unwrap().into();
    let module = engine().load_module(&bytes, &json!({}), ModuleLimits::default(), &[]).unwrap();
    let open = module.open().unwrap();
    assert!(open.cost().memory_bytes >= 64 << 10, "{:?}", open.cost());
    open.cost().fuel
}
