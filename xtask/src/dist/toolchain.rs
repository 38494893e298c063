//! What of the Rust toolchain a guided build needs to know.

use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::compiler;

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
        let host = compiler::host()?;
        let libraries = PathBuf::from(compiler::ask(&["--print", "target-libdir"])?.trim());
        let profdata = libraries.with_file_name("bin").join("llvm-profdata");
        ensure!(
            profdata.is_file(),
            "there is no {}: run `rustup component add llvm-tools`",
            profdata.display()
        );
        Ok(Self { host, profdata })
    }
}
