//! No process and no directory outlives the test process, however it ends: return, panic, Ctrl-C, SIGTERM, SIGKILL.
//!
//! All children join one process group. A watchdog, a small shell in a group of its own, reads a pipe whose only write
//! end is held by this process; the kernel closes it when this process ends, and the watchdog then kills the group, runs
//! what was asked for by `at_exit` and removes the directory. So statics need no destructor, and no signal handler is installed in somebody else's program.
//! (The kernel's parent-death signal would not do: it follows the *thread* that started the child.)
//!
//! After a panic anywhere in the process the directory is kept, with all logs, and its path is printed.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, anyhow};

/// `$1` is the process group, `$2` the directory. The group dies by SIGKILL: it holds nothing worth saving. Members
/// that are dead but not yet collected by init still count for `kill -0`, hence the bound.
const WATCHDOG: &str = r#"
trap '' HUP INT TERM
cat >/dev/null
kill -KILL -"$1" 2>/dev/null
tries=0
while kill -0 -"$1" 2>/dev/null && [ "$tries" -lt 60 ]; do tries=$((tries + 1)); sleep 0.05; done
for script in "$2"/at-exit/*; do [ -f "$script" ] && sh "$script"; done
[ -e "$2/keep" ] || rm -rf "$2"
"#;

/// Names in the directory, which the watchdog knows, too.
const KEEP: &str = "keep";
const AT_EXIT: &str = "at-exit";

static PANICKED: AtomicBool = AtomicBool::new(false);

struct Reaper {
    group: i32,
    directory: PathBuf,
    /// Keeps the group's number taken while no other member lives.
    _anchor: Child,
    /// Its standard input is the pipe.
    _watchdog: Child,
}

fn reaper() -> Result<&'static Reaper> {
    static REAPER: OnceLock<Result<Reaper, String>> = OnceLock::new();
    REAPER
        .get_or_init(|| start().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow!("starting the watchdog of child processes: {error}"))
}

fn start() -> Result<Reaper> {
    let directory = std::env::temp_dir().join(format!("kubeocean-{}", unique()));
    std::fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let anchor = Command::new("sleep")
        .arg("2147483647")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting sleep")?;
    let group = i32::try_from(anchor.id()).context("process id out of range")?;
    let watchdog = Command::new("sh")
        .args(["-c", WATCHDOG, "kubeocean-watchdog"])
        .arg(group.to_string())
        .arg(&directory)
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("starting sh")?;
    keep_logs_of_a_panic(directory.clone());
    Ok(Reaper { group, directory, _anchor: anchor, _watchdog: watchdog })
}

fn keep_logs_of_a_panic(directory: PathBuf) {
    let previous = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        previous(info);
        if !PANICKED.swap(true, Ordering::SeqCst) {
            // In a panic hook there is nobody to report a failure to.
            let _ = std::fs::write(directory.join(KEEP), "");
            let _ = writeln!(std::io::stderr(), "control plane: logs are kept in {}", directory.display());
        }
    }));
}

/// Makes `command`'s process, and what it starts, end with this process.
pub fn adopt(command: &mut Command) -> Result<()> {
    command.process_group(reaper()?.group);
    Ok(())
}

/// Like [`adopt`], for tokio's commands.
pub(crate) fn adopt_async(command: &mut tokio::process::Command) -> Result<()> {
    command.process_group(reaper()?.group);
    Ok(())
}

/// A new directory below this process' own; `name` is only for the reader.
pub(crate) fn new_directory(name: &str) -> Result<PathBuf> {
    let directory = reaper()?.directory.join(format!("{name}-{}", unique()));
    std::fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    Ok(directory)
}

/// Removes a directory early, unless a panic made it evidence.
pub(crate) fn remove_directory(directory: &Path) {
    if !PANICKED.load(Ordering::SeqCst) && !std::thread::panicking() {
        // What is left is removed with the parent directory when the process ends.
        let _ = std::fs::remove_dir_all(directory);
    }
}

/// Whether the directory of a test process, possibly another's, is kept as evidence.
pub(crate) fn is_kept(directory: &Path) -> bool {
    directory.join(KEEP).exists()
}

/// Has the watchdog run a shell script when this process has ended, for what is neither a process nor in the directory.
pub(crate) fn at_exit(name: &str, script: &str) -> Result<()> {
    let folder = reaper()?.directory.join(AT_EXIT);
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    std::fs::write(folder.join(name), script).with_context(|| format!("writing the script {name}"))
}

/// Takes back [`at_exit`]: the work is done.
pub(crate) fn not_at_exit(name: &str) {
    if let Ok(reaper) = reaper() {
        // A script that stays finds nothing to do.
        let _ = std::fs::remove_file(reaper.directory.join(AT_EXIT).join(name));
    }
}

/// Unique on this machine: process id and a counter.
pub(crate) fn unique() -> String {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
