//! One Syncer process: listeners, leader election, and the leader's work until it is told to stop (MC section 7).

use std::sync::Arc;

use crate::{
    config::{COMPILE_POLICY, SyncerConfig},
    leader::{self, LeaderError, Surroundings},
    metrics::SyncerMetrics,
};
use kube::Client;
use kubeocean_engine::{CompileMode, Engine, EngineConfig, EngineError};
use kubeocean_runtime::{
    clock::{Clock, SystemClock},
    election::{Election, ElectionConfig, Ended},
    health::Health,
    server::{ListenError, MetricsText, listen, serve_health, serve_metrics},
};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What surrounds a Syncer that runs as a process of its own.
#[derive(Debug)]
pub struct ProcessConfig {
    /// `None` acts without an election.
    pub election: Option<ElectionConfig>,
    /// Opened listeners.
    pub listeners: Listeners,
}

/// The process's listeners. Opened before anything else, so that a port in use ends the start with a clear message.
#[derive(Debug)]
pub struct Listeners {
    metrics: Option<TcpListener>,
    health: Option<TcpListener>,
}

impl Listeners {
    /// Opens both; `0` turns one off.
    pub async fn open(metrics: &str, health: &str) -> Result<Self, ListenError> {
        Ok(Self {
            metrics: listen(metrics, "metrics", "--metrics-bind-address").await?,
            health: listen(health, "health probes", "--health-probe-bind-address").await?,
        })
    }
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
    Leader(#[from] LeaderError),
}

/// Runs until `cancel` or a failure. Everything that was started has ended when this returns.
pub async fn run(
    config: Arc<SyncerConfig>,
    process: ProcessConfig,
    computing: Client,
    cancel: CancellationToken,
) -> Result<(), SyncerError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let health = Arc::new(Health::default());
    let metrics = Arc::new(SyncerMetrics::new(&config.binding_name));
    let tracker = TaskTracker::new();
    let serving = cancel.child_token();
    if let Some(listener) = process.listeners.metrics {
        tracker.spawn(serve_metrics(listener, metrics_text(&metrics), serving.clone()));
    }
    if let Some(listener) = process.listeners.health {
        tracker.spawn(serve_health(listener, Arc::clone(&health), serving.clone()));
    }
    let progress = tracker.spawn(tell_progress(Arc::clone(&health), serving.clone()));
    let result =
        lead(&config, process.election, computing, Surroundings { clock, health, metrics }, &cancel).await;
    serving.cancel();
    tracker.close();
    tracker.wait().await;
    progress.abort();
    result
}

fn metrics_text(metrics: &Arc<SyncerMetrics>) -> MetricsText {
    let metrics = Arc::clone(metrics);
    Arc::new(move || metrics.encode())
}

async fn lead(
    config: &Arc<SyncerConfig>,
    election: Option<ElectionConfig>,
    computing: Client,
    surroundings: Surroundings,
    cancel: &CancellationToken,
) -> Result<(), SyncerError> {
    let engine = Engine::start(EngineConfig {
        max_module_bytes: config.policy_max_module_bytes,
        allow_unpinned: config.allow_unpinned_policies,
        compile: match config.policy_compiler.clone() {
            Some(program) => CompileMode::Child { program, args: vec![COMPILE_POLICY.to_owned()] },
            None => CompileMode::InProcess,
        },
        ..EngineConfig::default()
    })?;
    let Some(election) = election else {
        leader::run(config, computing, engine, surroundings, cancel.child_token()).await?;
        return Ok(());
    };
    // A standby that can read the Lease is ready: it takes over as soon as it must.
    surroundings.health.set_ready(true);
    let participant = Election::new(computing.clone(), election, Arc::clone(&surroundings.clock));
    let Some(leadership) = participant.acquire(cancel).await else { return Ok(()) };
    surroundings.health.set_ready(false);
    let leading = cancel.child_token();
    let work = leader::run(config, computing, engine, surroundings, leading.clone());
    // The Lease is released only after the last write: until then nobody else may act.
    let releasing = CancellationToken::new();
    let holding = leadership.hold(&releasing);
    tokio::pin!(work, holding);
    tokio::select! {
        result = &mut work => {
            releasing.cancel();
            holding.await;
            result.map_err(Into::into)
        }
        ended = &mut holding => {
            debug_assert_eq!(ended, Ended::Lost, "the lease is only released on request");
            // Writers stop at once; what is under way is dropped with the process.
            leading.cancel();
            Err(SyncerError::LeadershipLost)
        }
    }
}

/// Shows that the runtime still schedules tasks.
async fn tell_progress(health: Arc<Health>, cancel: CancellationToken) {
    let mut ticks = tokio::time::interval(std::time::Duration::from_secs(10));
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = ticks.tick() => health.progress(),
        }
    }
}
