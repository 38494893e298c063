//! What a host with thousands of nodes costs: an edited policy, standing still, a swap under load, memory.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc::{Receiver, channel},
    },
    time::Instant,
};

use anyhow::Context;
use jiff::{SignedDuration, tz::TimeZone};
use kubeocean_bench::Figure;
use kubeocean_engine::{
    BindingFacts, Engine, EngineConfig, Fit, ModuleFetch, NodeFacts, PlaceNode, PlaceRequest, PodFacts,
    PolicyHost, PolicySpec, Stage, Verdict, builtin,
};
use kubeocean_hostile_policies::place_guest;
use serde_json::{Value, json};

use crate::module::{example, nodes, now};

pub(crate) const NODES: i64 = 5000;
const ENTRIES: usize = 16;

fn policy(generation: i64, spec: &Value) -> anyhow::Result<PolicySpec> {
    Ok(PolicySpec {
        name: "p".to_owned(),
        uid: String::new(),
        created_unix: 0,
        generation,
        spec: serde_json::from_value(spec.clone())?,
        modules: BTreeMap::new(),
    })
}

fn percent(percent: i64) -> Value {
    json!({
        "nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "pool", "operator": "In", "values": ["pool-1", "pool-2", "pool-3", "pool-4", "pool-5", "pool-6", "pool-0"]}
        ]}]},
        "timeWindows": [{"start": "00:00", "end": "23:59"}],
        "resourceLimits": [{"resource": "cpu", "percent": percent}, {"resource": "memory", "percent": 80}]
    })
}

fn host(engine: &Engine) -> PolicyHost {
    PolicyHost::new(engine, BindingFacts::default(), TimeZone::UTC, Box::new(|| {}))
}

/// A host that tells when something has loaded.
fn loading_host(engine: &Engine) -> (PolicyHost, Receiver<()>) {
    let (tell, loaded) = channel();
    let changed = Box::new(move || {
        // Nobody waits any more.
        let _ = tell.send(());
    });
    (PolicyHost::new(engine, BindingFacts::default(), TimeZone::UTC, changed), loaded)
}

/// A module that places, and its settings.
pub(crate) type Placing = (Arc<[u8]>, Value);

/// A policy of use as its author builds it. It reads six numbers of each candidate.
pub(crate) fn packing() -> anyhow::Result<Placing> {
    Ok((example("bin-packing")?, json!({"resources": ["cpu", "memory", "nvidia.com/gpu"]})))
}

/// A policy whose entries are these modules, loaded.
pub(crate) fn placing_host(engine: &Engine, entries: &[Placing]) -> anyhow::Result<PolicyHost> {
    let mut spec = policy(0, &json!({}))?;
    for (number, (module, settings)) in entries.iter().enumerate() {
        let name = format!("e{number}");
        let entry = json!({"name": name, "module": {"file": {"path": name}}, "settings": settings});
        spec.spec.policies.push(serde_json::from_value(entry)?);
        spec.modules.insert(name, ModuleFetch::Ready(Arc::clone(module).into()));
    }
    let (host, loaded) = loading_host(engine);
    host.set_policies(vec![spec]);
    while !host.ready() {
        loaded.recv()?;
    }
    Ok(host)
}

fn rows(host: &PolicyHost) -> u64 {
    host.metrics().iter().map(|entry| entry.counters.evaluations()).sum()
}

/// Resident memory of this process in bytes.
fn resident() -> anyhow::Result<f64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib * 1024.0)
}

fn edit(engine: &Engine, nodes: &[Arc<NodeFacts>]) -> anyhow::Result<Vec<Figure>> {
    let host = host(engine);
    host.set_policies(vec![policy(0, &percent(50))?]);
    host.decide(now(), nodes);
    let mut times = Vec::new();
    for generation in 1..10 {
        let begun = Instant::now();
        host.set_policies(vec![policy(generation, &percent(50 + generation))?]);
        host.decide(now(), nodes);
        times.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().unwrap_or(0.0);
    // Half an hour of standing still: every node is looked at whenever its decision says so.
    let before = rows(&host);
    let mut at = now();
    for _ in 0..3 {
        at += SignedDuration::from_mins(10);
        for second in [0, 1, 2] {
            host.decide(at + SignedDuration::from_secs(second), nodes);
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "some thousands")]
    let asked = (rows(&host) - before) as f64 / 3.0 / NODES as f64 / 3.0;
    Ok(vec![
        Figure::new("policy edit, 5,000 nodes decided again", median, "ms").budget(100.0),
        Figure::new("standing still, rows a node, entry and 10 min", asked, "rows").budget(1.0),
    ])
}

/// Nodes are decided all the time while an entry changes its module and settings.
fn swap(engine: &Engine, nodes: &[Arc<NodeFacts>]) -> anyhow::Result<Figure> {
    let host = host(engine);
    let entry = |percent: i64| json!({"policies": [{"name": "half", "module": {"builtin": "cpu-percentage"}, "settings": {"cpuPercent": percent}}]});
    host.set_policies(vec![policy(0, &entry(0))?]);
    let (over, lost, decided) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for decision in host.decide(now(), nodes) {
                        decided.fetch_add(1, Ordering::Relaxed);
                        let whole =
                            decision.verdict == Verdict::Offer && decision.limited_by.contains_key("cpu");
                        lost.fetch_add(usize::from(!whole), Ordering::Relaxed);
                    }
                }
            });
        }
        let edits = (1..40).try_for_each(|generation| {
            host.set_policies(vec![policy(generation, &entry(generation))?]);
            std::thread::yield_now();
            anyhow::Ok(())
        });
        // A thread that has not begun yet shall see at least one version.
        while decided.load(Ordering::Relaxed) < 2 * nodes.len() {
            std::thread::yield_now();
        }
        over.store(true, Ordering::Relaxed);
        edits
    })?;
    #[expect(clippy::cast_precision_loss, reason = "none")]
    let lost = lost.load(Ordering::Relaxed) as f64;
    Ok(Figure::new("hot swap under load, lost decisions", lost, "").budget(0.0))
}

/// 16 entries of modules of their own, each with an answer about every node.
fn memory(engine: &Engine, nodes: &[Arc<NodeFacts>]) -> anyhow::Result<Vec<Figure>> {
    let bytes = builtin("cpu-percentage").context("a built-in module is missing")?;
    // What a host keeps once, whatever its entries are, is there before: the latest decisions and the names in them.
    let mut spec =
        policy(0, &json!({"policies": [{"name": "first", "module": {"builtin": "cpu-percentage"}}]}))?;
    let (host, loaded) = loading_host(engine);
    host.set_policies(vec![spec.clone()]);
    decide_in_parts(&host, nodes);
    for number in 0..ENTRIES - 1 {
        let name = format!("e{number}");
        let module: Arc<[u8]> = [bytes, &[0, 4, 1, b'm', 0, u8::try_from(number)?]].concat().into();
        spec.spec.policies.push(serde_json::from_value(json!({
            "name": name, "module": {"file": {"path": name}}, "settings": {"cpuPercent": 90}
        }))?);
        spec.modules.insert(name, ModuleFetch::Ready(module.into()));
    }
    let before = resident()?;
    host.set_policies(vec![spec]);
    while !host.ready() {
        loaded.recv()?;
    }
    host.decide(now(), nodes.get(..1).unwrap_or_default());
    let with_modules = resident()?;
    decide_in_parts(&host, nodes);
    let with_answers = resident()?;
    #[expect(clippy::cast_precision_loss, reason = "small constants")]
    let (entries, lines) = ((ENTRIES - 1) as f64, ((ENTRIES - 1) * nodes.len()) as f64);
    Ok(vec![
        Figure::new("memory of an entry", (with_modules - before) / entries / f64::from(1 << 20), "MiB")
            .budget(8.0),
        // With the last answer about the node, which stands when a later one fails. A row of this module is a number and
        // the offset of the zone.
        Figure::new(
            "memory of a remembered answer, without its row",
            (with_answers - with_modules) / lines - 12.0,
            "B",
        )
        .budget(64.0),
    ])
}

/// What a decision needs for a moment is no memory of its answer, so that only few are made at a time.
fn decide_in_parts(host: &PolicyHost, nodes: &[Arc<NodeFacts>]) {
    for part in nodes.chunks(50) {
        host.decide(now(), part);
    }
}

/// What a scheduler's next question is like: several of its threads look for candidates, so they come in another order each
/// time, and a pod that was bound has changed one of them.
pub(crate) fn as_asked_next<T>(candidates: &mut [T], round: usize, change: impl FnOnce(&mut T)) {
    let count = candidates.len();
    for place in 0..count {
        candidates.swap(place, (place * 7919 + round) % count);
    }
    if let Some(one) = candidates.first_mut() {
        change(one);
    }
}

/// A bound pod is a change of amounts: other facts.
pub(crate) fn bound(node: &mut PlaceNode) {
    let mut facts = NodeFacts::clone(&node.facts);
    *facts.used.entry("cpu".to_owned()).or_default() += 1;
    node.facts = Arc::new(facts);
}

/// Where of 5,000 candidates a pod may go, one entry and three: a module as its author builds it, and beside it one by hand,
/// which reads three texts and three numbers and computes next to nothing.
fn place(engine: &Engine, nodes: &[Arc<NodeFacts>], packing: &Placing) -> anyhow::Result<Vec<Figure>> {
    let by_hand = (place_guest('a').bytes(), json!({}));
    let mut candidates: Vec<PlaceNode> = nodes
        .iter()
        .map(|node| PlaceNode { facts: Arc::clone(node), policy: Some(Arc::from("p")) })
        .collect();
    let mut figures = Vec::new();
    for (who, module, entries, budget) in [
        ("bin-packing", packing, 1, 1.5),
        ("bin-packing", packing, 3, 5.0),
        ("by hand", &by_hand, 1, 1.5),
        ("by hand", &by_hand, 3, 5.0),
    ] {
        let host = placing_host(engine, &vec![module.clone(); entries])?;
        let mut times = Vec::new();
        for round in 0..40 {
            as_asked_next(&mut candidates, round, bound);
            let begun = Instant::now();
            let request = PlaceRequest {
                stage: Stage::Schedule,
                pod: Arc::new(PodFacts::default()),
                nodes: candidates.clone(),
                deadline: begun + std::time::Duration::from_secs(5),
            };
            let begun = Instant::now();
            let placements = host.place(now(), request);
            times.push(begun.elapsed().as_secs_f64() * 1e3);
            anyhow::ensure!(placements.iter().all(|one| one.fit == Fit::Accept), "an entry gave no answer");
        }
        times.sort_by(f64::total_cmp);
        let median = times.get(times.len() / 2).copied().unwrap_or(0.0);
        let name = format!("place 5,000 candidates, {who}, entries: {entries}");
        figures.push(Figure::new(name, median, "ms").budget(budget));
    }
    Ok(figures)
}

pub(crate) fn figures(packing: &Placing) -> anyhow::Result<Vec<Figure>> {
    let engine = Engine::start(EngineConfig::default())?;
    let nodes: Vec<Arc<NodeFacts>> = nodes(NODES).into_iter().map(Arc::new).collect();
    let mut figures = edit(&engine, &nodes)?;
    figures.push(swap(&engine, nodes.get(..1000).unwrap_or_default())?);
    figures.extend(place(&engine, &nodes, packing)?);
    figures.extend(memory(&engine, &nodes)?);
    Ok(figures)
}
