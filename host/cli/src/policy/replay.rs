//! `kubeocean policy replay`: recorded decisions asked again, bit for bit (PO-1007).

use std::{collections::BTreeSet, path::PathBuf, time::Instant};

use clap::Args as ClapArgs;
use serde::Serialize;

use super::{
    module::{self, MODULE_HELP},
    records::{Modules, differs, read},
};
use crate::{
    failure::Failure,
    output::{Format, Tone, paint},
    progress::Steps,
    registry::Login,
};

/// Differences that are printed.
const SHOWN: usize = 20;

/// Which records.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  kubeocean policy replay decisions.jsonl --module night_gpu.wasm
  kubeocean policy explain node-7 --computing-context pool --recorded -ojson | kubeocean policy replay - --module night_gpu.wasm

Records are the JSON lines a Syncer keeps of its last 1,000 decisions about leases and as many about places. Each is asked again, alone and in a fresh sandbox, with
the same module, settings, time and facts. Modules are found by their digest; built-in ones are here. Exit code 1: an answer
differs.")]
pub(crate) struct Args {
    /// Records, one JSON object a line; - reads standard input
    file: PathBuf,
    #[arg(long = "module", value_name = "MODULE", help = format!("{MODULE_HELP}. May be given several times"))]
    modules: Vec<String>,
    #[command(flatten)]
    login: Login,
    /// Form of the output
    #[arg(short, long, default_value = "text")]
    output: Format,
}

#[derive(Debug, Serialize)]
struct Difference {
    line: usize,
    entry: String,
    what: String,
}

#[derive(Debug, Serialize)]
struct Report {
    records: usize,
    modules: usize,
    entries: usize,
    differences: Vec<Difference>,
    milliseconds: u64,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let started = Instant::now();
    let records = read(&args.file)?;
    let engine = module::engine()?;
    let mut modules = Modules::new(&engine, &args.modules, &args.login)?;
    let (mut digests, mut entries) = (BTreeSet::new(), BTreeSet::new());
    let mut differences = Vec::new();
    let bar = Steps::new("replaying", records.len());
    for line in &records {
        let (entry, digest, settings) = line.who();
        let module = modules.with(digest, settings).map_err(|failure| {
            failure.with(&format!("{} line {}: entry {entry}", args.file.display(), line.number))
        })?;
        let what = differs(module, &line.record);
        let of = |what| Difference { line: line.number, entry: entry.to_owned(), what };
        differences.extend(what.map(of));
        digests.insert(digest);
        entries.insert(entry);
        bar.step();
    }
    bar.end();
    let report = Report {
        records: records.len(),
        modules: digests.len(),
        entries: entries.len(),
        differences,
        milliseconds: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    };
    args.output.show(&report, text)?;
    match report.differences.len() {
        0 => Ok(()),
        count => Err(Failure::failed(format!("{count} of {} records got another answer", report.records))),
    }
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    for difference in report.differences.iter().take(SHOWN) {
        let mark = paint(Tone::Bad, "FAIL");
        out.extend([format!(
            "{mark}  line {}  {}  {}\n",
            difference.line, difference.entry, difference.what
        )]);
    }
    if report.differences.len() > SHOWN {
        out.extend([format!("... and {} more; -o json tells all\n", report.differences.len() - SHOWN)]);
    }
    out + &format!(
        "replayed {} records of {} entries and {} modules, {} differ, {} ms\n",
        report.records,
        report.entries,
        report.modules,
        report.differences.len(),
        report.milliseconds
    )
}
