//! Properties over random pipelines, and built-in modules against their native twins, all through the sandbox.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use jiff::tz::TimeZone;
use kubeocean_engine::{
    EntryState, EntryVerdict, ModuleFetch, ModuleLimits, NodeDecision, NodeFacts, PolicySpec, Published,
    Reclaim, Verdict, builtin,
};
use kubeocean_hostile_policies::{digest, guest};
use kubeocean_policy_twins::{Clock, cpu_percentage, node_labels, time_windows};
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::support::*;

const RESOURCES: [&str; 4] = ["cpu", "memory", "nvidia.com/gpu", "missing"];

fn limit() -> impl Strategy<Value = Value> {
    let resource = prop::sample::select(&RESOURCES[..]);
    let of = prop::sample::select(vec!["remaining", "available", "allocatable"]);
    (resource, prop::option::of(0..=100_i64), prop::option::of(0..20_i64), prop::option::of(0..9_i64), of)
        .prop_map(|(resource, percent, quantity, reserve, of)| {
            let mut limit = json!({"resource": resource, "of": of});
            if let Some(percent) = percent {
                limit["percent"] = percent.into();
            }
            if let Some(quantity) = quantity {
                limit["quantity"] = format!("{quantity}").into();
            }
            if let Some(reserve) = reserve.or((percent.is_none() && quantity.is_none()).then_some(1)) {
                limit["reserve"] = format!("{reserve}").into();
            }
            limit
        })
}

fn settings() -> impl Strategy<Value = Value> {
    prop::collection::vec(limit(), 1..4).prop_map(|limits| json!({ "limits": limits }))
}

fn facts() -> impl Strategy<Value = NodeFacts> {
    (0..20_000_i64, 0..20_000_i64, 0..9_i64, 0..9_i64).prop_map(|(cpu, used_cpu, gpu, used_gpu)| {
        let mut node = node("n");
        node.allocatable.insert("cpu".into(), cpu);
        node.used.insert("cpu".into(), used_cpu);
        node.allocatable.insert("nvidia.com/gpu".into(), gpu);
        node.used.insert("nvidia.com/gpu".into(), used_gpu);
        node
    })
}

/// What a guest does at the poisoned node; it offers any other.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Offers(Reclaim),
    Withholds(Reclaim),
    Traps,
    SaysErr,
    AnswersNoRow,
}

const ACTS: [Act; 8] = [
    Act::Offers(Reclaim::Force),
    Act::Withholds(Reclaim::Keep),
    Act::Withholds(Reclaim::Graceful(60)),
    Act::Withholds(Reclaim::Graceful(600)),
    Act::Withholds(Reclaim::Force),
    Act::Traps,
    Act::SaysErr,
    Act::AnswersNoRow,
];

impl Act {
    fn code(self) -> String {
        let row = |verdict: u8, reclaim: Reclaim| {
            let (reclaim, seconds) = match reclaim {
                Reclaim::Keep => (0, 0),
                Reclaim::Graceful(seconds) => (1, seconds),
                Reclaim::Force => (2, 0),
            };
            [(0, verdict.into()), (4, reclaim), (8, seconds), (32, 1)]
                .map(|(at, value)| {
                    format!("(i32.store offset={at} (i32.load (i32.const 276)) (i32.const {value}))")
                })
                .concat()
        };
        match self {
            Self::Offers(reclaim) => row(0, reclaim),
            Self::Withholds(reclaim) => row(1, reclaim),
            Self::Traps => "(unreachable)".to_owned(),
            Self::SaysErr => "(i32.store8 (i32.const 272) (i32.const 1)) (i32.store (i32.const 276) (i32.const 1120)) (i32.store (i32.const 280) (i32.const 7))".to_owned(),
            Self::AnswersNoRow => "(i32.store (i32.const 280) (i32.const 0))".to_owned(),
        }
    }

    fn bytes(self) -> &'static Arc<[u8]> {
        static BYTES: LazyLock<[Arc<[u8]>; ACTS.len()]> =
            LazyLock::new(|| ACTS.map(|act| guest().with("POISONED", &act.code()).bytes()));
        &BYTES[ACTS.iter().position(|act| *act == self).unwrap()]
    }
}

/// An entry of a random pipeline.
#[derive(Clone, Debug)]
enum Entry {
    /// Settings of `cpu-percentage`.
    Share(Value),
    /// Settings of `time-windows`, and the reclaim they name.
    Windows(Value, Reclaim),
    /// A module and its `onError`.
    ByFact(Act, &'static str),
}

impl Entry {
    /// The reclaim of an entry that withholds at noon by a good answer.
    fn withholds(&self, poisoned: bool) -> Option<Reclaim> {
        let noon = Clock { weekday: 1, minute_of_day: 12 * 60 };
        match self {
            Self::Windows(settings, reclaim) => (!time_windows(settings, noon).offer).then_some(*reclaim),
            Self::ByFact(Act::Withholds(reclaim), _) => poisoned.then_some(*reclaim),
            Self::Share(_) | Self::ByFact(..) => None,
        }
    }

    /// The `onError` that stands for the entry.
    fn fails(&self, poisoned: bool) -> Option<&'static str> {
        match self {
            Self::ByFact(Act::Traps | Act::SaysErr | Act::AnswersNoRow, on_error) => {
                poisoned.then_some(*on_error)
            }
            Self::Share(_) | Self::Windows(..) | Self::ByFact(..) => None,
        }
    }
}

fn windows() -> impl Strategy<Value = Entry> {
    let window = prop::sample::select(vec![
        ("00:00", "12:00"),
        ("11:00", "12:01"),
        ("12:00", "13:00"),
        ("18:00", "08:00"),
        ("20:00", "12:30"),
    ]);
    let reclaim = prop::sample::select(vec![
        Reclaim::Keep,
        Reclaim::Graceful(30),
        Reclaim::Graceful(300),
        Reclaim::Force,
    ]);
    (prop::collection::vec(window, 0..3), reclaim).prop_map(|(windows, reclaim)| {
        let windows: Vec<Value> =
            windows.iter().map(|(start, end)| json!({"start": start, "end": end})).collect();
        let mode = match reclaim {
            Reclaim::Keep => json!({"mode": "Keep"}),
            Reclaim::Graceful(seconds) => json!({"mode": "Graceful", "graceSeconds": seconds}),
            Reclaim::Force => json!({"mode": "Force"}),
        };
        Entry::Windows(json!({"windows": windows, "reclaim": mode}), reclaim)
    })
}

fn entry() -> impl Strategy<Value = Entry> {
    let on_error = prop::sample::select(vec!["LastKnown", "Deny", "Ignore"]);
    prop_oneof![
        1 => settings().prop_map(Entry::Share),
        1 => windows(),
        2 => (prop::sample::select(&ACTS[..]), on_error).prop_map(|(act, on_error)| Entry::ByFact(act, on_error)),
    ]
}

/// A node with or without a vnode; at every second one guests act.
fn governed() -> impl Strategy<Value = NodeFacts> {
    let published = (0..20_000_i64, 0..9_i64, any::<bool>());
    (facts(), any::<bool>(), prop::option::of(published)).prop_map(|(mut node, acts, published)| {
        node.vnode_exists = published.is_some();
        node.published = published.map(|(cpu, gpu, offered)| {
            let amounts = [("cpu".to_owned(), cpu), ("nvidia.com/gpu".to_owned(), gpu)].into();
            Published { amounts, offered, valid_until: None }
        });
        if acts { poisoned(node) } else { node }
    })
}

/// The decisions are compared, not how long a busy machine takes for them.
fn pipeline(entries: &[Entry]) -> PolicySpec {
    let limits = json!({"timeoutMilliseconds": 1000});
    entries.iter().enumerate().fold(policy(json!({})), |policy, (index, entry)| {
        let name = format!("e{index}");
        let built_in = |module: &str, settings: &Value| {
            json!({"name": name, "module": {"builtin": module}, "settings": settings, "limits": limits})
        };
        match entry {
            Entry::Share(settings) => policy.raw(built_in("cpu-percentage", settings), None),
            Entry::Windows(settings, _) => policy.raw(built_in("time-windows", settings), None),
            Entry::ByFact(act, on_error) => {
                let bytes = act.bytes();
                let module = json!({"configMap": {"name": "m"}, "digest": digest(bytes)});
                let entry = json!({"name": name, "module": module, "onError": on_error, "limits": limits});
                policy.raw(entry, Some(ModuleFetch::Ready(Arc::clone(bytes).into())))
            }
        }
    })
}

fn decide(entries: &[Entry], node: &NodeFacts) -> NodeDecision {
    let host = host(vec![pipeline(entries)]);
    let decision = host.one(noon(), node.clone());
    for entry in host.host.metrics() {
        assert_eq!(entry.state, EntryState::Active, "{}", entry.entry);
    }
    decision
}

/// What does not depend on the order of entries.
fn outcome(decision: &NodeDecision) -> (Verdict, bool, Reclaim, bool, bool, &BTreeMap<String, i64>) {
    let NodeDecision { verdict, withheld, reclaim, announce, may_create, amounts, .. } = decision;
    (*verdict, *withheld, *reclaim, *announce, *may_create, amounts)
}

/// How much a verdict takes away.
fn severity(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Offer => 0,
        Verdict::Held => 1,
        Verdict::Withhold => 2,
    }
}

/// What evicts pods of a node that is withheld; one that is offered only announces it.
fn evicts(decision: &NodeDecision) -> Reclaim {
    if decision.withheld { decision.reclaim } else { Reclaim::Keep }
}

fn available(node: &NodeFacts) -> BTreeMap<String, i64> {
    node.allocatable.keys().map(|r| (r.clone(), node.available(r))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    /// Monotone: at most what each entry allows and what is free; one entry more never raises an amount, opens what was
    /// withheld or held, or makes reclaim milder; an error evicts nobody; the order of entries that read only `available`
    /// does not matter.
    #[test]
    fn pipelines_only_shrink(
        entries in prop::collection::vec(entry(), 1..5),
        node in governed(),
        left_out in any::<prop::sample::Index>(),
    ) {
        let poisoned = node.created_unix == 666;
        let all = decide(&entries, &node);
        let free = available(&node);
        for (resource, amount) in &all.amounts {
            prop_assert!((0..=free[resource]).contains(amount));
        }
        for entry in &entries {
            if let Entry::Share(settings) = entry {
                let caps = cpu_percentage(settings, &free, &node.allocatable);
                for (resource, amount) in &all.amounts {
                    prop_assert!(caps.get(resource).is_none_or(|cap| amount <= cap), "{resource}: {amount} {caps:?}");
                }
            }
            let withholds = entry.withholds(poisoned).is_some();
            let fails = entry.fails(poisoned).filter(|on_error| *on_error != "Ignore");
            prop_assert!(!withholds || (all.withheld && all.verdict == Verdict::Withhold), "{entry:?}: {all:?}");
            prop_assert!(fails.is_none() || (all.verdict != Verdict::Offer && !all.announce), "{entry:?}: {all:?}");
        }
        let strictest = entries.iter().filter_map(|entry| entry.withholds(poisoned)).reduce(Reclaim::stricter);
        prop_assert_eq!(evicts(&all), strictest.unwrap_or_default(), "{:?}", all);

        let mut fewer = entries.clone();
        fewer.remove(left_out.index(entries.len()));
        let before = decide(&fewer, &node);
        prop_assert!(all.amounts.iter().all(|(resource, amount)| *amount <= before.amounts[resource]));
        prop_assert!(all.withheld || !before.withheld, "{before:?} is opened: {all:?}");
        prop_assert!(severity(all.verdict) >= severity(before.verdict), "{before:?} is opened: {all:?}");
        prop_assert!(before.may_create || !all.may_create, "{before:?} gets a vnode: {all:?}");
        prop_assert!(before.announce || !all.announce, "{before:?} is announced: {all:?}");
        prop_assert_eq!(evicts(&all).stricter(evicts(&before)), evicts(&all), "milder than {:?}", before);
        if all.withheld == before.withheld {
            prop_assert_eq!(all.reclaim.stricter(before.reclaim), all.reclaim, "milder than {:?}", before);
        }

        let mut reversed = entries;
        reversed.reverse();
        let reversed = decide(&reversed, &node);
        prop_assert_eq!(outcome(&reversed), outcome(&all));
    }
}

/// The answers are compared, not how long a busy machine takes for them.
fn module(name: &str, settings: &Value) -> kubeocean_engine::Module {
    let bytes: Arc<[u8]> = builtin(name).unwrap().into();
    let patient = ModuleLimits { timeout_ms: 60_000, ..ModuleLimits::default() };
    engine().load_module(&bytes, settings, patient, &[]).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn cpu_percentage_is_its_twin(settings in settings(), nodes in prop::collection::vec(facts(), 1..20)) {
        let answers = module("cpu-percentage", &settings).lease(noon(), &TimeZone::UTC, &nodes).unwrap();
        for (node, answer) in nodes.iter().zip(answers) {
            prop_assert_eq!(answer.verdict, EntryVerdict::Offer);
            let twin = cpu_percentage(&settings, &available(node), &node.allocatable);
            for resource in node.allocatable.keys() {
                prop_assert_eq!(answer.caps.get(resource), twin.get(resource), "{}", resource);
            }
        }
    }

    #[test]
    fn time_windows_is_its_twin(
        windows in prop::collection::vec((0..1440_u16, 0..1440_u16, prop::collection::vec(0..7_usize, 0..3)), 0..4),
        same_day in any::<bool>(),
        inclusive in any::<bool>(),
        minutes in prop::collection::vec(0..(14 * 1440_i64), 8),
    ) {
        const DAYS: [&str; 7] = ["Monday", "TUESDAY", "wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
        let clock = |minute: u16| format!("{:02}:{:02}", minute / 60, minute % 60);
        let windows: Vec<Value> = windows
            .iter()
            .map(|(start, end, days)| {
                let days: Vec<&str> = days.iter().map(|day| DAYS[*day]).collect();
                json!({"start": clock(*start), "end": clock(*end), "days": days})
            })
            .collect();
        let settings = json!({
            "windows": windows,
            "overnight": if same_day { "sameDay" } else { "startDay" },
            "endMinute": if inclusive { "inclusive" } else { "exclusive" },
        });
        let module = module("time-windows", &settings);
        for minute in minutes {
            let now = at("2026-03-02T00:00:00Z") + jiff::SignedDuration::from_mins(minute);
            let answer = module.lease(now, &TimeZone::UTC, &[node("a")]).unwrap().remove(0);
            let weekday = u8::try_from(minute / 1440 % 7 + 1).unwrap();
            let twin = time_windows(&settings, Clock { weekday, minute_of_day: u16::try_from(minute % 1440).unwrap() });
            prop_assert_eq!(answer.verdict == EntryVerdict::Offer, twin.offer);
            let until = twin.changes_in_minutes.map(|m| now.as_second() + i64::from(m) * 60);
            prop_assert_eq!(answer.valid_until, until);
        }
    }

    #[test]
    fn node_labels_is_its_twin(
        terms in prop::collection::vec(prop::collection::vec((0..3_usize, 0..8_usize, prop::collection::vec(0..4_usize, 0..3)), 0..3), 0..3),
        labels in prop::collection::btree_map(0..3_usize, 0..4_usize, 0..3),
    ) {
        const KEYS: [&str; 3] = ["pool", "example.com/zone", "bad key!"];
        const OPERATORS: [&str; 8] = ["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt", "Near", ""];
        const VALUES: [&str; 4] = ["a", "5", "-3", ""];
        let terms: Vec<Value> = terms
            .iter()
            .map(|term| {
                let expressions: Vec<Value> = term
                    .iter()
                    .map(|(key, operator, values)| {
                        let values: Vec<&str> = values.iter().map(|value| VALUES[*value]).collect();
                        json!({"key": KEYS[*key], "operator": OPERATORS[*operator], "values": values})
                    })
                    .collect();
                json!({ "matchExpressions": expressions })
            })
            .collect();
        let selector = json!({ "nodeSelectorTerms": terms });
        let mut node = node("a");
        node.labels = labels.iter().map(|(key, value)| (KEYS[*key].to_owned(), VALUES[*value].to_owned())).collect();
        let answer = module("node-labels", &json!({ "nodeSelector": selector })).lease(noon(), &TimeZone::UTC, std::slice::from_ref(&node)).unwrap();
        prop_assert_eq!(answer[0].verdict == EntryVerdict::Offer, node_labels(&selector, &node.labels, "a"));
    }
}

/// Host and SDK read quantities and selectors with code of their own, because a module knows nothing of the host.
mod host_and_sdk {
    use kubeocean_api::quantity as host;
    use kubeocean_policy_sdk as sdk;
    use rstest::rstest;

    use super::*;

    fn compare(text: &str) -> Result<(), TestCaseError> {
        let (host, module) = (text.parse::<host::Quantity>(), text.parse::<sdk::Quantity>());
        prop_assert_eq!(host.is_ok(), module.is_ok(), "{}", text);
        if let (Ok(host), Ok(module)) = (host, module) {
            for (up, down) in [(true, "cpu"), (false, "cpu"), (true, "memory"), (false, "memory")] {
                let of_host = if up { host::Rounding::Up } else { host::Rounding::Down };
                let of_module = if up { sdk::Rounding::Up } else { sdk::Rounding::Down };
                let expected = if down == "cpu" { host.millis(of_host) } else { host.units(of_host) };
                prop_assert_eq!(module.base_units(down, of_module), expected, "{} of {}", text, down);
            }
        }
        Ok(())
    }

    #[rstest]
    fn every_suffix_of_the_schema(
        #[values(
            "n", "u", "m", "", "k", "M", "G", "T", "P", "E", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei", "e3", "E-3",
            "e+2"
        )]
        suffix: &str,
        #[values("1", "-1.5", "+2.", ".5", "0", "007", "9999999999999999999")] number: &str,
    ) {
        let text = format!("{number}{suffix}");
        assert!(text.parse::<host::Quantity>().is_ok(), "{text}");
        compare(&text).unwrap();
    }

    proptest! {
        #[test]
        fn quantities_mean_the_same(text in "[+-]?[0-9]{0,20}\\.?[0-9]{0,30}(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]{1,5}|x)?") {
            compare(&text)?;
        }

        #[test]
        fn a_selector_term_is_useless_to_both(
            key in prop::sample::select(vec!["pool", "a.b/c", "-x", "A/b", "", "metadata.name", "spec.x"]),
            operator in prop::sample::select(vec!["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt", "in", ""]),
            values in prop::collection::vec(prop::sample::select(vec!["a", "5", "-3", "", "a b"]), 0..3),
            field in any::<bool>(),
        ) {
            let part = if field { "matchFields" } else { "matchExpressions" };
            let requirement = json!({"key": key, "operator": operator, "values": values});
            let selector = json!({"nodeSelectorTerms": [{(part): [requirement]}]});
            let host: kubeocean_api::NodeSelector = serde_json::from_value(selector.clone()).unwrap();
            let module: sdk::NodeSelector = serde_json::from_value(selector.clone()).unwrap();
            let compiled = sdk::Selector::new(Some(&module), &mut sdk::Needs::new());
            prop_assert_eq!(host.mistakes().is_empty(), compiled.warnings().is_empty(), "{}", selector);
        }
    }
}
