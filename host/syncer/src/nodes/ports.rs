//! Proxier ports of the vnodes of a process; its bindings share them (BU-303, MC-134).
//!
//! In: vnodes as they are seen. Out: a port per vnode, unique in the process. Of two vnodes that bring the same port the
//! older keeps it, and whoever has the younger is told.

use kubeocean_api::{
    keys::label,
    name::{PortTable, PortsExhausted},
};
use parking_lot::Mutex;

use super::view::NodeView;

/// Is told the name of a vnode that lost its port; answers whether it wants to be told again.
type Listener = Box<dyn Fn(&str) -> bool + Send + Sync>;

/// See the module documentation.
#[derive(Default)]
pub struct Ports {
    table: Mutex<PortTable>,
    listeners: Mutex<Vec<Listener>>,
}

impl std::fmt::Debug for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.table.lock().fmt(f)
    }
}

impl Ports {
    /// Calls `listener` with every vnode that lost its port, until it returns false.
    pub(super) fn on_loss(&self, listener: impl Fn(&str) -> bool + Send + Sync + 'static) {
        self.listeners.lock().push(Box::new(listener));
    }

    /// Takes the port a vnode carries, if it can. Returns the younger vnode that had it; [`Self::tell`] is to be called
    /// with that.
    #[must_use]
    pub(super) fn adopt(&self, vnode: &NodeView) -> Option<String> {
        let created = vnode.metadata.created.map_or(i64::MAX, jiff::Timestamp::as_second);
        self.table.lock().adopt(vnode.name(), carried(vnode)?, created)
    }

    /// Tells whoever has these vnodes that they lost their port. Listeners take locks of their own.
    pub(super) fn tell(&self, lost: impl IntoIterator<Item = String>) {
        for vnode in lost {
            tracing::warn!(vnode, "an older vnode has the same port, this one gets another");
            self.listeners.lock().retain(|listener| listener(&vnode));
        }
    }

    /// The port of a vnode: the one it has, else a free one.
    pub(super) fn assign(&self, vnode: &str) -> Result<u16, PortsExhausted> {
        self.table.lock().assign(vnode)
    }

    /// The port a vnode carries while another vnode has it, and that one's name.
    pub(super) fn conflict(&self, vnode: &NodeView) -> Option<(u16, String)> {
        let port = carried(vnode)?;
        let table = self.table.lock();
        let holder = table.holder(port).filter(|holder| *holder != vnode.name())?;
        Some((port, holder.to_owned()))
    }

    /// Frees the port of a vnode that is gone.
    pub(super) fn release(&self, vnode: &str) {
        self.table.lock().release(vnode);
    }
}

fn carried(vnode: &NodeView) -> Option<u16> {
    vnode.label(label::PROXIER_PORT)?.parse().ok()
}
