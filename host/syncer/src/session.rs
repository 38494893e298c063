//! One connection to the worker cluster: its watches, and the loops over nodes, policies, pods and objects.
//!
//! No loop acts before the first lists of both clusters are complete: before that, absence proves nothing.

use std::sync::{Arc, atomic::AtomicBool};

use crate::{
    bindings::deletion,
    bindings::finalizer::keep_finalizer,
    csinodes::{apply::CsiNodeSync, watch::run as run_csinodes},
    directories::Vnodes,
    hostports::{apply::HostPortSync, watch::run as run_hostports},
    leader::Leader,
    logconfigs::{LogConfigSync, run as run_log_configs},
    nodes::{
        decide::{WorkerSide, open_gate, run as run_nodes},
        drift,
        measuring::{self, Measuring},
        store::{NodeStore, Readiness},
        watch::{watch_reachability, watch_worker_nodes, watch_worker_pods},
    },
    objects::{Clusters, IdleTimes, ObjectHealth, ObjectSync, Scope, run_objects},
    podevents::{apply::PodEventSync, watch::run as run_pod_events},
    pods::{
        apply::{PodSync, VnodeDirectory},
        features::Features,
        priority_class::PriorityClasses,
        watch::{PodHealth, run_pods, watch_pods},
    },
    policies::{
        apply::{PolicyRuntime, feed_engine, follow_engine, run as run_policies, watch_policies},
        fetch::{self, Sources},
    },
    stores::component,
};
use kube::Client;
use kubeocean_runtime::{
    events::{EventRecorder, Regarding},
    tasks::{TaskEnded, Tasks},
    watch::WatchHealth,
};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Health of the worker's watches that decisions about nodes need.
#[derive(Debug, Clone, Default)]
struct NodeLists {
    nodes: Arc<WatchHealth>,
    pods: Arc<WatchHealth>,
    policies: Arc<WatchHealth>,
}

/// What the tasks of a session share.
struct Session<'a> {
    leader: &'a Leader,
    clusters: Arc<Clusters>,
    worker_events: EventRecorder,
    lists: NodeLists,
    pods: Arc<PodHealth>,
    objects: ObjectHealth,
    features: Arc<Features>,
    cancel: CancellationToken,
}

/// Runs until `cancel`; fails when one of its tasks ends by itself.
pub(crate) async fn run(leader: &Leader, worker: Client, cancel: CancellationToken) -> Result<(), TaskEnded> {
    let _stop = cancel.clone().drop_guard();
    let stores = &leader.stores;
    let binding = leader.binding.borrow().clone();
    stores.nodes.set_readiness(Readiness::Listing);
    stores.worker.answered();
    stores.nodes.set_loss(None);
    let mut tasks = Tasks::new(cancel.clone());
    let (worker_events, sending) = EventRecorder::new(
        worker.clone(),
        component(&binding.name),
        Arc::clone(&leader.clock),
        cancel.clone(),
    );
    tasks.spawn("worker events", sending);
    let scope = Scope {
        binding: binding.name.clone(),
        cluster_id: binding.cluster_id.clone(),
        computing_uid: leader.computing_uid.clone(),
        mount_namespace: binding.spec.mount_namespace.clone(),
    };
    let session = Session {
        leader,
        clusters: Arc::new(Clusters { computing: leader.computing.clone(), worker, scope }),
        worker_events,
        lists: NodeLists::default(),
        pods: Arc::default(),
        objects: ObjectHealth::default(),
        features: Arc::new(Features::new(
            Regarding::binding(&binding.name, &binding.uid),
            leader.events.clone(),
        )),
        cancel,
    };
    session.start_node_watches(&mut tasks);
    session.start_policies_and_nodes(&mut tasks);
    session.start_pods(&mut tasks);
    session.start_objects(&mut tasks);
    session.start_mirrors(&mut tasks);
    session.start_log_configs(&mut tasks);
    session.start_binding(&mut tasks);
    tasks.join().await
}

impl Session<'_> {
    fn worker(&self) -> Client {
        self.clusters.worker.clone()
    }

    fn nodes(&self) -> Arc<NodeStore> {
        Arc::clone(&self.leader.stores.nodes)
    }

    /// Watches of the worker without which vnodes, or what is told of pods, would be outdated; by kind.
    fn needed_watches(&self) -> Vec<(&'static str, Arc<WatchHealth>)> {
        let lists = &self.lists;
        let all = [
            ("nodes", &lists.nodes),
            ("pods", &lists.pods),
            ("resourceleasingpolicies", &lists.policies),
            ("pods", &self.pods.ppods),
        ];
        all.map(|(kind, watch)| (kind, Arc::clone(watch))).into()
    }

    fn start_node_watches(&self, tasks: &mut Tasks) {
        let stores = &self.leader.stores;
        let (lists, cancel) = (&self.lists, || self.cancel.clone());
        tasks.spawn(
            "worker nodes",
            watch_worker_nodes(self.worker(), self.nodes(), Arc::clone(&lists.nodes), cancel()),
        );
        tasks.spawn(
            "worker pods",
            watch_worker_pods(self.worker(), self.nodes(), Arc::clone(&lists.pods), cancel()),
        );
        tasks.spawn(
            "reachability",
            watch_reachability(
                self.worker(),
                stores.worker.clone(),
                self.needed_watches(),
                self.nodes(),
                {
                    let pods = Arc::clone(&stores.pods);
                    move || pods.worker_is_back()
                },
                cancel(),
            ),
        );
        tasks.spawn("recount", drift::run(self.nodes(), cancel()));
        let policies = Arc::clone(&stores.policies);
        tasks.spawn(
            "policies",
            watch_policies(self.worker(), policies, Arc::clone(&lists.policies), cancel()),
        );
    }

    fn start_policies_and_nodes(&self, tasks: &mut Tasks) {
        let (leader, stores, lists) = (self.leader, &self.leader.stores, &self.lists);
        let policies = || Arc::clone(&stores.policies);
        let heart = leader.health.begin("policy modules");
        let config = &leader.config;
        let sources = Sources::new(self.worker(), &config.policy_sources, config.policy_max_module_bytes);
        tasks.spawn("policy modules", fetch::run(sources, policies(), heart, self.cancel.clone()));
        let runtime = PolicyRuntime {
            store: policies(),
            nodes: self.nodes(),
            place: Arc::clone(&stores.place),
            host: Arc::clone(&stores.host),
            loaded: Arc::clone(&stores.loaded),
            worker: self.worker(),
            events: self.worker_events.clone(),
            clock: Arc::clone(&leader.clock),
            health: Arc::clone(&leader.health),
            cancel: self.cancel.clone(),
        };
        let first = Arc::new(Notify::new());
        let feeding = feed_engine(runtime.clone(), Arc::clone(&lists.policies), Arc::clone(&first));
        tasks.spawn("policy feed", feeding);
        tasks.spawn("policy news", follow_engine(runtime.clone()));
        tasks.spawn("policy status", run_policies(runtime));
        let complete = {
            let (lists, pods, vnodes) =
                (lists.clone(), Arc::clone(&self.pods), Arc::clone(&stores.vnodes_listed));
            let strays = Arc::clone(&stores.strays_found);
            let mut binding = leader.binding.clone();
            async move {
                lists.nodes.synced().await;
                lists.pods.synced().await;
                vnodes.synced().await;
                strays.wait().await;
                pods.vpods.synced().await;
                first.notified().await;
                // API-109: the binding cannot go before what we are about to make. Its sender outlives this task.
                let _ = binding.wait_for(|binding| binding.has_finalizer || binding.deleting).await;
            }
        };
        {
            let gate = open_gate(self.nodes(), complete, policies(), self.cancel.clone());
            let cancel = self.cancel.clone();
            tasks.spawn("node gate", async move {
                gate.await;
                cancel.cancelled().await;
            });
        }
        let worker_side = WorkerSide {
            client: self.worker(),
            policies: policies(),
            host: Arc::clone(&stores.host),
            labels_off: Arc::new(AtomicBool::new(false)),
        };
        let measuring = Measuring {
            worker: self.worker(),
            store: self.nodes(),
            host: Arc::clone(&stores.host),
            features: Arc::clone(&self.features),
            clock: Arc::clone(&leader.clock),
        };
        tasks.spawn("usage", measuring::run(measuring, stores.loaded.subscribe(), self.cancel.clone()));
        let runtime = leader.node_runtime(Some(worker_side), self.cancel.clone());
        tasks.spawn("nodes", run_nodes(Arc::new(runtime)));
    }

    /// The first lists of pods and vnodes.
    fn complete(&self) -> impl Future<Output = ()> + Send + 'static {
        let (pods, vnodes) = (Arc::clone(&self.pods), Arc::clone(&self.leader.stores.vnodes_listed));
        async move {
            pods.synced().await;
            vnodes.synced().await;
        }
    }

    fn start_pods(&self, tasks: &mut Tasks) {
        let (leader, stores) = (self.leader, &self.leader.stores);
        let binding = leader.binding.borrow().clone();
        let vnodes: Arc<dyn VnodeDirectory> = Arc::new(Vnodes(self.nodes()));
        let features = Arc::clone(&self.features);
        let reflecting = Arc::new(PodEventSync {
            clusters: Arc::clone(&self.clusters),
            store: Arc::clone(&stores.pod_events),
            pods: Arc::clone(&stores.pods),
            objects: Arc::clone(&stores.objects),
            vnodes: Arc::clone(&vnodes),
            features: Arc::clone(&features),
            component: component(&binding.name),
            health: Arc::clone(&leader.health),
            clock: Arc::clone(&leader.clock),
        });
        tasks.spawn("pod events", run_pod_events(reflecting, self.complete(), self.cancel.clone()));
        let sync = Arc::new(PodSync {
            clusters: Arc::clone(&self.clusters),
            store: Arc::clone(&stores.pods),
            objects: Arc::clone(&stores.objects),
            vnodes,
            placement: Some(Arc::clone(&stores.place)),
            workloads: Arc::clone(&stores.workloads),
            priority_classes: PriorityClasses::default(),
            features,
            events: leader.events.clone(),
            pod_events: leader.config.pod_events,
            metrics: Arc::clone(&leader.metrics),
            health: Arc::clone(&leader.health),
            clock: Arc::clone(&leader.clock),
        });
        let watching = watch_pods(Arc::clone(&sync), Arc::clone(&self.pods), self.cancel.clone());
        tasks.spawn("pod watches", watching);
        // Pods also wait for what they refer to: before the lists are complete everything seems to be missing.
        let (lists, objects) = (self.complete(), self.objects.clone());
        let gate = async move {
            lists.await;
            objects.synced().await;
        };
        let (workers, cancel) = (leader.config.pod_workers, self.cancel.clone());
        tasks.spawn("pods", async move {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = gate => {}
            }
            run_pods(sync, workers, cancel).await;
        });
    }

    fn start_objects(&self, tasks: &mut Tasks) {
        let config = &self.leader.config;
        let time = |time: std::time::Duration| (!time.is_zero()).then_some(time);
        let idle = IdleTimes { objects: time(config.gc_idle_objects), volumes: time(config.gc_idle_volumes) };
        let sync = Arc::new(ObjectSync {
            clusters: Arc::clone(&self.clusters),
            store: Arc::clone(&self.leader.stores.objects),
            events: self.leader.events.clone(),
            health: Arc::clone(&self.leader.health),
            idle,
        });
        let (health, gate, cancel) = (self.objects.clone(), self.complete(), self.cancel.clone());
        tasks.spawn("objects", run_objects(sync, health, gate, config.object_workers, cancel));
    }

    /// What follows the vnodes: copies of CSINodes, and reservations of host ports.
    fn start_mirrors(&self, tasks: &mut Tasks) {
        let (leader, stores) = (self.leader, &self.leader.stores);
        let binding = leader.binding.borrow().clone();
        let workers = leader.config.node_workers;
        let csinodes = Arc::new(CsiNodeSync {
            health: Arc::clone(&leader.health),
            computing: leader.computing.clone(),
            worker: self.worker(),
            store: Arc::clone(&stores.csinodes),
            deny: leader.deny_list(),
            events: leader.events.clone(),
            binding: Regarding::binding(&binding.name, &binding.uid),
            clock: Arc::clone(&leader.clock),
        });
        let vnodes = Arc::clone(&stores.vnodes_listed);
        let gate = async move { vnodes.synced().await };
        tasks.spawn("csinodes", run_csinodes(csinodes, gate, workers, self.cancel.clone()));
        let hostports = Arc::new(HostPortSync {
            health: Arc::clone(&leader.health),
            computing: leader.computing.clone(),
            store: Arc::clone(&stores.hostports),
            image: leader.config.hostport_image.clone(),
            events: leader.events.clone(),
        });
        let (lists, vnodes) = (self.lists.clone(), Arc::clone(&stores.vnodes_listed));
        let gate = async move {
            lists.nodes.synced().await;
            lists.pods.synced().await;
            vnodes.synced().await;
        };
        tasks.spawn("hostports", run_hostports(hostports, gate, workers, self.cancel.clone()));
    }

    fn start_log_configs(&self, tasks: &mut Tasks) {
        let leader = self.leader;
        let sync = Arc::new(LogConfigSync {
            clusters: Arc::clone(&self.clusters),
            binding: leader.binding.clone(),
            store: Arc::clone(&leader.stores.log_configs),
            events: leader.events.clone(),
            features: Arc::clone(&self.features),
            health: Arc::clone(&leader.health),
        });
        tasks.spawn("logconfigs", run_log_configs(sync, leader.config.log_configs, self.cancel.clone()));
    }

    fn start_binding(&self, tasks: &mut Tasks) {
        let (leader, cancel) = (self.leader.clone(), self.cancel.clone());
        tasks.spawn("binding finalizer", async move { keep_finalizer(&leader, cancel).await });
        let (leader, cancel) = (self.leader.clone(), self.cancel.clone());
        let clusters = Arc::clone(&self.clusters);
        // What is not listed yet is not gone.
        let (pods, objects) = (Arc::clone(&self.pods), self.objects.clone());
        let lists = async move {
            pods.synced().await;
            objects.listed().await;
        };
        tasks.spawn("binding deletion", async move {
            deletion::run(&leader, &clusters, lists, cancel).await;
        });
    }
}
