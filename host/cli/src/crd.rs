//! `kubeocean crd`: the CustomResourceDefinitions, for those who install without the charts.

use anyhow::Context;
use clap::{Args as ClapArgs, ValueEnum};
use kubeocean_api::crd::{cluster_binding, resource_leasing_policy, to_yaml};

/// Which CRDs to print.
#[derive(Debug, ClapArgs)]
pub(crate) struct Args {
    /// Only this kind; by default both, as one YAML stream
    kind: Option<Kind>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Kind {
    Clusterbinding,
    Resourceleasingpolicy,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    use std::io::Write;
    let documents = match args.kind {
        Some(Kind::Clusterbinding) => vec![cluster_binding()],
        Some(Kind::Resourceleasingpolicy) => vec![resource_leasing_policy()],
        None => vec![cluster_binding(), resource_leasing_policy()],
    };
    let text = documents.iter().map(to_yaml).collect::<Vec<_>>().join("---\n");
    std::io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")
}
