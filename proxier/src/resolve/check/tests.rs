//! Table of PX-604: whatever is forged, nobody reaches another's ppod.

use rstest::rstest;
use serde_json::{Value, json};

use super::*;

const MOUNT: &str = "kubeocean-worker";
const VNODE: &str = "vnode-a-n1";

fn vpod() -> Value {
    json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "u-web", "annotations": {
            "kubeocean.io/physical-pod-namespace": MOUNT,
            "kubeocean.io/physical-pod-name": "web-hash",
            "kubeocean.io/physical-pod-uid": "p-web",
        }},
        "spec": {
            "nodeName": VNODE,
            "containers": [{"name": "main"}],
            "initContainers": [{"name": "init"}],
            "ephemeralContainers": [{"name": "debug"}],
        },
        "status": {"phase": "Running"},
    })
}

fn ppod() -> Value {
    json!({
        "metadata": {
            "name": "web-hash", "namespace": MOUNT, "uid": "p-web",
            "labels": {"kubeocean.io/managed-by": "kubeocean"},
            "annotations": {
                "kubeocean.io/virtual-pod-uid": "u-web",
                "kubeocean.io/virtual-pod-namespace": "shop",
                "kubeocean.io/virtual-pod-name": "web",
                "kubeocean.io/virtual-node-name": VNODE,
            },
        },
        "spec": {"containers": [{"name": "main"}]},
    })
}

fn view(pod: &Value) -> PodView {
    serde_json::from_value(pod.clone()).unwrap()
}

fn proven(vpod: &Value, ppods: &[Value]) -> Option<String> {
    let ppods: Vec<Ppod> = ppods.iter().map(|ppod| Ppod::of(&view(ppod))).collect();
    prove(&view(vpod), VNODE, MOUNT, &ppods).map(|resolved| resolved.path())
}

#[test]
fn the_copy_that_names_the_pod_is_its_copy() {
    let path = "/api/v1/namespaces/kubeocean-worker/pods/web-hash";
    assert_eq!(proven(&vpod(), &[ppod()]).as_deref(), Some(path));
}

#[rstest]
#[case::other_uid("/metadata/annotations/kubeocean.io~1virtual-pod-uid", json!("u-other"))]
#[case::other_namespace("/metadata/annotations/kubeocean.io~1virtual-pod-namespace", json!("bank"))]
#[case::other_name("/metadata/annotations/kubeocean.io~1virtual-pod-name", json!("db"))]
#[case::other_vnode("/metadata/annotations/kubeocean.io~1virtual-node-name", json!("vnode-b-n1"))]
#[case::not_ours("/metadata/labels/kubeocean.io~1managed-by", json!("somebody"))]
#[case::outside_the_mount_namespace("/metadata/namespace", json!("default"))]
fn a_copy_that_says_anything_else_is_not(#[case] field: &str, #[case] value: Value) {
    let mut ppod = ppod();
    *ppod.pointer_mut(field).unwrap() = value;
    assert_eq!(proven(&vpod(), &[ppod]), None);
}

#[test]
fn forged_annotations_of_the_vpod_prove_nothing() {
    let mut attacker = vpod();
    attacker["metadata"]["name"] = json!("attacker");
    attacker["metadata"]["uid"] = json!("u-attacker");
    assert_eq!(proven(&attacker, &[ppod()]), None);
}

#[test]
fn two_copies_are_none() {
    let mut second = ppod();
    second["metadata"]["name"] = json!("web-again");
    second["metadata"]["uid"] = json!("p-again");
    assert_eq!(proven(&vpod(), &[ppod(), second]), None);
}

#[test]
fn the_vpod_does_not_choose_between_copies() {
    let (vpod, first) = (view(&vpod()), Ppod::of(&view(&ppod())));
    let look_up = |copies: &[Ppod]| look_up(&vpod, VNODE, MOUNT, copies);
    let second = Ppod { name: "web-again".to_owned(), uid: "p-again".to_owned(), ..first.clone() };
    assert_eq!(look_up(&[first.clone(), second]), Indexed::Refused);
    let elsewhere = Ppod { vnode: "vnode-b-n1".to_owned(), ..first.clone() };
    assert_eq!(look_up(&[elsewhere]), Indexed::Refused);
    assert_eq!(look_up(&[]), Indexed::Unknown(Some("web-hash")));
    assert_eq!(look_up(&[first]), Indexed::Proven(Resolved::for_tests(MOUNT, "web-hash")));
}

#[test]
fn a_copy_of_an_old_version_is_known_by_its_own_uid() {
    let mut old = ppod();
    old["metadata"]["annotations"].as_object_mut().unwrap().remove("kubeocean.io/virtual-pod-uid");
    assert!(proven(&vpod(), &[old.clone()]).is_some());
    old["metadata"]["uid"] = json!("p-newer");
    assert_eq!(proven(&vpod(), &[old.clone()]), None, "another incarnation of the copy");
    let mut attacker = vpod();
    attacker["metadata"]["name"] = json!("attacker");
    old["metadata"]["uid"] = json!("p-web");
    assert_eq!(proven(&attacker, &[old]), None, "the UID alone is not enough: it can be forged");
}

#[rstest]
#[case::as_it_is(VNODE, None, Some("main"), Ok(()))]
#[case::init_container(VNODE, None, Some("init"), Ok(()))]
#[case::ephemeral_container(VNODE, None, Some("debug"), Ok(()))]
#[case::no_container_needed(VNODE, Some("u-web"), None, Ok(()))]
#[case::through_another_vnode("vnode-a-n2", None, Some("main"), Err(Unresolved::NotFound))]
#[case::not_scheduled("", None, Some("main"), Err(Unresolved::NotFound))]
#[case::earlier_incarnation(VNODE, Some("u-old"), Some("main"), Err(Unresolved::OtherUid))]
#[case::unknown_container(VNODE, None, Some("side"), Err(Unresolved::NoContainer))]
fn the_vpod_itself(
    #[case] vnode: &str,
    #[case] uid: Option<&str>,
    #[case] container: Option<&str>,
    #[case] expected: Result<(), Unresolved>,
) {
    assert_eq!(check_vpod(&view(&vpod()), vnode, uid, container), expected);
}

#[rstest]
#[case::in_the_mount_namespace(MOUNT, "web-hash", Some("web-hash"))]
#[case::elsewhere("kube-system", "web-hash", None)]
#[case::a_path(MOUNT, "web-hash/log?follow=true", None)]
#[case::dots(MOUNT, "../../nodes/n", None)]
#[case::empty(MOUNT, "", None)]
fn hints(#[case] namespace: &str, #[case] name: &str, #[case] expected: Option<&str>) {
    let mut vpod = vpod();
    vpod["metadata"]["annotations"]["kubeocean.io/physical-pod-namespace"] = json!(namespace);
    vpod["metadata"]["annotations"]["kubeocean.io/physical-pod-name"] = json!(name);
    assert_eq!(hint(&view(&vpod), MOUNT), expected);
}

#[rstest]
#[case::waiting("Pending", "", false, Unresolved::NotCreated)]
#[case::somebody_elses("Running", "", true, Unresolved::NotFound)]
#[case::lost("Failed", "PhysicalPodLost", false, Unresolved::Lost)]
fn absence(#[case] phase: &str, #[case] reason: &str, #[case] looked: bool, #[case] expected: Unresolved) {
    let mut vpod = vpod();
    vpod["status"] = json!({"phase": phase, "reason": reason});
    assert_eq!(absent(&view(&vpod), looked), expected);
}
