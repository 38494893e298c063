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

/// Who has a port, and since when; a vnode that is only about to be made is the youngest of all.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Holder {
    vnode: String,
    created: Option<i64>,
}

impl Holder {
    /// Whether a vnode of that age has the better claim: the older one, of equally old ones the first by name.
    fn yields_to(&self, vnode: &str, created: i64) -> bool {
        self.created.is_none_or(|own| (created, vnode) < (own, self.vnode.as_str()))
    }
}

/// Ports in use by the vnodes of a process, filled from the vnodes' labels at start.
#[derive(Debug, Default, Clone)]
pub struct PortTable {
    by_port: BTreeMap<u16, Holder>,
    by_vnode: BTreeMap<String, u16>,
}

impl PortTable {
    /// Takes the port an existing vnode carries, when it is one we could have given: of the range, and of a vnode that
    /// is not known yet. A vnode keeps its port for life; an edit of its label changes nothing. Of two vnodes with one
    /// port the older keeps it (MC-134): returns the younger one, if that had it until now. `created` is the vnode's
    /// creation in unix seconds.
    pub fn adopt(&mut self, vnode: &str, port: u16, created: i64) -> Option<String> {
        if !(PORT_MIN..=PORT_MAX).contains(&port) {
            return None;
        }
        if let Some(known) = self.by_vnode.get(vnode) {
            if let Some(holder) = self.by_port.get_mut(known) {
                holder.created = Some(created);
            }
            return None;
        }
        match self.by_port.get(&port) {
            Some(holder) if !holder.yields_to(vnode, created) => None,
            other => {
                let displaced = other.map(|holder| holder.vnode.clone());
                if let Some(younger) = &displaced {
                    self.by_vnode.remove(younger);
                }
                self.record(vnode, port, Some(created));
                displaced
            }
        }
    }

    fn record(&mut self, vnode: &str, port: u16, created: Option<i64>) {
        self.by_port.insert(port, Holder { vnode: vnode.to_owned(), created });
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
        self.record(vnode, port, None);
        Ok(port)
    }

    /// The vnode that has a port.
    pub fn holder(&self, port: u16) -> Option<&str> {
        self.by_port.get(&port).map(|holder| holder.vnode.as_str())
    }

    /// Frees the port of a vnode that is gone.
    pub fn release(&mut self, vnode: &str) {
        if let Some(port) = self.by_vnode.remove(vnode) {
            self.by_port.remove(&port);
        }
    }
}
