//! Planners of the policy concern, in tables.

use std::sync::Arc;

use jiff::Timestamp;
use kubeocean_api::{
    ResourceLeasingPolicyStatus,
    keys::{annotation, finalizer as keys},
};
use kubeocean_engine::{
    Enforcement, EntryCounters, EntryMetrics, EntryState, EntryStatus, LoadCode, LoadError, ModuleFetch,
    PolicyStatus,
};
use rstest::rstest;
use serde_json::{Value, json};

use super::{
    apply::speaks_of,
    finalizer::{FinalizerChange, hold, release},
    modules::{Fetched, ModuleKey, ModulePlaces},
    news::{News, news},
    status::plan_status,
    store::PolicyStore,
    view::PolicyView,
};
use crate::nodes::{index::Identity, plan::LabelOwner, store::PolicyUsage};
use kubeocean_runtime::sink::Sink;

mod conditions;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

fn policy(spec: &Value) -> PolicyView {
    let metadata = json!({"name": "p", "uid": "u", "resourceVersion": "1", "generation": 2});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
}

/// What the engine says of the policy [`policy`].
pub(super) fn engine(active: bool) -> PolicyStatus {
    PolicyStatus {
        name: "p".into(),
        uid: "u".into(),
        generation: 2,
        valid: Ok(()),
        zero_limits: Vec::new(),
        active,
        next_change: None,
        zone: "UTC".into(),
        entries: Vec::new(),
        pinned: true,
        stale: false,
    }
}

/// An entry of which nothing is known but its state.
pub(super) fn bare_entry(name: &str, state: EntryState) -> EntryStatus {
    EntryStatus {
        name: name.into(),
        state,
        module: None,
        version: None,
        digest: None,
        desired_digest: None,
        decisions: Vec::new(),
        enforcement: Enforcement::Enforce,
        failure: None,
        last_error: None,
        audit: None,
        counters: EntryCounters::default(),
    }
}

fn governed(nodes: usize) -> PolicyUsage {
    PolicyUsage { governed: nodes, built: nodes, ..PolicyUsage::default() }
}

/// Condition as `type=status/reason message`.
fn conditions(policy: &PolicyView) -> Vec<String> {
    let line = |c: &kubeocean_api::Condition| format!("{}={}/{} {}", c.type_, c.status, c.reason, c.message);
    policy.status.conditions.iter().map(line).collect()
}

fn written(policy: &PolicyView, engine: &PolicyStatus, usage: &PolicyUsage, now: Timestamp) -> PolicyView {
    let change = plan_status(policy, engine, usage, now).unwrap();
    PolicyView { status: change.status, ..policy.clone() }
}

#[rstest]
#[case::open(engine(true), governed(3), "Active", &[
    "Valid=True/ValidationPassed Policy validation passed successfully",
    "Active=True/ActiveTimeWindow Policy is within active time window", "Applied=True/NodesLeased 3 nodes",
])]
#[case::closed(engine(false), governed(1), "Inactive", &[
    "Valid=True/ValidationPassed Policy validation passed successfully",
    "Active=False/InactiveTimeWindow Policy is outside of active time windows", "Applied=True/NodesLeased 1 node",
])]
#[case::invalid(PolicyStatus { valid: Err("bad".into()), ..engine(false) }, governed(0), "Failed", &[
    "Valid=False/ValidationError Policy validation failed: bad",
    "Active=False/ValidationError Policy cannot be activated due to validation errors",
    "Applied=False/NoMatchingNodes no node is covered",
])]
#[case::shadowed(engine(true), PolicyUsage { shadowed: 2, shadowed_by: Some("older".into()), ..governed(0) }, "Active", &[
    "Valid=True/ValidationPassed Policy validation passed successfully",
    "Active=True/ActiveTimeWindow Policy is within active time window",
    "Applied=False/ShadowedByOlderPolicy 2 nodes governed by the older policy older",
])]
#[case::zero(PolicyStatus { zero_limits: vec!["cpu".into()], ..engine(true) }, governed(1), "Active", &[
    "Valid=True/ValidationPassed Policy validation passed successfully; a limit of 0 leases nothing of cpu",
    "Active=True/ActiveTimeWindow Policy is within active time window", "Applied=True/NodesLeased 1 node",
])]
fn status_of_a_policy(
    #[case] engine: PolicyStatus,
    #[case] usage: PolicyUsage,
    #[case] phase: &str,
    #[case] expected: &[&str],
) {
    let policy = written(&policy(&json!({"cluster": "dc-east"})), &engine, &usage, at(0));
    assert_eq!(policy.status.phase, phase);
    assert_eq!(conditions(&policy), expected);
    assert!(policy.status.conditions.iter().all(|c| c.observed_generation == Some(2)));
    assert_eq!(plan_status(&policy, &engine, &usage, at(60)), None, "a converged status is not written");
}

#[test]
fn numbers_wait_and_states_do_not() {
    let open = written(&policy(&json!({"cluster": "c"})), &engine(true), &governed(1), at(0));
    assert!(!plan_status(&open, &engine(true), &governed(2), at(5)).unwrap().urgent);
    assert!(plan_status(&open, &engine(false), &governed(1), at(5)).unwrap().urgent);
    assert!(plan_status(&open, &engine(true), &governed(0), at(5)).unwrap().urgent);
}

#[test]
fn counters_that_begin_anew_after_a_restart_are_no_news() {
    let counted = |offered| PolicyStatus {
        entries: vec![EntryStatus {
            counters: EntryCounters { offered, ..EntryCounters::default() },
            ..bare_entry("e", EntryState::Active)
        }],
        ..engine(true)
    };
    let stored = written(&policy(&json!({"cluster": "c"})), &counted(100), &governed(1), at(0));
    assert_eq!(plan_status(&stored, &counted(3), &governed(1), at(60)), None);
    assert_eq!(plan_status(&stored, &counted(199), &governed(1), at(60)), None);
    assert!(plan_status(&stored, &counted(200), &governed(1), at(60)).is_some());
}

#[test]
fn the_phase_keeps_its_time_and_a_second_error_shows() {
    let broken = |text: &str| PolicyStatus { valid: Err(text.into()), ..engine(false) };
    let first = written(&policy(&json!({"cluster": "c"})), &broken("a"), &governed(0), at(0));
    let second = written(&first, &broken("b"), &governed(0), at(60));
    assert_eq!(second.status.last_applied_time, first.status.last_applied_time);
    assert_eq!(conditions(&second)[0], "Valid=False/ValidationError Policy validation failed: b");
    let fixed = written(&second, &engine(true), &governed(0), at(90));
    assert_ne!(fixed.status.last_applied_time, first.status.last_applied_time);
}

#[test]
fn an_unreadable_policy_is_an_invalid_one() {
    let policy =
        policy(&json!({"cluster": "dc-east", "resourceLimits": [{"resource": "cpu", "percent": "many"}]}));
    assert_eq!(policy.spec.spec.cluster, "dc-east");
    assert!(kubeocean_api::validate::policy(&policy.spec.spec).is_err());
    let invalid = PolicyStatus { valid: Err("stand-in".into()), ..engine(false) };
    let shown = written(&policy, &invalid, &governed(0), at(0));
    assert!(conditions(&shown)[0].contains("percent") || conditions(&shown)[0].contains("i32"), "{shown:?}");
}

#[test]
fn details_of_limits() {
    let policy = policy(&json!({"cluster": "c", "resourceLimits": [
        {"resource": "cpu", "quantity": 4, "percent": 80}, {"resource": "memory", "percent": 90}, {"resource": "pods", "quantity": "10"},
    ]}));
    assert_eq!(policy.details(), "p(cpu=4/80%,memory=/90%,pods=10/)");
}

fn held(uid: Option<&str>) -> PolicyView {
    let mut policy = policy(&json!({"cluster": "c"}));
    policy.metadata.finalizers = Some(vec!["other".into(), keys::POLICY.into()]);
    policy.metadata.annotations = uid.map(|uid| {
        let binding = (annotation::CLUSTER_BINDING.into(), "dc-east".into());
        [(annotation::COMPUTING_CLUSTER_UID.into(), uid.into()), binding].into()
    });
    policy
}

fn us() -> Identity {
    Identity { binding: "dc-east".into(), cluster_id: "cls-a".into(), computing_uid: "me".into() }
}

fn held_for(binding: &str) -> PolicyView {
    let mut policy = held(Some("me"));
    policy.metadata.annotations.as_mut().unwrap().insert(annotation::CLUSTER_BINDING.into(), binding.into());
    policy
}

#[rstest]
#[case::new(policy(&json!({})), true)]
#[case::held_by_us(held(Some("me")), false)]
#[case::of_the_original(held(None), true)]
#[case::of_another_cluster(held(Some("them")), false)]
#[case::of_another_binding_before(held_for("dc-west"), true)]
fn when_a_policy_is_held(#[case] policy: PolicyView, #[case] writes: bool) {
    let change = hold(&policy, &us());
    assert_eq!(change.is_some(), writes);
    if let Some(FinalizerChange::Hold(patch)) = change {
        let list = patch["metadata"]["finalizers"].as_array().unwrap();
        assert_eq!(list.iter().filter(|name| **name == keys::POLICY).count(), 1);
        assert_eq!(patch["metadata"]["annotations"][annotation::COMPUTING_CLUSTER_UID], "me");
        assert_eq!(patch["metadata"]["annotations"][annotation::CLUSTER_BINDING], "dc-east");
    }
}

#[rstest]
#[case::unused(held(Some("me")), true, 0, true)]
#[case::used(held(Some("me")), true, 1, false)]
#[case::not_of_this_binding(held(Some("me")), false, 0, false)]
#[case::of_another_cluster(held(Some("them")), true, 0, false)]
#[case::of_the_original(held(None), true, 0, true)]
#[case::without_finalizer(policy(&json!({})), true, 0, false)]
fn when_a_policy_is_released(
    #[case] policy: PolicyView,
    #[case] ours: bool,
    #[case] built: usize,
    #[case] writes: bool,
) {
    let change = release(&policy, "me", ours, built);
    assert_eq!(change.is_some(), writes);
    if let Some(FinalizerChange::Release(patch)) = change {
        assert_eq!(patch["metadata"]["finalizers"], json!(["other"]));
        assert_eq!(patch["metadata"]["annotations"][annotation::COMPUTING_CLUSTER_UID], Value::Null);
        assert_eq!(patch["metadata"]["annotations"][annotation::CLUSTER_BINDING], Value::Null);
    }
}

#[test]
fn zero_limits_are_news_once_per_generation() {
    let zero = PolicyStatus { zero_limits: vec!["cpu".into()], ..engine(true) };
    let nothing = ResourceLeasingPolicyStatus::default();
    assert_eq!(news(None, &zero, &nothing).len(), 1);
    assert_eq!(news(Some(&zero), &zero, &nothing), []);
    assert_eq!(news(Some(&zero), &PolicyStatus { generation: 3, ..zero.clone() }, &nothing).len(), 1);
    let stored = written(&policy(&json!({"cluster": "c"})), &zero, &governed(1), at(0)).status;
    assert_eq!(news(None, &zero, &stored), [], "an earlier process told it");
    assert_eq!(news(None, &PolicyStatus { generation: 3, ..zero.clone() }, &stored).len(), 1);
}

fn entry(state: EntryState) -> EntryStatus {
    EntryStatus {
        module: Some("cpu-percentage".into()),
        version: Some("0.2.0".into()),
        digest: Some("sha256:1".into()),
        ..bare_entry("half", state)
    }
}

fn failing(state: EntryState, code: LoadCode, text: &str) -> EntryStatus {
    let error = LoadError::new(code, text);
    let last_error = Some((error.to_string(), at(0)));
    EntryStatus { failure: Some(error), last_error, ..entry(state) }
}

fn with(entry: EntryStatus) -> PolicyStatus {
    PolicyStatus { entries: vec![entry], ..engine(true) }
}

fn impure(times: u64) -> EntryStatus {
    let counters = EntryCounters { impure: times, ..EntryCounters::default() };
    let last_error = Some(("NotPure: an answer changed before its valid-until".into(), at(0)));
    EntryStatus { counters, last_error, ..entry(EntryState::Active) }
}

fn quarantined() -> EntryStatus {
    EntryStatus { last_error: Some(("Trap: on purpose".into(), at(0))), ..entry(EntryState::Quarantined) }
}

#[rstest]
#[case::a_load(Some(entry(EntryState::Loading)), entry(EntryState::Active), &["Normal PolicyLoaded half: cpu-percentage 0.2.0 decides"])]
#[case::the_first_look(None, entry(EntryState::Active), &["Normal PolicyLoaded half: cpu-percentage 0.2.0 decides"])]
#[case::nothing_new(Some(entry(EntryState::Active)), entry(EntryState::Active), &[])]
#[case::another_module(Some(EntryStatus { digest: Some("sha256:0".into()), ..entry(EntryState::Active) }), entry(EntryState::Active), &["Normal PolicyLoaded half: cpu-percentage 0.2.0 decides"])]
#[case::quarantine(Some(entry(EntryState::Active)), quarantined(), &["Warning PolicyQuarantined half: Trap: on purpose"])]
#[case::still_in_quarantine(Some(quarantined()), quarantined(), &[])]
#[case::recovery(Some(quarantined()), entry(EntryState::Active), &["Normal PolicyRecovered half: cpu-percentage answers again"])]
#[case::a_failed_load(Some(entry(EntryState::Loading)), failing(EntryState::Invalid, LoadCode::CompileFailed, "x"), &["Warning PolicyLoadFailed half: CompileFailed: x"])]
#[case::a_failed_fetch(None, failing(EntryState::Loading, LoadCode::FetchFailed, "x"), &["Warning PolicyLoadFailed half: FetchFailed: x"])]
#[case::the_same_failure(Some(failing(EntryState::Loading, LoadCode::FetchFailed, "x")), failing(EntryState::Invalid, LoadCode::FetchFailed, "x"), &[])]
#[case::a_failed_update(Some(entry(EntryState::Active)), failing(EntryState::Degraded, LoadCode::DigestMismatch, "x"), &["Warning DigestMismatch half: DigestMismatch: x"])]
#[case::bad_settings(None, failing(EntryState::Invalid, LoadCode::SettingsInvalid, "x"), &["Warning SettingsInvalid half: SettingsInvalid: x"])]
#[case::a_signature(None, failing(EntryState::Invalid, LoadCode::SignatureRejected, "x"), &["Warning SignatureRejected half: SignatureRejected: x"])]
#[case::impure_at_once(None, failing(EntryState::Invalid, LoadCode::NotPure, "x"), &["Warning PolicyNotPure half: NotPure: x"])]
#[case::impure_later(Some(entry(EntryState::Active)), impure(1), &["Warning PolicyNotPure half: NotPure: an answer changed before its valid-until"])]
#[case::told_already(Some(impure(1)), impure(1), &[])]
#[case::impure_again(Some(impure(1)), impure(2), &["Warning PolicyNotPure half: NotPure: an answer changed before its valid-until"])]
fn events_about_an_entry(
    #[case] before: Option<EntryStatus>,
    #[case] now: EntryStatus,
    #[case] expected: &[&str],
) {
    let told = news(before.map(with).as_ref(), &with(now), &ResourceLeasingPolicyStatus::default());
    let line = |news: &News| {
        let severity = if news.warning { "Warning" } else { "Normal" };
        format!("{severity} {} {}", news.reason, news.message)
    };
    assert_eq!(told.iter().map(line).collect::<Vec<_>>(), expected);
}

#[test]
fn a_module_the_object_names_already_is_no_news_after_a_restart() {
    let running = with(entry(EntryState::Active));
    let stored = written(&policy(&json!({"cluster": "c"})), &running, &governed(1), at(0)).status;
    assert_eq!(news(None, &running, &stored), []);
    let other = with(EntryStatus { digest: Some("sha256:2".into()), ..entry(EntryState::Active) });
    assert_eq!(news(None, &other, &stored).len(), 1);
}

#[rstest]
#[case::active(entry(EntryState::Active), governed(2), &[
    "Valid=True/ValidationPassed Policy validation passed successfully", "Applied=True/NodesLeased 2 nodes",
    "PoliciesReady=True/AllActive ",
])]
#[case::loading(entry(EntryState::Loading), PolicyUsage { failed: 2, ..governed(2) }, &[
    "Valid=True/ValidationPassed Policy validation passed successfully",
    "Applied=False/ModuleFailed half does not decide for 2 nodes", "PoliciesReady=False/Loading half (Loading)",
])]
#[case::a_fetch_fails(failing(EntryState::Loading, LoadCode::FetchFailed, "x"), governed(2), &[
    "Valid=True/ValidationPassed Policy validation passed successfully", "Applied=True/NodesLeased 2 nodes",
    "PoliciesReady=False/EntryFailed half (Loading)",
])]
#[case::bad_settings(failing(EntryState::Degraded, LoadCode::SettingsInvalid, "settings.cpuPercent: no"), governed(2), &[
    "Valid=False/SettingsInvalid Policy validation failed: half: SettingsInvalid: settings.cpuPercent: no",
    "Applied=True/NodesLeased 2 nodes", "PoliciesReady=False/EntryFailed half (Degraded)",
])]
#[case::an_error_text_like_a_failure(EntryStatus { last_error: Some(("SettingsInvalid: of long ago".into(), at(0))), ..entry(EntryState::Quarantined) }, governed(2), &[
    "Valid=True/ValidationPassed Policy validation passed successfully", "Applied=True/NodesLeased 2 nodes",
    "PoliciesReady=False/EntryFailed half (Quarantined)",
])]
#[case::one_vnode_is_built(entry(EntryState::Active), PolicyUsage { built: 1, ..governed(2) }, &[
    "Valid=True/ValidationPassed Policy validation passed successfully", "Applied=True/NodesLeased 1 node",
    "PoliciesReady=True/AllActive ",
])]
#[case::no_vnode_is_built(entry(EntryState::Active), PolicyUsage { built: 0, ..governed(2) }, &[
    "Valid=True/ValidationPassed Policy validation passed successfully",
    "Applied=False/NoMatchingNodes 2 nodes covered, none is leased", "PoliciesReady=True/AllActive ",
])]
fn conditions_follow_the_entries(
    #[case] entry: EntryStatus,
    #[case] usage: PolicyUsage,
    #[case] expected: &[&str],
) {
    let policy = written(&policy(&json!({"cluster": "c"})), &with(entry), &usage, at(0));
    let mut lines = conditions(&policy);
    lines.retain(|line| !line.starts_with("Active=") && !line.starts_with("Pinned="));
    assert_eq!(lines, expected);
}

#[test]
fn an_invalid_policy_blames_no_module() {
    let invalid = PolicyStatus { valid: Err("bad".into()), ..with(entry(EntryState::Loading)) };
    let usage = PolicyUsage { failed: 2, ..governed(2) };
    let policy = written(&policy(&json!({"cluster": "c"})), &invalid, &usage, at(0));
    assert!(conditions(&policy).contains(&"Applied=True/NodesLeased 2 nodes".to_owned()), "{policy:?}");
}

#[test]
fn a_selector_term_that_matches_nothing_is_told_in_valid() {
    let spec = json!({"cluster": "c", "nodeSelector": {"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "pool", "operator": "in", "values": ["a"]}]},
    ]}});
    let policy = written(&policy(&spec), &engine(true), &governed(0), at(0));
    assert_eq!(
        conditions(&policy)[0],
        "Valid=True/ValidationPassed Policy validation passed successfully; matches nothing: nodeSelectorTerms[0] has the unknown operator \"in\""
    );
}

/// API-204: `observedGeneration` never names a spec the engine has not seen.
#[rstest]
#[case::the_same(2, "u", true)]
#[case::an_edit_the_engine_has_not_seen(1, "u", false)]
#[case::deleted_and_made_again(2, "other", false)]
fn the_engine_speaks_of_one_spec_of_one_object(
    #[case] generation: i64,
    #[case] uid: &str,
    #[case] same: bool,
) {
    let said = PolicyStatus { generation, uid: uid.into(), ..engine(true) };
    assert_eq!(speaks_of(&said, &policy(&json!({"cluster": "c"}))), same);
}

fn store() -> std::sync::Arc<PolicyStore> {
    PolicyStore::new(us(), ModulePlaces::new("lease-area"))
}

fn named(name: &str, cluster: &str, holder: Option<&str>) -> PolicyView {
    let mut policy = held(holder);
    policy.metadata.name = Some(name.into());
    policy.spec.spec.cluster = cluster.into();
    policy
}

/// Whoever writes policies must not fill the Syncer's memory with modules that never run.
#[test]
fn modules_beyond_what_the_engine_takes_are_not_fetched() {
    let store = store();
    for (number, age) in [(0, 1), (1, 5), (2, 4), (3, 3), (4, 2)] {
        let entries: Vec<Value> = (0..16)
            .map(|entry| json!({"name": format!("e{entry}"), "module": {"configMap": {"name": format!("m{number}-{entry}")}}}))
            .collect();
        let mut metadata =
            json!({"name": format!("p{number}"), "uid": format!("u{number}"), "resourceVersion": "1"});
        metadata["creationTimestamp"] = at(-age).to_string().into();
        let spec = json!({"cluster": us().binding, "policies": entries});
        store.apply(serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap());
    }
    let wanted = store.wanted();
    assert_eq!(wanted.len(), 64);
    let of_youngest =
        |key: &ModuleKey| matches!(key, ModuleKey::ConfigMap(key) if key.name.starts_with("m0-"));
    assert!(!wanted.keys().any(of_youngest), "the youngest policy goes without");
    store.delete(store.get("p1").map(|policy| PolicyView::clone(&policy)).unwrap());
    assert!(store.wanted().keys().any(of_youngest), "there is room again");
}

#[test]
fn the_same_bytes_under_two_names_are_kept_once() {
    let store = store();
    let entry = |name: &str| json!({"name": name, "module": {"configMap": {"name": name}}});
    let metadata = json!({"name": "p", "uid": "u", "resourceVersion": "1"});
    let spec = json!({"cluster": us().binding, "policies": [entry("a"), entry("b")]});
    store.apply(serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap());
    for key in store.wanted().into_keys() {
        store.fetched(&key, ModuleFetch::Ready(Arc::<[u8]>::from(*b"module").into()));
    }
    let modules = store.engine_list().remove(0).modules;
    let bytes = |name: &str| match &modules[name] {
        ModuleFetch::Ready(module) => Arc::clone(&module.bytes),
        other => panic!("{name}: {other:?}"),
    };
    assert!(Arc::ptr_eq(&bytes("a"), &bytes("b")));
}

/// A policy with the entry `half`, whose module is a tag.
fn with_tag(version: &str) -> PolicyView {
    let metadata = json!({"name": "p", "uid": "u", "resourceVersion": version, "generation": 2});
    let entry = json!({"name": "half", "module": {"oci": {"image": "r.io/p:1"}}});
    let spec = json!({"cluster": us().binding, "policies": [entry]});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
}

fn ready() -> ModuleFetch {
    ModuleFetch::Ready(Arc::<[u8]>::from(*b"module").into())
}

#[test]
fn a_module_that_comes_too_late_is_not_remembered() {
    let store = store();
    store.apply(with_tag("1"));
    let key = store.wanted().into_keys().next().unwrap();
    store.delete(with_tag("2"));
    store.fetched(&key, ready());
    store.apply(with_tag("3"));
    assert!(matches!(store.engine_list()[0].modules["half"], ModuleFetch::Pending));
}

/// An expired pull secret or a deleted tag would show with the next restart only.
#[test]
fn a_tag_that_cannot_be_looked_up_shows_while_its_module_runs() {
    let store = store();
    store.apply(with_tag("1"));
    let key = store.wanted().into_keys().next().unwrap();
    let fails = |code, text: &str| {
        store.fetched(&key, ModuleFetch::Failed { code, message: text.to_owned() });
    };
    let shown = |entry: EntryStatus| {
        let state = entry.state;
        store.set_engine_status(vec![with(entry)]);
        let entry = store.engine_status("p").unwrap().entries.remove(0);
        assert_eq!(entry.state, state);
        entry.last_error.map(|(text, _)| text)
    };
    let counted = || {
        let (entry, counters) = ("p/half".to_owned(), EntryCounters::default());
        let mut entries = [EntryMetrics { entry, state: EntryState::Active, counters }];
        store.count_failed_look_ups(&mut entries);
        entries[0].counters.load_failures.clone().into_iter().collect::<Vec<_>>()
    };
    let active = || entry(EntryState::Active);
    store.fetched(&key, ready());
    assert_eq!((shown(active()), counted()), (None, Vec::new()));
    fails(LoadCode::FetchForbidden, "401");
    fails(LoadCode::FetchForbidden, "401");
    assert!(matches!(store.engine_list()[0].modules["half"], ModuleFetch::Ready(_)));
    let expired = Some("FetchForbidden: 401".to_owned());
    assert_eq!((shown(active()), counted()), (expired, vec![(LoadCode::FetchForbidden, 1)]));
    // The same of a module from the disk.
    let failure = LoadError::new(LoadCode::ModuleNotFound, "no tag");
    store.fetched(&key, Fetched { module: ready(), stale: Some(failure) });
    let deleted = Some("ModuleNotFound: no tag".to_owned());
    assert_eq!(shown(active()), deleted);
    store.fetched(&key, ready());
    assert_eq!(shown(active()), deleted, "a last error stays, as others do");
    fails(LoadCode::ModuleNotFound, "no tag");
    assert_eq!(counted(), [(LoadCode::ModuleNotFound, 2), (LoadCode::FetchForbidden, 1)]);
    let own = failing(EntryState::Degraded, LoadCode::DescribeFailed, "x");
    assert_eq!(shown(own), Some("DescribeFailed: x".to_owned()), "what does not run says why");
}

/// A node's withdrawal, or an eviction, that was decided before must not be carried out any more.
#[test]
fn another_module_or_selector_outdates_what_was_decided() {
    let store = store();
    let metadata = json!({"name": "p", "uid": "u", "resourceVersion": "1"});
    let entry = json!({"name": "a", "module": {"configMap": {"name": "a"}}});
    let spec = json!({"cluster": us().binding, "policies": [entry]});
    store.apply(serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap());
    let key = store.wanted().into_keys().next().unwrap();
    let fetch =
        |bytes: &'static [u8]| store.fetched(&key, ModuleFetch::Ready(Arc::<[u8]>::from(bytes).into()));
    let selector = |role: &str| -> kubeocean_api::NodeSelector {
        let role = json!({"key": "role", "operator": "In", "values": [role]});
        serde_json::from_value(json!({"nodeSelectorTerms": [{"matchExpressions": [role]}]})).unwrap()
    };
    let select = |role: Option<&str>| store.set_binding_selector(role.map(selector).as_ref());
    let changes: [(&str, &dyn Fn(), bool); 8] = [
        ("a module", &|| fetch(b"module"), true),
        ("the same module", &|| fetch(b"module"), false),
        ("another module", &|| fetch(b"mended"), true),
        ("no selector, as before", &|| select(None), false),
        ("a selector", &|| select(Some("idle")), true),
        ("the same selector", &|| select(Some("idle")), false),
        ("another selector", &|| select(Some("worker")), true),
        ("no selector any more", &|| select(None), true),
    ];
    for (what, change, news) in changes {
        let before = store.changes();
        change();
        assert_eq!(store.changes() != before, news, "{what}");
    }
}

#[test]
fn the_engine_gets_our_policies_only() {
    let store = store();
    store.reset(vec![
        named("ours", "dc-east", None),
        named("theirs", "dc-west", None),
        named("taken", "dc-east", Some("them")),
    ]);
    let list: Vec<String> = store.engine_list().into_iter().map(|policy| policy.name).collect();
    assert_eq!(list, ["ours"]);
    assert_eq!(store.label_owner("ours"), LabelOwner::OursOrNobody);
    assert_eq!(store.label_owner("theirs"), LabelOwner::Other);
    let mut going = named("theirs", "dc-west", None);
    going.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2027-01-15T08:00:00Z")).unwrap());
    store.apply(going);
    assert_eq!(store.label_owner("theirs"), LabelOwner::Other, "also while it is being deleted");
    assert_eq!(store.label_owner("gone"), LabelOwner::OursOrNobody);
    assert_eq!(store.resolution().reason, "PolicyTaken");
    store.delete(named("taken", "dc-east", Some("them")));
    assert!(store.resolution().resolved);
}

#[test]
fn a_late_answer_does_not_bring_a_policy_back() {
    let store = store();
    let policy = named("p", "dc-east", Some("me"));
    store.apply(policy.clone());
    store.delete(policy.clone());
    let mut answer = policy;
    answer.metadata.finalizers = None;
    answer.metadata.deletion_timestamp = Some(serde_json::from_value(json!("2027-01-15T08:00:00Z")).unwrap());
    store.saw(answer);
    assert_eq!(store.resolution().reason, "NoPolicy");
    let at = |version: &str| {
        let mut policy = named("p", "dc-east", Some("me"));
        policy.metadata.uid = Some("u".to_owned());
        policy.metadata.resource_version = Some(version.to_owned());
        policy
    };
    store.apply(at("5"));
    store.delete(at("7"));
    store.saw(at("6"));
    assert_eq!(store.resolution().reason, "NoPolicy", "an answer from before its end");
    store.apply(at("8"));
    store.reset(Vec::new());
    store.saw(at("7"));
    assert_eq!(store.resolution().reason, "NoPolicy", "nor after a list");
}

#[test]
fn a_policy_that_moves_to_another_binding_is_released_by_us() {
    let store = store();
    store.apply(named("p", "dc-east", Some("me")));
    let mut moved = named("p", "dc-west", Some("me"));
    moved.metadata.resource_version = Some("9".to_owned());
    store.apply(moved.clone());
    assert!(store.was_ours(&moved));
    assert!(store.engine_list().is_empty());
}

/// The original says on no policy who holds it.
#[test]
fn a_policy_that_was_released_is_ours_no_more_whoever_holds_it_then() {
    let store = store();
    let mut policy = named("p", "dc-east", None);
    let changes = |policy: &mut PolicyView, version: &str| {
        policy.metadata.resource_version = Some(version.to_owned());
        store.saw(policy.clone());
        store.was_ours(policy)
    };
    assert!(changes(&mut policy, "1"));
    policy.spec.spec.cluster = "dc-west".into();
    assert!(changes(&mut policy, "2"), "it has our finalizer");
    let finalizers = policy.metadata.finalizers.replace(vec!["other".into()]);
    assert!(!changes(&mut policy, "3"));
    policy.metadata.finalizers = finalizers;
    assert!(!changes(&mut policy, "4"), "that is the finalizer of another binding");
    policy.spec.spec.cluster = "dc-east".into();
    assert!(changes(&mut policy, "5"));
}
