//! `cargo xtask dist`: the program, built around what a Syncer does all day.
//!
//! ```text
//! build with counters -> a run of the performance bench on real clusters -> profile -> build again
//! ```
//!
//! In: this workspace, and `llvm-profdata` of its toolchain (`rustup component add llvm-tools`). Out: one program. What
//! ran is made fast and lies together; what did not is made small and lies apart, so that few pages of the program's
//! file are needed by a process that runs for weeks. Linux only: the layout is the linker's.

mod build;
mod guided;
mod order;
mod profile;
mod toolchain;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use guided::build_guided;
use toolchain::Toolchain;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the program goes [default: target/dist/kubeocean]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// A profile that an earlier run left, in place of a new one
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let toolchain = Toolchain::find()?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/dist");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let folder = folder.canonicalize().with_context(|| format!("no folder {}", folder.display()))?;
    let profile = match &args.profile {
        Some(given) => given.canonicalize().with_context(|| format!("no profile {}", given.display()))?,
        None => profile::record(&toolchain, &folder)?,
    };
    eprintln!("building the program by {}", profile.display());
    let built = build_guided(&toolchain, &folder, &profile)?;
    let out = args.out.clone().unwrap_or_else(|| folder.join("kubeocean"));
    let bytes = fs::copy(&built, &out).with_context(|| format!("writing {}", out.display()))?;
    println!("{} ({:.1} MiB)", out.display(), mebibytes(bytes));
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "a program has far less than 2^52 bytes")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
