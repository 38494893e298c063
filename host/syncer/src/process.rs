//! One Syncer process: listeners, leader election, and the leader's work until it is told to stop (MC section 7).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use crate::{
    config::{COMPILE_POLICY, SyncerConfig},
    leader::{self, ProxierSource, Surroundings},
    metrics::SyncerMetrics,
    placement::slot::DeskSlot,
    policy_server::{callers::Callers, serve::PolicyListener},
};
use kube::Client;
use kubeocean_api::keys::annotation;
use kubeocean_engine::{CompileMode, Engine, EngineConfig, EngineError};
use kubeocean_runtime::{
    clock::SystemClock,
    election::{Election, ElectionConfig, ElectionTimes, announce},
    health::Health,
    leading::{Term, lead},
    server::Listeners,
    tasks::TaskEnded,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Pause between attempts to write where the policy server is.
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(2);

/// What surrounds a Syncer that runs as a process of its own.
#[derive(Debug)]
pub struct ProcessConfig {
    /// `None` acts without an election.
    pub election: Option<ElectionConfig>,
    /// Opened listeners.
    pub listeners: Listeners,
    /// Opened policy server; `None` if it is turned off.
    pub policy_server: Option<PolicyListener>,
    /// Where a process without an election says where its policy server is.
    pub lease: LeaseName,
}

/// A Lease.
#[derive(Debug, Clone)]
pub struct LeaseName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Why a Syncer ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum SyncerError {
    /// Another process may lead now.
    #[error("leadership lost")]
    LeadershipLost,
    /// The policy engine cannot run on this machine.
    #[error("the policy engine cannot start")]
    Engine(#[from] EngineError),
    /// The leader's work ended.
    #[error(transparent)]
    Leader(#[from] TaskEnded),
    /// The times of the election do not fit together.
    #[error(transparent)]
    Election(#[from] ElectionTimes),
}

/// Runs until `cancel` or a failure. Everything that was started has ended when this returns. `leases` is another client of
/// the computing cluster, with a connection of its own.
pub async fn run(
    config: Arc<SyncerConfig>,
    process: ProcessConfig,
    computing: Client,
    leases: Client,
    cancel: CancellationToken,
) -> Result<(), SyncerError> {
    process.election.as_ref().map_or(Ok(()), ElectionConfig::validate)?;
    let health = Arc::new(Health::default());
    let metrics = Arc::new(SyncerMetrics::new(&config.binding_name));
    let serving = cancel.child_token();
    let text = {
        let metrics = Arc::clone(&metrics);
        Arc::new(move || metrics.encode())
    };
    let listening = tokio::spawn(process.listeners.serve(text, Arc::clone(&health), serving.clone()));
    let placement = DeskSlot::default();
    let asking = Asking { computing: &computing, desk: &placement, cancel: &serving };
    let (election, answering) = asking.start(process.election, process.policy_server, process.lease);
    let service = Service {
        engine: start_engine(&config)?,
        config,
        election,
        standby: Standby::Ready,
        computing,
        surroundings: Surroundings {
            leases,
            clock: Arc::new(SystemClock),
            health,
            metrics,
            ports: Arc::default(),
            proxiers: ProxierSource::Pods,
            placement,
        },
    };
    let result = serve_binding(service, &cancel).await;
    serving.cancel();
    for ended in [listening.await, answering.await] {
        if let Err(error) = ended {
            tracing::error!(%error, "a listener failed");
        }
    }
    result
}

/// What the policy server of a process is started with.
struct Asking<'a> {
    computing: &'a Client,
    desk: &'a DeskSlot,
    cancel: &'a CancellationToken,
}

impl Asking<'_> {
    /// Serves, and has the election say where; without an election it is written on the Lease at once.
    fn start(
        &self,
        election: Option<ElectionConfig>,
        server: Option<PolicyListener>,
        lease: LeaseName,
    ) -> (Option<ElectionConfig>, JoinHandle<()>) {
        let endpoint = server.as_ref().map(|server| server.endpoint.to_string());
        let annotations = BTreeMap::from([(annotation::POLICY_ENDPOINT, endpoint)]);
        let election =
            election.map(|election| ElectionConfig { annotations: annotations.clone(), ..election });
        let Some(server) = server else { return (election, tokio::spawn(async {})) };
        let elects = election.is_some();
        let (computing, cancel) = (self.computing.clone(), self.cancel.clone());
        let serving = server.serve(Callers::new(self.computing), self.desk.clone(), cancel.clone());
        let answering = tokio::spawn(async move {
            let announcing = async {
                if !elects {
                    cancel.run_until_cancelled(announce_until_done(&computing, &lease, &annotations)).await;
                }
            };
            tokio::join!(serving, announcing);
        });
        (election, answering)
    }
}

async fn announce_until_done(
    computing: &Client,
    lease: &LeaseName,
    annotations: &BTreeMap<&'static str, Option<String>>,
) {
    while let Err(error) = announce(computing, &lease.namespace, &lease.name, annotations).await {
        tracing::warn!(error = error.chain(), "where the policy server is cannot be written, retrying");
        tokio::time::sleep(ANNOUNCE_AGAIN).await;
    }
}

/// The policy engine as the settings want it. A process has one, however many bindings it serves.
pub fn start_engine(config: &SyncerConfig) -> Result<Engine, EngineError> {
    Engine::start(EngineConfig {
        max_module_bytes: config.policy_max_module_bytes,
        allow_unpinned: config.allow_unpinned_policies,
        compile: match config.policy_compiler.clone() {
            Some(program) => CompileMode::Child { program, args: vec![COMPILE_POLICY.to_owned()] },
            None => CompileMode::InProcess,
        },
        code_folders: config.policy_code_folders.clone(),
        ..EngineConfig::default()
    })
}

/// One binding to serve, and with what.
pub struct Service {
    /// Settings.
    pub config: Arc<SyncerConfig>,
    /// `None` acts without an election.
    pub election: Option<ElectionConfig>,
    /// What the health says while another process leads.
    pub standby: Standby,
    /// Client of the computing cluster.
    pub computing: Client,
    /// The process's policy engine.
    pub engine: Engine,
    /// The rest.
    pub surroundings: Surroundings,
}

/// What the health says of a Syncer that waits for leadership and can read the Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standby {
    /// Ready: a process that takes over as soon as it must.
    Ready,
    /// Not ready: the binding is not served from here.
    NotReady,
}

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Service").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Serves one binding until `cancel` or a failure, as the leader of its election. In a process of its own and as a task
/// of a Manager alike (MC-130). The binding's health is ready when its leader is.
pub async fn serve_binding(service: Service, cancel: &CancellationToken) -> Result<(), SyncerError> {
    let Service { config, election, standby, computing, engine, surroundings } = service;
    let participant = election.map(|election| {
        Election::new(surroundings.leases.clone(), election, Arc::clone(&surroundings.clock))
    });
    let health = Arc::clone(&surroundings.health);
    let attempted = move |answered: bool| {
        health.progress();
        if answered {
            health.answered();
            health.set_ready(standby == Standby::Ready);
        }
    };
    let term = lead(participant, cancel, attempted, move |leading| {
        surroundings.health.set_ready(false);
        leader::run(config, computing, engine, surroundings, leading)
    });
    match term.await {
        Term::NeverLed => Ok(()),
        Term::Lost => Err(SyncerError::LeadershipLost),
        Term::Ended(result) => result.map_err(Into::into),
    }
}
