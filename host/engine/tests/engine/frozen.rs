//! Modules made with earlier releases of the SDK, and what they answered then (PO-1304): every later host loads them and
//! gets the same answers.
//!
//! Each folder of `tests/policies/frozen` is of one release: modules of each kind, one not made from Rust, and records of
//! decisions: `records.jsonl` about leases, `places.jsonl` about places. A release adds a folder with `cargo test -p kubeocean-engine --test engine freeze --
//! --ignored`; nobody changes one.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kubeocean_engine::{
    Decision, ModuleFetch, ModuleLimits, NodeFacts, PlaceNode, PlaceRecord, PlaceRequest, PodFacts, Record,
    Stage, builtin, finished_component, module_digest,
};
use kubeocean_hostile_policies::guest;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::support::*;

fn frozen() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/policies/frozen")
}

/// Folders, or files with an ending, in order.
fn entries(folder: &Path, ending: &str) -> Vec<PathBuf> {
    let all = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut all: Vec<PathBuf> = all.filter(|path| path.to_str().unwrap().ends_with(ending)).collect();
    all.sort();
    all
}

fn records<R: DeserializeOwned>(folder: &Path, file: &str) -> Vec<R> {
    let text = std::fs::read_to_string(folder.join(file)).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn modules_of_earlier_releases_load_and_answer_as_they_did() {
    let releases: Vec<PathBuf> = entries(&frozen(), "").into_iter().filter(|path| path.is_dir()).collect();
    assert!(!releases.is_empty());
    for release in releases {
        let name = release.file_name().unwrap().to_str().unwrap().to_owned();
        let mut kinds = BTreeSet::new();
        let mut modules: BTreeMap<String, Arc<[u8]>> = BTreeMap::new();
        for path in entries(&release, ".wasm") {
            let bytes: Arc<[u8]> = std::fs::read(&path).unwrap().into();
            let outline = engine().outline(&bytes, ModuleLimits::default());
            let outline = outline.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            kinds.insert(outline.decisions);
            modules.insert(module_digest(&bytes), bytes);
        }
        let (lease, place) = (Decision::Lease, Decision::Place);
        assert_eq!(kinds, [vec![lease], vec![place], vec![lease, place]].into(), "{name}");
        let mut replayed = BTreeSet::new();
        for (line, record) in records::<Record>(&release, "records.jsonl").into_iter().enumerate() {
            let bytes = modules.get(&record.digest).unwrap_or_else(|| panic!("{name}: {}", record.digest));
            let settings: Value = serde_json::from_str(&record.settings).unwrap();
            let module = engine().load_module(bytes, &settings, ModuleLimits::default(), &[]);
            let module = module.unwrap_or_else(|error| panic!("{name}: {}: {error}", record.entry));
            let answer = module.replay(&record).unwrap();
            assert_eq!(answer, record.answer(), "{name}, line {} of the records", line + 1);
            replayed.insert(record.digest);
        }
        assert_eq!(replayed.len(), modules.len() - 1, "{name}: every module but the one that only places");
        let mut places = BTreeSet::new();
        for (line, record) in records::<PlaceRecord>(&release, "places.jsonl").into_iter().enumerate() {
            let settings: Value = serde_json::from_str(&record.settings).unwrap();
            let module = engine()
                .load_module(&modules[&record.digest], &settings, ModuleLimits::default(), &[])
                .unwrap();
            let answer = module.replay_place(&record).unwrap();
            assert_eq!(answer, record.answer, "{name}, line {} of the places", line + 1);
            places.insert((record.digest, answer.fit));
        }
        assert_eq!(places.len(), 3, "{name}: both modules that place; one rejects and accepts, one accepts");
    }
}

/// The core module of a crate of this workspace, as an author's build makes it.
fn built(package: &str) -> Vec<u8> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let target = root.join("target/frozen");
    let status = Command::new("cargo")
        .args([
            "build",
            "--locked",
            "--profile",
            "policy",
            "--target",
            "wasm32-unknown-unknown",
            "-p",
            package,
        ])
        .args(["--config", "profile.policy.strip=\"debuginfo\"", "--target-dir"])
        .arg(&target)
        .current_dir(&root)
        .status()
        .unwrap();
    assert!(status.success());
    let file = format!("{}.wasm", package.replace('-', "_"));
    std::fs::read(target.join("wasm32-unknown-unknown/policy").join(file)).unwrap()
}

#[test]
#[ignore = "adds the folder of this release; run once per release"]
fn freeze() {
    let folder = frozen().join(format!("wit-1.0-sdk-{}", env!("CARGO_PKG_VERSION")));
    std::fs::create_dir_all(&folder).unwrap();
    let by_hand = guest().with("LEASE", "(call $cap_all (local.get $args) (i64.const 1234))");
    let modules = [
        ("cpu-percentage", builtin("cpu-percentage").unwrap().to_vec()),
        ("time-windows", builtin("time-windows").unwrap().to_vec()),
        ("lease-and-place", built("kubeocean-policy-lease-and-place")),
        ("place-only", built("kubeocean-policy-place-only")),
        ("by-hand", by_hand.bytes().to_vec()),
    ];
    let modules: BTreeMap<&str, Arc<[u8]>> = modules
        .into_iter()
        .map(|(name, bytes)| {
            let finished = finished_component(&bytes).unwrap();
            std::fs::write(folder.join(format!("{name}.wasm")), &finished).unwrap();
            (name, finished.into())
        })
        .collect();
    let entry = |name: &str, settings: Value| {
        let entry = json!({"name": name, "module": {"file": {"path": name}}, "settings": settings});
        (entry, Some(ModuleFetch::Ready(Arc::clone(&modules[name]).into())))
    };
    let limits = json!({"limits": [
        {"resource": "cpu", "percent": 50, "quantity": "4"}, {"resource": "nvidia.com/gpu", "percent": 34},
        {"resource": "memory", "reserve": "8Gi", "of": "allocatable"}
    ]});
    let windows = json!({
        "windows": [{"start": "22:00", "end": "06:30", "days": ["Monday", "Sunday"]}],
        "reclaim": {"mode": "Graceful", "graceSeconds": 600}
    });
    let mut policy = policy(json!({"timeZone": "Europe/Rome"}));
    for (entry, fetch) in [
        entry("cpu-percentage", limits),
        entry("time-windows", windows),
        entry("lease-and-place", json!({})),
        entry("by-hand", json!({})),
    ] {
        policy = policy.raw(entry, fetch);
    }
    let host = host(vec![policy]);
    for day in
        ["2026-03-02T12:00:00Z", "2026-03-08T23:30:00Z", "2026-03-29T00:30:00Z", "2026-10-25T01:00:00Z"]
    {
        for number in 0..5 {
            let mut node = node(&format!("node-{number}"));
            node.created_unix = number * number;
            node.used.insert("cpu".to_owned(), 4000 + 2000 * number);
            host.one(at(day), node);
        }
    }
    let lines: String =
        host.host.records().iter().map(|record| serde_json::to_string(record).unwrap() + "\n").collect();
    std::fs::write(folder.join("records.jsonl"), lines).unwrap();
    std::fs::write(folder.join("places.jsonl"), places(&modules)).unwrap();
}

/// What the modules that place say about a pod and five vnodes, at both stages.
fn places(modules: &BTreeMap<&str, Arc<[u8]>>) -> String {
    let placing = ["lease-and-place", "place-only"]
        .iter()
        .fold(policy(json!({"cluster": "b", "timeZone": "Europe/Rome"})), |policy, name| {
            policy.module(name, &modules[name], json!({}))
        });
    let host = host(vec![placing]);
    let vnodes = (0..5).map(|number| {
        let facts = NodeFacts { ready: number % 2 == 0, ..node(&format!("node-{number}")) };
        PlaceNode { facts: Arc::new(facts), policy: Some("p".into()) }
    });
    let vnodes: Vec<PlaceNode> = vnodes.collect();
    for stage in [Stage::Schedule, Stage::Admit] {
        let pod = PodFacts { name: "web".into(), namespace: "shop".into(), ..PodFacts::default() };
        let deadline = Instant::now() + Duration::from_secs(20);
        let request = PlaceRequest { stage, pod: Arc::new(pod), nodes: vnodes.clone(), deadline };
        host.host.place(at("2026-03-29T00:30:00Z"), request);
    }
    let decisions = host.host.decisions(None);
    decisions.iter().map(|decision| serde_json::to_string(decision).unwrap() + "\n").collect()
}
