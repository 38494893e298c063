//! The compiler that builds this workspace: what it says of itself, and builds with flags of their own.

use std::path::Path;
use std::process::{Command, ExitStatus};

use anyhow::{Context, Result, anyhow, ensure};

/// The target that programs of this machine are built for.
pub(crate) fn host() -> Result<String> {
    let version = ask(&["--version", "--verbose"])?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.ok_or_else(|| anyhow!("rustc does not tell its host"))?.to_owned())
}

/// What the compiler answers.
pub(crate) fn ask(arguments: &[&str]) -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(arguments).output().context("starting rustc")?;
    ensure!(output.status.success(), "rustc {} ended with {}", arguments.join(" "), output.status);
    String::from_utf8(output.stdout).context("the answer of rustc")
}

/// `cargo build` with `flags` for the compiler, into a target folder of its own.
///
/// The target is named, so that the flags are not for what runs while building: a build script with counters would
/// leave a profile too.
pub(crate) fn build(
    arguments: &[&str],
    target: &str,
    target_dir: &Path,
    flags: &[impl AsRef<str>],
) -> Result<ExitStatus> {
    let flags: Vec<&str> = flags.iter().map(AsRef::as_ref).collect();
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--locked"])
        .args(arguments)
        .args(["--target", target])
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .status()
        .context("starting cargo build")
}
