//! One Manager process: listeners, leader election, and the leader's work until it is told to stop (MC section 1).

use std::{
    convert::Infallible,
    sync::{Arc, OnceLock},
    time::Duration,
};

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
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    bindings::{apply::Reconciler, index::Index, watch::watch_bindings},
    components::Components,
    config::ManagerConfig,
    extender::known::KnownBindings,
    metrics::ManagerMetrics,
    worker::attend::Attendants,
};

/// Bindings worked on at a time (MC-107).
const RECONCILES: usize = 5;
/// What listeners have for their last answers.
const LISTENERS_END: Duration = Duration::from_secs(3);

/// What surrounds a Manager.
#[derive(Debug)]
pub struct ProcessConfig {
    /// `None` acts without an election.
    pub election: Option<ElectionConfig>,
    /// Opened listeners.
    pub listeners: Listeners,
    /// Where the scheduler extender finds the bindings.
    pub known: KnownBindings,
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

/// Runs until `cancel` or a failure. Everything that was started has ended when this returns without an error. After
/// one something may go on that was told to stop and hangs, or had no time to end: the process must end at once.
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
    let stuck = FirstFailure::default();
    let manager = Manager {
        config,
        computing,
        components,
        clock,
        health: Arc::clone(&health),
        metrics,
        lease,
        known: process.known,
        stuck: stuck.clone(),
    };
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
        // The Lease is not released: what hangs may still write until the process has ended, and others wait that long.
        what = stuck.reported() => Err(TaskEnded::new(what).into()),
        never = tell_progress(&health) => match never {},
    };
    let lost = matches!(result, Err(ManagerError::LeadershipLost));
    close(lost, &*manager.components, listening, &serving).await;
    result
}

/// Ends the listeners, and before them, where another process may lead now, whatever writes.
async fn close(
    lost: bool,
    components: &dyn Components,
    mut listening: JoinHandle<()>,
    serving: &CancellationToken,
) {
    if lost {
        // Nobody waits for the end: it is that of the process.
        drop(components.shut_down());
    }
    serving.cancel();
    match tokio::time::timeout(LISTENERS_END, &mut listening).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "a listener failed"),
        Err(_) => {
            tracing::warn!("a listener did not end");
            listening.abort();
        }
    }
}

struct Manager {
    config: ManagerConfig,
    computing: Client,
    components: Arc<dyn Components>,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    metrics: Arc<ManagerMetrics>,
    lease: Option<String>,
    known: KnownBindings,
    /// Told when what was to end does not.
    stuck: FirstFailure,
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
        let known = self.known.clone();
        tasks.spawn("reconciles", async move {
            // Before the first complete list nobody can say who owns a clusterID.
            tokio::select! {
                () = working.cancelled() => return,
                () = listed.synced() => {
                    known.set(&index);
                    health.set_ready(true);
                }
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
        let why = OnceLock::new();
        let ended = async {
            tokio::join!(tasks.join(), async {
                let _ = why.set(failed.await);
                cancel.cancel();
                // Components end while the reconciles do: one of these may be waiting for the end of a component.
                self.components.shut_down().await;
                attendants.ended().await;
            })
        };
        let within = self.config.ends_within;
        let overdue = async {
            cancel.cancelled().await;
            tokio::time::sleep(within).await;
        };
        let result = tokio::select! {
            (result, ()) = ended => result,
            () = overdue => {
                let late = format!("not all ended within {} s", within.as_secs());
                let what = failure_of(&why);
                self.stuck.report(what.map_or_else(|| late.clone(), |what| format!("{what}; {late}")));
                return std::future::pending().await;
            }
        };
        match failure_of(&why) {
            Some(what) => Err(TaskEnded::new(what)),
            None => result,
        }
    }
}

/// What failed, if that is why all ends.
fn failure_of(why: &OnceLock<Option<String>>) -> Option<String> {
    why.get().cloned().flatten()
}

/// Shows that the runtime still schedules tasks.
async fn tell_progress(health: &Health) -> Infallible {
    let mut ticks = tokio::time::interval(Duration::from_secs(10));
    loop {
        ticks.tick().await;
        health.progress();
    }
}

#[cfg(test)]
mod tests {
    use futures::{FutureExt, future::BoxFuture};
    use parking_lot::Mutex;
    use tokio::time::Instant;

    use super::*;
    use crate::components::{Component, Identity, Running};

    /// Components of which one hangs: told to stop, it goes on.
    #[derive(Debug, Default)]
    struct Hanging {
        /// What failed; without it nothing does.
        failure: Option<&'static str>,
        /// Who was told to end, in order.
        told: Arc<Mutex<Vec<&'static str>>>,
    }

    impl Components for Hanging {
        fn start(&self, _: &Identity) {}

        fn look(&self, _: &str) -> Running {
            Running::default()
        }

        fn stop<'a>(&'a self, _: &'a str, _: Component) -> BoxFuture<'a, ()> {
            std::future::pending().boxed()
        }

        fn tell(&self, _: Box<dyn Fn(&str) + Send + Sync>) {}

        fn failed(&self) -> BoxFuture<'_, String> {
            match self.failure {
                Some(what) => std::future::ready(what.to_owned()).boxed(),
                None => std::future::pending().boxed(),
            }
        }

        fn shut_down(&self) -> BoxFuture<'static, ()> {
            self.told.lock().push("components");
            std::future::pending().boxed()
        }
    }

    /// Of a computing cluster that does not answer: nothing listens on the discard port of this machine.
    fn nobody() -> Client {
        let config = kube::Config::new("http://127.0.0.1:9".parse().unwrap());
        kubeocean_runtime::client::client(config, None).unwrap()
    }

    /// How a Manager ends, and after how long.
    async fn end(components: Hanging, cancel: CancellationToken) -> (String, Duration) {
        let listeners = Listeners::open("0", "0").await.unwrap();
        let process = ProcessConfig { election: None, listeners, known: KnownBindings::default() };
        let components: Arc<dyn Components> = Arc::new(components);
        let others: OtherMetrics = Arc::new(|text| text);
        let begun = Instant::now();
        let ended = run(ManagerConfig::default(), process, nobody(), (components, others), cancel).await;
        (ended.unwrap_err().to_string(), begun.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn what_ignores_the_order_to_stop_keeps_no_process_alive() {
        let limit = ManagerConfig::default().ends_within;
        let failed = Hanging { failure: Some("the Syncer of b makes no progress"), ..Hanging::default() };
        let (why, took) = end(failed, CancellationToken::new()).await;
        assert!(why.contains("the Syncer of b makes no progress; not all ended within 35 s"), "{why}");
        assert!(took >= limit && took < limit * 2, "{took:?}");

        let cancel = CancellationToken::new();
        cancel.cancel();
        let (why, took) = end(Hanging::default(), cancel).await;
        assert!(why.contains("not all ended within 35 s"), "{why}");
        assert!(took >= limit && took < limit * 2, "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_lease_stops_components_before_listeners_and_waits_for_no_scrape() {
        let (components, serving) = (Hanging::default(), CancellationToken::new());
        let (told, asked) = (Arc::clone(&components.told), serving.clone());
        let listening = tokio::spawn(async move {
            asked.cancelled().await;
            told.lock().push("listeners");
            std::future::pending::<()>().await;
        });
        let begun = Instant::now();
        close(true, &components, listening, &serving).await;
        assert_eq!(*components.told.lock(), ["components", "listeners"]);
        assert_eq!(begun.elapsed(), LISTENERS_END);
    }
}
