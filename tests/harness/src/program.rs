//! Our own program as a process beside the control planes, with the rights the chart gives it (MC-138).
//!
//! Each gets a kubeconfig with a token of its chart ServiceAccount, a loopback address of its own, free ports for
//! metrics and health, and a log file. Everything a pod would give it arrives as environment.

mod binary;

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use kube::{Client, Config};
use rustix::process::Signal;

use crate::cluster::Cluster;
use crate::loopback::LoopbackAddress;
use crate::process::{Process, ProcessSpec};
use crate::site::SYSTEM_NAMESPACE;
use crate::wait::{try_wait_until, wait_until};
use crate::{http_get, ports, reaper};

pub use binary::kubeocean_binary;

/// The Proxier's shared port (PX-102).
const KUBELET_PORT: u16 = 10250;

/// Which program, for whom, with what.
#[derive(Clone, Debug)]
pub struct ProgramSpec {
    role: Role,
    service_account: &'static str,
    args: Vec<String>,
    env: Vec<(String, String)>,
    kubeconfig: Option<String>,
    binary: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Manager,
    Syncer,
    Proxier,
}

impl Role {
    const fn subcommand(self) -> &'static str {
        match self {
            Self::Manager => "manager",
            Self::Syncer => "syncer",
            Self::Proxier => "proxier",
        }
    }
}

impl ProgramSpec {
    fn new(role: Role, service_account: &'static str) -> Self {
        Self { role, service_account, args: Vec::new(), env: Vec::new(), kubeconfig: None, binary: None }
    }

    /// A Manager with Syncers and Proxiers in its process. Leader election is off, so that a restart acts at once.
    pub fn manager() -> Self {
        Self::new(Role::Manager, "kubeocean-manager").args(&["--runtime=in-process", "--leader-elect=false"])
    }

    /// The Syncer of a binding. Leader election is off, so that a restart after SIGKILL acts at once.
    pub fn syncer(binding: &str) -> Self {
        Self::new(Role::Syncer, "kubeocean-syncer")
            .args(&[&format!("--cluster-binding-name={binding}"), "--leader-elect=false"])
    }

    /// The Proxier of a binding, with a certificate of its own making: outside a pod no signer would sign one.
    pub fn proxier(binding: &str) -> Self {
        Self::new(Role::Proxier, "kubeocean-proxier")
            .args(&[&format!("--cluster-binding-name={binding}"), "--serving-certificate=self-signed"])
    }

    /// Adds flags of the form `--name=value`; one of the same name that is there already is replaced.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        merge(&mut self.args, args.iter().copied().map(str::to_owned));
        self
    }

    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Another program than this workspace's, for example an older release in a test of upgrades.
    #[must_use]
    pub fn binary(mut self, path: impl Into<PathBuf>) -> Self {
        self.binary = Some(path.into());
        self
    }

    /// Another kubeconfig for the computing cluster than the ServiceAccount's, for example through a proxy.
    #[must_use]
    pub fn kubeconfig(mut self, yaml: &str) -> Self {
        self.kubeconfig = Some(yaml.to_owned());
        self
    }
}

/// Appends flags; each takes the place of one with its name.
fn merge(flags: &mut Vec<String>, more: impl IntoIterator<Item = String>) {
    for flag in more {
        flags.retain(|present| flag_name(present) != flag_name(&flag));
        flags.push(flag);
    }
}

fn flag_name(arg: &str) -> &str {
    arg.split_once('=').map_or(arg, |(name, _)| name)
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub struct Program {
    role: Role,
    process: Process,
    address: LoopbackAddress,
    health: SocketAddr,
    metrics: SocketAddr,
}

impl Program {
    /// Starts a program against a computing cluster. Returns at once; see [`Program::wait_ready`].
    ///
    /// # Errors
    /// The binary cannot be built, or the ServiceAccount does not exist (see [`crate::Site::install`]).
    pub async fn start(computing: &Cluster, spec: ProgramSpec) -> Result<Self> {
        let binary = match spec.binary {
            Some(binary) => binary,
            None => tokio::task::spawn_blocking(kubeocean_binary).await.context("building kubeocean")??,
        };
        let role = spec.role;
        let kubeconfig = match &spec.kubeconfig {
            Some(kubeconfig) => kubeconfig.clone(),
            None => computing.service_account_kubeconfig(SYSTEM_NAMESPACE, spec.service_account).await?,
        };
        let directory = reaper::new_directory(role.subcommand())?;
        let kubeconfig_path = directory.join("kubeconfig");
        std::fs::write(&kubeconfig_path, kubeconfig).context("writing a kubeconfig")?;
        let address = LoopbackAddress::take()?;
        let ip = address.ip();
        let [health, metrics] = ports::free_on(ip)?;
        let health = SocketAddr::new(ip, if role == Role::Proxier { KUBELET_PORT } else { health });
        let metrics = SocketAddr::new(ip, metrics);

        let mut flags = vec![
            format!("--kubeconfig={}", kubeconfig_path.display()),
            format!("--metrics-bind-address={metrics}"),
            "--log-format=text".to_owned(),
        ];
        if role != Role::Proxier {
            flags.push(format!("--health-probe-bind-address={health}"));
        }
        if role == Role::Syncer {
            // A test that asks the policy server says where.
            flags.push("--policy-bind-address=0".to_owned());
        } else {
            flags.push(format!("--bind-address={ip}"));
            flags.push(format!("--advertise-address={ip}"));
        }
        merge(&mut flags, spec.args);
        let process = Process::spawn(ProcessSpec {
            name: role.subcommand().to_owned(),
            program: binary,
            args: std::iter::once(role.subcommand().to_owned()).chain(flags).map(OsString::from).collect(),
            env: environment(role, ip, spec.env),
            log: directory.join(format!("{}.log", role.subcommand())),
        })?;
        Ok(Self { role, process, address, health, metrics })
    }

    /// The loopback address that belongs to this program.
    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }

    /// Where it serves `/healthz` and `/readyz`: plain HTTP, HTTPS for a Proxier.
    pub fn health_address(&self) -> SocketAddr {
        self.health
    }

    /// Where it serves `/metrics`.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// Waits until `/readyz` says 200.
    ///
    /// # Panics
    /// It ends or is not ready in time; the message holds the end of its log.
    pub async fn wait_ready(&mut self) {
        let outcome = self.try_wait_ready(Duration::from_mins(1)).await;
        #[expect(clippy::panic, reason = "a program that does not start is a failed test")]
        if let Err(error) = outcome {
            panic!("{error:#}\n--- {}:\n{}", self.process.log_path().display(), self.process.log_tail(40));
        }
    }

    /// As [`Program::wait_ready`], for tests of programs that must not become ready.
    ///
    /// # Errors
    /// It ends or is not ready in time.
    pub async fn try_wait_ready(&mut self, patience: Duration) -> Result<()> {
        let name = self.role.subcommand();
        try_wait_until(&format!("the {name} to be ready"), patience, async || {
            // An end is final: it settles the wait, as a failure.
            if let Ok(Some(status)) = self.process.exited() {
                return Ok(Err(anyhow!("the {name} ended with {status}")));
            }
            match self.health("/readyz").await {
                Ok((200, _)) => Ok(Ok(())),
                Ok((status, body)) => Err(format!("{status} {body}")),
                Err(error) => Err(format!("{error:#}")),
            }
        })
        .await?
    }

    /// Asks the health port.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn health(&self, path: &str) -> Result<(u16, String)> {
        if self.role != Role::Proxier {
            return http_get::get(self.health, path).await;
        }
        let mut config =
            Config::new(format!("https://{}", self.health).parse().context("an address is a URL")?);
        // Nobody vouches for a certificate of its own making.
        config.accept_invalid_certs = true;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let request = http::Request::get(path).body(Vec::new()).context("building a request")?;
        match Client::try_from(config)?.request_text(request).await {
            Ok(body) => Ok((200, body)),
            Err(kube::Error::Api(status)) => Ok((status.code, status.message)),
            Err(error) => Err(error.into()),
        }
    }

    /// The text of `/metrics`.
    ///
    /// # Errors
    /// It does not answer with 200.
    pub async fn metrics(&self) -> Result<String> {
        let (status, body) = http_get::get(self.metrics, "/metrics").await?;
        if status == 200 { Ok(body) } else { Err(anyhow!("/metrics answers {status}: {body}")) }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM; waits for the end, 30 seconds at most.
    ///
    /// # Errors
    /// It does not run or does not end.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        self.process.stop(Duration::from_secs(30)).await
    }

    /// SIGINT, as Ctrl-C sends it; waits for the end, 30 seconds at most.
    ///
    /// # Errors
    /// It does not run or does not end.
    pub async fn interrupt(&mut self) -> Result<ExitStatus> {
        self.process.interrupt(Duration::from_secs(30)).await
    }

    /// Starts it again with the same arguments, on the same address, after killing what runs.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        self.process.restart()
    }

    /// Stops it in its tracks until the guard is dropped: its connections stay open, and nothing is read or written.
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self) -> Result<Frozen<'_>> {
        self.process.signal(Signal::STOP)?;
        Ok(Frozen(&self.process))
    }

    /// The process: its log, signals, CPU seconds and memory.
    pub fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Everything it logged so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The log file.
    pub fn log_path(&self) -> PathBuf {
        self.process.log_path().to_owned()
    }

    /// Waits until the log holds `text`.
    ///
    /// # Panics
    /// It does not, in time.
    pub async fn wait_log(&self, text: &str, deadline: Duration) {
        wait_until(&format!("{text:?} in the log"), deadline, async || {
            if self.log().contains(text) { Ok(()) } else { Err(self.process.log_tail(10)) }
        })
        .await;
    }
}

/// A program that does nothing. Dropping it lets the program go on.
#[derive(Debug)]
#[must_use = "the program goes on when this is dropped"]
pub struct Frozen<'a>(&'a Process);

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        // A program that was killed meanwhile cannot go on.
        let _ = self.0.signal(Signal::CONT);
    }
}

/// What the chart's pod would give the program.
fn environment(role: Role, ip: IpAddr, more: Vec<(String, String)>) -> Vec<(OsString, OsString)> {
    let mut env = vec![
        ("POD_NAMESPACE".to_owned(), SYSTEM_NAMESPACE.to_owned()),
        ("POD_NAME".to_owned(), format!("{}-{}", role.subcommand(), reaper::unique())),
        ("POD_IP".to_owned(), ip.to_string()),
        ("RUST_BACKTRACE".to_owned(), "1".to_owned()),
        // What a failed test prints is read by people.
        ("KUBEOCEAN_LOG_FORMAT".to_owned(), "text".to_owned()),
    ];
    env.extend(more);
    env.into_iter().map(|(key, value)| (key.into(), value.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_of_the_caller_replaces_the_own_one() {
        let spec = ProgramSpec::syncer("b").args(&["--leader-elect=true", "--log-level=debug"]);
        assert_eq!(spec.args, ["--cluster-binding-name=b", "--leader-elect=true", "--log-level=debug"]);
    }
}
