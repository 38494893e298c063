//! Runs a table of figures, of real clusters or of the policy engine, and keeps it.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Which table
    #[arg(value_enum, default_value = "cluster")]
    table: Table,
    /// Fail where a figure is more than so many times its budget
    #[arg(long, value_name = "TIMES")]
    allow: Option<f64>,
    #[command(flatten)]
    size: Size,
    /// Measure this program in `cluster`, unpacked as from an image, not the release build of this workspace
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Where the figures go as JSON [default: target/bench/NODES-nodes.json, target/bench/policy.json]
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// How large a run of `cluster` is.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Size {
    /// Worker nodes, and so vnodes
    #[arg(long, default_value_t = 500)]
    pub(crate) nodes: u32,
    /// Pods of other tenants in the worker cluster
    #[arg(long, default_value_t = 3000)]
    pub(crate) foreign_pods: u32,
    /// Pods of the computing cluster; 0 measures nodes only
    #[arg(long, default_value_t = 3000)]
    pub(crate) pods: u32,
    /// How long the idle Syncer is watched
    #[arg(long, default_value_t = 150, value_name = "SECONDS")]
    pub(crate) idle: u32,
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
        Table::Cluster => format!("{}-nodes", args.size.nodes),
        Table::Policy => bench.to_owned(),
    };
    let default = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("../target/bench/{name}.json"));
    let json = args.json.clone().unwrap_or(default);
    if let Some(folder) = json.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    }
    let json = std::path::absolute(&json).with_context(|| format!("the place of {}", json.display()))?;
    let mut command = command(bench, args.size);
    command.env("KUBEOCEAN_BENCH_JSON", &json);
    if let Some(times) = args.allow {
        command.env("KUBEOCEAN_BENCH_ALLOW", times.to_string());
    }
    if let Some(binary) = &args.binary {
        let unpacked = json.with_file_name("kubeocean");
        unpack(binary, &unpacked).with_context(|| format!("copying {}", binary.display()))?;
        command.env(PROGRAM, unpacked);
    }
    let status = command.status().context("starting cargo bench")?;
    if !status.success() {
        bail!("the bench ended with {status}");
    }
    eprintln!("the figures are in {}", json.display());
    Ok(())
}

/// Bytes that a container runtime writes at a time when it unpacks a layer.
const PIECE: usize = 32 << 10;

/// Copies a program as a node has it from its image. The kernel maps as much of a file at once as was written or read at
/// once, so the memory of a program that a linker or `cp` wrote in large pieces says little of one on a node.
fn unpack(program: &Path, to: &Path) -> Result<()> {
    let mut from = File::open(program)?;
    // A program that runs cannot be written to.
    if to.exists() {
        fs::remove_file(to)?;
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(to)?;
    let mut piece = vec![0; PIECE];
    loop {
        let read = from.read(&mut piece)?;
        if read == 0 {
            return Ok(());
        }
        file.write_all(&piece[..read])?;
    }
}

/// The variable that names the program to run in place of this workspace's own build.
pub(crate) const PROGRAM: &str = "KUBEOCEAN_BIN";

/// A run of a bench of the workspace, to be started.
pub(crate) fn command(bench: &str, size: Size) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    // The whole workspace: with the features of one package its dependencies would be compiled once more.
    command
        .args(["bench", "--locked", "--workspace", "--bench", bench])
        .env("KUBEOCEAN_BENCH_NODES", size.nodes.to_string())
        .env("KUBEOCEAN_BENCH_FOREIGN", size.foreign_pods.to_string())
        .env("KUBEOCEAN_BENCH_PODS", size.pods.to_string())
        .env("KUBEOCEAN_BENCH_IDLE_SECONDS", size.idle.to_string());
    command
}
