//! Host ports that pods hold on a node (BU-1201).
//!
//! In: containers as they come off the wire. Out: a sorted list in which each port is once, however many containers name
//! it; and for a node, how many pods hold each.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Where a port without an address is open.
const ANY_ADDRESS: &str = "0.0.0.0";
/// Protocol of a port that names none.
const DEFAULT_PROTOCOL: &str = "TCP";

/// A port of the node itself. The order is that of BU-1201.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// Address of the node, `0.0.0.0` for all of them.
    pub ip: Box<str>,
    /// `TCP`, `UDP` or `SCTP`.
    pub protocol: Box<str>,
    /// 1 to 65535.
    pub port: i32,
}

/// One entry of a container's `ports`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct WirePort {
    host_port: i32,
    protocol: String,
    #[serde(rename = "hostIP")]
    host_ip: String,
}

impl WirePort {
    fn on_host(&self) -> Option<HostPort> {
        let or = |text: &str, default: &str| if text.is_empty() { default.into() } else { text.into() };
        (self.host_port > 0).then(|| HostPort {
            ip: or(&self.host_ip, ANY_ADDRESS),
            protocol: or(&self.protocol, DEFAULT_PROTOCOL),
            port: self.host_port,
        })
    }
}

/// The host ports among these, sorted, each once.
pub(crate) fn host_ports<'a>(ports: impl Iterator<Item = &'a WirePort>) -> Box<[HostPort]> {
    let mut found: Vec<HostPort> = ports.filter_map(WirePort::on_host).collect();
    found.sort();
    found.dedup();
    found.into()
}

/// How many pods hold each host port of a node.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct HeldPorts(BTreeMap<HostPort, u32>);

impl HeldPorts {
    /// One more pod holds these. Says whether one was free before.
    pub(super) fn add(&mut self, ports: &[HostPort]) -> bool {
        let mut news = false;
        for port in ports {
            let pods = self.0.entry(port.clone()).or_insert(0);
            news |= *pods == 0;
            *pods += 1;
        }
        news
    }

    /// One pod less holds these. Says whether one is free now.
    pub(super) fn remove(&mut self, ports: &[HostPort]) -> bool {
        let mut news = false;
        for port in ports {
            if let Some(pods) = self.0.get_mut(port) {
                *pods -= 1;
                if *pods == 0 {
                    self.0.remove(port);
                    news = true;
                }
            }
        }
        news
    }

    /// Whether all are free.
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The held ones, in order.
    pub(super) fn ports(&self) -> impl Iterator<Item = &HostPort> {
        self.0.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: serde_json::Value) -> Box<[HostPort]> {
        let ports: Vec<WirePort> = serde_json::from_value(json).unwrap();
        host_ports(ports.iter())
    }

    fn port(ip: &str, protocol: &str, port: i32) -> HostPort {
        HostPort { ip: ip.into(), protocol: protocol.into(), port }
    }

    #[test]
    fn defaults_are_filled_in_duplicates_fall_together_and_the_order_is_fixed() {
        let ports = parse(serde_json::json!([
            {"containerPort": 80},
            {"containerPort": 53, "hostPort": 53, "protocol": "UDP"},
            {"containerPort": 80, "hostPort": 8080},
            {"containerPort": 81, "hostPort": 8080, "protocol": "TCP", "hostIP": "0.0.0.0"},
            {"containerPort": 80, "hostPort": 8080, "hostIP": "127.0.0.1"},
            {"containerPort": 90, "hostPort": 900},
        ]));
        let expected = [
            port("0.0.0.0", "TCP", 900),
            port("0.0.0.0", "TCP", 8080),
            port("0.0.0.0", "UDP", 53),
            port("127.0.0.1", "TCP", 8080),
        ];
        assert_eq!(*ports, expected);
    }

    #[test]
    fn a_port_is_free_when_the_last_pod_leaves_it() {
        let (a, b) = (port("0.0.0.0", "TCP", 80), port("0.0.0.0", "TCP", 81));
        let mut held = HeldPorts::default();
        assert!(held.add(std::slice::from_ref(&a)));
        assert!(held.add(&[a.clone(), b.clone()]), "one of them is new");
        assert!(!held.remove(std::slice::from_ref(&a)));
        assert_eq!(held.ports().collect::<Vec<_>>(), [&a, &b]);
        assert!(held.remove(&[a, b]) && held.is_empty());
    }
}
