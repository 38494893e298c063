//! The private subnet of one cluster: a bridge on this machine, and a place on it for each real node.
//!
//! ```text
//! host:          kubeocean-7 (bridge, 10.79.7.1/24)  <- kube-apiserver listens here
//!                  └ kubeocean-7-1 (veth)
//! node's netns:      └ eth0 ─ cni0 (bridge, 10.79.7.2)  <- kubelet listens here
//!                               ├ pod 10.79.7.64
//!                               └ pod 10.79.7.65
//! ```
//!
//! All of it is one Ethernet, so the machine reaches nodes and pods, and they reach it, without routes, address
//! translation or forwarding. Nothing else is reached: packets for other addresses end at the machine.
//!
//! Invariant: the number of a network is locked by a file below `/run`, and that file is empty exactly while nothing of
//! the number is on the machine. So whoever gets the lock of a file that is not empty knows that its writer was killed
//! together with its watchdog, and clears up.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, anyhow};

use super::requirements::{self, Programs, WhyNot};
use super::run::ip;
use super::undo;
use crate::reaper;

/// One for the machine, unlike the temporary folder: two test processes must see the same locks.
const MARKERS: &str = "/run/kubeocean/networks";
/// Networks are `10.79.<number>.0/24`.
const SECOND_OCTET: u8 = 79;
const NUMBERS: std::ops::RangeInclusive<u8> = 1..=250;
/// Of each network; each has a quarter of the addresses for its pods, the first quarter is for machine and nodes.
const NODES: std::ops::RangeInclusive<u8> = 1..=3;

/// A bridge with an address, this process' own until dropped.
#[derive(Debug)]
pub struct Network {
    number: u8,
    programs: Programs,
    /// Locked. Holds a line about the owner and one for the directory of each node.
    marker: Mutex<File>,
    taken: Mutex<BTreeSet<u8>>,
}

impl Network {
    /// Takes the next free subnet and makes its bridge, after clearing up after killed test processes. Blocking.
    ///
    /// # Errors
    /// This machine lacks something for real nodes, or its kernel does not let this process make links.
    pub fn take() -> Result<Self, WhyNot> {
        let programs = requirements::check()?;
        std::fs::create_dir_all(MARKERS)
            .map_err(|error| WhyNot::not_here(format!("{MARKERS} cannot be made: {error}")))?;
        clear_up()?;
        let routes = std::fs::read_to_string("/proc/net/route").context("reading /proc/net/route")?;
        for number in NUMBERS {
            let Some(marker) = lock(number)? else { continue };
            if crosses(&routes, number) {
                continue;
            }
            match Self::make(number, marker, programs.clone()) {
                Ok(network) => return Ok(network),
                // Somebody who does not see our locks, for example in a container that shares the network.
                Err(error) if format!("{error:#}").contains("File exists") => {}
                Err(error) => {
                    return Err(WhyNot::not_here(format!("the network cannot be made: {error:#}")));
                }
            }
        }
        Err(WhyNot::not_here(format!("all of 10.{SECOND_OCTET}.0.0/16 is in use")))
    }

    fn make(number: u8, mut marker: File, programs: Programs) -> Result<Self> {
        let name = name(number);
        let (b, address) = (SECOND_OCTET, host_address(number));
        // Before the link exists: from here on somebody clears up, whatever happens to this process.
        writeln!(marker, "process {}", std::process::id()).context("marking a network as taken")?;
        reaper::at_exit(&name, &undo::script(&marker_path(number), &names(number)))?;
        // An address of its own: else the bridge takes that of a member, and changes it when a node comes or goes.
        if let Err(error) =
            ip(&format!("link add {name} address 02:00:0a:{b:02x}:{number:02x}:01 type bridge"))
        {
            reaper::not_at_exit(&name);
            marker.set_len(0).context("marking a network as free")?;
            return Err(error);
        }
        let taken = Mutex::default();
        let network = Self { number, programs, marker: Mutex::new(marker), taken };
        ip(&format!("address add {address}/24 dev {name}"))?;
        ip(&format!("link set {name} up"))?;
        Ok(network)
    }

    /// The name of the bridge; those of the nodes' links and cgroups begin with it.
    pub fn name(&self) -> String {
        name(self.number)
    }

    /// This machine's address on the network.
    pub fn address(&self) -> IpAddr {
        IpAddr::V4(host_address(self.number))
    }

    pub(super) fn programs(&self) -> &Programs {
        &self.programs
    }

    /// Gives a node, whose files are in `directory`, a place on the network.
    pub(super) fn place(self: &Arc<Self>, directory: &Path) -> Result<Place> {
        let mut taken = self.taken.lock().map_err(|_| anyhow!("poisoned"))?;
        let node = NODES
            .into_iter()
            .find(|node| !taken.contains(node))
            .with_context(|| format!("a network has room for {} nodes", NODES.end()))?;
        let mut marker = self.marker.lock().map_err(|_| anyhow!("poisoned"))?;
        writeln!(marker, "directory {}", directory.display()).context("marking a directory")?;
        taken.insert(node);
        Ok(Place { network: Arc::clone(self), node })
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        undo::undo(&names(self.number));
        let marker = match self.marker.get_mut() {
            Ok(marker) => marker,
            Err(poisoned) => poisoned.into_inner(),
        };
        // A marker that stays is cleared up once more by the next start, for nothing.
        let _ = marker.set_len(0);
        reaper::not_at_exit(&name(self.number));
    }
}

/// A node's own part of a [`Network`]. Dropping it removes the node's link and its cgroups.
#[derive(Debug)]
pub(super) struct Place {
    network: Arc<Network>,
    node: u8,
}

impl Place {
    pub(super) fn network(&self) -> &Network {
        &self.network
    }

    /// The name of the node's link on this machine and of its cgroups.
    pub(super) fn name(&self) -> String {
        node_name(self.network.number, self.node)
    }

    pub(super) fn address(&self) -> Ipv4Addr {
        self.address_of(1 + self.node)
    }

    /// This machine's, as seen from the node.
    pub(super) fn gateway(&self) -> Ipv4Addr {
        host_address(self.network.number)
    }

    /// The first and the last address for pods.
    pub(super) fn pods(&self) -> (Ipv4Addr, Ipv4Addr) {
        let first = self.node * 64;
        // The last address of a subnet is for broadcasts.
        (self.address_of(first), self.address_of((first + 63).min(254)))
    }

    pub(super) fn subnet(&self) -> String {
        format!("{}/24", self.address_of(0))
    }

    fn address_of(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, SECOND_OCTET, self.network.number, host)
    }

    /// Connects the network namespace of process `process` and sets up its links. `inside` runs `ip` in it.
    pub(super) fn connect(&self, process: u32, inside: impl Fn(&str) -> Result<String>) -> Result<()> {
        let (name, bridge) = (self.name(), self.network.name());
        ip(&format!("link add {name} type veth peer name eth0 netns {process}"))?;
        ip(&format!("link set {name} master {bridge} up"))?;
        let (b, number, host) = (SECOND_OCTET, self.network.number, 1 + self.node);
        inside("link set lo up")?;
        inside(&format!("link add cni0 address 02:00:0a:{b:02x}:{number:02x}:{host:02x} type bridge"))?;
        inside("link set eth0 master cni0 up")?;
        inside(&format!("address add {}/24 dev cni0", self.address()))?;
        inside("link set cni0 up")?;
        // kubelet refuses a machine without a default route.
        inside(&format!("route add default via {}", self.gateway()))?;
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        undo::undo(&[self.name()]);
        if let Ok(mut taken) = self.network.taken.lock() {
            taken.remove(&self.node);
        }
    }
}

fn name(number: u8) -> String {
    format!("kubeocean-{number}")
}

/// At most 15 bytes: it is the name of a link.
fn node_name(number: u8, node: u8) -> String {
    format!("kubeocean-{number}-{node}")
}

fn host_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, SECOND_OCTET, number, 1)
}

/// Everything of a network that [`undo`] removes. Nodes first: their links are members of the bridge.
fn names(number: u8) -> Vec<String> {
    NODES.map(|node| node_name(number, node)).chain([name(number)]).collect()
}

fn marker_path(number: u8) -> PathBuf {
    Path::new(MARKERS).join(number.to_string())
}

/// The marker of a number, if nobody holds it.
fn lock(number: u8) -> Result<Option<File>> {
    let path = marker_path(number);
    let file = File::options()
        .read(true)
        .append(true)
        .create(true)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    Ok(file.try_lock().is_ok().then_some(file))
}

/// Removes what killed test processes left, of all networks.
fn clear_up() -> Result<()> {
    for number in NUMBERS.filter(|&number| marker_path(number).exists()) {
        let Some(mut marker) = lock(number)? else { continue };
        let mut text = String::new();
        marker.rewind().and_then(|()| marker.read_to_string(&mut text)).context("reading a marker")?;
        if text.is_empty() {
            continue;
        }
        undo::undo(&names(number));
        for directory in text.lines().filter_map(|line| line.strip_prefix("directory ")).map(Path::new) {
            // A test that panicked keeps its logs, see `reaper`.
            if directory.parent().is_some_and(|parent| !reaper::is_kept(parent)) {
                let _ = std::fs::remove_dir_all(directory);
            }
        }
        marker.set_len(0).context("marking a network as free")?;
    }
    Ok(())
}

/// Whether the kernel's routes (`/proc/net/route`) know a network as narrow as /16 that shares addresses with ours.
fn crosses(routes: &str, number: u8) -> bool {
    let ours = u32::from(Ipv4Addr::new(10, SECOND_OCTET, number, 0));
    routes.lines().skip(1).any(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        // In the byte order of the machine, which is the little endian one wherever Kubernetes runs.
        let number_at = |index: usize| {
            fields.get(index).and_then(|field| u32::from_str_radix(field, 16).ok()).map(u32::swap_bytes)
        };
        let (Some(destination), Some(mask)) = (number_at(1), number_at(7)) else { return false };
        let common = mask & 0xffff_ff00;
        mask.leading_ones() >= 16 && destination & common == ours & common
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0
tun0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0
lan0\t00054F0A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
vpn0\t80064F0A\t00000000\t0001\t0\t0\t0\t80FFFFFF\t0\t0\t0
";

    #[test]
    fn a_subnet_with_a_route_of_its_own_is_not_taken() {
        assert!(crosses(ROUTES, 5), "10.79.5.0/24");
        assert!(crosses(ROUTES, 6), "10.79.6.128/25");
        assert!(!crosses(ROUTES, 7), "only the default route and 10.0.0.0/8");
        let wide = ROUTES.replace("00054F0A", "00004F0A").replace("00FFFFFF", "0000FFFF");
        assert!(crosses(&wide, 7), "10.79.0.0/16");
    }

    #[test]
    fn names_fit_into_a_link() {
        assert!(names(*NUMBERS.end()).iter().all(|name| name.len() <= 15));
        assert_eq!(names(7).last().unwrap(), "kubeocean-7");
    }
}
