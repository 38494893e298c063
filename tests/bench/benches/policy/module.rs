//! What one module costs: compilation, a fresh sandbox, rows.

use std::{
    collections::BTreeMap,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context;
use jiff::{Timestamp, tz::TimeZone};
use kubeocean_bench::Figure;
use kubeocean_engine::{BUILTINS, Engine, EngineConfig, Module, ModuleLimits, NodeFacts, builtin};
use kubeocean_harness::author::example_module;
use kubeocean_policy_twins::CpuPercentageTwin;
use serde_json::{Value, json};

/// How long one figure is measured.
const WHILE: Duration = Duration::from_secs(1);
const UTC: TimeZone = TimeZone::UTC;

pub(crate) fn now() -> Timestamp {
    Timestamp::from_second(1_772_452_800).unwrap_or(Timestamp::UNIX_EPOCH)
}

pub(crate) fn nodes(count: i64) -> Vec<NodeFacts> {
    (0..count)
        .map(|i| NodeFacts {
            node_name: format!("node-{i}"),
            labels: [
                ("pool".to_owned(), format!("pool-{}", i % 7)),
                ("zone".to_owned(), format!("z{}", i % 3)),
            ]
            .into(),
            allocatable: [("cpu".to_owned(), 64_000), ("memory".to_owned(), 256 << 30)].into(),
            used: [("cpu".to_owned(), 1000 + i), ("memory".to_owned(), (i + 1) << 20)].into(),
            ready: true,
            schedulable: true,
            ..NodeFacts::default()
        })
        .collect()
}

fn limits() -> Value {
    json!({"limits": [{"resource": "cpu", "percent": 50, "quantity": "40"}, {"resource": "memory", "percent": 80}]})
}

/// Sorted microseconds of single runs.
fn runs(mut work: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Vec<f64>> {
    let started = Instant::now();
    let mut all = Vec::new();
    while all.len() < 50 || started.elapsed() < WHILE {
        let begun = Instant::now();
        work()?;
        all.push(begun.elapsed().as_secs_f64() * 1e6);
    }
    all.sort_by(f64::total_cmp);
    Ok(all)
}

pub(crate) fn at(sorted: &[f64], percent: usize) -> f64 {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

/// A module as its author builds it.
pub(crate) fn example(name: &str) -> anyhow::Result<Arc<[u8]>> {
    let runtime = tokio::runtime::Runtime::new().context("a runtime")?;
    Ok(runtime.block_on(example_module(name))?.into())
}

fn built_in(name: &str) -> anyhow::Result<Arc<[u8]>> {
    Ok(builtin(name).context("a built-in module is missing")?.into())
}

/// Calls about one node in an instance that is there: each built-in module, and one as its author builds it.
fn warm_calls(engine: &Engine) -> anyhow::Result<Vec<Figure>> {
    let windows =
        json!({"windows": [{"start": "18:00", "end": "08:00", "days": ["Monday", "Wednesday", "Friday"]}]});
    let selector = json!({"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [
        {"key": "pool", "operator": "In", "values": ["pool-0", "pool-1", "pool-2"]},
        {"key": "zone", "operator": "NotIn", "values": ["z2"]}
    ]}]}});
    let modules = [
        ("cpu-percentage", built_in("cpu-percentage")?, limits()),
        ("time-windows", built_in("time-windows")?, windows),
        ("node-labels", built_in("node-labels")?, selector),
        ("night-gpu", example("night-gpu")?, json!({"from": 22, "until": 7, "percent": 50})),
    ];
    let one = nodes(1);
    let mut figures = Vec::new();
    for (name, bytes, settings) in modules {
        let module = engine.load_module(&bytes, &settings, ModuleLimits::default(), &[])?;
        let mut open = module.open()?;
        let rows = open.rows(now(), &UTC, &one);
        let warm = runs(|| {
            for _ in 0..1000 {
                black_box(open.count_offers(now(), &UTC, &rows)?);
            }
            Ok(())
        })?;
        let name = format!("warm call, 1 row, {name}");
        figures.push(Figure::new(name, at(&warm, 50) / 1000.0, "us").budget(2.0));
    }
    Ok(figures)
}

/// Compilation of a module that is not known yet: another custom section makes it another one.
fn compile(engine: &Engine) -> anyhow::Result<f64> {
    let bytes = builtin("cpu-percentage").context("a built-in module is missing")?;
    let mut all = Vec::new();
    for number in 0..5 {
        let other: Arc<[u8]> = [bytes, &[0, 3, 1, b'n', number]].concat().into();
        let before = engine.numbers().compile_us;
        engine.outline(&other, ModuleLimits::default())?;
        #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
        all.push((engine.numbers().compile_us - before) as f64);
    }
    all.sort_by(f64::total_cmp);
    Ok(at(&all, 50))
}

pub(crate) fn figures() -> anyhow::Result<Vec<Figure>> {
    let engine = Engine::start(EngineConfig::default())?;
    for (_, bytes) in BUILTINS {
        engine.outline(&Arc::from(bytes), ModuleLimits::default())?;
    }
    let bytes = built_in("cpu-percentage")?;
    let load = || engine.load_module(&bytes, &limits(), ModuleLimits::default(), &[]);
    let module: Module = load()?;
    let compile = compile(&engine)?;
    let cached = at(&runs(|| Ok(load().map(drop)?))?, 50);

    let (one, batch) = (nodes(1), nodes(256));
    let fresh = runs(|| Ok(module.lease(now(), &UTC, &one).map(drop)?))?;
    let warm = warm_calls(&engine)?;
    let mut open = module.open()?;
    let rows = open.rows(now(), &UTC, &batch);
    let frame = open.frame(&rows);
    let guest = at(&runs(|| Ok(open.count_offers_of(now(), &UTC, &frame).map(drop)?))?, 50) / 256.0;
    let checked = at(&runs(|| Ok(open.count_offers(now(), &UTC, &rows).map(drop)?))?, 50) / 256.0;
    let whole = runs(|| {
        let rows = open.rows(now(), &UTC, &batch);
        Ok(open.count_offers(now(), &UTC, &rows).map(drop)?)
    })?;
    let twin = CpuPercentageTwin::new(&limits());
    let native = runs(|| {
        for node in &batch {
            let available: BTreeMap<String, i64> =
                node.allocatable.keys().map(|r| (r.clone(), node.available(r))).collect();
            black_box(twin.caps(&available, &node.allocatable));
        }
        Ok(())
    })?;
    let mut figures = vec![
        Figure::new("compile a module", compile / 1000.0, "ms").budget(120.0),
        Figure::new("load a compiled module", cached / 1000.0, "ms").budget(1.0),
        Figure::new("fresh unit, create, 1 row, p50", at(&fresh, 50), "us").budget(45.0),
        Figure::new("fresh unit, create, 1 row, p99", at(&fresh, 99), "us").budget(90.0),
    ];
    figures.extend(warm);
    figures.extend([
        Figure::new("256 rows, guest call, a row", guest, "us").budget(0.1),
        Figure::new("the same with its frame, and the output checked", checked, "us").budget(0.25),
        Figure::new("256 rows with the frame, beside native Rust", at(&whole, 50) / at(&native, 50), "x")
            .budget(3.0),
    ]);
    Ok(figures)
}
