//! `kubeocean policy simulate`: what policies would have decided about recorded nodes, step by step through time.

pub(crate) mod plot;
pub(crate) mod sums;
mod svg;
pub(crate) mod walk;

use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;
use jiff::{Span, Timestamp, tz::TimeZone};
use kubeocean_engine::BindingFacts;
use serde::Serialize;

use self::{
    sums::{Adder, Sums},
    walk::Walk,
};
use super::{
    local::{LocalHost, ModuleFlags, zone_of},
    module, moment,
    snapshot::file::Snapshot,
};
use crate::{failure::Failure, output::Format, progress::Steps};

/// What is simulated when a snapshot shows one moment only.
const WEEK: &str = "7d";

/// Policies, a snapshot, and a time.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  kubeocean policy simulate -f rlp.yaml --snapshot week.snap
  kubeocean policy simulate -f rlp.yaml --snapshot week.snap --from 2026-03-07 --for 7d --plot
  kubeocean policy simulate -f rlp.yaml --snapshot week.snap --module night-gpu=night_gpu.wasm --plot=week.svg

Decides every recorded node with the Syncer's engine, at each change of the node and whenever an answer ends. Before the
snapshot begins its first state holds, after its end the last. Exit code 1: some decision had no answer of an entry.")]
pub(crate) struct Args {
    /// ResourceLeasingPolicies; of several in the file the first one is the oldest
    #[arg(short, long, value_name = "rlp.yaml")]
    file: PathBuf,
    /// What kubeocean policy snapshot recorded
    #[arg(long, value_name = "FILE")]
    snapshot: PathBuf,
    #[command(flatten)]
    span: SpanFlags,
    /// Draw what was offered; with a file as SVG
    #[arg(long, value_name = "FILE.svg", num_args = 0..=1)]
    #[expect(clippy::option_option, reason = "the flag, and its value")]
    plot: Option<Option<PathBuf>>,
    /// Resources to draw [default: those that some policy limits]
    #[arg(long, value_name = "RESOURCE", value_delimiter = ',')]
    resource: Vec<String>,
    #[command(flatten)]
    modules: ModuleFlags,
    /// Form of the output
    #[arg(short, long, default_value = "text")]
    output: Format,
}

/// From when, and for how long.
#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct SpanFlags {
    /// First moment: a day, a time of the policies' zone, or an instant [default: the begin of the snapshot]
    #[arg(long, value_name = "TIME")]
    from: Option<String>,
    /// How long, for example 7d or 36h [default: to the end of the snapshot]
    #[arg(long = "for", value_name = "SPAN", value_parser = moment::span)]
    length: Option<Span>,
}

impl SpanFlags {
    /// Unix seconds of begin and end.
    pub(crate) fn of(&self, snapshot: &Snapshot, zone: &TimeZone) -> Result<(i64, i64), Failure> {
        let begin = snapshot.header.at;
        let from = match &self.from {
            Some(text) => moment::instant(text, zone)
                .map_err(|why| Failure::unusable(format!("--from {text}: {why}")))?,
            None => begin,
        };
        let wrong = |why: String| Failure::unusable(format!("--for: {why}"));
        let until = match self.length {
            Some(length) => moment::after(from, length, zone).map_err(wrong)?.as_second(),
            None if snapshot.end > from.as_second() && snapshot.end > begin.as_second() => snapshot.end,
            None => {
                let week = moment::span(WEEK).map_err(wrong)?;
                moment::after(from, week, zone).map_err(wrong)?.as_second()
            }
        };
        Ok((from.as_second(), until))
    }
}

/// Reads a snapshot.
pub(crate) fn read(path: &Path) -> Result<Snapshot, Failure> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::unusable(format!("cannot read {}: {error}", path.display())))?;
    Snapshot::parse(&text).map_err(|why| Failure::unusable(format!("{}: {why}", path.display())))
}

/// The binding of a snapshot, as policies read it.
pub(crate) fn binding(snapshot: &Snapshot) -> BindingFacts {
    BindingFacts { name: snapshot.header.binding.clone(), cluster_id: snapshot.header.cluster_id.clone() }
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    from: Timestamp,
    until: Timestamp,
    zone: String,
    #[serde(flatten)]
    sums: Sums,
    /// What a reader has to know.
    notes: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let snapshot = read(&args.snapshot)?;
    let policies = args.modules.read(&args.file)?;
    let zone = zone_of(&policies);
    let (from, until) = args.span.of(&snapshot, &zone)?;
    let notes = notes(&snapshot, &policies, from, until);
    let engine = module::engine()?;
    let local = LocalHost::new(&engine, binding(&snapshot), zone.clone());
    local.set(policies);
    let begin = Timestamp::from_second(from).unwrap_or(Timestamp::MIN);
    local.all_run(begin)?;
    let length = u64::try_from(until - from).unwrap_or(0);
    let bar = Steps::long("simulating", length);
    let mut adder = Adder::default();
    for step in Walk::new(&local.host, &snapshot, from, until) {
        bar.at(u64::try_from(step.at - from).unwrap_or(0));
        adder.step(step);
    }
    bar.end();
    let report = Report {
        from: begin,
        until: Timestamp::from_second(until).unwrap_or(Timestamp::MAX),
        zone: zone.iana_name().unwrap_or("UTC").to_owned(),
        sums: adder.end(until),
        notes,
    };
    let resources = resources(&args.resource, &report.sums);
    if let Some(Some(file)) = &args.plot {
        let sums = &report.sums;
        svg::write(file, &sums.periods, &resources, sums.nodes, &zone)
            .map_err(|why| Failure::unusable(format!("cannot write {}: {why}", file.display())))?;
    }
    let draw = matches!(args.plot, Some(None));
    args.output.show(&report, |report| text(report, &resources, draw.then_some(&zone)))?;
    match report.sums.undecided {
        0 => Ok(()),
        open => Err(Failure::failed(format!("{open} decisions had no answer of an entry"))),
    }
}

fn notes(
    snapshot: &Snapshot,
    policies: &[kubeocean_engine::PolicySpec],
    from: i64,
    until: i64,
) -> Vec<String> {
    let mut notes = Vec::new();
    let begin = snapshot.header.at.as_second();
    if from < begin || until > snapshot.end {
        notes.push(format!(
            "the snapshot is of {} to {}; outside of that the nearest state holds",
            snapshot.header.at,
            Timestamp::from_second(snapshot.end).unwrap_or(Timestamp::MAX)
        ));
    }
    for policy in policies.iter().filter(|policy| policy.spec.cluster != snapshot.header.binding) {
        notes.push(format!(
            "policy {} is for binding {}, the snapshot was made for {}",
            policy.name,
            or_none(&policy.spec.cluster),
            or_none(&snapshot.header.binding)
        ));
    }
    if policies.iter().any(|policy| policy.spec.time_zone.is_none()) {
        notes.push("a policy names no timeZone: the Syncer's own would decide, here it is UTC".to_owned());
    }
    notes
}

fn or_none(name: &str) -> &str {
    if name.is_empty() { "none" } else { name }
}

/// Those asked for, or those that some entry limits, or cpu.
fn resources(asked: &[String], sums: &Sums) -> Vec<String> {
    if !asked.is_empty() {
        return asked.to_vec();
    }
    let limited: Vec<String> = sums.limited.iter().cloned().collect();
    if limited.is_empty() { vec!["cpu".to_owned()] } else { limited }
}

/// `draw`: the zone of a drawing, if one is wanted.
fn text(report: &Report, resources: &[String], draw: Option<&TimeZone>) -> String {
    let sums = &report.sums;
    let mut out = String::new();
    if let Some(zone) = draw {
        for resource in resources {
            out.push_str(&plot::draw(&sums.periods, resource, sums.nodes, zone));
        }
    }
    let leased: Vec<String> = resources
        .iter()
        .map(|resource| {
            let hours = sums.hours.get(resource).copied().unwrap_or(0.0);
            format!("{} {}-hours", plot::number(hours), plot::short(resource))
        })
        .collect();
    out.extend([format!(
        "leased {}   node changes {}   pods reclaimed {}   undecided {}\n",
        leased.join(", "),
        sums.node_changes,
        sums.pods_reclaimed,
        sums.undecided
    )]);
    for note in &report.notes {
        out.extend([format!("note: {note}\n")]);
    }
    out
}
