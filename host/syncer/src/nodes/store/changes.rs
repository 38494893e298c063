//! How events and answers reach the index, and who is told.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use kubeocean_api::{keys::annotation, vnode::is_marked};
use tokio::time::Instant;

use super::NodeStore;
use crate::nodes::{
    index::{Index, VnodeName},
    view::NodeView,
};

/// Quiet time before a change of requests is acted on.
const QUIET: Duration = Duration::from_millis(200);
/// Longest time between two reactions to a stream of such changes.
const STREAM: Duration = Duration::from_secs(1);
/// Beyond so many remembered reactions, those that no longer matter are forgotten.
pub(super) const REMEMBERED: usize = 1024;

impl NodeStore {
    /// A worker node as an answer shows it: until the watch does, nobody shall write its label once more.
    pub(crate) fn saw_worker_node(&self, node: NodeView) {
        self.change(|index| index.answered_pnode(node).into_iter().collect());
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

    /// The watch shows a vnode no more: it is gone, or only lost a label the watch selects by. It is read first.
    pub(in crate::nodes) fn missed_vnode(&self, name: &str, uid: &str, at: u64) {
        let missed = self.state.lock().index.miss_vnode(name, uid, at);
        if let Some(name) = missed {
            self.queue.add(name);
        }
    }

    /// A vnode is gone at a version.
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

    /// Nobody said whether a write that names a policy was done.
    pub(in crate::nodes) fn not_answered(&self, vnode: &str) {
        self.state.lock().index.not_answered(vnode);
    }

    /// A write met another version than the known one. What no watch shows does not become newer by itself.
    pub(in crate::nodes) fn conflicted(&self, known: Option<&NodeView>) {
        if let Some(known) = known.filter(|it| !is_marked(|key| it.label(key), &self.identity().binding)) {
            self.not_answered(known.name());
        }
    }

    /// Whether the vnode has not been read since such a write.
    pub(in crate::nodes) fn is_unsettled(&self, vnode: &str) -> bool {
        self.state.lock().index.is_unsettled(vnode)
    }

    /// The vnode as it was read since; `None`: there is none. `known` is the UID that was known before the read: the one
    /// under the name now may be another, and a node without our labels is only ours if it was before.
    pub(in crate::nodes) fn settle_vnode(&self, name: &str, known: Option<&str>, live: Option<NodeView>) {
        let at = live.as_ref().map(NodeView::version);
        if let Some(uid) = known.filter(|uid| live.as_ref().is_none_or(|live| live.uid() != *uid)) {
            self.lost_vnode(name, uid, u64::MAX);
        }
        let ours = |live: &NodeView| {
            known == Some(live.uid()) || is_marked(|key| live.label(key), &self.identity().binding)
        };
        if let Some(live) = live.filter(ours) {
            self.saw_vnode(live);
        }
        self.state.lock().index.settled(name, at);
    }

    pub(in crate::nodes) fn reset_vnodes(&self, all: Vec<NodeView>) {
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

    pub(in crate::nodes) fn change(&self, change: impl FnOnce(&mut Index) -> BTreeSet<VnodeName>) {
        let (dirty, ports) = {
            let mut state = self.state.lock();
            (change(&mut state.index), state.index.take_port_news())
        };
        for vnode in &dirty {
            self.tell_facts(Some(vnode));
        }
        self.queue.add_all(dirty);
        self.tell_ports(ports);
    }

    /// Changes that come in streams are acted on after a quiet time, and at most once a second.
    pub(in crate::nodes) fn change_requests(&self, change: impl FnOnce(&mut Index) -> BTreeSet<VnodeName>) {
        let now = Instant::now();
        let mut state = self.state.lock();
        let dirty = change(&mut state.index);
        // What only leased pods ask for concerns placement, and policies that read it.
        let only_leased = state.index.take_leased_news();
        let matter = self.leased_pods_matter.load(Ordering::Relaxed);
        if state.woken.len() > REMEMBERED {
            state.woken.retain(|_, at| now.duration_since(*at) < STREAM);
        }
        let changed: Vec<VnodeName> = dirty.iter().cloned().collect();
        for vnode in dirty.into_iter().filter(|vnode| matter || !only_leased.contains(vnode)) {
            let streaming = state.woken.get(&vnode).is_some_and(|at| now.duration_since(*at) < STREAM);
            if !streaming {
                state.woken.insert(Arc::clone(&vnode), now);
            }
            self.queue.add_after(vnode, if streaming { STREAM } else { QUIET });
        }
        let ports = state.index.take_port_news();
        drop(state);
        for vnode in &changed {
            self.tell_facts(Some(vnode));
        }
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
            self.tell_facts(Some(&name));
            listeners.iter().for_each(|listener| listener(&name));
        }
    }

    pub(super) fn tell_facts(&self, vnode: Option<&str>) {
        self.facts_listeners.lock().iter().for_each(|listener| listener(vnode));
    }

    pub(super) fn tell_policies(&self, names: impl IntoIterator<Item = String>) {
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
