//! `kubeocean policy test`: cases of a YAML file, decided by the Syncer's engine with the entry's own options.

mod case;
mod compare;
mod fixture;
mod pod;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use clap::Args as ClapArgs;
use jiff::{Timestamp, tz::TimeZone};
use kubeocean_api::policy::PolicyEntry;
use kubeocean_engine::{
    BindingFacts, Engine, Explanation, FaultKind, ModuleLimits, PlaceNode, PlaceRequest, Placement,
    PolicySpec,
};
use serde::Serialize;

use self::{
    case::{Case, Cases, Tested},
    compare::{Got, Mismatch},
    fixture::Fixture,
    pod::PodForm,
};
use super::{
    local::{LocalHost, ModuleFlags, NotRunning, from_file, one_entry},
    module, moment,
};
use crate::{
    failure::Failure,
    output::{Format, Tone, columns, paint},
    progress::Steps,
    registry::Login,
};

/// Attempts at a case in which a call took too long: the limit is of real time, and the machine may be busy.
const ATTEMPTS: usize = 5;
/// How long all entries together may take to place a pod; a case is not a scheduler that waits.
const PLACING: Duration = Duration::from_secs(10);
/// Name of the entry, and of its policy, where a file tests a module.
const ENTRY: &str = "module";
const POLICY: &str = "test";

/// Which files.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  kubeocean policy test tests.yaml
  kubeocean policy test tests/*.yaml -o json

A file that tests a module:
  module: ./target/wasm32-unknown-unknown/release/night_gpu.wasm   # or builtin:NAME, or oci://IMAGE
  settings: {from: 22, until: 7, percent: 50}
  timeZone: Asia/Shanghai
  cases:
  - name: half-at-night
    at: \"2026-03-07T23:30\"
    node: {labels: {pool: online}, allocatable: {nvidia.com/gpu: 8}, used: {nvidia.com/gpu: 2}}
    expect: {verdict: offer, caps: {nvidia.com/gpu: 3}, validUntil: \"2026-03-08T07:00\", reason: NightGpu}

A file that tests a whole policy has `policy: rlp.yaml` instead, and expects `decision: {verdict, amounts, limitedBy, reclaim,
validUntil, reason, governedBy}` and answers of `entries: {NAME: {...}}`. A case with a `pod` also expects `place: {fit, score,
reason}`. Exit code 1: a case failed.")]
pub(crate) struct Args {
    /// Files with cases
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    #[command(flatten)]
    login: Login,
    /// Form of the output
    #[arg(short, long, default_value = "text")]
    output: Format,
}

/// What came of one case.
#[derive(Debug, Serialize)]
struct Outcome {
    /// `<what is tested>/<case>`.
    name: String,
    file: PathBuf,
    /// Where the expectation is.
    line: u64,
    ok: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mismatches: Vec<Mismatch>,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    cases: Vec<Outcome>,
    passed: usize,
    failed: usize,
    milliseconds: u64,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let started = Instant::now();
    let engine = module::engine()?;
    let mut report = Report::default();
    for file in &args.files {
        test(&engine, file, &args.login, &mut report.cases)?;
    }
    report.passed = report.cases.iter().filter(|case| case.ok).count();
    report.failed = report.cases.len() - report.passed;
    report.milliseconds = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    args.output.show(&report, text)?;
    match report.failed {
        0 => Ok(()),
        failed => Err(Failure::failed(format!("{failed} of {} cases failed", report.cases.len()))),
    }
}

/// All cases of one file.
fn test(engine: &Engine, file: &Path, login: &Login, outcomes: &mut Vec<Outcome>) -> Result<(), Failure> {
    let wrong = |why: String| Failure::unusable(format!("{}: {why}", file.display()));
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::unusable(format!("cannot read {}: {error}", file.display())))?;
    let cases = Cases::parse(&text).map_err(wrong)?;
    let setup = Setup::new(engine, file, cases.tested, login, cases.time_zone.as_deref())?;
    let (mut unexpected, mut expects_errors) = (None, false);
    let bar = Steps::new("testing", cases.list.len());
    for case in &cases.list {
        let (got, not_running) =
            setup.decide(engine, case).map_err(|why| wrong(format!("{}: {why}", case.name)))?;
        expects_errors |= case.expect.errors();
        unexpected = unexpected.or(not_running.into_iter().next());
        let mismatches = compare::compare(&case.expect, &got, ENTRY)
            .map_err(|why| wrong(format!("{}: expect.{why}", case.name)))?;
        outcomes.push(Outcome {
            name: format!("{}/{}", setup.name, case.name),
            file: file.to_path_buf(),
            line: case.line,
            ok: mismatches.is_empty(),
            mismatches,
        });
        bar.step();
    }
    bar.end();
    match unexpected {
        Some(missing) if !expects_errors => Err(wrong(missing.to_string())),
        _ => Ok(()),
    }
}

/// What the cases of a file have in common.
struct Setup {
    /// Of the module, or of the policy file.
    name: String,
    zone: TimeZone,
    policies: Vec<PolicySpec>,
}

impl Setup {
    fn new(
        engine: &Engine,
        file: &Path,
        tested: Tested,
        login: &Login,
        time_zone: Option<&str>,
    ) -> Result<Self, Failure> {
        let folder = file.parent().unwrap_or(Path::new(""));
        let beside = |name: &str| {
            if name.contains(':') { name.to_owned() } else { folder.join(name).display().to_string() }
        };
        let (name, policies) = match tested {
            Tested::Module { module, entry } => {
                let path = beside(&module);
                let bytes = module::read(&path, login)?;
                let outline = engine.outline(&bytes, ModuleLimits::GREATEST);
                let name = outline.map_or_else(|_| short(&module), |outline| outline.name);
                let entry = PolicyEntry { name: ENTRY.to_owned(), module: from_file(&path), ..*entry };
                (name, vec![one_entry(&bytes, entry, time_zone.map(str::to_owned), POLICY)])
            }
            Tested::Policy { policy, modules } => {
                let modules: BTreeMap<String, String> =
                    modules.into_iter().map(|(entry, module)| (entry, beside(&module))).collect();
                let flags = ModuleFlags::new(modules, login.clone());
                (short(&policy), flags.read(&folder.join(&policy))?)
            }
        };
        let zone = super::local::zone_of(&policies);
        let named = time_zone.map(|name| {
            TimeZone::get(name)
                .map_err(|_| Failure::unusable(format!("{}: there is no time zone {name:?}", file.display())))
        });
        let zone = if zone == TimeZone::UTC { named.transpose()?.unwrap_or(zone) } else { zone };
        Ok(Self { name, zone, policies })
    }

    /// In a host of its own: no case knows of another.
    fn decide(&self, engine: &Engine, case: &Case) -> Result<(Got, Vec<NotRunning>), String> {
        let at = |text: &str| moment::instant(text, &self.zone).map_err(|why| format!("at {text:?}: {why}"));
        let (now, node) = (at(&case.at)?, case.node.facts()?);
        let earlier: Vec<(Timestamp, Fixture)> = case
            .earlier
            .iter()
            .map(|one| Ok((at(&one.at)?, one.node.facts()?)))
            .collect::<Result<_, String>>()?;
        let pod = case.pod.as_ref().map(PodForm::facts).transpose()?.map(Arc::new);
        let mut left = ATTEMPTS;
        loop {
            left -= 1;
            let host = LocalHost::new(engine, binding(&node), self.zone.clone());
            host.set(self.policies(case, &node)?);
            for (at, node) in &earlier {
                host.host.decide(*at, &[Arc::clone(&node.facts)]);
            }
            let explanation = host.host.explain(now, &node.facts);
            let governed = explanation.decision.governed_by.as_deref().map(Arc::from);
            let placement = pod.as_ref().and_then(|pod| {
                let nodes = vec![PlaceNode { facts: Arc::clone(&node.facts), policy: governed }];
                let deadline = Instant::now() + PLACING;
                let request = PlaceRequest { stage: case.stage, pod: Arc::clone(pod), nodes, deadline };
                host.host.place(now, request).pop()
            });
            if left > 0 && ran_out_of_time(&explanation, placement.as_ref()) {
                continue;
            }
            let not_running = host.not_running(now);
            return Ok((Got::new(explanation, placement, self.zone.clone()), not_running));
        }
    }

    fn policies(&self, case: &Case, node: &Fixture) -> Result<Vec<PolicySpec>, String> {
        let mut policies = self.policies.clone();
        if let (Some(name), [policy]) = (&node.policy, policies.as_mut_slice()) {
            policy.name.clone_from(name);
        }
        let Some(settings) = &case.settings else { return Ok(policies) };
        let module = |policy: &&mut PolicySpec| policy.spec.policies.iter().any(|entry| entry.name == ENTRY);
        match policies.iter_mut().find(module).and_then(|policy| policy.spec.policies.first_mut()) {
            Some(entry) => entry.settings = Some(settings.clone()),
            None => return Err("settings: only a file that tests one module may change them".to_owned()),
        }
        Ok(policies)
    }
}

fn binding(node: &Fixture) -> BindingFacts {
    BindingFacts { name: node.binding.clone(), cluster_id: node.cluster_id.clone() }
}

fn ran_out_of_time(explanation: &Explanation, placement: Option<&Placement>) -> bool {
    let timeout = |error: &String| error.starts_with(FaultKind::Timeout.as_str());
    if placement.and_then(|found| found.reason.as_ref()).is_some_and(|why| timeout(&why.reason.message)) {
        return true;
    }
    let mut steps = explanation.policies.iter().flat_map(|(_, steps)| steps);
    steps.any(|step| step.error.as_ref().is_some_and(timeout))
}

/// `night_gpu.wasm` of a path.
fn short(path: &str) -> String {
    Path::new(path).file_stem().map_or_else(|| path.to_owned(), |stem| stem.to_string_lossy().into_owned())
}

fn text(report: &Report) -> String {
    let mut rows = Vec::new();
    for case in &report.cases {
        if case.ok {
            rows.push(vec!["ok  ".to_owned(), case.name.clone()]);
        }
        for (index, mismatch) in case.mismatches.iter().enumerate() {
            let place = format!("({}:{})", case.file.display(), case.line);
            let name = if index == 0 { case.name.clone() } else { String::new() };
            let mark = if index == 0 { "FAIL" } else { "    " };
            rows.push(vec![mark.to_owned(), name, format!("{mismatch}   {place}")]);
        }
    }
    let mut out = String::new();
    for line in columns(&rows).lines() {
        let (mark, rest) = line.split_at(line.len().min(4));
        let tone = if mark.starts_with("FAIL") { Tone::Bad } else { Tone::Good };
        out.push_str(&paint(tone, mark));
        out.push_str(rest);
        out.push('\n');
    }
    out + &format!("{} passed, {} failed, {} ms\n", report.passed, report.failed, report.milliseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_in_text() {
        let outcome = |name: &str, mismatches: Vec<Mismatch>| Outcome {
            name: name.into(),
            file: "tests.yaml".into(),
            line: 21,
            ok: mismatches.is_empty(),
            mismatches,
        };
        let wrong = |field: &str, expected: &str, got: &str| Mismatch {
            field: field.into(),
            expected: expected.into(),
            got: got.into(),
        };
        let report = Report {
            cases: vec![
                outcome("night-gpu/day-has-no-gpus", vec![]),
                outcome(
                    "night-gpu/half-at-night",
                    vec![wrong("caps.nvidia.com/gpu", "3", "4"), wrong("verdict", "offer", "withhold")],
                ),
            ],
            passed: 1,
            failed: 1,
            milliseconds: 3,
        };
        insta::assert_snapshot!(text(&report), @r"
        ok    night-gpu/day-has-no-gpus
        FAIL  night-gpu/half-at-night  caps.nvidia.com/gpu: expected 3, got 4   (tests.yaml:21)
                                       verdict: expected offer, got withhold   (tests.yaml:21)
        1 passed, 1 failed, 3 ms
        ");
    }
}
