//! Plans of one object, applied to a model of two clusters.

mod histories;
mod volumes;
mod world;

use kubeocean_api::keys::{annotation, label};
use rstest::rstest;
use serde_json::{Value, json};

use self::world::{World, east, scope};
use super::{
    content::Content,
    kind::{ObjectKind, ObjectRef},
    kinds::{Around, Change, Needs},
    ownership::{Marks, has_to_look},
    plan::{Action, Purpose, Scope, Snapshot, Verdict, Wanted, choose_place, plan_object},
    view::{Original, WorkerCopy},
};
use crate::simulation::merge;

#[test]
fn the_first_pod_claims_the_original_and_then_makes_the_copy() {
    let mut world = World::new(ObjectKind::ConfigMap);
    let plan = world.plan(&east(), Purpose::Keep);
    insta::assert_json_snapshot!(plan);
    for action in &plan.actions {
        world.perform(&east(), action);
    }
    assert_eq!(world.plan(&east(), Purpose::Keep).actions, [], "converged");
}

#[test]
fn release_restores_the_original_exactly() {
    ObjectKind::ALL.into_iter().for_each(released);
}

fn released(kind: ObjectKind) {
    let fresh = World::new(kind);
    let mut world = fresh.clone();
    world.run(&east(), Purpose::Keep);
    assert_eq!(world.run(&east(), Purpose::Release), (Verdict::Released, 2));
    assert_eq!(world.copy, None);
    let mut meta = world.original_meta().clone();
    meta["resourceVersion"] = "1".into();
    meta.as_object_mut().unwrap().remove("finalizers");
    assert_eq!(meta, *fresh.original_meta());
}

#[test]
fn changed_data_labels_and_removed_keys_reach_the_copy_in_one_write() {
    let mut world = World::held(&east());
    let original = world.original.as_mut().unwrap();
    original["data"] = json!({"a": "changed"});
    original["metadata"]["labels"].as_object_mut().unwrap().remove("app");
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, 1));
    let copy = world.copy.as_ref().unwrap();
    assert_eq!(copy["data"], json!({"a": "changed"}));
    assert_eq!(copy["metadata"]["labels"].get("app"), None);
    assert_eq!(copy["metadata"]["annotations"].get(annotation::LAST_APPLIED), None);
}

#[test]
fn a_copy_edited_by_hand_is_restored_and_one_that_was_only_labelled_is_left_alone() {
    let mut world = World::held(&east());
    world.set_copy("/metadata/labels", "site", "a".into());
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, 0));
    world.set_copy("/data", "a", "edited".into());
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, 1));
    assert_eq!(world.copy.as_ref().unwrap()["data"]["a"], "1");
    world.copy = None;
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, 1), "deleted by hand: created again");
}

#[test]
fn a_copy_of_a_former_original_is_replaced() {
    let mut world = World::held(&east());
    world.original = World::new(ObjectKind::ConfigMap).original;
    world.original.as_mut().unwrap()["metadata"]["uid"] = "v2".into();
    let plan = world.plan(&east(), Purpose::Keep);
    assert_eq!(plan.verdict, Verdict::Replacing);
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, 3), "claim, delete, create");
    assert_eq!(world.copy_meta()["annotations"][annotation::VIRTUAL_UID], "v2");
}

#[test]
fn a_copy_that_is_being_deleted_is_waited_for() {
    let mut world = World::held(&east());
    world.set_copy("/metadata", "deletionTimestamp", "2026-01-01T00:00:00Z".into());
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Replacing, 0));
}

#[test]
fn a_secret_of_another_type_and_an_immutable_copy_are_replaced() {
    let mut world = World::new(ObjectKind::Secret);
    world.run(&east(), Purpose::Keep);
    world.original.as_mut().unwrap()["type"] = "kubernetes.io/tls".into();
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, 2));
    assert_eq!(world.copy.as_ref().unwrap()["type"], "kubernetes.io/tls");

    let mut world = World::held(&east());
    world.copy.as_mut().unwrap()["immutable"] = true.into();
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, 0));
    world.original.as_mut().unwrap()["data"]["a"] = "9".into();
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, 2));
}

#[rstest]
#[case::another_computing_cluster(json!({"annotations": {(annotation::COMPUTING_CLUSTER_UID): "other"}}))]
#[case::another_object(json!({"annotations": {(annotation::VIRTUAL_NAME): "else"}}))]
#[case::nobody(json!({
    "labels": {(label::MANAGED_BY): null}, "annotations": {(annotation::COMPUTING_CLUSTER_UID): null},
}))]
fn a_foreign_object_is_never_touched_and_never_holds_up_a_release(#[case] change: Value) {
    let mut world = World::held(&east());
    merge(world.copy.as_mut().unwrap(), &json!({"metadata": change}));
    let copy = world.copy.clone();
    assert!(matches!(world.run(&east(), Purpose::Keep), (Verdict::Foreign { .. }, 0)));
    world.delete_original();
    assert!(matches!(world.run(&east(), Purpose::Keep), (Verdict::Foreign { .. }, 1)));
    assert_eq!((&world.original, &world.copy), (&None, &copy));
    // Whoever could do without the object would read somebody else's.
    assert!(matches!(world.run(&east(), Purpose::Keep), (Verdict::Foreign { .. }, 0)));
    assert_eq!(world.run(&east(), Purpose::Release), (Verdict::Released, 0));
    assert_eq!(world.copy, copy);
}

#[test]
fn a_copy_of_the_original_system_is_adopted() {
    let mut world = World::held(&east());
    let legacy = json!({
        "labels": {(label::CLUSTER_BINDING): null, "kubeocean.io/synced-by-east": null},
        "annotations": {
            (annotation::COMPUTING_CLUSTER_UID): null, (annotation::VIRTUAL_UID): null,
            (annotation::LAST_APPLIED): "{}",
        },
    });
    merge(world.copy.as_mut().unwrap(), &json!({"metadata": legacy}));
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, 1));
    let meta = world.copy_meta();
    assert_eq!(meta["annotations"][annotation::VIRTUAL_UID], "v1");
    assert_eq!(meta["labels"][label::CLUSTER_BINDING], "binding-east");
    assert_eq!(meta["annotations"].get(annotation::LAST_APPLIED), None);
}

#[rstest]
#[case::another_clusters_object_of_the_name(json!({"finalizers": null, "labels": null}), false)]
#[case::ours(json!({}), true)]
#[case::of_a_binding_whose_deletion_was_begun(
    json!({"finalizers": null, "labels": null, "annotations": {"kubeocean.io/deleting-east": "true"}}), true
)]
fn an_unstamped_copy_is_ours_only_if_the_object_has_our_marks(#[case] change: Value, #[case] ours: bool) {
    for purpose in [Purpose::Keep, Purpose::Release] {
        let mut world = World::held(&east());
        let stamps = json!({(annotation::COMPUTING_CLUSTER_UID): null, (annotation::VIRTUAL_UID): null});
        merge(world.copy.as_mut().unwrap(), &json!({"metadata": {"annotations": stamps}}));
        merge(world.original.as_mut().unwrap(), &json!({"metadata": change}));
        let before = world.copy.clone();
        let (verdict, _) = world.run(&east(), purpose);
        assert_eq!(world.copy != before, ours);
        assert_eq!(matches!(verdict, Verdict::Foreign { .. }), !ours && purpose == Purpose::Keep);
        assert!(
            ours || verdict != Verdict::Ready,
            "and no marks are put on it, which would be a proof next time"
        );
        if purpose == Purpose::Release {
            assert_eq!(world.original_meta()["annotations"].get("kubeocean.io/deleting-east"), None);
        }
    }
}

/// The original of another computing cluster was faster than the watch of copies, and than our creation.
#[rstest]
#[case::before_we_look(false)]
#[case::between_our_look_and_our_creation(true)]
fn marks_that_we_put_on_an_object_just_now_are_no_proof_and_do_not_stay(#[case] late: bool) {
    let mut theirs = World::held(&east()).copy.unwrap();
    let stamps = json!({(annotation::COMPUTING_CLUSTER_UID): null, (annotation::VIRTUAL_UID): null});
    merge(&mut theirs, &json!({"metadata": {"annotations": stamps}}));

    let mut world = World::new(ObjectKind::ConfigMap);
    let mut marks = Marks::default();
    let seen = |world: &World| Original::of(world.object.kind, world.original.as_ref().unwrap());
    assert!(has_to_look(&east(), Some(&seen(&world))), "no index shows it");
    assert!(!marks.are_new(&east(), &seen(&world)));
    if late {
        let claim = world.plan(&east(), Purpose::Keep).actions.remove(0);
        world.perform(&east(), &claim);
        assert!(!has_to_look(&east(), Some(&seen(&world))), "a write of ours will tell");
        world.marks_are_new = marks.are_new(&east(), &seen(&world));
    }
    assert!(!Marks::default().are_new(&east(), &seen(&world)), "of older ones nobody says so");
    world.copy = Some(theirs.clone());
    let (verdict, writes) = world.run(&east(), Purpose::Keep);
    assert!(matches!(verdict, Verdict::Foreign { .. }), "{verdict:?}");
    assert_eq!((writes, &world.copy), (usize::from(late), &Some(theirs)));
    let marked = world.original_meta().to_string().contains("east");
    assert!(!marked, "{}", world.original_meta());
}

/// Whoever may write an object of the computing cluster can put our marks on it, but not make it older.
#[rstest]
#[case::made_before_its_copy("2026-01-01T10:00:00Z", true)]
#[case::by_a_clock_that_is_ahead("2026-01-01T10:14:00Z", true)]
#[case::made_long_after_it("2026-01-01T10:16:00Z", false)]
fn an_unstamped_copy_is_no_older_than_what_it_copies(#[case] made: &str, #[case] ours: bool) {
    let mut world = World::held(&east());
    let legacy = json!({
        "creationTimestamp": "2026-01-01T10:05:00Z",
        "annotations": {(annotation::COMPUTING_CLUSTER_UID): null, (annotation::VIRTUAL_UID): null},
    });
    merge(world.copy.as_mut().unwrap(), &json!({"metadata": legacy}));
    world.set_original("/metadata", "creationTimestamp", made.into());
    let before = world.copy.clone();
    let (verdict, _) = world.run(&east(), Purpose::Keep);
    assert_eq!((verdict == Verdict::Ready, world.copy != before), (ours, ours));
    assert_eq!(matches!(verdict, Verdict::Foreign { .. }), !ours);
}

#[test]
fn without_an_original_only_a_stamped_copy_is_removed() {
    let mut world = World::held(&east());
    world.original = None;
    let mut legacy = world.clone();
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Missing, 1));
    assert_eq!(world.copy, None);

    let unstamped = json!({"metadata": {"annotations": {(annotation::COMPUTING_CLUSTER_UID): null}}});
    merge(legacy.copy.as_mut().unwrap(), &unstamped);
    assert_eq!(legacy.run(&east(), Purpose::Release), (Verdict::Released, 0));
}

#[test]
fn bindings_that_share_a_copy_leave_it_to_the_last_one() {
    let (east, west) = (east(), scope("west", "mount"));
    let mut world = World::held(&east);
    assert_eq!(world.run(&west, Purpose::Keep), (Verdict::Ready, 2), "claim, and a label on the copy");
    assert_eq!(world.run(&east, Purpose::Keep), (Verdict::Ready, 0), "they do not undo each other");
    assert_eq!(world.copy_meta()["labels"][label::CLUSTER_BINDING], "binding-east", "who made it");

    world.run(&east, Purpose::Release);
    assert!(world.copy.is_some());
    assert!(
        world.original_meta()["annotations"].get(annotation::PHYSICAL_NAME).is_some(),
        "west still needs it"
    );
    assert_eq!(world.run(&west, Purpose::Keep), (Verdict::Ready, 0));
    world.run(&west, Purpose::Release);
    assert_eq!(world.copy, None);
    assert_eq!(world.original_meta()["labels"], json!({"app": "web"}));
}

#[test]
fn a_copy_that_another_binding_joins_before_it_is_deleted_is_left_to_that() {
    let (east, west) = (east(), scope("west", "mount"));
    let mut world = World::held(&east);
    let plan = world.plan(&east, Purpose::Release);
    let [Action::DeleteCopy { version: Some(version), .. }, ..] = &plan.actions[..] else {
        panic!("{plan:#?}")
    };
    assert_eq!(world.copy_meta()["resourceVersion"], *version);
    world.run(&west, Purpose::Keep);
    assert_ne!(world.copy_meta()["resourceVersion"], *version, "so that the API server refuses it");
    world.run(&east, Purpose::Release);
    assert_eq!(world.run(&west, Purpose::Keep), (Verdict::Ready, 0));
}

#[test]
fn bindings_with_different_mount_namespaces_do_not_overwrite_each_other() {
    let (east, west) = (east(), scope("west", "elsewhere"));
    let mut in_east = World::held(&east);
    let mut in_west = World { copy: None, ..in_east.clone() };
    assert_eq!(in_west.run(&west, Purpose::Keep), (Verdict::Ready, 2));
    in_east.original = in_west.original.clone();
    assert_eq!(in_east.run(&east, Purpose::Keep), (Verdict::Ready, 0));
    assert_eq!(in_west.original_meta()["annotations"][annotation::PHYSICAL_NAMESPACE], "mount");

    // The vobj is deleted: each removes its own copy, and the last one lets go of it.
    in_east.delete_original();
    in_east.run(&east, Purpose::Keep);
    assert_eq!(in_east.copy, None);
    in_west.original = in_east.original.clone();
    in_west.run(&west, Purpose::Keep);
    assert_eq!((in_west.original, in_west.copy), (None, None));
}

#[test]
fn every_claim_says_of_which_version_it_is_made() {
    let mut world = World::held(&east());
    for stripped in [vec![label::MANAGED_BY], vec![annotation::PHYSICAL_NAMESPACE, annotation::PHYSICAL_NAME]]
    {
        let original = world.original.as_mut().unwrap();
        for key in stripped {
            for kept in ["labels", "annotations"] {
                original["metadata"][kept].as_object_mut().unwrap().remove(key);
            }
        }
        let version = original["metadata"]["resourceVersion"].clone();
        let plan = world.plan(&east(), Purpose::Keep);
        // Content written since would be taken for that of the copy.
        let [Action::ClaimOriginal { patch }] = &plan.actions[..] else { panic!("{plan:#?}") };
        assert_eq!(patch["metadata"]["resourceVersion"], version);
        world.run(&east(), Purpose::Keep);
    }
}

#[test]
fn a_stripped_label_or_finalizer_does_not_block_anything() {
    for strip in [
        json!({"labels": {(label::MANAGED_BY): null}}),
        json!({"finalizers": null}),
        json!({"annotations": {(annotation::PHYSICAL_NAME): "forged", (annotation::PHYSICAL_NAMESPACE): "forged"}}),
    ] {
        let mut world = World::held(&east());
        merge(world.original.as_mut().unwrap(), &json!({"metadata": strip}));
        assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, 1), "repaired: {strip}");
        merge(world.original.as_mut().unwrap(), &json!({"metadata": strip}));
        world.run(&east(), Purpose::Release);
        assert_eq!(world.copy, None);
        assert_eq!(world.original_meta()["labels"], json!({"app": "web"}));
    }
}
