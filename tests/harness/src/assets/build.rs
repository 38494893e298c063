//! Builds missing programs with Go, once for all processes of this user.
//!
//! One lock file per pin: the process that gets it builds, the others say that they wait and then find the result.

use std::ffi::OsStr;
use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::{Binary, Pin, find};
use crate::reaper;

/// Flags that decide the result; part of the cache key. Static and without machine paths, so that one cache serves all
/// checkouts.
pub(super) const FLAGS: [&str; 3] = ["-trimpath", "-buildvcs=false", "-mod=readonly"];

const GO_IS_MISSING: &str = "Go is needed once, to build the control plane programs for the tests. Install Go 1.26 or \
     newer (https://go.dev/dl), or set KUBEBUILDER_ASSETS to a folder that holds etcd, kube-apiserver, \
     kube-controller-manager, kube-scheduler, kubectl and helm, and KWOK_BIN to a kwok binary";

/// How often a running build reports that it is alive.
const HEARTBEAT: Duration = Duration::from_secs(20);

pub(super) fn build_all(missing: &[Binary]) -> Result<()> {
    if missing.is_empty() {
        return Ok(());
    }
    require_go()?;
    let names: Vec<_> = missing.iter().map(|binary| binary.file_name()).collect();
    say(&format!("building {} from pinned sources, once for this machine", names.join(", ")));
    for (index, &binary) in missing.iter().enumerate() {
        let _lock = lock(binary.pin())?;
        // Somebody else may have built it while this process waited for the lock.
        if find(binary)?.is_none() {
            build(binary, &format!("{} of {}", index + 1, missing.len()))?;
        }
    }
    Ok(())
}

pub(super) fn require_go() -> Result<()> {
    let found = Command::new("go").arg("version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    match found {
        Ok(status) if status.success() => Ok(()),
        _ => bail!(GO_IS_MISSING),
    }
}

/// Takes the lock of a pin's cache folder and makes the folder. The lock ends with the returned file.
pub(super) fn lock(pin: Pin) -> Result<File> {
    let folder = pin.cache_dir()?;
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let path = folder.join(".lock");
    let file = File::create(&path).with_context(|| format!("creating {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            say(&format!("waiting for another process that builds {}", pin.folder()));
            file.lock().with_context(|| format!("locking {}", path.display()))?;
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("locking {}", path.display()));
        }
    }
    Ok(file)
}

fn build(binary: Binary, position: &str) -> Result<()> {
    let pin = binary.pin();
    let folder = pin.cache_dir()?;
    let name = binary.file_name();
    let unfinished = folder.join(format!(".{name}.unfinished"));
    let log_path = folder.join(format!("{name}.build.log"));
    let log = File::create(&log_path).with_context(|| format!("creating {}", log_path.display()))?;
    say(&format!("{name} ({position}) {}", pin.version()?));
    let started = Instant::now();
    let mut child = go(pin)?
        .arg("build")
        .args(FLAGS)
        .args([OsStr::new("-ldflags"), OsStr::new(&pin.ldflags()?), OsStr::new("-o"), unfinished.as_os_str()])
        .arg(binary.package())
        .stdout(log.try_clone().context("duplicating the build log")?)
        .stderr(log)
        .spawn()
        .context("starting go")?;
    let mut next_line = HEARTBEAT;
    let status = loop {
        if let Some(status) = child.try_wait().context("waiting for go")? {
            break status;
        }
        if started.elapsed() >= next_line {
            say(&format!("{name} ({position}) still building, {} s", next_line.as_secs()));
            next_line += HEARTBEAT;
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    if !status.success() {
        let log = std::fs::read_to_string(&log_path).unwrap_or_default();
        bail!("go build of {name} failed ({status}), see {}:\n{}", log_path.display(), tail(&log, 20));
    }
    std::fs::rename(&unfinished, folder.join(name)).with_context(|| format!("moving {name} into place"))?;
    say(&format!("{name} ({position}) ready after {} s", started.elapsed().as_secs()));
    Ok(())
}

/// A `go` command in the pin's folder that ends with this process.
pub(super) fn go(pin: Pin) -> Result<Command> {
    let mut command = Command::new("go");
    command
        .current_dir(pin.source())
        .env("CGO_ENABLED", "0")
        .env("GOWORK", "off")
        .env_remove("GOFLAGS")
        .stdin(Stdio::null());
    reaper::adopt(&mut command)?;
    Ok(command)
}

/// Writes a line past the test runner's capture: someone who waits minutes must see why.
fn say(line: &str) {
    // A closed standard error must not fail the build.
    let _ = writeln!(std::io::stderr(), "control plane: {line}");
}

pub(super) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<_> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

/// Replaces `target` by `source` in one step, so that readers see the old or the new file.
pub(super) fn copy_atomically(source: &Path, target: &Path) -> Result<()> {
    let unfinished = target.with_extension("unfinished");
    // Read and write, not copy: files of the module cache are read-only, and the copy must not be.
    let content = std::fs::read(source).with_context(|| format!("reading {}", source.display()))?;
    std::fs::write(&unfinished, content).with_context(|| format!("writing {}", unfinished.display()))?;
    std::fs::rename(&unfinished, target).with_context(|| format!("moving {} into place", target.display()))
}
