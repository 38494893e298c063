//! What the policy engine counts, as metrics (PO-1501): asked of it at each scrape, so that a decision costs no extra write.
//!
//! No label names a node: an entry decides for thousands.

use std::fmt;
use std::sync::{Arc, Weak};

use kubeocean_engine::{EntryMetrics, FaultKind, PolicyHost};
use parking_lot::Mutex;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter},
};

/// The only kind of decision there is so far.
const LEASE: &str = "lease";

/// Labels of what is counted per entry.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EntryLabels {
    clusterbinding: String,
    entry: String,
    kind: &'static str,
}

/// Labels of rows and memo look-ups.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabels {
    clusterbinding: String,
    entry: String,
    kind: &'static str,
    result: &'static str,
}

/// Labels of faults.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FaultLabels {
    clusterbinding: String,
    entry: String,
    fault: &'static str,
}

/// The engine's counters as a part of the registry.
#[derive(Debug)]
pub struct PolicyMetrics {
    binding: String,
    host: Mutex<Weak<PolicyHost>>,
}

impl PolicyMetrics {
    /// Nothing until [`PolicyMetrics::follow`].
    pub fn new(binding: &str) -> Self {
        Self { binding: binding.to_owned(), host: Mutex::new(Weak::new()) }
    }

    /// Tells of this host from now on, as long as it exists.
    pub fn follow(&self, host: &Arc<PolicyHost>) {
        *self.host.lock() = Arc::downgrade(host);
    }

    fn encode_entries(&self, encoder: &mut DescriptorEncoder<'_>, entries: &[EntryMetrics]) -> fmt::Result {
        let result = |entry: &EntryMetrics, result| ResultLabels {
            clusterbinding: self.binding.clone(),
            entry: entry.entry.clone(),
            kind: LEASE,
            result,
        };
        let rows = entries.iter().flat_map(|entry| {
            let n = &entry.counters;
            [
                ("offer", n.offered),
                ("withhold", n.withheld),
                ("not_applicable", n.not_applicable),
                ("error", n.errors),
            ]
            .map(|(outcome, count)| (result(entry, outcome), count))
        });
        counters(encoder, "kubeocean_policy_rows", "Rows that policy modules evaluated", rows)?;
        let memo = entries.iter().flat_map(|entry| {
            let n = &entry.counters;
            [("hit", n.memo_hits), ("miss", n.memo_misses), ("expired", n.memo_expired)]
                .map(|(outcome, count)| (result(entry, outcome), count))
        });
        counters(encoder, "kubeocean_policy_memo", "Rows looked up among known answers", memo)?;
        let calls = entries.iter().map(|entry| {
            let labels =
                EntryLabels { clusterbinding: self.binding.clone(), entry: entry.entry.clone(), kind: LEASE };
            (labels, entry.counters.calls)
        });
        counters(encoder, "kubeocean_policy_calls", "Calls of policy modules", calls)?;
        let faults = entries.iter().flat_map(|entry| {
            FaultKind::ALL.into_iter().zip(entry.counters.faults).map(move |(fault, count)| {
                let labels = FaultLabels {
                    clusterbinding: self.binding.clone(),
                    entry: entry.entry.clone(),
                    fault: fault.as_str(),
                };
                (labels, count)
            })
        });
        counters(encoder, "kubeocean_policy_faults", "Calls of policy modules that failed", faults)
    }
}

impl Collector for PolicyMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let host = self.host.lock().upgrade();
        let entries = host.map(|host| host.metrics()).unwrap_or_default();
        self.encode_entries(&mut encoder, &entries)
    }
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
    use kubeocean_engine::{EntryCounters, EntryState};
    use prometheus_client::{encoding::text::encode, registry::Registry};

    use super::*;

    #[derive(Debug)]
    struct Fixed(PolicyMetrics, Vec<EntryMetrics>);

    impl Collector for Fixed {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
            self.0.encode_entries(&mut encoder, &self.1)
        }
    }

    #[test]
    fn entries_are_told_under_the_documented_names() {
        let counters = EntryCounters {
            offered: 3,
            memo_hits: 7,
            calls: 1,
            faults: [0, 2, 0, 0, 0],
            ..EntryCounters::default()
        };
        let entry = EntryMetrics { entry: "rlp/half".to_owned(), state: EntryState::Active, counters };
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Fixed(PolicyMetrics::new("b"), vec![entry])));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        for line in [
            r#"kubeocean_policy_rows_total{clusterbinding="b",entry="rlp/half",kind="lease",result="offer"} 3"#,
            r#"kubeocean_policy_memo_total{clusterbinding="b",entry="rlp/half",kind="lease",result="hit"} 7"#,
            r#"kubeocean_policy_calls_total{clusterbinding="b",entry="rlp/half",kind="lease"} 1"#,
            r#"kubeocean_policy_faults_total{clusterbinding="b",entry="rlp/half",fault="Timeout"} 2"#,
        ] {
            assert!(text.contains(line), "{line} is missing in\n{text}");
        }
    }
}
