//! Syncers and Proxiers as tasks of the Manager's process (MC-130): one of each per binding, with what a process has only
//! once - policy engine, port table, listeners, identity - shared by all.
//!
//! A component that panics or ends by itself ends the process (MC-137); what is wrong with a worker or a kubeconfig
//! concerns its binding only, and is the Syncer's own business.

mod exposition;

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use kubeocean_api::name::PortTable;
use kubeocean_engine::Engine;
use kubeocean_manager::components::{Component, Components, Identity, Running, State};
use kubeocean_runtime::{
    clock::SystemClock, election::ElectionConfig, first_failure::FirstFailure, health::Health,
};
use kubeocean_syncer::{
    config::SyncerConfig,
    leader::{ProxierSource, Surroundings},
    metrics::SyncerMetrics,
    process::{Service, Standby, serve_binding},
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::computing;

/// How often readiness of components is compared with what was told. It can end by time alone, so nothing reports it.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Why no binding has a Proxier.
const NO_PROXIER: &str = "this version runs no Proxier in the Manager's process: logs, exec and port-forward of pods on virtual nodes do not work";

/// What all components of the process are made with.
pub(crate) struct Settings {
    /// Settings of every Syncer, but for the name of its binding.
    pub(crate) syncer: SyncerConfig,
    /// How Syncers elect, but for the name of the Lease; `None` if they do not.
    pub(crate) election: Option<ElectionConfig>,
    /// Kubeconfig of the computing cluster. Each binding has a client of its own (MC-134).
    pub(crate) kubeconfig: Option<PathBuf>,
    /// The process's policy engine.
    pub(crate) engine: Engine,
}

/// The components of all bindings.
pub(crate) struct InProcess {
    settings: Settings,
    ports: Arc<Mutex<PortTable>>,
    serving: Mutex<BTreeMap<String, Serving>>,
    told: OnceLock<Box<dyn Fn(&str) + Send + Sync>>,
    failure: FirstFailure,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

/// The components of one binding.
struct Serving {
    identity: Identity,
    syncer: Option<Task>,
}

/// A running component.
#[derive(Clone)]
struct Task {
    health: Arc<Health>,
    metrics: Arc<SyncerMetrics>,
    cancel: CancellationToken,
    /// Cancelled when the task has ended.
    ended: CancellationToken,
}

impl std::fmt::Debug for InProcess {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let bindings: Vec<String> = self.serving.lock().keys().cloned().collect();
        f.debug_struct("InProcess").field("bindings", &bindings).finish_non_exhaustive()
    }
}

impl InProcess {
    /// Nothing runs yet.
    pub(crate) fn new(settings: Settings) -> Arc<Self> {
        let all = Arc::new(Self {
            settings,
            ports: Arc::default(),
            serving: Mutex::default(),
            told: OnceLock::new(),
            failure: FirstFailure::default(),
            tracker: TaskTracker::new(),
            cancel: CancellationToken::new(),
        });
        all.tracker.spawn(tell_readiness(Arc::clone(&all)));
        all
    }

    /// The metrics of the Manager and of all components as one text, each metric once with its samples of all bindings.
    pub(crate) fn metrics(&self, manager: String) -> String {
        let tasks: Vec<_> = self.serving.lock().values().filter_map(|one| one.syncer.clone()).collect();
        let syncers = tasks.into_iter().map(|task| task.metrics.encode());
        exposition::merge(std::iter::once(manager).chain(syncers))
    }

    fn tell_changed(&self, binding: &str) {
        if let Some(told) = self.told.get() {
            told(binding);
        }
    }

    fn start_syncer(self: &Arc<Self>, identity: &Identity) -> Task {
        let task = Task {
            health: Arc::default(),
            metrics: Arc::new(SyncerMetrics::new(&identity.binding)),
            cancel: self.cancel.child_token(),
            ended: CancellationToken::new(),
        };
        // The Proxier's address, while there is one (MC-133): the vnodes have no address until it serves.
        let (_none, proxiers) = watch::channel(Vec::new());
        let surroundings = Surroundings {
            clock: Arc::new(SystemClock),
            health: Arc::clone(&task.health),
            metrics: Arc::clone(&task.metrics),
            ports: Arc::clone(&self.ports),
            proxiers: ProxierSource::Told(proxiers),
        };
        let (all, identity, running) = (Arc::clone(self), identity.clone(), task.clone());
        self.tracker.spawn(async move {
            let binding = identity.binding.clone();
            let serving = serve(Arc::clone(&all), identity, surroundings, running.cancel.clone());
            let why = match tokio::spawn(serving).await {
                Ok(Ok(())) if running.cancel.is_cancelled() => None,
                Ok(Ok(())) => Some("it ended by itself".to_owned()),
                Ok(Err(error)) => Some(format!("{error:#}")),
                Err(error) => Some(error.to_string()),
            };
            if let Some(why) = why {
                all.failure.report(format!("the Syncer of {binding} failed: {why}"));
            }
            running.ended.cancel();
            all.tell_changed(&binding);
        });
        task
    }
}

/// Serves one binding, on connections of its own.
async fn serve(
    all: Arc<InProcess>,
    identity: Identity,
    surroundings: Surroundings,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let kubeconfig = all.settings.kubeconfig.clone();
    let computing = computing::connect(kubeconfig.as_deref()).await?;
    let service = service(&all.settings, identity, computing, surroundings);
    drop(all);
    serve_binding(service, &cancel).await?;
    Ok(())
}

fn service(
    settings: &Settings,
    identity: Identity,
    computing: kube::Client,
    surroundings: Surroundings,
) -> Service {
    Service {
        config: Arc::new(SyncerConfig { binding_name: identity.binding, ..settings.syncer.clone() }),
        // The name that a Syncer started as a Deployment uses, so that the two never act together (MC-131).
        election: settings.election.clone().map(|election| ElectionConfig {
            lease: format!("kubeocean-syncer-{}", identity.cluster_id),
            ..election
        }),
        standby: Standby::NotReady,
        computing,
        engine: settings.engine.clone(),
        surroundings,
    }
}

/// Tells when a component became ready or ceased to be; one that is stuck ends the process.
async fn tell_readiness(all: Arc<InProcess>) {
    let mut known: BTreeMap<String, bool> = BTreeMap::new();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            () = all.cancel.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let now: BTreeMap<String, bool> = {
            let serving = all.serving.lock();
            let stuck = |one: &&Serving| one.syncer.as_ref().is_some_and(|task| !task.health.is_alive());
            if let Some(stuck) = serving.values().find(stuck) {
                all.failure.report(format!("the Syncer of {} makes no progress", stuck.identity.binding));
            }
            serving.iter().map(|(name, one)| (name.clone(), one.is_ready())).collect()
        };
        for (name, ready) in &now {
            if known.get(name) != Some(ready) {
                all.tell_changed(name);
            }
        }
        known = now;
    }
}

impl Serving {
    fn is_ready(&self) -> bool {
        self.syncer.as_ref().is_some_and(|task| task.health.is_ready())
    }
}

/// The trait object the Manager holds. The components refer to what they share, hence the `Arc` inside.
#[derive(Debug, Clone)]
pub(crate) struct Handle(pub(crate) Arc<InProcess>);

impl Components for Handle {
    fn start(&self, identity: &Identity) {
        let mut serving = self.0.serving.lock();
        if serving.get(&identity.binding).is_some_and(|one| one.identity.uid == identity.uid) {
            return;
        }
        let syncer = Some(self.0.start_syncer(identity));
        serving.insert(identity.binding.clone(), Serving { identity: identity.clone(), syncer });
        drop(serving);
        self.0.tell_changed(&identity.binding);
    }

    fn look(&self, binding: &str) -> Running {
        let serving = self.0.serving.lock();
        let Some(one) = serving.get(binding) else { return Running::default() };
        let syncer = match &one.syncer {
            None => State::Stopped,
            Some(_) if one.is_ready() => State::Available,
            Some(_) => State::Progressing(
                "it is reading the computing cluster, or another process serves the binding".to_owned(),
            ),
        };
        let proxier = if one.syncer.is_some() { State::Absent(NO_PROXIER) } else { State::Stopped };
        Running { identity: Some(one.identity.clone()), syncer, proxier }
    }

    fn stop<'a>(&'a self, binding: &'a str, component: Component) -> BoxFuture<'a, ()> {
        async move {
            match component {
                Component::Syncer => {
                    let task = self.0.serving.lock().get(binding).and_then(|one| one.syncer.clone());
                    if let Some(task) = task {
                        task.cancel.cancel();
                        task.ended.cancelled().await;
                    }
                    if let Some(one) = self.0.serving.lock().get_mut(binding) {
                        one.syncer = None;
                    }
                }
                // It ends last, and with it what is known of the binding.
                Component::Proxier => {
                    self.0.serving.lock().remove(binding);
                }
            }
        }
        .boxed()
    }

    fn tell(&self, changed: Box<dyn Fn(&str) + Send + Sync>) {
        // A process leads at most once.
        let _ = self.0.told.set(changed);
    }

    fn failed(&self) -> BoxFuture<'_, String> {
        self.0.failure.reported().boxed()
    }

    fn shut_down(&self) -> BoxFuture<'static, ()> {
        self.0.cancel.cancel();
        self.0.tracker.close();
        let all = Arc::clone(&self.0);
        async move { all.tracker.wait().await }.boxed()
    }
}
