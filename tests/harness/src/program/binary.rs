//! Where the program `kubeocean` is. Cargo tells only the tests of its own package.
//!
//! `cargo test` for the whole workspace has built it when tests run. Asking Cargo again costs seconds, and minutes when
//! a test of one package was built with fewer features, so a binary that is newer than its sources is taken as it is.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow, bail};

use crate::reaper;

/// The program: `KUBEOCEAN_BIN` if set, else the one of this workspace in the profile of the running test, built if it
/// is missing or older than a source of it. Blocking.
///
/// # Errors
/// It does not compile.
pub fn kubeocean_binary() -> Result<PathBuf> {
    static BINARY: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    BINARY
        .get_or_init(|| find().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow!("obtaining the program kubeocean: {error}"))
}

fn find() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("KUBEOCEAN_BIN").map(PathBuf::from) {
        if !path.is_file() {
            bail!("KUBEOCEAN_BIN names {}, which is not a file", path.display());
        }
        return Ok(path);
    }
    let this = std::env::current_exe().context("finding the running program")?;
    let profile_dir = profile_dir(&this).context("this program does not lie in a Cargo target folder")?;
    let binary = profile_dir.join(format!("kubeocean{}", std::env::consts::EXE_SUFFIX));
    if is_fresh(&binary) {
        return Ok(binary);
    }
    let (target_dir, profile) = split(&profile_dir).context("a target folder without profile")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(build_arguments(profile))
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null());
    reaper::adopt(&mut command)?;
    let output = command.output().context("running cargo")?;
    if !output.status.success() {
        bail!("cargo build failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(binary)
}

/// What makes Cargo build the program with the same features of dependencies as the tests that are there already:
/// anything else compiles wasmtime a second time. For tests that is a build of a test that runs the program.
fn build_arguments(profile: &str) -> Vec<&str> {
    match profile {
        "dev" => vec!["test", "--no-run", "--quiet", "--workspace", "--test", "commands"],
        other => vec!["build", "--quiet", "--workspace", "--bin", "kubeocean", "--profile", other],
    }
}

/// Whether no source of the program, and no dependency version, is newer than it.
fn is_fresh(binary: &Path) -> bool {
    let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."));
    let Ok(built) = std::fs::metadata(binary).and_then(|metadata| metadata.modified()) else { return false };
    let sources = ["Cargo.lock", "Cargo.toml", "builtin-policies", "host", "policy-sdk", "proxier"];
    sources.iter().all(|source| is_older(&root.join(source), built))
}

/// Whether a file, or everything in a folder that is compiled into a program, is older than `built`. What cannot be read
/// counts as newer.
fn is_older(path: &Path, built: SystemTime) -> bool {
    // Tests are no part of the program: when they change, Cargo does not build it again.
    if path.file_name().is_some_and(|name| ["tests", "tests.rs", "benches"].iter().any(|test| name == *test))
    {
        return true;
    }
    if path.is_dir() {
        let Ok(entries) = std::fs::read_dir(path) else { return false };
        return entries.into_iter().all(|entry| entry.is_ok_and(|entry| is_older(&entry.path(), built)));
    }
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).is_ok_and(|changed| changed <= built)
}

/// `target/debug` of `target/debug/deps/test-1234`, `target/debug/examples/x` and `target/debug/x`.
fn profile_dir(program: &Path) -> Option<PathBuf> {
    let folder = program.parent()?;
    let nested = folder.file_name().is_some_and(|name| name == "deps" || name == "examples");
    Some(if nested { folder.parent()? } else { folder }.to_owned())
}

/// Target folder and profile name; the folder `debug` belongs to the profile `dev`.
fn split(profile_dir: &Path) -> Option<(&Path, &str)> {
    let profile = match profile_dir.file_name()?.to_str()? {
        "debug" => "dev",
        other => other,
    };
    Some((profile_dir.parent()?, profile))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_missing_or_older_than_a_source_is_built() {
        assert!(!is_fresh(&std::env::current_exe().unwrap().with_file_name("no-such-binary")));
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("src/main.rs");
        std::fs::create_dir_all(source.parent().unwrap()).unwrap();
        std::fs::write(&source, "").unwrap();
        let written = std::fs::metadata(&source).unwrap().modified().unwrap();
        assert!(is_older(folder.path(), written));
        assert!(!is_older(folder.path(), written - std::time::Duration::from_secs(1)));
        std::fs::rename(&source, folder.path().join("src/tests.rs")).unwrap();
        assert!(is_older(folder.path(), written - std::time::Duration::from_secs(1)));
    }

    #[test]
    fn tests_and_programs_lie_in_the_same_profile() {
        for program in ["/t/debug/deps/x-1", "/t/debug/examples/x", "/t/debug/x"] {
            let folder = profile_dir(Path::new(program)).unwrap();
            assert_eq!(split(&folder), Some((Path::new("/t"), "dev")), "{program}");
        }
        assert_eq!(split(Path::new("/t/release")), Some((Path::new("/t"), "release")));
    }
}
