//! The leader's work: follow the binding, keep the vnodes' Leases, and run one [`session`] per worker connection.
//!
//! What needs only the computing cluster lives here, so that vnodes stay Ready while the worker cannot be reached
//! (BU section 1, *Do better*). Stores live here too: a new connection finds them filled and corrects them by its
//! first lists.

use std::{net::IpAddr, sync::Arc, time::Duration};

use crate::{
    config::SyncerConfig,
    leases::apply::LeaseKeeper,
    metrics::SyncerMetrics,
    nodes::{
        decide::{NodeRuntime, run as run_nodes},
        index::Identity,
        store::{NodeStore, Readiness},
        vnode::{BindingView, Settings},
        watch::{watch_proxiers, watch_vnodes},
    },
    session::{self, Stores},
};
use kube::Client;
use kubeocean_api::{name::PortTable, validate};
use kubeocean_engine::Engine;
use kubeocean_runtime::{
    binding::Binding,
    binding::connection::{ConnectError, connected},
    binding::watch::{BindingState, follow_binding, follow_secret},
    clock::Clock,
    events::{Event, EventRecorder, Regarding, Severity},
    health::Health,
    request::{get_json, paths},
    tasks::{TaskEnded, Tasks},
    watch::WatchHealth,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// After this long without a worker connection vnodes say so (BU section 6).
const UNREACHABLE_AFTER: Duration = Duration::from_secs(60);
/// Pause between attempts to read the computing cluster's identity.
const RETRY: Duration = Duration::from_secs(2);

/// What the leader is given.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// Clock.
    pub clock: Arc<dyn Clock>,
    /// Probes.
    pub health: Arc<Health>,
    /// Metrics.
    pub metrics: Arc<SyncerMetrics>,
    /// Ports of all vnodes of the process (MC-134).
    pub ports: Arc<Mutex<PortTable>>,
    /// Where addresses of Proxiers come from, if the settings name none.
    pub proxiers: ProxierSource,
}

/// Where a binding's Syncer learns the addresses of its Proxiers (MC-133).
#[derive(Debug, Clone)]
pub enum ProxierSource {
    /// From the Proxier's pods.
    Pods,
    /// From the Proxier in the same process; empty while it does not serve.
    Told(watch::Receiver<Vec<IpAddr>>),
}

/// Why the leader gave up. The process then ends, because half alive is worse than dead.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// A task ended by itself or panicked.
    #[error(transparent)]
    TaskEnded(#[from] TaskEnded),
    /// The policy engine refused a new host.
    #[error("the policy engine cannot serve this binding")]
    Engine(#[from] kubeocean_engine::EngineError),
}

/// What the tasks of a leader share.
#[derive(Clone)]
pub struct Leader {
    /// Settings.
    pub config: Arc<SyncerConfig>,
    /// Client of the computing cluster.
    pub computing: Client,
    /// The binding as it is now.
    pub binding: watch::Receiver<Arc<Binding>>,
    /// UID of the computing cluster's namespace `kube-system`.
    pub computing_uid: String,
    /// Events in the computing cluster.
    pub events: EventRecorder,
    /// Clock.
    pub clock: Arc<dyn Clock>,
    /// Metrics.
    pub metrics: Arc<SyncerMetrics>,
    /// Stores.
    pub stores: Arc<Stores>,
}

impl std::fmt::Debug for Leader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leader").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Runs until `cancel`, or fails when a task ends by itself.
pub async fn run(
    config: Arc<SyncerConfig>,
    computing: Client,
    engine: Engine,
    surroundings: Surroundings,
    cancel: CancellationToken,
) -> Result<(), LeaderError> {
    let _stop_all = cancel.clone().drop_guard();
    let mut tasks = Tasks::new(cancel.clone());
    let binding_health = Arc::new(WatchHealth::default());
    let (mut states, following) =
        follow_binding(&computing, &config.binding_name, Arc::clone(&binding_health), cancel.clone());
    tasks.spawn("binding watch", following);
    let Some(first) = usable_binding(&config, &mut states, &cancel).await else { return Ok(()) };
    let Some(computing_uid) = computing_uid(&computing, &cancel).await else { return Ok(()) };
    let (events, sending) = EventRecorder::new(
        computing.clone(),
        format!("kubeocean-syncer-{}", config.binding_name),
        Arc::clone(&surroundings.clock),
        cancel.clone(),
    );
    tasks.spawn("events", sending);
    let (sender, binding) = watch::channel(first.clone());
    let identity = Identity {
        binding: first.name.clone(),
        cluster_id: first.cluster_id.clone(),
        computing_uid: computing_uid.clone(),
    };
    let nodes = NodeStore::new(identity.clone(), binding_view(&first), Arc::clone(&surroundings.ports));
    nodes.set_proxier(config.proxier_addresses.iter().copied());
    let stores = Stores::new(&config, &first, identity, nodes, &engine, &surroundings)?;
    surroundings.metrics.policies.follow(&stores.host);
    let leader = Leader {
        config,
        computing,
        binding,
        computing_uid,
        events,
        clock: Arc::clone(&surroundings.clock),
        metrics: Arc::clone(&surroundings.metrics),
        stores: Arc::new(stores),
    };
    tasks.spawn("binding", pass_on(states, sender, leader.clone(), cancel.clone()));
    start_computing_side(&leader, &surroundings, &mut tasks, &cancel);
    tasks.spawn("sessions", sessions(leader.clone(), cancel.clone()));
    tasks.spawn("metrics", crate::session::tell_metrics(leader, cancel.clone()));
    tasks.join().await.map_err(Into::into)
}

fn start_computing_side(
    leader: &Leader,
    surroundings: &Surroundings,
    tasks: &mut Tasks,
    cancel: &CancellationToken,
) {
    let nodes = &leader.stores.nodes;
    let vnodes = Arc::clone(&leader.stores.vnodes_listed);
    tasks.spawn(
        "vnodes",
        watch_vnodes(leader.computing.clone(), Arc::clone(nodes), Arc::clone(&vnodes), cancel.clone()),
    );
    let keeper = LeaseKeeper::new(leader.computing.clone(), Arc::clone(nodes), Arc::clone(&leader.clock));
    tasks.spawn("leases", keeper.run(cancel.clone()));
    if leader.config.proxier_addresses.is_empty() {
        let (computing, nodes, config) =
            (leader.computing.clone(), Arc::clone(nodes), Arc::clone(&leader.config));
        let cancel = cancel.clone();
        match surroundings.proxiers.clone() {
            ProxierSource::Pods => tasks.spawn("proxier pods", async move {
                watch_proxiers(computing, &config.system_namespace, nodes, cancel).await;
            }),
            ProxierSource::Told(addresses) => tasks.spawn("proxier", async move {
                follow_proxier(addresses, &nodes, &cancel).await;
            }),
        }
    }
    let (health, cancel) = (Arc::clone(&surroundings.health), cancel.clone());
    tasks.spawn("readiness", async move {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = vnodes.synced() => health.set_ready(true),
        }
        cancel.cancelled().await;
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
                // The Proxier is gone; its addresses are told to be none before that.
                cancel.cancelled().await;
                return;
            },
        }
    }
}

/// Waits for a binding whose spec can be served; says what is wrong with it until then.
async fn usable_binding(
    config: &SyncerConfig,
    states: &mut watch::Receiver<BindingState>,
    cancel: &CancellationToken,
) -> Option<Arc<Binding>> {
    loop {
        match states.borrow_and_update().clone() {
            BindingState::Unknown => {}
            BindingState::Missing => {
                tracing::warn!(
                    binding = config.binding_name,
                    "ClusterBinding not found, waiting for it to be created"
                );
            }
            BindingState::Present(binding) => match validate::binding(&binding.spec) {
                Ok(()) => return Some(binding),
                Err(problem) => {
                    tracing::warn!(
                        binding = binding.name,
                        problem,
                        "ClusterBinding is invalid, waiting for a change"
                    );
                }
            },
        }
        tokio::select! {
            () = cancel.cancelled() => return None,
            changed = states.changed() => changed.ok()?,
        }
    }
}

async fn computing_uid(computing: &Client, cancel: &CancellationToken) -> Option<String> {
    loop {
        match get_json(computing, &paths::namespace("kube-system")).await {
            Ok(Some(namespace)) => {
                if let Some(uid) = namespace.pointer("/metadata/uid").and_then(serde_json::Value::as_str) {
                    return Some(uid.to_owned());
                }
            }
            Ok(None) => tracing::warn!("the computing cluster has no namespace kube-system, retrying"),
            Err(error) => {
                tracing::warn!(error = error.chain(), "cannot read namespace kube-system, retrying")
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return None,
            () = tokio::time::sleep(RETRY) => {}
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

/// Hands every change of the binding to the stores. Its identity never changes here: a changed clusterID is refused
/// by the CRD, and a re-created binding has another UID, which ends the work of the old one.
async fn pass_on(
    mut states: watch::Receiver<BindingState>,
    sender: watch::Sender<Arc<Binding>>,
    leader: Leader,
    cancel: CancellationToken,
) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = states.changed() => if changed.is_err() { return },
        }
        let BindingState::Present(binding) = states.borrow_and_update().clone() else { continue };
        if binding.cluster_id != leader.stores.identity.cluster_id {
            tracing::error!(
                binding = binding.name,
                "clusterID was changed, which is not supported; change it back"
            );
            continue;
        }
        leader.stores.set_binding(&binding, &leader.config, &leader.computing_uid);
        sender.send_replace(binding);
    }
}

/// Connects to the worker, runs a session, and starts over when the connection's Secret changes.
async fn sessions(leader: Leader, cancel: CancellationToken) {
    let mut binding = leader.binding.clone();
    loop {
        let reference = binding.borrow_and_update().spec.secret_ref.clone();
        let secret = format!("{}/{}", reference.namespace, reference.name);
        let following = cancel.child_token();
        let (mut secrets, watching) =
            follow_secret(&leader.computing, &reference.namespace, &reference.name, following.clone());
        let watching = tokio::spawn(watching);
        leader.stores.nodes.set_readiness(Readiness::Listing);
        let waiting = following.child_token();
        let disconnected = tokio::spawn(run_disconnected(leader.clone(), waiting.clone()));
        let connect =
            connected(&secret, &mut secrets, leader.config.allow_unsafe_kubeconfig, &following, |error| {
                tell(&leader, error);
            });
        let worker = tokio::select! {
            worker = connect => worker,
            () = secret_ref_changed(&mut binding, &reference) => None,
        };
        waiting.cancel();
        let _ = disconnected.await;
        if let Some(worker) = worker {
            let over = following.child_token();
            let work = session::run(&leader, worker, over.clone());
            tokio::pin!(work);
            tokio::select! {
                () = &mut work => {}
                _ = secrets.changed() => {
                    tracing::info!(secret, "kubeconfig changed, reconnecting");
                    over.cancel();
                    work.await;
                }
                () = secret_ref_changed(&mut binding, &reference) => {
                    over.cancel();
                    work.await;
                }
            }
        }
        following.cancel();
        let _ = watching.await;
        if cancel.is_cancelled() {
            return;
        }
    }
}

async fn secret_ref_changed(
    binding: &mut watch::Receiver<Arc<Binding>>,
    used: &kubeocean_api::binding::SecretRef,
) {
    if binding.wait_for(|binding| binding.spec.secret_ref != *used).await.is_err() {
        std::future::pending::<()>().await;
    }
}

fn tell(leader: &Leader, error: &ConnectError) {
    let binding = leader.binding.borrow().clone();
    tracing::warn!(binding = binding.name, %error, "no connection to the worker cluster, retrying");
    leader.events.publish(Event {
        regarding: Regarding {
            api_version: "cloud.tencent.com/v1beta1",
            kind: "ClusterBinding",
            namespace: String::new(),
            name: binding.name.clone(),
            uid: binding.uid.clone(),
        },
        severity: Severity::Warning,
        reason: "WorkerConnectionFailed",
        message: error.to_string(),
    });
}

/// While no worker is connected vnodes only get their reachability condition and taint.
async fn run_disconnected(leader: Leader, cancel: CancellationToken) {
    let nodes = Arc::clone(&leader.stores.nodes);
    let runtime = Arc::new(leader.node_runtime(None, cancel.clone()));
    let unreachable = async {
        tokio::select! {
            () = cancel.cancelled() => {}
            () = tokio::time::sleep(UNREACHABLE_AFTER) => {
                nodes.set_unreachable(true);
                cancel.cancelled().await;
            }
        }
    };
    tokio::join!(run_nodes(runtime), unreachable);
}

impl Leader {
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
            pods: Arc::new(session::PodsByVnode(Arc::clone(&self.stores.pods))),
            events: self.events.clone(),
            binding_uid: self.binding.borrow().uid.clone(),
            system_namespace: self.config.system_namespace.clone(),
            clock: Arc::clone(&self.clock),
            settings: Settings {
                deny: crate::nodes::metadata::DenyList::new(self.config.vnode_metadata_deny.iter().cloned()),
                prometheus_port: self.config.prometheus_vnode_base_port,
            },
            workers: self.config.node_workers,
            cancel,
        }
    }
}
