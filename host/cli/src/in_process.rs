//! Syncers and Proxiers as tasks of the Manager's process (MC-130): one of each per binding, with what a process has only
//! once - policy engine, port table, listeners, identity - shared by all.
//!
//! A component that panics or ends by itself ends the process (MC-137); what is wrong with a worker or a kubeconfig
//! concerns its binding only, and is the Syncer's own business.

mod exposition;
mod places;

use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use futures::{FutureExt, future::BoxFuture};
use kube::Client;
use kubeocean_api::{keys::annotation, place::syncer_lease};
use kubeocean_engine::Engine;
use kubeocean_manager::components::{Component, Components, Identity, Running, State};
use kubeocean_proxier::{BindingHealth, Proxier};
use kubeocean_runtime::{
    binding::watch::follow_binding, clock::SystemClock, election::ElectionConfig,
    first_failure::FirstFailure, health::Health, rate::RequestRate,
};
use kubeocean_syncer::{
    config::SyncerConfig,
    leader::{ProxierSource, Surroundings},
    metrics::SyncerMetrics,
    nodes::ports::Ports,
    placement::slot::DeskSlot,
    process::{Service, Standby, serve_binding},
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(crate) use places::AllSyncers;

use crate::computing;

/// How often readiness of components is compared with what was told. It can end by time alone, so nothing reports it.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Twice as long as streams of a vnode that is gone may go on.
const STOP_WITHIN: Duration = Duration::from_mins(1);

/// What all components of the process are made with.
pub(crate) struct Settings {
    /// Settings of every Syncer, but for the name of its binding.
    pub(crate) syncer: SyncerConfig,
    /// How Syncers elect, but for the name of the Lease; `None` if they do not.
    pub(crate) election: Option<ElectionConfig>,
    /// Kubeconfig of the computing cluster. Each binding has a client of its own (MC-134).
    pub(crate) kubeconfig: Option<PathBuf>,
    /// How many requests each of these clients sends; `None` is no limit.
    pub(crate) computing_rate: Option<RequestRate>,
    /// The process's policy engine.
    pub(crate) engine: Engine,
    /// Client of the computing cluster for what serves all bindings.
    pub(crate) computing: Client,
    /// Another one, for the elections and Leases of all bindings.
    pub(crate) leases: Client,
    /// The process's listeners of the kubelet API, with room for every binding.
    pub(crate) proxier: Proxier,
}

/// Who is told, by name of the binding, that there is news.
type Told = Box<dyn Fn(&str) + Send + Sync>;

/// The components of all bindings.
pub(crate) struct InProcess {
    settings: Settings,
    ports: Arc<Ports>,
    serving: Mutex<BTreeMap<String, Serving>>,
    told: OnceLock<Told>,
    failure: FirstFailure,
    tracker: TaskTracker,
    cancel: CancellationToken,
}

/// The components of one binding.
struct Serving {
    identity: Identity,
    syncer: Option<RunningSyncer>,
    proxier: RunningProxier,
}

#[derive(Clone)]
struct RunningSyncer {
    health: Arc<Health>,
    metrics: Arc<SyncerMetrics>,
    placement: DeskSlot,
    task: Task,
}

struct RunningProxier {
    health: watch::Receiver<BindingHealth>,
    /// Tells the Syncer where the vnodes are reached (MC-133).
    addresses: watch::Sender<Vec<IpAddr>>,
    task: Task,
}

/// A running component.
#[derive(Clone)]
struct Task {
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
    /// Ends a component. One that hangs ends the process, because nothing else makes its binding go on.
    async fn stop(&self, component: Component, binding: &str, task: &Task) {
        task.cancel.cancel();
        if tokio::time::timeout(STOP_WITHIN, task.ended.cancelled()).await.is_err() {
            let within = STOP_WITHIN.as_secs();
            self.failure.report(format!("the {component} of {binding} did not end within {within} s"));
        }
    }

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
        let syncers = tasks.into_iter().map(|syncer| syncer.metrics.encode());
        exposition::merge([manager, self.settings.proxier.metrics()()].into_iter().chain(syncers))
    }

    fn tell_changed(&self, binding: &str) {
        if let Some(told) = self.told.get() {
            told(binding);
        }
    }

    /// Runs the listeners of the kubelet API until the end of all; `events` sends what the Proxier has to tell.
    pub(crate) fn run_proxier(self: &Arc<Self>, events: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(events);
        let all = Arc::clone(self);
        self.tracker.spawn(async move {
            let (proxier, cancel) = (all.settings.proxier.clone(), all.cancel.clone());
            let why = match tokio::spawn(async move { proxier.run(cancel).await }).await {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            all.failure.report(format!("the Proxier failed: {why}"));
        });
    }

    /// Runs a component of a binding; one that ends by itself or panics ends the process.
    fn run(
        self: &Arc<Self>,
        component: Component,
        binding: &str,
        cancel: CancellationToken,
        work: impl Future<Output = anyhow::Result<()>> + Send + 'static,
    ) -> Task {
        let task = Task { cancel, ended: CancellationToken::new() };
        let (all, running, binding) = (Arc::clone(self), task.clone(), binding.to_owned());
        self.tracker.spawn(async move {
            let why = match tokio::spawn(work).await {
                Ok(Ok(())) if running.cancel.is_cancelled() => None,
                Ok(Ok(())) => Some("it ended by itself".to_owned()),
                Ok(Err(error)) => Some(format!("{error:#}")),
                Err(error) => Some(error.to_string()),
            };
            if let Some(why) = why {
                all.failure.report(format!("the {component} of {binding} failed: {why}"));
            }
            running.ended.cancel();
            all.tell_changed(&binding);
        });
        task
    }

    fn start_proxier(self: &Arc<Self>, identity: &Identity) -> RunningProxier {
        let (cancel, binding) = (self.cancel.child_token(), identity.binding.clone());
        let (computing, proxier) = (&self.settings.computing, &self.settings.proxier);
        let (states, following) = follow_binding(computing, &binding, Arc::default(), cancel.clone());
        let (health, serving) = proxier.serve(&binding, states, cancel.clone());
        let (all, mut news, end) = (Arc::clone(self), health.clone(), cancel.clone());
        let work = async move {
            let telling = end.run_until_cancelled(async {
                while news.changed().await.is_ok() {
                    all.tell_changed(&binding);
                }
            });
            tokio::join!(following, serving, telling);
            Ok(())
        };
        let task = self.run(Component::Proxier, &identity.binding, cancel, work);
        // The listeners are open already: callers get an answer, if only that the worker is not connected yet.
        let addresses = watch::Sender::new(vec![proxier.advertised()]);
        RunningProxier { health, addresses, task }
    }

    fn start_syncer(self: &Arc<Self>, identity: &Identity, proxier: &RunningProxier) -> RunningSyncer {
        let health = Arc::<Health>::default();
        let metrics = Arc::new(SyncerMetrics::new(&identity.binding));
        let placement = DeskSlot::default();
        let surroundings = Surroundings {
            leases: self.settings.leases.clone(),
            clock: Arc::new(SystemClock),
            health: Arc::clone(&health),
            metrics: Arc::clone(&metrics),
            ports: Arc::clone(&self.ports),
            proxiers: ProxierSource::Told(proxier.addresses.subscribe()),
            placement: placement.clone(),
        };
        let cancel = self.cancel.child_token();
        let work = serve(Arc::clone(self), identity.clone(), surroundings, cancel.clone());
        let task = self.run(Component::Syncer, &identity.binding, cancel, work);
        RunningSyncer { health, metrics, placement, task }
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
    let computing = computing::connect(kubeconfig.as_deref(), all.settings.computing_rate).await?;
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
    let election = settings.election.as_ref().map(|election| election_of(election, &identity));
    Service {
        config: Arc::new(SyncerConfig { binding_name: identity.binding, ..settings.syncer.clone() }),
        election,
        standby: Standby::NotReady,
        computing,
        engine: settings.engine.clone(),
        surroundings,
    }
}

/// The election of one binding's Syncer.
fn election_of(all: &ElectionConfig, identity: &Identity) -> ElectionConfig {
    ElectionConfig {
        // The name that a Syncer started as a Deployment uses, so that the two never act together (MC-131).
        lease: syncer_lease(&identity.cluster_id),
        // Two bindings of this process may have one clusterID for a moment: the second must find the Lease taken.
        identity: format!("{}_{}", all.identity, identity.uid),
        // A task has no policy server; what a process wrote that led before is outdated.
        annotations: BTreeMap::from([(annotation::POLICY_ENDPOINT, None)]),
        ..all.clone()
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
            let stuck = |one: &&Serving| one.syncer.as_ref().is_some_and(|syncer| !syncer.health.is_alive());
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
        self.syncer.as_ref().is_some_and(|syncer| syncer.health.is_ready())
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
        let proxier = self.0.start_proxier(identity);
        let syncer = Some(self.0.start_syncer(identity, &proxier));
        serving.insert(identity.binding.clone(), Serving { identity: identity.clone(), syncer, proxier });
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
        let proxier = match &*one.proxier.health.borrow() {
            BindingHealth::Ready => State::Available,
            BindingHealth::Waiting(why) => State::Progressing(why.clone()),
        };
        Running { identity: Some(one.identity.clone()), syncer, proxier }
    }

    fn stop<'a>(&'a self, binding: &'a str, component: Component) -> BoxFuture<'a, ()> {
        async move {
            match component {
                Component::Syncer => {
                    let syncer = self.0.serving.lock().get(binding).and_then(|one| one.syncer.clone());
                    if let Some(syncer) = syncer {
                        self.0.stop(component, binding, &syncer.task).await;
                    }
                    if let Some(one) = self.0.serving.lock().get_mut(binding) {
                        one.syncer = None;
                    }
                }
                // It ends last, and with it what is known of the binding.
                Component::Proxier => {
                    let task = self.0.serving.lock().get(binding).map(|one| one.proxier.task.clone());
                    if let Some(task) = task {
                        self.0.stop(component, binding, &task).await;
                    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_bindings_with_one_cluster_id_compete_for_one_lease() {
        let all = ElectionConfig {
            namespace: "ns".to_owned(),
            lease: "kubeocean-syncer".to_owned(),
            identity: "host_1".to_owned(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
            annotations: BTreeMap::new(),
        };
        let of = |uid: &str| {
            let identity = Identity {
                binding: format!("binding-{uid}"),
                uid: uid.to_owned(),
                cluster_id: "c".to_owned(),
                mount_namespace: "m".to_owned(),
            };
            election_of(&all, &identity)
        };
        let (one, two) = (of("one"), of("two"));
        assert_eq!((one.lease.as_str(), two.lease.as_str()), ("kubeocean-syncer-c", "kubeocean-syncer-c"));
        assert_ne!(one.identity, two.identity);
        assert_eq!(one.identity, of("one").identity);
    }
}
