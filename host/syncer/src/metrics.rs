//! The Syncer's metrics (MC-704, BU-1601, TD-1702). Every one carries the label `clusterbinding`; none names a pod.
//!
//! What is known of nodes and pods is asked of the stores at each scrape, so that no scrape meets half of it, and what
//! is gone is told no more. Without stores, as on a standby, nothing is told at all.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Weak, atomic::Ordering},
};

use crate::{
    nodes::store::{NodeCounters, PolicyNumbers, VnodeNumbers},
    objects::ObjectKind,
    pods::{index::ByPhase, view::Phase},
    policies::metrics::PolicyMetrics,
    stores::Stores,
};

use kubeocean_runtime::{durations::DurationNumbers, queue::QueueNumbers};
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric, text::encode},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        gauge::ConstGauge,
        histogram::Histogram,
    },
    registry::Registry,
};

/// All phases of BU-1602; each is always told.
const PHASES: [Phase; 5] = [Phase::Pending, Phase::Running, Phase::Succeeded, Phase::Failed, Phase::Unknown];

/// From what a quiet Syncer needs to what a missing ConfigMap costs.
const CREATION_BUCKETS_SECONDS: [f64; 9] = [0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0, 300.0];

/// Name and value of a label.
type Label = (&'static str, String);

/// Counters of one Syncer, and what its stores know.
#[derive(Debug)]
pub struct SyncerMetrics {
    registry: Registry,
    /// Attempts to create a ppod.
    pub create_pod: Counter,
    /// Failed attempts to create a ppod.
    pub create_pod_errors: Counter,
    /// Created ppods.
    pub pod_created: Counter,
    /// Vpods that failed because their ppod was lost.
    pub pod_created_failed: Counter,
    /// From the binding of a vpod to the creation of its ppod, in seconds.
    pub pod_creation: Histogram,
    stores: Arc<StoreMetrics>,
    policies: Arc<PolicyMetrics>,
}

impl SyncerMetrics {
    /// Nothing until `SyncerMetrics::follow`.
    pub fn new(binding: &str) -> Self {
        let mut metrics = Self {
            registry: Registry::default(),
            create_pod: Counter::default(),
            create_pod_errors: Counter::default(),
            pod_created: Counter::default(),
            pod_created_failed: Counter::default(),
            pod_creation: Histogram::new(CREATION_BUCKETS_SECONDS),
            stores: Arc::new(StoreMetrics { binding: binding.to_owned(), stores: Mutex::default() }),
            policies: Arc::new(PolicyMetrics::new(binding)),
        };
        metrics.register(binding);
        metrics
    }

    fn register(&mut self, binding: &str) {
        let label = ("clusterbinding".into(), binding.to_owned().into());
        let plain = self.registry.sub_registry_with_label(label);
        for (name, help, counter) in [
            ("create_pod", "Attempts to create a worker pod", &self.create_pod),
            ("create_pod_errors", "Failed attempts to create a worker pod", &self.create_pod_errors),
            ("pod_created", "Worker pods created", &self.pod_created),
            ("pod_created_failed", "Pods failed because their worker pod was lost", &self.pod_created_failed),
        ] {
            plain.register(format!("kubeocean_syncer_{name}"), help, counter.clone());
        }
        let help = "Time from the binding of a pod to the creation of its worker pod";
        plain.register("kubeocean_syncer_pod_creation_seconds", help, self.pod_creation.clone());
        self.registry.register_collector(Box::new(Arc::clone(&self.stores)));
        self.registry.register_collector(Box::new(Arc::clone(&self.policies)));
    }

    /// Tells of these stores from now on, as long as they exist.
    pub(crate) fn follow(&self, stores: &Arc<Stores>) {
        *self.stores.stores.lock() = Arc::downgrade(stores);
        self.policies.follow(&stores.host);
        self.policies.follow_store(&stores.policies);
    }

    /// The text exposition format.
    pub fn encode(&self) -> String {
        if self.stores.stores.lock().strong_count() == 0 {
            return "# EOF\n".to_owned();
        }
        self.encode_all()
    }

    fn encode_all(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail; an empty page is the harmless answer if it ever did.
        if encode(&mut text, &self.registry).is_err() {
            text.clear();
        }
        text
    }
}

/// What the stores know as a part of the registry.
#[derive(Debug)]
struct StoreMetrics {
    binding: String,
    stores: Mutex<Weak<Stores>>,
}

/// What the stores know at one moment.
#[derive(Debug, Default)]
struct Numbers {
    vnodes: Vec<VnodeNumbers>,
    vpods: ByPhase,
    ppods: ByPhase,
    /// By kind.
    writes: Vec<(&'static str, u64)>,
    /// By mode.
    evictions: Vec<(&'static str, u64)>,
    late_leases: u64,
    usage_drift: u64,
    worker_age_seconds: u64,
    queues: Vec<QueueNumbers>,
    /// By kind.
    copied: Vec<(&'static str, usize)>,
    /// Until the first token ends; `None` without tokens.
    token_expiry_seconds: Option<i64>,
    /// By policy.
    policies: BTreeMap<String, PolicyNumbers>,
    /// Time zones in use, by policy.
    zones: BTreeMap<String, String>,
}

impl Numbers {
    fn of(stores: &Stores) -> Self {
        let (vpods, ppods) = stores.pods.by_phase();
        let NodeCounters {
            created,
            patched,
            updated,
            status,
            deleted,
            reclaimed_pods,
            drained_pods,
            late_leases,
            usage_drift,
        } = &stores.nodes.counters;
        let read = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            vnodes: stores.nodes.numbers(),
            vpods,
            ppods,
            writes: vec![
                ("create", read(created)),
                ("patch", read(patched)),
                ("update", read(updated)),
                ("status", read(status)),
                ("delete", read(deleted)),
            ],
            evictions: vec![("reclaimed", read(reclaimed_pods)), ("drained", read(drained_pods))],
            late_leases: read(late_leases),
            usage_drift: read(usage_drift),
            policies: stores.nodes.policy_numbers(),
            zones: stores.policies.zones(),
            worker_age_seconds: stores.worker.age().as_secs(),
            queues: stores.queues(),
            copied: ObjectKind::ALL.map(|kind| (kind.as_str(), stores.objects.copied(kind))).to_vec(),
            token_expiry_seconds: stores.objects.tokens.first_ends_in().map(|left| left.as_secs()),
        }
    }
}

impl Collector for StoreMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let stores = self.stores.lock().upgrade();
        let numbers = stores.map(|stores| Numbers::of(&stores)).unwrap_or_default();
        self.encode_numbers(&mut encoder, &numbers)
    }
}

impl StoreMetrics {
    fn encode_numbers(&self, encoder: &mut DescriptorEncoder<'_>, numbers: &Numbers) -> fmt::Result {
        let mut page = Page { encoder, binding: &self.binding };
        let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        page.gauge("vnode_total", "Virtual nodes", [(vec![], count(numbers.vnodes.len()))])?;
        encode_amounts(&mut page, &numbers.vnodes)?;
        for (name, help, pods) in [
            ("virtual_pod_total", "Pods on virtual nodes", &numbers.vpods),
            ("physical_pod_total", "Pods in the worker cluster", &numbers.ppods),
        ] {
            let by_phase = PHASES.map(|phase| {
                (vec![("phase", phase.as_str().to_owned())], count(pods.get(&phase).copied().unwrap_or(0)))
            });
            page.gauge(name, help, by_phase)?;
        }
        let by = |label, counts: &[(&'static str, u64)]| -> Vec<(Vec<Label>, u64)> {
            counts.iter().map(|(value, count)| (vec![(label, (*value).to_owned())], *count)).collect()
        };
        page.counter("vnode_writes", "Writes to virtual nodes", by("kind", &numbers.writes))?;
        page.counter("reclaim_pods", "Pods evicted because leasing ended", by("mode", &numbers.evictions))?;
        page.counter(
            "node_lease_late",
            "Node lease renewals more than 20 s after the one before",
            vec![(vec![], numbers.late_leases)],
        )?;
        page.counter(
            "usage_drift",
            "Virtual nodes whose sums of requests a recount found wrong",
            vec![(vec![], numbers.usage_drift)],
        )?;
        encode_policies(&mut page, &numbers.policies)?;
        let zones =
            numbers.zones.iter().map(|(rlp, zone)| (vec![("rlp", rlp.clone()), ("zone", zone.clone())], 1));
        let help = "The time zone of a policy's windows";
        page.gauge_named("kubeocean_policy_time_zone_info", help, zones)?;
        encode_work(&mut page, numbers)?;
        let age = i64::try_from(numbers.worker_age_seconds).unwrap_or(i64::MAX);
        page.gauge("worker_watch_age_seconds", "Time since the worker cluster answered", [(vec![], age)])?;
        let build = vec![
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
            ("commit", option_env!("KUBEOCEAN_COMMIT").unwrap_or("unknown").to_owned()),
        ];
        page.gauge_named("kubeocean_build_info", "What this program was built from", [(build, 1)])
    }
}

/// Per vnode, and summed over them (BU-1601).
fn encode_amounts(page: &mut Page<'_, '_>, vnodes: &[VnodeNumbers]) -> fmt::Result {
    type Of = fn(&VnodeNumbers) -> &crate::nodes::snapshot::Amounts;
    let kinds: [(&str, &str, Of); 4] = [
        ("origin_resource", "What worker nodes have", |vnode| &vnode.origin),
        ("available_resource", "What virtual nodes publish", |vnode| &vnode.available),
        ("physical_usage", "Requests of other pods", |vnode| &vnode.usage.others),
        ("virtual_usage", "Requests of leased pods", |vnode| &vnode.usage.own),
    ];
    for (name, help, of) in kinds {
        let mut sums: BTreeMap<&str, i64> = BTreeMap::new();
        let mut rows = Vec::new();
        for vnode in vnodes {
            for (resource, amount) in of(vnode) {
                let Some(value) = reported(resource, *amount) else { continue };
                let sum = sums.entry(resource).or_default();
                *sum = sum.saturating_add(value);
                rows.push((vec![("node", vnode.vnode.clone()), ("resource", resource.clone())], value));
            }
        }
        page.gauge(&format!("vnode_{name}"), help, rows)?;
        let sums = sums.into_iter().map(|(resource, sum)| (vec![("resource", resource.to_owned())], sum));
        page.gauge(&format!("cluster_{name}"), help, sums)?;
    }
    Ok(())
}

/// Queues, copies and tokens (TD-1708).
fn encode_work(page: &mut Page<'_, '_>, numbers: &Numbers) -> fmt::Result {
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    let queue = |numbers: &QueueNumbers| vec![("queue", numbers.name.replace(' ', "-"))];
    let depths = numbers.queues.iter().map(|of| (queue(of), count(of.depth)));
    page.gauge("queue_depth", "Keys that wait or are worked on", depths)?;
    let waits: Vec<_> = numbers.queues.iter().map(|of| (queue(of), &of.waits)).collect();
    page.histogram("queue_wait_seconds", "Time that keys were ready before they were worked on", waits)?;
    let copied =
        numbers.copied.iter().map(|(kind, copies)| (vec![("kind", (*kind).to_owned())], count(*copies)));
    page.gauge("copied_objects", "Objects whose copies in the worker cluster are in order", copied)?;
    let expiry = numbers.token_expiry_seconds.map(|seconds| (vec![], seconds));
    page.gauge("token_expiry_seconds", "Time until the first token of a pod ends", expiry)
}

/// Per policy, summed over the nodes it governs (PO-1501).
fn encode_policies(page: &mut Page<'_, '_>, policies: &BTreeMap<String, PolicyNumbers>) -> fmt::Result {
    type Of = fn(&PolicyNumbers) -> &crate::nodes::snapshot::Amounts;
    type Count = fn(&PolicyNumbers) -> usize;
    let amounts: [(&str, &str, Of); 2] = [
        ("offered", "What the nodes of a policy publish", |numbers| &numbers.offered),
        ("available", "What others leave of the nodes of a policy", |numbers| &numbers.available),
    ];
    for (name, help, of) in amounts {
        let rows = policies.iter().flat_map(|(policy, numbers)| {
            of(numbers).iter().map(|(resource, amount)| {
                let value = reported(resource, *amount).unwrap_or(*amount);
                (vec![("rlp", policy.clone()), ("resource", resource.clone())], value)
            })
        });
        page.gauge_named(&format!("kubeocean_policy_{name}"), help, rows)?;
    }
    let counts: [(&str, &str, Count); 2] = [
        ("withheld_nodes", "Nodes of a policy that are withheld", |numbers| numbers.withheld),
        (
            "overcommitted_nodes",
            "Nodes of a policy that publish less than leased pods there ask for",
            |numbers| numbers.overcommitted,
        ),
    ];
    for (name, help, of) in counts {
        let rows = policies.iter().map(|(policy, numbers)| {
            (vec![("rlp", policy.clone())], i64::try_from(of(numbers)).unwrap_or(i64::MAX))
        });
        page.gauge_named(&format!("kubeocean_policy_{name}"), help, rows)?;
    }
    Ok(())
}

/// The unit of a reported resource: millicores, MiB or pieces; `None` for resources that are not reported (BU-1602).
fn reported(resource: &str, amount: i64) -> Option<i64> {
    match resource {
        "cpu" | "nvidia.com/gpu" => Some(amount),
        // Not CPU to the API server, so it counts in whole cores.
        "gocrane.io/cpu" => Some(amount.saturating_mul(1000)),
        "memory" | "ephemeral-storage" | "gocrane.io/memory" => Some(amount >> 20),
        _ => {
            let name = resource.strip_prefix("tke.cloud.tencent.com/")?;
            ["eni-ip", "sub-eni", "direct-eni", "tke-shared-rdma"].contains(&name).then_some(amount)
        }
    }
}

/// One scrape being written; puts the binding before all other labels.
struct Page<'a, 'e> {
    encoder: &'a mut DescriptorEncoder<'e>,
    binding: &'a str,
}

impl Page<'_, '_> {
    fn gauge(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Vec<Label>, i64)>,
    ) -> fmt::Result {
        self.gauge_named(&format!("kubeocean_syncer_{name}"), help, rows)
    }

    fn gauge_named(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (Vec<Label>, i64)>,
    ) -> fmt::Result {
        let mut metric = self.encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in rows {
            let labels = labelled(self.binding, labels);
            ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }

    fn histogram(
        &mut self,
        name: &str,
        help: &str,
        rows: Vec<(Vec<Label>, &DurationNumbers)>,
    ) -> fmt::Result {
        let name = format!("kubeocean_syncer_{name}");
        let mut metric = self.encoder.encode_descriptor(&name, help, None, MetricType::Histogram)?;
        for (labels, numbers) in rows {
            let labels = labelled(self.binding, labels);
            metric.encode_family(&labels)?.encode_histogram::<Vec<Label>>(
                numbers.sum_seconds,
                numbers.count,
                &numbers.buckets,
                None,
            )?;
        }
        Ok(())
    }

    fn counter(&mut self, name: &str, help: &str, rows: Vec<(Vec<Label>, u64)>) -> fmt::Result {
        let name = format!("kubeocean_syncer_{name}");
        let mut metric = self.encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
        for (labels, value) in rows {
            let labels = labelled(self.binding, labels);
            ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn labelled(binding: &str, labels: Vec<Label>) -> Vec<Label> {
    [("clusterbinding", binding.to_owned())].into_iter().chain(labels).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::snapshot::Usage;
    use rstest::rstest;

    /// Name and type of every metric, as MC-704, BU-1601 and TD-1702 document them, and those of PO-1501 that are sums
    /// over nodes; its others are `policies::metrics`.
    const DOCUMENTED: &str = "
        kubeocean_build_info gauge
        kubeocean_policy_available gauge
        kubeocean_policy_offered gauge
        kubeocean_policy_overcommitted_nodes gauge
        kubeocean_policy_time_zone_info gauge
        kubeocean_policy_withheld_nodes gauge
        kubeocean_syncer_cluster_available_resource gauge
        kubeocean_syncer_cluster_origin_resource gauge
        kubeocean_syncer_cluster_physical_usage gauge
        kubeocean_syncer_cluster_virtual_usage gauge
        kubeocean_syncer_copied_objects gauge
        kubeocean_syncer_create_pod counter
        kubeocean_syncer_create_pod_errors counter
        kubeocean_syncer_node_lease_late counter
        kubeocean_syncer_physical_pod_total gauge
        kubeocean_syncer_pod_created counter
        kubeocean_syncer_pod_created_failed counter
        kubeocean_syncer_pod_creation_seconds histogram
        kubeocean_syncer_queue_depth gauge
        kubeocean_syncer_queue_wait_seconds histogram
        kubeocean_syncer_reclaim_pods counter
        kubeocean_syncer_token_expiry_seconds gauge
        kubeocean_syncer_usage_drift counter
        kubeocean_syncer_virtual_pod_total gauge
        kubeocean_syncer_vnode_available_resource gauge
        kubeocean_syncer_vnode_origin_resource gauge
        kubeocean_syncer_vnode_physical_usage gauge
        kubeocean_syncer_vnode_total gauge
        kubeocean_syncer_vnode_virtual_usage gauge
        kubeocean_syncer_vnode_writes counter
        kubeocean_syncer_worker_watch_age_seconds gauge
    ";

    #[test]
    fn all_documented_metrics_exist_and_no_others() {
        let page = SyncerMetrics::new("b").encode_all();
        let mut told: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
        told.sort_unstable();
        let documented: Vec<&str> = DOCUMENTED.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
        assert_eq!(told, documented);
    }

    #[test]
    fn a_standby_tells_nothing() {
        let metrics = SyncerMetrics::new("b");
        metrics.create_pod.inc();
        assert_eq!(metrics.encode(), "# EOF\n");
    }

    #[rstest]
    #[case("cpu", Some(1500))]
    #[case("gocrane.io/cpu", Some(1_500_000))]
    #[case("gocrane.io/memory", Some(0))]
    #[case("memory", Some(0))]
    #[case("nvidia.com/gpu", Some(1500))]
    #[case("tke.cloud.tencent.com/eni-ip", Some(1500))]
    #[case("tke.cloud.tencent.com/tke-shared-rdma", Some(1500))]
    #[case("tke.cloud.tencent.com/else", None)]
    #[case("pods", None)]
    fn only_documented_resources_are_reported(#[case] resource: &str, #[case] value: Option<i64>) {
        assert_eq!(reported(resource, 1500), value);
    }

    #[derive(Debug)]
    struct Fixed(StoreMetrics, Numbers);

    impl Collector for Fixed {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            self.0.encode_numbers(&mut encoder, &self.1)
        }
    }

    #[test]
    fn names_labels_and_units_are_as_documented() {
        let vnode = |name: &str, cpu: i64| VnodeNumbers {
            vnode: name.to_owned(),
            origin: [("cpu".to_owned(), cpu), ("memory".to_owned(), 3 << 30), ("pods".to_owned(), 9)].into(),
            available: [("cpu".to_owned(), cpu / 2)].into(),
            usage: Usage {
                others: [("cpu".to_owned(), 100)].into(),
                own: [("cpu".to_owned(), 250)].into(),
                ..Usage::default()
            },
        };
        let numbers = Numbers {
            vnodes: vec![vnode("v1", 4000), vnode("v2", 6000)],
            vpods: [(Phase::Running, 3)].into(),
            ppods: [(Phase::Pending, 1)].into(),
            writes: vec![("update", 7)],
            evictions: vec![("reclaimed", 2)],
            late_leases: 1,
            usage_drift: 4,
            worker_age_seconds: 12,
            queues: vec![QueueNumbers {
                name: "pod events",
                depth: 3,
                waits: DurationNumbers {
                    sum_seconds: 1.5,
                    count: 2,
                    buckets: vec![(1.0, 1), (f64::INFINITY, 1)],
                },
            }],
            copied: vec![("ConfigMap", 5)],
            token_expiry_seconds: Some(3000),
            policies: [(
                "p".to_owned(),
                PolicyNumbers {
                    offered: [("memory".to_owned(), 3 << 30), ("pods".to_owned(), 9)].into(),
                    available: [("cpu".to_owned(), 700)].into(),
                    withheld: 2,
                    overcommitted: 1,
                },
            )]
            .into(),
            zones: [("p".to_owned(), "Europe/Rome".to_owned())].into(),
        };
        let mut registry = Registry::default();
        let stores = StoreMetrics { binding: "b".to_owned(), stores: Mutex::default() };
        registry.register_collector(Box::new(Fixed(stores, numbers)));
        let mut page = String::new();
        encode(&mut page, &registry).unwrap();
        for line in [
            r#"syncer_vnode_total{clusterbinding="b"} 2"#,
            r#"syncer_vnode_origin_resource{clusterbinding="b",node="v1",resource="memory"} 3072"#,
            r#"syncer_vnode_available_resource{clusterbinding="b",node="v2",resource="cpu"} 3000"#,
            r#"syncer_cluster_origin_resource{clusterbinding="b",resource="cpu"} 10000"#,
            r#"syncer_cluster_available_resource{clusterbinding="b",resource="cpu"} 5000"#,
            r#"syncer_cluster_physical_usage{clusterbinding="b",resource="cpu"} 200"#,
            r#"syncer_cluster_virtual_usage{clusterbinding="b",resource="cpu"} 500"#,
            r#"syncer_virtual_pod_total{clusterbinding="b",phase="Running"} 3"#,
            r#"syncer_virtual_pod_total{clusterbinding="b",phase="Unknown"} 0"#,
            r#"syncer_physical_pod_total{clusterbinding="b",phase="Pending"} 1"#,
            r#"syncer_vnode_writes_total{clusterbinding="b",kind="update"} 7"#,
            r#"syncer_reclaim_pods_total{clusterbinding="b",mode="reclaimed"} 2"#,
            r#"syncer_node_lease_late_total{clusterbinding="b"} 1"#,
            r#"syncer_worker_watch_age_seconds{clusterbinding="b"} 12"#,
            r#"syncer_queue_depth{clusterbinding="b",queue="pod-events"} 3"#,
            r#"syncer_queue_wait_seconds_count{clusterbinding="b",queue="pod-events"} 2"#,
            r#"syncer_queue_wait_seconds_bucket{le="1.0",clusterbinding="b",queue="pod-events"} 1"#,
            r#"syncer_copied_objects{clusterbinding="b",kind="ConfigMap"} 5"#,
            r#"syncer_token_expiry_seconds{clusterbinding="b"} 3000"#,
            r#"syncer_usage_drift_total{clusterbinding="b"} 4"#,
            r#"policy_offered{clusterbinding="b",rlp="p",resource="memory"} 3072"#,
            r#"policy_offered{clusterbinding="b",rlp="p",resource="pods"} 9"#,
            r#"policy_available{clusterbinding="b",rlp="p",resource="cpu"} 700"#,
            r#"policy_withheld_nodes{clusterbinding="b",rlp="p"} 2"#,
            r#"policy_overcommitted_nodes{clusterbinding="b",rlp="p"} 1"#,
            r#"policy_time_zone_info{clusterbinding="b",rlp="p",zone="Europe/Rome"} 1"#,
        ] {
            assert!(page.contains(&format!("kubeocean_{line}\n")), "{line} is missing in\n{page}");
        }
        let nodes_only = page.lines().filter(|line| line.starts_with("kubeocean_syncer_"));
        assert!(
            nodes_only.clone().count() > 0
                && !nodes_only.into_iter().any(|line| line.contains("resource=\"pods\""))
        );
        assert!(page.contains("kubeocean_build_info{clusterbinding=\"b\",version="));
    }
}
