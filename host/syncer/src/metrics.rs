//! The Syncer's metrics (MC-704, BU-1601, TD-1702). Every one carries the label `clusterbinding`; none names a pod.

use std::sync::{Arc, atomic::AtomicI64};

use crate::{nodes::store::VnodeNumbers, policies::metrics::PolicyMetrics};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Label of every metric.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct BindingLabel {
    /// Name of the ClusterBinding.
    pub clusterbinding: String,
}

/// Labels of pod gauges.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct PhaseLabels {
    /// Name of the ClusterBinding.
    pub clusterbinding: String,
    /// Pod phase.
    pub phase: String,
}

/// Labels of vnode amounts.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct AmountLabels {
    /// Name of the ClusterBinding.
    pub clusterbinding: String,
    /// Vnode name.
    pub node: String,
    /// Resource name.
    pub resource: String,
}

/// Labels of write counters.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct KindLabels {
    /// Name of the ClusterBinding.
    pub clusterbinding: String,
    /// What was written.
    pub kind: &'static str,
}

/// Counters and gauges of one Syncer.
#[derive(Debug)]
pub struct SyncerMetrics {
    registry: Registry,
    binding: String,
    /// Attempts to create a ppod.
    pub create_pod: Counter,
    /// Failed attempts to create a ppod.
    pub create_pod_errors: Counter,
    /// Created ppods.
    pub pod_created: Counter,
    /// Vpods that failed because their ppod was lost.
    pub pod_created_failed: Counter,
    /// Vnodes of the binding.
    pub vnodes: Gauge,
    /// What a worker node has (BU-501).
    pub vnode_origin: Family<AmountLabels, Gauge<i64, AtomicI64>>,
    /// What a vnode publishes (BU-504).
    pub vnode_available: Family<AmountLabels, Gauge<i64, AtomicI64>>,
    /// Requests of foreign pods.
    pub vnode_physical_usage: Family<AmountLabels, Gauge<i64, AtomicI64>>,
    /// Requests of the binding's own ppods.
    pub vnode_virtual_usage: Family<AmountLabels, Gauge<i64, AtomicI64>>,
    /// Vpods by phase.
    pub virtual_pods: Family<PhaseLabels, Gauge>,
    /// Ppods by phase.
    pub physical_pods: Family<PhaseLabels, Gauge>,
    /// Writes to vnodes.
    pub vnode_writes: Family<KindLabels, Counter>,
    /// Lease renewals that came more than 20 s after the one before.
    pub node_lease_late: Counter,
    /// Vpods evicted because leasing ended.
    pub reclaim_pods: Family<KindLabels, Counter>,
    /// What the policy engine counts.
    pub policies: Arc<PolicyMetrics>,
}

impl SyncerMetrics {
    /// All metrics at zero.
    pub fn new(binding: &str) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            binding: binding.to_owned(),
            create_pod: Counter::default(),
            create_pod_errors: Counter::default(),
            pod_created: Counter::default(),
            pod_created_failed: Counter::default(),
            vnodes: Gauge::default(),
            vnode_origin: Family::default(),
            vnode_available: Family::default(),
            vnode_physical_usage: Family::default(),
            vnode_virtual_usage: Family::default(),
            virtual_pods: Family::default(),
            physical_pods: Family::default(),
            vnode_writes: Family::default(),
            node_lease_late: Counter::default(),
            reclaim_pods: Family::default(),
            policies: Arc::new(PolicyMetrics::new(binding)),
        };
        metrics.register();
        metrics
    }

    fn register(&mut self) {
        let labels = || [("clusterbinding".into(), self.binding.clone().into())].into_iter();
        let plain = self.registry.sub_registry_with_labels(labels());
        plain.register(
            "kubeocean_syncer_create_pod",
            "Attempts to create a worker pod",
            self.create_pod.clone(),
        );
        plain.register(
            "kubeocean_syncer_create_pod_errors",
            "Failed attempts to create a worker pod",
            self.create_pod_errors.clone(),
        );
        plain.register("kubeocean_syncer_pod_created", "Worker pods created", self.pod_created.clone());
        plain.register(
            "kubeocean_syncer_pod_created_failed",
            "Pods failed because their worker pod was lost",
            self.pod_created_failed.clone(),
        );
        plain.register("kubeocean_syncer_vnode_total", "Virtual nodes", self.vnodes.clone());
        plain.register(
            "kubeocean_syncer_node_lease_late",
            "Node lease renewals more than 20 s after the one before",
            self.node_lease_late.clone(),
        );
        let amounts = [
            ("kubeocean_syncer_vnode_origin_resource", "What the worker node has", &self.vnode_origin),
            (
                "kubeocean_syncer_vnode_available_resource",
                "What the virtual node publishes",
                &self.vnode_available,
            ),
            ("kubeocean_syncer_vnode_physical_usage", "Requests of other pods", &self.vnode_physical_usage),
            ("kubeocean_syncer_vnode_virtual_usage", "Requests of leased pods", &self.vnode_virtual_usage),
        ];
        for (name, help, family) in amounts {
            self.registry.register(name, help, family.clone());
        }
        self.registry.register(
            "kubeocean_syncer_virtual_pod_total",
            "Pods on virtual nodes",
            self.virtual_pods.clone(),
        );
        self.registry.register(
            "kubeocean_syncer_physical_pod_total",
            "Pods in the worker cluster",
            self.physical_pods.clone(),
        );
        self.registry.register(
            "kubeocean_syncer_vnode_writes",
            "Writes to virtual nodes",
            self.vnode_writes.clone(),
        );
        self.registry.register(
            "kubeocean_syncer_reclaim_pods",
            "Pods evicted because leasing ended",
            self.reclaim_pods.clone(),
        );
        self.registry.register_collector(Box::new(Arc::clone(&self.policies)));
    }

    /// Replaces what is told of vnodes; vnodes that are gone disappear (BU-1601, BU-1602).
    pub fn set_vnodes(&self, vnodes: &[VnodeNumbers]) {
        self.vnodes.set(i64::try_from(vnodes.len()).unwrap_or(i64::MAX));
        let families = [
            &self.vnode_origin,
            &self.vnode_available,
            &self.vnode_physical_usage,
            &self.vnode_virtual_usage,
        ];
        families.iter().for_each(|family| family.clear());
        for vnode in vnodes {
            let amounts = [&vnode.origin, &vnode.available, &vnode.usage.others, &vnode.usage.own];
            for (family, amounts) in families.iter().zip(amounts) {
                for (resource, amount) in amounts {
                    let Some(value) = reported(resource, *amount) else { continue };
                    family
                        .get_or_create(&AmountLabels {
                            clusterbinding: self.binding.clone(),
                            node: vnode.vnode.clone(),
                            resource: resource.to_string(),
                        })
                        .set(value);
                }
            }
        }
    }

    /// Label value of this Syncer.
    pub fn binding(&self) -> &str {
        &self.binding
    }

    /// The text exposition format.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail; an empty page is the harmless answer if it ever did.
        if encode(&mut text, &self.registry).is_err() {
            text.clear();
        }
        text
    }
}

/// The unit of a reported resource: millicores, MiB or pieces; `None` for resources that are not reported (BU-1602).
fn reported(resource: &str, amount: i64) -> Option<i64> {
    match resource {
        "cpu" | "gocrane.io/cpu" | "nvidia.com/gpu" => Some(amount),
        "memory" | "ephemeral-storage" | "gocrane.io/memory" => Some(amount >> 20),
        _ if resource.starts_with("tke.cloud.tencent.com/") => Some(amount),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compatibility_names_appear_as_documented() {
        let metrics = SyncerMetrics::new("b");
        metrics.create_pod.inc();
        metrics.vnodes.set(3);
        let text = metrics.encode();
        for line in [
            "kubeocean_syncer_create_pod_total{clusterbinding=\"b\"} 1",
            "kubeocean_syncer_create_pod_errors_total{clusterbinding=\"b\"} 0",
            "kubeocean_syncer_pod_created_total{clusterbinding=\"b\"} 0",
            "kubeocean_syncer_pod_created_failed_total{clusterbinding=\"b\"} 0",
            "kubeocean_syncer_vnode_total{clusterbinding=\"b\"} 3",
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
