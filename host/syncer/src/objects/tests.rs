//! Plans applied to a model of one object in two clusters. The model knows merge patches, finalizers and nothing else;
//! what API servers do is tested against real ones.

use kubeocean_api::keys::{annotation, label};
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::{
    content::Content,
    kind::{ObjectKind, ObjectRef},
    kinds::{Around, Change, Needs},
    plan::{Action, Purpose, Scope, Snapshot, Verdict, Wanted, choose_place, plan_object},
    view::{Original, WorkerCopy},
};
use crate::simulation::merge;

fn scope(cluster_id: &str, mount_namespace: &str) -> Scope {
    Scope {
        binding: format!("binding-{cluster_id}"),
        cluster_id: cluster_id.to_owned(),
        computing_uid: "cc".to_owned(),
        mount_namespace: mount_namespace.to_owned(),
    }
}

fn east() -> Scope {
    scope("east", "mount")
}

/// One object in both clusters. UIDs count up; every write makes a new resource version.
#[derive(Clone, Debug)]
struct World {
    object: ObjectRef,
    original: Option<Value>,
    copy: Option<Value>,
    /// What its kind reads beside it: the volume of a claim, the copy of the claim of a volume.
    neighbour: Option<Value>,
    used_by_volume: bool,
    clock: u32,
}

fn claim_uid() -> Value {
    json!({"metadata": {"uid": "pc1", "labels": {(label::MANAGED_BY): label::MANAGED_BY_VALUE}}})
}

impl World {
    fn new(kind: ObjectKind) -> Self {
        let namespace = if kind == ObjectKind::PersistentVolume { "" } else { "team-a" };
        let content = match kind {
            ObjectKind::ConfigMap | ObjectKind::Secret => json!({"data": {"a": "1", "b": "2"}}),
            ObjectKind::PersistentVolumeClaim => json!({
                "spec": {
                    "accessModes": ["ReadWriteMany"], "volumeName": "pv", "volumeMode": "Filesystem",
                    "storageClassName": "fast", "selector": {"matchLabels": {"a": "b"}},
                    "dataSource": {"kind": "PersistentVolumeClaim", "name": "seed"},
                    "dataSourceRef": {"kind": "PersistentVolumeClaim", "name": "seed"},
                    "resources": {"requests": {"storage": "1Gi"}},
                },
                "status": {"phase": "Bound"},
            }),
            ObjectKind::PersistentVolume => json!({
                "spec": {
                    "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteMany"],
                    "persistentVolumeReclaimPolicy": "Delete", "storageClassName": "fast",
                    "claimRef": {
                        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "resourceVersion": "7",
                        "namespace": "team-a", "name": "data", "uid": "vc1",
                    },
                    "csi": {
                        "driver": "example.test", "volumeHandle": "h",
                        "nodePublishSecretRef": {"name": "keys", "namespace": "vault"},
                        "nodeStageSecretRef": {"name": "stage", "namespace": "vault"},
                    },
                    "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [
                        {"key": "kubernetes.io/hostname", "operator": "In", "values": ["vnode-east-n1"]},
                    ]}]}},
                },
                "status": {"phase": "Bound"},
            }),
        };
        let neighbour = match kind {
            ObjectKind::PersistentVolumeClaim => Some(json!({"spec": {
                "storageClassName": "fast",
                "claimRef": {"namespace": "team-a", "name": "settings", "uid": "v1"},
            }})),
            _ => None,
        };
        let mut original = json!({
            "metadata": {
                "name": "settings", "uid": "v1", "resourceVersion": "1",
                "labels": {"app": "web"},
                "annotations": {"note": "x", (annotation::LAST_APPLIED): "{\"data\":{}}"},
            },
        });
        if !namespace.is_empty() {
            original["metadata"]["namespace"] = namespace.into();
        }
        original.as_object_mut().unwrap().extend(content.as_object().unwrap().clone());
        Self {
            object: ObjectRef::new(kind, namespace, "settings"),
            original: Some(original),
            copy: None,
            neighbour,
            used_by_volume: false,
            clock: 1,
        }
    }

    fn tick(&mut self) -> String {
        self.clock += 1;
        self.clock.to_string()
    }

    /// Calls `look` with the snapshot that the apply stage would make.
    fn seen<T>(&self, scope: &Scope, purpose: Purpose, look: impl FnOnce(&Snapshot<'_>) -> T) -> T {
        let kind = self.object.kind.mapped();
        let original = self.original.as_ref().map(|json| Original::of(self.object.kind, json));
        let here = |place: &String| {
            let copy = self.copy.as_ref().filter(|copy| copy["metadata"]["name"] == **place);
            (place.clone(), copy.map(|json| WorkerCopy::of(self.object.kind, json)))
        };
        let found: Vec<_> = kind.places(&self.object, scope).iter().map(here).collect();
        let (place, copy) = &found[choose_place(scope, &self.object, original.as_ref(), &found)];
        let around = Around { scope, neighbour: self.neighbour.as_ref(), place_of: &ObjectRef::copy_name };
        let wanted = match &self.original {
            Some(json) if kind.needs(&self.object, json, self.neighbour.as_ref()) != Needs::Unbound => {
                Wanted::Content(kind.wanted(json, &around))
            }
            _ => Wanted::Unbound,
        };
        look(&Snapshot {
            object: &self.object,
            purpose,
            original: original.as_ref(),
            copy: copy.as_ref(),
            place,
            wanted: &wanted,
            around: &around,
            used_by_volume: self.used_by_volume,
        })
    }

    fn plan(&self, scope: &Scope, purpose: Purpose) -> super::Plan {
        self.seen(scope, purpose, |snapshot| plan_object(scope, snapshot))
    }

    /// What the copy shall contain, and how it gets there.
    fn wanted(&self, scope: &Scope) -> (Content, Option<Change>) {
        self.seen(scope, Purpose::Keep, |snapshot| match snapshot.wanted {
            Wanted::Content(content) => (content.clone(), snapshot.change()),
            other => panic!("{other:?}"),
        })
    }

    fn perform(&mut self, scope: &Scope, action: &Action) {
        let version = self.tick();
        match action {
            Action::ClaimOriginal { patch } | Action::ReleaseOriginal { patch } => {
                let original = self.original.as_mut().expect("it was there when it was planned");
                merge(original, patch);
                original["metadata"]["resourceVersion"] = version.into();
                let held = original["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty());
                if original["metadata"].get("deletionTimestamp").is_some() && !held {
                    self.original = None;
                }
            }
            Action::CreateCopy { metadata } => {
                assert!(self.copy.is_none());
                let mut copy = Value::Object(self.wanted(scope).0.manifest());
                copy["metadata"] = metadata.clone();
                copy["metadata"]["uid"] = format!("p{version}").into();
                copy["metadata"]["resourceVersion"] = version.into();
                self.copy = Some(copy);
            }
            Action::UpdateCopy { metadata, .. } => {
                let (_, change) = self.wanted(scope);
                let copy = self.copy.as_mut().unwrap();
                merge(copy, &json!({"metadata": metadata}));
                if let Some(Change::Patch(content)) = change {
                    merge(copy, &content.into());
                }
                copy["metadata"]["resourceVersion"] = version.into();
            }
            Action::GrowCopy { .. } => {
                let (_, Some(Change::Grow(content))) = self.wanted(scope) else { panic!("it is not larger") };
                let copy = self.copy.as_mut().unwrap();
                merge(copy, &content.into());
                copy["metadata"]["resourceVersion"] = version.into();
            }
            Action::LeaveCopy { patch, .. } => {
                let copy = self.copy.as_mut().unwrap();
                merge(copy, patch);
                copy["metadata"]["resourceVersion"] = version.into();
            }
            Action::DeleteCopy { copy } => {
                assert_eq!(self.copy.as_ref().unwrap()["metadata"]["uid"], *copy.uid());
                self.copy = None;
            }
        }
    }

    /// Plans and performs until nothing is left to do; at most `limit` actions.
    fn run(&mut self, scope: &Scope, purpose: Purpose) -> (Verdict, usize) {
        let mut done = 0;
        loop {
            let plan = self.plan(scope, purpose);
            let Some(action) = plan.actions.first() else { return (plan.verdict, done) };
            self.perform(scope, action);
            done += 1;
            assert!(done < 10, "no end: {plan:?}");
        }
    }

    fn held(scope: &Scope) -> Self {
        Self::held_of(ObjectKind::ConfigMap, scope)
    }

    fn held_of(kind: ObjectKind, scope: &Scope) -> Self {
        let mut world = Self::new(kind);
        assert_eq!(world.run(scope, Purpose::Keep), (Verdict::Ready, 2));
        world
    }

    fn original_meta(&self) -> &Value {
        &self.original.as_ref().unwrap()["metadata"]
    }

    fn copy_meta(&self) -> &Value {
        &self.copy.as_ref().unwrap()["metadata"]
    }

    fn set_copy(&mut self, pointer: &str, key: &str, value: Value) {
        self.copy.as_mut().unwrap().pointer_mut(pointer).unwrap()[key] = value;
    }

    fn set_original(&mut self, pointer: &str, key: &str, value: Value) {
        self.original.as_mut().unwrap().pointer_mut(pointer).unwrap()[key] = value;
    }

    fn delete_original(&mut self) {
        self.original.as_mut().unwrap()["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    }
}

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
    }
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

/// What an owner changes in the original.
fn edited(kind: ObjectKind, value: u8) -> Value {
    match kind {
        ObjectKind::ConfigMap | ObjectKind::Secret => json!({"data": {"a": value.to_string(), "b": null}}),
        ObjectKind::PersistentVolumeClaim => {
            json!({"spec": {"resources": {"requests": {"storage": format!("{value}Gi")}}}})
        }
        ObjectKind::PersistentVolume => json!({"spec": {"capacity": {"storage": format!("{value}Gi")}}}),
    }
}

/// What somebody changes in the copy.
fn tampered(kind: ObjectKind, value: u8) -> Value {
    match kind {
        ObjectKind::ConfigMap | ObjectKind::Secret => json!({"data": {"a": value.to_string(), "x": "y"}}),
        ObjectKind::PersistentVolumeClaim => json!({"metadata": {"labels": {"app": value.to_string()}}}),
        ObjectKind::PersistentVolume => json!({"spec": {
            "persistentVolumeReclaimPolicy": "Delete", "claimRef": {"uid": value.to_string(), "name": "else"},
        }}),
    }
}

/// What may happen to one object from outside.
#[derive(Debug, Clone)]
enum Event {
    EditOriginal(u8),
    DeleteOriginal,
    RecreateOriginal,
    StripOriginal,
    EditCopy(u8),
    DeleteCopy,
    Step { west: bool, keep: bool },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => any::<u8>().prop_map(Event::EditOriginal),
        1 => Just(Event::DeleteOriginal),
        1 => Just(Event::RecreateOriginal),
        1 => Just(Event::StripOriginal),
        1 => any::<u8>().prop_map(Event::EditCopy),
        1 => Just(Event::DeleteCopy),
        6 => (any::<bool>(), any::<bool>()).prop_map(|(west, keep)| Event::Step { west, keep }),
    ]
}

proptest! {
    /// Two bindings share an object and a mount namespace; each performs one action at a time, so every prefix of
    /// every plan is a crash point. Whatever happened, both converge, and when both let go nothing is left.
    #[test]
    fn every_history_converges_and_leaves_nothing_behind(
        kind in prop::sample::select(ObjectKind::ALL.to_vec()),
        events in prop::collection::vec(event(), 0..40),
    ) {
        let scopes = [east(), scope("west", "mount")];
        let mut world = World::new(kind);
        let mut uid = 1;
        for event in events {
            match event {
                Event::EditOriginal(value) => if let Some(original) = &mut world.original {
                    merge(original, &edited(kind, value));
                },
                Event::DeleteOriginal => if let Some(original) = &world.original {
                    let held = original["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty());
                    if held { world.delete_original() } else { world.original = None }
                },
                Event::RecreateOriginal => if world.original.is_none() {
                    uid += 1;
                    world.original = World::new(kind).original;
                    world.original.as_mut().unwrap()["metadata"]["uid"] = format!("v{uid}").into();
                    if let Some(volume) = &mut world.neighbour {
                        volume["spec"]["claimRef"]["uid"] = format!("v{uid}").into();
                    }
                },
                Event::StripOriginal => if let Some(original) = &mut world.original {
                    merge(original, &json!({"metadata": {"labels": null, "annotations": null}}));
                },
                Event::EditCopy(value) => if let Some(copy) = &mut world.copy {
                    merge(copy, &tampered(kind, value));
                },
                Event::DeleteCopy => world.copy = None,
                Event::Step { west, keep } => {
                    let purpose = if keep { Purpose::Keep } else { Purpose::Release };
                    let plan = world.plan(&scopes[usize::from(west)], purpose);
                    if let Some(action) = plan.actions.first() {
                        world.perform(&scopes[usize::from(west)], action);
                    }
                }
            }
        }
        let deleting = world.original.as_ref().is_some_and(|original| original["metadata"].get("deletionTimestamp").is_some());
        let usable = world.original.is_some() && !deleting;
        for scope in &scopes {
            let (verdict, _) = world.run(scope, Purpose::Keep);
            prop_assert_eq!(verdict, if usable { Verdict::Ready } else { Verdict::Missing });
        }
        for scope in &scopes {
            prop_assert_eq!(world.plan(scope, Purpose::Keep).actions, vec![], "both are content");
        }
        if usable {
            let (original, copy) = (world.original.as_ref().unwrap(), world.copy.as_ref().unwrap());
            prop_assert_eq!(original.get("data"), copy.get("data"));
            if kind == ObjectKind::PersistentVolume {
                prop_assert_eq!(&copy["spec"]["persistentVolumeReclaimPolicy"], "Retain");
                prop_assert_eq!(&copy["spec"]["claimRef"]["namespace"], "mount");
            }
        } else {
            prop_assert_eq!(&world.original, &None, "nobody holds it up");
        }
        for scope in &scopes {
            world.run(scope, Purpose::Release);
        }
        prop_assert_eq!(&world.copy, &None);
        if let Some(original) = &world.original {
            let text = original["metadata"].to_string();
            prop_assert!(!text.contains("kubeocean.io"), "{}", text);
        }
    }
}

mod volumes;
