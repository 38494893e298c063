//! `kubeocean policy diff`: what two versions of a policy or of a module decide differently, over recorded nodes or over
//! recorded decisions.

mod nodes;
mod table;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::Args as ClapArgs;
use jiff::tz::TimeZone;
use kubeocean_api::policy::PolicyEntry;
use kubeocean_engine::PolicySpec;
use serde::Serialize;
use serde_json::Value;

use self::nodes::{Interval, Totals};
use super::{
    local::{ModuleFlags, from_file, one_entry, zone_of},
    module,
    records::{Modules, differs, read},
    simulate::SpanFlags,
};
use crate::{failure::Failure, output::Format, progress::Steps, registry::Login};

/// Name of the entry, and of its policy, that runs a module that is compared.
const ENTRY: &str = "module";
const POLICY: &str = "diff";

/// What with what, over what.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  kubeocean policy diff rlp.yaml new.yaml --snapshot week.snap
  kubeocean policy diff oci://registry.example.com/policies/night-gpu:1.2.0 night_gpu.wasm --settings '{from: 22, until: 7, percent: 50}' --snapshot week.snap --time-zone Asia/Shanghai
  kubeocean policy diff old.wasm new.wasm --records decisions.jsonl --exit-code

OLD and NEW are files with ResourceLeasingPolicies (*.yaml, *.yml, *.json) or modules. Over a snapshot both decide every node
through time; over records the new module is asked what the old one was asked.")]
pub(crate) struct Args {
    /// The version that decides now
    old: String,
    /// The version that may decide next
    new: String,
    /// What kubeocean policy snapshot recorded
    #[arg(long, value_name = "FILE", required_unless_present = "records", conflicts_with = "records")]
    snapshot: Option<PathBuf>,
    /// Records of the Syncer's last decisions; - reads standard input
    #[arg(long, value_name = "FILE")]
    records: Option<PathBuf>,
    #[command(flatten)]
    span: SpanFlags,
    /// Settings of both modules, as JSON or YAML
    #[arg(long, value_name = "JSON", value_parser = module::settings)]
    settings: Option<Value>,
    /// Settings of the new module, where they differ
    #[arg(long, value_name = "JSON", value_parser = module::settings)]
    new_settings: Option<Value>,
    /// Time zone in which modules decide [default: UTC]
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    #[command(flatten)]
    modules: ModuleFlags,
    /// End with 1 if anything is decided differently
    #[arg(long)]
    exit_code: bool,
    /// Form of the output
    #[arg(short, long, default_value = "text")]
    output: Format,
}

/// Over a snapshot.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct NodeReport {
    nodes: usize,
    nodes_that_differ: usize,
    differences: Vec<Interval>,
    old: Totals,
    new: Totals,
    #[serde(skip)]
    zone: TimeZone,
}

/// One record that gets another answer.
#[derive(Debug, Serialize)]
struct RecordDifference {
    line: usize,
    entry: String,
    what: String,
}

/// Over records.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RecordReport {
    /// Records the old module made.
    compared: usize,
    /// Records of other modules.
    others: usize,
    differences: Vec<RecordDifference>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let differ = match (&args.snapshot, &args.records) {
        (Some(snapshot), _) => over_snapshot(args, snapshot)?,
        (None, Some(records)) => over_records(args, records)?,
        (None, None) => return Err(Failure::unusable("give --snapshot or --records")),
    };
    if args.exit_code && differ > 0 {
        return Err(Failure::failed(format!("{differ} decisions differ")));
    }
    Ok(())
}

fn is_policy(name: &str) -> bool {
    let ends = |ending| Path::new(name).extension().is_some_and(|of| of.eq_ignore_ascii_case(ending));
    !name.starts_with("oci://") && (ends("yaml") || ends("yml") || ends("json"))
}

fn over_snapshot(args: &Args, path: &Path) -> Result<usize, Failure> {
    let snapshot = super::simulate::read(path)?;
    let new_settings = args.new_settings.as_ref().or(args.settings.as_ref());
    let old = policies(args, &args.old, args.settings.as_ref())?;
    let new = policies(args, &args.new, new_settings)?;
    let zone = zone_of(&new);
    let (from, until) = args.span.of(&snapshot, &zone)?;
    let engine = module::engine()?;
    let old = nodes::walk(&engine, &snapshot, old, from, until).map_err(|failure| failure.with(&args.old))?;
    let new = nodes::walk(&engine, &snapshot, new, from, until).map_err(|failure| failure.with(&args.new))?;
    let differences = nodes::compare(&old, &new, until);
    let report = NodeReport {
        nodes: old.decisions.len().max(new.decisions.len()),
        nodes_that_differ: differences
            .iter()
            .map(|one| &one.node)
            .collect::<std::collections::BTreeSet<_>>()
            .len(),
        differences,
        old: old.totals,
        new: new.totals,
        zone,
    };
    args.output.show(&report, table::nodes)?;
    Ok(report.differences.len())
}

/// The policies of a file, or one policy that runs a module.
fn policies(args: &Args, name: &str, settings: Option<&Value>) -> Result<Vec<PolicySpec>, Failure> {
    if is_policy(name) {
        return args.modules.read_what_fits(Path::new(name));
    }
    if let Some(zone) = &args.time_zone {
        TimeZone::get(zone).map_err(|_| Failure::unusable(format!("--time-zone: there is no {zone:?}")))?;
    }
    let bytes = module::read(name, &args.modules.login)?;
    let entry = PolicyEntry {
        name: ENTRY.to_owned(),
        module: from_file(name),
        settings: settings.cloned(),
        ..PolicyEntry::default()
    };
    let zone = args.time_zone.clone().unwrap_or_else(|| "UTC".to_owned());
    Ok(vec![one_entry(&bytes, entry, Some(zone), POLICY)])
}

fn over_records(args: &Args, path: &Path) -> Result<usize, Failure> {
    if is_policy(&args.old) || is_policy(&args.new) {
        return Err(Failure::unusable(
            "--records are of modules: give two modules, or compare policies over a --snapshot",
        ));
    }
    let records = read(path)?;
    let login: &Login = &args.modules.login;
    let (old, new) = (module::read(&args.old, login)?, module::read(&args.new, login)?);
    let engine = module::engine()?;
    let mut modules = Modules::new(&engine, &[], login)?;
    let (old, new) = (modules.add(Arc::clone(&old)), modules.add(new));
    let settings = args.new_settings.as_ref().or(args.settings.as_ref());
    let settings = settings.map(|settings| serde_json::to_string(settings).unwrap_or_default());
    let mut report = RecordReport { compared: 0, others: 0, differences: Vec::new() };
    let bar = Steps::new("comparing", records.len());
    for line in &records {
        bar.step();
        let (entry, digest, recorded_settings) = line.who();
        if digest != old {
            report.others += 1;
            continue;
        }
        report.compared += 1;
        let module = modules.with(&new, settings.as_deref().unwrap_or(recorded_settings))?;
        let of = |what| RecordDifference { line: line.number, entry: entry.to_owned(), what };
        report.differences.extend(differs(module, &line.record).map(of));
    }
    bar.end();
    if report.compared == 0 {
        return Err(Failure::unusable(format!("none of the records was made by {} ({old})", args.old)));
    }
    args.output.show(&report, table::records)?;
    Ok(report.differences.len())
}
