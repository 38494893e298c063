//! What is particular to claims and volumes.

use super::{world::claim_uid, *};

const CLAIM: ObjectKind = ObjectKind::PersistentVolumeClaim;
const VOLUME: ObjectKind = ObjectKind::PersistentVolume;

#[test]
fn the_copy_of_a_claim_is_bound_to_the_copy_of_its_volume_and_to_nothing_else() {
    let world = World::held_of(CLAIM, &east());
    insta::assert_json_snapshot!(world.copy.unwrap()["spec"]);
}

#[test]
fn the_copy_of_a_volume_is_kept_for_the_copy_of_its_claim() {
    let world = World::held_of(VOLUME, &east());
    let copy = world.copy.unwrap();
    assert_eq!(copy["metadata"]["name"], world.object.copy_name());
    assert_eq!(copy["metadata"].get("namespace"), None);
    insta::assert_json_snapshot!(copy["spec"]);
}

#[test]
fn annotations_of_the_storage_controllers_neither_travel_nor_are_removed() {
    for kind in [CLAIM, VOLUME] {
        let mut world = World::new(kind);
        let bookkeeping = json!({
            "pv.kubernetes.io/bind-completed": "yes", "volume.kubernetes.io/selected-node": "vnode-east-n1",
            "volume.beta.kubernetes.io/storage-provisioner": "p",
        });
        let mounts = "volume.beta.kubernetes.io/mount-options";
        merge(world.original.as_mut().unwrap(), &json!({"metadata": {"annotations": bookkeeping}}));
        world.set_original("/metadata/annotations", mounts, "ro".into());
        world.run(&east(), Purpose::Keep);
        let annotations = world.copy_meta()["annotations"].clone();
        for key in bookkeeping.as_object().unwrap().keys() {
            assert_eq!(annotations.get(key), None, "{kind}");
        }
        assert_eq!(annotations[mounts], "ro", "{kind}");

        world.set_copy("/metadata/annotations", "pv.kubernetes.io/bound-by-controller", "yes".into());
        world.set_original("/metadata/annotations", "note", "changed".into());
        assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, 1));
        assert_eq!(world.copy_meta()["annotations"]["pv.kubernetes.io/bound-by-controller"], "yes", "{kind}");
    }
}

#[rstest]
#[case::of_no_class(json!({"storageClassName": null}), json!({}), "")]
#[case::of_an_older_annotation(
    json!({"storageClassName": null}), json!({"volume.beta.kubernetes.io/storage-class": "old"}), "old"
)]
fn the_class_of_a_claim_is_that_of_its_volume(
    #[case] spec: Value,
    #[case] annotations: Value,
    #[case] expected: &str,
) {
    let mut world = World::new(CLAIM);
    let volume = json!({"spec": spec, "metadata": {"annotations": annotations}});
    merge(world.neighbour.as_mut().unwrap(), &volume);
    world.run(&east(), Purpose::Keep);
    assert_eq!(world.copy.unwrap()["spec"]["storageClassName"], expected);
}

#[rstest]
#[case::pending(json!({"status": {"phase": "Pending"}}), json!({}))]
#[case::without_volume(json!({"spec": {"volumeName": null}}), json!({}))]
#[case::another_claims_volume(json!({}), json!({"spec": {"claimRef": {"name": "theirs"}}}))]
#[case::volume_of_another_namespace(json!({}), json!({"spec": {"claimRef": {"namespace": "theirs"}}}))]
#[case::volume_of_a_former_claim(json!({}), json!({"spec": {"claimRef": {"uid": "v0"}}}))]
#[case::volume_of_nobody(json!({}), json!({"spec": {"claimRef": null}}))]
fn a_claim_that_is_not_bound_on_both_sides_is_not_copied(#[case] claim: Value, #[case] volume: Value) {
    let mut world = World::new(CLAIM);
    merge(world.original.as_mut().unwrap(), &claim);
    merge(world.neighbour.as_mut().unwrap(), &volume);
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Unbound, 0));
    assert_eq!(world.run(&east(), Purpose::Release), (Verdict::Released, 0));
}

#[test]
fn more_room_travels_and_less_does_not() {
    let mut world = World::held_of(CLAIM, &east());
    for (size, writes, expected) in [("2Gi", 1, "2Gi"), ("1Gi", 0, "2Gi"), ("2048Mi", 0, "2Gi")] {
        world.set_original("/spec/resources/requests", "storage", size.into());
        assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, writes), "{size}");
        assert_eq!(world.copy.as_ref().unwrap()["spec"]["resources"]["requests"]["storage"], expected);
    }
    let mut world = World::held_of(VOLUME, &east());
    for (size, writes, expected) in [("2Gi", 1, "2Gi"), ("1Gi", 0, "2Gi")] {
        world.set_original("/spec/capacity", "storage", size.into());
        assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, writes), "{size}");
        assert_eq!(world.copy.as_ref().unwrap()["spec"]["capacity"]["storage"], expected);
    }
}

#[test]
fn a_copy_that_names_vnodes_is_made_anew_and_names_no_nodes() {
    let mut world = World::held_of(VOLUME, &east());
    let affinity = |node: &str| {
        json!({"required": {"nodeSelectorTerms": [{"matchExpressions": [
            {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]},
        ]}]}})
    };
    assert_eq!(
        world.copy.as_ref().unwrap()["spec"].get("nodeAffinity"),
        None,
        "any pod of any binding may use it"
    );
    world.set_copy("/spec", "nodeAffinity", affinity("node-1"));
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, 0), "it is in use, and it can be used");
    world.set_copy("/spec", "nodeAffinity", affinity("vnode-east-n1"));
    let plan = world.plan(&east(), Purpose::Keep);
    assert!(matches!(&plan.actions[..], [Action::DeleteCopy { .. }]), "{plan:#?}");
}

#[test]
fn a_volume_forgets_a_claim_that_was_made_anew() {
    let mut world = World::held_of(VOLUME, &east());
    world.neighbour = Some(claim_uid());
    let bound = json!({"spec": {"claimRef": {"uid": "pc1", "resourceVersion": "9"}}});
    merge(world.copy.as_mut().unwrap(), &bound);
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, 0), "it is bound");

    let reference = |world: &World| world.copy.as_ref().unwrap()["spec"]["claimRef"].clone();
    world.neighbour.as_mut().unwrap()["metadata"]["uid"] = "pc2".into();
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, 1));
    assert_eq!(reference(&world).get("uid"), None);
    assert_eq!(reference(&world).get("resourceVersion"), None);

    // Bound to another claim of the computing cluster.
    merge(world.copy.as_mut().unwrap(), &bound);
    world.set_original("/spec/claimRef", "name", "other".into());
    world.neighbour = None;
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, 1));
    let claim = ObjectRef::new(CLAIM, "team-a", "other");
    assert_eq!((&reference(&world)["name"], reference(&world).get("uid")), (&json!(claim.copy_name()), None));

    // A claim of that name that nobody made for us does not count.
    merge(world.copy.as_mut().unwrap(), &bound);
    world.neighbour = Some(json!({"metadata": {"uid": "pc1"}}));
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, 1));
    assert_eq!(reference(&world).get("uid"), None);
}

#[rstest]
#[case::another_mount_namespace(json!({}), &scope("west", "elsewhere"))]
#[case::another_computing_cluster(
    json!({"metadata": {"annotations": {(annotation::COMPUTING_CLUSTER_UID): "other"}}}), &scope("west", "mount")
)]
#[case::another_mount_namespace_with_our_marks(
    json!({"metadata": {"labels": {"kubeocean.io/synced-by-west": "true"}}}), &scope("west", "elsewhere")
)]
#[case::other_storage_without_stamp(
    json!({
        "metadata": {
            "labels": {"kubeocean.io/synced-by-west": "true"},
            "annotations": {(annotation::COMPUTING_CLUSTER_UID): null, (annotation::VIRTUAL_UID): null},
        },
        "spec": {"csi": {"volumeHandle": "theirs"}},
    }),
    &scope("west", "mount")
)]
#[case::somebody(
    json!({"metadata": {"labels": null, "annotations": null}}), &scope("west", "mount")
)]
fn a_volume_whose_name_is_taken_has_a_second_one(#[case] change: Value, #[case] west: &Scope) {
    let mut theirs = World::held_of(VOLUME, &east());
    merge(theirs.copy.as_mut().unwrap(), &change);
    let first = theirs.copy.clone();

    let mut world = World { copy: first.clone(), ..theirs.clone() };
    let plan = world.plan(west, Purpose::Keep);
    let [.., Action::CreateCopy { metadata }] = &plan.actions[..] else { panic!("{plan:#?}") };
    let second = kubeocean_api::name::phys_name("settings", &west.mount_namespace);
    assert_eq!(metadata["name"], second);
    world.copy = None;
    for action in &plan.actions {
        world.perform(west, action);
    }
    let copy = world.copy.clone().unwrap();
    assert_eq!(copy["spec"]["claimRef"]["namespace"], *west.mount_namespace);
    assert_eq!(world.run(west, Purpose::Keep), (Verdict::Ready, 0), "it stays where it is");
    assert_eq!(world.run(west, Purpose::Release).0, Verdict::Released);
    assert_eq!(world.copy, None);

    // Without a copy of its own it leaves the other one alone.
    world.copy.clone_from(&first);
    world.run(west, Purpose::Release);
    assert_eq!(world.copy, first);
}

/// Whoever may write volumes can stamp one as ours.
#[test]
fn a_copy_that_stands_for_other_storage_is_made_anew() {
    for change in
        [json!({"csi": {"volumeHandle": "theirs"}}), json!({"csi": null, "hostPath": {"path": "/"}})]
    {
        let mut world = World::held_of(VOLUME, &east());
        merge(world.copy.as_mut().unwrap(), &json!({"spec": change}));
        let plan = world.plan(&east(), Purpose::Keep);
        assert!(matches!(&plan.actions[..], [Action::DeleteCopy { .. }]), "{plan:#?}");
        world.run(&east(), Purpose::Keep);
        assert_eq!(world.copy.unwrap()["spec"]["csi"]["volumeHandle"], "h");
    }
}

/// The claim would otherwise be deleted, or the pods of its owner's mount what a tenant of this cluster says.
#[test]
fn an_unstamped_claim_of_another_volume_is_somebody_elses() {
    let mut world = World::held_of(CLAIM, &east());
    let stamps = json!({(annotation::COMPUTING_CLUSTER_UID): null, (annotation::VIRTUAL_UID): null});
    merge(world.copy.as_mut().unwrap(), &json!({"metadata": {"annotations": stamps}}));
    let adopted = world.clone().run(&east(), Purpose::Keep);
    assert_eq!(adopted, (Verdict::Ready, 1), "of the same volume it is adopted");
    for name in [kubeocean_api::name::phys_name("theirs", ""), "pv".to_owned()] {
        world.set_copy("/spec", "volumeName", name.into());
        let before = world.copy.clone();
        assert!(matches!(world.run(&east(), Purpose::Keep), (Verdict::Foreign { .. }, 0)));
        assert_eq!(world.clone().run(&east(), Purpose::Release), (Verdict::Released, 1));
        assert_eq!(world.copy, before);
    }
}

#[test]
fn a_secret_of_a_volume_says_so_on_both_sides_until_it_is_released() {
    let mut world = World::held_of(ObjectKind::Secret, &east());
    world.used_by_volume = true;
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Ready, 2));
    for meta in [world.original_meta(), world.copy_meta()] {
        assert_eq!(meta["labels"][label::USED_BY_PV], "true");
    }
    world.run(&east(), Purpose::Release);
    assert_eq!(world.original_meta()["labels"], json!({"app": "web"}));
}

#[test]
fn a_claim_that_holds_a_volume_to_be_replaced_goes_first() {
    let world = World::held_of(CLAIM, &east());
    let plan = world.seen(&east(), Purpose::Keep, |seen| {
        plan_object(&east(), &Snapshot { wanted: &Wanted::Renewed, ..*seen })
    });
    assert!(matches!(&plan.actions[..], [Action::DeleteCopy { .. }]), "{plan:#?}");
    assert_eq!(plan.verdict, Verdict::Replacing);
}
