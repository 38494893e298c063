//! One build of the program with flags of its own, in a target folder of its own.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::toolchain::Toolchain;
use crate::compiler;

/// The program as a release with `flags` for the compiler.
pub(super) fn build(toolchain: &Toolchain, target_dir: &Path, flags: &[String]) -> Result<PathBuf> {
    let what = ["--release", "--workspace", "--bin", "kubeocean"];
    let status = compiler::build(&what, &toolchain.host, target_dir, flags)?;
    if !status.success() {
        bail!("cargo build ended with {status}");
    }
    Ok(target_dir.join(&toolchain.host).join("release/kubeocean"))
}
