//! The build that uses a profile: compiled and linked, then linked again in the order of use.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::build::build;
use super::order::{Order, counts, order};
use super::profile::WITHOUT_VALUES;
use super::toolchain::Toolchain;

/// A profile that knows less of the functions that may run is of little use: a dependency more, and all names of the crates
/// above it are others.
const KNOWN: f64 = 0.9;

/// Builds the program by a profile.
pub(super) fn build_guided(toolchain: &Toolchain, folder: &Path, profile: &Path) -> Result<PathBuf> {
    let (map, ordering, target_dir) =
        (folder.join("link.map"), folder.join("order.txt"), folder.join("guided"));
    let flags = [
        format!("-Cprofile-use={}", profile.display()),
        WITHOUT_VALUES.to_owned(),
        format!("-Clink-arg=-Wl,-Map={}", map.display()),
        format!("-Clink-arg=-Wl,--symbol-ordering-file={}", ordering.display()),
        // Of functions with one name in several units, only some are left in the end.
        "-Clink-arg=-Wl,--no-warn-symbol-ordering".to_owned(),
    ];
    let write =
        |names: &str| fs::write(&ordering, names).with_context(|| format!("writing {}", ordering.display()));
    write("")?;
    let program = build(toolchain, &target_dir, &flags)?;
    let shown = show(toolchain, profile)?;
    let linked = fs::read_to_string(&map).with_context(|| format!("reading {}", map.display()))?;
    let Order { names, known } = order(&linked, &counts(&shown));
    ensure!(!names.is_empty(), "{} names no function: is the linker lld?", map.display());
    if known < KNOWN {
        eprintln!(
            "the profile knows {:.0} % of the functions, so it is of another version: record one, without --profile",
            known * 100.0
        );
    }
    write(&(names.join("\n") + "\n"))?;
    eprintln!("linking it again, {} functions in the order of use", names.len());
    forget(&program)?;
    build(toolchain, &target_dir, &flags)
}

/// What the profile says of each function.
fn show(toolchain: &Toolchain, profile: &Path) -> Result<String> {
    let output = Command::new(&toolchain.profdata)
        .args(["show", "--all-functions", "--counts"])
        .arg(profile)
        .output()
        .context("starting llvm-profdata")?;
    ensure!(output.status.success(), "llvm-profdata ended with {}", output.status);
    String::from_utf8(output.stdout).context("the answer of llvm-profdata")
}

/// Makes Cargo link again: it does not know that the linker reads a file.
fn forget(program: &Path) -> Result<()> {
    let folder = program.parent().context("a program in a folder")?.join("deps");
    for file in fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))? {
        let file = file?;
        if file.file_name().to_string_lossy().starts_with("kubeocean-") {
            fs::remove_file(file.path()).with_context(|| format!("removing {}", file.path().display()))?;
        }
    }
    Ok(())
}
