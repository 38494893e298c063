//! Where the program `kubeocean` is. Cargo tells only the tests of its own package.
//!
//! `cargo test` for the whole workspace has built it when tests run. Asking Cargo again costs seconds, and minutes when
//! a test of one package was built with fewer features, so a binary that is newer than its sources is taken as it is.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

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

/// Whether no file that Cargo compiled into the binary, and no dependency version, is newer. Cargo lists the files beside
/// it, in the form of a Makefile rule.
fn is_fresh(binary: &Path) -> bool {
    let modified = |path: &Path| std::fs::metadata(path).and_then(|metadata| metadata.modified());
    let (Ok(built), Ok(rule)) = (modified(binary), std::fs::read_to_string(binary.with_extension("d")))
    else {
        return false;
    };
    let lock = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock")).to_owned();
    let mut inputs = prerequisites(&rule).into_iter().chain([lock]);
    // A file that is gone is a change, too.
    inputs.all(|input| modified(&input).is_ok_and(|changed| changed <= built))
}

/// The files after the colon; a space inside a name is written with a backslash.
fn prerequisites(rule: &str) -> Vec<PathBuf> {
    let Some((_, files)) = rule.split_once(": ") else { return Vec::new() };
    let mut names = vec![String::new()];
    let mut characters = files.trim_end().chars();
    while let Some(character) = characters.next() {
        match (character, names.last_mut()) {
            ('\\', Some(name)) => name.extend(characters.next()),
            (' ', _) => names.push(String::new()),
            (_, Some(name)) => name.push(character),
            (_, None) => {}
        }
    }
    names.into_iter().filter(|name| !name.is_empty()).map(PathBuf::from).collect()
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
    fn the_sources_of_a_binary_are_read_from_its_rule() {
        let rule = "/t/debug/x: /s/main.rs /s/with\\ space.rs\n";
        assert_eq!(prerequisites(rule), [Path::new("/s/main.rs"), Path::new("/s/with space.rs")]);
    }

    #[test]
    fn a_binary_without_a_list_of_sources_is_not_trusted() {
        assert!(!is_fresh(&std::env::current_exe().unwrap().with_file_name("no-such-binary")));
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
