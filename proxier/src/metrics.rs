//! The Proxier's metrics (PX-1308). None names a pod, a user or a namespace; `clusterbinding` is empty where a request
//! was refused before its binding was known. The series of a binding go with it.

mod series;

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

use series::{OfBinding, Series};

/// Labels of the request counter.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    clusterbinding: String,
    route: &'static str,
    code: u16,
}

/// Labels of the stream gauge.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StreamLabels {
    clusterbinding: String,
    kind: &'static str,
}

/// Labels of stream ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndLabels {
    clusterbinding: String,
    kind: &'static str,
    reason: &'static str,
}

/// Labels of stream bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByteLabels {
    clusterbinding: String,
    kind: &'static str,
    direction: &'static str,
}

impl OfBinding for RequestLabels {
    fn binding(&self) -> &str {
        &self.clusterbinding
    }
}

impl OfBinding for StreamLabels {
    fn binding(&self) -> &str {
        &self.clusterbinding
    }
}

impl OfBinding for EndLabels {
    fn binding(&self) -> &str {
        &self.clusterbinding
    }
}

impl OfBinding for ByteLabels {
    fn binding(&self) -> &str {
        &self.clusterbinding
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AuthenticationLabels {
    method: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AuthorizationLabels {
    result: &'static str,
    cached: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StateLabels {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OptionLabels {
    option: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    source: &'static str,
}

/// One service of a binding, from its addition to its removal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Service(u64);

/// Counters and gauges of one process.
#[derive(Debug)]
pub(crate) struct ProxierMetrics {
    registry: Registry,
    /// Each binding that is served, and the number of its service: what a former one began is not ended in a later one.
    served: Mutex<BTreeMap<String, Service>>,
    services: AtomicU64,
    requests: Series<RequestLabels, Counter>,
    streams: Series<StreamLabels, Gauge>,
    stream_seconds: Series<StreamLabels, Histogram>,
    stream_bytes: Series<ByteLabels, Counter>,
    stream_ends: Series<EndLabels, Counter>,
    authentication: Family<AuthenticationLabels, Counter>,
    authorization: Family<AuthorizationLabels, Counter>,
    listeners: Family<StateLabels, Gauge>,
    insecure: Family<OptionLabels, Gauge>,
    certificate: Family<SourceLabels, Gauge>,
    /// Open connections of callers.
    pub(crate) connections: Gauge,
}

/// Bounds of stream durations: a glance at a log, and a shell left open over night.
fn stream_seconds() -> Histogram {
    Histogram::new([0.1, 0.5, 2.0, 10.0, 60.0, 600.0, 3600.0, 14400.0])
}

impl ProxierMetrics {
    /// All metrics at zero.
    pub(crate) fn new() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            served: Mutex::default(),
            services: AtomicU64::new(0),
            requests: Series::of(Counter::default),
            streams: Series::of(Gauge::default),
            stream_seconds: Series::of(stream_seconds),
            stream_bytes: Series::of(Counter::default),
            stream_ends: Series::of(Counter::default),
            authentication: Family::default(),
            authorization: Family::default(),
            listeners: Family::default(),
            insecure: Family::default(),
            certificate: Family::default(),
            connections: Gauge::default(),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let build = Info::new(vec![
            ("component", "proxier"),
            ("version", env!("CARGO_PKG_VERSION")),
            ("commit", option_env!("KUBEOCEAN_COMMIT").unwrap_or("unknown")),
        ]);
        self.registry.register("kubeocean_build", "Version of the program", build);
        let registry = self.registry.sub_registry_with_prefix("kubeocean_proxier");
        registry.register("requests", "Requests of the kubelet API", self.requests.family());
        registry.register("streams", "Open logs and tunnels", self.streams.family());
        registry.register(
            "stream_duration_seconds",
            "How long streams were open",
            self.stream_seconds.family(),
        );
        registry.register("stream_bytes", "Bytes through streams", self.stream_bytes.family());
        registry.register("stream_end", "Ended streams by reason", self.stream_ends.family());
        registry.register("authentication", "Authentications", self.authentication.clone());
        registry.register("authorization", "Authorization questions", self.authorization.clone());
        registry.register("listeners", "Ports of virtual nodes", self.listeners.clone());
        registry.register("insecure_mode", "Switched off protections", self.insecure.clone());
        registry.register(
            "serving_certificate_expiry_timestamp_seconds",
            "When the serving certificate expires",
            self.certificate.clone(),
        );
        registry.register("connections", "Open connections of callers", self.connections.clone());
    }

    /// A binding is served from now on.
    pub(crate) fn serves(&self, binding: &str) {
        let mut served = self.served.lock();
        let next = self.services.fetch_add(1, Ordering::Relaxed);
        served.entry(binding.to_owned()).or_insert(Service(next));
    }

    /// A binding is served no more: nothing is told of it from now on.
    pub(crate) fn forget(&self, binding: &str) {
        let mut served = self.served.lock();
        if served.remove(binding).is_some() {
            self.requests.forget(binding);
            self.streams.forget(binding);
            self.stream_seconds.forget(binding);
            self.stream_bytes.forget(binding);
            self.stream_ends.forget(binding);
        }
    }

    pub(crate) fn request(&self, binding: &str, route: &'static str, code: u16) {
        let served = self.served.lock();
        if binding.is_empty() || served.contains_key(binding) {
            self.requests.get(RequestLabels { clusterbinding: binding.to_owned(), route, code }).inc();
        }
    }

    /// A stream began; what is returned is given back at its end.
    pub(crate) fn stream_began(&self, binding: &str, kind: &'static str) -> Option<Service> {
        let served = self.served.lock();
        let service = *served.get(binding)?;
        self.streams.get(StreamLabels { clusterbinding: binding.to_owned(), kind }).inc();
        Some(service)
    }

    pub(crate) fn stream_ended(
        &self,
        service: Option<Service>,
        binding: &str,
        kind: &'static str,
        ended: &StreamEnd,
    ) {
        let served = self.served.lock();
        if service.is_none() || served.get(binding).copied() != service {
            return;
        }
        let clusterbinding = binding.to_owned();
        let labels = StreamLabels { clusterbinding: clusterbinding.clone(), kind };
        self.streams.get(labels.clone()).dec();
        self.stream_seconds.get(labels).observe(ended.seconds);
        for (direction, bytes) in [("up", ended.up), ("down", ended.down)] {
            let labels = ByteLabels { clusterbinding: clusterbinding.clone(), kind, direction };
            self.stream_bytes.get(labels).inc_by(bytes);
        }
        self.stream_ends.get(EndLabels { clusterbinding, kind, reason: ended.reason }).inc();
    }

    pub(crate) fn authenticated(&self, method: &'static str, accepted: bool) {
        let result = if accepted { "accepted" } else { "refused" };
        self.authentication.get_or_create(&AuthenticationLabels { method, result }).inc();
    }

    pub(crate) fn authorized(&self, allowed: bool, cached: bool) {
        let labels = AuthorizationLabels {
            result: if allowed { "allowed" } else { "denied" },
            cached: if cached { "true" } else { "false" },
        };
        self.authorization.get_or_create(&labels).inc();
    }

    pub(crate) fn listener(&self, state: &'static str, change: i64) {
        self.listeners.get_or_create(&StateLabels { state }).inc_by(change);
    }

    pub(crate) fn insecure(&self, option: &'static str) {
        self.insecure.get_or_create(&OptionLabels { option }).set(1);
    }

    pub(crate) fn certificate(&self, source: &'static str, expires: i64) {
        self.certificate.clear();
        self.certificate.get_or_create(&SourceLabels { source }).set(expires);
    }

    /// The text of `/metrics`.
    pub(crate) fn encode(&self) -> String {
        let mut text = String::new();
        if encode(&mut text, &self.registry).is_err() {
            tracing::error!("metrics cannot be written");
        }
        text
    }
}

/// What a stream was.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamEnd {
    pub(crate) seconds: f64,
    pub(crate) up: u64,
    pub(crate) down: u64,
    pub(crate) reason: &'static str,
}

#[cfg(test)]
mod tests {
    use super::*;

    const END: StreamEnd = StreamEnd { seconds: 1.0, up: 1, down: 2, reason: "finished" };

    #[test]
    fn what_is_said_of_a_binding_goes_with_it() {
        let metrics = ProxierMetrics::new();
        let bindings = ["gone", "stays"];
        let streams = bindings.map(|binding| {
            metrics.serves(binding);
            metrics.request(binding, "logs", 200);
            let ended = metrics.stream_began(binding, "exec");
            metrics.stream_ended(ended, binding, "exec", &END);
            metrics.stream_began(binding, "exec")
        });
        metrics.request("", "health", 200);
        metrics.forget("gone");
        // Its streams go on for a while, and a request may be under way.
        metrics.stream_ended(streams[0], "gone", "exec", &END);
        metrics.request("gone", "logs", 502);
        let text = metrics.encode();
        assert!(!text.contains("clusterbinding=\"gone\""), "{text}");
        for series in [
            "requests_total",
            "streams",
            "stream_duration_seconds_count",
            "stream_bytes_total",
            "stream_end_total",
        ] {
            let stays = format!("kubeocean_proxier_{series}{{clusterbinding=\"stays\"");
            assert!(text.contains(&stays), "{stays} is missing:\n{text}");
        }
        assert!(text.contains("clusterbinding=\"\",route=\"health\""), "{text}");

        // It comes back before its former streams ended.
        metrics.serves("gone");
        let _new = metrics.stream_began("gone", "exec");
        metrics.stream_ended(streams[0], "gone", "exec", &END);
        let one = "kubeocean_proxier_streams{clusterbinding=\"gone\",kind=\"exec\"} 1";
        assert!(metrics.encode().contains(one));
    }

    #[test]
    fn every_documented_metric_appears_under_its_name() {
        let metrics = ProxierMetrics::new();
        metrics.serves("b");
        metrics.request("b", "logs", 200);
        let service = metrics.stream_began("b", "exec");
        metrics.stream_ended(service, "b", "exec", &END);
        metrics.authenticated("token", true);
        metrics.authorized(true, false);
        metrics.listener("open", 1);
        metrics.insecure("anonymous-auth");
        metrics.certificate("self-signed", 7);
        let text = metrics.encode();
        for line in [
            "kubeocean_proxier_requests_total{clusterbinding=\"b\",route=\"logs\",code=\"200\"} 1",
            "kubeocean_proxier_streams{clusterbinding=\"b\",kind=\"exec\"} 0",
            "kubeocean_proxier_stream_duration_seconds_count{clusterbinding=\"b\",kind=\"exec\"} 1",
            "kubeocean_proxier_stream_bytes_total{clusterbinding=\"b\",kind=\"exec\",direction=\"down\"} 2",
            "kubeocean_proxier_stream_end_total{clusterbinding=\"b\",kind=\"exec\",reason=\"finished\"} 1",
            "kubeocean_proxier_authentication_total{method=\"token\",result=\"accepted\"} 1",
            "kubeocean_proxier_authorization_total{result=\"allowed\",cached=\"false\"} 1",
            "kubeocean_proxier_listeners{state=\"open\"} 1",
            "kubeocean_proxier_insecure_mode{option=\"anonymous-auth\"} 1",
            "kubeocean_proxier_serving_certificate_expiry_timestamp_seconds{source=\"self-signed\"} 7",
            "kubeocean_proxier_connections 0",
        ] {
            assert!(text.lines().any(|one| one == line), "{line} is missing:\n{text}");
        }
        assert!(text.contains("kubeocean_build_info{component=\"proxier\",version=\""), "{text}");
    }
}
