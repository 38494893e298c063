//! The requests and host ports of worker pods, summed per node in O(change).
//!
//! Invariant: the sums and the held host ports of a node equal a recount of its pods.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use kubeocean_api::resource::PODS;
use kubeocean_runtime::shared;

use super::{Index, VnodeName};
use crate::nodes::{
    host_ports::{HeldPorts, HostPort},
    requests::Requests,
    snapshot::Usage,
    view::{Stamp, WorkerPod},
};

#[derive(Debug)]
pub(super) struct Pod {
    node: Arc<str>,
    own: bool,
    requests: Requests,
    host_ports: Box<[HostPort]>,
}

/// Base units by resource, sorted by name, without zeros. Wider than an amount, so that nothing is lost on the way up and
/// down again.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Totals(Vec<(Arc<str>, i128)>);

/// Up to so many places are taken one by one.
const FEW: usize = 32;

impl Totals {
    /// Adds, or takes away with a `sign` of -1, amounts of resources.
    fn add<'a>(&mut self, amounts: impl Iterator<Item = (&'a Arc<str>, i64)>, sign: i64) {
        for (resource, amount) in amounts {
            let amount = i128::from(sign) * i128::from(amount);
            match self.0.binary_search_by(|(known, _)| known.cmp(resource)) {
                Ok(place) => self.0[place].1 += amount,
                Err(place) => {
                    // A node has a handful of resources, and there are thousands of nodes.
                    if self.0.len() < FEW {
                        self.0.reserve_exact(1);
                    }
                    self.0.insert(place, (Arc::clone(resource), amount));
                }
            }
        }
        self.0.retain(|(_, total)| *total != 0);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, i128)> {
        self.0.iter().map(|(resource, total)| (resource, *total))
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sums {
    pub(super) others: Totals,
    own: Totals,
}

impl Index {
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
        let leased = own && self.pods.get(uid.as_str()).is_none_or(|before| before.own);
        self.remove_pod(&uid);
        let pod = Pod { node, own, requests: pod.requests, host_ports: pod.host_ports };
        self.count(&pod, 1);
        if self.hold_ports(&pod) {
            self.port_news.insert(Arc::clone(&vnode));
        }
        self.pods.insert(uid.into(), pod);
        self.changed(&vnode, leased);
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
        self.changed(&vnode, pod.own);
        Some(vnode)
    }

    /// The last change of a node's sums was one of leased pods alone, or it was not.
    fn changed(&mut self, vnode: &VnodeName, leased: bool) {
        if leased {
            self.leased_news.insert(Arc::clone(vnode));
        } else {
            self.leased_news.remove(vnode);
        }
    }

    /// Vnodes on whose nodes nothing but what leased pods ask for changed with the change of one pod. To be asked after
    /// each such change.
    pub fn take_leased_news(&mut self) -> BTreeSet<VnodeName> {
        std::mem::take(&mut self.leased_news)
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
        self.leased_news.clear();
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
        let pods = shared::text(PODS);
        let amounts = pod.requests.iter().filter(|(resource, _)| ***resource != *PODS);
        side.add(amounts.chain(std::iter::once((&pods, 1))), sign);
        if sums.own.is_empty() && sums.others.is_empty() {
            self.sums.remove(&pod.node);
        }
    }

    /// What is used of a worker node.
    pub fn usage(&self, node: &str) -> Usage {
        let plain = |side: &Totals| {
            let amount = |total: i128| i64::try_from(total).unwrap_or(i64::MAX);
            side.iter().map(|(resource, total)| (resource.to_string(), amount(total))).collect()
        };
        let sums = self.sums.get(node);
        Usage {
            others: sums.map(|sums| plain(&sums.others)).unwrap_or_default(),
            own: sums.map(|sums| plain(&sums.own)).unwrap_or_default(),
            measured: self.measured.get(node).cloned().unwrap_or_default(),
        }
    }

    /// A defect as [`Index::recount`] looks for: sums of a node as if a pod of its own users had more CPU.
    #[cfg(test)]
    pub(in crate::nodes) fn miscount(&mut self, node: &str) {
        if let Some(sums) = self.sums.get_mut(node) {
            sums.others.add(std::iter::once((&shared::text("cpu"), 600)), 1);
        }
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

/// Nodes of which the two do not say the same.
fn differing<'a, T: PartialEq>(
    before: &'a HashMap<Arc<str>, T>,
    after: &'a HashMap<Arc<str>, T>,
) -> impl Iterator<Item = &'a Arc<str>> {
    let nodes: HashSet<&Arc<str>> = before.keys().chain(after.keys()).collect();
    nodes.into_iter().filter(|node| before.get(*node) != after.get(*node))
}
