//! Measured usage of worker nodes: the mean of the samples of the last five minutes (PO-405).
//!
//! Pure.

use std::collections::{BTreeMap, VecDeque};

use kubeocean_api::{quantity::Rounding, resource::to_base_units};
use serde_json::Value;

use super::snapshot::Amounts;

/// Where a worker cluster serves them.
pub const PATH: &str = "/apis/metrics.k8s.io/v1beta1/nodes";
/// Samples older than this do not count, in seconds.
const WINDOW: i64 = 5 * 60;
/// Without a sample younger than this there is no measurement, in seconds.
const FRESH: i64 = 3 * 60;

/// Samples by node, oldest first.
#[derive(Debug, Default)]
pub struct Measured {
    samples: BTreeMap<String, VecDeque<(i64, Amounts)>>,
}

impl Measured {
    /// Takes a list of `metrics.k8s.io/v1beta1` nodes. A sample that was seen before is none.
    pub fn take(&mut self, list: &Value) {
        for item in list.get("items").and_then(Value::as_array).into_iter().flatten() {
            let text = |pointer: &str| item.pointer(pointer).and_then(Value::as_str);
            let (Some(name), Some(at)) = (text("/metadata/name"), text("/timestamp")) else { continue };
            let Ok(at) = at.parse::<jiff::Timestamp>() else { continue };
            let Some(usage) = item.get("usage").and_then(Value::as_object) else { continue };
            let amounts = usage.iter().filter_map(|(resource, written)| {
                let amount = to_base_units(resource, written.as_str()?, Rounding::Up).ok()?;
                Some((resource.clone(), amount))
            });
            let known = self.samples.entry(name.to_owned()).or_default();
            if known.back().is_none_or(|(last, _)| *last < at.as_second()) {
                known.push_back((at.as_second(), amounts.collect()));
            }
        }
    }

    /// Nobody measures any more.
    pub fn clear(&mut self) {
        self.samples.clear();
    }

    /// The means now (unix seconds), by node. A node without a fresh sample is absent.
    pub fn means(&mut self, now: i64) -> BTreeMap<String, Amounts> {
        self.samples.retain(|_, known| {
            known.retain(|(at, _)| now - at <= WINDOW);
            !known.is_empty()
        });
        let fresh = |known: &VecDeque<(i64, Amounts)>| known.back().is_some_and(|(at, _)| now - at <= FRESH);
        let fresh = self.samples.iter().filter(|(_, known)| fresh(known));
        fresh.map(|(node, known)| (node.clone(), mean(known))).collect()
    }
}

fn mean(samples: &VecDeque<(i64, Amounts)>) -> Amounts {
    let mut sums: BTreeMap<&String, (i128, i128)> = BTreeMap::new();
    for (resource, amount) in samples.iter().flat_map(|(_, amounts)| amounts) {
        let (sum, count) = sums.entry(resource).or_default();
        *sum += i128::from(*amount);
        *count += 1;
    }
    // Usage is rounded up (PO-202).
    let mean = |(sum, count): (i128, i128)| i64::try_from((sum + count - 1) / count).unwrap_or(i64::MAX);
    sums.into_iter().map(|(resource, sum)| (resource.clone(), mean(sum))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample(at: &str, cpu: &str) -> Value {
        let node =
            json!({"metadata": {"name": "n"}, "timestamp": at, "usage": {"cpu": cpu, "memory": "1Ki"}});
        json!({"items": [node]})
    }

    fn at(text: &str) -> i64 {
        text.parse::<jiff::Timestamp>().unwrap().as_second()
    }

    #[test]
    fn usage_is_the_mean_of_five_minutes() {
        let mut measured = Measured::default();
        measured.take(&sample("2026-03-07T12:00:00Z", "1"));
        measured.take(&sample("2026-03-07T12:00:00Z", "9"));
        measured.take(&sample("2026-03-07T12:04:00Z", "2001m"));
        let mut cpu = |now: &str| Some(*measured.means(at(now)).get("n")?.get("cpu")?);
        assert_eq!(cpu("2026-03-07T12:04:30Z"), Some(1501), "rounded up, each sample once");
        assert_eq!(cpu("2026-03-07T12:05:01Z"), Some(2001), "the first is too old");
        assert_eq!(cpu("2026-03-07T12:07:00Z"), Some(2001));
        assert_eq!(cpu("2026-03-07T12:07:01Z"), None, "no fresh one");
    }

    #[test]
    fn nodes_that_nobody_measures_any_more_are_forgotten() {
        let mut measured = Measured::default();
        measured.take(&sample("2026-03-07T12:00:00Z", "1"));
        measured.means(at("2026-03-07T12:05:01Z"));
        assert!(measured.samples.is_empty());
    }
}
