//! The watches that feed the [`NodeStore`]: worker nodes, worker pods, vnodes, Proxier pods, and whether the worker
//! answers at all.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    sync::Arc,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, runtime::watcher::Config};
use kubeocean_api::{name::fit_label_value, vnode};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{
    index::{Index, VnodeName},
    loss::WorkerLoss,
    store::NodeStore,
    view::{NodeObject, WorkerPod},
};
use kubeocean_runtime::{
    meta::trimmed_meta,
    partial_resource,
    probe::{Reachability, probe},
    sink::Sink,
    watch::{WatchHealth, WatchSpec, watch_into},
};

/// One node, as a proof that the worker answers and lets us read nodes.
const PROBE: &str = "/api/v1/nodes?limit=1";

/// Who has an index of nodes.
pub trait HasIndex: Send + Sync + 'static {
    /// Changes it; what became dirty is acted on.
    fn change(&self, work: impl FnOnce(&mut Index) -> BTreeSet<VnodeName>);

    /// The same for changes that come in streams.
    fn change_requests(&self, work: impl FnOnce(&mut Index) -> BTreeSet<VnodeName>) {
        self.change(work);
    }
}

impl HasIndex for NodeStore {
    fn change(&self, work: impl FnOnce(&mut Index) -> BTreeSet<VnodeName>) {
        Self::change(self, work);
    }
    fn change_requests(&self, work: impl FnOnce(&mut Index) -> BTreeSet<VnodeName>) {
        Self::change_requests(self, work);
    }
}

/// Worker nodes.
#[derive(Debug)]
pub struct WorkerNodes<S>(pub Arc<S>);

impl<S: HasIndex> Sink<NodeObject> for WorkerNodes<S> {
    fn apply(&self, node: NodeObject) {
        self.0.change(|index| index.set_pnode(*node.view).into_iter().collect());
    }
    fn delete(&self, node: NodeObject) {
        self.0.change(|index| BTreeSet::from([index.remove_pnode(node.view.name())]));
    }
    fn reset(&self, all: Vec<NodeObject>) {
        self.0.change(|index| index.reset_pnodes(NodeObject::views(all)));
    }
}

/// Worker pods.
#[derive(Debug)]
pub struct WorkerPods<S>(pub Arc<S>);

impl<S: HasIndex> Sink<WorkerPod> for WorkerPods<S> {
    fn apply(&self, pod: WorkerPod) {
        self.0.change_requests(|index| index.set_pod(pod).into_iter().collect());
    }
    fn delete(&self, pod: WorkerPod) {
        let uid = pod.metadata.uid.unwrap_or_default();
        self.0.change_requests(|index| index.remove_pod(&uid).into_iter().collect());
    }
    fn reset(&self, all: Vec<WorkerPod>) {
        self.0.change(|index| index.reset_pods(all));
    }
}

/// Vnodes.
#[derive(Debug)]
pub struct Vnodes(pub Arc<NodeStore>);

impl Sink<NodeObject> for Vnodes {
    fn apply(&self, vnode: NodeObject) {
        self.0.saw_vnode(*vnode.view);
    }
    fn delete(&self, vnode: NodeObject) {
        self.0.missed_vnode(vnode.view.name(), vnode.view.uid(), vnode.view.version());
    }
    fn reset(&self, all: Vec<NodeObject>) {
        self.0.reset_vnodes(NodeObject::views(all));
    }
}

/// Watches the binding's vnodes until cancelled. Runs from the moment of leadership, before the worker is connected,
/// because the Leases are renewed from it.
pub async fn watch_vnodes(
    computing: Client,
    store: Arc<NodeStore>,
    health: Arc<WatchHealth>,
    cancel: CancellationToken,
) {
    let selector = vnode::selector(&store.identity().binding);
    let spec =
        WatchSpec { name: "vnodes", api: Api::all(computing), config: Config::default().labels(&selector) };
    watch_into(spec, Arc::new(Vnodes(store)), health, cancel).await;
}

/// Watches the worker's nodes until cancelled, vnodes of a worker that is itself a computing cluster included: a node
/// that becomes one must be seen to become one, so that our label is taken off.
pub async fn watch_worker_nodes(
    worker: Client,
    store: Arc<NodeStore>,
    health: Arc<WatchHealth>,
    cancel: CancellationToken,
) {
    let spec = WatchSpec { name: "worker nodes", api: Api::all(worker), config: Config::default() };
    watch_into(spec, Arc::new(WorkerNodes(store)), health, cancel).await;
}

/// Watches the worker's scheduled, not terminal pods until cancelled. A pod that becomes terminal arrives as deleted.
pub async fn watch_worker_pods(
    worker: Client,
    store: Arc<NodeStore>,
    health: Arc<WatchHealth>,
    cancel: CancellationToken,
) {
    let fields = "spec.nodeName!=,status.phase!=Succeeded,status.phase!=Failed";
    let spec =
        WatchSpec { name: "worker pods", api: Api::all(worker), config: Config::default().fields(fields) };
    watch_into(spec, Arc::new(WorkerPods(store)), health, cancel).await;
}

/// Keeps [`NodeStore::set_loss`] true to whether the worker answers and these watches of kinds of it deliver, until
/// cancelled. `back` is called when it can be reached again.
pub async fn watch_reachability(
    worker: Client,
    reachability: Reachability,
    watches: Vec<(&'static str, Arc<WatchHealth>)>,
    store: Arc<NodeStore>,
    back: impl Fn(),
    cancel: CancellationToken,
) {
    probe(worker, PROBE, cancel, |answered| {
        if answered {
            reachability.answered();
        }
        let complaints =
            watches.iter().filter_map(|(kind, watch)| watch.complaint().map(|failure| (*kind, failure)));
        let loss = WorkerLoss::judge(reachability.is_lost(), complaints);
        if store.set_loss(loss) {
            let why = loss.map(WorkerLoss::message);
            tracing::warn!(why, "whether the worker cluster can be reached has changed");
            if loss.is_none() {
                back();
            }
        }
    })
    .await;
}

/// A Proxier pod.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ProxierPod {
    /// Name and UID are used.
    #[serde(deserialize_with = "trimmed_meta")]
    pub metadata: ObjectMeta,
    /// Address and readiness.
    #[serde(default)]
    pub status: ProxierPodStatus,
}

/// Used part of a Proxier pod's status.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxierPodStatus {
    phase: String,
    #[serde(rename = "podIP")]
    pod_ip: String,
    conditions: Vec<super::view::NodeCondition>,
}

partial_resource!(ProxierPod, k8s_openapi::api::core::v1::Pod);

impl ProxierPod {
    /// Address of a running, ready Proxier that is not going away.
    fn serving(&self) -> Option<IpAddr> {
        let ready = self.status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
        let running = self.status.phase == "Running" && self.metadata.deletion_timestamp.is_none();
        (ready && running).then(|| self.status.pod_ip.parse().ok()).flatten()
    }
}

/// Proxier pods of the binding.
#[derive(Debug)]
pub struct ProxierPods {
    store: Arc<NodeStore>,
    addresses: Mutex<BTreeMap<String, IpAddr>>,
}

impl ProxierPods {
    /// Nothing known yet.
    pub fn new(store: Arc<NodeStore>) -> Self {
        Self { store, addresses: Mutex::default() }
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<String, IpAddr>)) {
        let mut addresses = self.addresses.lock();
        change(&mut addresses);
        let all: Vec<IpAddr> = addresses.values().copied().collect();
        drop(addresses);
        self.store.set_proxier(all);
    }
}

impl Sink<ProxierPod> for ProxierPods {
    fn apply(&self, pod: ProxierPod) {
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        self.change(|addresses| match pod.serving() {
            Some(address) => {
                addresses.insert(uid, address);
            }
            None => {
                addresses.remove(&uid);
            }
        });
    }
    fn delete(&self, pod: ProxierPod) {
        let uid = pod.metadata.uid.unwrap_or_default();
        self.change(|addresses| {
            addresses.remove(&uid);
        });
    }
    fn reset(&self, all: Vec<ProxierPod>) {
        self.change(|addresses| {
            *addresses = all
                .into_iter()
                .filter_map(|pod| Some((pod.metadata.uid.clone().unwrap_or_default(), pod.serving()?)))
                .collect();
        });
    }
}

/// Watches the binding's Proxier pods in the system namespace (TD-1401, MC-133) until cancelled.
pub async fn watch_proxiers(
    computing: Client,
    system_namespace: &str,
    store: Arc<NodeStore>,
    cancel: CancellationToken,
) {
    let selector = format!(
        "app.kubernetes.io/component=proxier,app.kubernetes.io/name=kubeocean-proxier,\
         app.kubernetes.io/managed-by=kubeocean-manager,app.kubernetes.io/instance={}",
        fit_label_value(&store.identity().binding)
    );
    let spec = WatchSpec {
        name: "proxier pods",
        api: Api::namespaced(computing, system_namespace),
        config: Config::default().labels(&selector),
    };
    watch_into(spec, Arc::new(ProxierPods::new(store)), Arc::new(WatchHealth::default()), cancel).await;
}
