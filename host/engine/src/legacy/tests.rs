use rstest::rstest;

use super::*;

fn spec(json: Value) -> ResourceLeasingPolicySpec {
    serde_json::from_value(json).unwrap()
}

#[rstest]
#[case::nothing_set_means_no_entry(json!({}), json!([]))]
#[case::an_empty_selector_selects_everything(json!({"nodeSelector": {"nodeSelectorTerms": []}}), json!([]))]
#[case::a_selector_is_copied(
    json!({"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "p", "operator": "In", "values": ["a"]}]}]}}),
    json!([["legacy-node-selector", "node-labels", {
        "nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [{"key": "p", "operator": "In", "values": ["a"]}]}]}
    }]])
)]
#[case::windows_are_inclusive_and_of_the_same_day(
    json!({"timeWindows": [{"start": "18:00", "end": "08:00", "days": ["Monday", "FRIDAY"]}, {"start": "00:00", "end": "23:59"}]}),
    json!([["legacy-time-windows", "time-windows", {
        "windows": [{"start": "18:00", "end": "08:00", "days": ["Monday", "FRIDAY"]}, {"start": "00:00", "end": "23:59"}],
        "overnight": "sameDay", "endMinute": "inclusive", "reclaim": {"mode": "Keep"}
    }]])
)]
#[case::force_without_grace(
    json!({"timeWindows": [{"start": "01:00", "end": "02:00"}], "forceReclaim": true}),
    json!([["legacy-time-windows", "time-windows", {
        "windows": [{"start": "01:00", "end": "02:00"}],
        "overnight": "sameDay", "endMinute": "inclusive", "reclaim": {"mode": "Force"}
    }]])
)]
#[case::force_with_grace_is_announced_without_windows(
    json!({"forceReclaim": true, "gracefulReclaimPeriodSeconds": 600}),
    json!([["legacy-time-windows", "time-windows", {
        "windows": [], "overnight": "sameDay", "endMinute": "inclusive",
        "reclaim": {"mode": "Graceful", "graceSeconds": 600}
    }]])
)]
#[case::grace_without_force_is_ignored(
    json!({"timeWindows": [{"start": "01:00", "end": "02:00"}], "gracefulReclaimPeriodSeconds": 600}),
    json!([["legacy-time-windows", "time-windows", {
        "windows": [{"start": "01:00", "end": "02:00"}],
        "overnight": "sameDay", "endMinute": "inclusive", "reclaim": {"mode": "Keep"}
    }]])
)]
#[case::limits_keep_their_order_and_empty_ones_go(
    json!({"resourceLimits": [
        {"resource": "cpu", "quantity": 8, "percent": 50}, {"resource": "memory", "quantity": "25Gi"},
        {"resource": "pods"}, {"resource": "cpu", "percent": 0}
    ]}),
    json!([["legacy-resource-limits", "cpu-percentage", {"limits": [
        {"resource": "cpu", "percent": 50, "quantity": "8"}, {"resource": "memory", "quantity": "25Gi"},
        {"resource": "cpu", "percent": 0}
    ]}]])
)]
fn legacy_fields_become(#[case] given: Value, #[case] expected: Value) {
    let entries: Vec<Value> = from_legacy(&spec(given))
        .into_iter()
        .map(|entry| {
            let ModuleSource::Builtin { name: module, .. } = entry.module else {
                panic!("legacy entries are built in")
            };
            assert_eq!((entry.enforcement, entry.on_error), (Enforcement::Enforce, OnError::LastKnown));
            json!([entry.name, module, entry.settings])
        })
        .collect();
    assert_eq!(Value::Array(entries), expected);
}

#[test]
fn all_legacy_fields_come_in_pipeline_order() {
    let entries = from_legacy(&spec(json!({
        "resourceLimits": [{"resource": "cpu", "percent": 1}],
        "timeWindows": [{"start": "01:00", "end": "02:00"}],
        "nodeSelector": {"nodeSelectorTerms": [{}]}
    })));
    let names: Vec<&str> = entries.iter().map(|entry| entry.name.as_str()).collect();
    assert_eq!(names, [LEGACY_NODE_SELECTOR, LEGACY_TIME_WINDOWS, LEGACY_RESOURCE_LIMITS]);
}

#[test]
fn an_entry_gets_the_documented_defaults() {
    let entry: PolicyEntry =
        serde_json::from_value(json!({"name": "a", "module": {"configMap": {"name": "m"}}})).unwrap();
    let entry = from_entry(&entry);
    assert_eq!(entry.module, ModuleSource::Fetched { digest: None, must_pin: true });
    assert_eq!(entry.settings, json!({}));
    assert_eq!(
        (entry.enforcement, entry.on_error, entry.weight),
        (Enforcement::Enforce, OnError::LastKnown, 1)
    );
    assert_eq!((entry.timeout_ms, entry.memory_mib, entry.decisions), (100, 32, None));
}

#[test]
fn values_past_the_crd_read_as_defaults() {
    let entry: PolicyEntry = serde_json::from_value(json!({
        "name": "a", "module": {"builtin": "x", "file": {"path": "y"}}, "enforcement": "Maybe", "onError": "Panic",
        "weight": 1000, "limits": {"timeoutMilliseconds": -5, "memoryMiB": 4096}, "decisions": ["lease"]
    }))
    .unwrap();
    let entry = from_entry(&entry);
    assert_eq!(entry.module, ModuleSource::Missing);
    assert_eq!((entry.timeout_ms, entry.memory_mib, entry.weight), (100, 32, 1));
    assert_eq!(entry.decisions, Some(vec![Decision::Lease]));
}
