//! Follows the two Services with single-object watches and keeps their addresses; a change wakes the pods that wait
//! for one. Host names of load balancers are resolved when they are used, at most once a minute.

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use k8s_openapi::{api::core::v1::Service, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{Api, Client, runtime::watcher};
use kubeocean_api::name::ObjectKey;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{API_SERVICE, DNS_SERVICE, DnsNeed, MissingService, ServiceEnvironment};
use crate::objects::Pods;
use kubeocean_runtime::{
    meta::trimmed_meta,
    partial_resource,
    sink::Sink,
    watch::{WatchHealth, WatchSpec, watch_into},
};

/// How long a resolved host name is used. Load balancers with host names change their addresses within minutes.
const RESOLVED_FOR: Duration = Duration::from_mins(1);
/// How long an address is used after the resolver gave it last.
const KEPT_FOR: Duration = Duration::from_mins(10);
/// Longest wait for the resolver.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(5);

/// The used part of a Service.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct ServiceView {
    #[serde(deserialize_with = "trimmed_meta")]
    metadata: ObjectMeta,
    #[serde(default)]
    spec: SpecView,
    #[serde(default)]
    status: StatusView,
}
partial_resource!(ServiceView, Service);

#[derive(Debug, Clone, Default, Deserialize)]
struct SpecView {
    #[serde(default)]
    ports: Vec<PortView>,
}

#[derive(Debug, Clone, Deserialize)]
struct PortView {
    port: u16,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct StatusView {
    #[serde(default)]
    load_balancer: LoadBalancerView,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct LoadBalancerView {
    #[serde(default)]
    ingress: Vec<IngressView>,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct IngressView {
    #[serde(default)]
    ip: Option<String>,
    #[serde(default)]
    hostname: Option<String>,
}

/// Where a Service is reached from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Host {
    Address(IpAddr),
    Name(String),
}

/// What is known of one Service.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Known {
    Unknown,
    Absent,
    Unusable(&'static str),
    Reached { host: Host, port: u16 },
}

impl Known {
    /// The first ingress and the first port count (TD-701).
    fn of(service: &ServiceView) -> Self {
        let Some(ingress) = service.status.load_balancer.ingress.first() else {
            return Self::Unusable("has no address yet");
        };
        let Some(port) = service.spec.ports.first() else {
            return Self::Unusable("has no port");
        };
        let address = ingress.ip.as_deref().and_then(|ip| ip.parse().ok()).map(Host::Address);
        let name = || {
            ingress
                .hostname
                .as_deref()
                .filter(|name| !name.is_empty())
                .map(|name| Host::Name(name.to_owned()))
        };
        match address.or_else(name) {
            Some(host) => Self::Reached { host, port: port.port },
            None => Self::Unusable("has neither an IP nor a host name"),
        }
    }

    fn host(&self, (namespace, name): (&'static str, &'static str)) -> Result<(Host, u16), MissingService> {
        let problem = match self {
            Self::Reached { host, port } => return Ok((host.clone(), *port)),
            Self::Unknown => "has not been read yet",
            Self::Absent => "does not exist",
            Self::Unusable(problem) => problem,
        };
        Err(MissingService { namespace, name, problem: problem.to_owned() })
    }
}

/// Addresses of the two Services, and who waits for them.
#[derive(Debug)]
pub struct ServiceStore {
    pods: Pods,
    cluster_domain: Arc<str>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    api: Known,
    dns: Known,
    resolved: HashMap<String, Resolved>,
    waiting: BTreeSet<ObjectKey>,
}

/// What a host name was resolved to.
#[derive(Clone, Copy, Debug)]
struct Resolved {
    address: IpAddr,
    /// When the resolver said so last.
    answered: Instant,
    /// When it was asked last.
    asked: Instant,
}

impl Resolved {
    /// Pods need not wait for a resolver that fails for some minutes; an address may not outlive its load balancer.
    fn may_be_used(&self) -> bool {
        self.answered.elapsed() < KEPT_FOR
    }
}

impl ServiceStore {
    /// A store that knows no address yet; `pods` is woken by changes.
    pub fn new(pods: Pods, cluster_domain: &str) -> Self {
        let state = State {
            api: Known::Unknown,
            dns: Known::Unknown,
            resolved: HashMap::new(),
            waiting: BTreeSet::new(),
        };
        Self { pods, cluster_domain: cluster_domain.into(), state: Mutex::new(state) }
    }

    /// The addresses `pod` needs. While one is missing the pod is remembered and woken by the next change.
    pub async fn environment(
        &self,
        pod: &ObjectKey,
        need: DnsNeed,
    ) -> Result<ServiceEnvironment, MissingService> {
        let hosts = {
            let mut state = self.state.lock();
            let hosts = state.api.host(API_SERVICE).and_then(|api| {
                let dns = match need {
                    DnsNeed::Cluster => Some(state.dns.host(DNS_SERVICE)?.0),
                    DnsNeed::Node | DnsNeed::Own => None,
                };
                Ok((api, dns))
            });
            if hosts.is_err() {
                state.waiting.insert(pod.clone());
            }
            hosts
        };
        let ((api, api_port), dns) = hosts?;
        let api_address = self.address(api, API_SERVICE).await?;
        let dns_address = match dns {
            Some(host) => Some(self.address(host, DNS_SERVICE).await?),
            None => None,
        };
        let cluster_domain = Arc::clone(&self.cluster_domain);
        Ok(ServiceEnvironment { api_address, api_port, dns_address, cluster_domain })
    }

    /// A vpod is gone: it waits for no address any more.
    pub(crate) fn pod_gone(&self, pod: &ObjectKey) {
        self.state.lock().waiting.remove(pod);
    }

    async fn address(
        &self,
        host: Host,
        service: (&'static str, &'static str),
    ) -> Result<IpAddr, MissingService> {
        let name = match host {
            Host::Address(address) => return Ok(address),
            Host::Name(name) => name,
        };
        let known = self.state.lock().resolved.get(&name).copied().filter(Resolved::may_be_used);
        if let Some(known) = known.filter(|known| known.asked.elapsed() < RESOLVED_FOR) {
            return Ok(known.address);
        }
        let found =
            match tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((name.as_str(), 0))).await {
                // Any of them would do; the lowest is the same one each time.
                Ok(Ok(addresses)) => addresses.map(|address| address.ip()).min(),
                Ok(Err(_)) | Err(_) => None,
            };
        let asked = Instant::now();
        let mut state = self.state.lock();
        // Somebody else may have been told meanwhile.
        let known = state.resolved.get(&name).copied().filter(Resolved::may_be_used);
        let found = found.map(|address| Resolved { address, answered: asked, asked });
        let Some(resolved) = found.or(known.map(|known| Resolved { asked, ..known })) else {
            let problem = format!("has the host name {name:?}, which cannot be resolved");
            return Err(MissingService { namespace: service.0, name: service.1, problem });
        };
        if state.resolved.len() > 8 {
            state.resolved.clear(); // two names are in use; the rest are former ones
        }
        state.resolved.insert(name, resolved);
        Ok(resolved.address)
    }

    fn set(&self, which: Which, known: Known) {
        let woken = {
            let mut state = self.state.lock();
            let slot = match which {
                Which::Api => &mut state.api,
                Which::Dns => &mut state.dns,
            };
            if *slot == known {
                return;
            }
            *slot = known;
            std::mem::take(&mut state.waiting)
        };
        self.pods.wake(woken.into_iter().collect());
    }
}

#[derive(Debug, Clone, Copy)]
enum Which {
    Api,
    Dns,
}

struct ServiceSink {
    store: Arc<ServiceStore>,
    which: Which,
}

impl Sink<ServiceView> for ServiceSink {
    fn apply(&self, service: ServiceView) {
        self.store.set(self.which, Known::of(&service));
    }
    fn delete(&self, service: ServiceView) {
        tracing::warn!(service = service.metadata.name, "a Service that pods depend on was deleted");
        self.store.set(self.which, Known::Absent);
    }
    fn reset(&self, all: Vec<ServiceView>) {
        self.store.set(self.which, all.first().map_or(Known::Absent, Known::of));
    }
}

/// Health of the two streams.
#[derive(Debug, Clone, Default)]
pub struct ServiceHealth {
    api: Arc<WatchHealth>,
    dns: Arc<WatchHealth>,
}

impl ServiceHealth {
    /// Both.
    pub fn lists(&self) -> [&Arc<WatchHealth>; 2] {
        [&self.api, &self.dns]
    }
}

/// Follows both Services of the computing cluster until `cancel`.
pub async fn watch_services(
    client: Client,
    store: Arc<ServiceStore>,
    health: ServiceHealth,
    cancel: CancellationToken,
) {
    let run = |which, (namespace, name): (&'static str, &'static str), health| {
        let spec = WatchSpec::<ServiceView> {
            name,
            api: Api::namespaced(client.clone(), namespace),
            config: watcher::Config::default().fields(&format!("metadata.name={name}")),
        };
        let sink = Arc::new(ServiceSink { store: Arc::clone(&store), which });
        watch_into(spec, sink, health, cancel.clone())
    };
    tokio::join!(run(Which::Api, API_SERVICE, health.api), run(Which::Dns, DNS_SERVICE, health.dns));
}

#[cfg(test)]
mod tests;
