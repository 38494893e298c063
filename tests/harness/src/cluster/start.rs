//! From nothing to a ready cluster.
//!
//! Order: etcd and kube-apiserver together, then, when the API is ready, the rest; done when the controllers have made
//! the default ServiceAccount, without which no pod can be created. A lost race for a port means a new try.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;

use super::{Cluster, ClusterSpec, Component, Ports, flags};
use crate::assets::{self, Binary};
use crate::kubelet::{Network, WhyNot};
use crate::pki::Pki;
use crate::process::{Process, ProcessSpec};
use crate::wait::try_wait_until;
use crate::{ports, reaper};

/// Far more than a loaded machine needs (seconds), far less than a person waits.
const START_DEADLINE: Duration = Duration::from_mins(3);
const ATTEMPTS: usize = 4;

impl Component {
    const fn binary(self) -> Binary {
        match self {
            Self::Etcd => Binary::Etcd,
            Self::ApiServer => Binary::KubeApiserver,
            Self::ControllerManager => Binary::KubeControllerManager,
            Self::Scheduler => Binary::KubeScheduler,
            Self::Kwok | Self::KwokApart => Binary::Kwok,
        }
    }
}

impl Cluster {
    /// Starts a cluster. The first time on a machine this builds the programs, see [`assets::ensure`].
    ///
    /// # Errors
    /// A program is missing or does not start; the message holds the end of its log.
    pub async fn start(spec: ClusterSpec) -> Result<Self> {
        obtain(&Binary::CONTROL_PLANE).await?;
        let mut attempt = 1;
        loop {
            match Self::try_start(spec.clone()).await {
                Ok(cluster) => return Ok(cluster),
                Err(Failure::PortTaken) if attempt < ATTEMPTS => attempt += 1,
                Err(Failure::PortTaken) => {
                    bail!("{ATTEMPTS} times in a row somebody took a port of {}", spec.name)
                }
                Err(Failure::Other(error)) => {
                    return Err(error.context(format!("starting the cluster {}", spec.name)));
                }
            }
        }
    }

    async fn try_start(spec: ClusterSpec) -> Result<Self, Failure> {
        let started = Instant::now();
        let mut cluster = Self::prepare(spec).await?;
        cluster.spawn(Component::Etcd)?;
        cluster.spawn(Component::ApiServer)?;
        let ready = cluster.unless_one_ends(cluster.api_ready()).await;
        cluster.explain(ready, &[Component::Etcd, Component::ApiServer])?;
        cluster.spawn(Component::ControllerManager)?;
        cluster.spawn(Component::Scheduler)?;
        if cluster.has_kwok() {
            cluster.spawn(Component::Kwok)?;
        }
        if cluster.has_kwok_apart() {
            cluster.spawn(Component::KwokApart)?;
        }
        let ready = cluster.unless_one_ends(cluster.service_account_ready("default")).await;
        let suspects =
            [Component::ControllerManager, Component::Scheduler, Component::Kwok, Component::KwokApart];
        cluster.explain(ready, &suspects)?;
        cluster.start_time = started.elapsed();
        Ok(cluster)
    }

    /// Directory, keys, ports, configuration files.
    async fn prepare(spec: ClusterSpec) -> Result<Self> {
        let prepare = move || -> Result<Self> {
            let directory = reaper::new_directory(&spec.name)?;
            let network = if spec.real_nodes {
                Network::take().map(Arc::new)
            } else {
                Err(WhyNot::NotHere(
                    "the cluster was not started for it, see ClusterSpec::real_nodes".to_owned(),
                ))
            };
            let address =
                network.as_ref().map_or(IpAddr::V4(Ipv4Addr::LOCALHOST), |network| network.address());
            let pki = Pki::create(&directory, address)?;
            let [etcd, kwok, kwok_apart] = ports::free()?;
            let [apiserver] = ports::free_on(address)?;
            let apiserver = SocketAddr::new(address, apiserver);
            let server = format!("https://{apiserver}");
            let admin_kubeconfig = pki.admin_kubeconfig(&server);
            let path = directory.join(flags::ADMIN_KUBECONFIG);
            std::fs::write(&path, &admin_kubeconfig)
                .with_context(|| format!("writing {}", path.display()))?;
            flags::write_files(&spec, &directory)?;
            Ok(Self {
                spec,
                directory,
                server,
                ports: Ports { etcd, apiserver, kwok, kwok_apart },
                pki,
                admin_kubeconfig,
                processes: Mutex::new(BTreeMap::new()),
                resources: Mutex::new(HashMap::new()),
                start_time: Duration::ZERO,
                network,
            })
        };
        tokio::task::spawn_blocking(prepare).await.context("preparing a cluster")?
    }

    fn spawn(&mut self, component: Component) -> Result<()> {
        let binary = component.binary();
        let name = binary.file_name();
        let log = if component == Component::KwokApart { "kwok-apart" } else { name };
        let program: PathBuf = assets::find(binary)?.with_context(|| format!("{name} has disappeared"))?;
        let process = Process::spawn(ProcessSpec {
            name: name.to_owned(),
            program,
            args: flags::args(component, &self.spec, &self.directory, self.ports),
            // Less garbage collection: the machine has more memory than cores.
            env: vec![("GOGC".into(), "200".into())],
            log: self.directory.join(format!("{log}.log")),
        })?;
        self.processes.get_mut().map_err(|_| anyhow!("poisoned"))?.insert(component, process);
        Ok(())
    }

    /// Waits until the API server says that it is ready, all its start hooks done.
    pub(super) async fn api_ready(&self) -> Result<()> {
        let client = self.client().await?;
        try_wait_until(&format!("the API of {} to be ready", self.spec.name), START_DEADLINE, async || {
            let request =
                http::Request::get("/readyz").body(Vec::new()).map_err(|error| error.to_string())?;
            client.request_text(request).await.map_err(|error| error.to_string())
        })
        .await
        .map(drop)
    }

    /// Waits until a namespace's default ServiceAccount exists: before that its pods are refused.
    pub(crate) async fn service_account_ready(&self, namespace: &str) -> Result<()> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, namespace);
        let what = format!("the default ServiceAccount of {namespace} in {}", self.spec.name);
        try_wait_until(&what, START_DEADLINE, async || {
            accounts.get("default").await.map_err(|error| error.to_string())
        })
        .await
        .map(drop)
    }

    /// Waits for `ready`, but not in vain: a program that ended by itself is the answer.
    async fn unless_one_ends(&self, ready: impl Future<Output = Result<()>>) -> Result<()> {
        let end = try_wait_until("a program to end", Duration::MAX, async || self.ended());
        tokio::select! {
            ready = ready => ready,
            end = end => Err(anyhow!("{} ended", end?)),
        }
    }

    /// A started program that has ended by itself. Killed ones do not count.
    fn ended(&self) -> Option<String> {
        let mut processes = self.processes.lock().ok()?;
        processes.values_mut().find_map(|process| {
            let status = process.exited().ok()??;
            Some(format!("{} ({status})", process.name()))
        })
    }

    /// Turns a start that did not come true into its cause.
    fn explain(&mut self, outcome: Result<()>, suspects: &[Component]) -> Result<(), Failure> {
        let Err(error) = outcome else { return Ok(()) };
        let mut message = vec![format!("{error:#}")];
        if let Ok(processes) = self.processes.get_mut() {
            for process in suspects.iter().filter_map(|component| processes.get(component)) {
                if ports::lost(&process.log()) {
                    return Err(Failure::PortTaken);
                }
                message.push(format!("--- {}:\n{}", process.log_path().display(), process.log_tail(15)));
            }
        }
        Err(Failure::Other(anyhow!(message.join("\n"))))
    }
}

/// Makes programs available before they are timed and without blocking the runtime.
pub(crate) async fn obtain(binaries: &'static [Binary]) -> Result<()> {
    tokio::task::spawn_blocking(|| assets::ensure(binaries)).await.context("obtaining programs")?.map(drop)
}

/// Why one attempt to start failed.
enum Failure {
    PortTaken,
    Other(anyhow::Error),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}
