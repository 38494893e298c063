//! The three-way merge of TD-801 in both directions.

use std::collections::BTreeMap;

use kubeocean_api::keys::annotation;
use kubeocean_runtime::packed::PackedTexts;
use proptest::prelude::*;

use super::builders::*;
use crate::pods::{
    metadata::{EXPECTED_MAX_BYTES, Expected, KeyChanges, plan_down, plan_up},
    view::{Ppod, Vpod},
};

fn patch(metadata: &mut PackedTexts, changes: &KeyChanges) {
    for (key, value) in changes {
        *metadata = match value {
            Some(value) => metadata.with(key, value),
            None => metadata.without(key),
        };
    }
}

/// Pushes down what the planner wants.
fn push_down(vpod: &Vpod, ppod: &mut Ppod) {
    let change = plan_down(vpod, ppod);
    patch(&mut ppod.labels, &change.labels);
    patch(&mut ppod.annotations, &change.annotations);
}

/// Takes over what the planner wants.
fn take_up(vpod: &mut Vpod, ppod: &Ppod) {
    let change = plan_up(vpod, ppod, &[]);
    patch(&mut vpod.labels, &change.labels);
    patch(&mut vpod.annotations, &change.annotations);
}

#[test]
fn the_annotation_is_what_the_original_writes() {
    let expected = Expected { labels: [("app".into(), "web".into())].into(), annotations: BTreeMap::new() };
    assert_eq!(expected.encode().unwrap(), "eyJsYWJlbHMiOnsiYXBwIjoid2ViIn19");
    // Go escapes `&`; only the decoded maps are compared.
    let go = Expected::decode("eyJsYWJlbHMiOnsiYSI6ImJcdTAwMjZjIn19").unwrap();
    assert_eq!(go.labels["a"], "b&c");
    assert_eq!(Expected::decode("garbage"), None);
}

#[test]
fn too_much_metadata_is_not_followed() {
    let annotations = PackedTexts::default().with("big", &"x".repeat(EXPECTED_MAX_BYTES));
    assert_eq!(Expected::of(&PackedTexts::default(), &annotations).encode(), None);
}

#[test]
fn edits_travel_both_ways_and_the_vpod_wins() {
    let mut vpod = recorded().label("both", "v").annotate("note", "v").vpod();
    let mut ppod = ppod().label("both", "p").annotate("seen-by", "worker").label("app", "edited").ppod();
    let up = plan_up(&vpod, &ppod, &[]);
    assert_eq!(up.labels, [("app".to_owned(), Some("edited".to_owned()))].into());
    assert_eq!(up.annotations, [("seen-by".to_owned(), Some("worker".to_owned()))].into());
    take_up(&mut vpod, &ppod);
    push_down(&vpod, &mut ppod);
    assert_eq!((ppod.labels.get("both"), ppod.annotations.get("note")), (Some("v"), Some("v")));
    assert_eq!(ppod.labels.get("app"), Some("edited"), "it was not pushed back");
    assert!(plan_up(&vpod, &ppod, &[]).is_empty() && plan_down(&vpod, &ppod).is_empty());
}

#[test]
fn a_key_removed_from_the_vpod_vanishes_and_foreign_keys_stay() {
    let mut pod = recorded();
    pod.0["metadata"]["labels"].as_object_mut().unwrap().remove("app");
    let mut copy = ppod().label("worker-only", "x").ppod();
    let vpod = pod.vpod();
    push_down(&vpod, &mut copy);
    assert!(!copy.labels.contains_key("app"));
    assert!(
        copy.labels.contains_key("worker-only") && copy.annotation(annotation::VIRTUAL_POD_UID).is_some()
    );
}

#[test]
fn what_means_something_in_the_worker_only_does_not_go_up() {
    let vpod = recorded().vpod();
    let ppod = ppod().annotate("cni.projectcalico.org/podIP", "10.0.0.1/32").annotate("corp/x", "1").ppod();
    assert!(plan_up(&vpod, &ppod, &["corp/".to_owned()]).is_empty());
}

fn keys() -> impl Strategy<Value = BTreeMap<String, String>> {
    let key = prop::sample::select(vec!["a", "b", "c", "kubeocean.io/role", annotation::VIRTUAL_POD_UID]);
    prop::collection::btree_map(
        key.prop_map(str::to_owned),
        prop::sample::select(vec!["", "1", "2"]).prop_map(str::to_owned),
        0..5,
    )
}

proptest! {
    #[test]
    fn merging_settles_and_keeps_bookkeeping(original in keys(), previous in keys(), copy in keys()) {
        let mut vpod = recorded().vpod();
        let mut ppod = ppod().ppod();
        let add = |metadata: &mut PackedTexts, keys: &BTreeMap<String, String>| {
            *metadata = keys.iter().fold(metadata.clone(), |all, (key, value)| all.with(key, value));
        };
        add(&mut vpod.annotations, &original);
        let bookkeeping = ppod.annotation(annotation::VIRTUAL_POD_UID).map(str::to_owned);
        let mut copy = copy;
        copy.remove(annotation::VIRTUAL_POD_UID);
        add(&mut ppod.annotations, &copy);
        let previous = Expected::of(&PackedTexts::default(), &previous.into()).encode().unwrap();
        ppod.annotations = ppod.annotations.with(annotation::EXPECTED_METADATA, &previous);

        for _ in 0..2 {
            take_up(&mut vpod, &ppod);
            push_down(&vpod, &mut ppod);
        }
        prop_assert!(plan_up(&vpod, &ppod, &[]).is_empty());
        prop_assert!(plan_down(&vpod, &ppod).is_empty());
        prop_assert_eq!(ppod.annotation(annotation::VIRTUAL_POD_UID), bookkeeping.as_deref());
        for (key, value) in &Expected::of(&vpod.labels, &vpod.annotations).annotations {
            if ppod.annotations.get(key) != Some(value.as_str()) {
                // Only a key that was removed from the ppod by hand, and not changed since, may differ.
                prop_assert!(!ppod.annotations.contains_key(key));
            }
        }
    }
}
