//! What the policy engine counts, as metrics (PO-1501): asked of it at each scrape, so that a decision costs no extra write.
//!
//! No label names a node: an entry decides for thousands.

use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use kubeocean_engine::{
    COMPILE_BUCKETS_MS, DURATION_BUCKETS_US, EngineNumbers, EntryCounters, EntryMetrics, EntryState,
    FaultKind, PolicyHost,
};
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

use super::store::PolicyStore;

/// Kinds of decisions.
const LEASE: &str = "lease";
const PLACE: &str = "place";

/// Labels of what belongs to an entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfEntry {
    clusterbinding: String,
    entry: String,
}

/// Labels of calls.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCalls {
    clusterbinding: String,
    entry: String,
    kind: &'static str,
}

/// Labels of rows.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfRows {
    clusterbinding: String,
    entry: String,
    kind: &'static str,
    result: &'static str,
}

/// Labels of memo look-ups.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfMemo {
    clusterbinding: String,
    entry: String,
    result: &'static str,
}

/// Labels of faults.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFaults {
    clusterbinding: String,
    entry: String,
    fault: &'static str,
}

/// Labels of failed loads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfLoads {
    clusterbinding: String,
    entry: String,
    step: &'static str,
}

/// Labels of an entry's state.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfState {
    clusterbinding: String,
    entry: String,
    state: &'static str,
}

/// Labels of what belongs to no entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfBinding {
    clusterbinding: String,
}

/// Labels of look-ups of compiled modules.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCache {
    clusterbinding: String,
    result: &'static str,
}

/// A counter with no label but the entry: name, help, value.
type Plain = (&'static str, &'static str, fn(&EntryCounters) -> u64);

/// The engine's counters as a part of the registry.
#[derive(Debug)]
pub struct PolicyMetrics {
    binding: String,
    host: Mutex<Weak<PolicyHost>>,
    store: Mutex<Weak<PolicyStore>>,
}

impl PolicyMetrics {
    /// Nothing until [`PolicyMetrics::follow`].
    pub fn new(binding: &str) -> Self {
        Self { binding: binding.to_owned(), host: Mutex::new(Weak::new()), store: Mutex::new(Weak::new()) }
    }

    /// Tells of this host from now on, as long as it exists.
    pub fn follow(&self, host: &Arc<PolicyHost>) {
        *self.host.lock() = Arc::downgrade(host);
    }

    /// Also tells which modules that run could not be looked up, of which the host knows nothing.
    pub fn follow_store(&self, store: &Arc<PolicyStore>) {
        *self.store.lock() = Arc::downgrade(store);
    }

    fn encode_all(
        &self,
        encoder: &mut DescriptorEncoder<'_>,
        entries: &[EntryMetrics],
        engine: &EngineNumbers,
    ) -> fmt::Result {
        self.encode_calls(encoder, entries)?;
        self.encode_troubles(encoder, entries)?;
        self.encode_states(encoder, entries)?;
        self.encode_engine(encoder, engine)
    }

    fn encode_engine(&self, encoder: &mut DescriptorEncoder<'_>, engine: &EngineNumbers) -> fmt::Result {
        let labels = OfBinding { clusterbinding: self.binding.clone() };
        for (name, help, value) in [
            ("queue_depth", "Work units of policy modules that wait for a thread", engine.queue_depth),
            ("instances_in_use", "Instances of policy modules that exist", engine.instances_in_use),
        ] {
            let name = format!("kubeocean_policy_{name}");
            let mut metric = encoder.encode_descriptor(&name, help, None, MetricType::Gauge)?;
            let value = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            value.encode(metric.encode_family(&labels)?)?;
        }
        let looked_up = [("hit", engine.compile_hits), ("miss", engine.compile_misses)]
            .map(|(result, count)| (OfCache { clusterbinding: self.binding.clone(), result }, count));
        let help = "Policy modules looked up among compiled ones";
        counters(encoder, "kubeocean_policy_compile_cache", help, looked_up.into_iter())?;
        let help = "Duration of compilations of policy modules";
        let mut durations = encoder.encode_descriptor(
            "kubeocean_policy_compile_seconds",
            help,
            None,
            MetricType::Histogram,
        )?;
        let bounds = COMPILE_BUCKETS_MS.iter().map(|ms| Duration::from_millis(*ms));
        let buckets = buckets(bounds, engine.compile_durations);
        let sum = Duration::from_micros(engine.compile_us).as_secs_f64();
        durations.encode_family(&labels)?.encode_histogram::<OfBinding>(
            sum,
            engine.compile_misses,
            &buckets,
            None,
        )
    }

    fn encode_calls(&self, encoder: &mut DescriptorEncoder<'_>, entries: &[EntryMetrics]) -> fmt::Result {
        let rows = entries.iter().flat_map(|entry| {
            let n = &entry.counters;
            [
                (LEASE, "offer", n.offered),
                (LEASE, "withhold", n.withheld),
                (LEASE, "not_applicable", n.not_applicable),
                (LEASE, "error", n.errors),
                (PLACE, "accept", n.place.accepted),
                (PLACE, "reject", n.place.rejected),
                (PLACE, "later", n.place.later),
                (PLACE, "error", n.place.errors),
            ]
            .into_iter()
            .filter(|(kind, _, _)| *kind == LEASE || has_placed(n))
            .map(|(kind, result, count)| {
                let (clusterbinding, entry) = self.names(entry);
                (OfRows { clusterbinding, entry, kind, result }, count)
            })
        });
        counters(encoder, "kubeocean_policy_rows", "Rows that policy modules evaluated", rows)?;
        let memo = entries.iter().flat_map(|entry| {
            let n = &entry.counters;
            [("hit", n.memo_hits), ("miss", n.memo_misses), ("expired", n.memo_expired)].map(
                |(result, count)| {
                    let (clusterbinding, entry) = self.names(entry);
                    (OfMemo { clusterbinding, entry, result }, count)
                },
            )
        });
        counters(encoder, "kubeocean_policy_memo", "Rows looked up among known answers", memo)?;
        let by_kind = || entries.iter().flat_map(|entry| kinds(entry).map(move |kind| (entry, kind)));
        let calls = by_kind().map(|(entry, (kind, calls, _, _))| (self.of_calls(entry, kind), calls));
        counters(encoder, "kubeocean_policy_calls", "Calls of policy modules", calls)?;
        let mut durations = encoder.encode_descriptor(
            "kubeocean_policy_call_duration_seconds",
            "Duration of calls of policy modules, with a fresh instance each",
            None,
            MetricType::Histogram,
        )?;
        for (entry, (kind, _, counts, us)) in by_kind() {
            let buckets = buckets(DURATION_BUCKETS_US.iter().map(|us| Duration::from_micros(*us)), counts);
            let sum = Duration::from_micros(us).as_secs_f64();
            durations.encode_family(&self.of_calls(entry, kind))?.encode_histogram::<OfCalls>(
                sum,
                counts.iter().sum(),
                &buckets,
                None,
            )?;
        }
        Ok(())
    }

    fn encode_troubles(&self, encoder: &mut DescriptorEncoder<'_>, entries: &[EntryMetrics]) -> fmt::Result {
        let faults = entries.iter().flat_map(|of| {
            FaultKind::ALL.into_iter().zip(of.counters.faults).map(|(fault, count)| {
                let (clusterbinding, entry) = self.names(of);
                (OfFaults { clusterbinding, entry, fault: fault.as_str() }, count)
            })
        });
        counters(encoder, "kubeocean_policy_faults", "Calls of policy modules that failed", faults)?;
        let loads = entries.iter().flat_map(|of| {
            of.counters.load_failures.iter().map(|(step, count)| {
                let (clusterbinding, entry) = self.names(of);
                (OfLoads { clusterbinding, entry, step: step.as_str() }, *count)
            })
        });
        let help = "Failed attempts to load a policy module, by step";
        counters(encoder, "kubeocean_policy_load_failures", help, loads)?;
        let plain: [Plain; 3] = [
            ("kubeocean_policy_audit_differences", "Decisions an Audit entry would have changed", |n| {
                n.audit_differences
            }),
            ("kubeocean_policy_impure", "Answers that broke a promise or depended on other rows", |n| {
                n.impure
            }),
            ("kubeocean_policy_log_dropped", "Log lines of policy modules over the limit", |n| n.log_dropped),
        ];
        for (name, help, value) in plain {
            counters(encoder, name, help, entries.iter().map(|of| (self.of_entry(of), value(&of.counters))))?;
        }
        Ok(())
    }

    fn encode_states(&self, encoder: &mut DescriptorEncoder<'_>, entries: &[EntryMetrics]) -> fmt::Result {
        let help = "1 for the state an entry is in";
        let mut metric =
            encoder.encode_descriptor("kubeocean_policy_entry_state", help, None, MetricType::Gauge)?;
        for of in entries {
            for state in EntryState::ALL {
                let (clusterbinding, entry) = self.names(of);
                let labels = OfState { clusterbinding, entry, state: state.as_str() };
                ConstGauge::new(i64::from(state == of.state)).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }

    fn names(&self, of: &EntryMetrics) -> (String, String) {
        (self.binding.clone(), of.entry.clone())
    }

    fn of_entry(&self, of: &EntryMetrics) -> OfEntry {
        let (clusterbinding, entry) = self.names(of);
        OfEntry { clusterbinding, entry }
    }

    fn of_calls(&self, of: &EntryMetrics, kind: &'static str) -> OfCalls {
        let (clusterbinding, entry) = self.names(of);
        OfCalls { clusterbinding, entry, kind }
    }
}

/// A kind of decision, its calls, their durations and the sum of these in microseconds.
type OfKind = (&'static str, u64, [u64; DURATION_BUCKETS_US.len() + 1], u64);

/// What an entry counts by kind; placement only of those that place.
fn kinds(of: &EntryMetrics) -> impl Iterator<Item = OfKind> {
    let n = &of.counters;
    let lease = (LEASE, n.calls, n.durations, n.duration_us);
    let place = (PLACE, n.place.calls, n.place.durations, n.place.duration_us);
    std::iter::once(lease).chain(has_placed(n).then_some(place))
}

fn has_placed(n: &EntryCounters) -> bool {
    n.place.calls > 0 || n.place.errors > 0
}

impl Collector for PolicyMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(host) = self.host.lock().upgrade() else { return Ok(()) };
        let mut entries = host.metrics();
        if let Some(store) = self.store.lock().upgrade() {
            store.count_failed_look_ups(&mut entries);
        }
        self.encode_all(&mut encoder, &entries, &host.engine_numbers())
    }
}

/// Counts by upper bound, the last one without.
fn buckets(bounds: impl Iterator<Item = Duration>, counts: impl IntoIterator<Item = u64>) -> Vec<(f64, u64)> {
    bounds.map(|bound| bound.as_secs_f64()).chain([f64::INFINITY]).zip(counts).collect()
}

fn counters<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    values: impl Iterator<Item = (L, u64)>,
) -> fmt::Result {
    let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (labels, value) in values {
        ConstCounter::new(value).encode(metric.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kubeocean_engine::{LoadCode, PlaceCounters};
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    #[derive(Debug)]
    struct Fixed(PolicyMetrics, Vec<EntryMetrics>);

    impl Collector for Fixed {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            let engine = EngineNumbers {
                queue_depth: 3,
                instances_in_use: 2,
                compile_hits: 9,
                compile_misses: 2,
                compile_durations: [0, 1, 0, 0, 0, 0, 1],
                compile_us: 30_100_000,
            };
            self.0.encode_all(&mut encoder, &self.1, &engine)
        }
    }

    fn scraped() -> String {
        let mut durations = [0; DURATION_BUCKETS_US.len() + 1];
        (durations[0], durations[DURATION_BUCKETS_US.len()]) = (2, 1);
        let counters = EntryCounters {
            offered: 3,
            memo_hits: 7,
            calls: 3,
            impure: 4,
            audit_differences: 5,
            log_dropped: 6,
            faults: [0, 2, 0, 0, 0],
            load_failures: [(LoadCode::FetchFailed, 8)].into(),
            durations,
            duration_us: 2_500_000,
            place: PlaceCounters {
                accepted: 8,
                rejected: 4,
                later: 1,
                errors: 2,
                calls: 6,
                ..PlaceCounters::default()
            },
            ..EntryCounters::default()
        };
        let entry = EntryMetrics { entry: "rlp/half".to_owned(), state: EntryState::Active, counters };
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Fixed(PolicyMetrics::new("b"), vec![entry])));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        text
    }

    /// PO-1501, without what the stores know.
    #[test]
    fn these_metrics_there_are() {
        let text = scraped();
        let listed: BTreeMap<&str, &str> =
            text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
        let expected = [
            ("kubeocean_policy_audit_differences", "counter"),
            ("kubeocean_policy_call_duration_seconds", "histogram"),
            ("kubeocean_policy_calls", "counter"),
            ("kubeocean_policy_compile_cache", "counter"),
            ("kubeocean_policy_compile_seconds", "histogram"),
            ("kubeocean_policy_entry_state", "gauge"),
            ("kubeocean_policy_faults", "counter"),
            ("kubeocean_policy_impure", "counter"),
            ("kubeocean_policy_instances_in_use", "gauge"),
            ("kubeocean_policy_load_failures", "counter"),
            ("kubeocean_policy_log_dropped", "counter"),
            ("kubeocean_policy_memo", "counter"),
            ("kubeocean_policy_queue_depth", "gauge"),
            ("kubeocean_policy_rows", "counter"),
        ];
        assert_eq!(listed, expected.into());
    }

    #[test]
    fn values_are_told_under_the_documented_names() {
        let text = scraped();
        for line in [
            r#"kubeocean_policy_rows_total{clusterbinding="b",entry="rlp/half",kind="lease",result="offer"} 3"#,
            r#"kubeocean_policy_rows_total{clusterbinding="b",entry="rlp/half",kind="place",result="reject"} 4"#,
            r#"kubeocean_policy_rows_total{clusterbinding="b",entry="rlp/half",kind="place",result="error"} 2"#,
            r#"kubeocean_policy_calls_total{clusterbinding="b",entry="rlp/half",kind="place"} 6"#,
            r#"kubeocean_policy_memo_total{clusterbinding="b",entry="rlp/half",result="hit"} 7"#,
            r#"kubeocean_policy_calls_total{clusterbinding="b",entry="rlp/half",kind="lease"} 3"#,
            r#"kubeocean_policy_faults_total{clusterbinding="b",entry="rlp/half",fault="Timeout"} 2"#,
            r#"kubeocean_policy_load_failures_total{clusterbinding="b",entry="rlp/half",step="FetchFailed"} 8"#,
            r#"kubeocean_policy_entry_state{clusterbinding="b",entry="rlp/half",state="Active"} 1"#,
            r#"kubeocean_policy_entry_state{clusterbinding="b",entry="rlp/half",state="Quarantined"} 0"#,
            r#"kubeocean_policy_impure_total{clusterbinding="b",entry="rlp/half"} 4"#,
            r#"kubeocean_policy_audit_differences_total{clusterbinding="b",entry="rlp/half"} 5"#,
            r#"kubeocean_policy_log_dropped_total{clusterbinding="b",entry="rlp/half"} 6"#,
            r#"kubeocean_policy_call_duration_seconds_sum{clusterbinding="b",entry="rlp/half",kind="lease"} 2.5"#,
            r#"kubeocean_policy_call_duration_seconds_count{clusterbinding="b",entry="rlp/half",kind="lease"} 3"#,
            r#"kubeocean_policy_call_duration_seconds_bucket{le="1.0",clusterbinding="b",entry="rlp/half",kind="lease"} 2"#,
            r#"kubeocean_policy_call_duration_seconds_bucket{le="+Inf",clusterbinding="b",entry="rlp/half",kind="lease"} 3"#,
            r#"kubeocean_policy_queue_depth{clusterbinding="b"} 3"#,
            r#"kubeocean_policy_instances_in_use{clusterbinding="b"} 2"#,
            r#"kubeocean_policy_compile_cache_total{clusterbinding="b",result="hit"} 9"#,
            r#"kubeocean_policy_compile_cache_total{clusterbinding="b",result="miss"} 2"#,
            r#"kubeocean_policy_compile_seconds_sum{clusterbinding="b"} 30.1"#,
            r#"kubeocean_policy_compile_seconds_count{clusterbinding="b"} 2"#,
            r#"kubeocean_policy_compile_seconds_bucket{le="0.1",clusterbinding="b"} 1"#,
            r#"kubeocean_policy_compile_seconds_bucket{le="+Inf",clusterbinding="b"} 2"#,
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
