//! The vnodes of all bindings of this process: which port means which vnode, and whose it is (PX-203 to PX-205, MC-134).

pub(crate) mod plan;
mod watch;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use parking_lot::Mutex;
use tokio::sync::watch as channel;
use tokio_util::sync::CancellationToken;

pub(crate) use watch::{VnodeSink, watch_vnodes};

use crate::binding::BindingPart;

/// How long streams of a vnode that is gone go on (PX section 12).
const CUT_AFTER: Duration = Duration::from_secs(30);

/// A vnode as the Proxier needs it.
#[derive(Debug)]
pub(crate) struct Vnode {
    pub(crate) name: Arc<str>,
    pub(crate) uid: String,
    pub(crate) created: Timestamp,
    pub(crate) ports: Vec<u16>,
    pub(crate) kubelet_version: String,
    /// The binding it belongs to.
    pub(crate) binding: Arc<BindingPart>,
    /// Cancelled some time after it is gone.
    pub(crate) cut: CancellationToken,
}

impl Vnode {
    fn is_like(&self, other: &Self) -> bool {
        self.uid == other.uid
            && self.ports == other.ports
            && self.kubelet_version == other.kubelet_version
            && Arc::ptr_eq(&self.binding, &other.binding)
    }
}

/// All vnodes, and the ports they are served on.
#[derive(Debug)]
pub(crate) struct Vnodes {
    shared_port: u16,
    by_name: Mutex<BTreeMap<Arc<str>, Arc<Vnode>>>,
    by_port: ArcSwap<BTreeMap<u16, Arc<Vnode>>>,
    conflicts: Mutex<Vec<plan::Conflict>>,
    changed: channel::Sender<()>,
}

impl Vnodes {
    /// None yet; `shared_port` is never a vnode's.
    pub(crate) fn new(shared_port: u16) -> Self {
        Self {
            shared_port,
            by_name: Mutex::default(),
            by_port: ArcSwap::default(),
            conflicts: Mutex::default(),
            changed: channel::Sender::new(()),
        }
    }

    /// The vnode of that name.
    pub(crate) fn named(&self, name: &str) -> Option<Arc<Vnode>> {
        self.by_name.lock().get(name).cloned()
    }

    /// The vnode that a port means.
    pub(crate) fn on_port(&self, port: u16) -> Option<Arc<Vnode>> {
        self.by_port.load().get(&port).cloned()
    }

    /// Owners of all ports.
    pub(crate) fn ports(&self) -> Arc<BTreeMap<u16, Arc<Vnode>>> {
        self.by_port.load_full()
    }

    /// Ports that two vnodes want.
    pub(crate) fn conflicts(&self) -> Vec<plan::Conflict> {
        self.conflicts.lock().clone()
    }

    /// Tells of changes of ports.
    pub(crate) fn subscribe(&self) -> channel::Receiver<()> {
        self.changed.subscribe()
    }

    fn set(&self, vnode: Vnode) {
        let mut by_name = self.by_name.lock();
        // Most events are heartbeats, which change nothing here.
        if by_name.get(&vnode.name).is_some_and(|old| old.is_like(&vnode)) {
            return;
        }
        put(&mut by_name, vnode);
        self.replan(&by_name);
    }

    /// Another binding may have told of the same vnode meanwhile: then it is that one's.
    fn remove(&self, binding: &Arc<BindingPart>, name: &str, uid: &str) {
        let mut by_name = self.by_name.lock();
        let is_it = |vnode: &Arc<Vnode>| vnode.uid == uid && Arc::ptr_eq(&vnode.binding, binding);
        if !by_name.get(name).is_some_and(is_it) {
            return;
        }
        if let Some(gone) = by_name.remove(name) {
            cut_later(&gone);
        }
        self.replan(&by_name);
    }

    /// Replaces all vnodes of a binding.
    pub(crate) fn reset(&self, binding: &Arc<BindingPart>, all: Vec<Vnode>) {
        let mut by_name = self.by_name.lock();
        let present: BTreeSet<Arc<str>> = all.iter().map(|vnode| Arc::clone(&vnode.name)).collect();
        by_name.retain(|name, vnode| {
            let stays = !Arc::ptr_eq(&vnode.binding, binding) || present.contains(name);
            if !stays {
                cut_later(vnode);
            }
            stays
        });
        for vnode in all {
            put(&mut by_name, vnode);
        }
        self.replan(&by_name);
    }

    fn replan(&self, by_name: &BTreeMap<Arc<str>, Arc<Vnode>>) {
        let (owners, conflicts) = plan::owners(by_name.values(), self.shared_port);
        let owners = owners.into_iter().map(|(port, vnode)| (port, Arc::clone(vnode))).collect();
        self.by_port.store(Arc::new(owners));
        *self.conflicts.lock() = conflicts;
        self.changed.send_replace(());
    }
}

/// Puts a vnode in; streams of the same vnode keep their token, those of a former one of that name are cut.
fn put(by_name: &mut BTreeMap<Arc<str>, Arc<Vnode>>, mut vnode: Vnode) {
    if let Some(old) = by_name.get(&vnode.name) {
        if old.uid == vnode.uid {
            vnode.cut = old.cut.clone();
        } else {
            cut_later(old);
        }
    }
    by_name.insert(Arc::clone(&vnode.name), Arc::new(vnode));
}

/// Streams end some time after their vnode; called by watches, which are tasks of the runtime.
fn cut_later(vnode: &Arc<Vnode>) {
    let cut = vnode.cut.clone();
    tokio::spawn(async move {
        tokio::time::sleep(CUT_AFTER).await;
        cut.cancel();
    });
}

#[cfg(test)]
impl Vnode {
    pub(crate) fn for_tests(name: &str, created: i64, ports: &[u16]) -> Self {
        Self {
            name: name.into(),
            uid: format!("uid-{name}"),
            created: Timestamp::from_second(created).unwrap(),
            ports: ports.to_vec(),
            kubelet_version: "v1.34.0".to_owned(),
            binding: Arc::new(BindingPart::new("b")),
            cut: CancellationToken::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(binding: &Arc<BindingPart>, name: &str, port: u16) -> Vnode {
        Vnode { binding: Arc::clone(binding), ..Vnode::for_tests(name, 1, &[port]) }
    }

    #[tokio::test(start_paused = true)]
    async fn bindings_come_and_go_without_touching_each_other() {
        let vnodes = Vnodes::new(10250);
        let (a, b) = (Arc::new(BindingPart::new("a")), Arc::new(BindingPart::new("b")));
        vnodes.reset(&a, vec![of(&a, "a1", 20001), of(&a, "a2", 20002)]);
        vnodes.reset(&b, vec![of(&b, "b1", 20003)]);
        let gone = vnodes.named("a1").unwrap();
        let kept = vnodes.named("a2").unwrap();
        vnodes.reset(&a, vec![of(&a, "a2", 20004)]);
        let ports: Vec<u16> = vnodes.ports().keys().copied().collect();
        assert_eq!(ports, [20003, 20004]);
        assert_eq!(&*vnodes.on_port(20004).unwrap().name, "a2");
        assert!(vnodes.on_port(20001).is_none());
        assert!(!gone.cut.is_cancelled());
        gone.cut.cancelled().await;
        assert!(!kept.cut.is_cancelled(), "a changed port cuts no stream");
    }

    /// Two watches tell in no order.
    #[tokio::test(start_paused = true)]
    async fn a_vnode_that_changes_its_binding_is_not_lost_with_the_news_of_the_former_one() {
        let vnodes = Vnodes::new(10250);
        let (a, b) = (Arc::new(BindingPart::new("a")), Arc::new(BindingPart::new("b")));
        let vnode = of(&a, "moves", 20001);
        let uid = vnode.uid.clone();
        vnodes.set(vnode);
        vnodes.set(of(&b, "moves", 20001));
        vnodes.remove(&a, "moves", &uid);
        assert!(Arc::ptr_eq(&vnodes.named("moves").unwrap().binding, &b));
        vnodes.remove(&b, "moves", &uid);
        assert!(vnodes.named("moves").is_none() && vnodes.ports().is_empty());
    }
}
