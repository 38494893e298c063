//! The rows of TD section 9.

use std::sync::Arc;

use kubeocean_api::keys::annotation;
use rstest::rstest;
use serde_json::json;

use super::builders::*;
use crate::pods::{
    action::{DeleteReason, PodAction, Wake},
    plan::plan_pod,
    snapshot::{Absence, VnodeState},
};

fn text(actions: &[PodAction]) -> Vec<String> {
    actions
        .iter()
        .map(|action| match action {
            PodAction::DeletePpod { grace_seconds, why, .. } => format!("delete {why:?} {grace_seconds:?}"),
            PodAction::PatchVpod { .. } => "report".to_owned(),
            PodAction::FailVpod { .. } => "fail".to_owned(),
            other => other.to_string(),
        })
        .collect()
}

const FINISH: [&str; 2] = ["delete the token Secrets", "finish the vpod's deletion"];

#[rstest]
#[case::with_the_vpods_grace(recorded().deleting(7), ppod(), &["delete VpodDeleting Some(7)"])]
#[case::already_going(recorded().deleting(30), ppod().deleting(30), &[])]
#[case::shortened(recorded().deleting(1), ppod().deleting(30), &["delete VpodDeleting Some(1)"])]
#[case::never_lengthened(recorded().deleting(60), ppod().deleting(30), &[])]
#[case::its_end_is_reported(
    recorded().running().deleting(30), ppod().running().phase("Succeeded").deleting(30), &["report"]
)]
fn with_a_copy(#[case] pod: Pod, #[case] copy: Pod, #[case] expected: &[&str]) {
    let plan = plan_pod(&snapshot(Some(&pod), Some(&copy)));
    assert_eq!(text(&plan.actions), expected);
}

#[test]
fn a_vpod_that_was_never_mapped_is_finished_at_once() {
    let system = vpod().set(&["metadata", "namespace"], "kube-system");
    for pod in [vpod(), system] {
        let plan = plan_pod(&snapshot(Some(&pod.deleting(30)), None));
        assert_eq!(text(&plan.actions), FINISH);
    }
}

#[test]
fn a_mapped_vpod_is_finished_when_its_ppod_is_known_to_be_gone() {
    let mut snapshot = snapshot(Some(&recorded().deleting(30)), None);
    assert_eq!(text(&plan_pod(&snapshot).actions), ["confirm that the ppod is gone"]);
    snapshot.absence = Absence::Confirmed;
    assert_eq!(text(&plan_pod(&snapshot).actions), FINISH);
    snapshot.absence = witnessed(&ppod());
    assert_eq!(text(&plan_pod(&snapshot).actions), FINISH);
}

#[test]
fn a_vpod_behind_somebodys_finalizer_ends_terminal_and_is_finished_once() {
    let pod =
        recorded().running().set(&["metadata", "finalizers"], json!(["batch.kubernetes.io/job-tracking"]));
    let mut snapshot = snapshot(Some(&pod.clone().deleting(30)), None);
    snapshot.absence = witnessed(&ppod().running());
    let expected: Vec<_> = ["fail"].into_iter().chain(FINISH).collect();
    assert_eq!(text(&plan_pod(&snapshot).actions), expected);
    snapshot.vpod = Some(Arc::new(pod.phase("Failed").deleting(0).vpod()));
    assert!(plan_pod(&snapshot).actions.is_empty());
}

#[test]
fn success_is_reported_before_the_vpod_goes() {
    let mut snapshot = snapshot(Some(&recorded().running().deleting(30)), None);
    snapshot.absence = witnessed(&ppod().running().phase("Succeeded"));
    let expected: Vec<_> = ["report"].into_iter().chain(FINISH).collect();
    assert_eq!(text(&plan_pod(&snapshot).actions), expected);
}

#[test]
fn a_copy_outlives_its_vnode_and_is_deleted_all_the_same() {
    let mut snapshot = snapshot(Some(&recorded().deleting(30)), Some(&ppod()));
    snapshot.vnode = VnodeState::Missing;
    assert_eq!(text(&plan_pod(&snapshot).actions), ["delete VpodDeleting Some(30)"]);
    snapshot.ppod = None;
    assert!(plan_pod(&snapshot).actions.is_empty(), "the vpod is not known to be ours");
    snapshot.absence = witnessed(&ppod());
    assert_eq!(text(&plan_pod(&snapshot).actions), FINISH);
}

#[test]
fn a_ppod_without_vpod_goes_after_proof() {
    let mut snapshot = snapshot(None, Some(&ppod()));
    assert_eq!(text(&plan_pod(&snapshot).actions), ["confirm that the vpod is gone"]);
    snapshot.gone_vpods.insert("v1".into());
    let plan = plan_pod(&snapshot);
    assert!(
        matches!(
            &*plan.actions,
            [PodAction::DeletePpod { why: DeleteReason::VpodGone, grace_seconds: None, .. }]
        ),
        "{plan:#?}"
    );
}

#[test]
fn a_ppod_of_another_cluster_without_vpod_stays() {
    let copy = ppod().annotate(annotation::COMPUTING_CLUSTER_UID, "other");
    let mut snapshot = snapshot(None, Some(&copy));
    snapshot.gone_vpods.insert("v1".into());
    assert!(plan_pod(&snapshot).actions.is_empty());
}

#[rstest]
#[case::at_once(ppod(), &["delete VpodGone Some(0)"])]
#[case::one_that_hangs(ppod().deleting(30), &["delete VpodGone Some(0)"])]
#[case::once(ppod().deleting(0), &[])]
fn a_ppod_goes_by_force_when_its_vpod_did(#[case] copy: Pod, #[case] expected: &[&str]) {
    let mut seen = snapshot(None, Some(&copy));
    seen.gone_vpods.insert("v1".into());
    seen.forced_vpods.insert("v1".into());
    assert_eq!(text(&plan_pod(&seen).actions), expected);
}

#[rstest]
#[case::long_over_on_a_dead_node(true, "2026-01-05T12:01:30Z", &["delete VpodGone Some(0)"], None)]
#[case::on_a_living_node(false, "2026-01-05T12:01:30Z", &[], Some("2026-01-05T12:02:30Z"))]
#[case::not_long_over(true, "2026-01-05T12:01:29Z", &[], Some("2026-01-05T12:01:30Z"))]
fn an_orphan_on_a_dead_node_goes_by_force(
    #[case] dead: bool,
    #[case] now: &str,
    #[case] expected: &[&str],
    #[case] wake: Option<&str>,
) {
    let mut seen = snapshot(None, Some(&ppod().deleting(30)));
    seen.gone_vpods.insert("v1".into());
    seen.node_is_dead = dead;
    seen.now = now.parse().unwrap();
    let plan = plan_pod(&seen);
    assert_eq!(text(&plan.actions), expected);
    if let Some(wake) = wake {
        assert_eq!(plan.wake, Wake::At(wake.parse().unwrap()));
    }
    // A vpod that is there keeps its copy: only its own deletion by force gives that up.
    let mut held = snapshot(Some(&recorded().deleting(30)), Some(&ppod().deleting(30)));
    (held.node_is_dead, held.now) = (dead, seen.now);
    assert!(!text(&plan_pod(&held).actions).contains(&"delete VpodDeleting Some(0)".to_owned()));
}

#[test]
fn a_successor_does_not_wait_for_a_copy_that_was_given_up_by_force() {
    let successor = vpod().set(&["metadata", "uid"], "v2");
    let mut seen = snapshot(Some(&successor), Some(&ppod().deleting(30)));
    seen.gone_vpods.insert("v1".into());
    assert!(plan_pod(&seen).actions.is_empty());
    seen.forced_vpods.insert("v1".into());
    assert_eq!(text(&plan_pod(&seen).actions), ["delete Stale Some(0)"]);
}
