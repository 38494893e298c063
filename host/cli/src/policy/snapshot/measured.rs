//! Measured usage of nodes as policies see it (PO-405): the mean of the samples of the last five minutes.
//!
//! Pure.

use std::collections::{BTreeMap, VecDeque};

use kubeocean_api::{quantity::Rounding, resource::to_base_units};
use serde_json::Value;

/// Samples older than this do not count, in seconds.
const WINDOW: i64 = 5 * 60;
/// Without a sample younger than this there is no measurement, in seconds.
const FRESH: i64 = 3 * 60;

type Amounts = BTreeMap<String, i64>;

/// Samples by node, oldest first.
#[derive(Debug, Default)]
pub(super) struct Measured {
    samples: BTreeMap<String, VecDeque<(i64, Amounts)>>,
}

impl Measured {
    /// Takes items of `metrics.k8s.io/v1beta1` nodes. A sample that was seen before is none.
    pub(super) fn take(&mut self, items: &[Value]) {
        for item in items {
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

    /// The mean now, by resource; empty without a fresh sample.
    pub(super) fn of(&mut self, node: &str, now: i64) -> Amounts {
        let Some(known) = self.samples.get_mut(node) else { return Amounts::new() };
        known.retain(|(at, _)| now - at <= WINDOW);
        if known.back().is_none_or(|(at, _)| now - at > FRESH) {
            return Amounts::new();
        }
        let mut sums: BTreeMap<&String, (i128, i128)> = BTreeMap::new();
        for (resource, amount) in known.iter().flat_map(|(_, amounts)| amounts) {
            let (sum, count) = sums.entry(resource).or_default();
            *sum += i128::from(*amount);
            *count += 1;
        }
        // Usage is rounded up (PO-202).
        let mean = |(sum, count): (i128, i128)| i64::try_from((sum + count - 1) / count).unwrap_or(i64::MAX);
        sums.into_iter().map(|(resource, sum)| (resource.clone(), mean(sum))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample(at: &str, cpu: &str) -> Value {
        json!({"metadata": {"name": "n"}, "timestamp": at, "usage": {"cpu": cpu, "memory": "1Ki"}})
    }

    fn at(text: &str) -> i64 {
        text.parse::<jiff::Timestamp>().unwrap().as_second()
    }

    #[test]
    fn usage_is_the_mean_of_five_minutes() {
        let mut measured = Measured::default();
        measured.take(&[sample("2026-03-07T12:00:00Z", "1")]);
        measured.take(&[sample("2026-03-07T12:00:00Z", "9")]);
        measured.take(&[sample("2026-03-07T12:04:00Z", "2001m")]);
        assert_eq!(measured.of("n", at("2026-03-07T12:04:30Z"))["cpu"], 1501, "rounded up, each sample once");
        assert_eq!(measured.of("n", at("2026-03-07T12:05:01Z"))["cpu"], 2001, "the first is too old");
        assert_eq!(measured.of("n", at("2026-03-07T12:07:01Z")), Amounts::new(), "no fresh one");
        assert_eq!(measured.of("other", 0), Amounts::new());
    }
}
