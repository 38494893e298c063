//! The performance table (design, section 7) on real control planes: `cargo xtask bench`.
//!
//! Starts one computing and one worker cluster with fake nodes, registers the worker, attaches a policy and measures the
//! Syncer from outside: time by watches, CPU and memory from `/proc`, requests from the audit logs of both clusters.
//! Progress goes to standard error, the table to standard output. Everything it starts ends with it.
//!
//! `KUBEOCEAN_BENCH_NODES`, `KUBEOCEAN_BENCH_FOREIGN`, `KUBEOCEAN_BENCH_PODS` and `KUBEOCEAN_BENCH_IDLE_SECONDS` make
//! another run, `KUBEOCEAN_BENCH_JSON` names a file for the figures, `KUBEOCEAN_BENCH_ALLOW` how many times the budget a
//! figure may be before the run fails, `KUBEOCEAN_BENCH_SYNCER_FLAGS` flags for the Syncer, `KUBEOCEAN_BIN` measures another program than this workspace's release build.

mod foreign;
mod goal;
mod idle;
mod pods;
mod restart;
mod run;
mod running;

use anyhow::{Context, Result, anyhow};
use kubeocean_bench::{Scale, check_allowed, table};
use kubeocean_harness::program::kubeocean_binary;
use kubeocean_harness::{BindingSpec, ClusterSpec, Fleet, Kwoks, NodeShape, Site};
use serde_json::json;

use run::Run;

/// Binding, policy and node set.
const NAME: &str = "bench";
const NODE_CPU: &str = "8";
/// The label of the node whose kubelet serves no other node.
const APART: &str = "bench.test/kubelet-apart";

#[tokio::main]
async fn main() -> Result<()> {
    if !asked_for() {
        eprintln!("the cluster bench was not asked for: cargo xtask bench");
        return Ok(());
    }
    let scale = Scale::from_env().map_err(|error| anyhow!(error))?;
    eprintln!("building the program: cargo build --release --workspace --bin kubeocean");
    let binary = tokio::task::spawn_blocking(kubeocean_binary).await.context("building kubeocean")??;
    let Scale { nodes, foreign, pods, .. } = scale;
    eprintln!("measuring {} with {nodes} nodes, {foreign} pods of others, {pods} pods", binary.display());

    eprintln!("starting a computing and a worker cluster");
    let worker = ClusterSpec { kwok: Kwoks::OneMoreApart, ..ClusterSpec::worker("worker") };
    let fleet = Fleet::start_with(ClusterSpec::computing(), vec![worker]).await?;
    let site = Site::install(&fleet).await?;
    eprintln!("creating {} worker nodes", scale.nodes);
    let shape = NodeShape::new(NODE_CPU, "32Gi");
    fleet.worker().create_nodes(NAME, usize::try_from(scale.nodes_together())?, &shape).await?;
    fleet.worker().create_node_apart(NAME, &shape.label(APART, "true").pods(1000)).await?;
    let binding = site.bind(BindingSpec::new(NAME)).await?;

    let mut run = Run::start(&binding, scale).await?;
    let outcome = run.measure().await;
    if outcome.is_err() {
        eprintln!("--- the end of the Syncer's log:\n{}", run.syncer_log_tail());
    }
    let stopped = run.stop().await;
    let figures = outcome?;
    println!(
        "{nodes} nodes, {foreign} pods of others, {pods} pods, one computing and one worker cluster on this machine"
    );
    if !scale.is_full() {
        println!("The budgets are those of 500 nodes and 3,000 pods.");
    }
    println!("{}", table(&figures));
    if let Some(path) = std::env::var_os("KUBEOCEAN_BENCH_JSON") {
        let text = serde_json::to_vec_pretty(&json!({
            "nodes": nodes, "foreignPods": foreign, "pods": pods, "figures": figures,
        }))?;
        std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    stopped?;
    let allowed = std::env::var("KUBEOCEAN_BENCH_ALLOW").ok();
    check_allowed(&figures, allowed.as_deref()).map_err(anyhow::Error::msg)
}

/// `cargo bench` calls every bench with `--bench` and passes a filter on; `cargo test --all-targets` does not.
fn asked_for() -> bool {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let mut filters = arguments.iter().filter(|argument| !argument.starts_with('-')).peekable();
    let selected = filters.peek().is_none() || filters.any(|filter| "cluster".contains(filter.as_str()));
    arguments.iter().any(|argument| argument == "--bench") && selected
}
