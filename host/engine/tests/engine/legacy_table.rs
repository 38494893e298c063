//! 200 generated legacy policies against the original's rules (acceptance check 2), written here a second time.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use kubeocean_engine::{Reclaim, Verdict};
use serde_json::{Value, json};

use crate::support::*;

/// A small generator of repeatable numbers.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % below
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.next(from.len() as u64)).unwrap()]
    }
}

const TIMES: [&str; 8] = ["00:00", "00:01", "01:30", "02:30", "08:00", "08:01", "18:00", "23:59"];
pub(crate) const DAYS: [&str; 7] =
    ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
/// Ordinary days, both changes of daylight saving in Rome, midnight edges.
const INSTANTS: [&str; 10] = [
    "2026-03-02T12:00:00Z",
    "2026-03-01T22:59:59Z",
    "2026-03-01T23:00:00Z",
    "2026-03-29T00:30:00Z",
    "2026-03-29T01:00:00Z",
    "2026-10-25T00:30:00Z",
    "2026-10-25T01:30:00Z",
    "2026-03-07T06:59:59Z",
    "2026-03-07T07:00:59Z",
    "2026-03-07T07:01:00Z",
];

fn spec(numbers: &mut Numbers) -> Value {
    let mut spec = json!({"timeZone": "Europe/Rome"});
    let windows: Vec<Value> = (0..numbers.next(3))
        .map(|_| {
            let days: Vec<&str> = (0..numbers.next(4)).map(|_| numbers.pick(&DAYS)).collect();
            json!({"start": numbers.pick(&TIMES), "end": numbers.pick(&TIMES), "days": days})
        })
        .collect();
    spec["timeWindows"] = windows.into();
    let limits: Vec<Value> = (0..numbers.next(4))
        .map(|_| {
            let mut limit = json!({"resource": numbers.pick(&["cpu", "memory", "nvidia.com/gpu", "none"])});
            if numbers.next(2) == 0 {
                limit["percent"] = numbers.pick(&[0, 1, 33, 50, 100]).into();
            }
            if numbers.next(2) == 0 {
                limit["quantity"] = numbers.pick(&["0", "1", "1500m", "25Gi", "3"]).into();
            }
            limit
        })
        .collect();
    spec["resourceLimits"] = limits.into();
    spec["forceReclaim"] = (numbers.next(2) == 0).into();
    spec["gracefulReclaimPeriodSeconds"] = numbers.pick(&[0, 600]).into();
    if numbers.next(3) == 0 {
        let operator = numbers.pick(&["In", "NotIn", "Exists", "DoesNotExist"]);
        let values =
            if operator.ends_with("In") { json!([numbers.pick(&["online", "batch"])]) } else { json!([]) };
        spec["nodeSelector"] = json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": operator, "values": values}]}]});
    }
    spec
}

/// The rules of API section 4 in their plainest form.
fn is_open(spec: &Value, now: Timestamp) -> bool {
    let local = now.to_zoned(TimeZone::get("Europe/Rome").unwrap());
    let clock = format!("{:02}:{:02}", local.hour(), local.minute());
    let today = DAYS[usize::try_from(local.weekday().to_monday_zero_offset()).unwrap()];
    let windows = spec["timeWindows"].as_array().unwrap();
    windows.is_empty()
        || windows.iter().any(|window| {
            let (start, end) = (window["start"].as_str().unwrap(), window["end"].as_str().unwrap());
            let days = window["days"].as_array().unwrap();
            let inside = if end < start {
                *clock >= *start || *clock <= *end
            } else {
                *clock >= *start && *clock <= *end
            };
            inside && (days.is_empty() || days.iter().any(|day| day == today))
        })
}

fn amounts(spec: &Value, free: &BTreeMap<String, i64>) -> BTreeMap<String, i64> {
    let mut left = free.clone();
    for limit in spec["resourceLimits"].as_array().unwrap() {
        let resource = limit["resource"].as_str().unwrap();
        let Some(amount) = left.get_mut(resource) else { continue };
        if let Some(percent) = limit["percent"].as_i64() {
            *amount = (*amount).min(*amount * percent / 100).min(*amount);
        }
        if let Some(quantity) = limit["quantity"].as_str() {
            let base = match (quantity, resource) {
                ("1500m", "cpu") => 1500,
                ("1500m", _) => 1,
                ("25Gi", "cpu") => i64::MAX,
                ("25Gi", _) => 25 << 30,
                (units, "cpu") => units.parse::<i64>().unwrap() * 1000,
                (units, _) => units.parse::<i64>().unwrap(),
            };
            *amount = (*amount).min(base);
        }
    }
    left
}

fn is_selected(spec: &Value) -> bool {
    let requirement = &spec["nodeSelector"]["nodeSelectorTerms"][0]["matchExpressions"][0];
    let has = requirement["values"][0] == "online";
    match requirement["operator"].as_str() {
        None | Some("Exists") => true,
        Some("In") => has,
        Some("NotIn") => !has,
        Some(_) => false,
    }
}

#[test]
fn generated_legacy_policies_decide_as_the_original_documents() {
    let mut numbers = Numbers(1);
    for round in 0..200 {
        let spec = spec(&mut numbers);
        let host = host(vec![policy(spec.clone())]);
        let node = node("a");
        let free: BTreeMap<String, i64> =
            node.allocatable.keys().map(|r| (r.clone(), node.available(r))).collect();
        for instant in INSTANTS {
            let now = at(instant);
            let decision = host.one(now, node.clone());
            let context = format!("round {round} at {instant}: {spec}");
            assert_eq!(decision.governed_by.is_some(), is_selected(&spec), "{context}");
            if decision.governed_by.is_none() {
                continue;
            }
            assert_eq!(decision.verdict == Verdict::Offer, is_open(&spec, now), "{context}");
            assert_eq!(decision.amounts, amounts(&spec, &free), "{context}");
            let force = spec["forceReclaim"] == true;
            let grace = u32::try_from(spec["gracefulReclaimPeriodSeconds"].as_i64().unwrap()).unwrap();
            let reclaim = match (force, grace) {
                (false, _) => Reclaim::Keep,
                (true, 0) => Reclaim::Force,
                (true, n) => Reclaim::Graceful(n),
            };
            assert_eq!(decision.reclaim, reclaim, "{context}");
            if let Some(until) = decision.valid_until {
                let last = Timestamp::from_second(until - 1).unwrap();
                assert_eq!(is_open(&spec, last), is_open(&spec, now), "{context}: promised until {until}");
            }
        }
    }
}
