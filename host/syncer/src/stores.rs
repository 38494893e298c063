//! Everything known of both clusters, kept across connections to the worker, and who hears of whose changes.

use std::sync::{Arc, atomic::AtomicBool};

use kubeocean_engine::{BindingFacts, Engine, PolicyHost, zone_name};
use kubeocean_runtime::{binding::Binding, probe::Reachability, queue::QueueNumbers, watch::WatchHealth};
use tokio::sync::{Notify, SetOnce, watch};

use crate::{
    config::SyncerConfig,
    csinodes::index::CsiNodeStore,
    hostports::index::HostPortStore,
    leader::{Surroundings, binding_view},
    logconfigs::LogConfigStore,
    nodes::{index::Identity, pace::Pace, store::NodeStore},
    objects::ObjectStore,
    placement::desk::PlaceDesk,
    podevents::index::EventStore,
    pods::{index::PodStore, snapshot::PodScope, workload::Workloads},
    policies::{modules::ModulePlaces, store::PolicyStore},
};

/// See the module documentation.
#[derive(Debug)]
pub struct Stores {
    /// Who we are.
    pub identity: Identity,
    /// Nodes and vnodes.
    pub nodes: Arc<NodeStore>,
    /// Vpods and ppods.
    pub pods: Arc<PodStore>,
    /// What the worker says about ppods.
    pub pod_events: Arc<EventStore>,
    /// ConfigMaps, Secrets, tokens and Services.
    pub objects: Arc<ObjectStore>,
    /// CSINodes of worker nodes and their copies.
    pub csinodes: Arc<CsiNodeStore>,
    /// Reservations of host ports.
    pub hostports: Arc<HostPortStore>,
    /// LogConfigs.
    pub log_configs: Arc<LogConfigStore>,
    /// Policies.
    pub policies: Arc<PolicyStore>,
    /// What decides by them.
    pub host: Arc<PolicyHost>,
    /// Where placement is decided.
    pub place: Arc<PlaceDesk>,
    /// Counts the changes of the engine's state.
    pub loaded: Arc<watch::Sender<u64>>,
    /// The first list of vnodes.
    pub vnodes_listed: Arc<WatchHealth>,
    /// Vnodes that had lost their labels before that have been looked for.
    pub strays_found: Arc<SetOnce<()>>,
    /// When the worker answered last.
    pub worker: Reachability,
    /// The kubeconfig leads to a cluster that is not the binding's.
    pub(crate) other_worker: Arc<AtomicBool>,
    /// How many nodes may lose their lease per minute.
    pub pace: Arc<Pace>,
    pub(crate) workloads: Arc<Workloads>,
    /// Told when a vnode changed or a copy of a pod went: the deletion of the binding may go on.
    pub(crate) something_went: Arc<Notify>,
}

impl Stores {
    pub(crate) fn new(
        config: &SyncerConfig,
        binding: &Binding,
        identity: Identity,
        nodes: Arc<NodeStore>,
        engine: &Engine,
        surroundings: &Surroundings,
    ) -> Self {
        let pods =
            PodStore::new(&identity.cluster_id, PodScope::of(binding, config, &identity.computing_uid));
        let pod_events =
            EventStore::new(component(&binding.name), config.pod_events, Arc::clone(&surroundings.clock));
        let objects = Arc::new(ObjectStore::new(Arc::clone(&surroundings.clock), &config.cluster_domain));
        objects.connect(Arc::clone(&pods) as Arc<dyn crate::objects::PodDirectory>);
        let places = ModulePlaces {
            default: config.policy_namespace.clone(),
            mount: binding.spec.mount_namespace.clone(),
            files: config.policy_sources.dev_folder.is_some(),
        };
        let policies = PolicyStore::new(identity.clone(), places);
        let loaded = Arc::new(watch::Sender::new(0_u64));
        let host = {
            let (loaded, policies) = (Arc::clone(&loaded), Arc::clone(&policies));
            let facts = BindingFacts { name: binding.name.clone(), cluster_id: binding.cluster_id.clone() };
            let zone = jiff::tz::TimeZone::system();
            let name = zone_name(&zone, surroundings.clock.now());
            tracing::info!(zone = name, "time zone of policies that name none");
            let changed: Box<dyn Fn() + Send + Sync> = Box::new(move || {
                // What a module said that another one has replaced ends no lease.
                policies.outdate();
                loaded.send_modify(|changes| *changes += 1);
            });
            PolicyHost::new(engine, facts, zone, changed)
        };
        host.set_binding_selector(binding.spec.node_selector.as_ref());
        policies.set_binding_selector(binding.spec.node_selector.as_ref());
        {
            let (pods, store) = (Arc::clone(&pods), Arc::downgrade(&nodes));
            nodes.on_vnode_change(move |vnode| {
                let known = store.upgrade().and_then(|store| store.vnode(vnode));
                pods.vnode_changed(vnode, known.is_some_and(|vnode| vnode.ours));
            });
        }
        let something_went = Arc::new(Notify::new());
        {
            let (vnode, copy) = (Arc::clone(&something_went), Arc::clone(&something_went));
            nodes.on_vnode_change(move |_| vnode.notify_one());
            pods.on_copy_gone(move |_| copy.notify_one());
        }
        let csinodes = CsiNodeStore::new(Arc::clone(&nodes));
        let hostports = HostPortStore::new(Arc::clone(&nodes));
        follow_nodes(&nodes, &csinodes, &hostports);
        {
            let nodes = Arc::clone(&nodes);
            pods.on_vpod_change(move |vnode| nodes.pods_changed(vnode));
        }
        {
            let policies = Arc::clone(&policies);
            nodes.on_policy_usage_change(move |policy| {
                policies.remember_ours(policy);
                policies.wake(policy);
            });
        }
        {
            let objects = Arc::clone(&objects);
            pods.on_references_change(move |namespace, references| {
                objects.references_changed(namespace, references);
            });
        }
        {
            let objects = Arc::clone(&objects);
            pods.on_vpod_gone(move |vpod| objects.pod_gone(vpod));
        }
        {
            let tokens = Arc::clone(&objects.tokens);
            pods.on_copy_gone(move |vpod| tokens.copy_gone(vpod));
        }
        let host = Arc::new(host);
        let place = PlaceDesk::new(&nodes, &pods, &host, &surroundings.clock);
        Self {
            identity,
            nodes,
            pods,
            pod_events,
            objects,
            csinodes,
            hostports,
            log_configs: Arc::default(),
            policies,
            host,
            place,
            loaded,
            vnodes_listed: Arc::default(),
            strays_found: Arc::default(),
            worker: Reachability::default(),
            other_worker: Arc::default(),
            pace: Arc::new(Pace::new(config.reclaim_max_nodes_per_minute)),
            workloads: Workloads::new(),
            something_went,
        }
    }

    /// What is told of the queues.
    pub(crate) fn queues(&self) -> Vec<QueueNumbers> {
        let Self { pods, pod_events, objects, .. } = self;
        vec![
            pods.queue().numbers(),
            pod_events.queue().numbers(),
            objects.queue.numbers(),
            objects.tokens.queue.numbers(),
        ]
    }

    /// Takes a changed binding: every mutable field counts from now on (API-111).
    pub(crate) fn set_binding(&self, binding: &Binding, config: &SyncerConfig, computing_uid: &str) {
        self.host.set_binding_selector(binding.spec.node_selector.as_ref());
        self.policies.set_binding_selector(binding.spec.node_selector.as_ref());
        self.pods.set_scope(PodScope::of(binding, config, computing_uid));
        self.nodes.set_binding(binding_view(binding));
        self.nodes.wake_all();
    }
}

/// How a Syncer signs its events (API-810).
pub(crate) fn component(binding: &str) -> String {
    format!("kubeocean-syncer-{binding}")
}

/// Vnodes and ports wake what follows them. The two hold the nodes, so the nodes must not hold them.
fn follow_nodes(nodes: &NodeStore, csinodes: &Arc<CsiNodeStore>, hostports: &Arc<HostPortStore>) {
    let (mirror, reserve) = (Arc::downgrade(csinodes), Arc::downgrade(hostports));
    nodes.on_vnode_change(move |vnode| {
        if let (Some(mirror), Some(reserve)) = (mirror.upgrade(), reserve.upgrade()) {
            mirror.vnode_changed(vnode);
            reserve.vnode_changed(vnode);
        }
    });
    let reserve = Arc::downgrade(hostports);
    nodes.on_host_ports_change(move |vnode| {
        if let Some(reserve) = reserve.upgrade() {
            reserve.ports_changed(vnode);
        }
    });
}
