//! One cluster: etcd, kube-apiserver, kube-controller-manager, kube-scheduler and, for workers, kwok.
//!
//! In: a [`ClusterSpec`]. Out: a [`Cluster`] whose API is ready, whose default ServiceAccount exists and whose programs
//! can be killed, stopped and restarted one by one. Callers: [`crate::fleet`], tests that need a cluster of their own.
//!
//! Invariant: no background task belongs to a cluster, so it can be started in one tokio runtime and used from many
//! (each `#[tokio::test]` has its own). For the same reason [`Cluster::client`] makes a new client each time: a client's
//! connections die with the runtime they were opened in.

pub(crate) mod flags;
pub(crate) mod start;
pub mod tools;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::GroupVersionKind;
use kube::discovery::{ApiCapabilities, ApiResource};
use kube::{Client, Config};

use crate::kubelet::{Network, WhyNot};
use crate::pki::Pki;
use crate::process::Process;
use crate::reaper;

/// A program of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    Etcd,
    ApiServer,
    ControllerManager,
    Scheduler,
    Kwok,
    /// See [`Kwoks::OneMoreApart`].
    KwokApart,
}

/// Who plays the kubelets of fake nodes. Other nodes are left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kwoks {
    /// Nobody: there are no fake nodes.
    None,
    /// One kwok, for the nodes of [`Cluster::create_nodes`].
    One,
    /// Another one beside it, for the node of [`Cluster::create_node_apart`]: one kwok serves all its nodes from one queue,
    /// a real kubelet has its own pods only.
    OneMoreApart,
}

/// What a cluster is to be.
#[derive(Clone, Debug)]
pub struct ClusterSpec {
    /// For messages and the directory.
    pub name: String,
    /// See [`Kwoks`].
    pub kwok: Kwoks,
    /// The program that kwok's nodes connect forwarded ports to.
    pub port_forward: Vec<String>,
    /// See [`ClusterSpec::real_nodes`].
    pub real_nodes: bool,
    /// Write the audit log; costs a file write a request.
    pub audit: bool,
    /// How long a node may be silent before it is marked unknown. Long: kwok's nodes are heard of every ten minutes, and later
    /// on a busy machine.
    pub node_monitor_grace: Duration,
    /// `extenders` of the scheduler's configuration.
    pub scheduler_extenders: Vec<serde_json::Value>,
    /// Appended to kube-apiserver's flags; the last one of a name wins.
    pub apiserver_flags: Vec<String>,
    /// Appended to kube-controller-manager's flags.
    pub controller_manager_flags: Vec<String>,
}

impl ClusterSpec {
    /// A cluster without nodes of its own: what submits the work.
    pub fn computing() -> Self {
        Self {
            name: "computing".to_owned(),
            kwok: Kwoks::None,
            port_forward: vec!["cat".to_owned()],
            real_nodes: false,
            audit: true,
            node_monitor_grace: Duration::from_mins(30),
            scheduler_extenders: Vec::new(),
            apiserver_flags: Vec::new(),
            controller_manager_flags: Vec::new(),
        }
    }

    /// A cluster with kwok.
    pub fn worker(name: impl Into<String>) -> Self {
        Self { name: name.into(), kwok: Kwoks::One, ..Self::computing() }
    }

    /// The same on a network of its own instead of loopback, for [`Cluster::start_real_node`] and for clients in pods of
    /// real nodes. On a machine that cannot run real nodes it starts on loopback as any other.
    #[must_use]
    pub fn real_nodes(mut self) -> Self {
        self.real_nodes = true;
        self
    }
}

/// A running cluster. Dropping it kills its programs and removes its directory (after a panic the logs are kept).
#[derive(Debug)]
pub struct Cluster {
    spec: ClusterSpec,
    directory: PathBuf,
    server: String,
    ports: Ports,
    pki: Pki,
    admin_kubeconfig: String,
    processes: Mutex<BTreeMap<Component, Process>>,
    /// Kind to resource, asked once from the server.
    resources: Mutex<HashMap<GroupVersionKind, (ApiResource, ApiCapabilities)>>,
    start_time: Duration,
    /// After the programs and the directory have gone, or when the last real node has.
    network: Result<Arc<Network>, WhyNot>,
}

/// Where the programs of one cluster listen: ports on 127.0.0.1, but for the API server.
#[derive(Clone, Copy, Debug)]
struct Ports {
    etcd: u16,
    apiserver: SocketAddr,
    kwok: u16,
    kwok_apart: u16,
}

impl Cluster {
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    pub(crate) fn has_kwok(&self) -> bool {
        self.spec.kwok != Kwoks::None
    }

    pub(crate) fn has_kwok_apart(&self) -> bool {
        self.spec.kwok == Kwoks::OneMoreApart
    }

    pub(crate) fn network(&self) -> &Result<Arc<Network>, WhyNot> {
        &self.network
    }

    pub(crate) fn pki(&self) -> &Pki {
        &self.pki
    }

    /// The API server's URL, `https://<address>:<port>`.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The API server's address: 127.0.0.1, or that of the network for real nodes.
    pub fn address(&self) -> IpAddr {
        self.ports.apiserver.ip()
    }

    /// The API server's port on [`Cluster::address`].
    pub fn port(&self) -> u16 {
        self.ports.apiserver.port()
    }

    /// The port of the fake nodes' kubelet API on 127.0.0.1; meaningless without kwok.
    pub fn kubelet_port(&self) -> u16 {
        self.ports.kwok
    }

    pub(crate) fn kubelet_port_apart(&self) -> u16 {
        self.ports.kwok_apart
    }

    /// Certificates, configuration and one log file per program.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// What the containers of kwok's pods have "written": `kubectl logs` shows this file. Its lines have the CRI form
    /// `2026-01-02T03:04:05.000000000Z stdout F text`; tests append to it to make a container talk.
    pub fn pod_log_path(&self) -> PathBuf {
        self.directory.join(flags::POD_LOG)
    }

    /// How long the start took, from nothing to ready.
    pub fn start_time(&self) -> Duration {
        self.start_time
    }

    /// A kubeconfig with all rights, YAML.
    pub fn kubeconfig(&self) -> &str {
        &self.admin_kubeconfig
    }

    /// The same as a file.
    pub fn kubeconfig_path(&self) -> PathBuf {
        self.directory.join(flags::ADMIN_KUBECONFIG)
    }

    /// A kubeconfig of any user in any group, by a client certificate of the cluster's authority.
    ///
    /// # Errors
    /// The certificate cannot be made.
    pub fn user_kubeconfig(&self, user: &str, group: &str) -> Result<String> {
        self.pki.user_kubeconfig(&self.server, user, group)
    }

    /// A new client with all rights, for the current runtime.
    ///
    /// # Errors
    /// The client cannot be built; it does not connect yet.
    pub async fn client(&self) -> Result<Client> {
        client_of(&self.admin_kubeconfig).await
    }

    /// The process id of a program, while it runs.
    pub fn process_id(&self, component: Component) -> Option<u32> {
        self.with_process(component, |process| Ok(process.id())).ok().flatten()
    }

    /// Kills a program with SIGKILL. Start it again with [`Cluster::restart`].
    ///
    /// # Errors
    /// This cluster has no such program.
    pub fn kill(&self, component: Component) -> Result<()> {
        self.with_process(component, |process| {
            process.kill();
            Ok(())
        })
    }

    /// Starts a program again, on the same ports and data, after killing what runs. Waits for the API server.
    ///
    /// # Errors
    /// It does not start.
    pub async fn restart(&self, component: Component) -> Result<()> {
        self.with_process(component, Process::restart)?;
        match component {
            Component::Etcd | Component::ApiServer => self.api_ready().await,
            _ => Ok(()),
        }
    }

    /// Stops a program in its tracks: connections stay open and nothing answers, until [`Cluster::thaw`].
    ///
    /// # Errors
    /// It does not run.
    pub fn freeze(&self, component: Component) -> Result<()> {
        self.signal(component, rustix::process::Signal::STOP)
    }

    /// Lets a frozen program go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn thaw(&self, component: Component) -> Result<()> {
        self.signal(component, rustix::process::Signal::CONT)
    }

    /// Sends a signal to a program; SIGSTOP makes a server that accepts and never answers, SIGCONT revives it.
    ///
    /// # Errors
    /// This cluster has no such program or it does not run.
    pub fn signal(&self, component: Component, signal: rustix::process::Signal) -> Result<()> {
        self.with_process(component, |process| process.signal(signal))
    }

    /// Restarts the scheduler with other extenders (PO-605), as an administrator changes its configuration.
    ///
    /// # Errors
    /// The configuration cannot be written or the scheduler does not start.
    pub async fn restart_scheduler_with(&self, extenders: &[serde_json::Value]) -> Result<()> {
        self.write_scheduler_config(extenders)?;
        self.restart(Component::Scheduler).await
    }

    /// CPU seconds and resident KiB of a program. Linux only.
    ///
    /// # Errors
    /// It does not run, or there is no `/proc`.
    pub fn usage(&self, component: Component) -> Result<(f64, u64)> {
        self.with_process(component, |process| Ok((process.cpu_seconds()?, process.rss_kib()?)))
    }

    fn with_process<T>(
        &self,
        component: Component,
        act: impl FnOnce(&mut Process) -> Result<T>,
    ) -> Result<T> {
        let mut processes =
            self.processes.lock().map_err(|_| anyhow::anyhow!("a test panicked in this cluster"))?;
        match processes.get_mut(&component) {
            Some(process) => act(process),
            None => bail!("the cluster {} has no {component:?}", self.spec.name),
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // The children die first, so that nothing writes into the directory any more.
        match self.processes.get_mut() {
            Ok(processes) => processes.clear(),
            Err(poisoned) => poisoned.into_inner().clear(),
        }
        reaper::remove_directory(&self.directory);
    }
}

/// A new client of a kubeconfig, for the current runtime.
///
/// # Errors
/// The kubeconfig is not valid.
pub async fn client_of(kubeconfig: &str) -> Result<Client> {
    // Tests link one provider, but rustls wants it named.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = Kubeconfig::from_yaml(kubeconfig).context("parsing a kubeconfig")?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
        .await
        .context("using a kubeconfig")?;
    Client::try_from(config).context("making a client")
}
