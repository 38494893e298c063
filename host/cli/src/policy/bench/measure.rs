//! Measures a module: times with the engine as the Syncer runs it, fuel with one that counts.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::{Timestamp, tz::TimeZone};
use kubeocean_engine::{
    BUILTINS, Decision, Engine, EngineConfig, MAX_MODULE_BYTES, Module, ModuleLimits, NodeFacts, PodFacts,
    Stage, UnitCost,
};
use serde_json::Value;

use super::{Figures, LeaseFigures, PlaceFigures};
use crate::{
    failure::Failure,
    output::Format,
    policy::{
        check::rows::{Random, Vocabulary, nodes},
        module::load_failure,
    },
    progress::Steps,
};

/// Rows of one call of a lease policy.
const BATCH: usize = kubeocean_engine::LEASE_ROWS;
/// Candidates of one placement.
const CANDIDATES: usize = kubeocean_engine::PLACE_ROWS;
/// How long one figure is measured.
const WHILE: Duration = Duration::from_millis(300);
/// Least measurements of a figure.
const LEAST: usize = 20;
/// 2026-03-07T12:00:00Z: always the same instant, so that fuel is always the same.
const AT: i64 = 1_772_884_800;

/// What is measured of every module: loading it when it is compiled.
const LOAD_STEPS: u64 = 1;
/// Of one that leases: three times, and what is exact.
const LEASE_STEPS: u64 = 4;
/// Of one that places: a time, and what is exact.
const PLACE_STEPS: u64 = 2;

/// What is measured.
pub(super) struct Subject<'s> {
    pub(super) bytes: &'s Arc<[u8]>,
    pub(super) settings: &'s Value,
    pub(super) limits: ModuleLimits,
}

/// All figures. The progress moves only between two of them, so that no figure contains it.
pub(super) fn figures(subject: &Subject<'_>, seed: u64, output: Format) -> Result<Figures, Failure> {
    let Subject { bytes, settings, limits } = *subject;
    let engine = start(EngineConfig { threads: 1, ..EngineConfig::default() })?;
    // The built-in modules are compiled in the background when an engine starts.
    for (_, builtin) in BUILTINS {
        engine.outline(&Arc::from(builtin), limits).map_err(|error| load_failure(&error))?;
    }
    let before = engine.numbers().compile_us;
    let bar = Steps::long("compiling", 1).beside(output);
    let module = subject.load(&engine);
    bar.end();
    let module = module?;
    let compile = engine.numbers().compile_us - before;
    let said = module.describe();
    let [leasing, placing] =
        [Decision::Lease, Decision::Place].map(|decision| said.decisions.contains(&decision));
    let steps = LOAD_STEPS
        + u64::from(leasing) * LEASE_STEPS
        + u64::from(placing) * PLACE_STEPS
        + u64::from(compile == 0);
    let bar = Steps::long("measuring", steps).beside(output);
    let mut random = Random::new(seed);
    let vocabulary = Vocabulary::new(&said.facts, &said.caps, settings);
    let cached_load = bar.after(median(1, || subject.load(&engine).map(drop)))?;
    let lease = leasing.then(|| {
        let rows = nodes(&mut random, &vocabulary, BATCH);
        lease(&module, &rows, &bar, || fuel(subject, &rows))
    });
    let place = placing.then(|| {
        let candidates = nodes(&mut random, &vocabulary, CANDIDATES).into_iter().map(Arc::new);
        let candidates: Vec<_> = candidates.collect();
        place(&module, &candidates, &bar, || place_fuel(subject, &candidates))
    });
    let compile = if compile > 0 { compile } else { bar.after(compile_again(bytes, limits))? };
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let compile = compile as f64;
    let figures = Figures {
        module: said.name,
        version: said.version,
        digest: said.digest,
        size_bytes: bytes.len(),
        compile,
        cached_load,
        lease: lease.transpose()?,
        place: place.transpose()?,
    };
    bar.end();
    Ok(figures)
}

fn lease(
    module: &Module,
    rows: &[NodeFacts],
    bar: &Steps,
    fuel: impl FnOnce() -> Result<Exact, Failure>,
) -> Result<LeaseFigures, Failure> {
    let (at, utc) = (now(), TimeZone::UTC);
    let one = rows.first().map(std::slice::from_ref).unwrap_or_default();
    let fresh = bar.after(median(1, || answers(module.lease(at, &utc, one))))?;
    let mut open = module.open().map_err(failed)?;
    let (single, many) = (open.rows(at, &utc, one), open.rows(at, &utc, rows));
    let warm_row = bar.after(median(100, || answers(open.count_offers(at, &utc, &single))))?;
    let batch = bar.after(median(1, || answers(open.count_offers(at, &utc, &many))))?;
    let Exact { fuel_fresh, fuel_each, memory_bytes } = bar.after(fuel())?;
    #[expect(clippy::cast_precision_loss, reason = "a small constant")]
    let batch_row = batch / BATCH as f64;
    Ok(LeaseFigures { fresh, warm_row, batch_row, fuel_per_row: fuel_each, fuel_fresh, memory_bytes })
}

fn place(
    module: &Module,
    candidates: &[Arc<NodeFacts>],
    bar: &Steps,
    fuel: impl FnOnce() -> Result<Exact, Failure>,
) -> Result<PlaceFigures, Failure> {
    let pod = pod();
    let ask = || answers(module.place(Stage::Schedule, now(), &TimeZone::UTC, &pod, candidates));
    let whole = bar.after(median(1, ask))?;
    let Exact { fuel_fresh, fuel_each, memory_bytes } = bar.after(fuel())?;
    Ok(PlaceFigures { whole, fuel_per_candidate: fuel_each, fuel_fresh, memory_bytes })
}

fn pod() -> PodFacts {
    PodFacts { name: "pod".into(), namespace: "default".into(), ..PodFacts::default() }
}

fn answers<T>(result: Result<T, kubeocean_engine::CallFailed>) -> Result<(), Failure> {
    result.map(drop).map_err(|error| Failure::failed(error.to_string()))
}

fn start(config: EngineConfig) -> Result<Engine, Failure> {
    Engine::start(EngineConfig { max_module_bytes: MAX_MODULE_BYTES, ..config })
        .map_err(|error| Failure::unusable(format!("cannot start the policy engine: {error}")))
}

fn now() -> Timestamp {
    Timestamp::from_second(AT).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// A built-in module was compiled before it could be measured: other bytes that mean the same are compiled anew.
fn compile_again(bytes: &Arc<[u8]>, limits: ModuleLimits) -> Result<u64, Failure> {
    let engine = start(EngineConfig { threads: 1, ..EngineConfig::default() })?;
    for (_, builtin) in BUILTINS {
        engine.outline(&Arc::from(builtin), limits).map_err(|error| load_failure(&error))?;
    }
    let before = engine.numbers().compile_us;
    // An empty custom section, of a name of one letter.
    let other: Arc<[u8]> = [bytes.as_ref(), &[0, 2, 1, b'n']].concat().into();
    engine.outline(&other, limits).map_err(|error| load_failure(&error))?;
    Ok(engine.numbers().compile_us - before)
}

/// What is the same on every machine.
struct Exact {
    /// Instructions of a fresh unit with one row.
    fuel_fresh: u64,
    /// Instructions of one of many rows.
    fuel_each: u64,
    /// Linear memory after all.
    memory_bytes: usize,
}

impl Exact {
    /// After a call with one row, and one with `rows`.
    fn new(one: UnitCost, all: UnitCost, rows: usize) -> Self {
        let (fresh, fuel) = (one.fuel.unwrap_or(0), all.fuel.unwrap_or(0));
        let rows = u64::try_from(rows).unwrap_or(1).max(1);
        Self {
            fuel_fresh: fresh,
            fuel_each: fuel.saturating_sub(fresh).div_ceil(rows),
            memory_bytes: all.memory_bytes,
        }
    }
}

impl Subject<'_> {
    fn load(&self, engine: &Engine) -> Result<Module, Failure> {
        engine.load_module(self.bytes, self.settings, self.limits, &[]).map_err(|error| load_failure(&error))
    }

    /// In an engine that counts.
    fn metered(&self) -> Result<Module, Failure> {
        let counting = EngineConfig { threads: 1, pooling: false, metered: true, ..EngineConfig::default() };
        self.load(&start(counting)?)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "called by map_err")]
fn failed(error: kubeocean_engine::CallFailed) -> Failure {
    Failure::failed(error.to_string())
}

fn place_fuel(subject: &Subject<'_>, candidates: &[Arc<NodeFacts>]) -> Result<Exact, Failure> {
    let module = subject.metered()?;
    let mut open = module.open_place().map_err(failed)?;
    let pod = pod();
    let mut ask = |candidates: &[Arc<NodeFacts>]| {
        open.place(Stage::Schedule, now(), &TimeZone::UTC, &pod, candidates).map_err(failed)?;
        Ok::<_, Failure>(open.cost())
    };
    let one = ask(candidates.get(..1).unwrap_or_default())?;
    let all = ask(candidates)?;
    Ok(Exact::new(one, all, candidates.len()))
}

fn fuel(subject: &Subject<'_>, rows: &[NodeFacts]) -> Result<Exact, Failure> {
    let module = subject.metered()?;
    let (at, utc) = (now(), TimeZone::UTC);
    let mut open = module.open().map_err(failed)?;
    let one = open.rows(at, &utc, rows.first().map(std::slice::from_ref).unwrap_or_default());
    open.count_offers(at, &utc, &one).map_err(failed)?;
    let fresh = open.cost();
    let many = open.rows(at, &utc, rows);
    open.count_offers(at, &utc, &many).map_err(failed)?;
    Ok(Exact::new(fresh, open.cost(), rows.len()))
}

/// Median of many measurements in microseconds; `times` calls make one.
fn median(times: u32, mut work: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    let started = Instant::now();
    let mut taken = Vec::new();
    while taken.len() < LEAST || started.elapsed() < WHILE {
        let begun = Instant::now();
        for _ in 0..times {
            work()?;
        }
        taken.push(begun.elapsed().as_secs_f64() * 1e6 / f64::from(times));
    }
    taken.sort_by(f64::total_cmp);
    Ok(taken.get(taken.len() / 2).copied().unwrap_or(0.0))
}
