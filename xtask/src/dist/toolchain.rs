//! What of the Rust toolchain a guided build needs to know.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, anyhow, ensure};

/// The toolchain that builds this workspace.
pub(super) struct Toolchain {
    /// The target that programs of this machine are built for.
    pub(super) host: String,
    /// The program that merges counts to a profile.
    pub(super) profdata: PathBuf,
}

impl Toolchain {
    /// Asks the compiler. Errors: a part is missing; the text says how to get it.
    pub(super) fn find() -> Result<Self> {
        let version = ask(&["--version", "--verbose"])?;
        let host = version.lines().find_map(|line| line.strip_prefix("host: "));
        let host = host.ok_or_else(|| anyhow!("rustc does not tell its host"))?.to_owned();
        let libraries = PathBuf::from(ask(&["--print", "target-libdir"])?.trim());
        let profdata = libraries.with_file_name("bin").join("llvm-profdata");
        ensure!(
            profdata.is_file(),
            "there is no {}: run `rustup component add llvm-tools`",
            profdata.display()
        );
        Ok(Self { host, profdata })
    }
}

fn ask(arguments: &[&str]) -> Result<String> {
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let output = Command::new(rustc).args(arguments).output().context("starting rustc")?;
    ensure!(output.status.success(), "rustc {} ended with {}", arguments.join(" "), output.status);
    String::from_utf8(output.stdout).context("the answer of rustc")
}
