//! The Proxier's metrics (PX-1308). None names a pod, a user or a namespace; `clusterbinding` is empty where a request
//! was refused before its binding was known.

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

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

/// Counters and gauges of one process.
#[derive(Debug)]
pub(crate) struct ProxierMetrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    streams: Family<StreamLabels, Gauge>,
    stream_seconds: Family<StreamLabels, Histogram>,
    stream_bytes: Family<ByteLabels, Counter>,
    stream_ends: Family<EndLabels, Counter>,
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
            requests: Family::default(),
            streams: Family::default(),
            stream_seconds: Family::new_with_constructor(stream_seconds),
            stream_bytes: Family::default(),
            stream_ends: Family::default(),
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
        let registry = self.registry.sub_registry_with_prefix("kubeocean_proxier");
        registry.register("requests", "Requests of the kubelet API", self.requests.clone());
        registry.register("streams", "Open logs and tunnels", self.streams.clone());
        registry.register(
            "stream_duration_seconds",
            "How long streams were open",
            self.stream_seconds.clone(),
        );
        registry.register("stream_bytes", "Bytes through streams", self.stream_bytes.clone());
        registry.register("stream_end", "Ended streams by reason", self.stream_ends.clone());
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

    pub(crate) fn request(&self, binding: &str, route: &'static str, code: u16) {
        let labels = RequestLabels { clusterbinding: binding.to_owned(), route, code };
        self.requests.get_or_create(&labels).inc();
    }

    pub(crate) fn stream_began(&self, binding: &str, kind: &'static str) {
        self.streams.get_or_create(&StreamLabels { clusterbinding: binding.to_owned(), kind }).inc();
    }

    pub(crate) fn stream_ended(&self, binding: &str, kind: &'static str, ended: &StreamEnd) {
        let clusterbinding = binding.to_owned();
        let labels = StreamLabels { clusterbinding: clusterbinding.clone(), kind };
        self.streams.get_or_create(&labels).dec();
        self.stream_seconds.get_or_create(&labels).observe(ended.seconds);
        for (direction, bytes) in [("up", ended.up), ("down", ended.down)] {
            let labels = ByteLabels { clusterbinding: clusterbinding.clone(), kind, direction };
            self.stream_bytes.get_or_create(&labels).inc_by(bytes);
        }
        let labels = EndLabels { clusterbinding, kind, reason: ended.reason };
        self.stream_ends.get_or_create(&labels).inc();
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

    #[test]
    fn every_documented_metric_appears_under_its_name() {
        let metrics = ProxierMetrics::new();
        metrics.request("b", "logs", 200);
        metrics.stream_began("b", "exec");
        metrics.stream_ended("b", "exec", &StreamEnd { seconds: 1.0, up: 1, down: 2, reason: "finished" });
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
    }
}
