//! The program with counters, without sanitizers: those need a nightly compiler, the counters do not.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};

/// Counters in every edge, told to libFuzzer, together with what is compared with what.
const FLAGS: [&str; 5] = [
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

/// Builds the program, with the checks of a development build. The target is named, so that the flags are not for what
/// runs while building.
pub(super) fn build(target_dir: &Path) -> Result<PathBuf> {
    let host = host()?;
    let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--locked", "--package", "kubeocean-fuzz", "--features", "guided", "--bin", "fuzz"])
        .args(["--target", &host])
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_ENCODED_RUSTFLAGS", FLAGS.join("\u{1f}"))
        .status()
        .context("starting cargo build")?;
    ensure!(status.success(), "cargo build ended with {status}; it needs a compiler of C++ as well");
    Ok(target_dir.join(host).join("debug/fuzz"))
}

/// The target that programs of this machine are built for.
fn host() -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(["--version", "--verbose"]).output().context("starting rustc")?;
    let text = String::from_utf8(output.stdout).context("the answer of rustc")?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.ok_or_else(|| anyhow!("rustc does not tell its host"))?.to_owned())
}
