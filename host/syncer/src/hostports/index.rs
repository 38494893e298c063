//! What is known of port reservations, and the queue of vnodes that need a look.
//!
//! In: the watch of reservations, answers of writes, changes of vnodes and of ports. Out: the snapshot of one key. No lock
//! is held across an await. Invariants: an older version never replaces a newer one; what a DELETED event removed is not
//! brought back by a late answer; our own writes are no work, whatever others make of them.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
    time::Duration,
};

use kubeocean_runtime::queue::Queue;
use parking_lot::Mutex;

use super::view::FakePod;
use crate::{
    nodes::{
        host_ports::HostPort,
        index::VnodeName,
        store::{NodeStore, VnodeRef},
    },
    tombstones::{Tombstones, Versioned},
};

/// Quiet time after a change of ports: a pod that is replaced frees its port and takes it again.
const QUIET: Duration = Duration::from_millis(200);

/// Everything about one vnode's reservation at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The vnode.
    pub vnode: Option<VnodeRef>,
    /// Ports that others' pods hold on the worker node.
    pub held: Vec<HostPort>,
    /// Reservations on the vnode, by name.
    pub fakes: Vec<Arc<FakePod>>,
}

/// See the module documentation.
pub struct HostPortStore {
    nodes: Arc<NodeStore>,
    pub(super) queue: Arc<Queue<VnodeName>>,
    index: Mutex<Index>,
}

#[derive(Default)]
struct Index {
    /// Vnode -> name -> reservation.
    fakes: HashMap<VnodeName, BTreeMap<Box<str>, Arc<FakePod>>>,
    left: Tombstones,
}

impl fmt::Debug for HostPortStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostPortStore").field("nodes", &self.nodes).finish_non_exhaustive()
    }
}

impl HostPortStore {
    /// Nothing known yet; `nodes` knows vnodes and ports.
    pub fn new(nodes: Arc<NodeStore>) -> Arc<Self> {
        Arc::new(Self { nodes, queue: Queue::new("hostports"), index: Mutex::default() })
    }

    /// Who knows vnodes and ports.
    pub fn nodes(&self) -> &NodeStore {
        &self.nodes
    }

    /// A vnode appeared, changed or vanished.
    pub fn vnode_changed(&self, vnode: &str) {
        self.queue.add(vnode.into());
    }

    /// Pods of others took or freed ports of the vnode's node.
    pub fn ports_changed(&self, vnode: &str) {
        self.queue.add_after(vnode.into(), QUIET);
    }

    /// Everything needs a look.
    pub fn wake_all(&self) {
        let reserved: BTreeSet<VnodeName> = self.index.lock().fakes.keys().cloned().collect();
        self.queue.add_all(reserved.into_iter().chain(self.nodes.vnode_names().into_iter().map(Into::into)));
    }

    /// Everything about one vnode's reservation.
    pub fn snapshot(&self, vnode: &str) -> Snapshot {
        Snapshot {
            vnode: self.nodes.vnode(vnode),
            held: self.nodes.host_ports(vnode),
            fakes: self
                .index
                .lock()
                .fakes
                .get(vnode)
                .into_iter()
                .flat_map(BTreeMap::values)
                .cloned()
                .collect(),
        }
    }

    /// The watch shows a reservation. What we wrote ourselves is known by then, and wakes nobody.
    pub(super) fn saw(&self, fake: FakePod) {
        let vnode: VnodeName = fake.vnode.as_ref().into();
        if self.take(fake) {
            self.queue.add(vnode);
        }
    }

    /// A reservation as an answer or the watch shows it; says whether it is news. One that is bound nowhere reserves
    /// nothing.
    pub(super) fn take(&self, fake: FakePod) -> bool {
        let mut index = self.index.lock();
        let known = index.fakes.get(&*fake.vnode).and_then(|fakes| fakes.get(fake.name()));
        if fake.vnode.is_empty() || !index.left.admit(known.map(|known| &known.metadata), &fake.metadata) {
            return false;
        }
        let fakes = index.fakes.entry(fake.vnode.as_ref().into()).or_default();
        fakes.insert(fake.name().into(), Arc::new(fake));
        true
    }

    /// The watch shows a reservation no more.
    pub(super) fn lost(&self, fake: &FakePod) {
        if self.remove(&fake.vnode, fake.name(), fake.uid(), fake.metadata.version()) {
            self.queue.add(fake.vnode.as_ref().into());
        }
    }

    /// A reservation is gone at a version, or only lost a label the watch selects by; says whether it is news.
    pub(super) fn remove(&self, vnode: &str, name: &str, uid: &str, at: u64) -> bool {
        let mut index = self.index.lock();
        index.left.add(uid, at);
        let Some(fakes) = index.fakes.get_mut(vnode) else { return false };
        let known = fakes.get(name).is_some_and(|known| known.uid() == uid);
        if known {
            fakes.remove(name);
        }
        if fakes.is_empty() {
            index.fakes.remove(vnode);
        }
        known
    }

    /// The complete list of reservations.
    pub(super) fn listed(&self, all: Vec<FakePod>) {
        let mut fakes: HashMap<VnodeName, BTreeMap<Box<str>, Arc<FakePod>>> = HashMap::new();
        for fake in all.into_iter().filter(|fake| !fake.vnode.is_empty()) {
            let of_vnode = fakes.entry(fake.vnode.as_ref().into()).or_default();
            of_vnode.insert(fake.name().into(), Arc::new(fake));
        }
        let names: BTreeSet<VnodeName> = fakes.keys().cloned().collect();
        let before = std::mem::replace(&mut self.index.lock().fakes, fakes);
        self.queue.add_all(before.into_keys().chain(names));
    }
}
