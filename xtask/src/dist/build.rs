//! One build of the program with flags of its own, in a target folder of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::toolchain::Toolchain;

/// The program as a release with `flags` for the compiler.
///
/// The target is named, so that the flags are not for what runs while building: a build script with counters would
/// leave a profile too.
pub(super) fn build(toolchain: &Toolchain, target_dir: &Path, flags: &[String]) -> Result<PathBuf> {
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--locked", "--release", "--workspace", "--bin", "kubeocean"])
        .args(["--target", &toolchain.host])
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .status()
        .context("starting cargo build")?;
    if !status.success() {
        bail!("cargo build ended with {status}");
    }
    Ok(target_dir.join(&toolchain.host).join("release/kubeocean"))
}
