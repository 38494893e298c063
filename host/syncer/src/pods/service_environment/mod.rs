//! What a pod must be told so that it meets the computing cluster's API server and DNS instead of the worker's: the
//! addresses of two LoadBalancer Services (TD-701), and the environment, host aliases and DNS settings made of them.
//!
//! `watch.rs` follows the two Services and resolves host names; [`ServiceEnvironment`] and everything here is pure.

mod dns;
mod watch;

use std::{net::IpAddr, sync::Arc};

use serde_json::{Value, json};

pub(super) use dns::set_dns;
pub use dns::{DnsNeed, dns_need};
pub use watch::{ServiceHealth, ServiceStore, watch_services};

/// Namespace and name of the Service that leads to the computing cluster's API server (TD-105).
pub const API_SERVICE: (&str, &str) = ("default", "kubernetes-intranet");
/// Namespace and name of the Service that leads to the computing cluster's DNS (TD-105).
pub const DNS_SERVICE: (&str, &str) = ("kube-system", "kube-dns-intranet");

/// Names of the API server inside the computing cluster, in the order of the host alias (TD-703); one more has the cluster's
/// domain.
const API_HOST_NAMES: [&str; 3] = ["kubernetes.default.svc", "kubernetes.default", "kubernetes"];

/// Addresses of the computing cluster's API server and DNS, as seen from the worker cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEnvironment {
    /// Where the API server is reached.
    pub api_address: IpAddr,
    /// Its port.
    pub api_port: u16,
    /// Where DNS is reached; `None` if the pod does not need it (see [`dns_need`]).
    pub dns_address: Option<IpAddr>,
    /// The computing cluster's domain, as [`crate::config::CLUSTER_DOMAIN`].
    pub cluster_domain: Arc<str>,
}

/// One of the two Services is not usable yet.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "Service {namespace}/{name} {problem}: it must be of type LoadBalancer with an address in \
     status.loadBalancer.ingress that worker nodes can reach"
)]
pub struct MissingService {
    /// Namespace of the Service.
    pub namespace: &'static str,
    /// Name of the Service.
    pub name: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl ServiceEnvironment {
    /// The service variables a kubelet of the computing cluster would set, and which the worker's kubelet sets to its
    /// own API server otherwise (TD-702, TD section 7 *Do better*).
    pub(super) fn variables(&self) -> Vec<(&'static str, String)> {
        let address = self.api_address.to_string();
        let port = self.api_port.to_string();
        let url = match self.api_address {
            IpAddr::V4(address) => format!("tcp://{address}:{port}"),
            IpAddr::V6(address) => format!("tcp://[{address}]:{port}"),
        };
        vec![
            ("KUBERNETES_SERVICE_HOST", address.clone()),
            ("KUBERNETES_SERVICE_PORT", port.clone()),
            ("KUBERNETES_SERVICE_PORT_HTTPS", port.clone()),
            ("KUBERNETES_PORT", url.clone()),
            // The number in these names is the worker's service port, not ours: they must be covered by name.
            ("KUBERNETES_PORT_443_TCP", url),
            ("KUBERNETES_PORT_443_TCP_PROTO", "tcp".to_owned()),
            ("KUBERNETES_PORT_443_TCP_PORT", port),
            ("KUBERNETES_PORT_443_TCP_ADDR", address),
        ]
    }

    /// The host alias that leads the in-cluster names of the API server to its address (TD-703).
    pub(super) fn host_alias(&self) -> Value {
        let in_full = format!("kubernetes.default.svc.{}", self.cluster_domain);
        let names: Vec<&str> = API_HOST_NAMES.into_iter().chain([in_full.as_str()]).collect();
        json!({"ip": self.api_address.to_string(), "hostnames": names})
    }
}
