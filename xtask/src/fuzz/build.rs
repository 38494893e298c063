//! The program with counters, without sanitizers: those need a nightly compiler, the counters do not.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::compiler;

/// Counters in every edge, told to libFuzzer, together with what is compared with what.
const FLAGS: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Builds the program, with the checks of a development build.
pub(super) fn build(target_dir: &Path) -> Result<PathBuf> {
    let host = compiler::host()?;
    let what = ["--package", "kubeocean-fuzz", "--features", "guided", "--bin", "fuzz"];
    let status = compiler::build(&what, &host, target_dir, &FLAGS)?;
    ensure!(status.success(), "cargo build ended with {status}; it needs a compiler of C++ as well");
    Ok(target_dir.join(host).join("debug/fuzz"))
}
