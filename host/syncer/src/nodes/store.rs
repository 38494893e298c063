//! The [`Index`] behind its lock, with the queue of dirty vnodes and those who want to know.
//!
//! In: watch sinks, results of writes. Out: batches of keys for `decide`, answers for the other concerns.
//! Callers: every task of a binding. No lock is held across an await.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use jiff::Timestamp;
use kubeocean_api::{
    keys::{annotation, label},
    name::PortsExhausted,
};
use kubeocean_engine::NodeFacts;
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use super::{
    decide::POLICIES_WAIT,
    host_ports::HostPort,
    index::{Decided, Identity, Index, Snapshot, VnodeName},
    loss::WorkerLoss,
    ports::Ports,
    snapshot::{Amounts, Usage, available, facts},
    view::NodeView,
    vnode::{BindingView, Written},
};
use kubeocean_runtime::queue::Queue;

/// A vnode of this age or less is young (BU section 10).
const YOUNG: Duration = Duration::from_secs(10);
/// Quiet time before a change of requests is acted on.
const QUIET: Duration = Duration::from_millis(200);
/// Longest time between two reactions to a stream of such changes.
const STREAM: Duration = Duration::from_secs(1);
/// Beyond so many remembered reactions, those that no longer matter are forgotten.
const REMEMBERED: usize = 1024;

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

/// How much may be decided yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    /// The first lists are not complete.
    #[default]
    Listing,
    /// The lists are complete: nodes are decided, each as soon as its policies are loaded (PO-704).
    Ready,
}

/// What was written, for metrics.
#[derive(Debug, Default)]
pub struct NodeCounters {
    /// Vnodes created.
    pub created: AtomicU64,
    /// Patches of taints, cordon, metadata or finalizer.
    pub patched: AtomicU64,
    /// Applies of metadata and status.
    pub applied: AtomicU64,
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
    /// Every node has been decided since the gate was opened.
    settled: watch::Sender<bool>,
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
    /// When a node's change of requests was last acted on.
    woken: std::collections::HashMap<VnodeName, Instant>,
}

impl fmt::Debug for NodeStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeStore").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// What is the same for all vnodes at one moment.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The binding.
    pub binding: BindingView,
    /// How much may be decided.
    pub readiness: Readiness,
    /// How long a node may still wait for its policies to load; `None` when that time is over.
    pub loading_left: Option<Duration>,
    /// Addresses of ready Proxiers.
    pub proxier: Vec<IpAddr>,
    /// Why the worker has been out of reach for 60 s, if it has.
    pub loss: Option<WorkerLoss>,
}

/// How much the nodes of a policy are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyUsage {
    /// Nodes it governs.
    pub governed: usize,
    /// Of these, nodes for which a module of it does not answer.
    pub failed: usize,
    /// Of these, nodes that are withheld.
    pub withheld: usize,
    /// Nodes it would cover if no older policy did, and one of these.
    pub shadowed: usize,
    /// A policy that shadows it.
    pub shadowed_by: Option<String>,
    /// Vnodes built from it, or about to be.
    pub built: usize,
}

/// Numbers of one vnode for metrics (BU-1601), in base units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VnodeNumbers {
    /// Vnode name.
    pub vnode: String,
    /// What the node has.
    pub origin: Amounts,
    /// What is leased.
    pub available: Amounts,
    /// Requests of others and of this binding's pods.
    pub usage: Usage,
}

/// Numbers of one policy for metrics (PO-1501), summed over the nodes it governs, in base units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PolicyNumbers {
    /// What its nodes publish.
    pub offered: Amounts,
    /// What others leave of its nodes.
    pub available: Amounts,
    /// Nodes that are withheld.
    pub withheld: usize,
    /// Nodes that publish less than this binding's pods there ask for (PO-603).
    pub overcommitted: usize,
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
            woken: std::collections::HashMap::new(),
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
            settled: watch::Sender::new(false),
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

    /// Host ports that others' pods hold on the vnode's node, sorted: all but those of this binding's own copies.
    pub fn host_ports(&self, vnode: &str) -> Vec<HostPort> {
        self.state.lock().index.host_ports(vnode)
    }

    /// A pod of the vnode came, went or changed.
    pub fn wake(&self, vnode: &str) {
        self.queue.add(vnode.into());
    }

    /// Everything is to be looked at again.
    pub fn wake_all(&self) {
        let keys = self.state.lock().index.keys();
        self.queue.add_all(keys);
    }

    /// The binding changed.
    pub fn set_binding(&self, binding: BindingView) {
        let changed = {
            let mut state = self.state.lock();
            let changed = state.binding != binding;
            state.binding = binding;
            changed
        };
        if changed {
            self.wake_all();
        }
    }

    /// More, or after a lost session less, may be decided.
    pub fn set_readiness(&self, readiness: Readiness) {
        let (changed, settled) = {
            let mut state = self.state.lock();
            let changed = std::mem::replace(&mut state.readiness, readiness) != readiness;
            if changed && readiness == Readiness::Ready {
                state.loading_until = Some(Instant::now() + POLICIES_WAIT);
                state.undecided = state.index.keys();
            }
            (changed, readiness == Readiness::Ready && state.undecided.is_empty())
        };
        if changed {
            self.settled.send_replace(settled);
            self.wake_all();
        }
    }

    /// A decision about the vnode's node was made, and no longer waits for policies to load.
    pub(super) fn was_decided(&self, vnode: &VnodeName) {
        let mut state = self.state.lock();
        if state.undecided.remove(vnode) && state.undecided.is_empty() {
            drop(state);
            self.settled.send_replace(true);
        }
    }

    /// Waits until every node that was there when the gate was opened has been decided.
    pub(crate) async fn settled(&self) {
        // The sender lives in `self`, so the wait can only end with a value.
        let _ = self.settled.subscribe().wait_for(|settled| *settled).await;
    }

    /// Waiting for nodes that cannot be decided is over.
    pub(super) fn settle(&self) {
        self.state.lock().undecided.clear();
        self.settled.send_replace(true);
    }

    /// Whether the numbers of policies are complete. Before that they prove nothing.
    pub fn is_settled(&self) -> bool {
        *self.settled.borrow()
    }

    /// How much may be decided.
    pub fn readiness(&self) -> Readiness {
        self.state.lock().readiness
    }

    /// The ready Proxiers.
    pub fn set_proxier(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        let sorted: Vec<IpAddr> = addresses.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        let mut state = self.state.lock();
        if state.proxier == sorted {
            return;
        }
        state.proxier = sorted;
        drop(state);
        self.wake_all();
    }

    /// Why the worker has been out of reach for 60 s, if it has. Says whether that is news.
    pub fn set_loss(&self, loss: Option<WorkerLoss>) -> bool {
        let changed = std::mem::replace(&mut self.state.lock().loss, loss) != loss;
        if changed {
            self.wake_all();
        }
        changed
    }

    /// What is the same for all vnodes.
    pub fn surroundings(&self) -> Surroundings {
        let state = self.state.lock();
        Surroundings {
            binding: state.binding.clone(),
            readiness: state.readiness,
            loading_left: state
                .loading_until
                .map(|until| until.saturating_duration_since(Instant::now()))
                .filter(|left| !left.is_zero()),
            proxier: state.proxier.clone(),
            loss: state.loss,
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

    /// Nodes and vnodes of a policy.
    pub fn policy_usage(&self, policy: &str) -> PolicyUsage {
        let state = self.state.lock();
        let mut usage = PolicyUsage { built: state.index.built_from(policy), ..PolicyUsage::default() };
        for (_, decided) in state.index.decided() {
            if decided.governed_by.as_deref() == Some(policy) {
                usage.governed += 1;
                usage.failed += usize::from(decided.failed);
                usage.withheld += usize::from(decided.withheld);
            } else if decided.shadowed.iter().any(|name| name == policy) {
                usage.shadowed += 1;
                usage.shadowed_by = usage.shadowed_by.max(decided.governed_by.clone());
            }
        }
        usage
    }

    /// Numbers of all vnodes, by name.
    pub fn numbers(&self) -> Vec<VnodeNumbers> {
        let state = self.state.lock();
        let mut numbers: Vec<VnodeNumbers> = state
            .index
            .decided()
            .filter(|(name, _)| state.index.vnode(name).is_some())
            .map(|(name, decided)| VnodeNumbers {
                vnode: name.to_string(),
                origin: decided.origin.clone(),
                available: decided.granted.clone(),
                usage: state.index.snapshot(name).usage,
            })
            .collect();
        numbers.sort_by(|a, b| a.vnode.cmp(&b.vnode));
        numbers
    }

    /// Numbers of all policies that govern a node, by name.
    pub fn policy_numbers(&self) -> BTreeMap<String, PolicyNumbers> {
        let state = self.state.lock();
        let mut all: BTreeMap<String, PolicyNumbers> = BTreeMap::new();
        for (vnode, decided) in state.index.decided() {
            let Some(policy) = &decided.governed_by else { continue };
            let usage = state.index.snapshot(vnode).usage;
            let numbers = all.entry(policy.clone()).or_default();
            add(&mut numbers.offered, &decided.granted);
            add(&mut numbers.available, &available(&decided.origin, &usage.others));
            numbers.withheld += usize::from(decided.withheld);
            let used = |resource: &str| usage.own.get(resource).copied().unwrap_or(0);
            let over = decided.granted.iter().any(|(resource, granted)| used(resource) > *granted);
            numbers.overcommitted += usize::from(over);
        }
        all
    }

    /// Counts the sums of requests anew; returns how many vnodes had wrong ones.
    pub(super) fn recount(&self) -> usize {
        let wrong = self.state.lock().index.recount();
        let count = wrong.len();
        self.counters.usage_drift.fetch_add(u64::try_from(count).unwrap_or(u64::MAX), Ordering::Relaxed);
        self.queue.add_all(wrong);
        count
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
    pub fn labelled_nodes(&self, policies: &dyn Fn(&str) -> bool) -> Vec<String> {
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
                .creation_timestamp
                .as_ref()
                .is_some_and(|created| now.duration_since(created.0).unsigned_abs() < YOUNG),
        };
        state.index.renewable().map(target).collect()
    }

    pub(super) fn set_written(&self, vnode: &str, written: Written) {
        self.state.lock().index.set_written(vnode, written);
    }

    pub(super) fn set_decided(&self, vnode: &VnodeName, decided: Option<Decided>) {
        let policies = self.state.lock().index.set_decided(vnode, decided);
        self.tell_policies(policies);
    }

    /// Frees the port of a vnode unless there is one: it may have come since somebody looked.
    pub(super) fn release_port_of_no_vnode(&self, vnode: &str) {
        let state = self.state.lock();
        if state.index.vnode(vnode).is_none() {
            self.ports.release(vnode);
        }
    }

    /// A vnode as an answer or the watch shows it.
    pub fn saw_vnode(&self, vnode: NodeView) {
        let (policies, name, lost) = {
            let mut state = self.state.lock();
            let applied = |vnode: Option<&Arc<NodeView>>| {
                vnode.and_then(|vnode| vnode.annotation(annotation::POLICIES_APPLIED)).map(str::to_owned)
            };
            let before = applied(state.index.vnode(vnode.name()));
            let Some(name) = state.index.set_vnode(vnode) else { return };
            let known = state.index.vnode(&name);
            let lost = known.and_then(|vnode| self.ports.adopt(vnode));
            let after = applied(known);
            let policies =
                if before == after { BTreeSet::new() } else { before.into_iter().chain(after).collect() };
            (policies, name, lost)
        };
        self.ports.tell(lost);
        self.queue.add(Arc::clone(&name));
        self.tell_vnodes([name]);
        self.tell_policies(policies);
    }

    /// A vnode is gone at a version, or only lost a label the watch selects by.
    pub fn lost_vnode(&self, name: &str, uid: &str, at: u64) {
        let (removed, applied) = {
            let mut state = self.state.lock();
            let applied = state
                .index
                .vnode(name)
                .and_then(|vnode| vnode.annotation(annotation::POLICIES_APPLIED).map(str::to_owned));
            (state.index.remove_vnode(name, uid, at), applied)
        };
        if let Some(name) = removed {
            self.queue.add(Arc::clone(&name));
            self.tell_vnodes([name]);
            self.tell_policies(applied);
        }
    }

    pub(super) fn reset_vnodes(&self, all: Vec<NodeView>) {
        let (dirty, lost, policies) = {
            let mut state = self.state.lock();
            // Those that only a vnode named which went unseen may be waited for by nobody else.
            let mut policies = applied(&state.index);
            let dirty = state.index.reset_vnodes(all);
            policies.extend(applied(&state.index));
            let lost: Vec<String> =
                state.index.vnodes().filter_map(|vnode| self.ports.adopt(vnode)).collect();
            (dirty, lost, policies)
        };
        self.ports.tell(lost);
        self.queue.add_all(dirty.iter().cloned());
        self.tell_vnodes(dirty);
        self.tell_policies(policies);
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Index) -> BTreeSet<VnodeName>) {
        let (dirty, ports) = {
            let mut state = self.state.lock();
            (change(&mut state.index), state.index.take_port_news())
        };
        self.queue.add_all(dirty);
        self.tell_ports(ports);
    }

    /// Changes that come in streams are acted on after a quiet time, and at most once a second.
    pub(super) fn change_requests(&self, change: impl FnOnce(&mut Index) -> BTreeSet<VnodeName>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let dirty = change(&mut state.index);
        if state.woken.len() > REMEMBERED {
            state.woken.retain(|_, at| now.duration_since(*at) < STREAM);
        }
        for vnode in dirty {
            let streaming = state.woken.get(&vnode).is_some_and(|at| now.duration_since(*at) < STREAM);
            if !streaming {
                state.woken.insert(Arc::clone(&vnode), now);
            }
            self.queue.add_after(vnode, if streaming { STREAM } else { QUIET });
        }
        let ports = state.index.take_port_news();
        drop(state);
        self.tell_ports(ports);
    }

    fn tell_ports(&self, names: impl IntoIterator<Item = VnodeName>) {
        let listeners = self.port_listeners.lock();
        for name in names {
            listeners.iter().for_each(|listener| listener(&name));
        }
    }

    fn tell_vnodes(&self, names: impl IntoIterator<Item = VnodeName>) {
        let listeners = self.vnode_listeners.lock();
        for name in names {
            listeners.iter().for_each(|listener| listener(&name));
        }
    }

    fn tell_policies(&self, names: impl IntoIterator<Item = String>) {
        let listeners = self.policy_listeners.lock();
        for name in names.into_iter().filter(|name| !name.is_empty()) {
            listeners.iter().for_each(|listener| listener(&name));
        }
    }
}

/// The policies that vnodes name.
fn applied(index: &Index) -> BTreeSet<String> {
    let names = index.vnodes().filter_map(|vnode| vnode.annotation(annotation::POLICIES_APPLIED));
    names.map(str::to_owned).collect()
}

fn add(sum: &mut Amounts, more: &Amounts) {
    for (resource, amount) in more {
        let entry = sum.entry(resource.clone()).or_default();
        *entry = entry.saturating_add(*amount);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn store() -> Arc<NodeStore> {
        let identity =
            Identity { binding: "dc-east".into(), cluster_id: "cls-a".into(), computing_uid: "c-1".into() };
        NodeStore::new(identity, BindingView::default(), Arc::default())
    }

    fn vnode(name: &str, version: u32, port: u16) -> NodeView {
        serde_json::from_value(json!({"metadata": {
            "name": name, "uid": name, "resourceVersion": version.to_string(),
            "labels": {label::TYPE: "virtual-kubelet", label::PROXIER_PORT: port.to_string()},
        }}))
        .unwrap()
    }

    #[test]
    fn a_vnode_that_names_another_binding_is_not_ours() {
        let store = store();
        for (version, (name, ours)) in (1..).zip([("", true), ("dc-east", true), ("dc-west", false)]) {
            let vnode = json!({"metadata": {
                "name": "vnode-cls-a-n1", "uid": "u", "resourceVersion": version.to_string(),
                "labels": {
                    label::TYPE: "virtual-kubelet",
                    label::CLUSTER_BINDING: "dc-east", label::PHYSICAL_CLUSTER_ID: "cls-a",
                },
                "annotations": {annotation::PHYSICAL_CLUSTER_NAME: name},
            }});
            store.saw_vnode(serde_json::from_value(vnode).unwrap());
            assert_eq!(store.vnode("vnode-cls-a-n1").unwrap().ours, ours, "{name:?}");
        }
    }

    /// Its finalizer waits for the last vnode that names it, also for one that went while nobody watched.
    #[test]
    fn a_policy_hears_of_vnodes_that_went_unseen() {
        let store = store();
        let mut named = vnode("vnode-cls-a-n1", 1, 20_001);
        named.metadata.annotations = Some([(annotation::POLICIES_APPLIED.to_owned(), "p".to_owned())].into());
        store.saw_vnode(named);
        let heard = Arc::new(Mutex::new(Vec::new()));
        let ears = Arc::clone(&heard);
        store.on_policy_usage_change(move |policy| ears.lock().push(policy.to_owned()));
        store.reset_vnodes(Vec::new());
        assert_eq!(*heard.lock(), ["p"]);
    }

    #[test]
    fn numbers_of_a_policy_are_sums_over_the_nodes_it_governs() {
        let store = store();
        let amounts = |cpu: i64| Amounts::from([("cpu".to_owned(), cpu)]);
        let pod = |uid: &str, node: &str, own: bool| {
            let stamp = if own {
                json!({
                    "labels": {label::MANAGED_BY: label::MANAGED_BY_VALUE, label::CLUSTER_BINDING: "dc-east"},
                    "annotations": {annotation::COMPUTING_CLUSTER_UID: "c-1"},
                })
            } else {
                json!({})
            };
            let mut pod = json!({
                "metadata": {"uid": uid, "name": uid, "namespace": "x"},
                "spec": {"nodeName": node, "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
                "status": {"phase": "Running"},
            });
            pod["metadata"].as_object_mut().unwrap().extend(stamp.as_object().unwrap().clone());
            serde_json::from_value::<crate::nodes::view::WorkerPod>(pod).unwrap()
        };
        for name in ["n1", "n2", "n3"] {
            let node = json!({"metadata": {"name": name, "uid": name}});
            store
                .change(|index| index.set_pnode(serde_json::from_value(node).unwrap()).into_iter().collect());
        }
        store.change(|index| {
            index.reset_pods(vec![pod("a", "n1", false), pod("b", "n1", true), pod("c", "n2", true)])
        });
        for (node, policy, granted, withheld) in
            [("n1", "p", 500, false), ("n2", "p", 2000, true), ("n3", "q", 100, false)]
        {
            let decided = Decided {
                governed_by: Some(policy.to_owned()),
                withheld,
                origin: amounts(4000),
                granted: amounts(granted),
                ..Decided::default()
            };
            store.set_decided(&format!("vnode-cls-a-{node}").into(), Some(decided));
        }
        let numbers = store.policy_numbers();
        let p =
            PolicyNumbers { offered: amounts(2500), available: amounts(7000), withheld: 1, overcommitted: 1 };
        assert_eq!(numbers["p"], p);
        assert_eq!(numbers["q"].overcommitted, 0);
        assert_eq!(numbers.len(), 2);
    }

    #[test]
    fn an_edited_port_label_changes_no_port() {
        let store = store();
        store.saw_vnode(vnode("vnode-cls-a-n1", 1, 20_000));
        store.saw_vnode(vnode("vnode-cls-a-n1", 2, 20_001));
        assert_eq!(store.port("vnode-cls-a-n1"), Ok(20_000));
        store.reset_vnodes(vec![vnode("vnode-cls-a-n1", 3, 20_002)]);
        assert_eq!(store.port("vnode-cls-a-n1"), Ok(20_000));
    }

    /// MC-134, over the bindings of one process.
    #[tokio::test]
    async fn the_older_vnode_keeps_a_port_and_the_binding_of_the_younger_is_told() {
        let ports: Arc<Ports> = Arc::default();
        let of = |binding: &str, cluster_id: &str| {
            let identity = Identity {
                binding: binding.into(),
                cluster_id: cluster_id.into(),
                computing_uid: "c".into(),
            };
            NodeStore::new(identity, BindingView::default(), Arc::clone(&ports))
        };
        let aged = |name: &str, created: &str| -> NodeView {
            let mut vnode = vnode(name, 1, 20_000);
            vnode.metadata.creation_timestamp = Some(serde_json::from_value(json!(created)).unwrap());
            vnode
        };
        let (east, west) = (of("dc-east", "cls-a"), of("dc-west", "cls-b"));
        let (older, younger) =
            (aged("vnode-cls-b-n1", "2026-01-01T00:00:00Z"), aged("vnode-cls-a-n1", "2026-01-02T00:00:00Z"));
        east.reset_vnodes(vec![younger.clone()]);
        assert_eq!(east.queue.next().await.as_ref(), "vnode-cls-a-n1");
        east.queue.done(&"vnode-cls-a-n1".into(), kubeocean_runtime::queue::Outcome::Done);
        west.saw_vnode(older);
        assert_eq!(west.port("vnode-cls-b-n1"), Ok(20_000));
        assert_eq!(east.queue.next().await.as_ref(), "vnode-cls-a-n1", "it is looked at again");
        assert_eq!(east.port_conflict(&younger), Some((20_000, "vnode-cls-b-n1".to_owned())));
        assert_ne!(east.port("vnode-cls-a-n1"), Ok(20_000));
    }

    /// BU section 6 *Do better*.
    #[tokio::test(start_paused = true)]
    async fn changes_of_requests_are_taken_together() {
        let store = store();
        let key: VnodeName = "vnode-cls-a-n1".into();
        let start = Instant::now();
        let mut reactions = Vec::new();
        let mut next = std::pin::pin!(store.queue.next());
        for step in 0..40 {
            tokio::time::sleep_until(start + Duration::from_millis(step * 100)).await;
            store.change_requests(|_| BTreeSet::from([Arc::clone(&key)]));
            while let Ok(key) = tokio::time::timeout(Duration::from_millis(1), next.as_mut()).await {
                store.queue.done(&key, kubeocean_runtime::queue::Outcome::Done);
                next.set(store.queue.next());
                reactions.push(start.elapsed().as_millis());
            }
        }
        assert!((200..300).contains(&reactions[0]), "{reactions:?}");
        assert!(reactions.windows(2).all(|two| (500..1_500).contains(&(two[1] - two[0]))), "{reactions:?}");
        assert!((4..=6).contains(&reactions.len()), "{reactions:?}");
    }

    #[test]
    fn a_port_is_released_only_without_a_vnode() {
        let store = store();
        store.saw_vnode(vnode("vnode-cls-a-n1", 1, 20_000));
        store.release_port_of_no_vnode("vnode-cls-a-n1");
        assert_eq!(store.port("vnode-cls-a-n1"), Ok(20_000));
        store.lost_vnode("vnode-cls-a-n1", "vnode-cls-a-n1", u64::MAX);
        store.release_port_of_no_vnode("vnode-cls-a-n1");
        assert_ne!(store.port("vnode-cls-a-n1"), Ok(20_000));
    }

    #[tokio::test]
    async fn policies_are_told_about_after_each_node_was_decided_once() {
        let store = store();
        let names: Vec<VnodeName> = ["vnode-cls-a-n1", "vnode-cls-a-n2"].map(Into::into).into();
        for name in &names {
            store.saw_vnode(vnode(name, 1, 20_000));
        }
        store.set_readiness(Readiness::Ready);
        store.was_decided(&names[0]);
        store.was_decided(&names[0]);
        assert!(!store.is_settled());
        store.was_decided(&names[1]);
        assert!(store.is_settled());
        store.set_readiness(Readiness::Listing);
        assert!(!store.is_settled(), "a new connection begins anew");
    }

    #[tokio::test]
    async fn without_nodes_there_is_nothing_to_wait_for() {
        let store = store();
        store.set_readiness(Readiness::Ready);
        assert!(store.is_settled());
    }
}
