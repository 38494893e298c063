//! Where the program `kubeocean` is. Cargo tells only the tests of its own package.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, bail};

use crate::reaper;

/// The program: `KUBEOCEAN_BIN` if set, else the one of this workspace in the profile of the running test, built or
/// brought up to date once per process. Blocking.
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
    let (target_dir, profile) = split(&profile_dir).context("a target folder without profile")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--package", "kubeocean", "--bin", "kubeocean", "--profile", profile])
        .arg("--target-dir")
        .arg(target_dir)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::null());
    reaper::adopt(&mut command)?;
    let output = command.output().context("running cargo")?;
    if !output.status.success() {
        bail!("cargo build failed:\n{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(profile_dir.join(format!("kubeocean{}", std::env::consts::EXE_SUFFIX)))
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
    fn tests_and_programs_lie_in_the_same_profile() {
        for program in ["/t/debug/deps/x-1", "/t/debug/examples/x", "/t/debug/x"] {
            let folder = profile_dir(Path::new(program)).unwrap();
            assert_eq!(split(&folder), Some((Path::new("/t"), "dev")), "{program}");
        }
        assert_eq!(split(Path::new("/t/release")), Some((Path::new("/t"), "release")));
    }
}
