//! Runs a table of figures, of real clusters or of the policy engine, and keeps it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which table
    #[arg(value_enum, default_value = "cluster")]
    table: Table,
    /// Fail where a figure of `policy` is more than so many times its target
    #[arg(long, value_name = "TIMES")]
    allow: Option<f64>,
    /// Worker nodes, and so vnodes
    #[arg(long, default_value_t = 500)]
    nodes: u32,
    /// Pods of other tenants in the worker cluster
    #[arg(long, default_value_t = 3000)]
    foreign_pods: u32,
    /// Pods of the computing cluster; 0 measures nodes only
    #[arg(long, default_value_t = 3000)]
    pods: u32,
    /// How long the idle Syncer is watched
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    idle: u32,
    /// Where the figures go as JSON [default: target/bench/NODES-nodes.json, target/bench/policy.json]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Table {
    /// A Syncer on real clusters, against the performance budget of the design
    Cluster,
    /// Modules and hosts of the policy engine, against section 16 of its specification
    Policy,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let bench = match args.table {
        Table::Cluster => "cluster",
        Table::Policy => "policy",
    };
    let name = match args.table {
        Table::Cluster => format!("{}-nodes", args.nodes),
        Table::Policy => bench.to_owned(),
    };
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../target/bench/{name}.json"));
    let json = args.json.clone().unwrap_or(default);
    if let Some(folder) = json.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let json = std::path::absolute(&json).with_context(|| format!("the place of {}", json.display()))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // The whole workspace: with the features of one package its dependencies would be compiled once more.
    let allow = args.allow.map(|times| ("KUBEOCEAN_BENCH_ALLOW", times.to_string()));
    let status = Command::new(cargo)
        .args(["bench", "--locked", "--workspace", "--bench", bench])
        .envs(allow)
        .env("KUBEOCEAN_BENCH_NODES", args.nodes.to_string())
        .env("KUBEOCEAN_BENCH_FOREIGN", args.foreign_pods.to_string())
        .env("KUBEOCEAN_BENCH_PODS", args.pods.to_string())
        .env("KUBEOCEAN_BENCH_IDLE_SECONDS", args.idle.to_string())
        .env("KUBEOCEAN_BENCH_JSON", &json)
        .status()
        .context("starting cargo bench")?;
    if !status.success() {
        bail!("the bench ended with {status}");
    }
    eprintln!("the figures are in {}", json.display());
    Ok(())
}
