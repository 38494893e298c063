//! What is known of CSINodes in both clusters, and the queue of vnodes whose copy needs a look.
//!
//! In: the two watches, answers of writes, changes of vnodes. Out: the snapshot of one key. No lock is held across an
//! await. Invariants: an older version never replaces a newer one; what a DELETED event removed is not brought back by a
//! late answer; content of the worker is kept for existing vnodes only; our own writes are no work, whatever others make of
//! them.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    sync::Arc,
};

use kubeocean_api::name::vnode_name;
use kubeocean_runtime::queue::Queue;
use parking_lot::Mutex;

use super::view::CsiNode;
use crate::{
    nodes::{
        index::VnodeName,
        store::{NodeStore, VnodeRef},
    },
    tombstones::{Tombstones, Versioned},
};

/// The worker's CSINode of a vnode.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Original {
    /// There is none.
    #[default]
    Absent,
    /// There is one whose content was not kept, because there was no vnode.
    Unread,
    /// Its content.
    Known(Arc<CsiNode>),
}

/// Everything about one vnode's CSINode at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The vnode.
    pub vnode: Option<VnodeRef>,
    /// The worker's CSINode.
    pub original: Original,
    /// What is known under the vnode's name in the computing cluster.
    pub copy: Option<Arc<CsiNode>>,
}

/// See the module documentation.
pub struct CsiNodeStore {
    nodes: Arc<NodeStore>,
    pub(super) queue: Arc<Queue<VnodeName>>,
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    originals: HashMap<VnodeName, Original>,
    copies: HashMap<VnodeName, Arc<CsiNode>>,
    left: Tombstones,
}

impl fmt::Debug for CsiNodeStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CsiNodeStore").field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

impl CsiNodeStore {
    /// Nothing known yet; `nodes` knows the vnodes.
    pub fn new(nodes: Arc<NodeStore>) -> Arc<Self> {
        Arc::new(Self { nodes, queue: Queue::new("csinodes"), index: Mutex::default() })
    }

    /// Who knows the vnodes.
    pub fn nodes(&self) -> &NodeStore {
        &self.nodes
    }

    /// A vnode appeared, changed or vanished.
    pub fn vnode_changed(&self, vnode: &str) {
        self.queue.add(vnode.into());
    }

    /// Everything needs a look.
    pub fn wake_all(&self) {
        let copies: BTreeSet<VnodeName> = self.index.lock().copies.keys().cloned().collect();
        self.queue.add_all(copies.into_iter().chain(self.nodes.vnode_names().into_iter().map(Into::into)));
    }

    /// Everything about one vnode's CSINode. The content of an original without a vnode is dropped.
    pub fn snapshot(&self, name: &str) -> Snapshot {
        let vnode = self.nodes.vnode(name);
        let mut index = self.index.lock();
        if let (None, Some(original)) = (&vnode, index.originals.get_mut(name)) {
            *original = Original::Unread;
        }
        Snapshot {
            vnode,
            original: index.originals.get(name).cloned().unwrap_or_default(),
            copy: index.copies.get(name).cloned(),
        }
    }

    fn vnode_of(&self, original: &CsiNode) -> VnodeName {
        vnode_name(&self.nodes.identity().cluster_id, original.name()).into()
    }

    /// What is kept of an original.
    fn kept(&self, vnode: &str, original: CsiNode) -> Original {
        if self.nodes.vnode(vnode).is_some() { Original::Known(Arc::new(original)) } else { Original::Unread }
    }

    /// The watch shows an original.
    pub(super) fn saw_original(&self, original: CsiNode) {
        let vnode = self.vnode_of(&original);
        let kept = self.kept(&vnode, original);
        self.index.lock().originals.insert(Arc::clone(&vnode), kept);
        self.queue.add(vnode);
    }

    /// The watch says that an original is gone.
    pub(super) fn lost_original(&self, original: &CsiNode) {
        let vnode = self.vnode_of(original);
        self.index.lock().originals.remove(&vnode);
        self.queue.add(vnode);
    }

    /// The complete list of originals.
    pub(super) fn reset_originals(&self, all: Vec<CsiNode>) {
        let all: HashMap<VnodeName, Original> = all
            .into_iter()
            .map(|original| {
                let vnode = self.vnode_of(&original);
                let kept = self.kept(&vnode, original);
                (vnode, kept)
            })
            .collect();
        let before = std::mem::replace(&mut self.index.lock().originals, all.clone());
        let names: HashSet<VnodeName> = before.into_keys().chain(all.into_keys()).collect();
        self.queue.add_all(names);
    }

    /// A read found this original, or none. The watch may have told more meanwhile.
    pub(super) fn read_original(&self, vnode: &str, found: Option<CsiNode>) {
        let mut index = self.index.lock();
        match (index.originals.get_mut(vnode), found) {
            (Some(original @ Original::Unread), Some(found)) => *original = Original::Known(Arc::new(found)),
            (Some(Original::Unread), None) => {
                index.originals.remove(vnode);
            }
            _ => {}
        }
    }

    /// The watch shows a copy. What we wrote ourselves is known by then, and wakes nobody.
    pub(super) fn saw_copy(&self, copy: CsiNode) {
        let name: VnodeName = copy.name().into();
        if self.take_copy(copy) {
            self.queue.add(name);
        }
    }

    /// A copy as an answer or the watch shows it; says whether it is news.
    pub(super) fn take_copy(&self, copy: CsiNode) -> bool {
        let mut index = self.index.lock();
        let known = index.copies.get(copy.name()).map(|known| &known.metadata);
        if !index.left.admit(known, &copy.metadata) {
            return false;
        }
        index.copies.insert(copy.name().into(), Arc::new(copy));
        true
    }

    /// The watch shows a copy no more.
    pub(super) fn lost_copy(&self, copy: &CsiNode) {
        if self.drop_copy(copy.name(), copy.uid(), copy.metadata.version()) {
            self.queue.add(copy.name().into());
        }
    }

    /// A copy is gone at a version, or only lost the label the watch selects by; says whether it is news.
    pub(super) fn drop_copy(&self, name: &str, uid: &str, at: u64) -> bool {
        let mut index = self.index.lock();
        index.left.add(uid, at);
        let known = index.copies.get(name).is_some_and(|known| known.uid() == uid);
        if known {
            index.copies.remove(name);
        }
        known
    }

    /// The complete list of copies.
    pub(super) fn reset_copies(&self, all: Vec<CsiNode>) {
        let all: HashMap<VnodeName, Arc<CsiNode>> =
            all.into_iter().map(|copy| (copy.name().into(), Arc::new(copy))).collect();
        let before = std::mem::replace(&mut self.index.lock().copies, all.clone());
        let names: HashSet<VnodeName> = before.into_keys().chain(all.into_keys()).collect();
        self.queue.add_all(names);
    }
}
