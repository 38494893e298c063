//! The Manager's metrics (MC section 6).

use std::{
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use kubeocean_runtime::clock::rfc3339;
use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};

use crate::{
    bindings::index::Index,
    components::{Component, Components, State},
    worker::report::{Connection, Report},
};

/// Upper bounds in seconds, kept for compatibility.
const SYNC_BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// Label of what is counted per binding.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BindingLabel {
    /// Name of the ClusterBinding.
    pub clusterbinding: String,
}

/// Labels of component gauges.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ComponentLabels {
    /// Name of the ClusterBinding.
    pub clusterbinding: String,
    /// `syncer` or `proxier`.
    pub component: String,
}

/// Label of the number of bindings.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StatusLabel {
    /// `Deleting`, `Pending`, `Ready`, `Failed`.
    pub status: &'static str,
}

/// Label of leadership.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct NameLabel {
    /// Name of the Lease.
    pub name: String,
}

/// Counters and gauges of one Manager.
#[derive(Debug)]
pub struct ManagerMetrics {
    registry: Registry,
    sync_duration: Histogram,
    syncs: Family<BindingLabel, Counter>,
    sync_errors: Family<BindingLabel, Counter>,
    bindings: Family<StatusLabel, Gauge>,
    reachable: Family<BindingLabel, Gauge>,
    probe_duration: Family<BindingLabel, Gauge<f64, AtomicU64>>,
    expiry: Family<BindingLabel, Gauge>,
    replicas: Family<ComponentLabels, Gauge>,
    leader: Family<NameLabel, Gauge>,
    /// What gauges are read from while this process leads; a standby exports none, so that sums over replicas are right.
    led: Mutex<Option<Led>>,
}

#[derive(Debug)]
struct Led {
    index: Arc<Index>,
    components: Arc<dyn Components>,
}

impl Default for ManagerMetrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            sync_duration: Histogram::new(SYNC_BUCKETS),
            syncs: Family::default(),
            sync_errors: Family::default(),
            bindings: Family::default(),
            reachable: Family::default(),
            probe_duration: Family::default(),
            expiry: Family::default(),
            replicas: Family::default(),
            leader: Family::default(),
            led: Mutex::default(),
        };
        metrics.register();
        metrics
    }
}

impl ManagerMetrics {
    fn register(&mut self) {
        let registry = self.registry.sub_registry_with_prefix("kubeocean");
        let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION")), ("commit", commit())]);
        registry.register("build", "Version of the program", version);
        registry.register("clusterbindings_total", "Bindings by status", self.bindings.clone());
        let registry = registry.sub_registry_with_prefix("manager");
        registry.register(
            "sync_duration_seconds",
            "Duration of a binding's reconcile",
            self.sync_duration.clone(),
        );
        registry.register("sync", "Reconciles of a binding", self.syncs.clone());
        registry.register("sync_errors", "Failed reconciles of a binding", self.sync_errors.clone());
        registry.register(
            "worker_reachable",
            "Whether the worker answered the last probe",
            self.reachable.clone(),
        );
        registry.register(
            "worker_probe_duration_seconds",
            "Duration of the last probe of the worker",
            self.probe_duration.clone(),
        );
        registry.register(
            "credentials_expiry_timestamp_seconds",
            "When the worker credentials expire",
            self.expiry.clone(),
        );
        registry.register(
            "component_available_replicas",
            "Components that do their work",
            self.replicas.clone(),
        );
        self.registry.register(
            "leader_election_master_status",
            "Whether this process leads",
            self.leader.clone(),
        );
    }

    /// The text of a scrape.
    pub fn encode(&self) -> String {
        self.observe();
        let mut text = String::new();
        // Writing into a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }

    fn observe(&self) {
        let led = self.led.lock();
        let Some(led) = led.as_ref() else { return };
        let phases = led.index.phases();
        for (status, count) in [
            ("Deleting", phases.deleting),
            ("Pending", phases.pending),
            ("Ready", phases.ready),
            ("Failed", phases.failed),
        ] {
            self.bindings.get_or_create(&StatusLabel { status }).set(count);
        }
        for binding in led.index.names() {
            let running = led.components.look(&binding);
            for (component, state) in
                [(Component::Syncer, running.syncer), (Component::Proxier, running.proxier)]
            {
                let labels =
                    ComponentLabels { clusterbinding: binding.clone(), component: component.to_string() };
                self.replicas.get_or_create(&labels).set(i64::from(state == State::Available));
            }
        }
    }

    /// From now on this process leads, if it takes part in an election under `lease`.
    pub(crate) fn lead(&self, lease: Option<&str>, index: &Arc<Index>, components: &Arc<dyn Components>) {
        if let Some(lease) = lease {
            self.leader.get_or_create(&NameLabel { name: lease.to_owned() }).set(1);
        }
        *self.led.lock() = Some(Led { index: Arc::clone(index), components: Arc::clone(components) });
    }

    /// This process takes part in an election and does not lead yet.
    pub(crate) fn stand_by(&self, lease: &str) {
        self.leader.get_or_create(&NameLabel { name: lease.to_owned() }).set(0);
    }

    /// A reconcile ended.
    pub(crate) fn synced(&self, binding: &str, took: Duration, failed: bool) {
        self.sync_duration.observe(took.as_secs_f64());
        self.syncs.get_or_create(&label(binding)).inc();
        if failed {
            self.sync_errors.get_or_create(&label(binding)).inc();
        }
    }

    /// A probe ended.
    pub(crate) fn probed(&self, binding: &str, took: Duration) {
        self.probe_duration.get_or_create(&label(binding)).set(took.as_secs_f64());
    }

    /// What a probe found.
    pub(crate) fn set_worker(&self, binding: &str, report: &Report) {
        let up = report.connection == Some(Connection::Up);
        self.reachable.get_or_create(&label(binding)).set(i64::from(up));
        match report.expires_at {
            Some(at) => {
                self.expiry.get_or_create(&label(binding)).set(at.as_second());
                tracing::trace!(binding, at = rfc3339(at), "credentials expire");
            }
            None => {
                self.expiry.remove(&label(binding));
            }
        }
    }

    /// Nobody asks the worker any more.
    pub(crate) fn forget_worker(&self, binding: &str) {
        self.reachable.remove(&label(binding));
        self.probe_duration.remove(&label(binding));
        self.expiry.remove(&label(binding));
    }

    /// The binding is gone, and its series with it.
    pub(crate) fn forget(&self, binding: &str) {
        self.forget_worker(binding);
        self.syncs.remove(&label(binding));
        self.sync_errors.remove(&label(binding));
        for component in [Component::Syncer, Component::Proxier] {
            let labels =
                ComponentLabels { clusterbinding: binding.to_owned(), component: component.to_string() };
            self.replicas.remove(&labels);
        }
    }
}

fn label(binding: &str) -> BindingLabel {
    BindingLabel { clusterbinding: binding.to_owned() }
}

fn commit() -> &'static str {
    option_env!("KUBEOCEAN_COMMIT").unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn series_of_a_deleted_binding_vanish() {
        let metrics = ManagerMetrics::default();
        metrics.synced("b", Duration::from_millis(3), true);
        metrics.probed("b", Duration::from_millis(3));
        let text = metrics.encode();
        for line in [
            "kubeocean_manager_sync_total{clusterbinding=\"b\"} 1",
            "kubeocean_manager_sync_errors_total{clusterbinding=\"b\"} 1",
            "kubeocean_manager_sync_duration_seconds_count 1",
            "kubeocean_build_info{",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
        metrics.forget("b");
        assert!(!metrics.encode().contains("clusterbinding="));
    }
}
