//! The rows of TD section 5, and what the original did wrong there.

use std::{sync::Arc, time::Duration};

use kubeocean_api::keys::{annotation, label};
use rstest::rstest;
use serde_json::json;

use super::builders::*;
use crate::pods::{
    action::{DeleteReason, PodAction, PodPlan, RefusalReason, Wake},
    admission::{Admission, Denial},
    ownership::{Ownership, check},
    plan::plan_pod,
    snapshot::{Absence, PodSnapshot, VnodeState},
};

/// The actions in one word each.
fn words(plan: &PodPlan) -> Vec<&'static str> {
    plan.actions
        .iter()
        .map(|action| match action {
            PodAction::ConfirmVpodGone => "confirm-vpod",
            PodAction::ConfirmPpodGone => "confirm-ppod",
            PodAction::ReadPpod { .. } => "read",
            PodAction::ConfirmUnscheduled { .. } => "confirm-unscheduled",
            PodAction::WriteMapping { clear_uid: false, .. } => "map",
            PodAction::WriteMapping { clear_uid: true, .. } => "remap",
            PodAction::CreatePpod { .. } => "create",
            PodAction::PatchPpod { .. } => "follow",
            PodAction::FollowSpec { .. } => "follow-spec",
            PodAction::AddEphemeralContainers { .. } => "debug",
            PodAction::PatchVpod { .. } => "report",
            PodAction::FailVpod { .. } => "fail",
            PodAction::DeletePpod { why: DeleteReason::Stale, .. } => "delete-stale",
            PodAction::DeletePpod { .. } => "delete",
            PodAction::ReleaseTokens { .. } => "tokens",
            PodAction::FinishVpod { .. } => "finish",
            PodAction::Refuse(_) => "refuse",
            PodAction::TellAdmission(Some(_)) => "deny",
            PodAction::TellAdmission(None) => "admit",
        })
        .collect()
}

fn check_words(snapshot: &PodSnapshot, expected: &[&str]) {
    let plan = plan_pod(snapshot);
    assert_eq!(words(&plan), expected, "{plan:#?}");
}

#[rstest]
#[case::new_pod_is_mapped_then_created(vpod(), &["map", "create"])]
#[case::mapped_pod_is_created(mapped(), &["create"])]
#[case::copied_manifest_with_old_uid_is_mapped_anew(recorded(), &["remap", "create"])]
#[case::mapping_to_someone_else_is_overwritten(
    vpod().annotate(annotation::PHYSICAL_POD_NAMESPACE, MOUNT).annotate(annotation::PHYSICAL_POD_NAME, "other"),
    &["map", "create"]
)]
#[case::lost_copy_is_confirmed_first(recorded().running(), &["confirm-ppod"])]
#[case::lost_copy_without_annotations_is_lost_all_the_same(vpod().running(), &["confirm-ppod"])]
#[case::succeeded_stays(recorded().running().phase("Succeeded"), &[])]
#[case::failed_and_never_mapped_is_not_started(vpod().phase("Failed"), &[])]
#[case::system_namespace(vpod().set(&["metadata", "namespace"], "kube-system"), &[])]
#[case::public_namespace(vpod().set(&["metadata", "namespace"], "kube-public"), &[])]
#[case::namespace_of_node_leases(vpod().set(&["metadata", "namespace"], "kube-node-lease"), &[])]
#[case::default_namespace_of_components(vpod().set(&["metadata", "namespace"], "kubeocean-system"), &[])]
#[case::own_namespace(vpod().set(&["metadata", "namespace"], "ocean"), &[])]
#[case::port_reservation(vpod().set(&["metadata", "namespace"], "kubeocean-fake"), &[])]
#[case::a_users_pod_that_is_labelled_as_one(vpod().label(label::HOSTPORT_FAKE_POD, "true"), &["map", "create"])]
#[case::daemonset_pod(daemonset(), &[])]
#[case::daemonset_pod_asked_for(daemonset().annotate(annotation::RUNNING_DAEMONSET, "true"), &["map", "create"])]
#[case::daemonset_pod_asked_for_wrongly(daemonset().annotate(annotation::RUNNING_DAEMONSET, "yes"), &[])]
fn without_a_copy(#[case] pod: Pod, #[case] expected: &[&str]) {
    check_words(&snapshot(Some(&pod), None), expected);
}

#[rstest]
#[case::plugin_of_the_past(json!([{"name": "d", "glusterfs": {"path": "/", "endpoints": "x"}}]), "GlusterFS volume \"d\"")]
fn a_pod_that_is_not_mapped_is_refused_before_anything_is_written(
    #[case] volumes: serde_json::Value,
    #[case] what: &str,
) {
    let plan = plan_pod(&snapshot(Some(&vpod().set(&["spec", "volumes"], volumes)), None));
    let [PodAction::Refuse(refusal)] = plan.actions.as_slice() else { panic!("{plan:#?}") };
    assert_eq!(refusal.reason, RefusalReason::NotSupported);
    assert!(refusal.message.contains(what), "{}", refusal.message);
}

#[test]
fn a_pod_that_policies_do_not_admit_gets_no_copy_and_is_told_once() {
    let denial = |code: &str, retry| {
        Admission::Denied(Denial { code: code.to_owned(), message: "no".to_owned(), retry })
    };
    let told = |status: &str| {
        vpod().set(
            &["status", "conditions"],
            json!([
                {"type": "PolicyAdmitted", "status": status, "reason": "Full", "message": "no"},
            ]),
        )
    };
    let plan =
        |pod: &Pod, admission: Admission| plan_pod(&PodSnapshot { admission, ..snapshot(Some(pod), None) });
    let fresh = plan(&vpod(), denial("Full", None));
    assert_eq!((words(&fresh), fresh.wake), (vec!["deny"], Wake::OnEvent));
    let again = plan(&told("False"), denial("Full", Some(Duration::from_secs(7))));
    assert_eq!((words(&again), again.wake), (vec![], Wake::At(now() + Duration::from_secs(7))));
    assert_eq!(words(&plan(&told("False"), denial("Other", None))), ["deny"], "another reason is news");
    assert_eq!(words(&plan(&told("False"), Admission::Granted)), ["admit", "map", "create"]);
    assert_eq!(words(&plan(&told("True"), Admission::Granted)), ["map", "create"]);
    let waiting = plan(&vpod(), Admission::Wait(None));
    assert_eq!((words(&waiting), waiting.wake), (vec![], Wake::OnEvent), "nobody can say yet");
    let mapped = PodSnapshot {
        admission: denial("Full", None),
        ..snapshot(Some(&recorded().running()), Some(&ppod().phase("Running")))
    };
    assert!(!words(&plan_pod(&mapped)).contains(&"deny"), "what runs, runs");
}

#[test]
fn a_copy_that_outlived_its_vpod_is_deleted_wherever_it_got_to() {
    for copy in [ppod(), ppod().set(&["spec"], json!({}))] {
        let ended = recorded().running().phase("Failed");
        let plan = plan_pod(&snapshot(Some(&ended), Some(&copy)));
        let ended =
            matches!(plan.actions.as_slice(), [PodAction::DeletePpod { why: DeleteReason::VpodEnded, .. }]);
        assert!(ended, "{plan:#?}");
    }
    check_words(
        &snapshot(Some(&recorded().running().phase("Failed")), Some(&ppod().phase("Succeeded"))),
        &[],
    );
}

#[test]
fn the_deletion_event_of_a_copy_that_was_not_being_deleted_is_no_proof() {
    let mut seen = snapshot(Some(&recorded().running()), None);
    seen.absence = not_shown(&ppod().phase("Running"));
    check_words(&seen, &["confirm-ppod"]);
    seen.absence = witnessed(&ppod().phase("Running"));
    check_words(&seen, &["fail"]);
}

#[test]
fn a_copy_that_lost_its_label_is_known_by_stamp_and_uid() {
    let bare = ppod().without_label(label::MANAGED_BY).ppod();
    let scope = scope();
    let vpod = vpod().vpod();
    let claim = crate::pods::ownership::Claim { key: &vpod.key, uid: Some(&vpod.uid) };
    assert!(crate::pods::ownership::lost_label(&bare, &scope.stamp, claim).is_some());
    let other = crate::pods::ownership::Claim { key: &vpod.key, uid: Some("another") };
    assert!(crate::pods::ownership::lost_label(&bare, &scope.stamp, other).is_none(), "an earlier pod's");
    let unstamped = ppod().without_label(label::MANAGED_BY).without_label(label::CLUSTER_BINDING).ppod();
    assert!(crate::pods::ownership::lost_label(&unstamped, &scope.stamp, claim).is_none());
}

fn daemonset() -> Pod {
    vpod().set(
        &["metadata", "ownerReferences"],
        json!([{
            "apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": "d"
        }]),
    )
}

#[test]
fn a_binding_that_runs_daemonsets_creates_their_pods() {
    let mut snapshot = snapshot(Some(&daemonset()), None);
    Arc::make_mut(&mut snapshot.scope).running_daemonset_by_default = true;
    check_words(&snapshot, &["map", "create"]);
}

#[rstest]
#[case::vnode_gone(VnodeState::Missing, &[], Wake::OnEvent)]
#[case::vnode_of_another_binding(VnodeState::NotOurs, &[], Wake::OnEvent)]
#[case::vnode_withdrawn(VnodeState::Ours { worker_node: Some("n".into()), deleting: true }, &[], Wake::OnEvent)]
#[case::vnode_without_its_label(VnodeState::Ours { worker_node: None, deleting: false }, &["refuse"], Wake::Backoff)]
fn unmapped_pod_by_vnode(#[case] vnode: VnodeState, #[case] expected: &[&str], #[case] wake: Wake) {
    let mut snapshot = snapshot(Some(&vpod()), None);
    snapshot.vnode = vnode;
    check_words(&snapshot, expected);
    assert_eq!(plan_pod(&snapshot).wake, wake);
}

#[test]
fn nothing_is_created_while_the_binding_is_deleted() {
    let mut snapshot = snapshot(Some(&vpod()), None);
    Arc::make_mut(&mut snapshot.scope).binding_deleting = true;
    check_words(&snapshot, &[]);
}

#[rstest]
#[case::recorded_copy_was_deleted(recorded(), ppod(), &["fail"])]
#[case::copy_ran_before_its_uid_was_recorded(mapped(), ppod().running(), &["fail"])]
#[case::copy_vanished_before_it_started(mapped(), ppod(), &["create"])]
#[case::copy_had_succeeded(recorded().running(), ppod().running().phase("Succeeded"), &["report"])]
#[case::copy_of_an_earlier_pod(mapped(), ppod().annotate(annotation::VIRTUAL_POD_UID, "v0"), &["create"])]
fn after_the_deleted_event(#[case] pod: Pod, #[case] lost: Pod, #[case] expected: &[&str]) {
    let mut snapshot = snapshot(Some(&pod), None);
    snapshot.absence = witnessed(&lost);
    check_words(&snapshot, expected);
}

#[test]
fn a_confirmed_loss_fails_the_pod() {
    let mut snapshot = snapshot(Some(&recorded().running()), None);
    snapshot.absence = Absence::Confirmed;
    check_words(&snapshot, &["fail"]);
}

#[rstest]
#[case::status_and_uid_in_one_write(mapped(), ppod().running(), &["report"])]
#[case::uid_alone_after_a_second(mapped(), ppod(), &["report"])]
#[case::a_mapping_that_was_taken_off_comes_back(vpod(), ppod(), &["report"])]
#[case::forged_uid_is_repaired(recorded().annotate(annotation::PHYSICAL_POD_UID, "x"), ppod(), &["report"])]
#[case::label_goes_down(recorded().label("tier", "front"), ppod(), &["follow"])]
#[case::empty_label_goes_down(recorded().label("tier", ""), ppod(), &["follow"])]
#[case::internal_annotation_stays(recorded().annotate(annotation::VIRTUAL_POD_UID, "x"), ppod(), &[])]
#[case::deadline_is_set(recorded().set(&["spec", "activeDeadlineSeconds"], 60), ppod(), &["follow"])]
#[case::deadline_is_never_extended(
    recorded().set(&["spec", "activeDeadlineSeconds"], 60), ppod().set(&["spec", "activeDeadlineSeconds"], 30), &[]
)]
#[case::debug_container(
    recorded().set(&["spec", "ephemeralContainers"], json!([{"name": "debug"}])), ppod(), &["debug"]
)]
#[case::spec_as_brought_down(
    recorded(), ppod().annotate(annotation::EXPECTED_SPEC, &recorded().vpod().spec.mutable), &[]
)]
#[case::changed_image(
    recorded().set(&["spec", "containers"], json!([{"name": "main", "image": "app:2"}])),
    ppod().annotate(annotation::EXPECTED_SPEC, &recorded().vpod().spec.mutable),
    &["follow-spec"]
)]
#[case::copy_of_the_original_is_not_followed_in_its_spec(
    recorded().set(&["spec", "containers"], json!([{"name": "main", "image": "app:2"}])), ppod(), &[]
)]
#[case::spec_note_of_nobody(recorded(), ppod().annotate(annotation::EXPECTED_SPEC, "garbage"), &[])]
#[case::ended_copy_is_left_alone(
    recorded().running().phase("Succeeded").label("tier", "front"), ppod().running().phase("Succeeded"), &[]
)]
#[case::copy_of_the_original_is_stamped(recorded(), unstamped(), &["follow"])]
fn with_a_copy(#[case] pod: Pod, #[case] copy: Pod, #[case] expected: &[&str]) {
    let recorded_blank = pod.vpod().status.blank && pod.vpod().recorded_uid().is_some();
    let pod = if recorded_blank { marked(pod) } else { pod };
    check_words(&snapshot(Some(&pod), Some(&copy)), expected);
}

#[rstest]
#[case::other_binding(ppod().label(label::CLUSTER_BINDING, "west"))]
#[case::other_cluster(ppod().annotate(annotation::COMPUTING_CLUSTER_UID, "other"))]
#[case::no_back_reference(ppod().annotate(annotation::VIRTUAL_POD_NAME, ""))]
#[case::copy_of_another_pod(ppod().annotate(annotation::VIRTUAL_POD_NAME, "web-1"))]
#[case::unmanaged(ppod().label(label::MANAGED_BY, "helm"))]
#[case::unstamped_of_an_unknown_vnode(
    unstamped().annotate(annotation::VIRTUAL_POD_UID, "v0").annotate(annotation::VIRTUAL_NODE_NAME, "vnode-b-1")
)]
#[case::unstamped_on_a_vnode_named_like_ours(unstamped().annotate(annotation::VIRTUAL_POD_UID, "v0"))]
#[case::other_cluster_on_a_vnode_named_like_ours(
    ppod().annotate(annotation::VIRTUAL_POD_UID, "v0").annotate(annotation::COMPUTING_CLUSTER_UID, "other")
)]
#[case::half_a_stamp_on_a_vnode_named_like_ours(
    ppod().annotate(annotation::VIRTUAL_POD_UID, "v0").without_label(label::CLUSTER_BINDING)
)]
fn foreign_pods_are_never_written(#[case] copy: Pod) {
    let mut seen = snapshot(Some(&vpod()), Some(&copy));
    seen.gone_vpods.insert("v0".into());
    let plan = plan_pod(&seen);
    let [PodAction::Refuse(refusal)] = plan.actions.as_slice() else { panic!("{plan:#?}") };
    assert_eq!(refusal.reason, RefusalReason::NameConflict);
    for hidden in [MOUNT, "west", "web-1", "other"] {
        assert!(!refusal.message.contains(hidden), "{}", refusal.message);
    }
    assert!(refusal.particulars.as_ref().is_some_and(|it| it.contains(MOUNT)), "the log tells which pod");
    assert_eq!(plan.wake, Wake::Backoff);
    // Whatever state the vpod is in, and with forged annotations too.
    for pod in [recorded(), recorded().running(), recorded().deleting(30), recorded().phase("Failed")] {
        let plan = plan_pod(&snapshot(Some(&pod), Some(&copy)));
        let writes = plan.actions.iter().any(|action| {
            matches!(
                action,
                PodAction::DeletePpod { .. }
                    | PodAction::PatchPpod { .. }
                    | PodAction::AddEphemeralContainers { .. }
            )
        });
        assert!(!writes, "{plan:#?}");
    }
}

#[test]
fn the_copy_of_an_earlier_pod_goes_when_that_pod_is_known_to_be_gone() {
    let copy = ppod().annotate(annotation::VIRTUAL_POD_UID, "v0");
    let mut snapshot = snapshot(Some(&vpod()), Some(&copy));
    check_words(&snapshot, &["confirm-vpod"]);
    snapshot.gone_vpods.insert("v0".into());
    check_words(&snapshot, &["delete-stale"]);
    snapshot.ppod = Some(Arc::new(copy.deleting(30).ppod()));
    check_words(&snapshot, &[]);
}

#[test]
fn a_copy_at_another_place_is_deleted() {
    let mut snapshot = snapshot(Some(&recorded()), Some(&ppod()));
    snapshot.strays =
        vec![Arc::new(ppod().set(&["metadata", "name"], "clone").set(&["metadata", "uid"], "c").ppod())];
    check_words(&snapshot, &["delete"]);
}

#[rstest]
#[case::in_time("2026-01-05T11:56:00Z", 4, &["report"])]
#[case::too_late("2026-01-05T11:55:00Z", 5, &["confirm-unscheduled", "fail", "delete"])]
#[case::by_a_clock_that_is_behind("2026-01-05T10:00:00Z", 4, &["report"])]
#[case::by_a_clock_that_is_ahead("2026-01-05T14:00:00Z", 4, &["report"])]
fn unscheduled_copies(#[case] created: &str, #[case] minutes: u64, #[case] expected: &[&str]) {
    let copy = ppod().set(&["spec", "nodeName"], "").set(&["metadata", "creationTimestamp"], created).set(
        &["status", "conditions"],
        json!([{"type": "PodScheduled", "status": "False", "message": "0/1 nodes are available for node-1"}]),
    );
    let mut snapshot = snapshot(Some(&recorded()), Some(&copy));
    snapshot.unscheduled_for = Duration::from_mins(minutes);
    let plan = plan_pod(&snapshot);
    assert_eq!(words(&plan), expected);
    if let Some(PodAction::FailVpod { message, .. }) = plan.actions.get(1) {
        let why = format!("the pod within 300 s: 0/1 nodes are available for {VNODE}");
        assert!(message.contains(&why), "{message}");
    } else {
        assert_eq!(plan.wake, Wake::At("2026-01-05T12:01:00Z".parse().unwrap()));
    }
    // A crash between the two: the vpod has ended, its ppod still waits.
    if expected.len() == 3 {
        snapshot.vpod = Some(Arc::new(recorded().phase("Failed").vpod()));
        check_words(&snapshot, &["delete"]);
    }
}

#[test]
fn small_news_wait_for_a_second_and_important_ones_do_not() {
    let mut snapshot =
        snapshot(Some(&recorded().running()), Some(&ppod().running().set(&["status", "reason"], "Slow")));
    snapshot.status_written = Some(now());
    let plan = plan_pod(&snapshot);
    assert_eq!((words(&plan), plan.wake), (vec![], Wake::At("2026-01-05T12:00:01Z".parse().unwrap())));
    snapshot.ppod = Some(Arc::new(ppod().running().phase("Succeeded").ppod()));
    check_words(&snapshot, &["report"]);
}

#[rstest]
#[case::nothing(mapped(), ppod(), 3)]
#[case::no_place(
    mapped(), ppod().set(&["status", "conditions"], json!([{"type": "PodScheduled", "status": "False", "message": "full"}])), -1
)]
#[case::a_container(mapped(), ppod().set(&["status", "hostIP"], "10.1.0.1"), -1)]
#[case::refused_before(
    mapped().set(&["status", "conditions"], json!([{"type": "WorkerPodCreated", "status": "False", "reason": "DependencyMissing"}])), ppod(), -1
)]
#[case::a_label_of_the_worker(mapped(), ppod().label("zone", "a"), -1)]
fn that_there_is_a_ppod_is_told_at_once_only_with_something_else(
    #[case] vpod: Pod,
    #[case] ppod: Pod,
    #[case] due_in: i64,
) {
    let ppod = ppod.set(&["metadata", "creationTimestamp"], "2026-01-05T11:59:58Z");
    let snapshot = snapshot(Some(&vpod), Some(&ppod));
    let plan = plan_pod(&snapshot);
    if due_in > 0 {
        let due = now() + jiff::SignedDuration::from_secs(due_in);
        assert_eq!((words(&plan), plan.wake), (vec![], Wake::At(due)));
    } else {
        assert_eq!(words(&plan), ["report"]);
    }
}

#[test]
fn a_dropped_status_is_read_again_when_somebody_changes_the_vpod() {
    let pod = recorded().running();
    let mut copy = ppod().running().ppod();
    copy.status.fields = None;
    let mut snapshot = snapshot(Some(&pod), None);
    snapshot.ppod = Some(Arc::new(copy));
    snapshot.mirrored = Some(pod.vpod().status.hashes.total());
    check_words(&snapshot, &[]);
    snapshot.vpod = Some(Arc::new(pod.set(&["status", "reason"], "NodeLost").vpod()));
    check_words(&snapshot, &["read"]);
}

#[test]
fn the_check_names_the_owner_of_a_foreign_pod() {
    let snapshot = snapshot(Some(&vpod()), None);
    let copy = ppod().label(label::CLUSTER_BINDING, "west").ppod();
    let Ownership::Foreign(why) = check(&copy, &snapshot.scope.stamp, snapshot.claim()) else {
        panic!("it is foreign")
    };
    assert!(why.contains("west"), "{why}");
}
