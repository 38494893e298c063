//! `kubeocean policy bench`: what a module costs, in time on this machine and in fuel on any.

mod measure;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use clap::Args as ClapArgs;
use kubeocean_engine::ModuleLimits;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use self::measure::Subject;
use super::module::{self, MODULE_HELP};
use crate::{failure::Failure, output::Format, registry::Login};

/// Which module.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  kubeocean policy bench night_gpu.wasm --settings '{from: 22, until: 7, percent: 50}'
  kubeocean policy bench night_gpu.wasm --settings-file settings.yaml --save baseline.json
  kubeocean policy bench night_gpu.wasm --settings-file settings.yaml --baseline baseline.json --max-regression 10%

Fuel, memory and size are the same on every machine and are what --max-regression compares; times are compared only with
--max-slowdown. Exit code 1: something became worse than allowed.")]
pub(crate) struct Args {
    #[arg(value_name = "MODULE", help = MODULE_HELP)]
    module: String,
    /// Settings as JSON or YAML
    #[arg(long, value_name = "JSON", value_parser = module::settings)]
    settings: Option<Value>,
    /// File with settings
    #[arg(long, value_name = "FILE", conflicts_with = "settings")]
    settings_file: Option<PathBuf>,
    /// Limits of one call as an entry has them, for example '{memoryMiB: 64}'
    #[arg(long, value_name = "JSON", value_parser = module::limits)]
    limits: Option<ModuleLimits>,
    /// Keep the numbers here, to compare with later
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Numbers that were kept, to compare with
    #[arg(long, value_name = "FILE")]
    baseline: Option<PathBuf>,
    /// Most by which fuel, memory and size may grow
    #[arg(long, value_name = "PERCENT", default_value = "10%", value_parser = percent)]
    max_regression: f64,
    /// Most by which times may grow; on another machine they always differ
    #[arg(long, value_name = "PERCENT", value_parser = percent)]
    max_slowdown: Option<f64>,
    /// Start of the random nodes; the same number gives the same ones
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    login: Login,
    /// Form of the output
    #[arg(short, long, default_value = "text")]
    output: Format,
}

fn percent(text: &str) -> Result<f64, String> {
    let number = text.strip_suffix('%').unwrap_or(text).trim().parse::<f64>();
    match number {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err(format!("{text:?} is no share, expected for example 10%")),
    }
}

/// What was measured. Times are in microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Figures {
    module: String,
    version: String,
    digest: String,
    size_bytes: usize,
    /// Translation to machine code.
    compile: f64,
    /// All steps of loading a module that is compiled.
    cached_load: f64,
    /// Of a module that leases.
    lease: Option<LeaseFigures>,
    /// Of a module that places.
    place: Option<PlaceFigures>,
}

/// What lease decisions cost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeaseFigures {
    /// A fresh sandbox, `create`, and one row.
    fresh: f64,
    /// One more row in a sandbox that exists.
    warm_row: f64,
    /// One of 256 rows of a call.
    batch_row: f64,
    /// Instructions of one of 256 rows.
    fuel_per_row: u64,
    /// Instructions of a fresh sandbox with one row.
    fuel_fresh: u64,
    /// Linear memory after 256 rows.
    memory_bytes: usize,
}

/// What it costs to say where of 5,000 candidates a pod may go.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PlaceFigures {
    /// A fresh sandbox, `create`, and one call.
    whole: f64,
    /// Instructions of one of the candidates.
    fuel_per_candidate: u64,
    /// Instructions of a fresh sandbox with one candidate.
    fuel_fresh: u64,
    /// Linear memory after all candidates.
    memory_bytes: usize,
}

/// One figure beside the one that was kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Compared {
    figure: &'static str,
    baseline: f64,
    now: f64,
    /// In percent; more is worse.
    change: f64,
    ok: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    figures: Figures,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    compared: Vec<Compared>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let bytes = module::read(&args.module, &args.login)?;
    let settings = match (&args.settings, &args.settings_file) {
        (Some(settings), _) => settings.clone(),
        (None, Some(file)) => {
            let text = read_text(file)?;
            module::settings(&text).map_err(|why| Failure::unusable(format!("{}: {why}", file.display())))?
        }
        (None, None) => Value::Object(serde_json::Map::new()),
    };
    let baseline = args.baseline.as_deref().map(read_baseline).transpose()?;
    let subject = Subject { bytes: &bytes, settings: &settings, limits: args.limits.unwrap_or_default() };
    let figures = measure::figures(&subject, args.seed, args.output)?;
    if let Some(file) = &args.save {
        let text = serde_json::to_string_pretty(&figures).unwrap_or_default() + "\n";
        std::fs::write(file, text)
            .map_err(|error| Failure::unusable(format!("cannot write {}: {error}", file.display())))?;
    }
    let compared = baseline.map(|kept| compare(&kept, &figures, args.max_regression, args.max_slowdown));
    let report = Report { figures, compared: compared.unwrap_or_default() };
    args.output.show(&report, text)?;
    let worse: Vec<&str> = report.compared.iter().filter(|one| !one.ok).map(|one| one.figure).collect();
    if worse.is_empty() {
        Ok(())
    } else {
        Err(Failure::failed(format!("worse than the baseline allows: {}", worse.join(", "))))
    }
}

fn read_text(file: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(file)
        .map_err(|error| Failure::unusable(format!("cannot read {}: {error}", file.display())))
}

fn read_baseline(file: &Path) -> Result<Figures, Failure> {
    serde_json::from_str(&read_text(file)?)
        .map_err(|error| Failure::unusable(format!("{} was not made by --save: {error}", file.display())))
}

/// The exact figures of a module, by name.
#[expect(clippy::cast_precision_loss, reason = "compared in percent")]
fn exact(figures: &Figures) -> Vec<(&'static str, f64)> {
    let mut all = Vec::new();
    if let Some(lease) = &figures.lease {
        all.extend([
            ("fuel/row", lease.fuel_per_row as f64),
            ("fuel fresh", lease.fuel_fresh as f64),
            ("memory", lease.memory_bytes as f64),
        ]);
    }
    if let Some(place) = &figures.place {
        all.extend([
            ("fuel/candidate", place.fuel_per_candidate as f64),
            ("place fuel fresh", place.fuel_fresh as f64),
            ("place memory", place.memory_bytes as f64),
        ]);
    }
    all.push(("size", figures.size_bytes as f64));
    all
}

/// Its times.
fn times(figures: &Figures) -> Vec<(&'static str, f64)> {
    let mut all = vec![("compile", figures.compile), ("cached load", figures.cached_load)];
    if let Some(lease) = &figures.lease {
        all.extend([("fresh unit", lease.fresh), ("1 row", lease.warm_row), ("256 rows", lease.batch_row)]);
    }
    all.extend(figures.place.as_ref().map(|place| ("place", place.whole)));
    all
}

/// What both have, side by side. A module that decides something else than before is another module: what only one of them
/// has is no better and no worse.
fn compare(kept: &Figures, now: &Figures, max_regression: f64, max_slowdown: Option<f64>) -> Vec<Compared> {
    let beside = |old: Vec<(&'static str, f64)>, new: Vec<(&'static str, f64)>| {
        let old: BTreeMap<&str, f64> = old.into_iter().collect();
        new.into_iter().filter_map(move |(figure, now)| Some((figure, *old.get(figure)?, now)))
    };
    let one = |(figure, baseline, now): (&'static str, f64, f64), most: Option<f64>| {
        let change = if baseline > 0.0 { (now - baseline) / baseline * 100.0 } else { 0.0 };
        Compared { figure, baseline, now, change, ok: most.is_none_or(|most| change <= most) }
    };
    beside(exact(kept), exact(now))
        .map(|figure| one(figure, Some(max_regression)))
        .chain(beside(times(kept), times(now)).map(|figure| one(figure, max_slowdown)))
        .collect()
}

fn text(report: &Report) -> String {
    let figures = &report.figures;
    let mut out = format!(
        "size {}   compile {}   cached load {}",
        module::size(figures.size_bytes),
        time(figures.compile),
        time(figures.cached_load),
    );
    if let Some(lease) = &figures.lease {
        out.extend([format!(
            "   fresh unit {}\nlease 1 row {}   256 rows {}/row   fuel/row {}   memory {}",
            time(lease.fresh),
            time(lease.warm_row),
            time(lease.batch_row),
            lease.fuel_per_row,
            memory(lease.memory_bytes),
        )]);
    } else {
        out.push_str("\nlease -");
    }
    if let Some(place) = &figures.place {
        out.extend([format!(
            "   place 5000 candidates {}   fuel/candidate {}   memory {}\n",
            time(place.whole),
            place.fuel_per_candidate,
            memory(place.memory_bytes),
        )]);
    } else {
        out.push_str("   place -\n");
    }
    let rows: Vec<Vec<String>> = report
        .compared
        .iter()
        .map(|one| {
            let mark = if one.ok { "ok  " } else { "FAIL" };
            let change = format!("{:+.1} %", one.change);
            vec![
                mark.to_owned(),
                one.figure.to_owned(),
                change,
                format!("{} -> {}", plain(one.baseline), plain(one.now)),
            ]
        })
        .collect();
    out.push_str(&crate::output::columns(&rows));
    out
}

/// Bytes of linear memory for people.
#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn memory(bytes: usize) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

/// Microseconds for people.
fn time(us: f64) -> String {
    match us {
        long if long >= 10_000.0 => format!("{:.0} ms", long / 1000.0),
        long if long >= 1000.0 => format!("{:.1} ms", long / 1000.0),
        middle if middle >= 10.0 => format!("{middle:.0} us"),
        short if short >= 1.0 => format!("{short:.1} us"),
        tiny => format!("{tiny:.2} us"),
    }
}

fn plain(value: f64) -> String {
    if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_specification() {
        let lease = LeaseFigures {
            fresh: 52.0,
            warm_row: 1.9,
            batch_row: 0.21,
            fuel_per_row: 412,
            memory_bytes: 1_153_434,
            ..LeaseFigures::default()
        };
        let slower = LeaseFigures { fuel_per_row: 500, warm_row: 19.0, ..lease.clone() };
        let figures = Figures {
            size_bytes: 72_000,
            compile: 98_000.0,
            cached_load: 400.0,
            lease: Some(lease),
            ..Figures::default()
        };
        let slower = Figures { lease: Some(slower), ..figures.clone() };
        let compared = compare(&figures, &slower, 10.0, None);
        let failed: Vec<_> = compared.iter().filter(|one| !one.ok).map(|one| one.figure).collect();
        assert_eq!(failed, ["fuel/row"], "times count only when asked for");
        assert!(
            compare(&figures, &slower, 25.0, Some(25.0)).iter().any(|one| one.figure == "1 row" && !one.ok)
        );
        insta::assert_snapshot!(text(&Report { figures: figures.clone(), compared: compared[..2].to_vec() }), @r"
        size 71 KiB   compile 98 ms   cached load 400 us   fresh unit 52 us
        lease 1 row 1.9 us   256 rows 0.21 us/row   fuel/row 412   memory 1.1 MiB   place -
        FAIL  fuel/row    +21.4 %  412 -> 500
        ok    fuel fresh  +0.0 %   0.00 -> 0.00
        ");
        assert_eq!((percent("10%"), percent("2.5")), (Ok(10.0), Ok(2.5)));
        // It leases no more: nothing became better, or worse.
        let other = Figures { lease: None, place: Some(PlaceFigures::default()), ..figures.clone() };
        let names: Vec<_> = compare(&figures, &other, 10.0, None).iter().map(|one| one.figure).collect();
        assert_eq!(names, ["size", "compile", "cached load"]);
        assert!(percent("-1%").is_err() && percent("x").is_err());
    }
}
