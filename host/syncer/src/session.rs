//! One connection to the worker cluster: its watches, and the loops over nodes, policies, pods and objects.
//!
//! No loop acts before the first lists of both clusters are complete: before that, absence proves nothing.

use std::{sync::Arc, time::Duration};

use crate::{
    bindings::deletion,
    bindings::finalizer::keep_finalizer,
    config::SyncerConfig,
    leader::{Leader, LeaderError, Surroundings, Tasks, binding_view},
    nodes::{
        decide::{PodsOnVnode, WorkerSide, open_gate, run as run_nodes},
        index::Identity,
        store::{NodeStore, Readiness},
        watch::{watch_reachability, watch_worker_nodes, watch_worker_pods},
        withdraw::PodOnVnode,
    },
    objects::{Clusters, ObjectHealth, ObjectStore, Scope, run_objects},
    pods::{
        apply::{PodSync, VnodeDirectory},
        index::PodStore,
        priority_class::DefaultPriorityClass,
        snapshot::{PodScope, VnodeState},
        view::Phase,
        watch::{PodHealth, run_pods, watch_pods},
        workload::Workloads,
    },
    policies::{
        apply::{PolicyRuntime, feed_engine, follow_engine, run as run_policies, watch_policies},
        fetch,
        modules::ModuleNamespaces,
        store::PolicyStore,
    },
};
use kube::Client;
use kubeocean_engine::{BindingFacts, Engine, PolicyHost};
use kubeocean_runtime::{binding::Binding, events::EventRecorder, watch::WatchHealth};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// How often gauges are brought up to date.
const GAUGES_EVERY: Duration = Duration::from_secs(15);

/// Everything known of both clusters, kept across connections.
#[derive(Debug)]
pub struct Stores {
    /// Who we are.
    pub identity: Identity,
    /// Nodes and vnodes.
    pub nodes: Arc<NodeStore>,
    /// Vpods and ppods.
    pub pods: Arc<PodStore>,
    /// ConfigMaps, Secrets, tokens and Services.
    pub objects: Arc<ObjectStore>,
    /// Policies.
    pub policies: Arc<PolicyStore>,
    /// What decides by them.
    pub host: Arc<PolicyHost>,
    /// Counts the changes of the engine's state.
    pub loaded: Arc<watch::Sender<u64>>,
    /// The first list of vnodes.
    pub vnodes_listed: Arc<WatchHealth>,
    workloads: Arc<Workloads>,
}

impl Stores {
    pub(crate) fn new(
        config: &SyncerConfig,
        binding: &Binding,
        identity: Identity,
        nodes: Arc<NodeStore>,
        engine: &Engine,
        surroundings: &Surroundings,
    ) -> Result<Self, LeaderError> {
        let pods =
            PodStore::new(&identity.cluster_id, PodScope::of(binding, config, &identity.computing_uid));
        let objects = Arc::new(ObjectStore::new(Arc::clone(&surroundings.clock)));
        objects.connect(Arc::clone(&pods) as Arc<dyn crate::objects::PodDirectory>);
        let namespaces = ModuleNamespaces {
            default: config.policy_namespace.clone(),
            mount: binding.spec.mount_namespace.clone(),
        };
        let policies = PolicyStore::new(identity.clone(), namespaces);
        let loaded = Arc::new(watch::Sender::new(0_u64));
        let host = {
            let loaded = Arc::clone(&loaded);
            let facts = BindingFacts { name: binding.name.clone(), cluster_id: binding.cluster_id.clone() };
            let zone = jiff::tz::TimeZone::system();
            let changed: Box<dyn Fn() + Send + Sync> =
                Box::new(move || loaded.send_modify(|changes| *changes += 1));
            PolicyHost::new(engine, facts, zone, changed)
        };
        host.set_binding_selector(binding.spec.node_selector.as_ref());
        {
            let pods = Arc::clone(&pods);
            nodes.on_vnode_change(move |vnode| pods.vnode_changed(vnode));
        }
        {
            let nodes = Arc::clone(&nodes);
            pods.on_vpod_change(move |vnode| nodes.wake(vnode));
        }
        {
            let objects = Arc::clone(&objects);
            pods.on_references_change(move |namespace, references| {
                objects.references_changed(namespace, references)
            });
        }
        Ok(Self {
            identity,
            nodes,
            pods,
            objects,
            policies,
            host: Arc::new(host),
            loaded,
            vnodes_listed: Arc::default(),
            workloads: Workloads::new(),
        })
    }

    /// Takes a changed binding: every mutable field counts from now on (API-111).
    pub(crate) fn set_binding(&self, binding: &Binding, config: &SyncerConfig, computing_uid: &str) {
        self.host.set_binding_selector(binding.spec.node_selector.as_ref());
        self.pods.set_scope(PodScope::of(binding, config, computing_uid));
        self.nodes.set_binding(binding_view(binding));
        self.nodes.wake_all();
    }
}

/// The pods of a vnode as the node planner wants them.
#[derive(Debug)]
pub(crate) struct PodsByVnode(pub(crate) Arc<PodStore>);

impl PodsOnVnode for PodsByVnode {
    fn on_vnode(&self, vnode: &str) -> Vec<PodOnVnode> {
        let view = |pod: crate::pods::index::VpodOnNode| PodOnVnode {
            terminal: matches!(pod.phase, Phase::Succeeded | Phase::Failed),
            uid: pod.uid.to_string(),
            key: pod.key,
            deleting: pod.deleting,
            daemonset: pod.daemonset,
            system: pod.system,
            tolerates_reclaim: pod.tolerates_out_of_window,
        };
        self.0.on_vnode(vnode).into_iter().map(view).collect()
    }
}

/// The vnodes as the pod planner wants them.
#[derive(Debug)]
struct Vnodes(Arc<NodeStore>);

impl VnodeDirectory for Vnodes {
    fn vnode(&self, name: &str) -> VnodeState {
        match self.0.vnode(name) {
            None => VnodeState::Missing,
            Some(vnode) if !vnode.ours => VnodeState::NotOurs,
            Some(vnode) => {
                VnodeState::Ours { worker_node: vnode.worker_node.map(Into::into), deleting: vnode.deleting }
            }
        }
    }
}

/// Health of the worker's watches that decisions about nodes need.
#[derive(Debug, Clone, Default)]
struct NodeLists {
    nodes: Arc<WatchHealth>,
    pods: Arc<WatchHealth>,
    policies: Arc<WatchHealth>,
}

/// Runs until `cancel`, or until the binding is gone for good.
pub(crate) async fn run(leader: &Leader, worker: Client, cancel: CancellationToken) {
    let _stop = cancel.clone().drop_guard();
    let stores = &leader.stores;
    let binding = leader.binding.borrow().clone();
    stores.nodes.set_readiness(Readiness::Listing);
    stores.nodes.set_unreachable(false);
    let mut tasks = Tasks::new(cancel.clone());
    let (worker_events, sending) = EventRecorder::new(
        worker.clone(),
        format!("kubeocean-syncer-{}", binding.name),
        Arc::clone(&leader.clock),
        cancel.clone(),
    );
    tasks.spawn("worker events", sending);
    let lists = NodeLists::default();
    let pod_health = Arc::new(PodHealth::default());
    start_nodes(leader, &worker, &worker_events, &lists, &pod_health, &mut tasks, &cancel);
    let clusters = Arc::new(Clusters {
        computing: leader.computing.clone(),
        worker: worker.clone(),
        scope: Scope {
            binding: binding.name.clone(),
            cluster_id: binding.cluster_id.clone(),
            computing_uid: leader.computing_uid.clone(),
            mount_namespace: binding.spec.mount_namespace.clone(),
        },
    });
    start_pods(leader, &clusters, &pod_health, &mut tasks, &cancel);
    {
        let (leader, cancel) = (leader.clone(), cancel.clone());
        tasks.spawn("binding finalizer", async move { keep_finalizer(&leader, cancel).await });
    }
    {
        let (leader, cancel, clusters) = (leader.clone(), cancel.clone(), Arc::clone(&clusters));
        tasks.spawn("binding deletion", async move { deletion::run(&leader, &clusters, cancel).await });
    }
    if let Err(error) = tasks.join().await {
        tracing::error!(%error, "worker session failed");
        // A dead task must end the process; the leader's own task set sees the panic.
        std::panic::resume_unwind(Box::new(error.to_string()));
    }
}

fn start_nodes(
    leader: &Leader,
    worker: &Client,
    worker_events: &EventRecorder,
    lists: &NodeLists,
    pod_health: &Arc<PodHealth>,
    tasks: &mut Tasks,
    cancel: &CancellationToken,
) {
    let stores = &leader.stores;
    let nodes = || Arc::clone(&stores.nodes);
    tasks.spawn(
        "worker nodes",
        watch_worker_nodes(worker.clone(), nodes(), Arc::clone(&lists.nodes), cancel.clone()),
    );
    tasks.spawn(
        "worker pods",
        watch_worker_pods(worker.clone(), nodes(), Arc::clone(&lists.pods), cancel.clone()),
    );
    tasks.spawn("reachability", watch_reachability(Arc::clone(&lists.nodes), nodes(), cancel.clone()));
    tasks.spawn(
        "policies",
        watch_policies(
            worker.clone(),
            Arc::clone(&stores.policies),
            Arc::clone(&lists.policies),
            cancel.clone(),
        ),
    );
    tasks.spawn("policy modules", fetch::run(worker.clone(), Arc::clone(&stores.policies), cancel.clone()));
    let runtime = PolicyRuntime {
        store: Arc::clone(&stores.policies),
        nodes: nodes(),
        host: Arc::clone(&stores.host),
        loaded: Arc::clone(&stores.loaded),
        worker: worker.clone(),
        events: worker_events.clone(),
        clock: Arc::clone(&leader.clock),
        cancel: cancel.clone(),
    };
    let first = Arc::new(Notify::new());
    tasks.spawn("policy feed", feed_engine(runtime.clone(), Arc::clone(&lists.policies), Arc::clone(&first)));
    tasks.spawn("policy news", follow_engine(runtime.clone()));
    tasks.spawn("policy status", run_policies(runtime));
    let worker_side = WorkerSide {
        client: worker.clone(),
        policies: Arc::clone(&stores.policies),
        host: Arc::clone(&stores.host),
    };
    let complete = {
        let (lists, pods, vnodes) =
            (lists.clone(), Arc::clone(pod_health), Arc::clone(&stores.vnodes_listed));
        async move {
            lists.nodes.synced().await;
            lists.pods.synced().await;
            vnodes.synced().await;
            pods.vpods.synced().await;
            first.notified().await;
        }
    };
    {
        let (store, side, loaded, cancel) =
            (nodes(), worker_side.clone(), stores.loaded.subscribe(), cancel.clone());
        tasks.spawn("node gate", async move {
            open_gate(store, complete, side, loaded, cancel.clone()).await;
            cancel.cancelled().await;
        });
    }
    tasks.spawn("nodes", run_nodes(Arc::new(leader.node_runtime(Some(worker_side), cancel.clone()))));
}

fn start_pods(
    leader: &Leader,
    clusters: &Arc<Clusters>,
    health: &Arc<PodHealth>,
    tasks: &mut Tasks,
    cancel: &CancellationToken,
) {
    let stores = &leader.stores;
    let sync = Arc::new(PodSync {
        clusters: Arc::clone(clusters),
        store: Arc::clone(&stores.pods),
        objects: Arc::clone(&stores.objects),
        vnodes: Arc::new(Vnodes(Arc::clone(&stores.nodes))),
        workloads: Arc::clone(&stores.workloads),
        priority_class: DefaultPriorityClass::default(),
        events: leader.events.clone(),
        pod_events: leader.config.pod_events,
        metrics: Arc::clone(&leader.metrics),
        clock: Arc::clone(&leader.clock),
    });
    tasks.spawn("pod watches", watch_pods(Arc::clone(&sync), Arc::clone(health), cancel.clone()));
    let complete = || {
        let (health, vnodes) = (Arc::clone(health), Arc::clone(&stores.vnodes_listed));
        async move {
            health.synced().await;
            vnodes.synced().await;
        }
    };
    {
        let (gate, workers, cancel) = (complete(), leader.config.pod_workers, cancel.clone());
        tasks.spawn("pods", async move {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = gate => {}
            }
            run_pods(sync, workers, cancel).await;
        });
    }
    let idle = (!leader.config.gc_idle_objects.is_zero()).then_some(leader.config.gc_idle_objects);
    tasks.spawn(
        "objects",
        run_objects(
            Arc::clone(clusters),
            Arc::clone(&stores.objects),
            ObjectHealth::default(),
            complete(),
            leader.config.object_workers,
            idle,
            cancel.clone(),
        ),
    );
}

/// Brings gauges up to date while this process leads.
pub(crate) async fn tell_metrics(leader: Leader, cancel: CancellationToken) {
    let mut ticks = tokio::time::interval(GAUGES_EVERY);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = ticks.tick() => leader.metrics.set_vnodes(&leader.stores.nodes.numbers()),
        }
    }
}
