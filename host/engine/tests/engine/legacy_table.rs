//! 200 generated legacy policies against the original's rules (acceptance check 2), written here a second time.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use kubeocean_engine::{NodeDecision, NodeFacts, Reclaim, Verdict};
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

/// Nodes by their labels: a number, a smaller one, a word, a number too large to be one, and none at all.
const NODES: [(&str, &[(&str, &str)]); 5] = [
    ("a", &[("pool", "online"), ("cores", "32")]),
    ("b", &[("pool", "batch"), ("cores", "8")]),
    ("c", &[("pool", "online"), ("cores", "many")]),
    ("d", &[("cores", "99999999999999999999")]),
    ("e", &[]),
];
/// Operators on labels with their values.
const WELL_FORMED: [(&str, &[&str]); 10] = [
    ("In", &["online"]),
    ("In", &["batch", "32"]),
    ("NotIn", &["online"]),
    ("NotIn", &["8", "many"]),
    ("Exists", &[]),
    ("DoesNotExist", &[]),
    ("Gt", &["8"]),
    ("Gt", &["31"]),
    ("Lt", &["8"]),
    ("Lt", &["31"]),
];
/// The same, of terms that match nothing.
const MALFORMED: [(&str, &[&str]); 7] = [
    ("In", &[]),
    ("NotIn", &[]),
    ("Exists", &["online"]),
    ("DoesNotExist", &["online"]),
    ("Gt", &["few"]),
    ("Lt", &["-1"]),
    ("Lt", &["31", "32"]),
];
/// Fields with operators and values. Those that are no name with a list, or without one value, match nothing.
const FIELDS: [(&str, &str, &[&str]); 6] = [
    ("metadata.name", "In", &["a"]),
    ("metadata.name", "In", &["b", "e"]),
    ("metadata.name", "NotIn", &["a"]),
    ("metadata.name", "NotIn", &["a", "b"]),
    ("metadata.name", "Exists", &[]),
    ("spec.unschedulable", "In", &["a"]),
];

fn nodes() -> Vec<Arc<NodeFacts>> {
    let labelled = |(name, labels): (&str, &[(&str, &str)])| {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Arc::new(NodeFacts { labels, ..node(name) })
    };
    NODES.map(labelled).into()
}

fn on_label(numbers: &mut Numbers) -> Value {
    let key = numbers.pick(&["pool", "cores"]);
    let malformed = numbers.next(5) == 0;
    let (operator, values) = if malformed { numbers.pick(&MALFORMED) } else { numbers.pick(&WELL_FORMED) };
    json!({"key": key, "operator": operator, "values": values})
}

fn on_field(numbers: &mut Numbers) -> Value {
    let (key, operator, values) = numbers.pick(&FIELDS);
    json!({"key": key, "operator": operator, "values": values})
}

fn term(numbers: &mut Numbers) -> Value {
    let labels: Vec<Value> = (0..numbers.next(3)).map(|_| on_label(numbers)).collect();
    let fields: Vec<Value> = (0..numbers.next(4) / 3).map(|_| on_field(numbers)).collect();
    json!({"matchExpressions": labels, "matchFields": fields})
}

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
    if numbers.next(3) != 0 {
        let terms: Vec<Value> = (0..numbers.next(3)).map(|_| term(numbers)).collect();
        spec["nodeSelector"] = json!({"nodeSelectorTerms": terms});
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

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Whether a requirement holds of what a node has; one that is malformed never does.
fn holds(requirement: &Value, has: Option<&str>) -> bool {
    let values: Vec<&str> =
        list(&requirement["values"]).iter().map(|value| value.as_str().unwrap()).collect();
    let is_named = has.is_some_and(|has| values.contains(&has));
    // A sign is not in the syntax of labels.
    let number = |text: &str| text.parse::<i64>().ok().filter(|number| *number >= 0);
    let bound = if values.len() == 1 { number(values[0]) } else { None };
    let compared = has.and_then(number).zip(bound).map(|(has, bound)| has.cmp(&bound));
    match requirement["operator"].as_str().unwrap() {
        "In" => is_named,
        "NotIn" => !is_named && !values.is_empty(),
        "Exists" => has.is_some() && values.is_empty(),
        "DoesNotExist" => has.is_none() && values.is_empty(),
        "Gt" => compared == Some(Ordering::Greater),
        _ => compared == Some(Ordering::Less),
    }
}

/// API section 3 in its plainest form.
fn is_selected(spec: &Value, node: &NodeFacts) -> bool {
    let is_met = |term: &Value| {
        let labels = list(&term["matchExpressions"]).iter().map(|one| {
            let key = one["key"].as_str().unwrap();
            holds(one, node.labels.get(key).map(String::as_str))
        });
        let fields = list(&term["matchFields"]).iter().map(|one| {
            let is_one = list(&one["values"]).len() == 1;
            let fits = one["operator"] == "In" || (one["operator"] == "NotIn" && is_one);
            one["key"] == "metadata.name" && fits && holds(one, Some(&node.node_name))
        });
        let all: Vec<bool> = labels.chain(fields).collect();
        !all.is_empty() && all.iter().all(|one| *one)
    };
    let terms = list(&spec["nodeSelector"]["nodeSelectorTerms"]);
    terms.is_empty() || terms.iter().any(is_met)
}

fn check(spec: &Value, now: Timestamp, node: &NodeFacts, decision: &NodeDecision) {
    let context = format!("node {} at {now}: {spec}", node.node_name);
    assert_eq!(decision.governed_by.is_some(), is_selected(spec, node), "{context}");
    if decision.governed_by.is_none() {
        return;
    }
    let free = node.allocatable.keys().map(|r| (r.clone(), node.available(r))).collect();
    assert_eq!(decision.verdict == Verdict::Offer, is_open(spec, now), "{context}");
    assert_eq!(decision.amounts, amounts(spec, &free), "{context}");
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
        assert_eq!(is_open(spec, last), is_open(spec, now), "{context}: promised until {until}");
    }
}

#[test]
fn generated_legacy_policies_decide_as_the_original_documents() {
    let (mut numbers, nodes) = (Numbers(1), nodes());
    for _ in 0..200 {
        let spec = spec(&mut numbers);
        let host = host(vec![policy(spec.clone())]);
        for now in INSTANTS.map(at) {
            for (node, decision) in nodes.iter().zip(host.host.decide(now, &nodes)) {
                check(&spec, now, node, &decision);
            }
        }
    }
}
