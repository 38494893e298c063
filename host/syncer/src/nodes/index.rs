//! What is known about nodes, vnodes and the requests on them, updated in O(change).
//!
//! Synchronous and without I/O. In: watch events of both clusters. Out: names of vnodes that became dirty, and the
//! snapshot of one vnode. The sums over pods are kept in `accounts`, what was decided in `decided`.

mod accounts;
mod decided;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use kubeocean_api::{
    keys::label,
    name::{vnode_name, vnode_name_prefix},
};

use super::{
    conditions::set_by_lifecycle_controller,
    host_ports::HeldPorts,
    snapshot::{Amounts, Usage},
    terms::Terms,
    view::{NodeView, READY},
    vnode::Written,
};
use crate::tombstones::{Tombstones, is_younger};
use accounts::{Pod, Sums};
pub use decided::Decided;

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
    /// Worker node -> measured usage.
    measured: BTreeMap<String, Amounts>,
    /// Worker node -> host ports that others' pods hold there.
    ports: HashMap<Arc<str>, HeldPorts>,
    /// Vnodes on whose nodes ports were taken or became free since somebody asked.
    port_news: BTreeSet<VnodeName>,
    /// Vnodes of whose nodes only what leased pods ask for has changed.
    leased_news: BTreeSet<VnodeName>,
    written: HashMap<VnodeName, Written>,
    /// Of vnodes that exist.
    terms: HashMap<VnodeName, Terms>,
    decided: HashMap<VnodeName, Decided>,
    /// Vnodes that have to be read before anything is decided about them, with the version a read must have reached:
    /// nobody said what became of the last write that names a policy, or the watch shows them no more.
    unsettled: BTreeMap<VnodeName, u64>,
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
    /// What is used of the node.
    pub usage: Usage,
    /// What was last written.
    pub written: Option<Written>,
    /// What is known of the end of its lease.
    pub terms: Terms,
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
            measured: BTreeMap::new(),
            ports: HashMap::new(),
            port_news: BTreeSet::new(),
            leased_news: BTreeSet::new(),
            written: HashMap::new(),
            terms: HashMap::new(),
            decided: HashMap::new(),
            unsettled: BTreeMap::new(),
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
    /// nobody, or two Syncers that disagree about it would never rest. What is known already is no news.
    pub fn set_pnode(&mut self, node: NodeView) -> Option<VnodeName> {
        let name: Arc<str> = node.name().into();
        if self.pnodes.get(&name).is_some_and(|known| !is_younger(&node.metadata, &known.metadata)) {
            return None;
        }
        let vnode = self.vnode_of(&name);
        self.names.insert(Arc::clone(&vnode), Arc::clone(&name));
        let node = Arc::new(node);
        let before = self.pnodes.insert(name, Arc::clone(&node));
        (!before.is_some_and(|before| only_marked(&before, &node))).then_some(vnode)
    }

    /// A worker node as the answer of a write shows it; it may have gone since.
    pub fn answered_pnode(&mut self, node: NodeView) -> Option<VnodeName> {
        let known = self.pnodes.get(node.name())?;
        (known.uid() == node.uid()).then(|| self.set_pnode(node))?
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
            self.terms.remove(&name);
        }
        self.vnodes.insert(Arc::clone(&name), Arc::new(vnode));
        Some(name)
    }

    /// A name we could have given: a real node that somebody labelled like a vnode is never touched. What carries our
    /// finalizer stays ours, whatever a user did to its labels.
    fn is_vnode(&self, vnode: &NodeView) -> bool {
        vnode.name().starts_with(&self.prefix)
            && (vnode.label(label::TYPE).is_none_or(|kind| kind == label::TYPE_VIRTUAL_KUBELET)
                || vnode.metadata.finalizers.iter().any(|one| one == kubeocean_api::keys::finalizer::VNODE))
    }

    /// The watch shows a vnode no more, as of a version: it is gone, or only lost a label the watch selects by. What is
    /// known of it stands until it has been read.
    pub fn miss_vnode(&mut self, name: &str, uid: &str, at: u64) -> Option<VnodeName> {
        let Some((key, _)) = self.vnodes.get_key_value(name).filter(|(_, known)| known.uid() == uid) else {
            self.left.add(uid, at);
            return None;
        };
        let key = Arc::clone(key);
        self.unsettled.insert(Arc::clone(&key), at);
        Some(key)
    }

    /// A vnode is gone at a version.
    pub fn remove_vnode(&mut self, name: &str, uid: &str, at: u64) -> Option<VnodeName> {
        self.left.add(uid, at);
        let (key, known) = self.vnodes.get_key_value(name)?;
        if known.uid() != uid {
            return None;
        }
        let key = Arc::clone(key);
        self.vnodes.remove(&key);
        self.written.remove(&key);
        self.terms.remove(&key);
        Some(key)
    }

    /// The complete list of vnodes that the watch selects. What is known of others stands until they have been read.
    pub fn reset_vnodes(&mut self, all: Vec<NodeView>) -> BTreeSet<VnodeName> {
        let mut dirty: BTreeSet<VnodeName> = self.vnodes.keys().cloned().collect();
        let before = std::mem::take(&mut self.vnodes);
        for vnode in all {
            dirty.extend(self.set_vnode(vnode));
        }
        let replaced = |name: &VnodeName| match (before.get(name), self.vnodes.get(name)) {
            (Some(old), Some(new)) => old.uid() != new.uid(),
            (old, _) => old.is_none(),
        };
        self.written.retain(|name, _| !replaced(name));
        self.terms.retain(|name, _| !replaced(name));
        for (name, missed) in before {
            if !self.vnodes.contains_key(&name) {
                self.unsettled.insert(Arc::clone(&name), missed.version());
                self.vnodes.insert(name, missed);
            }
        }
        dirty
    }

    /// The measured usage of all worker nodes. Returns the vnodes of those that changed.
    pub fn set_measured(&mut self, all: &BTreeMap<String, Amounts>) -> BTreeSet<VnodeName> {
        let nodes: BTreeSet<&String> = self.measured.keys().chain(all.keys()).collect();
        let changed = nodes.into_iter().filter(|node| self.measured.get(*node) != all.get(*node));
        let vnodes = changed.map(|node| self.vnode_of(node)).collect();
        self.measured.clone_from(all);
        vnodes
    }

    /// Everything about one vnode.
    pub fn snapshot(&self, vnode: &str) -> Snapshot {
        let pnode = self.names.get(vnode).and_then(|node| self.pnodes.get(node)).cloned();
        Snapshot {
            usage: pnode.as_ref().map(|pnode| self.usage(pnode.name())).unwrap_or_default(),
            pnode,
            vnode: self.vnodes.get(vnode).cloned(),
            written: self.written.get(vnode).cloned(),
            terms: self.terms.get(vnode).copied().unwrap_or_default(),
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
    pub fn labelled(&self, wanted: &dyn Fn(&str) -> bool) -> Vec<Arc<NodeView>> {
        let labelled = |node: &&Arc<NodeView>| node.label(label::POLICY_APPLIED).is_some_and(wanted);
        let mut nodes: Vec<_> = self.pnodes.values().filter(labelled).cloned().collect();
        nodes.sort_by(|a, b| a.name().cmp(b.name()));
        nodes
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

    /// Remembers on which terms the lease of a vnode ends.
    pub fn set_terms(&mut self, vnode: &str, terms: Terms) {
        if let Some((name, _)) = self.vnodes.get_key_value(vnode) {
            self.terms.insert(Arc::clone(name), terms);
        }
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
}

/// Whether two versions of a worker node differ at most in label `policy-applied`, which is ours and the other bindings'.
fn only_marked(before: &NodeView, after: &NodeView) -> bool {
    if before.label(label::POLICY_APPLIED) == after.label(label::POLICY_APPLIED) {
        return false;
    }
    let unmarked = |node: &NodeView| {
        let mut node = node.clone();
        node.metadata.resource_version = Box::default();
        node.labels = node.labels.without(label::POLICY_APPLIED);
        node
    };
    unmarked(before) == unmarked(after)
}
