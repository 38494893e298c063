//! `kubeocean policy check`: every loading step of the Syncer, offline, and then more trials than a load has time for.

mod cases;
mod places;
mod pods;
pub(super) mod rows;
mod trials;

use std::{path::PathBuf, sync::Arc};

use clap::Args as ClapArgs;
use kubeocean_engine::{
    DEFAULT_MAX_MODULE_BYTES, Decision, Engine, LoadCode, LoadError, ModuleLimits, ModuleOutline,
};
use serde::Serialize;
use serde_json::Value;

use self::{cases::Case, trials::Trial};
use super::module::{self, MODULE_HELP};
use crate::{
    failure::Failure,
    output::{Format, columns},
    progress::Steps,
    registry::Login,
};

/// What to check.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  kubeocean policy check target/wasm32-unknown-unknown/release/night_gpu.wasm -f rlp.yaml
  kubeocean policy check night_gpu.wasm --settings '{from: 22, until: 7, percent: 50}'
  kubeocean policy check builtin:cpu-percentage --settings '{limits: [{resource: cpu, percent: 50}]}' -o json

Exit code 1: the module is not pure or breaks a promise; 2: a Syncer would not load it.")]
pub(crate) struct Args {
    #[arg(value_name = "MODULE", help = MODULE_HELP)]
    module: String,
    /// ResourceLeasingPolicy whose entries of this module are checked with their settings
    #[arg(short, long, value_name = "rlp.yaml")]
    file: Option<PathBuf>,
    /// Only this entry of the file, whatever module it names
    #[arg(long, value_name = "NAME", requires = "file")]
    entry: Option<String>,
    /// Settings as JSON or YAML, instead of a file
    #[arg(long, value_name = "JSON", conflicts_with = "file", value_parser = module::settings)]
    settings: Option<Value>,
    /// Limits of one call as an entry has them, for example '{memoryMiB: 64}', instead of a file
    #[arg(long, value_name = "JSON", conflicts_with = "file", value_parser = module::limits)]
    limits: Option<ModuleLimits>,
    /// Start of the random nodes and pods; the same number gives the same ones
    #[arg(long, default_value_t = 1)]
    seed: u64,
    #[command(flatten)]
    login: Login,
    /// Form of the output
    #[arg(short, long, default_value = "text")]
    output: Format,
}

/// One step and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Step {
    /// Its name; of an entry's steps `<entry>: <step>`.
    #[serde(rename = "step")]
    name: String,
    /// Whether the module passed.
    ok: bool,
    /// What was found, or what is wrong.
    detail: String,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    module: Option<ModuleOutline>,
    steps: Vec<Step>,
    /// Things that do not make the module fail.
    notes: Vec<String>,
}

impl Report {
    fn ok(&mut self, step: impl Into<String>, detail: impl Into<String>) {
        self.steps.push(Step { name: step.into(), ok: true, detail: detail.into() });
    }

    fn fail(&mut self, step: impl Into<String>, detail: impl Into<String>) {
        self.steps.push(Step { name: step.into(), ok: false, detail: detail.into() });
    }
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let bytes = module::read(&args.module, &args.login)?;
    let mut report = Report::default();
    let result = check(args, &bytes, &mut report);
    args.output.show(&report, text)?;
    result
}

fn check(args: &Args, bytes: &Arc<[u8]>, report: &mut Report) -> Result<(), Failure> {
    let engine = module::engine()?;
    let bar = Steps::long("compiling", 1).beside(args.output);
    let outline = engine.outline(bytes, ModuleLimits::GREATEST);
    bar.end();
    let outline = match outline {
        Ok(outline) => outline,
        Err(error) => {
            report.fail("module", error.to_string());
            return Err(module::load_failure(&error));
        }
    };
    let size = module::size(outline.size_bytes);
    report.ok("module", format!("{} {}, {size}, {}", outline.name, outline.version, outline.digest));
    let decisions: Vec<String> = outline.decisions.iter().map(ToString::to_string).collect();
    report.ok("world", format!("{}; imports {}", decisions.join(", "), outline.imports.join(", ")));
    report.ok("schema", "a schema of settings that this version understands");
    if outline.size_bytes > DEFAULT_MAX_MODULE_BYTES {
        report.notes.push(format!(
            "larger than {}: a Syncer takes it only with --policy-max-module-size",
            module::size(DEFAULT_MAX_MODULE_BYTES)
        ));
    }
    let cases = match &args.file {
        Some(file) => {
            let text = std::fs::read_to_string(file)
                .map_err(|error| Failure::unusable(format!("cannot read {}: {error}", file.display())))?;
            let named = args.entry.as_deref();
            cases::of_file(&text, &args.module, &outline, named)
                .map_err(|why| Failure::unusable(format!("{}: {why}", file.display())))?
        }
        None => vec![Case::of_settings(args.settings.clone(), args.limits.unwrap_or_default())],
    };
    report.module = Some(outline);
    for case in &cases {
        check_case(args, &engine, bytes, case, report)?;
    }
    Ok(())
}

/// What its author can do about a module that does not load.
fn remedy(error: &LoadError, case: &Case) -> &'static str {
    match (error.message.starts_with("Memory: "), &case.entry) {
        (true, Some(_)) => "; the entry's limits.memoryMiB can be up to 128",
        (true, None) => "; give it more with --limits '{memoryMiB: 128}'",
        (false, _) if case.assumed => "; give its settings with -f rlp.yaml or --settings",
        (false, _) => "",
    }
}

fn check_case(
    args: &Args,
    engine: &Engine,
    bytes: &Arc<[u8]>,
    case: &Case,
    report: &mut Report,
) -> Result<(), Failure> {
    let named = |step: &str| match &case.entry {
        Some(entry) => format!("{entry}: {step}"),
        None => step.to_owned(),
    };
    report.notes.extend(case.notes.iter().cloned());
    if let Some(error) = &case.refused {
        report.fail(named("reference"), error.clone());
        return Err(Failure::unusable(error.clone()));
    }
    let module = match engine.load_module(bytes, &case.settings, case.limits, &[]) {
        Ok(module) => module,
        Err(error) => {
            let step = match error.code {
                LoadCode::SettingsInvalid | LoadCode::SettingsRejected => "settings",
                LoadCode::UnknownFact => "facts",
                _ => "trial",
            };
            let remedy = remedy(&error, case);
            report.fail(named(step), format!("{error}{remedy}"));
            return Err(Failure::unusable(format!("{error}{remedy}")));
        }
    };
    let said = module.describe();
    report.ok(named("settings"), serde_json::to_string(&case.settings).unwrap_or_default());
    let [leasing, placing] = [Decision::Lease, Decision::Place]
        .map(|decision| said.decisions.contains(&decision) && case.asks(decision));
    let steps = usize::from(leasing) * trials::STEPS + usize::from(placing) * places::STEPS;
    let bar = Steps::new("checking", steps).beside(args.output);
    let trial = Trial { module: &module, zone: &case.zone, bar: &bar };
    let list = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let mut result = Ok(());
    if leasing {
        report.ok(named("facts"), format!("reads {}; caps {}", list(&said.facts), list(&said.caps)));
        let vocabulary = rows::Vocabulary::new(&said.facts, &said.caps, &case.settings);
        result = try_leases(&trial, &vocabulary, args.seed, |step, detail| {
            report.ok(named(step), detail);
        });
    }
    if result.is_ok() && placing {
        let (of_vnodes, of_pods) = module.place_facts();
        report.ok(
            named("facts"),
            format!("placing reads {} of vnodes, {} of pods", list(of_vnodes), list(of_pods)),
        );
        result = match places::purity(&trial, &case.settings, args.seed) {
            Ok(pods) => {
                let rows = places::ROWS;
                let how = "at both stages, together, in another order and alone";
                report.ok(named("purity"), format!("{rows} random vnodes for {pods} random pods, {how}"));
                Ok(())
            }
            Err(found) => Err(("purity", found)),
        };
    }
    bar.end();
    result.map_err(|(step, found)| {
        let text = format!("{}: {}", found.code, found.message);
        report.fail(named(step), text.clone());
        Failure::failed(format!("{text}; repeat with --seed {}", args.seed))
    })
}

/// Purity, then promises.
fn try_leases(
    trial: &Trial<'_>,
    vocabulary: &rows::Vocabulary,
    seed: u64,
    mut passed: impl FnMut(&str, String),
) -> Result<(), (&'static str, trials::Misbehaviour)> {
    let mut random = rows::Random::new(seed);
    let nodes = rows::nodes(&mut random, vocabulary, trials::ROWS);
    let decided = trial.purity(&mut random, &nodes).map_err(|found| ("purity", found))?;
    passed("purity", format!("{} random nodes, together, in another order and alone", decided.len()));
    let asked = trial.promises(&mut random, &decided).map_err(|found| ("promises", found))?;
    passed("promises", format!("asked again {asked} times before an answer's end"));
    Ok(())
}

fn text(report: &Report) -> String {
    let rows: Vec<Vec<String>> = report
        .steps
        .iter()
        .map(|step| {
            let mark = if step.ok { "ok" } else { "FAIL" };
            vec![mark.to_owned(), step.name.clone(), step.detail.clone()]
        })
        .chain(report.notes.iter().map(|note| vec!["note".to_owned(), String::new(), note.clone()]))
        .collect();
    columns(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_in_text() {
        let mut report = Report::default();
        report.ok("module", "half 0.1.0, 71 KiB, sha256:9f2c");
        report.ok("half: settings", r#"{"percent":50}"#);
        report.fail("half: purity", "NotPure: it counts");
        report.notes.push("pin it".to_owned());
        insta::assert_snapshot!(text(&report), @r#"
        ok    module          half 0.1.0, 71 KiB, sha256:9f2c
        ok    half: settings  {"percent":50}
        FAIL  half: purity    NotPure: it counts
        note                  pin it
        "#);
    }
}
