//! What is known about nodes, vnodes and the requests on them, updated in O(change).
//!
//! Synchronous and without I/O. In: watch events of both clusters. Out: names of vnodes that became dirty, and the
//! snapshot of one vnode. Invariant: the sums and the held host ports of a node equal a recount of its pods.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use kubeocean_api::{
    keys::{annotation, label},
    name::{vnode_name, vnode_name_prefix},
    resource::PODS,
};

use super::{
    conditions::set_by_lifecycle_controller,
    host_ports::{HeldPorts, HostPort},
    requests::{Requests, intern},
    snapshot::{Amounts, Usage},
    view::{NodeView, READY, Stamp, WorkerPod},
    vnode::Written,
};
use crate::tombstones::{Tombstones, version};

/// Who we are, as far as ownership of worker pods goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Name of the binding.
    pub binding: String,
    /// Its clusterID.
    pub cluster_id: String,
    /// UID of the computing cluster's namespace `kube-system`.
    pub computing_uid: String,
}

/// Name of a vnode; the key of everything about a node.
pub type VnodeName = Arc<str>;

#[derive(Debug)]
struct Pod {
    node: Arc<str>,
    own: bool,
    requests: Requests,
    host_ports: Box<[HostPort]>,
}

/// Base units by resource. Wider than an amount, so that nothing is lost on the way up and down again.
type Totals = BTreeMap<Arc<str>, i128>;

#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    others: Totals,
    own: Totals,
}

/// What was decided about a node, as far as its policy's status needs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decided {
    /// The governing policy.
    pub governed_by: Option<String>,
    /// Younger policies that would cover the node.
    pub shadowed: Vec<String>,
    /// A module that decides for the node does not answer.
    pub failed: bool,
    /// Withheld at this moment.
    pub withheld: bool,
    /// The vnode is, or is about to be, built from this policy.
    pub leased_by: Option<String>,
    /// Base amounts of the node.
    pub origin: Amounts,
    /// Granted amounts.
    pub granted: Amounts,
}

/// See the module documentation.
#[derive(Debug)]
pub struct Index {
    identity: Identity,
    /// Where copies of this binding's pods are; empty while nobody said.
    mount_namespace: String,
    prefix: String,
    pnodes: HashMap<Arc<str>, Arc<NodeView>>,
    /// Vnode name -> worker node name.
    names: HashMap<VnodeName, Arc<str>>,
    vnodes: HashMap<VnodeName, Arc<NodeView>>,
    pods: HashMap<Arc<str>, Pod>,
    sums: HashMap<Arc<str>, Sums>,
    /// Worker node -> host ports that others' pods hold there.
    ports: HashMap<Arc<str>, HeldPorts>,
    /// Vnodes on whose nodes ports were taken or became free since somebody asked.
    port_news: BTreeSet<VnodeName>,
    written: HashMap<VnodeName, Written>,
    decided: HashMap<VnodeName, Decided>,
    /// Vnodes that went.
    left: Tombstones,
}

/// Everything about one vnode at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The worker node.
    pub pnode: Option<Arc<NodeView>>,
    /// The vnode.
    pub vnode: Option<Arc<NodeView>>,
    /// Requests on the node.
    pub usage: Usage,
    /// What was last written.
    pub written: Option<Written>,
}

impl Index {
    /// Knows nothing yet.
    pub fn new(identity: Identity) -> Self {
        Self {
            prefix: vnode_name_prefix(&identity.cluster_id),
            identity,
            mount_namespace: String::new(),
            pnodes: HashMap::new(),
            names: HashMap::new(),
            vnodes: HashMap::new(),
            pods: HashMap::new(),
            sums: HashMap::new(),
            ports: HashMap::new(),
            port_news: BTreeSet::new(),
            written: HashMap::new(),
            decided: HashMap::new(),
            left: Tombstones::default(),
        }
    }

    /// Only pods of this namespace are this binding's; what is stamped elsewhere would hide from the accounts.
    pub fn own_pods_are_in(&mut self, mount_namespace: &str) {
        mount_namespace.clone_into(&mut self.mount_namespace);
    }

    fn vnode_of(&self, node: &str) -> VnodeName {
        vnode_name(&self.identity.cluster_id, node).into()
    }

    /// A worker node was added or changed. Returns its vnode, unless only label `policy-applied` changed: that wakes
    /// nobody, or two Syncers that disagree about it would never rest.
    pub fn set_pnode(&mut self, node: NodeView) -> Option<VnodeName> {
        let name: Arc<str> = node.name().into();
        let vnode = self.vnode_of(&name);
        self.names.insert(Arc::clone(&vnode), Arc::clone(&name));
        let node = Arc::new(node);
        let before = self.pnodes.insert(name, Arc::clone(&node));
        (!before.is_some_and(|before| only_marked(&before, &node))).then_some(vnode)
    }

    /// A worker node is gone.
    pub fn remove_pnode(&mut self, name: &str) -> VnodeName {
        let vnode = self.vnode_of(name);
        self.names.remove(&vnode);
        self.pnodes.remove(name);
        vnode
    }

    /// The complete list of worker nodes.
    pub fn reset_pnodes(&mut self, all: Vec<NodeView>) -> BTreeSet<VnodeName> {
        let mut dirty: BTreeSet<VnodeName> = self.names.keys().cloned().collect();
        self.pnodes.clear();
        self.names.clear();
        dirty.extend(all.into_iter().filter_map(|node| self.set_pnode(node)));
        dirty
    }

    /// A vnode was added or changed. What is known already is no news, nor what was before the vnode went; objects that
    /// only carry our labels are ignored.
    pub fn set_vnode(&mut self, vnode: NodeView) -> Option<VnodeName> {
        if !self.is_vnode(&vnode) {
            return None;
        }
        let name: VnodeName = vnode.name().into();
        if !self.left.admit(self.vnodes.get(&name).map(|known| &known.metadata), &vnode.metadata) {
            return None;
        }
        if self.vnodes.get(&name).is_some_and(|known| known.uid() != vnode.uid()) {
            self.written.remove(&name);
        }
        self.vnodes.insert(Arc::clone(&name), Arc::new(vnode));
        Some(name)
    }

    /// A name we could have given: a real node that somebody labelled like a vnode is never touched. What carries our
    /// finalizer stays ours, whatever a user did to its labels.
    fn is_vnode(&self, vnode: &NodeView) -> bool {
        let finalizers = vnode.metadata.finalizers.as_deref().unwrap_or_default();
        vnode.name().starts_with(&self.prefix)
            && (vnode.label(label::TYPE).is_none_or(|kind| kind == label::TYPE_VIRTUAL_KUBELET)
                || finalizers.iter().any(|one| one == kubeocean_api::keys::finalizer::VNODE))
    }

    /// A vnode is gone at a version, or only lost a label the watch selects by.
    pub fn remove_vnode(&mut self, name: &str, uid: &str, at: u64) -> Option<VnodeName> {
        self.left.add(uid, at);
        let (key, known) = self.vnodes.get_key_value(name)?;
        if known.uid() != uid {
            return None;
        }
        let key = Arc::clone(key);
        self.vnodes.remove(&key);
        self.written.remove(&key);
        Some(key)
    }

    /// The complete list of vnodes.
    pub fn reset_vnodes(&mut self, all: Vec<NodeView>) -> BTreeSet<VnodeName> {
        let mut dirty: BTreeSet<VnodeName> = self.vnodes.keys().cloned().collect();
        let before = std::mem::take(&mut self.vnodes);
        for vnode in all {
            dirty.extend(self.set_vnode(vnode));
        }
        let same = |name: &VnodeName| match (before.get(name), self.vnodes.get(name)) {
            (Some(old), Some(new)) => old.uid() == new.uid(),
            _ => false,
        };
        self.written.retain(|name, _| same(name));
        for gone in before.values().filter(|vnode| !self.vnodes.contains_key(vnode.name())) {
            self.left.add(gone.uid(), version(&gone.metadata));
        }
        dirty
    }

    /// A worker pod was added or changed. Returns the vnode whose sums changed.
    pub fn set_pod(&mut self, pod: WorkerPod) -> Option<VnodeName> {
        let uid = pod.metadata.uid.clone()?;
        if pod.terminal || pod.node.is_empty() {
            return self.remove_pod(&uid);
        }
        let node: Arc<str> = self
            .pnodes
            .get_key_value(pod.node.as_str())
            .map_or_else(|| pod.node.as_str().into(), |(name, _)| Arc::clone(name));
        let vnode = self.vnode_of(&node);
        let place = pod.metadata.namespace.as_deref().unwrap_or_default();
        let own = self.is_own(place, &pod.stamp, &vnode);
        if let Some(known) = self.pods.get(uid.as_str())
            && known.node == node
            && known.own == own
            && known.requests == pod.requests
            && known.host_ports == pod.host_ports
        {
            return None;
        }
        self.remove_pod(&uid);
        let pod = Pod { node, own, requests: pod.requests, host_ports: pod.host_ports };
        self.count(&pod, 1);
        if self.hold_ports(&pod) {
            self.port_news.insert(Arc::clone(&vnode));
        }
        self.pods.insert(uid.into(), pod);
        Some(vnode)
    }

    /// A worker pod is gone or terminal. Returns the vnode whose sums changed.
    pub fn remove_pod(&mut self, uid: &str) -> Option<VnodeName> {
        let pod = self.pods.remove(uid)?;
        self.count(&pod, -1);
        let vnode = self.vnode_of(&pod.node);
        if self.free_ports(&pod) {
            self.port_news.insert(Arc::clone(&vnode));
        }
        Some(vnode)
    }

    /// The complete list of worker pods.
    pub fn reset_pods(&mut self, all: Vec<WorkerPod>) -> BTreeSet<VnodeName> {
        let before: HashMap<Arc<str>, Sums> = std::mem::take(&mut self.sums);
        let held = std::mem::take(&mut self.ports);
        let mut news = std::mem::take(&mut self.port_news);
        self.pods.clear();
        for pod in all {
            self.set_pod(pod);
        }
        news.extend(differing(&held, &self.ports).map(|node| self.vnode_of(node)));
        self.port_news = news;
        differing(&before, &self.sums).map(|node| self.vnode_of(node)).collect()
    }

    /// Others' pods hold their ports; our own take what they hold from their vnode themselves. Says whether that is news.
    fn hold_ports(&mut self, pod: &Pod) -> bool {
        !pod.own
            && !pod.host_ports.is_empty()
            && self.ports.entry(Arc::clone(&pod.node)).or_default().add(&pod.host_ports)
    }

    fn free_ports(&mut self, pod: &Pod) -> bool {
        let Some(held) = self.ports.get_mut(&pod.node).filter(|_| !pod.own) else { return false };
        let news = held.remove(&pod.host_ports);
        if held.is_empty() {
            self.ports.remove(&pod.node);
        }
        news
    }

    /// Vnodes on whose nodes host ports were taken or became free since the last call.
    pub fn take_port_news(&mut self) -> BTreeSet<VnodeName> {
        std::mem::take(&mut self.port_news)
    }

    /// Host ports that others' pods hold on the vnode's node, sorted.
    pub fn host_ports(&self, vnode: &str) -> Vec<HostPort> {
        let held = self.names.get(vnode).and_then(|node| self.ports.get(node));
        held.into_iter().flat_map(HeldPorts::ports).cloned().collect()
    }

    /// BU section 5: a copy in the mount namespace, stamped for this binding or made by the original for this vnode.
    fn is_own(&self, namespace: &str, stamp: &Stamp, vnode: &str) -> bool {
        if !self.mount_namespace.is_empty() && self.mount_namespace != namespace {
            return false;
        }
        match stamp {
            Stamp::None => false,
            Stamp::Stamped { binding, cluster_uid } => {
                *binding == self.identity.binding && *cluster_uid == self.identity.computing_uid
            }
            Stamp::Legacy { vnode: of } => of == vnode,
        }
    }

    fn count(&mut self, pod: &Pod, sign: i64) {
        let sums = self.sums.entry(Arc::clone(&pod.node)).or_default();
        let side = if pod.own { &mut sums.own } else { &mut sums.others };
        let pods = intern(PODS);
        let amounts = pod.requests.iter().filter(|(resource, _)| ***resource != *PODS);
        for (resource, amount) in amounts.chain(std::iter::once((&pods, 1))) {
            let total = side.entry(Arc::clone(resource)).or_default();
            *total += i128::from(sign) * i128::from(amount);
            if *total == 0 {
                side.remove(resource);
            }
        }
        if sums.own.is_empty() && sums.others.is_empty() {
            self.sums.remove(&pod.node);
        }
    }

    /// Requests on a worker node.
    pub fn usage(&self, node: &str) -> Usage {
        let plain = |side: &Totals| {
            let amount = |total: i128| i64::try_from(total).unwrap_or(i64::MAX);
            side.iter().map(|(resource, total)| (resource.to_string(), amount(*total))).collect()
        };
        self.sums
            .get(node)
            .map_or_else(Usage::default, |sums| Usage { others: plain(&sums.others), own: plain(&sums.own) })
    }

    /// Everything about one vnode.
    pub fn snapshot(&self, vnode: &str) -> Snapshot {
        let pnode = self.names.get(vnode).and_then(|node| self.pnodes.get(node)).cloned();
        Snapshot {
            usage: pnode.as_ref().map(|pnode| self.usage(pnode.name())).unwrap_or_default(),
            pnode,
            vnode: self.vnodes.get(vnode).cloned(),
            written: self.written.get(vnode).cloned(),
        }
    }

    /// The vnode as last seen.
    pub fn vnode(&self, name: &str) -> Option<&Arc<NodeView>> {
        self.vnodes.get(name)
    }

    /// Every vnode that exists.
    pub fn vnodes(&self) -> impl Iterator<Item = &Arc<NodeView>> {
        self.vnodes.values()
    }

    /// Worker nodes whose label `policy-applied` has a value that `wanted` accepts, sorted.
    pub fn labelled(&self, wanted: &dyn Fn(&str) -> bool) -> Vec<String> {
        let labelled = |node: &NodeView| node.label(label::POLICY_APPLIED).is_some_and(wanted);
        let mut names: Vec<String> =
            self.pnodes.values().filter(|node| labelled(node)).map(|node| node.name().to_owned()).collect();
        names.sort();
        names
    }

    /// Every vnode that exists or may come to exist.
    pub fn keys(&self) -> BTreeSet<VnodeName> {
        self.names.keys().chain(self.vnodes.keys()).cloned().collect()
    }

    /// Remembers what was written.
    pub fn set_written(&mut self, vnode: &str, written: Written) {
        if let Some((name, _)) = self.vnodes.get_key_value(vnode) {
            self.written.insert(Arc::clone(name), written);
        }
    }

    /// Remembers what was decided. Returns the policies whose numbers changed by it.
    pub fn set_decided(&mut self, vnode: &VnodeName, decided: Option<Decided>) -> BTreeSet<String> {
        let policies = |decided: &Option<Decided>| -> BTreeSet<String> {
            let Some(decided) = decided else { return BTreeSet::new() };
            let named = decided.governed_by.iter().chain(&decided.leased_by).chain(&decided.shadowed);
            named.cloned().collect()
        };
        let summary = |decided: &Option<Decided>| {
            decided.as_ref().map(|d| {
                let fields = (&d.governed_by, &d.shadowed, d.failed, d.withheld, &d.leased_by);
                (fields.0.clone(), fields.1.clone(), fields.2, fields.3, fields.4.clone())
            })
        };
        let before = self.decided.remove(vnode);
        let mut told = BTreeSet::new();
        if summary(&before) != summary(&decided) {
            told.extend(policies(&before));
            told.extend(policies(&decided));
        }
        if let Some(decided) = decided {
            self.decided.insert(Arc::clone(vnode), decided);
        }
        told
    }

    /// All decisions, by vnode.
    pub fn decided(&self) -> impl Iterator<Item = (&VnodeName, &Decided)> {
        self.decided.iter()
    }

    /// Vnodes that are, or are about to be, built from a policy; its finalizer waits for them.
    pub fn built_from(&self, policy: &str) -> usize {
        let named = |vnode: &NodeView| vnode.annotation(annotation::POLICIES_APPLIED) == Some(policy);
        let there = self.vnodes.iter().filter(|(_, vnode)| named(vnode)).map(|(name, _)| name);
        let coming =
            self.decided.iter().filter(|(_, d)| d.leased_by.as_deref() == Some(policy)).map(|(name, _)| name);
        there.chain(coming).collect::<HashSet<_>>().len()
    }

    /// Vnodes whose Lease is renewed: they are ready, or were written as ready before the computing cluster's node
    /// lifecycle controller called them unknown (BU-1002). What was written says nothing else: the answer to a later write
    /// may have been lost.
    pub fn renewable(&self) -> impl Iterator<Item = (&VnodeName, &Arc<NodeView>)> {
        self.vnodes.iter().filter(|(name, vnode)| {
            let unknown = || vnode.condition(READY).is_some_and(set_by_lifecycle_controller);
            vnode.ready() || self.written.get(*name).is_some_and(|written| written.ready) && unknown()
        })
    }

    /// Counts the sums anew and returns the vnodes whose sums were wrong; any is a defect of this file.
    pub fn recount(&mut self) -> BTreeSet<VnodeName> {
        let mut fresh = Self::new(self.identity.clone());
        for pod in self.pods.values() {
            fresh.count(pod, 1);
            fresh.hold_ports(pod);
        }
        let held = std::mem::replace(&mut self.ports, fresh.ports);
        let news: Vec<VnodeName> = differing(&held, &self.ports).map(|node| self.vnode_of(node)).collect();
        self.port_news.extend(news);
        let before = std::mem::replace(&mut self.sums, fresh.sums);
        differing(&before, &self.sums).map(|node| self.vnode_of(node)).collect()
    }
}

/// Whether two versions of a worker node differ at most in label `policy-applied`, which is ours and the other bindings'.
fn only_marked(before: &NodeView, after: &NodeView) -> bool {
    if before.label(label::POLICY_APPLIED) == after.label(label::POLICY_APPLIED) {
        return false;
    }
    let unmarked = |node: &NodeView| {
        let mut node = node.clone();
        node.metadata.resource_version = None;
        if let Some(labels) = &mut node.metadata.labels {
            labels.remove(label::POLICY_APPLIED);
        }
        node.metadata.labels.get_or_insert_default();
        node
    };
    unmarked(before) == unmarked(after)
}

/// Nodes of which the two do not say the same.
fn differing<'a, T: PartialEq>(
    before: &'a HashMap<Arc<str>, T>,
    after: &'a HashMap<Arc<str>, T>,
) -> impl Iterator<Item = &'a Arc<str>> {
    let nodes: HashSet<&Arc<str>> = before.keys().chain(after.keys()).collect();
    nodes.into_iter().filter(|node| before.get(*node) != after.get(*node))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
    use proptest::prelude::*;

    fn index() -> Index {
        Index::new(Identity {
            binding: "dc-east".into(),
            cluster_id: "cls-a".into(),
            computing_uid: "c-1".into(),
        })
    }

    fn pod(uid: &str, node: &str, cpu: i64, stamp: Stamp) -> WorkerPod {
        WorkerPod {
            metadata: ObjectMeta { uid: Some(uid.into()), ..ObjectMeta::default() },
            node: node.into(),
            terminal: false,
            requests: [("cpu", cpu)].into_iter().collect(),
            host_ports: Box::default(),
            stamp,
        }
    }

    fn with_ports(pod: WorkerPod, ports: &[i32]) -> WorkerPod {
        let port = |port: &i32| HostPort { ip: "0.0.0.0".into(), protocol: "TCP".into(), port: *port };
        WorkerPod { host_ports: ports.iter().map(port).collect(), ..pod }
    }

    fn numbers(index: &Index) -> Vec<i32> {
        index.host_ports("vnode-cls-a-n").iter().map(|port| port.port).collect()
    }

    #[test]
    fn host_ports_of_others_are_held_and_those_of_our_own_pods_are_not() {
        let mut index = index();
        index.set_pnode(node(serde_json::json!({"metadata": {"name": "n"}})));
        index.set_pod(with_ports(pod("1", "n", 1, Stamp::None), &[80, 443]));
        index.set_pod(with_ports(pod("2", "n", 1, stamped("dc-east", "c-1")), &[8080]));
        index.set_pod(with_ports(pod("3", "n", 1, stamped("dc-west", "c-1")), &[443, 9000]));
        index.set_pod(with_ports(pod("4", "other", 1, Stamp::None), &[22]));
        assert_eq!(numbers(&index), [80, 443, 9000]);
        index.remove_pod("1");
        assert_eq!(numbers(&index), [443, 9000]);
    }

    #[test]
    fn only_a_port_that_was_taken_or_became_free_is_news() {
        let mut index = index();
        index.set_pnode(node(serde_json::json!({"metadata": {"name": "n"}})));
        let news = |index: &mut Index| index.take_port_news().len();
        index.set_pod(with_ports(pod("1", "n", 1, Stamp::None), &[80]));
        assert_eq!(news(&mut index), 1);
        index.set_pod(with_ports(pod("2", "n", 1, Stamp::None), &[80]));
        index.remove_pod("1");
        index.set_pod(pod("3", "n", 1, Stamp::None));
        assert_eq!(news(&mut index), 0, "somebody holds it all the time");
        index.reset_pods(vec![with_ports(pod("4", "n", 1, Stamp::None), &[80])]);
        assert_eq!(news(&mut index), 0, "also over a relist");
        index.reset_pods(vec![]);
        assert_eq!((news(&mut index), numbers(&index).len()), (1, 0));
    }

    fn stamped(binding: &str, cluster_uid: &str) -> Stamp {
        Stamp::Stamped { binding: binding.into(), cluster_uid: cluster_uid.into() }
    }

    fn node(json: serde_json::Value) -> NodeView {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn only_pods_stamped_for_this_binding_are_own() {
        let mut index = index();
        index.set_pod(pod("1", "n", 100, Stamp::None));
        index.set_pod(pod("2", "n", 10, stamped("dc-east", "c-1")));
        index.set_pod(pod("3", "n", 1000, stamped("dc-east", "c-2")));
        index.set_pod(pod("4", "n", 1000, stamped("dc-west", "c-1")));
        index.set_pod(pod("5", "n", 1, Stamp::Legacy { vnode: "vnode-cls-a-n".into() }));
        index.set_pod(pod("6", "n", 1000, Stamp::Legacy { vnode: "vnode-cls-a-other".into() }));
        let usage = index.usage("n");
        assert_eq!((usage.own["cpu"], usage.own["pods"]), (11, 2));
        assert_eq!((usage.others["cpu"], usage.others["pods"]), (3100, 4));
    }

    #[test]
    fn a_recount_mends_and_names_what_was_wrong() {
        let mut index = index();
        for node in ["n1", "n2"] {
            index.set_pod(pod(node, node, 100, Stamp::None));
        }
        index.sums.get_mut("n1").unwrap().others.insert("cpu".into(), 700);
        let named: Vec<String> = index.recount().iter().map(ToString::to_string).collect();
        assert_eq!(named, ["vnode-cls-a-n1"]);
        assert_eq!(index.usage("n1").others["cpu"], 100);
        assert!(index.recount().is_empty());
    }

    #[test]
    fn an_event_without_a_change_of_requests_wakes_nobody() {
        let mut index = index();
        assert_eq!(index.set_pod(pod("1", "n", 100, Stamp::None)).as_deref(), Some("vnode-cls-a-n"));
        assert_eq!(index.set_pod(pod("1", "n", 100, Stamp::None)), None);
        let done = WorkerPod { terminal: true, ..pod("1", "n", 100, Stamp::None) };
        assert_eq!(index.set_pod(done).as_deref(), Some("vnode-cls-a-n"));
        assert_eq!(index.usage("n"), Usage::default());
    }

    #[test]
    fn a_pod_elsewhere_does_not_hide_from_the_accounts() {
        let mut index = index();
        index.own_pods_are_in("lease-area");
        let in_namespace = |uid: &str, namespace: &str, stamp: Stamp| {
            let mut pod = pod(uid, "n", 100, stamp);
            pod.metadata.namespace = Some(namespace.into());
            pod
        };
        index.set_pod(in_namespace("1", "lease-area", stamped("dc-east", "c-1")));
        index.set_pod(in_namespace("2", "tenant", stamped("dc-east", "c-1")));
        index.set_pod(in_namespace("3", "tenant", Stamp::Legacy { vnode: "vnode-cls-a-n".into() }));
        let usage = index.usage("n");
        assert_eq!((usage.own["pods"], usage.others["pods"]), (1, 2));
    }

    #[test]
    fn the_mark_of_a_policy_alone_wakes_nobody() {
        let mut index = index();
        let marked = |version: &str, labels: serde_json::Value| {
            node(serde_json::json!({"metadata": {"name": "n", "resourceVersion": version, "labels": labels}}))
        };
        let mark = label::POLICY_APPLIED;
        assert!(index.set_pnode(marked("1", serde_json::json!({"a": "b"}))).is_some());
        assert_eq!(index.set_pnode(marked("2", serde_json::json!({"a": "b", mark: "p"}))), None);
        assert_eq!(index.snapshot("vnode-cls-a-n").pnode.unwrap().label(mark), Some("p"), "but it is known");
        assert_eq!(index.set_pnode(marked("3", serde_json::json!({"a": "b", mark: "q"}))), None);
        assert!(index.set_pnode(marked("4", serde_json::json!({mark: "q"}))).is_some());
        assert_eq!(index.set_pnode(marked("5", serde_json::json!({}))), None);
    }

    #[test]
    fn sums_beyond_every_amount_come_down_again() {
        let mut index = index();
        index.set_pod(pod("1", "n", i64::MAX, Stamp::None));
        index.set_pod(pod("2", "n", i64::MAX, Stamp::None));
        index.set_pod(pod("3", "n", 100, Stamp::None));
        assert_eq!(index.usage("n").others["cpu"], i64::MAX);
        index.remove_pod("1");
        index.remove_pod("2");
        assert_eq!(index.usage("n").others["cpu"], 100);
    }

    #[test]
    fn a_relist_of_pods_wakes_only_what_changed() {
        let mut index = index();
        index.set_pod(pod("1", "n1", 1, Stamp::None));
        index.set_pod(pod("2", "n2", 1, Stamp::None));
        let dirty = index.reset_pods(vec![pod("1", "n1", 1, Stamp::None), pod("3", "n3", 1, Stamp::None)]);
        assert_eq!(
            dirty.iter().map(AsRef::as_ref).collect::<Vec<&str>>(),
            ["vnode-cls-a-n2", "vnode-cls-a-n3"]
        );
    }

    #[test]
    fn a_real_node_with_our_labels_is_not_ours() {
        let mut index = index();
        let labels = serde_json::json!({label::MANAGED_BY: "kubeocean", label::CLUSTER_BINDING: "dc-east"});
        let real = node(serde_json::json!({"metadata": {"name": "master-1", "labels": labels}}));
        assert_eq!(index.set_vnode(real), None);
    }

    #[test]
    fn old_news_about_a_vnode_is_ignored() {
        let mut index = index();
        let version = |rv: &str| {
            node(
                serde_json::json!({"metadata": {"name": "vnode-cls-a-n", "uid": "u", "resourceVersion": rv}}),
            )
        };
        assert!(index.set_vnode(version("10")).is_some());
        assert_eq!(index.set_vnode(version("9")), None);
        assert_eq!(index.set_vnode(version("10")), None, "our own write comes back");
        assert!(index.set_vnode(version("11")).is_some());
        assert_eq!(index.remove_vnode("vnode-cls-a-n", "other", 12), None);
        assert!(index.remove_vnode("vnode-cls-a-n", "u", 13).is_some());
        assert_eq!(index.set_vnode(version("12")), None, "a late answer revives nothing");
        assert!(index.set_vnode(version("14")).is_some(), "it had lost a label and has it again");
        index.reset_vnodes(Vec::new());
        assert_eq!(index.set_vnode(version("13")), None, "nor after a list");
    }

    #[test]
    fn a_lease_is_renewed_for_the_ready_and_for_those_whose_lease_ran_out_while_ready() {
        let mut index = index();
        let mut renewed = |status: &str, reason: &str, written: bool| {
            let ready = serde_json::json!({"type": "Ready", "status": status, "reason": reason});
            index.set_vnode(node(serde_json::json!({
                "metadata": {"name": "vnode-cls-a-n", "uid": "u"}, "status": {"conditions": [ready]},
            })));
            index.set_written("vnode-cls-a-n", Written { ready: written, ..Written::default() });
            index.renewable().count() == 1
        };
        assert!(renewed("True", "KubeletReady", false));
        assert!(renewed("Unknown", "NodeStatusUnknown", true));
        assert!(!renewed("Unknown", "NodeStatusUnknown", false));
        assert!(!renewed("False", "KubeletNotReady", true), "the answer to the write that says so was lost");
    }

    #[test]
    fn a_policy_is_used_by_what_is_there_and_what_is_coming() {
        let mut index = index();
        let annotations = serde_json::json!({annotation::POLICIES_APPLIED: "p"});
        index.set_vnode(node(
            serde_json::json!({"metadata": {"name": "vnode-cls-a-1", "annotations": annotations}}),
        ));
        let leased = Decided { leased_by: Some("p".into()), ..Decided::default() };
        for name in ["vnode-cls-a-1", "vnode-cls-a-2"] {
            assert_eq!(
                index.set_decided(&name.into(), Some(leased.clone())),
                BTreeSet::from(["p".to_owned()])
            );
        }
        assert!(index.set_decided(&"vnode-cls-a-2".into(), Some(leased)).is_empty());
        assert_eq!(index.built_from("p"), 2);
    }

    proptest! {
        #[test]
        fn sums_equal_a_recount(events in proptest::collection::vec((0_u8..12, 0_u8..4, 0_i64..500, 0_u8..4), 0..200)) {
            let mut index = index();
            for (uid, node, cpu, what) in events {
                let (uid, node) = (uid.to_string(), format!("n{node}"));
                match what {
                    0 => { index.remove_pod(&uid); }
                    1 => { index.set_pod(with_ports(pod(&uid, &node, cpu, stamped("dc-east", "c-1")), &[80])); }
                    2 => { index.set_pod(WorkerPod { terminal: true, ..pod(&uid, &node, cpu, Stamp::None) }); }
                    _ => {
                        let ports = [80, i32::try_from(cpu % 3).unwrap() + 1];
                        index.set_pod(with_ports(pod(&uid, &node, cpu, Stamp::None), &ports));
                    }
                }
            }
            prop_assert_eq!(index.recount(), BTreeSet::new());
        }
    }
}
