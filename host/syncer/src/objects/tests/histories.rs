//! Whatever happens to an object and its copy, bindings that share them converge and leave nothing behind.

use proptest::prelude::*;

use super::*;

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
