//! One Manager process: listeners, leader election, and the leader's work until it is told to stop (MC section 1).

use std::{convert::Infallible, sync::Arc, time::Duration};

use kube::Client;
use kubeocean_runtime::{
    clock::{Clock, SystemClock},
    election::{Election, ElectionConfig, ElectionTimes},
    events::EventRecorder,
    first_failure::FirstFailure,
    health::Health,
    leading::{Term, lead},
    probe::probe,
    queue::drive,
    server::{Listeners, MetricsText},
    tasks::{TaskEnded, Tasks},
    watch::WatchHealth,
};
use tokio_util::sync::CancellationToken;

use crate::{
    bindings::{apply::Reconciler, index::Index, watch::watch_bindings},
    components::Components,
    config::ManagerConfig,
    metrics::ManagerMetrics,
    worker::attend::Attendants,
};

/// Bindings worked on at a time (MC-107).
const RECONCILES: usize = 5;

/// What surrounds a Manager.
#[derive(Debug)]
pub struct ProcessConfig {
    /// `None` acts without an election.
    pub election: Option<ElectionConfig>,
    /// Opened listeners.
    pub listeners: Listeners,
}

/// Why a Manager ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// Another process may lead now.
    #[error("leadership lost")]
    LeadershipLost,
    /// A task ended by itself or panicked, the Manager's own or one of a component.
    #[error(transparent)]
    TaskEnded(#[from] TaskEnded),
    /// The times of the election do not fit together.
    #[error(transparent)]
    Election(#[from] ElectionTimes),
}

/// The text of the metrics of what runs in this process beside the Manager.
pub type OtherMetrics = Arc<dyn Fn(String) -> String + Send + Sync>;

/// Runs until `cancel` or a failure. Everything that was started has ended when this returns, but for lost leadership:
/// then everything was told to stop, and the process must end at once.
pub async fn run(
    config: ManagerConfig,
    process: ProcessConfig,
    computing: Client,
    components: (Arc<dyn Components>, OtherMetrics),
    cancel: CancellationToken,
) -> Result<(), ManagerError> {
    process.election.as_ref().map_or(Ok(()), ElectionConfig::validate)?;
    let (components, others) = components;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let health = Arc::new(Health::default());
    let metrics = Arc::new(ManagerMetrics::default());
    let serving = cancel.child_token();
    let text: MetricsText = {
        let metrics = Arc::clone(&metrics);
        Arc::new(move || others(metrics.encode()))
    };
    let listening = tokio::spawn(process.listeners.serve(text, Arc::clone(&health), serving.clone()));
    let lease = process.election.as_ref().map(|election| election.lease.clone());
    if let Some(lease) = &lease {
        metrics.stand_by(lease);
    }
    let participant =
        process.election.map(|election| Election::new(computing.clone(), election, Arc::clone(&clock)));
    let manager =
        Manager { config, computing, components, clock, health: Arc::clone(&health), metrics, lease };
    // A standby that can read the Lease is ready: it takes over as soon as it must.
    let attempted = |answered| {
        if answered {
            health.answered();
            health.set_ready(true);
        }
    };
    let leading = lead(participant, &cancel, attempted, |leading| manager.lead(leading));
    let result = tokio::select! {
        term = leading => match term {
            Term::NeverLed => Ok(()),
            Term::Lost => Err(ManagerError::LeadershipLost),
            Term::Ended(result) => result.map_err(Into::into),
        },
        never = tell_progress(&health) => match never {},
    };
    serving.cancel();
    if let Err(error) = listening.await {
        tracing::error!(%error, "a listener failed");
    }
    if matches!(result, Err(ManagerError::LeadershipLost)) {
        drop(manager.components.shut_down());
    }
    result
}

struct Manager {
    config: ManagerConfig,
    computing: Client,
    components: Arc<dyn Components>,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    metrics: Arc<ManagerMetrics>,
    lease: Option<String>,
}

impl Manager {
    async fn lead(&self, cancel: CancellationToken) -> Result<(), TaskEnded> {
        self.health.set_ready(false);
        let index = Index::new();
        self.metrics.lead(self.lease.as_deref(), &index, &self.components);
        let failure = FirstFailure::default();
        let mut tasks = Tasks::new(cancel.clone());
        let (events, sending) = EventRecorder::new(
            self.computing.clone(),
            "clusterbinding-controller".to_owned(),
            Arc::clone(&self.clock),
            cancel.clone(),
        );
        tasks.spawn("events", sending);
        {
            let (client, health) = (self.computing.clone(), Arc::clone(&self.health));
            let cancel = cancel.clone();
            tasks.spawn("computing probe", async move {
                probe(client, "/version", cancel, |answered| {
                    if answered {
                        health.answered();
                    }
                })
                .await;
            });
        }
        {
            let queue = Arc::clone(index.queue());
            self.components.tell(Box::new(move |binding| queue.add(binding.to_owned())));
        }
        let attendants = Attendants::new(
            self.config.clone(),
            self.computing.clone(),
            (Arc::clone(&index), Arc::clone(&self.clock), Arc::clone(&self.metrics)),
            failure.clone(),
            cancel.child_token(),
        );
        let listed = Arc::new(WatchHealth::default());
        let watching =
            watch_bindings(self.computing.clone(), Arc::clone(&index), Arc::clone(&listed), cancel.clone());
        tasks.spawn("bindings", watching);
        let reconciler = Arc::new(Reconciler {
            computing: self.computing.clone(),
            index: Arc::clone(&index),
            attendants: Arc::clone(&attendants),
            components: Arc::clone(&self.components),
            events,
            clock: Arc::clone(&self.clock),
            metrics: Arc::clone(&self.metrics),
        });
        let (health, queue, working) = (Arc::clone(&self.health), Arc::clone(index.queue()), cancel.clone());
        tasks.spawn("reconciles", async move {
            // Before the first complete list nobody can say who owns a clusterID.
            tokio::select! {
                () = working.cancelled() => return,
                () = listed.synced() => health.set_ready(true),
            }
            let heart = health.begin("bindings");
            drive(queue, RECONCILES, working, heart, move |name: String| {
                let reconciler = Arc::clone(&reconciler);
                async move { reconciler.reconcile(&name).await }
            })
            .await;
        });
        let failed = {
            let (components, cancel) = (Arc::clone(&self.components), cancel.clone());
            async move {
                tokio::select! {
                    () = cancel.cancelled() => None,
                    what = components.failed() => Some(what),
                    what = failure.reported() => Some(what),
                }
            }
        };
        let (result, failed) = tokio::join!(tasks.join(), async {
            let failed = failed.await;
            cancel.cancel();
            // Components end while the reconciles do: one of these may be waiting for the end of a component.
            self.components.shut_down().await;
            attendants.ended().await;
            failed
        });
        match failed {
            Some(what) => Err(TaskEnded::new(what)),
            None => result,
        }
    }
}

/// Shows that the runtime still schedules tasks.
async fn tell_progress(health: &Health) -> Infallible {
    let mut ticks = tokio::time::interval(Duration::from_secs(10));
    loop {
        ticks.tick().await;
        health.progress();
    }
}
