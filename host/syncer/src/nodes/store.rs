//! The [`Index`] behind its lock, with the queue of dirty vnodes and those who want to know.
//!
//! In: watch sinks, results of writes. Out: batches of keys for `decide`, answers for the other concerns.
//! Callers: every task of a binding. No lock is held across an await.

mod changes;
mod numbers;
mod surroundings;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use kubeocean_api::{
    keys::{annotation, label, taint},
    name::PortsExhausted,
};
use kubeocean_engine::{NodeFacts, PolicyHost};
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use super::{
    host_ports::HostPort,
    index::{Decided, Identity, Index, Snapshot, VnodeName},
    loss::WorkerLoss,
    ports::Ports,
    snapshot::{Amounts, facts},
    terms::Terms,
    view::NodeView,
    vnode::{BindingView, Written},
};
use kubeocean_runtime::queue::Queue;
pub use numbers::{PolicyNumbers, PolicyUsage, VnodeNumbers};
pub use surroundings::{Readiness, Surroundings};

/// A vnode of this age or less is young (BU section 10).
const YOUNG: Duration = Duration::from_secs(10);

/// How long decisions wait for the first answer about what is used.
const MEASUREMENT: Duration = Duration::from_secs(5);

/// After this time nobody waits for a node's label.
const FORGOTTEN: Duration = Duration::from_mins(10);

/// A vnode as other concerns see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VnodeRef {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// The worker node behind it; `None` when the vnode does not tell.
    pub worker_node: Option<String>,
    /// Being deleted.
    pub deleting: bool,
    /// Of this binding: label and clusterID fit.
    pub ours: bool,
}

/// What was written, for metrics.
#[derive(Debug, Default)]
pub struct NodeCounters {
    /// Vnodes created.
    pub created: AtomicU64,
    /// Patches of taints, cordon, metadata or finalizer.
    pub patched: AtomicU64,
    /// Patches of metadata and status.
    pub updated: AtomicU64,
    /// Patches of conditions and addresses alone.
    pub status: AtomicU64,
    /// Vnodes deleted.
    pub deleted: AtomicU64,
    /// Pods evicted by a reclaim.
    pub reclaimed_pods: AtomicU64,
    /// Pods deleted by a withdrawal.
    pub drained_pods: AtomicU64,
    /// Renewals of Leases that came more than 20 s after the one before.
    pub late_leases: AtomicU64,
    /// Vnodes whose sums of requests were found wrong by a recount.
    pub usage_drift: AtomicU64,
}

type Listener = Box<dyn Fn(&str) + Send + Sync>;
type FactsListener = Box<dyn Fn(Option<&str>) + Send + Sync>;

/// See the module documentation.
pub struct NodeStore {
    identity: Identity,
    state: Mutex<State>,
    pub(super) queue: Arc<Queue<VnodeName>>,
    ports: Arc<Ports>,
    /// What was written since the start.
    pub counters: NodeCounters,
    vnode_listeners: Mutex<Vec<Listener>>,
    policy_listeners: Mutex<Vec<Listener>>,
    port_listeners: Mutex<Vec<Listener>>,
    facts_listeners: Mutex<Vec<FactsListener>>,
    /// Decisions depend on what leased pods ask for.
    leased_pods_matter: AtomicBool,
    /// Every node has been decided since the gate was opened.
    settled: watch::Sender<bool>,
    /// Somebody asked what is used of the worker's nodes.
    asked_usage: watch::Sender<bool>,
}

struct State {
    index: Index,
    binding: BindingView,
    readiness: Readiness,
    /// Until then nothing is written for nodes whose policies load.
    loading_until: Option<Instant>,
    /// Vnodes that were there when the gate was opened and have not been decided since.
    undecided: BTreeSet<VnodeName>,
    proxier: Vec<IpAddr>,
    loss: Option<WorkerLoss>,
    /// Since when the label of a worker node is put off.
    unlabelled: HashMap<Box<str>, Instant>,
    /// When a node's change of requests was last acted on.
    woken: HashMap<VnodeName, Instant>,
}

impl fmt::Debug for NodeStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeStore").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// A Lease to renew.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LeaseTarget {
    /// Vnode name.
    pub vnode: Arc<str>,
    /// Vnode UID.
    pub uid: String,
    /// The vnode was made a moment ago: the node lifecycle controller gives it time.
    pub young: bool,
}

impl NodeStore {
    /// An empty store. `ports` is shared by all bindings of a process (MC-134).
    pub fn new(identity: Identity, binding: BindingView, ports: Arc<Ports>) -> Arc<Self> {
        let state = State {
            index: Index::new(identity.clone()),
            binding,
            readiness: Readiness::default(),
            loading_until: None,
            undecided: BTreeSet::new(),
            proxier: Vec::new(),
            loss: None,
            unlabelled: HashMap::new(),
            woken: HashMap::new(),
        };
        let store = Arc::new(Self {
            identity,
            state: Mutex::new(state),
            queue: Queue::new("nodes"),
            ports,
            counters: NodeCounters::default(),
            vnode_listeners: Mutex::default(),
            policy_listeners: Mutex::default(),
            port_listeners: Mutex::default(),
            facts_listeners: Mutex::default(),
            leased_pods_matter: AtomicBool::new(true),
            settled: watch::Sender::new(false),
            asked_usage: watch::Sender::new(false),
        });
        let weak = Arc::downgrade(&store);
        store.ports.on_loss(move |vnode| {
            let Some(store) = weak.upgrade() else { return false };
            if store.state.lock().index.vnode(vnode).is_some() {
                store.wake(vnode);
            }
            true
        });
        store
    }

    /// Only pods of this namespace of the worker cluster are this binding's.
    pub fn own_pods_are_in(&self, mount_namespace: &str) {
        self.state.lock().index.own_pods_are_in(mount_namespace);
    }

    /// Who we are.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// A vnode by name.
    pub fn vnode(&self, name: &str) -> Option<VnodeRef> {
        let state = self.state.lock();
        let vnode = state.index.vnode(name)?;
        Some(VnodeRef {
            name: name.to_owned(),
            uid: vnode.uid().to_owned(),
            worker_node: vnode.annotation_or_label(annotation::PHYSICAL_NODE_NAME).map(str::to_owned),
            deleting: vnode.terminating(),
            ours: self.is_ours(vnode),
        })
    }

    /// Whether a vnode is of this binding (TD-402).
    fn is_ours(&self, vnode: &NodeView) -> bool {
        let Identity { binding, cluster_id, .. } = &self.identity;
        let named = vnode.annotation(annotation::PHYSICAL_CLUSTER_NAME).filter(|name| !name.is_empty());
        vnode.label(label::CLUSTER_BINDING) == Some(kubeocean_api::name::fit_label_value(binding).as_str())
            && vnode.label(label::PHYSICAL_CLUSTER_ID) == Some(cluster_id.as_str())
            && named.is_none_or(|name| name == binding)
    }

    /// Calls `listener` with the name of every vnode that changed.
    pub fn on_vnode_change(&self, listener: impl Fn(&str) + Send + Sync + 'static) {
        self.vnode_listeners.lock().push(Box::new(listener));
    }

    /// Calls `listener` with the name of every policy whose nodes changed.
    pub fn on_policy_usage_change(&self, listener: impl Fn(&str) + Send + Sync + 'static) {
        self.policy_listeners.lock().push(Box::new(listener));
    }

    /// Calls `listener` with the name of every vnode on whose node others' pods took or freed host ports.
    pub fn on_host_ports_change(&self, listener: impl Fn(&str) + Send + Sync + 'static) {
        self.port_listeners.lock().push(Box::new(listener));
    }

    /// Calls `listener` with the name of every vnode about which placement may be decided otherwise than before: it, the
    /// requests on its node, or the policy that governs it changed. `None`: all may.
    pub fn on_facts_change(&self, listener: impl Fn(Option<&str>) + Send + Sync + 'static) {
        self.facts_listeners.lock().push(Box::new(listener));
    }

    /// One of our vnodes as last seen.
    pub fn vnode_view(&self, name: &str) -> Option<Arc<NodeView>> {
        let state = self.state.lock();
        state.index.vnode(name).filter(|vnode| self.is_ours(vnode)).cloned()
    }

    /// The policies that govern vnodes: as decided, or while nobody has decided since the start, as the vnodes say.
    pub fn governing<'a>(&self, vnodes: impl IntoIterator<Item = &'a str>) -> Vec<Option<Arc<str>>> {
        let state = self.state.lock();
        let mut last: Option<Arc<str>> = None;
        vnodes
            .into_iter()
            .map(|name| {
                let policy = state.index.governing(name)?;
                if last.as_deref() != Some(policy) {
                    last = Some(policy.into());
                }
                last.clone()
            })
            .collect()
    }

    /// Host ports that others' pods hold on the vnode's node, sorted: all but those of this binding's own copies.
    pub fn host_ports(&self, vnode: &str) -> Vec<HostPort> {
        self.state.lock().index.host_ports(vnode)
    }

    /// A vnode is to be looked at again.
    pub fn wake(&self, vnode: &str) {
        self.queue.add(vnode.into());
    }

    /// A pod of the vnode came, went or changed. That matters only where pods have to leave: as long as a lease is open
    /// nothing of a vnode depends on its pods. One that begins to close is looked at again as soon as it shows that.
    pub fn pods_changed(&self, vnode: &str) {
        let closing = [taint::VNODE_DELETING, taint::OUT_OF_TIME_WINDOWS];
        let matters =
            self.state.lock().index.vnode(vnode).is_none_or(|vnode| {
                vnode.terminating() || closing.iter().any(|key| vnode.taint(key).is_some())
            });
        if matters {
            self.wake(vnode);
        }
    }

    /// Whether decisions depend on what leased pods ask for: then a node is decided again when they come or go. All nodes
    /// are to be decided after this.
    pub fn leased_pods_matter(&self, matter: bool) {
        self.leased_pods_matter.store(matter, Ordering::Relaxed);
    }

    /// Everything is to be looked at again.
    pub fn wake_all(&self) {
        let keys = self.state.lock().index.keys();
        self.queue.add_all(keys);
    }

    /// Since when the label of a worker node has been put off; `None` unless it is put off now.
    pub(super) fn label_waits_since(&self, node: &str, put_off: bool) -> Option<Instant> {
        let unlabelled = &mut self.state.lock().unlabelled;
        if !put_off {
            unlabelled.remove(node);
            return None;
        }
        if unlabelled.len() > changes::REMEMBERED {
            // Those of nodes that went meanwhile.
            unlabelled.retain(|_, since| since.elapsed() < FORGOTTEN);
        }
        Some(*unlabelled.entry(node.into()).or_insert_with(Instant::now))
    }

    /// What is used of the worker's nodes; `asked`: nobody has to wait for it any more.
    pub(super) fn measured(&self, means: &BTreeMap<String, Amounts>, asked: bool) {
        self.change(|index| index.set_measured(means));
        self.asked_usage.send_replace(asked);
    }

    /// Where a policy reads what is used of the worker's nodes, waits until somebody asked for it, but not for ever:
    /// whoever waited in vain decides without.
    pub(crate) async fn asked_usage(&self, host: &PolicyHost) {
        if host.reads_usage() {
            let mut asked = self.asked_usage.subscribe();
            let _ = tokio::time::timeout(MEASUREMENT, asked.wait_for(|asked| *asked)).await;
        }
    }

    /// One vnode.
    pub fn snapshot(&self, vnode: &str) -> Snapshot {
        self.state.lock().index.snapshot(vnode)
    }

    /// Port of a vnode: the one it carries, else a free one (BU-302, BU-303).
    pub fn port(&self, vnode: &str) -> Result<u16, PortsExhausted> {
        self.ports.assign(vnode)
    }

    /// The port a vnode carries while another one has it, and that one's name (MC-134).
    pub(super) fn port_conflict(&self, vnode: &NodeView) -> Option<(u16, String)> {
        self.ports.conflict(vnode)
    }

    /// Facts about some worker nodes, at most `most`, for trial calls of policy modules (PO-703).
    pub fn some_facts(&self, most: usize) -> Vec<Arc<NodeFacts>> {
        let state = self.state.lock();
        let some = state.index.keys().into_iter().filter_map(|vnode| {
            let snapshot = state.index.snapshot(&vnode);
            let pnode = snapshot.pnode.as_deref()?;
            Some(Arc::new(facts(pnode, &vnode, snapshot.vnode.as_deref(), &snapshot.usage)))
        });
        some.take(most).collect()
    }

    /// Names of all worker nodes.
    pub fn worker_node_names(&self) -> BTreeSet<String> {
        let state = self.state.lock();
        let pnode = |vnode: &VnodeName| Some(state.index.snapshot(vnode).pnode?.name().to_owned());
        state.index.keys().iter().filter_map(pnode).collect()
    }

    /// Names of all vnodes that exist.
    pub fn vnode_names(&self) -> BTreeSet<String> {
        self.state.lock().index.vnodes().map(|vnode| vnode.name().to_owned()).collect()
    }

    /// Worker nodes whose label names one of `policies` (for the deletion of a binding).
    pub fn labelled_nodes(&self, policies: &dyn Fn(&str) -> bool) -> Vec<Arc<NodeView>> {
        let state = self.state.lock();
        state.index.labelled(policies)
    }

    /// Leases to renew.
    pub fn lease_targets(&self, now: Timestamp) -> Vec<LeaseTarget> {
        let state = self.state.lock();
        let target = |(name, vnode): (&VnodeName, &Arc<NodeView>)| LeaseTarget {
            vnode: Arc::clone(name),
            uid: vnode.uid().to_owned(),
            // The API server's clock may be ahead of ours.
            young: vnode
                .metadata
                .created
                .is_some_and(|created| now.duration_since(created).unsigned_abs() < YOUNG),
        };
        state.index.renewable().map(target).collect()
    }

    pub(super) fn set_written(&self, vnode: &str, written: Written) {
        self.state.lock().index.set_written(vnode, written);
    }

    pub(super) fn set_terms(&self, vnode: &str, terms: Terms) {
        self.state.lock().index.set_terms(vnode, terms);
    }

    pub(super) fn set_decided(&self, vnode: &VnodeName, decided: Option<Decided>) {
        let (policies, governed_anew) = {
            let mut state = self.state.lock();
            let before = state.index.governing(vnode).map(str::to_owned);
            let policies = state.index.set_decided(vnode, decided);
            (policies, before.as_deref() != state.index.governing(vnode))
        };
        if governed_anew {
            self.tell_facts(Some(vnode));
        }
        self.tell_policies(policies);
    }

    /// Frees the port of a vnode unless there is one: it may have come since somebody looked.
    pub(super) fn release_port_of_no_vnode(&self, vnode: &str) {
        let state = self.state.lock();
        if state.index.vnode(vnode).is_none() {
            self.ports.release(vnode);
        }
    }
}
