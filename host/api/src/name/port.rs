//! Proxier ports of vnodes (BU-302, BU-303): a preferred port from the vnode's name, the next free one when taken.

use std::collections::BTreeMap;

/// Lowest port given to a vnode.
pub const PORT_MIN: u16 = 15_000;
/// Highest port given to a vnode.
pub const PORT_MAX: u16 = 65_535;

/// Every port of the range is taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no available ports for node {vnode}")]
pub struct PortsExhausted {
    /// The vnode that got none.
    pub vnode: String,
}

/// The port a vnode gets if nobody else has it: `15000 + FNV-1a-32(name) % 50536`.
pub fn preferred_port(vnode: &str) -> u16 {
    let hash =
        vnode.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let span = u32::from(PORT_MAX - PORT_MIN) + 1;
    PORT_MIN + u16::try_from(hash % span).expect("a remainder of 50536 fits")
}

/// Ports in use by the vnodes of a binding, filled from the vnodes' labels at start.
#[derive(Debug, Default, Clone)]
pub struct PortTable {
    by_port: BTreeMap<u16, String>,
    by_vnode: BTreeMap<String, u16>,
}

impl PortTable {
    /// Takes the port an existing vnode carries, when it is one we could have given: of the range, of nobody else, and
    /// of a vnode that is not known yet. A vnode keeps its port for life; an edit of its label changes nothing.
    pub fn adopt(&mut self, vnode: &str, port: u16) {
        let free = !self.by_port.contains_key(&port);
        if (PORT_MIN..=PORT_MAX).contains(&port) && free && !self.by_vnode.contains_key(vnode) {
            self.record(vnode, port);
        }
    }

    fn record(&mut self, vnode: &str, port: u16) {
        self.release(vnode);
        self.by_port.insert(port, vnode.to_owned());
        self.by_vnode.insert(vnode.to_owned(), port);
    }

    /// The port of a vnode: the recorded one, else the preferred or next free one, upwards with wrap-around.
    pub fn assign(&mut self, vnode: &str) -> Result<u16, PortsExhausted> {
        if let Some(port) = self.by_vnode.get(vnode) {
            return Ok(*port);
        }
        let start = preferred_port(vnode);
        let port = (start..=PORT_MAX)
            .chain(PORT_MIN..start)
            .find(|port| !self.by_port.contains_key(port))
            .ok_or_else(|| PortsExhausted { vnode: vnode.to_owned() })?;
        self.record(vnode, port);
        Ok(port)
    }

    /// Frees the port of a vnode that is gone.
    pub fn release(&mut self, vnode: &str) {
        if let Some(port) = self.by_vnode.remove(vnode)
            && self.by_port.get(&port).is_some_and(|owner| owner == vnode)
        {
            self.by_port.remove(&port);
        }
    }
}
