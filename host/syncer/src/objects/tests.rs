//! Plans applied to a model of one object in two clusters. The model knows merge patches, finalizers and nothing else;
//! what API servers do is tested against real ones.

use kubeocean_api::keys::{annotation, label};
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::{
    content::Content,
    kind::{ObjectKind, ObjectRef},
    plan::{Action, Purpose, Scope, Snapshot, Verdict, plan_object},
    view::{Original, WorkerCopy},
};

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
    clock: u32,
}

impl World {
    fn new(kind: ObjectKind) -> Self {
        let original = json!({
            "metadata": {
                "namespace": "team-a", "name": "settings", "uid": "v1", "resourceVersion": "1",
                "labels": {"app": "web"},
                "annotations": {"note": "x", (annotation::LAST_APPLIED): "{\"data\":{}}"},
            },
            "data": {"a": "1", "b": "2"},
        });
        Self {
            object: ObjectRef::new(kind, "team-a", "settings"),
            original: Some(original),
            copy: None,
            clock: 1,
        }
    }

    fn tick(&mut self) -> String {
        self.clock += 1;
        self.clock.to_string()
    }

    fn plan(&self, scope: &Scope, purpose: Purpose) -> super::Plan {
        let original = self.original.as_ref().map(|json| Original::of(self.object.kind, json));
        let copy = self.copy.as_ref().map(|json| WorkerCopy::of(self.object.kind, json));
        let snapshot =
            Snapshot { object: &self.object, purpose, original: original.as_ref(), copy: copy.as_ref() };
        plan_object(scope, &snapshot)
    }

    fn perform(&mut self, action: &Action) {
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
                let original = Original::of(self.object.kind, self.original.as_ref().unwrap());
                let mut copy = Value::Object(original.content.manifest());
                copy["metadata"] = metadata.clone();
                copy["metadata"]["uid"] = format!("p{version}").into();
                copy["metadata"]["resourceVersion"] = version.into();
                self.copy = Some(copy);
            }
            Action::UpdateCopy { metadata } => {
                let original = Original::of(self.object.kind, self.original.as_ref().unwrap());
                let copy = self.copy.as_mut().unwrap();
                let content = original.content.patch(&Content::of(self.object.kind, copy));
                merge(copy, &json!({"metadata": metadata}));
                merge(copy, &content.into());
                copy["metadata"]["resourceVersion"] = version.into();
            }
            Action::LeaveCopy { patch } => {
                let copy = self.copy.as_mut().unwrap();
                merge(copy, patch);
                copy["metadata"]["resourceVersion"] = version.into();
            }
            Action::DeleteCopy { uid } => {
                assert_eq!(self.copy.as_ref().unwrap()["metadata"]["uid"], **uid);
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
            self.perform(action);
            done += 1;
            assert!(done < 10, "no end: {plan:?}");
        }
    }

    fn held(scope: &Scope) -> Self {
        let mut world = Self::new(ObjectKind::ConfigMap);
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

    fn delete_original(&mut self) {
        self.original.as_mut().unwrap()["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

#[test]
fn the_first_pod_claims_the_original_and_then_makes_the_copy() {
    let mut world = World::new(ObjectKind::ConfigMap);
    let plan = world.plan(&east(), Purpose::Keep);
    insta::assert_json_snapshot!(plan);
    for action in &plan.actions {
        world.perform(action);
    }
    assert_eq!(world.plan(&east(), Purpose::Keep).actions, [], "converged");
}

#[rstest]
#[case::config_map(ObjectKind::ConfigMap)]
#[case::secret(ObjectKind::Secret)]
fn release_restores_the_original_exactly(#[case] kind: ObjectKind) {
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
    assert_eq!(world.run(&east(), Purpose::Keep), (Verdict::Missing, 1));
    assert_eq!((world.original, world.copy), (None, copy));
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
    fn every_history_converges_and_leaves_nothing_behind(events in prop::collection::vec(event(), 0..40)) {
        let scopes = [east(), scope("west", "mount")];
        let mut world = World::new(ObjectKind::Secret);
        let mut uid = 1;
        for event in events {
            match event {
                Event::EditOriginal(value) => if let Some(original) = &mut world.original {
                    original["data"] = json!({"a": value.to_string()});
                },
                Event::DeleteOriginal => if let Some(original) = &world.original {
                    let held = original["metadata"]["finalizers"].as_array().is_some_and(|all| !all.is_empty());
                    if held { world.delete_original() } else { world.original = None }
                },
                Event::RecreateOriginal => if world.original.is_none() {
                    uid += 1;
                    world.original = World::new(ObjectKind::Secret).original;
                    world.original.as_mut().unwrap()["metadata"]["uid"] = format!("v{uid}").into();
                },
                Event::StripOriginal => if let Some(original) = &mut world.original {
                    merge(original, &json!({"metadata": {"labels": null, "annotations": null}}));
                },
                Event::EditCopy(value) => if let Some(copy) = &mut world.copy {
                    copy["data"] = json!({"a": value.to_string(), "x": "y"});
                },
                Event::DeleteCopy => world.copy = None,
                Event::Step { west, keep } => {
                    let purpose = if keep { Purpose::Keep } else { Purpose::Release };
                    let plan = world.plan(&scopes[usize::from(west)], purpose);
                    if let Some(action) = plan.actions.first() {
                        world.perform(action);
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
            prop_assert_eq!(&original["data"], &copy["data"]);
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
