//! What policies made of built-in modules decide: composition, selection, invalid policies, memo, audit.

use std::sync::Arc;

use jiff::Timestamp;
use kubeocean_engine::{
    EntryState, EntryVerdict, FetchedModule, MAX_EVALUATORS, ModuleClaims, ModuleFetch, NodeFacts, Reclaim,
    Recorded, Verdict, builtin,
};
use rstest::rstest;
use serde_json::json;

use crate::support::*;
use kubeocean_hostile_policies::digest;

fn half() -> serde_json::Value {
    json!({"resourceLimits": [{"resource": "cpu", "percent": 50, "quantity": 8}, {"resource": "memory", "quantity": "25Gi"}]})
}

#[test]
fn the_worked_example_of_the_specification() {
    let host = host(vec![policy(half()).builtin(
        "team",
        "cpu-percentage",
        json!({"limits": [{"resource": "cpu", "quantity": "6"}]}),
    )]);
    let decision = host.one(noon(), node("a"));
    assert_eq!(decision.governed_by.as_deref(), Some("p"));
    assert_eq!((decision.verdict, decision.withheld), (Verdict::Offer, false));
    assert_eq!(cpu(&decision), 5900);
    assert_eq!(decision.amounts["memory"], 25 << 30);
    assert_eq!(decision.amounts["nvidia.com/gpu"], 6);
    assert_eq!(decision.limited_by["cpu"], "legacy-resource-limits");
    assert!(!decision.limited_by.contains_key("nvidia.com/gpu"));
    assert!(decision.announce && decision.may_create && !decision.overcommitted);
    assert_eq!(decision.valid_until, None);
}

/// BU-506 and acceptance check 3 of the lease specification: 4 cores, 8Gi, 110 pods and 8 GPUs, of which others have 1 core
/// and 2Gi.
#[rstest]
#[case::no_limits(json!([]), [3000, 6 << 30, 110, 8])]
#[case::half_the_cpu(json!([{"resource": "cpu", "percent": 50}]), [1500, 6 << 30, 110, 8])]
#[case::three_quarters_of_memory(json!([{"resource": "memory", "percent": 75}]), [3000, 4608 << 20, 110, 8])]
#[case::quantity_and_percent(json!([{"resource": "cpu", "quantity": 1, "percent": 80}]), [1000, 6 << 30, 110, 8])]
#[case::percent_and_quantity(json!([{"resource": "memory", "quantity": "5Gi", "percent": 50}]), [3000, 3 << 30, 110, 8])]
#[case::two_resources(
    json!([{"resource": "cpu", "quantity": "3", "percent": 50}, {"resource": "memory", "quantity": "2Gi", "percent": 75}]),
    [1500, 2 << 30, 110, 8]
)]
#[case::integers(json!([{"resource": "pods", "percent": 33}, {"resource": "nvidia.com/gpu", "percent": 30}]), [3000, 6 << 30, 36, 2])]
#[case::zero(json!([{"resource": "cpu", "percent": 0}, {"resource": "memory", "quantity": "0"}]), [0, 0, 110, 8])]
#[case::twice(json!([{"resource": "cpu", "percent": 50}, {"resource": "cpu", "percent": 50}]), [750, 6 << 30, 110, 8])]
#[case::unknown_resource(json!([{"resource": "example.com/dongle", "quantity": 3}]), [3000, 6 << 30, 110, 8])]
fn amounts_of_the_lease_specification(#[case] limits: serde_json::Value, #[case] expected: [i64; 4]) {
    let amounts = |amounts: [i64; 4]| {
        ["cpu", "memory", "pods", "nvidia.com/gpu"].into_iter().map(str::to_owned).zip(amounts).collect()
    };
    let node = NodeFacts {
        allocatable: amounts([4000, 8 << 30, 110, 8]),
        used: amounts([1000, 2 << 30, 0, 0]),
        leased: amounts([2000, 1 << 30, 4, 1]),
        ..node("a")
    };
    let decision = host(vec![policy(json!({"resourceLimits": limits}))]).one(noon(), node);
    assert_eq!(decision.amounts, amounts(expected));
}

/// Every row of the worked example of PO-601: entries only shrink, withholding goes on to the end, and the strictest
/// reclaim of those that withhold counts.
#[test]
fn all_rows_of_the_worked_example() {
    let withhold = |seconds: i64| json!({"windows": [{"start": "01:00", "end": "02:00"}], "reclaim": {"mode": "Graceful", "graceSeconds": seconds}});
    let limits =
        |resource: &str, quantity: &str| json!({"limits": [{"resource": resource, "quantity": quantity}]});
    let rows: [(&str, &str, serde_json::Value, [i64; 3]); 5] = [
        (
            "share",
            "cpu-percentage",
            json!({"limits": [{"resource": "cpu", "percent": 50, "quantity": 8}, {"resource": "memory", "quantity": "25Gi"}]}),
            [5900, 25, 6],
        ),
        ("night-gpu", "cpu-percentage", limits("nvidia.com/gpu", "0"), [5900, 25, 0]),
        ("team-a", "cpu-percentage", limits("cpu", "6"), [5900, 25, 0]),
        ("closed", "time-windows", withhold(600), [5900, 25, 0]),
        ("maintenance", "time-windows", withhold(60), [5900, 25, 0]),
    ];
    for count in 1..=rows.len() {
        let with = |policy, (name, module, settings, _): &(&str, &str, serde_json::Value, [i64; 3])| {
            PolicyExt::builtin(policy, name, module, settings.clone())
        };
        let host = host(vec![rows.iter().take(count).fold(policy(json!({})), with)]);
        let decision = host.one(noon(), node("a"));
        let amounts = [cpu(&decision), decision.amounts["memory"] >> 30, decision.amounts["nvidia.com/gpu"]];
        assert_eq!(amounts, rows[count - 1].3, "after {}", rows[count - 1].0);
        let (withheld, reclaim) = match count {
            4 => (true, Reclaim::Graceful(600)),
            5 => (true, Reclaim::Graceful(60)),
            _ => (false, Reclaim::Keep),
        };
        assert_eq!((decision.withheld, decision.reclaim), (withheld, reclaim), "after {}", rows[count - 1].0);
        assert_eq!(decision.limited_by["cpu"], "share");
        assert_eq!(
            decision.limited_by.get("nvidia.com/gpu").map(String::as_str),
            (count > 1).then_some("night-gpu")
        );
        if withheld {
            assert_eq!(decision.reason.unwrap().entry, "closed", "the first that withholds");
        }
    }
}

#[test]
fn a_policy_without_anything_offers_all_that_is_free() {
    let decision = host(vec![policy(json!({}))]).one(noon(), node("a"));
    assert_eq!((cpu(&decision), decision.verdict), (11_800, Verdict::Offer));
}

#[test]
fn a_lower_cap_overcommits_and_evicts_nothing() {
    let mut node = node("a");
    node.leased.insert("cpu".into(), 6000);
    let decision = host(vec![policy(half())]).one(noon(), node);
    assert!(decision.overcommitted);
    assert_eq!(decision.verdict, Verdict::Offer);
}

#[rstest]
#[case::monday_morning_of_the_same_day("2026-03-02T08:00:59Z", true, "2026-03-02T08:01:00Z")]
#[case::monday_after("2026-03-02T08:01:00Z", false, "2026-03-02T18:00:00Z")]
#[case::friday_night_into_the_weekend("2026-03-06T18:00:00Z", true, "2026-03-09T08:01:00Z")]
#[case::sunday("2026-03-08T12:00:00Z", true, "2026-03-09T08:01:00Z")]
fn the_published_example_has_no_gap_at_the_weekend(
    #[case] now: &str,
    #[case] offered: bool,
    #[case] until: &str,
) {
    let host = host(vec![policy(json!({
        "timeWindows": [
            {"start": "18:00", "end": "08:00", "days": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]},
            {"start": "00:00", "end": "23:59", "days": ["Saturday", "Sunday"]}
        ],
        "forceReclaim": true, "gracefulReclaimPeriodSeconds": 600
    }))]);
    let decision = host.one(at(now), node("a"));
    assert_eq!(decision.withheld, !offered);
    assert_eq!(decision.valid_until, Some(at(until).as_second()));
    assert_eq!(decision.reclaim, Reclaim::Graceful(600), "announced when offered, in force when not");
    assert!(decision.announce);
    assert_eq!(cpu(&decision), 11_800, "withholding does not change amounts");
    if !offered {
        assert_eq!(decision.reason.unwrap().code, "OutsideTimeWindow");
    }
    let status = &host.host.status(at(now))[0];
    assert_eq!((status.active, status.next_change), (offered, Some(at(until).as_second())));
}

/// The status asks about no node, so what is counted, recorded and remembered is about decisions alone.
#[test]
fn a_look_at_the_status_leaves_no_trace() {
    let host = host(vec![policy(json!({"timeWindows": [{"start": "09:00", "end": "17:00"}]}))]);
    let seen = || (host.host.metrics(), host.host.decisions(None));
    let active_without_a_trace = |now: Timestamp| {
        let before = seen();
        let status = host.host.status(now);
        assert_eq!(seen(), before, "at {now}");
        status[0].active
    };
    assert!(active_without_a_trace(noon()), "nothing was ever decided");
    host.one(noon(), node("a"));
    assert!(active_without_a_trace(noon()), "the node's answer is at hand");
    assert!(active_without_a_trace(seconds(601)), "it would be asked anew for a decision");
    let evening = at("2026-03-02T20:00:00Z");
    assert!(!active_without_a_trace(evening), "it holds no more");
    let calls = || host.numbers("p/legacy-time-windows").counters.calls;
    let before = calls();
    assert!(host.one(evening, node("a")).withheld);
    assert_eq!(calls(), before + 1, "the status remembered nothing for the node");
    assert_eq!(host.host.records().last().unwrap().nodes, ["a"]);
}

#[test]
fn windows_are_in_the_zone_of_the_policy() {
    let spec = json!({"timeZone": "Asia/Shanghai", "timeWindows": [{"start": "20:00", "end": "20:30"}]});
    let host = host(vec![policy(spec)]);
    assert!(!host.one(noon(), node("a")).withheld);
    assert!(host.one(seconds(31 * 60), node("a")).withheld);
    assert_eq!(host.host.status(noon())[0].zone, "Asia/Shanghai");
}

fn selector(value: &str) -> serde_json::Value {
    json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "In", "values": [value]}]}]})
}

#[test]
fn the_oldest_policy_that_applies_governs_and_names_who_is_shadowed() {
    let host = host(vec![
        policy(json!({})).named("young", 3),
        policy(json!({"nodeSelector": selector("batch")})).named("old-batch", 1),
        policy(json!({"nodeSelector": selector("online"), "resourceLimits": [{"resource": "cpu", "percent": 0}]})).named("middle", 2),
        policy(json!({"nodeSelector": selector("batch")})).named("young-batch", 4),
    ]);
    let online = host.one(noon(), node("a"));
    assert_eq!(online.governed_by.as_deref(), Some("middle"));
    assert_eq!(online.shadowed, ["young"]);
    assert_eq!(cpu(&online), 0, "zero leases nothing");
    let status = host.host.status(noon());
    let names: Vec<&str> = status.iter().map(|policy| policy.name.as_str()).collect();
    assert_eq!(names, ["old-batch", "middle", "young", "young-batch"]);
    assert_eq!(status[1].zero_limits, ["cpu"]);
    let mut batch = node("b");
    batch.labels.insert("pool".into(), "batch".into());
    let batch = host.one(noon(), batch);
    assert_eq!(batch.governed_by.as_deref(), Some("old-batch"));
    assert_eq!(batch.shadowed, ["young", "young-batch"]);
}

#[test]
fn equal_age_is_decided_by_name_and_no_policy_means_withdraw() {
    let both = host(vec![policy(json!({})).named("b", 1), policy(json!({})).named("a", 1)]);
    assert_eq!(both.one(noon(), node("n")).governed_by.as_deref(), Some("a"));
    let none = host(vec![policy(json!({"nodeSelector": selector("batch")}))]).one(noon(), node("n"));
    assert_eq!((none.governed_by, none.selected), (None, true));
}

#[test]
fn the_binding_selector_comes_first() {
    let host = host(vec![policy(json!({}))]);
    host.host.set_binding_selector(Some(&serde_json::from_value(selector("batch")).unwrap()));
    let decision = host.one(noon(), node("a"));
    assert_eq!((decision.governed_by, decision.selected), (None, false));
    host.host.set_binding_selector(None);
    assert!(host.one(noon(), node("a")).selected);
}

#[test]
fn an_invalid_policy_governs_holds_and_evicts_nothing() {
    let invalid = json!({
        "timeWindows": [{"start": "25:00", "end": "08:00"}], "forceReclaim": true,
        "resourceLimits": [{"resource": "cpu", "percent": 10}]
    });
    let host = host(vec![
        policy(invalid).builtin("zero", "cpu-percentage", json!({"cpuPercent": 0})),
        policy(json!({})).named("young", 2),
    ]);
    let mut held = published("a", 9000, true);
    held.used.insert("memory".into(), 64 << 30);
    let decision = host.one(noon(), held);
    assert_eq!(decision.governed_by.as_deref(), Some("p"));
    assert_eq!((decision.verdict, decision.withheld), (Verdict::Held, true));
    assert_eq!(
        (cpu(&decision), decision.amounts["memory"]),
        (9000, 0),
        "as published, lowered where less is free"
    );
    assert_eq!((decision.reclaim, decision.announce, decision.may_create), (Reclaim::Keep, false, false));
    assert_eq!(decision.reason.unwrap().code, "PolicyInvalid");
    let status = &host.host.status(noon())[0];
    assert!(
        status
            .valid
            .as_ref()
            .unwrap_err()
            .starts_with("invalid start time format in time window 0: \"25:00\"")
    );
    assert!(!status.active);
}

#[test]
fn an_invalid_policy_covers_only_what_its_selector_selects() {
    let invalid =
        json!({"nodeSelector": selector("batch"), "resourceLimits": [{"resource": "cpu", "percent": 101}]});
    let host = host(vec![policy(invalid), policy(json!({})).named("young", 2)]);
    assert_eq!(host.one(noon(), node("a")).governed_by.as_deref(), Some("young"));
}

#[test]
fn a_builtin_and_the_same_bytes_from_a_config_map_decide_alike() {
    let settings =
        json!({"limits": [{"resource": "cpu", "percent": 30}, {"resource": "memory", "reserve": "8Gi"}]});
    let bytes: Arc<[u8]> = builtin("cpu-percentage").unwrap().into();
    let embedded = host(vec![policy(json!({})).builtin("x", "cpu-percentage", settings.clone())]);
    let fetched = host(vec![policy(json!({})).module("x", &bytes, json!({"settings": settings}))]);
    for used in [0, 1, 999, 16_000, 99_999] {
        let mut node = node("a");
        node.used.insert("cpu".into(), used);
        assert_eq!(embedded.one(noon(), node.clone()), fetched.one(noon(), node));
    }
    let status = fetched.entry("x");
    assert_eq!((status.state, status.digest.as_deref()), (EntryState::Active, Some(&*digest(&bytes))));
    assert_eq!(status.module.as_deref(), Some("cpu-percentage"));
    assert_eq!(embedded.entry("x").digest, status.digest);
}

#[test]
fn an_unchanged_node_costs_no_call_and_an_undeclared_label_neither() {
    let host = host(vec![policy(
        json!({"nodeSelector": selector("online"), "resourceLimits": [{"resource": "cpu", "percent": 50}]}),
    )]);
    let nodes: Vec<Arc<NodeFacts>> = (0..1000)
        .map(|i| {
            let mut node = node(&format!("n{i}"));
            node.used.insert("cpu".into(), i);
            Arc::new(node)
        })
        .collect();
    let calls = |label: &str| host.numbers(label).counters;
    let first = host.host.decide(noon(), &nodes);
    let (limits, select) = (calls("p/legacy-resource-limits"), calls("p/legacy-node-selector"));
    assert_eq!(limits.offered, 1000, "every row is asked once");
    assert_eq!(limits.calls, 4, "in units of 256");
    assert!(select.offered <= 4, "equal rows are asked once per unit");
    assert_eq!(host.host.decide(seconds(599), &nodes), first);
    assert_eq!(calls("p/legacy-resource-limits").calls, 4);
    let mut labelled = (*nodes[0]).clone();
    labelled.labels.insert("colour".into(), "green".into());
    host.one(seconds(599), labelled.clone());
    assert_eq!(calls("p/legacy-resource-limits").calls, 4);
    assert_eq!(calls("p/legacy-node-selector").calls, select.calls);
    labelled.labels.insert("pool".into(), "batch".into());
    assert_eq!(host.one(seconds(599), labelled).governed_by, None);
    assert_eq!(calls("p/legacy-node-selector").calls, select.calls + 1);
    host.host.decide(seconds(600), &nodes);
    assert_eq!(calls("p/legacy-resource-limits").offered, 2000, "one refresh after ten minutes");
    assert_eq!(calls("p/legacy-resource-limits").impure, 0);
}

#[test]
fn audit_reports_and_changes_nothing() {
    let audit = json!({"name": "zero", "module": {"builtin": "cpu-percentage"}, "settings": {"cpuPercent": 0}, "enforcement": "Audit"});
    let host = host(vec![policy(half()).raw(audit, None)]);
    let plain = self::host_of_half().one(noon(), node("a"));
    assert_eq!(host.one(noon(), node("a")), plain);
    host.one(noon(), node("b"));
    let (affected, sample) = host.entry("zero").audit.unwrap();
    assert_eq!(affected, 2);
    assert!(sample[0].starts_with("a: cpu 5900 -> 0 ("), "{}", sample[0]);
    let counted = || host.numbers("p/zero").counters.audit_differences;
    assert_eq!(counted(), 2);
    host.one(seconds(1), node("a"));
    assert_eq!(counted(), 2, "decided again with the same difference: no news");
    let more = |cpu: i64| NodeFacts { used: [("cpu".to_owned(), cpu)].into(), ..node("a") };
    host.one(seconds(2), more(6000));
    assert_eq!(counted(), 3, "cpu 5000 -> 0 is another difference");
    host.one(seconds(3), more(16_000));
    assert_eq!(host.entry("zero").audit.unwrap().0, 1, "nothing is left that it could take");
    host.one(seconds(4), more(6000));
    assert_eq!(counted(), 4, "the difference is back");
    host.host.forget_node("a");
    assert_eq!(host.entry("zero").audit.unwrap().0, 1);
}

/// BU-403: what an Audit entry would change counts only where its policy governs.
#[test]
fn audit_forgets_nodes_its_policy_does_not_govern() {
    let audit = json!({"name": "zero", "module": {"builtin": "cpu-percentage"}, "settings": {"cpuPercent": 0}, "enforcement": "Audit"});
    let audited = || policy(json!({"nodeSelector": selector("online")})).raw(audit.clone(), None);
    let host = host(vec![audited()]);
    let affected = || host.entry("zero").audit.unwrap().0;
    host.one(noon(), node("a"));
    host.one(noon(), node("b"));
    assert_eq!(affected(), 2);
    let mut moved = node("a");
    moved.labels.insert("pool".into(), "batch".into());
    host.one(noon(), moved);
    assert_eq!(affected(), 1, "the selector no longer covers a");
    host.set(vec![audited(), policy(json!({})).named("older", 0)]);
    host.one(noon(), node("b"));
    assert_eq!(affected(), 0, "an older policy governs b");
}

/// PO-544 and the rule about shadowed policies are about code, not about where it comes from.
#[test]
fn a_copy_of_a_builtin_has_its_role() {
    let copy = |name: &str| -> Arc<[u8]> { builtin(name).unwrap().into() };
    let shut = json!({"settings": {"windows": [{"start": "01:00", "end": "02:00"}]}});
    let of_batch = json!({"settings": {"nodeSelector": selector("batch")}});
    let host = host(vec![
        policy(json!({})).module("windows", &copy("time-windows"), shut).named("old", 1),
        policy(json!({})).module("select", &copy("node-labels"), of_batch).named("young", 2),
    ]);
    let status = host.host.status(noon());
    assert!(!status[0].active && status[0].next_change.is_some());
    assert_eq!(host.one(noon(), node("a")).shadowed, [""; 0], "young does not cover the node");
    let mut batch = node("b");
    batch.labels.insert("pool".into(), "batch".into());
    assert_eq!(host.one(noon(), batch).shadowed, ["young"]);
}

/// PO-542: legacy fields have no entry in the status, so what a module refuses of them is told in `Valid`.
#[test]
fn a_legacy_field_a_module_refuses_makes_the_policy_invalid() {
    let long: Vec<_> = (0..300).map(|i| format!("{i:063}")).collect();
    let terms: Vec<_> = (0..10)
        .map(|_| json!({"matchExpressions": [{"key": "pool", "operator": "NotIn", "values": long}]}))
        .collect();
    let host = host(vec![policy(json!({"nodeSelector": {"nodeSelectorTerms": terms}}))]);
    let status = &host.host.status(noon())[0];
    let error = status.valid.as_ref().unwrap_err();
    assert!(error.starts_with("nodeSelector: SettingsInvalid: settings: "), "{error}");
}

fn host_of_half() -> Host {
    host(vec![policy(half())])
}

/// Labels and annotations of a node are written by others, as long as they like and as often.
#[test]
fn records_are_bounded_in_bytes() {
    let pools = json!({"key": "pool", "operator": "In", "values": ["a"]});
    let spec = json!({"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [pools]}]}});
    let host = host(vec![policy(spec)]);
    for number in 0..50 {
        let mut node = node("a");
        node.labels.insert("pool".to_owned(), format!("{number}{}", "x".repeat(256 << 10)));
        host.one(noon(), node);
    }
    let told = host.host.decisions(None).len();
    assert!((10..=16).contains(&told), "{told} answers about 256 KiB each are kept");
}

#[test]
fn explain_tells_every_step_and_records_can_be_read() {
    let host = host(vec![
        policy(json!({"nodeSelector": selector("batch")})).named("other", 0),
        policy(half()).builtin(
            "team",
            "cpu-percentage",
            json!({"limits": [{"resource": "cpu", "quantity": "6"}]}),
        ),
    ]);
    let explanation = host.host.explain(noon(), &Arc::new(node("a")));
    assert_eq!(explanation.decision, host.one(noon(), node("a")));
    let steps: Vec<(&str, &str, Option<EntryVerdict>)> = explanation
        .policies
        .iter()
        .flat_map(|(policy, steps)| steps.iter().map(|s| (policy.as_str(), s.entry.as_str(), s.verdict)))
        .collect();
    assert_eq!(
        steps,
        [
            ("other", "legacy-node-selector", Some(EntryVerdict::NotApplicable)),
            ("p", "legacy-resource-limits", Some(EntryVerdict::Offer)),
            ("p", "team", Some(EntryVerdict::Offer)),
        ]
    );
    assert_eq!(explanation.policies[1].1[0].proposed["cpu"], 5900);
    let records = host.host.records();
    let record = records.iter().find(|record| record.entry == "p/team").unwrap();
    assert_eq!(record.facts["available/cpu"], json!(11_800));
    assert_eq!(record.caps["cpu"], 6000);
    // The same row of another node is not asked again: the record is of both.
    assert_eq!(record.nodes, ["a"]);
    host.one(noon(), node("b"));
    host.one(noon(), node("b"));
    let of_b = host.host.decisions(Some("b"));
    assert!(!of_b.is_empty() && host.host.decisions(Some("nobody")).is_empty());
    for decision in of_b {
        assert!(matches!(&decision, Recorded::Lease(record) if record.nodes == ["b"]), "{decision:?}");
    }
    assert_eq!(host.host.records().iter().find(|record| record.entry == "p/team").unwrap().nodes, ["a", "b"]);
}

#[rstest]
#[case::unknown_builtin(json!({"name": "x", "module": {"builtin": "nope"}}), EntryState::Invalid, "ModuleNotFound")]
#[case::no_source(json!({"name": "x", "module": {}}), EntryState::Invalid, "ModuleNotFound")]
#[case::another_version_of_a_builtin(
    json!({"name": "x", "module": {"builtin": "cpu-percentage", "digest": format!("sha256:{}", "0".repeat(64))}}),
    EntryState::Invalid,
    "DigestMismatch: the module is sha256:"
)]
#[case::settings_against_the_schema(
    json!({"name": "x", "module": {"builtin": "cpu-percentage"}, "settings": {"cpuPercent": 150}}),
    EntryState::Invalid,
    "SettingsInvalid: settings.cpuPercent: 150 is greater than the maximum of 100"
)]
#[case::unknown_setting(
    json!({"name": "x", "module": {"builtin": "cpu-percentage"}, "settings": {"colour": 1}}),
    EntryState::Invalid,
    "SettingsInvalid"
)]
#[case::settings_that_are_no_object(
    json!({"name": "x", "module": {"builtin": "cpu-percentage"}, "settings": [1]}),
    EntryState::Invalid,
    "SettingsInvalid"
)]
#[case::a_decision_it_does_not_make(
    json!({"name": "x", "module": {"builtin": "cpu-percentage"}, "decisions": ["place"]}),
    EntryState::Invalid,
    "WrongWorld"
)]
fn a_wrong_entry_is_named(#[case] entry: serde_json::Value, #[case] state: EntryState, #[case] error: &str) {
    let host = host(vec![policy(json!({})).raw(entry, None)]);
    assert!(host.error("x").starts_with(error), "{}", host.error("x"));
    assert_eq!(host.state("x"), state);
    assert_eq!(host.entry("x").failure.unwrap().to_string(), host.error("x"));
    assert!(host.host.ready());
    let decision = host.one(noon(), published("a", 4000, true));
    assert!(decision.reason.is_none_or(|reason| reason.code == "ModuleFailed"), "nothing to wait for");
}

#[test]
fn modules_from_a_config_map_must_be_pinned() {
    let bytes: Arc<[u8]> = builtin("cpu-percentage").unwrap().into();
    let entry = json!({"name": "x", "module": {"configMap": {"name": "m"}}});
    let unpinned =
        host(vec![policy(json!({})).raw(entry, Some(ModuleFetch::Ready(Arc::clone(&bytes).into())))]);
    assert!(unpinned.error("x").starts_with("DigestMismatch: module.digest is required"));
    assert!(!unpinned.host.status(noon())[0].pinned);
    let entry = json!({"name": "x", "module": {"configMap": {"name": "m"}, "digest": format!("sha256:{}", "0".repeat(64))}});
    let other = host(vec![policy(json!({})).raw(entry, Some(ModuleFetch::Ready(bytes.into())))]);
    assert!(other.error("x").starts_with("DigestMismatch: the module is sha256:"));
    assert_eq!(other.state("x"), EntryState::Invalid);
}

#[test]
fn a_signed_module_needs_no_digest_but_must_be_what_its_artifact_claims() {
    let bytes: Arc<[u8]> = builtin("cpu-percentage").unwrap().into();
    let entry = |name: &str| json!({"name": name, "module": {"oci": {"image": "r.example/p:1"}}});
    let signed = |name: Option<&str>, version: Option<&str>| {
        let claims = ModuleClaims { name: name.map(str::to_owned), version: version.map(str::to_owned) };
        Some(ModuleFetch::Ready(FetchedModule { bytes: Arc::clone(&bytes), signed: true, claims }))
    };
    let host = host(vec![
        policy(json!({}))
            .raw(entry("good"), signed(Some("cpu-percentage"), None))
            .raw(entry("silent"), signed(None, None))
            .raw(entry("other"), signed(Some("night-gpu"), None))
            .raw(entry("older"), signed(Some("cpu-percentage"), Some("0.0.1"))),
    ]);
    assert_eq!((host.state("good"), host.state("silent")), (EntryState::Active, EntryState::Active));
    assert!(!host.host.status(noon())[0].pinned, "a tag may move to another signed module");
    let claimed = "DescribeFailed: the artifact claims the";
    assert!(
        host.error("other").starts_with(&format!("{claimed} name \"night-gpu\"")),
        "{}",
        host.error("other")
    );
    assert!(
        host.error("older").starts_with(&format!("{claimed} version \"0.0.1\"")),
        "{}",
        host.error("older")
    );
}

#[test]
fn more_entries_than_allowed_do_not_run() {
    let mut many = policy(json!({}));
    for i in 0..17 {
        many = many.builtin(&format!("e{i}"), "cpu-percentage", json!({"cpuPercent": 100 - i}));
    }
    let host = host(vec![many]);
    assert_eq!(host.state("e15"), EntryState::Active);
    assert!(host.error("e16").starts_with("TooManyPolicies"));
}

/// Policy spec section 8: 64 evaluators in all policies, the oldest policies first.
#[test]
fn the_sixty_fifth_entry_of_all_policies_does_not_run_until_another_goes() {
    let of = |policy_number: i64, entries: std::ops::Range<i64>| {
        let empty = policy(json!({})).named(&format!("p{policy_number}"), policy_number);
        entries.fold(empty, |policy, i| {
            policy.builtin(&format!("e{i}"), "cpu-percentage", json!({"cpuPercent": 100 - i}))
        })
    };
    // The third one has an entry more than a policy may have; it takes no place from others.
    let policies = || vec![of(5, 65..66), of(1, 0..16), of(2, 16..32), of(3, 32..49), of(4, 49..65)];
    let host = host(policies());
    let states = |wanted: EntryState| -> Vec<String> {
        let policies = host.host.status(noon()).into_iter();
        policies.flat_map(|policy| policy.entries).filter(|e| e.state == wanted).map(|e| e.name).collect()
    };
    assert_eq!(MAX_EVALUATORS, 64);
    assert_eq!(states(EntryState::Active).len(), 64);
    assert_eq!(states(EntryState::Invalid), ["e48", "e65"]);
    for name in ["e48", "e65"] {
        let told = "TooManyPolicies: at most 16 entries in a policy and 64 in all policies";
        assert_eq!(host.error(name), told);
    }
    assert_eq!(host.one(noon(), node("a")).governed_by.as_deref(), Some("p1"));
    let mut fewer = policies();
    fewer[2] = of(2, 16..31);
    host.set(fewer);
    assert_eq!(states(EntryState::Invalid), ["e48"], "there is room for the youngest now");
}
