//! What of the program runs how often, recorded.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use sha2::{Digest, Sha256};

use super::build::build;
use super::toolchain::Toolchain;
use crate::bench::{self, Size};

/// Large enough that everything a busy Syncer does is done often, small enough for two minutes. It rests for more than
/// one: some work is done once a minute.
const TRAINING: Size = Size { nodes: 100, foreign_pods: 500, pods: 500, idle: 70 };

/// Runs a Syncer with counters through the performance bench. The profile's name comes from its content: Cargo builds
/// again when flags change, not when a file does that they name.
pub(super) fn record(toolchain: &Toolchain, folder: &Path) -> Result<PathBuf> {
    eprintln!("building the program with counters");
    let counts = folder.join("counts");
    let program = build(toolchain, &folder.join("counting"), &counting(&folder.join("others")))?;
    match fs::remove_dir_all(&counts) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("removing {}", counts.display()));
        }
        _ => {}
    }
    eprintln!("running it on real clusters");
    let status = bench::command("cluster", TRAINING)
        .args(["--profile", "dev"])
        .env(bench::PROGRAM, program)
        // A file for each process, whose counters are in the file all along: the bench kills a Syncer.
        .env("LLVM_PROFILE_FILE", counts.join("%p%c.profraw"))
        .status()
        .context("starting cargo bench")?;
    ensure!(status.success(), "the bench ended with {status}");
    let merged = folder.join("merged.profdata");
    merge(toolchain, &counts, &merged)?;
    let content = fs::read(&merged).with_context(|| format!("reading {}", merged.display()))?;
    let digest = hex::encode(Sha256::digest(&content));
    let profile = folder.join(format!("{}.profdata", digest.get(..16).unwrap_or(&digest)));
    fs::rename(&merged, &profile).with_context(|| format!("writing {}", profile.display()))?;
    Ok(profile)
}

/// Counters that are in a file all along cannot go with a record of values.
pub(super) const WITHOUT_VALUES: &str = "-Cllvm-args=-disable-vp";

/// Flags of a program that counts. Processes that are started with an empty environment, which are compilers of policy
/// modules, write to a folder that nobody reads.
fn counting(others: &Path) -> Vec<String> {
    vec![
        format!("-Cprofile-generate={}", others.display()),
        "-Cllvm-args=-runtime-counter-relocation".to_owned(),
        WITHOUT_VALUES.to_owned(),
    ]
}

fn merge(toolchain: &Toolchain, counts: &Path, merged: &Path) -> Result<()> {
    let files = fs::read_dir(counts).with_context(|| format!("no counts in {}", counts.display()))?;
    let files: Vec<_> = files.map(|file| Ok(file?.path())).collect::<Result<_>>()?;
    let status = Command::new(&toolchain.profdata)
        .args(["merge", "--failure-mode=any", "-o"])
        .arg(merged)
        .args(&files)
        .status()
        .context("starting llvm-profdata")?;
    if !status.success() {
        bail!("llvm-profdata ended with {status}");
    }
    Ok(())
}
