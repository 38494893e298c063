//! From nothing to a ready cluster.
//!
//! Order: etcd and kube-apiserver together, then, when the API is ready, the rest; done when the controllers have made
//! the default ServiceAccount, without which no pod can be created. A lost race for a port means a new try.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;

use super::{Cluster, ClusterSpec, Component, Ports, flags};
use crate::assets::{self, Binary};
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
            Self::Kwok => Binary::Kwok,
        }
    }
}

impl Cluster {
    /// Starts a cluster. The first time on a machine this builds the programs, see [`assets::ensure`].
    ///
    /// # Errors
    /// A program is missing or does not start; the message holds the end of its log.
    pub async fn start(spec: ClusterSpec) -> Result<Self> {
        tokio::task::spawn_blocking(|| assets::ensure(&Binary::CONTROL_PLANE))
            .await
            .context("obtaining the control plane programs")??;
        let mut attempt = 1;
        loop {
            match Self::try_start(spec.clone()).await {
                Ok(cluster) => return Ok(cluster),
                Err(Failure::PortTaken) if attempt < ATTEMPTS => attempt += 1,
                Err(Failure::PortTaken) => bail!("{ATTEMPTS} times in a row somebody took a port of {}", spec.name),
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
        let ready = cluster.api_ready().await;
        cluster.explain(ready, &[Component::Etcd, Component::ApiServer])?;
        cluster.spawn(Component::ControllerManager)?;
        cluster.spawn(Component::Scheduler)?;
        if cluster.spec.kwok {
            cluster.spawn(Component::Kwok)?;
        }
        let ready = cluster.service_account_ready("default").await;
        cluster.explain(ready, &[Component::ControllerManager, Component::Scheduler, Component::Kwok])?;
        cluster.start_time = started.elapsed();
        Ok(cluster)
    }

    /// Directory, keys, ports, configuration files.
    async fn prepare(spec: ClusterSpec) -> Result<Self> {
        let prepare = move || -> Result<Self> {
            let directory = reaper::new_directory(&spec.name)?;
            let pki = Pki::create(&directory)?;
            let [etcd, apiserver, kwok] = ports::free()?;
            let server = format!("https://127.0.0.1:{apiserver}");
            let admin_kubeconfig = pki.admin_kubeconfig(&server);
            let path = directory.join(flags::ADMIN_KUBECONFIG);
            std::fs::write(&path, &admin_kubeconfig).with_context(|| format!("writing {}", path.display()))?;
            flags::write_files(&spec, &directory)?;
            Ok(Self {
                spec,
                directory,
                server,
                ports: Ports { etcd, apiserver, kwok },
                pki,
                admin_kubeconfig,
                processes: Mutex::new(BTreeMap::new()),
                resources: Mutex::new(HashMap::new()),
                start_time: Duration::ZERO,
            })
        };
        tokio::task::spawn_blocking(prepare).await.context("preparing a cluster")?
    }

    fn spawn(&mut self, component: Component) -> Result<()> {
        let binary = component.binary();
        let name = binary.file_name();
        let program: PathBuf = assets::find(binary)?.with_context(|| format!("{name} has disappeared"))?;
        let process = Process::spawn(ProcessSpec {
            name: name.to_owned(),
            program,
            args: flags::args(component, &self.spec, &self.directory, &self.ports),
            // Less garbage collection: the machine has more memory than cores.
            env: vec![("GOGC".into(), "200".into())],
            log: self.directory.join(format!("{name}.log")),
        })?;
        self.processes.get_mut().map_err(|_| anyhow::anyhow!("poisoned"))?.insert(component, process);
        Ok(())
    }

    /// Waits until the API server says that it is ready, all its start hooks done.
    pub(super) async fn api_ready(&self) -> Result<()> {
        let client = self.client().await?;
        try_wait_until(&format!("the API of {} to be ready", self.spec.name), START_DEADLINE, async || {
            self.all_alive()?;
            let request = http::Request::get("/readyz").body(Vec::new()).map_err(|error| error.to_string())?;
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
            self.all_alive()?;
            accounts.get("default").await.map_err(|error| error.to_string())
        })
        .await
        .map(drop)
    }

    /// An error if a started program has ended by itself; waiting on would be in vain. Killed ones do not count.
    fn all_alive(&self) -> Result<(), String> {
        let mut processes = self.processes.lock().map_err(|_| "poisoned".to_owned())?;
        for process in processes.values_mut() {
            if let Ok(Some(status)) = process.exited() {
                return Err(format!("{} ended with {status}", process.name()));
            }
        }
        Ok(())
    }

    /// Turns a start that did not come true into its cause.
    fn explain(&mut self, outcome: Result<()>, suspects: &[Component]) -> Result<(), Failure> {
        let Err(error) = outcome else { return Ok(()) };
        let mut message = format!("{error:#}");
        if let Ok(processes) = self.processes.get_mut() {
            for process in suspects.iter().filter_map(|component| processes.get(component)) {
                if ports::lost(&process.log()) {
                    return Err(Failure::PortTaken);
                }
                message.push_str(&format!("\n--- {}:\n{}", process.log_path().display(), process.log_tail(15)));
            }
        }
        Err(Failure::Other(anyhow::anyhow!(message)))
    }
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
