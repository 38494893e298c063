//! The leader's work: follow the binding, keep the vnodes' Leases, and run one [session](crate::session) per worker connection.
//!
//! What needs only the computing cluster lives here, so that vnodes stay Ready while the worker cannot be reached
//! (BU section 1, *Do better*). Stores live as long as the binding: a new connection finds them filled and corrects
//! them by its first lists.
//!
//! ```text
//! run ── binding watch, events, probe of the computing cluster
//!  └── serve, once per binding object ── vnodes, Leases, Proxier pods, status of the binding
//!       └── connect, once per kubeconfig ── node loop without a worker, then a session
//! ```

use std::{net::IpAddr, sync::Arc};

use crate::{
    bindings::{
        status::{self, Cleanup},
        strays::look_once,
    },
    config::SyncerConfig,
    connect,
    directories::PodsByVnode,
    leases::apply::LeaseKeeper,
    metrics::SyncerMetrics,
    nodes::{
        decide::NodeRuntime,
        index::Identity,
        metadata::DenyList,
        ports::Ports,
        store::NodeStore,
        vnode::{BindingView, Settings},
        watch::{watch_proxiers, watch_vnodes},
    },
    placement::slot::DeskSlot,
    stores::Stores,
};
use kube::Client;
use kubeocean_api::validate;
use kubeocean_engine::Engine;
use kubeocean_runtime::{
    binding::Binding,
    binding::watch::{BindingState, follow_binding},
    clock::{Clock, watch_jumps},
    events::{Event, EventRecorder, Regarding, Severity},
    health::{Health, PULSE},
    probe::probe,
    request::cluster_uid,
    tasks::{TaskEnded, Tasks},
    watch::WatchHealth,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Pause between attempts to read the computing cluster's identity.
const RETRY: std::time::Duration = std::time::Duration::from_secs(2);

/// What the leader is given.
#[derive(Clone)]
pub struct Surroundings {
    /// Client of the computing cluster for the election and the vnodes' Leases alone: a renewal waits behind nothing.
    pub leases: Client,
    /// Clock.
    pub clock: Arc<dyn Clock>,
    /// Probes.
    pub health: Arc<Health>,
    /// Metrics.
    pub metrics: Arc<SyncerMetrics>,
    /// Ports of all vnodes of the process (MC-134).
    pub ports: Arc<Ports>,
    /// Where addresses of Proxiers come from, if the settings name none.
    pub proxiers: ProxierSource,
    /// Where a scheduler extender of this process finds who decides about places.
    pub placement: DeskSlot,
}

impl std::fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Surroundings").field("proxiers", &self.proxiers).finish_non_exhaustive()
    }
}

/// Where a binding's Syncer learns the addresses of its Proxiers (MC-133).
#[derive(Debug, Clone)]
pub enum ProxierSource {
    /// From the Proxier's pods.
    Pods,
    /// From the Proxier in the same process; empty while it does not serve.
    Told(watch::Receiver<Vec<IpAddr>>),
}

/// What the tasks of a leader share while they serve one binding object.
#[derive(Clone)]
pub struct Leader {
    /// Settings.
    pub config: Arc<SyncerConfig>,
    /// Client of the computing cluster.
    pub computing: Client,
    /// As [`Surroundings::leases`].
    pub leases: Client,
    /// The binding as it is now.
    pub binding: watch::Receiver<Arc<Binding>>,
    /// UID of the computing cluster's namespace `kube-system`.
    pub computing_uid: String,
    /// Events in the computing cluster.
    pub events: EventRecorder,
    /// Clock.
    pub clock: Arc<dyn Clock>,
    /// Probes.
    pub health: Arc<Health>,
    /// Metrics.
    pub metrics: Arc<SyncerMetrics>,
    /// Stores.
    pub stores: Arc<Stores>,
    /// Progress of the binding's deletion, for its status.
    pub(crate) cleanup: Arc<watch::Sender<Option<Cleanup>>>,
    proxiers: ProxierSource,
}

impl std::fmt::Debug for Leader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leader").field("config", &self.config).finish_non_exhaustive()
    }
}

/// What is the same for every binding object that bears the name.
struct Office {
    config: Arc<SyncerConfig>,
    computing: Client,
    engine: Engine,
    events: EventRecorder,
    surroundings: Surroundings,
}

/// Runs until `cancel`, or fails when a task ends by itself: half alive is worse than dead.
pub async fn run(
    config: Arc<SyncerConfig>,
    computing: Client,
    engine: Engine,
    surroundings: Surroundings,
    cancel: CancellationToken,
) -> Result<(), TaskEnded> {
    let _stop_all = cancel.clone().drop_guard();
    let mut tasks = Tasks::new(cancel.clone());
    let (states, following) =
        follow_binding(&computing, &config.binding_name, Arc::new(WatchHealth::default()), cancel.clone());
    tasks.spawn("binding watch", following);
    let (events, sending) = EventRecorder::new(
        computing.clone(),
        format!("kubeocean-syncer-{}", config.binding_name),
        Arc::clone(&surroundings.clock),
        cancel.clone(),
    );
    tasks.spawn("events", sending);
    {
        let (client, health) = (computing.clone(), Arc::clone(&surroundings.health));
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
    let office = Office { config, computing, engine, events, surroundings };
    tasks.spawn_owner("bindings", async move { office.serve_all(states, cancel).await });
    tasks.join().await
}

impl Office {
    /// Serves the binding, and after it was deleted the next one of its name.
    async fn serve_all(
        &self,
        mut states: watch::Receiver<BindingState>,
        cancel: CancellationToken,
    ) -> Result<(), TaskEnded> {
        loop {
            self.surroundings.health.set_ready(false);
            let Some(binding) = self.usable_binding(&mut states, &cancel).await else { return Ok(()) };
            let Some(computing_uid) = self.computing_uid(&cancel).await else { return Ok(()) };
            let (sender, receiver) = watch::channel(Arc::clone(&binding));
            let leader = self.leader(&binding, receiver, computing_uid);
            serve(leader, states.clone(), sender, cancel.child_token()).await?;
            if cancel.is_cancelled() {
                return Ok(());
            }
        }
    }

    /// Waits for a binding that can be served; says what is wrong with it until then, where its owner looks.
    async fn usable_binding(
        &self,
        states: &mut watch::Receiver<BindingState>,
        cancel: &CancellationToken,
    ) -> Option<Arc<Binding>> {
        let mut pulse = tokio::time::interval(PULSE);
        loop {
            let state = states.borrow_and_update().clone();
            if let Some(binding) = self.usable(state) {
                return Some(binding);
            }
            loop {
                tokio::select! {
                    () = cancel.cancelled() => return None,
                    changed = states.changed() => {
                        changed.ok()?;
                        break;
                    }
                    _ = pulse.tick() => self.surroundings.health.progress(),
                }
            }
        }
    }

    fn usable(&self, state: BindingState) -> Option<Arc<Binding>> {
        let binding = match state {
            BindingState::Unknown => return None,
            BindingState::Missing => {
                let binding = &self.config.binding_name;
                tracing::warn!(binding, "ClusterBinding not found, waiting for it to be created");
                return None;
            }
            BindingState::Present(binding) => binding,
        };
        if binding.force_detach {
            tracing::warn!(binding = binding.name, "detached by force: nothing is written for this binding");
            return None;
        }
        let Err(problem) = validate::binding(&binding.spec) else { return Some(binding) };
        tracing::warn!(binding = binding.name, problem, "ClusterBinding is invalid, waiting for a change");
        self.events.publish(invalid(&binding, problem));
        None
    }

    async fn computing_uid(&self, cancel: &CancellationToken) -> Option<String> {
        loop {
            self.surroundings.health.progress();
            match cluster_uid(&self.computing).await {
                Ok(Some(uid)) => return Some(uid),
                Ok(None) => tracing::warn!("the computing cluster has no namespace kube-system, retrying"),
                Err(error) => {
                    tracing::warn!(error = error.chain(), "cannot read namespace kube-system, retrying");
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return None,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }

    fn leader(
        &self,
        binding: &Arc<Binding>,
        receiver: watch::Receiver<Arc<Binding>>,
        computing_uid: String,
    ) -> Leader {
        let identity = Identity {
            binding: binding.name.clone(),
            cluster_id: binding.cluster_id.clone(),
            computing_uid: computing_uid.clone(),
        };
        let ports = Arc::clone(&self.surroundings.ports);
        let nodes = NodeStore::new(identity.clone(), binding_view(binding), ports);
        nodes.own_pods_are_in(&binding.spec.mount_namespace);
        nodes.set_proxier(self.config.proxier_addresses.iter().copied());
        let stores =
            Arc::new(Stores::new(&self.config, binding, identity, nodes, &self.engine, &self.surroundings));
        self.surroundings.metrics.follow(&stores);
        self.surroundings.placement.set(&stores.place);
        Leader {
            config: Arc::clone(&self.config),
            computing: self.computing.clone(),
            leases: self.surroundings.leases.clone(),
            binding: receiver,
            computing_uid,
            events: self.events.clone(),
            clock: Arc::clone(&self.surroundings.clock),
            health: Arc::clone(&self.surroundings.health),
            metrics: Arc::clone(&self.surroundings.metrics),
            stores,
            cleanup: Arc::new(watch::Sender::new(None)),
            proxiers: self.surroundings.proxiers.clone(),
        }
    }
}

/// Serves one binding object until `cancel`, until it is gone, or until a user detached it by force.
async fn serve(
    leader: Leader,
    states: watch::Receiver<BindingState>,
    sender: watch::Sender<Arc<Binding>>,
    cancel: CancellationToken,
) -> Result<(), TaskEnded> {
    let mut tasks = Tasks::new(cancel.clone());
    tasks.spawn("binding", pass_on(states, sender, leader.clone(), cancel.clone()));
    start_computing_side(&leader, &mut tasks, &cancel);
    tasks.spawn("binding status", status::run(leader.clone(), cancel.clone()));
    tasks.spawn_owner("connections", connect::run(leader, cancel));
    tasks.join().await
}

fn start_computing_side(leader: &Leader, tasks: &mut Tasks, cancel: &CancellationToken) {
    let nodes = &leader.stores.nodes;
    let vnodes = Arc::clone(&leader.stores.vnodes_listed);
    tasks.spawn(
        "vnodes",
        watch_vnodes(leader.computing.clone(), Arc::clone(nodes), Arc::clone(&vnodes), cancel.clone()),
    );
    {
        let (leader, cancel) = (leader.clone(), cancel.clone());
        tasks.spawn("stray vnodes", async move { look_once(&leader, cancel).await });
    }
    let keeper = LeaseKeeper::new(leader.leases.clone(), Arc::clone(nodes), Arc::clone(&leader.clock));
    tasks.spawn("leases", keeper.run(leader.health.begin("leases"), cancel.clone()));
    if leader.config.proxier_addresses.is_empty() {
        let (computing, nodes, config) =
            (leader.computing.clone(), Arc::clone(nodes), Arc::clone(&leader.config));
        let cancel = cancel.clone();
        match leader.proxiers.clone() {
            ProxierSource::Pods => tasks.spawn("proxier pods", async move {
                watch_proxiers(computing, &config.system_namespace, nodes, cancel).await;
            }),
            ProxierSource::Told(addresses) => tasks.spawn("proxier", async move {
                follow_proxier(addresses, &nodes, &cancel).await;
            }),
        }
    }
    {
        let (health, cancel) = (Arc::clone(&leader.health), cancel.clone());
        tasks.spawn("readiness", async move {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = vnodes.synced() => health.set_ready(true),
            }
            cancel.cancelled().await;
        });
    }
    let (clock, stores, cancel) = (Arc::clone(&leader.clock), Arc::clone(&leader.stores), cancel.clone());
    tasks.spawn("clock", async move {
        watch_jumps(clock.as_ref(), cancel, || {
            stores.nodes.wake_all();
            stores.policies.wake_all();
        })
        .await;
    });
}

/// Hands the addresses of the Proxier in this process to the vnodes.
async fn follow_proxier(
    mut addresses: watch::Receiver<Vec<IpAddr>>,
    nodes: &NodeStore,
    cancel: &CancellationToken,
) {
    loop {
        let now = addresses.borrow_and_update().clone();
        nodes.set_proxier(now);
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = addresses.changed() => if changed.is_err() {
                // Nobody tells any more; what was told last stands.
                cancel.cancelled().await;
                return;
            },
        }
    }
}

/// The node planner's view of the binding.
pub(crate) fn binding_view(binding: &Binding) -> BindingView {
    BindingView {
        name: binding.name.clone(),
        cluster_id: binding.cluster_id.clone(),
        deleting: binding.deleting,
        disable_default_taint: binding.spec.disable_node_default_taint,
    }
}

/// Hands every change of the binding to the stores. When the object is gone, or another one has its name, or a user
/// gave the worker up, everything that was done for it ends: its identity never changes while it is served. A version in
/// which it does is refused: names, labels and places of everything that exists follow from it.
async fn pass_on(
    mut states: watch::Receiver<BindingState>,
    sender: watch::Sender<Arc<Binding>>,
    leader: Leader,
    cancel: CancellationToken,
) {
    let served = leader.binding.borrow().clone();
    loop {
        let state = states.borrow_and_update().clone();
        match state {
            BindingState::Unknown => {}
            BindingState::Present(binding) if binding.uid == served.uid && !binding.force_detach => {
                let binding = match identity_change(&served, &binding) {
                    None => Some(binding),
                    Some(problem) => {
                        leader.refuse_change(&binding, problem);
                        // Its end is followed in any case, by what it was served as.
                        binding.deleting.then(|| Arc::new(as_served(&served, &binding)))
                    }
                };
                if let Some(binding) = binding {
                    leader.stores.set_binding(&binding, &leader.config, &leader.computing_uid);
                    sender.send_replace(binding);
                }
            }
            BindingState::Present(_) | BindingState::Missing => {
                tracing::info!(binding = served.name, uid = served.uid, "this binding is no longer served");
                cancel.cancel();
                return;
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = states.changed() => if changed.is_err() { return },
        }
    }
}

/// What is wrong with a changed binding that cannot be followed, naming the field.
fn identity_change(served: &Binding, changed: &Binding) -> Option<String> {
    let fields = [
        ("clusterID", &served.cluster_id, &changed.cluster_id),
        ("mountNamespace", &served.spec.mount_namespace, &changed.spec.mount_namespace),
    ];
    let (field, old, new) = fields.into_iter().find(|(_, old, new)| old != new)?;
    Some(format!(
        "spec.{field} was changed from {old:?} to {new:?}, which is not supported: change it back; until then no change \
         of this binding is followed"
    ))
}

/// A version of the binding with the identity it is served with.
fn as_served(served: &Binding, changed: &Binding) -> Binding {
    let mut binding = changed.clone();
    binding.cluster_id.clone_from(&served.cluster_id);
    binding.spec.cluster_id.clone_from(&served.spec.cluster_id);
    binding.spec.mount_namespace.clone_from(&served.spec.mount_namespace);
    binding
}

/// What is wrong with a binding, for its owner.
fn invalid(binding: &Binding, problem: String) -> Event {
    Event {
        regarding: Regarding::binding(&binding.name, &binding.uid),
        severity: Severity::Warning,
        reason: "BindingInvalid",
        message: problem,
    }
}

impl Leader {
    /// Tells where its owner looks that a change of the binding is not followed.
    fn refuse_change(&self, binding: &Binding, problem: String) {
        tracing::error!(binding = binding.name, problem, "the change of the ClusterBinding is not followed");
        self.events.publish(invalid(binding, problem));
    }

    /// Keys of worker nodes and their CSINodes that are not mirrored.
    pub(crate) fn deny_list(&self) -> DenyList {
        DenyList::new(self.config.vnode_metadata_deny.iter().cloned())
    }

    /// What the node loop works with, with or without a worker.
    pub(crate) fn node_runtime(
        &self,
        worker: Option<crate::nodes::decide::WorkerSide>,
        cancel: CancellationToken,
    ) -> NodeRuntime {
        NodeRuntime {
            store: Arc::clone(&self.stores.nodes),
            computing: self.computing.clone(),
            worker,
            pods: Arc::new(PodsByVnode(Arc::clone(&self.stores.pods))),
            events: self.events.clone(),
            binding_uid: self.binding.borrow().uid.clone(),
            system_namespace: self.config.system_namespace.clone(),
            clock: Arc::clone(&self.clock),
            settings: Settings {
                deny: self.deny_list(),
                prometheus_port: self.config.prometheus_vnode_base_port,
            },
            pace: Arc::clone(&self.stores.pace),
            health: Arc::clone(&self.health),
            workers: self.config.node_workers,
            cancel,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(cluster_id: &str, mount_namespace: &str) -> Binding {
        let mut binding = Binding { cluster_id: cluster_id.to_owned(), ..Binding::default() };
        binding.spec.cluster_id = cluster_id.to_owned();
        binding.spec.mount_namespace = mount_namespace.to_owned();
        binding
    }

    #[test]
    fn a_changed_identity_is_refused_by_name_and_its_end_is_followed_as_served() {
        let served = binding("east", "mount");
        let mut other = binding("east", "mount");
        other.spec.direct_scheduling = true;
        assert_eq!(identity_change(&served, &other), None);
        for (changed, field) in [
            (binding("east", "elsewhere"), "spec.mountNamespace"),
            (binding("west", "mount"), "spec.clusterID"),
        ] {
            let problem = identity_change(&served, &changed).expect("it is refused");
            assert!(problem.contains(field), "{problem}");
            let ending = Binding { deleting: true, ..changed };
            assert_eq!(as_served(&served, &ending), Binding { deleting: true, ..served.clone() });
        }
    }
}
