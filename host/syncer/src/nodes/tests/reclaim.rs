//! The end of a lease whose node stays: grace, eviction, reopening.

use kubeocean_api::keys::{annotation, taint};

use rstest::rstest;
use serde_json::{Value, json};

use super::model::{Model, at, held, merge, offer, pod, withhold};
use crate::nodes::{
    action::{Action, PodDeletion},
    decision::Reclaim,
    loss::WorkerLoss,
    withdraw::PodOnVnode,
};

#[test]
fn graceful_reclaim_waits_then_evicts_and_reopens() {
    let mut model = Model::leased();
    model.pods = vec![
        pod("normal"),
        PodOnVnode { tolerates_reclaim: true, ..pod("tolerant") },
        PodOnVnode { system: true, ..pod("system") },
        PodOnVnode { deleting: true, ..pod("leaving") },
    ];
    model.decision = Some(withhold(Reclaim::Graceful(60)));
    model.settle();
    assert_eq!(model.taint(taint::OUT_OF_TIME_WINDOWS).as_deref(), Some("NoSchedule"));
    assert_eq!(model.plan().next_wake, Some(at(60)));
    model.now = 59;
    model.restart();
    assert_eq!(model.settle(), Vec::<String>::new());
    model.now = 60;
    let plan = model.plan();
    let deleted: Vec<_> = plan
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::DeletePod { uid, why: PodDeletion::Reclaimed, .. } => Some(uid.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(deleted, ["normal"]);
    model.settle();
    assert_eq!(model.taint(taint::OUT_OF_TIME_WINDOWS).as_deref(), Some("NoExecute"));
    model.decision = Some(offer(&[]));
    model.settle();
    assert_eq!(model.taint(taint::OUT_OF_TIME_WINDOWS), None);
    assert_eq!(model.vnode().annotation(annotation::RECLAIM_SINCE), None);
}

/// Acceptance check 15: nothing is evicted by a decision whose facts and policy nobody can change while the worker is silent, and
/// none of it would free the node. The countdown goes on.
#[test]
fn a_silent_worker_suspends_the_eviction_and_not_the_countdown() {
    let mut model = Model::leased();
    model.pods = vec![pod("normal")];
    model.decision = Some(withhold(Reclaim::Graceful(60)));
    model.settle();
    model.loss = Some(WorkerLoss::Silent);
    model.settle();
    for (now, restart) in [(60, false), (4000, false), (4001, true)] {
        model.now = now;
        if restart {
            model.restart();
        }
        let deletes =
            |action: &Action| matches!(action, Action::DeletePod { .. } | Action::DeleteVnode { .. });
        assert!(!model.plan().actions.iter().any(deletes), "after {now} s");
        model.settle();
        assert_eq!(model.taint(taint::OUT_OF_TIME_WINDOWS).as_deref(), Some("NoSchedule"), "after {now} s");
        assert_eq!(model.plan().next_wake, None, "the worker's return wakes it");
    }
    model.loss = None;
    let deletes = |action: &Action| matches!(action, Action::DeletePod { why: PodDeletion::Reclaimed, .. });
    assert!(model.plan().actions.iter().any(deletes), "its time is over");
    model.settle();
    assert_eq!(model.taint(taint::OUT_OF_TIME_WINDOWS).as_deref(), Some("NoExecute"));
    model.loss = Some(WorkerLoss::Silent);
    model.settle();
    assert_eq!(
        model.taint(taint::OUT_OF_TIME_WINDOWS).as_deref(),
        Some("NoSchedule"),
        "an eviction that had begun"
    );
}

/// What this process remembers of a start is of the same clock.
#[test]
fn a_clock_that_is_put_right_puts_no_reclaim_off() {
    let mut model = Model::leased();
    model.now = 7200;
    model.decision = Some(withhold(Reclaim::Graceful(60)));
    model.settle();
    assert_eq!(model.plan().next_wake, Some(at(7260)));
    model.now = 0;
    model.settle();
    assert_eq!(model.plan().next_wake, Some(at(60)));
}

const LATER: &str = "2099-01-01T00:00:00Z";
/// Fifty seconds after the start.
const SOON: &str = "2027-01-15T08:00:50Z";

fn annotate(vnode: &mut Value, key: &str, value: impl Into<Value>) {
    let value = value.into();
    merge(vnode, &json!({"metadata": {"annotations": {key: value}}}));
}

fn untaint(vnode: &mut Value) {
    vnode["spec"]["taints"] = json!([]);
}

/// BU-909: whoever may edit nodes of the computing cluster puts no reclaim off.
#[rstest]
#[case::to_come(|vnode: &mut Value| annotate(vnode, annotation::RECLAIM_SINCE, LATER))]
#[case::a_little_later(|vnode: &mut Value| annotate(vnode, annotation::RECLAIM_SINCE, SOON))]
#[case::removed(|vnode: &mut Value| annotate(vnode, annotation::RECLAIM_SINCE, Value::Null))]
#[case::without_the_taint(untaint)]
#[case::without_anything(|vnode: &mut Value| { untaint(vnode); annotate(vnode, annotation::RECLAIM_SINCE, Value::Null); })]
fn a_user_puts_no_eviction_off(#[case] edit: impl Fn(&mut Value)) {
    let mut model = Model::leased();
    model.decision = Some(withhold(Reclaim::Graceful(60)));
    model.settle();
    model.now = 30;
    edit(model.vnode.as_mut().unwrap());
    model.settle();
    assert_eq!(model.taint(taint::OUT_OF_TIME_WINDOWS).as_deref(), Some("NoSchedule"));
    assert_eq!(model.vnode().annotation(annotation::RECLAIM_SINCE), Some("2027-01-15T08:00:00Z"));
    assert_eq!(model.plan().next_wake, Some(at(60)));
    model.now = 60;
    model.settle();
    assert_eq!(model.taint(taint::OUT_OF_TIME_WINDOWS).as_deref(), Some("NoExecute"));
}

/// A process that did not see the start believes the vnode, within reason.
#[rstest]
#[case::to_come(|vnode: &mut Value| annotate(vnode, annotation::RECLAIM_SINCE, LATER), 90)]
#[case::without_the_taint(untaint, 60)]
fn a_restart_counts_from_what_the_vnode_says(#[case] edit: impl Fn(&mut Value), #[case] end: i64) {
    let mut model = Model::leased();
    model.decision = Some(withhold(Reclaim::Graceful(60)));
    model.settle();
    model.now = 30;
    edit(model.vnode.as_mut().unwrap());
    model.restart();
    model.settle();
    assert_eq!(model.plan().next_wake, Some(at(end)));
}

#[test]
fn a_lease_that_closes_again_gives_the_whole_grace_again() {
    let mut model = Model::leased();
    for start in [0, 100] {
        model.now = start;
        model.decision = Some(withhold(Reclaim::Graceful(60)));
        model.settle();
        assert_eq!(model.plan().next_wake, Some(at(start + 60)));
        model.now = start + 30;
        model.decision = Some(offer(&[]));
        model.settle();
    }
}

/// The modules give no answer, and how they would reclaim is known from before.
#[test]
fn a_countdown_without_answers_has_the_grace_that_was_announced() {
    let mut model = Model::leased();
    model.decision = Some(withhold(Reclaim::Graceful(60)));
    model.settle();
    model.decision = Some(held("ModuleFailed", true));
    annotate(model.vnode.as_mut().unwrap(), annotation::RECLAIM, "graceful:2147483647");
    model.settle();
    assert_eq!(model.plan().next_wake, Some(at(60)));
}
