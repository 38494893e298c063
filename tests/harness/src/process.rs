//! One child process with its log file: start, stop, restart, what it used.
//!
//! Caller: [`crate::cluster`] for control plane programs, [`crate::program`] for our own. Invariant: the process is a
//! member of the reaper's group before it runs its first instruction, and dropping the value kills it.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::reaper;
use crate::wait::try_wait_until;

/// How to start a process, as often as needed.
#[derive(Clone, Debug)]
pub struct ProcessSpec {
    /// For messages and the log file.
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<OsString>,
    pub env: Vec<(OsString, OsString)>,
    /// Standard output and error, appended.
    pub log: PathBuf,
}

/// A started process. Ended ones stay as values, so that they can be restarted.
#[derive(Debug)]
pub struct Process {
    spec: ProcessSpec,
    child: Option<Child>,
}

impl Process {
    /// Starts it. A program that ends at once is seen by [`Process::exited`], not here.
    ///
    /// # Errors
    /// The program cannot be executed or the log file cannot be written.
    pub fn spawn(spec: ProcessSpec) -> Result<Self> {
        let mut process = Self { spec, child: None };
        process.start()?;
        Ok(process)
    }

    fn start(&mut self) -> Result<()> {
        let spec = &self.spec;
        let log = File::options()
            .create(true)
            .append(true)
            .open(&spec.log)
            .with_context(|| format!("opening {}", spec.log.display()))?;
        let mut command = Command::new(&spec.program);
        command
            .args(&spec.args)
            .envs(spec.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("duplicating the log file")?)
            .stderr(log);
        reaper::adopt(&mut command)?;
        self.child = Some(command.spawn().with_context(|| format!("starting {}", spec.program.display()))?);
        Ok(())
    }

    pub fn name(&self) -> &str {
        &self.spec.name
    }

    pub fn log_path(&self) -> &Path {
        &self.spec.log
    }

    /// Everything it wrote so far, over all restarts.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.spec.log).unwrap_or_default()).into_owned()
    }

    /// The last lines of [`Process::log`].
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<_> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// The process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The exit status if it ended by itself.
    ///
    /// # Errors
    /// The operating system refuses the question.
    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        match self.child.as_mut() {
            Some(child) => {
                child.try_wait().with_context(|| format!("asking for the state of {}", self.spec.name))
            }
            None => Ok(None),
        }
    }

    /// SIGKILL, and waits for the end. What a power cut does.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Both fail only for a process that has ended, which is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// SIGTERM, and waits for the end. What Kubernetes does first.
    ///
    /// # Errors
    /// It does not run, or is still there after `patience` (it is killed then).
    pub async fn stop(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.end(Signal::TERM, patience).await
    }

    /// SIGINT, and waits for the end. What a terminal does on Ctrl-C.
    ///
    /// # Errors
    /// As [`Process::stop`].
    pub async fn interrupt(&mut self, patience: Duration) -> Result<ExitStatus> {
        self.end(Signal::INT, patience).await
    }

    async fn end(&mut self, signal: Signal, patience: Duration) -> Result<ExitStatus> {
        let name = self.spec.name.clone();
        let Some(child) = self.child.as_mut() else { bail!("{name} does not run") };
        self::signal(child.id(), signal)?;
        let ended = try_wait_until(&format!("{name} to end after {signal:?}"), patience, async || {
            child.try_wait().map_err(|error| error.to_string())?.ok_or_else(|| "it still runs".to_owned())
        })
        .await;
        if ended.is_err() {
            self.kill();
        }
        self.child = None;
        ended
    }

    /// Starts it again with the same arguments, after killing what still runs.
    ///
    /// # Errors
    /// As [`Process::spawn`].
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        self.start()
    }

    /// Sends any signal; SIGSTOP and SIGCONT make a hung program.
    ///
    /// # Errors
    /// It does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = self.id().with_context(|| format!("{} does not run", self.spec.name))?;
        self::signal(id, signal)
    }

    /// CPU time used so far, user and system, in seconds. Linux only.
    ///
    /// # Errors
    /// It does not run, or there is no `/proc`.
    pub fn cpu_seconds(&self) -> Result<f64> {
        let stat = self.proc_file("stat")?;
        cpu_ticks(&stat)
            .map(|ticks| {
                ticks / f64::from(u32::try_from(rustix::param::clock_ticks_per_second()).unwrap_or(100))
            })
            .with_context(|| format!("unknown form of /proc/pid/stat: {stat}"))
    }

    /// Resident memory in KiB. Linux only.
    ///
    /// # Errors
    /// It does not run, or there is no `/proc`.
    pub fn rss_kib(&self) -> Result<u64> {
        let status = self.proc_file("status")?;
        status_field(&status, "VmRSS:").context("no VmRSS in /proc/pid/status")
    }

    /// The part of its resident memory that is no file's, in KiB: heap and stacks. Linux only.
    ///
    /// # Errors
    /// It does not run, or there is no `/proc`.
    pub fn anonymous_kib(&self) -> Result<u64> {
        let status = self.proc_file("status")?;
        status_field(&status, "RssAnon:").context("no RssAnon in /proc/pid/status")
    }

    /// The highest resident memory so far, in KiB. Linux only.
    ///
    /// # Errors
    /// It does not run, or there is no `/proc`.
    pub fn peak_rss_kib(&self) -> Result<u64> {
        let status = self.proc_file("status")?;
        status_field(&status, "VmHWM:").context("no VmHWM in /proc/pid/status")
    }

    fn proc_file(&self, file: &str) -> Result<String> {
        let id = self.id().with_context(|| format!("{} does not run", self.spec.name))?;
        let path = format!("/proc/{id}/{file}");
        std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn signal(id: u32, signal: Signal) -> Result<()> {
    let pid = i32::try_from(id).ok().and_then(Pid::from_raw).context("process id out of range")?;
    kill_process(pid, signal).with_context(|| format!("sending a signal to process {id}"))
}

/// Fields 14 and 15 of `/proc/<pid>/stat`; the name in field 2 may hold spaces and brackets.
fn cpu_ticks(stat: &str) -> Option<f64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let fields: Vec<_> = after_name.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index)?.parse::<f64>().ok();
    Some(ticks(11)? + ticks(12)?)
}

fn status_field(status: &str, field: &str) -> Option<u64> {
    status.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_read_behind_a_name_with_brackets() {
        let stat = "42 (a (b) c) S 1 42 42 0 -1 4194560 100 0 0 0 150 50 0 0 20 0 4 0 100 1000 200";
        assert_eq!(cpu_ticks(stat), Some(200.0));
    }

    #[test]
    fn memory_is_read_in_kib() {
        assert_eq!(status_field("VmPeak:\t 9 kB\nVmRSS:\t  1234 kB\n", "VmRSS:"), Some(1234));
    }
}
