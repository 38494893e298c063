//! `kubeocean policy snapshot`: what policies decide from, of every node of a worker cluster, once or over days.
//!
//! The same index that the Syncer decides from sums up the requests; nothing is written to a cluster.

pub(crate) mod file;
mod record;

use std::path::PathBuf;

use clap::Args as ClapArgs;
use jiff::{Span, Timestamp, tz::TimeZone};
use serde::Serialize;

use self::record::Recording;
use super::{
    gather::{self, BindingFlags},
    moment,
};
use crate::{
    cluster::{self},
    failure::Failure,
    output::{Format, pairs},
};

/// What to record, and where to.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Examples:
  kubeocean policy snapshot -o now.snap
  kubeocean policy snapshot -o week.snap --for 7d --computing-context main
  kubeocean policy snapshot -o share.snap --for 1d --hash-names

The file holds labels, annotations, taints, amounts, requests and measured usage of every node, in JSON lines; pods only as
sums. With --for every change is added until the time is over or Ctrl-C is pressed, and what was written stays. Measured usage
comes from metrics.k8s.io, if the cluster serves it. It needs the rights to list and watch nodes and pods.")]
pub(crate) struct Args {
    /// File to write
    #[arg(short, long = "out", value_name = "FILE")]
    out: PathBuf,
    /// How long to record changes, for example 7d or 36h [default: one moment]
    #[arg(long = "for", value_name = "SPAN", value_parser = moment::span)]
    span: Option<Span>,
    /// Replace the names of nodes by random ones, the same throughout the file
    #[arg(long)]
    hash_names: bool,
    #[command(flatten)]
    binding: BindingFlags,
    /// Form of what is printed at the end
    #[arg(long, default_value = "text")]
    output: Format,
}

/// What was recorded.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    file: PathBuf,
    binding: String,
    nodes: usize,
    changes: usize,
    from: Timestamp,
    until: Timestamp,
    /// Nodes with measured usage.
    measured: usize,
}

pub(crate) fn run(args: &Args) -> Result<(), Failure> {
    let report = cluster::block_on(snapshot(args))?;
    args.output.show(&report, text)
}

async fn snapshot(args: &Args) -> Result<Report, Failure> {
    let clusters = args.binding.connect().await?;
    let policies = gather::policies(&clusters.worker).await?.unwrap_or_default();
    let named = gather::bindings(&policies, args.binding.binding.as_deref());
    let binding = match named.as_slice() {
        [] => String::new(),
        [one] => one.clone(),
        several => {
            let all = several.join(", ");
            return Err(Failure::unusable(format!(
                "policies name several bindings, whose pods count as leased? Choose one with --binding: {all}"
            )));
        }
    };
    let computing = clusters.computing_of(&binding).await?;
    let now = Timestamp::now();
    let end = args.span.map(|span| moment::after(now, span, &TimeZone::system())).transpose();
    let end = end.map_err(|why| Failure::unusable(format!("--for: {why}")))?;
    let recording = Recording::start(args, &clusters, computing, &binding, &policies).await?;
    recording.run(end).await
}

fn text(report: &Report) -> String {
    let usage = match report.measured {
        0 => "not measured: the cluster serves no metrics.k8s.io, or did not yet".to_owned(),
        nodes => format!("of {nodes} nodes"),
    };
    pairs(&[
        ("file", report.file.display().to_string()),
        (
            "binding",
            if report.binding.is_empty() {
                "none; all pods count as others'".to_owned()
            } else {
                report.binding.clone()
            },
        ),
        ("nodes", report.nodes.to_string()),
        ("changes", report.changes.to_string()),
        ("from", report.from.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        ("until", report.until.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
        ("usage", usage),
    ])
}
