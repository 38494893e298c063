//! What a leased node says, and when it is written.

use kubeocean_api::keys::{annotation, finalizer, label, taint};
use kubeocean_runtime::watch::WatchFailure;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::json;

use super::model::{Model, at, held, offer, withhold};
use crate::nodes::{
    action::Action,
    decision::{Decision, Reclaim},
    loss::WorkerLoss,
    metadata::ExpectedMetadata,
    plan::LabelOwner,
    view::Taint,
    vnode::{GoverningPolicy, unreachable_taint},
};

#[test]
fn a_new_node_becomes_a_vnode_in_one_request() {
    let mut model = Model::new();
    assert_eq!(model.settle(), ["create vnode vnode-cls-a-n1", "label node n1 with p"]);
    let mut vnode = model.vnode.clone().unwrap();
    let encoded =
        vnode["metadata"]["annotations"][annotation::EXPECTED_METADATA].as_str().unwrap().to_owned();
    vnode["metadata"]["annotations"][annotation::EXPECTED_METADATA] = "(checked below)".into();
    insta::assert_yaml_snapshot!("new_vnode", vnode);
    let expected = ExpectedMetadata::decode(Some(&encoded));
    assert_eq!(expected.labels["zone"], "z1");
    assert!(!expected.annotations.contains_key(annotation::LAST_SYNC_TIME));
    assert_eq!(expected.taints, [Taint::new(taint::VNODE, None, "NoSchedule")]);
}

#[test]
fn the_policy_is_held_before_its_first_vnode() {
    let mut model = Model::new();
    model.policy.as_mut().unwrap().held = false;
    assert_eq!(model.settle()[..2], ["hold policy p", "create vnode vnode-cls-a-n1"]);
}

#[rstest]
#[case::nothing_changes(|_: &mut Model| {}, &[])]
#[case::heartbeats_within_five_minutes(|m: &mut Model| m.pnode.as_mut().unwrap()["status"]["conditions"][0]["lastHeartbeatTime"] = "2027-01-15T08:04:59Z".into(), &[])]
#[case::a_late_heartbeat(|m: &mut Model| m.pnode.as_mut().unwrap()["status"]["conditions"][0]["lastHeartbeatTime"] = "2027-01-15T08:05:00Z".into(), &["update vnode vnode-cls-a-n1"])]
#[case::a_late_heartbeat_of_a_slow_clock(|m: &mut Model| { m.pnode.as_mut().unwrap()["status"]["conditions"][0]["lastHeartbeatTime"] = "2027-01-15T08:05:00Z".into(); m.vnode.as_mut().unwrap()["metadata"]["annotations"][annotation::LAST_SYNC_TIME] = "2027-01-15T09:00:00Z".into(); }, &["update vnode vnode-cls-a-n1"])]
#[case::usage_of_others(|m: &mut Model| { m.used.insert("cpu".into(), 1000); }, &["update vnode vnode-cls-a-n1", "event LeaseChanged: leased amounts changed"])]
#[case::a_users_label(|m: &mut Model| m.vnode.as_mut().unwrap()["metadata"]["labels"]["users"] = "1".into(), &[])]
#[case::a_users_taint(|m: &mut Model| m.vnode.as_mut().unwrap()["spec"]["taints"].as_array_mut().unwrap().push(json!({"key": "kubeocean.io/vnode", "effect": "NoExecute"})), &[])]
#[case::a_users_cordon(|m: &mut Model| m.vnode.as_mut().unwrap()["spec"]["unschedulable"] = true.into(), &[])]
#[case::a_managed_label_edited(|m: &mut Model| m.vnode.as_mut().unwrap()["metadata"]["labels"]["zone"] = "other".into(), &["update vnode vnode-cls-a-n1"])]
#[case::the_default_taint_removed(|m: &mut Model| m.vnode.as_mut().unwrap()["spec"]["taints"] = json!([]), &["patch taints of vnode vnode-cls-a-n1"])]
#[case::the_finalizer_removed(|m: &mut Model| m.vnode.as_mut().unwrap()["metadata"]["finalizers"] = json!([]), &["patch finalizer of vnode vnode-cls-a-n1"])]
#[case::quantities_written_differently(|m: &mut Model| m.vnode.as_mut().unwrap()["status"]["allocatable"]["cpu"] = "4000m".into(), &[])]
#[case::another_condition_of_somebody(|m: &mut Model| m.vnode.as_mut().unwrap()["status"]["conditions"].as_array_mut().unwrap().push(json!({"type": "NetworkUnavailable", "status": "False"})), &[])]
#[case::a_field_the_server_does_not_know(|m: &mut Model| { m.vnode.as_mut().unwrap()["status"]["nodeInfo"].as_object_mut().unwrap().remove("swap"); }, &[])]
#[case::a_worker_label_removed(|m: &mut Model| { m.pnode.as_mut().unwrap()["metadata"]["labels"].as_object_mut().unwrap().remove("zone"); }, &["patch metadata of vnode vnode-cls-a-n1", "update vnode vnode-cls-a-n1"])]
#[case::the_worker_cordons(|m: &mut Model| m.pnode.as_mut().unwrap()["spec"] = json!({"unschedulable": true, "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": "2027-01-15T08:00:00Z"}]}), &["patch taints of vnode vnode-cls-a-n1", "update vnode vnode-cls-a-n1"])]
#[case::the_default_taint_is_disabled(|m: &mut Model| m.binding.disable_default_taint = true, &["patch taints of vnode vnode-cls-a-n1", "update vnode vnode-cls-a-n1"])]
#[case::the_proxier_moves(|m: &mut Model| m.proxier = vec!["192.0.2.2".parse().unwrap()], &["update vnode vnode-cls-a-n1"])]
#[case::another_policy_takes_over(|m: &mut Model| { m.policy = Some(GoverningPolicy { name: "q".into(), held: false, ..GoverningPolicy::default() }); m.decision.as_mut().unwrap().governed_by = Some("q".into()); }, &["hold policy q", "update vnode vnode-cls-a-n1", "label node n1 with q"])]
#[case::the_label_of_another_binding_stays(|m: &mut Model| { m.owner = LabelOwner::Other; m.pnode.as_mut().unwrap()["metadata"]["labels"][label::POLICY_APPLIED] = "theirs".into(); }, &[])]
#[case::a_window_closes(|m: &mut Model| m.decision = Some(withhold(Reclaim::Keep)), &["patch taints of vnode vnode-cls-a-n1", "update vnode vnode-cls-a-n1", "event LeaseClosed: no new pods (OutsideTimeWindow)"])]
#[case::a_window_opens(|m: &mut Model| { m.decision = Some(withhold(Reclaim::Keep)); m.settle(); m.decision = Some(offer(&[])); }, &["patch taints of vnode vnode-cls-a-n1", "update vnode vnode-cls-a-n1", "event LeaseOpened: the node is leased again"])]
#[case::an_invalid_policy(|m: &mut Model| m.decision = Some(held("PolicyInvalid", true)), &["patch taints of vnode vnode-cls-a-n1", "update vnode vnode-cls-a-n1"])]
#[case::policies_load(|m: &mut Model| m.decision = None, &[])]
#[case::policies_load_and_the_proxier_moves(|m: &mut Model| { m.decision = None; m.proxier.clear(); }, &["patch conditions of vnode vnode-cls-a-n1"])]
#[case::the_worker_cannot_be_reached(|m: &mut Model| m.loss = Some(WorkerLoss::Silent), &["patch taints of vnode vnode-cls-a-n1", "update vnode vnode-cls-a-n1"])]
#[case::another_reason_why_it_cannot(|m: &mut Model| { m.loss = Some(WorkerLoss::Silent); m.settle(); m.loss = Some(WorkerLoss::Watch("pods", WatchFailure::NoList)); }, &["update vnode vnode-cls-a-n1"])]
#[case::nor_could_it_ever(|m: &mut Model| { m.loss = Some(WorkerLoss::Silent); m.node_known = false; }, &["patch taints of vnode vnode-cls-a-n1", "patch conditions of vnode vnode-cls-a-n1"])]
#[case::an_address_of_somebody(|m: &mut Model| m.vnode.as_mut().unwrap()["status"]["addresses"].as_array_mut().unwrap().push(json!({"type": "ExternalIP", "address": "198.51.100.7"})), &["patch conditions of vnode vnode-cls-a-n1"])]
#[case::a_second_address_of_our_type(|m: &mut Model| m.vnode.as_mut().unwrap()["status"]["addresses"].as_array_mut().unwrap().push(json!({"type": "InternalIP", "address": "198.51.100.7"})), &["patch conditions of vnode vnode-cls-a-n1"])]
#[case::an_edited_port(|m: &mut Model| m.vnode.as_mut().unwrap()["metadata"]["labels"][label::PROXIER_PORT] = "20000".into(), &["update vnode vnode-cls-a-n1"])]
#[case::a_vnode_under_deletion_is_not_revived(|m: &mut Model| { m.vnode.as_mut().unwrap()["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z".into(); m.decision = None; }, &["remove label of node n1", "release vnode vnode-cls-a-n1"])]
fn what_a_leased_node_does_when(#[case] change: impl Fn(&mut Model), #[case] expected: &[&str]) {
    let mut model = Model::leased();
    change(&mut model);
    assert_eq!(model.settle(), expected);
}

/// When a Syncer starts anew: a node goes silent, and the node lifecycle controller says so.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Restart {
    Never,
    BeforeItIsSaid,
    Afterwards,
    /// And something is written before anything is decided.
    AfterwardsUndecided,
}

#[rstest]
fn lifecycle_taints_and_unknown_of_the_computing_cluster_stand_until_the_worker_says_something_new(
    #[values(Restart::Never, Restart::BeforeItIsSaid, Restart::Afterwards, Restart::AfterwardsUndecided)]
    restart: Restart,
) {
    let mut model = Model::leased();
    let not_ready = json!({"type": "Ready", "status": "False", "reason": "KubeletNotReady"});
    let mirrored = json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]);
    model.pnode.as_mut().unwrap()["status"]["conditions"] = json!([not_ready]);
    model.pnode.as_mut().unwrap()["spec"]["taints"] = mirrored;
    model.settle();
    assert_eq!(model.taint("node.kubernetes.io/not-ready").as_deref(), Some("NoExecute"));
    if restart == Restart::BeforeItIsSaid {
        model.restart();
        assert_eq!(model.settle(), Vec::<String>::new());
    }
    // The node lifecycle controller finds the Lease expired.
    let unknown = json!({"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"});
    let conditions = model.vnode.as_mut().unwrap()["status"]["conditions"].as_array_mut().unwrap();
    conditions.retain(|condition| condition["type"] != "Ready");
    conditions.push(unknown);
    model.vnode.as_mut().unwrap()["spec"]["taints"] = json!([
        {"key": "kubeocean.io/vnode", "effect": "NoSchedule"}, {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"},
    ]);
    if matches!(restart, Restart::Afterwards | Restart::AfterwardsUndecided) {
        model.restart();
    }
    if restart == Restart::AfterwardsUndecided {
        let decision = model.decision.take();
        model.proxier = vec!["198.51.100.9".parse().unwrap()];
        assert_eq!(model.settle(), ["patch conditions of vnode vnode-cls-a-n1"]);
        model.decision = decision;
        assert_eq!(model.settle(), ["update vnode vnode-cls-a-n1"]);
    }
    assert_eq!(model.settle(), Vec::<String>::new());
    model.pnode = Model::new().pnode;
    model.settle();
    assert!(model.vnode().ready());
}

#[test]
fn a_condition_the_worker_node_has_no_more_goes_and_a_users_stays() {
    let mut model = Model::new();
    let problem = json!({"type": "KernelDeadlock", "status": "True", "reason": "R"});
    model.pnode.as_mut().unwrap()["status"]["conditions"].as_array_mut().unwrap().push(problem);
    model.settle();
    let users = json!({"type": "NetworkUnavailable", "status": "False"});
    model.vnode.as_mut().unwrap()["status"]["conditions"].as_array_mut().unwrap().push(users);
    model.pnode.as_mut().unwrap()["status"]["conditions"].as_array_mut().unwrap().pop();
    model.written = None; // a restart in between
    let lines = model.settle();
    assert_eq!(lines, ["update vnode vnode-cls-a-n1"]);
    assert_eq!(model.vnode().condition("KernelDeadlock"), None);
    assert!(model.vnode().condition("NetworkUnavailable").is_some());
}

/// An earlier program, put back, takes what it does not know for a user's.
#[rstest]
#[case::while_nothing_is_known(false)]
#[case::while_it_is_leased(true)]
fn the_taint_of_a_worker_out_of_reach_is_remembered_as_ours_by_the_write_that_sets_it(#[case] known: bool) {
    let mut model = Model::leased();
    (model.loss, model.node_known) = (Some(WorkerLoss::Silent), known);
    model.perform(1);
    let vnode = model.vnode();
    assert!(vnode.taint(taint::WORKER_UNREACHABLE).is_some());
    let remembered = ExpectedMetadata::decode(vnode.annotation(annotation::EXPECTED_METADATA));
    assert!(remembered.taints.contains(&unreachable_taint()), "{remembered:?}");
    assert_eq!(remembered.labels["zone"], "z1");
}

/// An update says what differs and nothing else: that costs the API server least, and touches nothing of others.
#[test]
fn an_update_says_only_what_differs() {
    let mut model = Model::leased();
    model.now = 10;
    model.used.insert("cpu".into(), 1000);
    let actions = model.plan().actions;
    let Action::UpdateVnode { patch, .. } = &actions[0] else { panic!("{actions:?}") };
    assert_eq!(patch["metadata"]["uid"], "v-1");
    assert_eq!(patch["metadata"].get("labels"), None);
    let annotations: Vec<&String> = patch["metadata"]["annotations"].as_object().unwrap().keys().collect();
    assert_eq!(annotations, ["kubeocean.io/last-sync-time"]);
    let status: Vec<&String> = patch["status"].as_object().unwrap().keys().collect();
    assert_eq!(status, ["allocatable", "capacity"]);
    let amounts: Vec<&String> = patch["status"]["capacity"].as_object().unwrap().keys().collect();
    assert_eq!(amounts, ["cpu"]);
}

/// BU section 20: whoever cannot decide evicts nobody each second. What runs out is not held up.
#[test]
fn a_lease_that_opened_a_moment_ago_does_not_close_at_once() {
    let mut model = Model::leased();
    let mut decide = |now: i64, decision: Decision| {
        (model.now, model.decision) = (now, Some(decision));
        let next = model.plan().next_wake;
        (model.settle(), model.taint(taint::OUT_OF_TIME_WINDOWS), next)
    };
    let effect = |effect: &str| Some(effect.to_owned());
    assert_eq!(decide(100, withhold(Reclaim::Force)).1, effect("NoExecute"), "the first time at once");
    assert_eq!(decide(101, offer(&[])).1, None);
    let (lines, closed, next) = decide(102, withhold(Reclaim::Force));
    assert_eq!((lines, closed, next), (Vec::new(), None, Some(at(111))));
    assert_eq!(decide(111, withhold(Reclaim::Graceful(3))).1, effect("NoSchedule"));
    assert_eq!(
        decide(114, withhold(Reclaim::Graceful(3))).1,
        effect("NoExecute"),
        "a countdown ends in time"
    );
}

/// The API server takes 256 KiB of annotations, and what is mirrored is there twice.
#[test]
fn annotations_that_are_too_large_are_left_out_and_told_of() {
    let mut model = Model::new();
    let annotations = &mut model.pnode.as_mut().unwrap()["metadata"]["annotations"];
    annotations["example.com/huge"] = "x".repeat(200 << 10).into();
    annotations["example.com/large"] = "\"".repeat(30 << 10).into();
    annotations["example.com/small"] = "s".into();
    let lines = model.settle();
    let told = "event AnnotationsNotMirrored: annotations of the node that are too large: example.com/huge";
    assert_eq!(lines.iter().filter(|line| *line == told).count(), 1, "{lines:?}");
    let vnode = model.vnode();
    let shown = |key| vnode.annotation(key).is_some();
    assert!(!shown("example.com/huge") && shown("example.com/large") && shown("example.com/small"));
    let size: usize = vnode.annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    assert!(size < 256 << 10, "{size}");
    model.used.insert("cpu".into(), 1000);
    assert!(model.settle().iter().all(|line| !line.contains("AnnotationsNotMirrored")), "told once");
}

#[test]
fn a_resource_the_worker_lost_is_published_as_zero() {
    let mut model = Model::new();
    model.pnode.as_mut().unwrap()["status"]["allocatable"]["nvidia.com/gpu"] = "8".into();
    model.settle();
    model.pnode.as_mut().unwrap()["status"]["allocatable"].as_object_mut().unwrap().remove("nvidia.com/gpu");
    model.settle();
    assert_eq!(model.vnode().status.allocatable.get("nvidia.com/gpu"), Some("0"));
}

/// PO-1503: users may follow a vnode's events, also where pods of others come and go all the time.
#[test]
fn changed_amounts_are_told_once_in_five_minutes() {
    let mut model = Model::leased();
    let mut told = |now: i64, used: i64| {
        model.now = now;
        model.used.insert("cpu".into(), used);
        let lines = model.settle();
        assert_eq!(lines[0], "update vnode vnode-cls-a-n1");
        lines.iter().any(|line| line.starts_with("event LeaseChanged"))
    };
    assert!(told(10, 1000));
    assert!(!told(20, 2000) && !told(309, 1000));
    assert!(told(310, 2000));
}

#[test]
fn small_grows_wait_and_shrinks_do_not() {
    let mut model = Model::new();
    model.used.insert("cpu".into(), 20);
    model.settle();
    model.now = 10;
    model.used.insert("cpu".into(), 0);
    let plan = model.plan();
    assert_eq!((plan.actions.len(), plan.next_wake), (0, Some(at(30))));
    model.now = 30;
    assert_eq!(model.settle()[0], "update vnode vnode-cls-a-n1");
    model.used.insert("cpu".into(), 1);
    assert_eq!(model.settle()[0], "update vnode vnode-cls-a-n1");
}

/// BU section 20: small is what is less than 1 % and also less than 100m or 64Mi.
#[rstest]
#[case::little_of_much("cpu", "4", 20, true)]
#[case::more_than_a_hundredth("cpu", "4", 90, false)]
#[case::less_than_a_hundredth_of_very_much("cpu", "20", 150, false)]
#[case::little_memory("memory", "8Gi", 10 << 20, true)]
#[case::much_memory("memory", "8Gi", 65 << 20, false)]
#[case::counted_one_by_one("pods", "110", 1, false)]
fn which_grows_wait(#[case] resource: &str, #[case] there: &str, #[case] grow: i64, #[case] waits: bool) {
    let mut model = Model::new();
    model.pnode.as_mut().unwrap()["status"]["allocatable"][resource] = there.into();
    model.used.insert(resource.into(), grow);
    model.settle();
    model.now = 10;
    model.used.clear();
    let plan = model.plan();
    assert_eq!((plan.actions.is_empty(), plan.next_wake), (waits, waits.then(|| at(30))));
}

#[test]
fn a_clock_that_was_set_back_holds_no_small_grow_up() {
    let mut model = Model::new();
    model.now = 10_000;
    model.used.insert("cpu".into(), 20);
    model.settle();
    model.now = 10;
    model.used.insert("cpu".into(), 0);
    assert_eq!(model.settle()[0], "update vnode vnode-cls-a-n1");
}

#[test]
fn a_held_or_failing_policy_makes_no_new_vnode() {
    let mut model = Model::new();
    model.decision = Some(held("PolicyInvalid", true));
    assert_eq!(model.settle(), Vec::<String>::new());
    // Left from a vnode that went while the label named a policy of another binding.
    model.pnode.as_mut().unwrap()["metadata"]["labels"][label::POLICY_APPLIED] = "p".into();
    assert_eq!(model.settle(), ["remove label of node n1"]);
}

#[test]
fn a_withheld_node_still_gets_its_vnode_with_the_taint() {
    let mut model = Model::new();
    model.decision = Some(withhold(Reclaim::Keep));
    model.settle();
    assert_eq!(model.taint(taint::OUT_OF_TIME_WINDOWS).as_deref(), Some("NoSchedule"));
}

#[test]
fn a_vnode_of_the_original_is_taken_over_without_a_drain() {
    let mut model = Model::leased();
    let prev = crate::nodes::metadata::ExpectedMetadata {
        labels: [("gone".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    let vnode = model.vnode.as_mut().unwrap();
    vnode["metadata"]["labels"]["gone"] = "1".into();
    vnode["metadata"]["annotations"][annotation::EXPECTED_METADATA] = prev.encode().into();
    model.written = None;
    let lines = model.settle();
    assert_eq!(lines, ["patch metadata of vnode vnode-cls-a-n1", "update vnode vnode-cls-a-n1"]);
    assert_eq!(model.vnode().label("gone"), None);
    assert!(model.vnode().metadata.finalizers.contains(&finalizer::VNODE.to_owned()));
}

proptest! {
    /// Whatever is decided: never above what others leave, falling with usage, nothing left to do afterwards.
    #[test]
    fn amounts_are_bounded_monotone_and_settled(
        granted in 0_i64..20_000, used in 0_i64..8000, more in 0_i64..8000,
        verdict in 0_usize..3, reclaim in 0_usize..3,
    ) {
        let decisions = [offer(&[("cpu", granted)]), withhold([Reclaim::Keep, Reclaim::Graceful(60), Reclaim::Force][reclaim]), held("ModuleFailed", reclaim == 0)];
        let mut model = Model::leased();
        model.used.insert("cpu".into(), used);
        let mut decision = decisions[verdict].clone();
        decision.amounts.insert("cpu".into(), granted);
        model.decision = Some(decision);
        model.now = 100;
        model.settle();
        let published = crate::nodes::snapshot::published(&model.vnode()).amounts["cpu"];
        prop_assert!(published <= (4000 - used).max(0));
        prop_assert!(published <= granted);
        model.now = 200;
        model.used.insert("cpu".into(), used + more);
        model.settle();
        let later = crate::nodes::snapshot::published(&model.vnode()).amounts["cpu"];
        prop_assert!(later <= published);
        prop_assert!(model.plan().actions.is_empty());
    }
}

/// Acceptance check 15: what is told in the first minute is all, however long it lasts. Nothing is evicted or withdrawn, and the
/// Lease goes on.
#[rstest]
#[case::with_what_was_decided_before(true)]
#[case::after_a_restart(false)]
fn a_worker_that_stays_silent_costs_one_taint_and_nothing_more(#[case] known: bool) {
    let mut model = Model::leased();
    model.pods = vec![super::model::pod("batch")];
    model.loss = Some(WorkerLoss::Silent);
    model.node_known = known;
    model.settle();
    let vnode = model.vnode.clone().unwrap();
    let taints = vnode["spec"]["taints"].as_array().unwrap();
    assert!(taints.iter().any(|it| it["key"] == taint::WORKER_UNREACHABLE && it["effect"] == "NoSchedule"));
    for minutes in [1, 4, 10, 24 * 60] {
        model.now = minutes * 60;
        let actions: Vec<String> = model.plan().actions.iter().map(ToString::to_string).collect();
        // A heartbeat may pass, as at any time.
        assert!(actions.iter().all(|action| action.starts_with("update vnode")), "{actions:?}");
    }
}
