//! Runs the performance table on real clusters and keeps its figures.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
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
    /// Where the figures go as JSON [default: target/bench/NODES-nodes.json]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let json = match &args.json {
        Some(path) => path.clone(),
        None => {
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../target/bench/{}-nodes.json", args.nodes))
        }
    };
    if let Some(folder) = json.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let json = std::path::absolute(&json).with_context(|| format!("the place of {}", json.display()))?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // The whole workspace: with the features of one package its dependencies would be compiled once more.
    let status = Command::new(cargo)
        .args(["bench", "--locked", "--workspace", "--bench", "cluster"])
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
