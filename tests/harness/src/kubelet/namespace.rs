//! The namespaces of one real node: processes, mounts, network and host name of its own, like a small machine.
//!
//! Its first process is a shell that reads a pipe whose only write end is held here. When this value is dropped, or this
//! process ends in any way, the kernel closes the pipe, the shell ends, the kernel kills every process of the process
//! namespace with it, and mounts and links vanish with the last of them. So there is nothing to unmount, and containerd's
//! shims and containers, which leave every process group, cannot stay.
//!
//! Inside, `/var/lib`, `/var/log` and `/run` are folders of the node's directory. Programs keep their usual paths, and
//! what they write there is gone with the directory. `/sys` stays as it is: the cgroup mounts are below it.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};

use super::requirements::search_path;
use super::run::run;
use crate::reaper;
use crate::wait::try_wait_until;

const INIT: &str = include_str!("init.sh");
const UP_DEADLINE: Duration = Duration::from_secs(30);

/// Living namespaces.
#[derive(Debug)]
pub(super) struct Namespace {
    /// `unshare`: a member of all but the process namespace, and the parent of that one's first process. It ends when
    /// that has ended, which is after all the others.
    unshare: Child,
    pipe: Option<ChildStdin>,
}

impl Namespace {
    /// Makes the namespaces of the node `name` and the roots of its cgroups, and waits until they are set up.
    pub(super) async fn create(directory: &Path, name: &str, cgroup: &str) -> Result<Self> {
        for folder in ["lib", "log", "run"] {
            std::fs::create_dir(directory.join(folder)).context("making a folder of a node")?;
        }
        let log_path = directory.join("namespace.log");
        let log = File::create(&log_path).with_context(|| format!("creating {}", log_path.display()))?;
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--propagation=private", "--net", "--uts", "--pid", "--mount-proc"])
            .args(["--fork", "--kill-child=SIGKILL", "sh", "-c", INIT, "kubeocean-node"])
            .arg(directory)
            .args([name, cgroup])
            .env("PATH", search_path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log);
        reaper::adopt(&mut command)?;
        let mut unshare = command.spawn().context("starting unshare")?;
        let pipe = unshare.stdin.take();
        let mut namespace = Self { unshare, pipe };
        let up = directory.join("up");
        let waited = try_wait_until("the namespaces of a node", UP_DEADLINE, async || {
            if up.exists() {
                return Ok(Ok(()));
            }
            match namespace.unshare.try_wait() {
                Ok(Some(status)) => Ok(Err(anyhow!("unshare ended with {status}"))),
                other => Err(format!("{other:?}")),
            }
        });
        match waited.await {
            Ok(Ok(())) => Ok(namespace),
            Ok(Err(error)) | Err(error) => {
                let log = std::fs::read_to_string(&log_path).unwrap_or_default();
                Err(error.context(log.trim().to_owned()))
            }
        }
    }

    /// A process of this machine that is in the namespaces.
    pub(super) fn process_id(&self) -> u32 {
        self.unshare.id()
    }

    /// How to run something inside: `program` with the returned arguments before its own. What runs dies with the
    /// `program` that is seen from outside.
    pub(super) fn entrance(&self) -> (PathBuf, Vec<OsString>) {
        let id = self.process_id();
        let of = |option: &str, file: &str| OsString::from(format!("--{option}=/proc/{id}/ns/{file}"));
        let mut args =
            vec![of("mount", "mnt"), of("net", "net"), of("uts", "uts"), of("pid", "pid_for_children")];
        args.extend(["setpriv", "--pdeathsig", "KILL"].map(OsString::from));
        (PathBuf::from("nsenter"), args)
    }

    /// A command that runs inside.
    pub(super) fn command(&self, program: impl Into<OsString>) -> Command {
        let (nsenter, args) = self.entrance();
        let mut command = Command::new(nsenter);
        command.args(args).arg(program.into()).env("PATH", search_path());
        command
    }

    /// `ip` inside, with the words of `line` as its arguments.
    pub(super) fn ip(&self, line: &str) -> Result<String> {
        run(self.command("ip").args(line.split_whitespace()))
    }

    /// All processes inside, as this machine numbers them. They share the mounts, apart from those of containers, which
    /// are found by their process namespace.
    pub(super) fn processes(&self) -> Result<Vec<u32>> {
        let own = |file: &str| std::fs::read_link(format!("/proc/{}/ns/{file}", self.process_id()));
        let (mounts, pids) = (own("mnt").context("reading a namespace")?, own("pid_for_children"));
        let pids = pids.context("reading a namespace")?;
        let is_inside = |id: &u32| {
            let of = |file: &str| std::fs::read_link(format!("/proc/{id}/ns/{file}")).ok();
            of("mnt").is_some_and(|found| found == mounts)
                || of("pid").is_some_and(|found| found == pids)
                || ancestors(*id).any(|ancestor| of_pid(ancestor).is_some_and(|found| found == pids))
        };
        Ok(all_processes()?.into_iter().filter(is_inside).collect())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.pipe.take());
        // Ends as soon as the kernel has killed and collected everything inside.
        let _ = self.unshare.wait();
    }
}

fn all_processes() -> Result<Vec<u32>> {
    let entries = std::fs::read_dir("/proc").context("reading /proc")?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

fn of_pid(id: u32) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{id}/ns/pid")).ok()
}

/// The parents of a process, nearest first.
fn ancestors(id: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(id), |&id| {
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let (_, after_name) = stat.rsplit_once(')')?;
        after_name.split_whitespace().nth(1)?.parse().ok().filter(|&parent| parent != 0)
    })
    .skip(1)
}
