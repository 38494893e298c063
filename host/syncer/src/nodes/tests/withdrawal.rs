//! Taking a vnode back.

use kubeocean_api::keys::{annotation, condition_type, label, taint};
use rstest::rstest;
use serde_json::{Value, json};

use super::model::{Model, at, held, merge, pod};
use crate::nodes::{decision::Reclaim, withdraw::PodOnVnode};

/// A vnode whose pods have a minute when its policy goes.
fn promised() -> Model {
    let mut model = Model::new();
    model.decision.as_mut().unwrap().reclaim = Reclaim::Graceful(60);
    model.settle();
    model
}

#[rstest]
#[case::policy_lost(|m: &mut Model| m.decision.as_mut().unwrap().governed_by = None, true)]
#[case::not_selected(|m: &mut Model| m.decision.as_mut().unwrap().selected = false, true)]
#[case::node_gone(|m: &mut Model| m.pnode = None, false)]
#[case::binding_deleted(|m: &mut Model| m.binding.deleting = true, false)]
#[case::leased(|_: &mut Model| {}, false)]
fn only_the_beginning_of_a_lost_lease_is_paced(#[case] lose: impl Fn(&mut Model), #[case] paced: bool) {
    let mut model = promised();
    lose(&mut model);
    assert_eq!(model.plan().ends_lease, paced);
    model.settle_until_blocked();
    if model.vnode.is_some() {
        assert!(!model.plan().ends_lease, "what has begun is not paced again");
    }
}

/// A vnode whose policy went at second 0, with a minute for its pods.
fn withdrawing() -> Model {
    let mut model = promised();
    model.decision.as_mut().unwrap().governed_by = None;
    model.settle();
    model
}

/// A withdrawal that has begun waits for no turn, whatever of its marks a user takes off: the vnode would be open meanwhile.
#[rstest]
#[case::uncordoned(|vnode: &mut Value| vnode["spec"]["unschedulable"] = false.into())]
#[case::untainted(|vnode: &mut Value| vnode["spec"]["taints"] = json!([]))]
#[case::policy_named_again(|vnode: &mut Value| vnode["metadata"]["annotations"][annotation::POLICIES_APPLIED] = "p".into())]
fn a_mark_that_a_user_took_off_comes_back_without_a_turn(#[case] edit: impl Fn(&mut Value)) {
    let mut model = withdrawing();
    model.now = 30;
    edit(model.vnode.as_mut().unwrap());
    assert!(!model.plan().ends_lease);
    assert_eq!(model.settle(), ["patch taints, cordon, metadata of vnode vnode-cls-a-n1"]);
    assert!(model.vnode().spec.unschedulable && model.taint(taint::VNODE_DELETING).is_some());
    assert_eq!(model.plan().next_wake, Some(at(60)), "what was promised counts from the beginning");
}

/// BU-909: whoever may edit nodes of the computing cluster puts no withdrawal off.
#[rstest]
#[case::to_come(annotation::DELETION_TAINT_TIME, "2099-01-01T00:00:00Z".into())]
#[case::a_little_later(annotation::DELETION_TAINT_TIME, "2027-01-15T08:00:50Z".into())]
#[case::removed(annotation::DELETION_TAINT_TIME, Value::Null)]
#[case::another_grace(annotation::RECLAIM, "graceful:2147483647".into())]
fn a_user_puts_no_withdrawal_off(#[case] key: &str, #[case] value: Value) {
    let mut model = withdrawing();
    model.now = 30;
    merge(model.vnode.as_mut().unwrap(), &json!({"metadata": {"annotations": {key: value}}}));
    assert!(!model.plan().ends_lease);
    model.settle();
    assert_eq!(model.plan().next_wake, Some(at(60)));
    model.now = 60;
    assert_eq!(model.plan().to_string(), "delete vnode vnode-cls-a-n1");
}

/// A process that did not see the beginning believes no time that is to come.
#[test]
fn after_a_restart_a_withdrawal_begins_now_at_the_latest() {
    let mut model = withdrawing();
    let annotations = &mut model.vnode.as_mut().unwrap()["metadata"]["annotations"];
    annotations[annotation::DELETION_TAINT_TIME] = "2099-01-01T00:00:00Z".into();
    model.now = 30;
    model.restart();
    model.settle();
    assert_eq!(model.plan().next_wake, Some(at(90)));
}

/// What this process remembers of a beginning is of the same clock.
#[test]
fn a_clock_that_is_put_right_puts_no_withdrawal_off() {
    let mut model = promised();
    model.now = 7200;
    model.decision.as_mut().unwrap().governed_by = None;
    model.settle();
    assert_eq!(model.plan().next_wake, Some(at(7260)));
    model.now = 0;
    model.settle();
    assert_eq!(model.plan().next_wake, Some(at(60)));
}

/// BU-907: what was announced is written by good decisions only.
#[rstest]
#[case::a_module_fails("ModuleFailed", false)]
#[case::the_policy_is_invalid("PolicyInvalid", true)]
fn an_error_takes_back_no_grace_that_was_announced(
    #[case] code: &str,
    #[case] withheld: bool,
    #[values(false, true)] restarted: bool,
) {
    let mut model = promised();
    model.decision = Some(held(code, withheld));
    model.settle();
    assert_eq!(model.vnode().annotation(annotation::RECLAIM), Some("graceful:60"));
    if restarted {
        model.restart();
    }
    model.decision.as_mut().unwrap().governed_by = None;
    model.settle();
    assert_eq!(model.plan().next_wake, Some(at(60)));
}

#[rstest]
#[case::node_gone(|m: &mut Model| m.pnode = None, "NodeGone", 0)]
#[case::node_terminating(|m: &mut Model| m.pnode.as_mut().unwrap()["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z".into(), "NodeGone", 0)]
#[case::node_replaced(|m: &mut Model| m.pnode.as_mut().unwrap()["metadata"]["uid"] = "p-2".into(), "NodeReplaced", 0)]
#[case::binding_deleted(|m: &mut Model| m.binding.deleting = true, "BindingDeleted", 0)]
#[case::excluded(|m: &mut Model| m.pnode.as_mut().unwrap()["metadata"]["labels"][label::INSTANCE_TYPE] = "eklet".into(), "NotSelected", 0)]
#[case::node_replaced_and_not_selected(|m: &mut Model| { m.pnode.as_mut().unwrap()["metadata"]["uid"] = "p-2".into(); m.decision.as_mut().unwrap().selected = false; }, "NodeReplaced", 0)]
#[case::not_selected(|m: &mut Model| m.decision.as_mut().unwrap().selected = false, "NotSelected", 60)]
#[case::policy_lost(|m: &mut Model| m.decision.as_mut().unwrap().governed_by = None, "PolicyLost", 60)]
fn a_withdrawal_drains_in_order(#[case] lose: impl Fn(&mut Model), #[case] reason: &str, #[case] grace: i64) {
    let mut model = promised();
    model.pods = vec![
        pod("normal"),
        PodOnVnode { daemonset: true, ..pod("daemon") },
        PodOnVnode { system: true, ..pod("system") },
    ];
    lose(&mut model);
    let mut lines = model.settle_until_blocked();
    let begun = lines.iter().position(|line| line.starts_with("patch taints, cordon, metadata")).unwrap();
    assert_eq!(model.taint(taint::VNODE_DELETING).as_deref(), Some("NoSchedule"));
    assert_eq!(model.vnode().annotation(annotation::POLICIES_APPLIED), Some(""));
    if grace > 0 {
        assert!(!model.vnode().terminating(), "{lines:?}");
        assert_eq!(model.vnode().condition(condition_type::DRAINING).unwrap().reason, reason);
        assert_eq!(model.plan().next_wake, Some(at(grace)));
        model.now = grace;
        lines.extend(model.settle_until_blocked());
    }
    let deleted = lines.iter().position(|line| line == "delete vnode vnode-cls-a-n1").unwrap();
    let drained: Vec<&String> = lines.iter().filter(|line| line.starts_with("delete pod")).collect();
    assert_eq!(drained, ["delete pod team/normal (Drained)", "delete pod team/system (Drained)"]);
    assert!(begun < deleted && !lines[..deleted].contains(drained[0]), "{lines:?}");
    // The pod is terminating: it still blocks, the daemon is left alone.
    assert!(model.vnode().terminating());
    assert_eq!(model.vnode().condition(condition_type::DRAINING).unwrap().reason, reason);
    assert_eq!(model.vnode().condition(condition_type::DRAINING).unwrap().message, "1 pods left");
    model.pods.retain(|pod| pod.daemonset);
    let plan = model.plan();
    assert_eq!(plan.to_string(), "delete pod team/daemon (Drained); release vnode vnode-cls-a-n1");
}

/// BU section 18: also by a Syncer that did not begin it.
#[rstest]
fn a_withdrawal_that_is_called_off_leaves_no_trace(#[values(false, true)] restarted: bool) {
    let mut model = Model::new();
    model.decision.as_mut().unwrap().reclaim = Reclaim::Graceful(600);
    model.settle();
    let before = model.vnode.clone();
    model.decision.as_mut().unwrap().governed_by = None;
    model.settle();
    assert!(model.vnode().spec.unschedulable);
    if restarted {
        model.restart();
    }
    model.decision.as_mut().unwrap().governed_by = Some("p".into());
    model.settle();
    let strip = |mut vnode: Value| {
        vnode["metadata"]["annotations"].as_object_mut().unwrap().remove(annotation::LAST_SYNC_TIME);
        vnode["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        vnode
    };
    assert_eq!(strip(model.vnode.unwrap()), strip(before.unwrap()));
}
