//! A Syncer that stops between any two writes of a plan.

use kubeocean_api::keys::taint;
use rstest::rstest;
use serde_json::json;

use super::model::{Model, pod, timeless, withhold};
use crate::nodes::{decision::Reclaim, vnode::GoverningPolicy, withdraw::PodOnVnode};

/// The taint is on the vnode, what is remembered of it is not yet applied.
#[test]
fn a_taint_that_was_the_last_write_is_no_users() {
    let mut model = Model::new();
    model.binding.disable_default_taint = true;
    model.settle();
    model.binding.disable_default_taint = false;
    model.perform(1);
    assert_eq!(model.taint(taint::VNODE).as_deref(), Some("NoSchedule"));
    model.written = None;
    model.binding.disable_default_taint = true;
    model.settle();
    assert_eq!(model.taint(taint::VNODE), None);
}

/// Stops after every number of writes, starts again, and must come to the same end (BU section 18).
#[rstest]
#[case::leased(|_: &mut Model| {})]
#[case::closed(|m: &mut Model| m.decision = Some(withhold(Reclaim::Keep)))]
#[case::reclaimed(|m: &mut Model| { m.decision = Some(withhold(Reclaim::Force)); m.pods = vec![pod("a"), pod("b")]; })]
#[case::another_policy(|m: &mut Model| { m.policy = Some(GoverningPolicy { name: "q".into(), held: false, ..GoverningPolicy::default() }); m.decision.as_mut().unwrap().governed_by = Some("q".into()); })]
#[case::worker_changes(|m: &mut Model| { m.pnode.as_mut().unwrap()["metadata"]["labels"] = json!({}); m.pnode.as_mut().unwrap()["status"]["conditions"] = json!([{"type": "Ready", "status": "False", "reason": "R"}]); })]
#[case::withdrawn(|m: &mut Model| { m.decision.as_mut().unwrap().governed_by = None; m.pods = vec![pod("a"), PodOnVnode { daemonset: true, ..pod("daemon") }]; })]
#[case::node_gone(|m: &mut Model| { m.pnode = None; m.pods = vec![pod("a")]; })]
#[case::binding_deleted(|m: &mut Model| { m.binding.deleting = true; m.pods = vec![pod("a")]; })]
fn a_crash_between_any_two_writes_ends_the_same(
    #[case] change: impl Fn(&mut Model),
    #[values(false, true)] leased_before: bool,
) {
    let begin = || {
        let mut model = if leased_before { Model::leased() } else { Model::new() };
        change(&mut model);
        model
    };
    let mut whole = begin();
    let writes = whole.settle().len();
    for stop in 0..writes {
        let mut model = begin();
        model.perform(stop);
        model.restart();
        model.settle();
        let parts = |m: &Model| (timeless(m.vnode.as_ref()), m.pnode.clone(), m.pods.clone());
        assert_eq!(parts(&model), parts(&whole), "stopped after {stop} of {writes} writes");
    }
}
