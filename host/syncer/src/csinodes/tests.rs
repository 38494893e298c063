//! Tables of the planner, its properties on a model of the API server, and the index.

use std::sync::Arc;

use jiff::Timestamp;
use kubeocean_api::keys::{annotation, label};
use kubeocean_runtime::queue::Outcome;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::{
    index::{CsiNodeStore, Original},
    plan::{Action, Input, Plan, is_ours, plan},
    view::CsiNode,
};
use crate::nodes::{
    index::Identity,
    metadata::DenyList,
    store::{NodeStore, VnodeRef},
    tests::our_vnode,
    view::NodeView,
    vnode::BindingView,
};

const VNODE: &str = "vnode-cls-a-n1";

fn identity() -> Identity {
    Identity { binding: "dc-east".into(), cluster_id: "cls-a".into(), computing_uid: "c-1".into() }
}

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn csi_node(object: &Value) -> CsiNode {
    serde_json::from_value(object.clone()).unwrap()
}

fn original(drivers: &Value) -> CsiNode {
    csi_node(&json!({
        "metadata": {
            "name": "n1", "uid": "o-1", "resourceVersion": "5",
            "labels": {"zone": "a", label::POLICY_APPLIED: "p"},
            "annotations": {"storage.alpha.kubernetes.io/migrated-plugins": "x", "projectcalico.org/a": "b"},
        },
        "spec": {"drivers": drivers},
    }))
}

fn disk(node_id: &str) -> Value {
    json!({"name": "disk.csi", "nodeID": node_id, "topologyKeys": ["zone"], "allocatable": {"count": 16}})
}

fn file() -> Value {
    json!({"name": "file.csi", "nodeID": "n1", "topologyKeys": null})
}

fn planned(vnode: Option<&VnodeRef>, original: Option<&CsiNode>, copy: Option<&CsiNode>) -> Plan {
    let original = original.map_or(Original::Absent, |original| Original::Known(Arc::new(original.clone())));
    planned_of(vnode, &original, copy)
}

fn planned_of(vnode: Option<&VnodeRef>, original: &Original, copy: Option<&CsiNode>) -> Plan {
    let (identity, deny) = (identity(), DenyList::default());
    plan(&Input { now: now(), identity: &identity, deny: &deny, name: VNODE, vnode, original, copy })
}

fn actions(plan: Plan) -> Vec<Action> {
    let Plan::Do(actions) = plan else { unreachable!("{plan:?}") };
    actions
}

/// The API server, as far as copies go.
fn perform(copy: Option<CsiNode>, actions: Vec<Action>) -> Option<CsiNode> {
    let mut stored = copy;
    for action in actions {
        stored = match action {
            Action::Create { mut body } => {
                assert!(stored.is_none(), "the name is taken");
                body["metadata"]["uid"] = "c-2".into();
                body["metadata"]["resourceVersion"] = "10".into();
                Some(csi_node(&body))
            }
            Action::Update { patch } => {
                let before = stored.expect("something to update");
                let mut object = json!({"metadata": before.metadata, "spec": before.spec});
                assert_eq!(patch["metadata"]["uid"], object["metadata"]["uid"]);
                merge(&mut object, &patch);
                let after = csi_node(&object);
                for driver in &after.spec.drivers {
                    assert!(before.driver(&driver.name).is_none_or(|old| old == driver), "immutable");
                }
                Some(after)
            }
            Action::Delete { uid } => {
                assert_eq!(stored.map(|copy| copy.uid().to_owned()), Some(uid));
                None
            }
        };
    }
    stored
}

fn merge(object: &mut Value, patch: &Value) {
    let Value::Object(members) = patch else {
        *object = patch.clone();
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in members {
        if value.is_null() {
            object.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut object[key], value);
        }
    }
}

fn converged(drivers: &Value) -> CsiNode {
    perform(None, actions(planned(Some(&our_vnode(VNODE)), Some(&original(drivers)), None))).unwrap()
}

#[test]
fn a_copy_says_what_its_original_says_and_whose_it_is() {
    let copy = converged(&json!([disk("i-1"), file()]));
    assert_eq!(copy.name(), VNODE);
    let shown = json!({
        "labels": copy.labels(), "annotations": copy.annotations(), "owners": copy.owners(),
        "drivers": copy.spec.drivers,
    });
    let expected = json!({
        "labels": {
            "zone": "a", label::MANAGED_BY: "kubeocean", label::CLUSTER_BINDING: "dc-east",
            label::PHYSICAL_CLUSTER_ID: "cls-a", label::PHYSICAL_NODE_NAME: "n1",
        },
        "annotations": {
            "storage.alpha.kubernetes.io/migrated-plugins": "x",
            annotation::PHYSICAL_NODE_NAME: "n1", annotation::PHYSICAL_CSINODE_UID: "o-1",
        },
        "owners": [{"apiVersion": "v1", "kind": "Node", "name": VNODE, "uid": "v-1"}],
        "drivers": [
            {"name": "disk.csi", "nodeID": "i-1", "topologyKeys": ["zone"], "allocatable": {"count": 16}},
            {"name": "file.csi", "nodeID": "n1"},
        ],
    });
    assert_eq!(shown, expected);
    let written = copy.annotation(annotation::LAST_SYNC_TIME).unwrap();
    assert_eq!(written.parse::<Timestamp>().unwrap(), now());
}

fn names(plan: Plan) -> Vec<String> {
    actions(plan).iter().map(ToString::to_string).collect()
}

#[test]
fn without_vnode_or_original_the_copy_goes() {
    let (original, copy) = (original(&json!([file()])), converged(&json!([file()])));
    for (vnode, original) in [(None, Some(&original)), (None, None), (Some(&our_vnode(VNODE)), None)] {
        assert_eq!(names(planned(vnode, original, Some(&copy))), ["delete CSINode"]);
        assert!(names(planned(vnode, original, None)).is_empty());
    }
}

#[rstest]
#[case::same(json!([disk("i-1"), file()]), &[])]
#[case::another_order(json!([file(), disk("i-1")]), &[])]
#[case::a_driver_more(json!([disk("i-1"), file(), {"name": "new.csi", "nodeID": "n1"}]), &["update CSINode"])]
#[case::a_driver_less(json!([file()]), &["update CSINode"])]
#[case::no_drivers(Value::Null, &["update CSINode"])]
#[case::another_node_id(json!([disk("i-2"), file()]), &["delete CSINode", "create CSINode"])]
#[case::another_count(
    json!([{"name": "disk.csi", "nodeID": "i-1", "topologyKeys": ["zone"], "allocatable": {"count": 8}}]),
    &["delete CSINode", "create CSINode"]
)]
#[case::other_topology(
    json!([{"name": "disk.csi", "nodeID": "i-1", "topologyKeys": [], "allocatable": {"count": 16}}]),
    &["delete CSINode", "create CSINode"]
)]
fn changes_of_the_original(#[case] drivers: Value, #[case] expected: &[&str]) {
    let copy = converged(&json!([disk("i-1"), file()]));
    assert_eq!(names(planned(Some(&our_vnode(VNODE)), Some(&original(&drivers)), Some(&copy))), expected);
}

/// A vnode whose marks somebody edited names no node whose CSINode could be read; its copy stays until they are restored.
#[test]
fn a_copy_goes_only_when_it_is_known_that_its_original_is_gone() {
    let copy = converged(&json!([disk("i-1")]));
    let edited = VnodeRef { worker_node: None, ..our_vnode(VNODE) };
    assert_eq!(planned_of(Some(&edited), &Original::Unread, Some(&copy)), Plan::NotOurVnode);
    assert_eq!(names(planned_of(Some(&edited), &Original::Absent, Some(&copy))), ["delete CSINode"]);
    assert_eq!(names(planned_of(None, &Original::Unread, Some(&copy))), ["delete CSINode"]);
}

#[test]
fn nothing_is_made_for_a_vnode_that_goes_away() {
    let (going, changed) = (VnodeRef { deleting: true, ..our_vnode(VNODE) }, original(&json!([disk("i-2")])));
    assert!(names(planned(Some(&going), Some(&changed), None)).is_empty());
    let copy = converged(&json!([disk("i-1")]));
    assert!(names(planned(Some(&going), Some(&changed), Some(&copy))).is_empty());
}

#[test]
fn a_vnode_with_foreign_labels_is_not_followed() {
    let original = original(&json!([file()]));
    let foreign = VnodeRef { ours: false, ..our_vnode(VNODE) };
    let other = VnodeRef { worker_node: Some("n2".into()), ..our_vnode(VNODE) };
    for vnode in [foreign, other] {
        assert_eq!(planned(Some(&vnode), Some(&original), None), Plan::NotOurVnode);
    }
}

#[rstest]
#[case::nobodys(json!({}), false)]
#[case::ours(json!({label::MANAGED_BY: "kubeocean", label::CLUSTER_BINDING: "dc-east"}), true)]
#[case::of_the_original_without_label(json!({label::MANAGED_BY: "kubeocean"}), true)]
#[case::another_bindings(json!({label::MANAGED_BY: "kubeocean", label::CLUSTER_BINDING: "dc-west"}), false)]
#[case::another_clusters(json!({label::MANAGED_BY: "kubeocean", label::PHYSICAL_CLUSTER_ID: "cls-b"}), false)]
#[case::not_managed(json!({label::CLUSTER_BINDING: "dc-east"}), false)]
fn whose_an_object_of_that_name_is(#[case] labels: Value, #[case] ours: bool) {
    let found = csi_node(&json!({"metadata": {"name": VNODE, "uid": "x", "labels": labels}}));
    assert_eq!(is_ours(&found, &identity(), Some(&our_vnode(VNODE))), ours);
    let plan = planned(Some(&our_vnode(VNODE)), Some(&original(&json!([file()]))), Some(&found));
    assert_eq!(plan == Plan::Taken, !ours);
    assert_eq!(names(planned(None, None, Some(&found))).len(), usize::from(ours), "deleted only if ours");
}

#[test]
fn a_copy_whose_labels_were_taken_off_is_known_by_its_owner_and_gets_them_again() {
    let mut bare = converged(&json!([file()]));
    bare.metadata.labels = None;
    assert!(is_ours(&bare, &identity(), Some(&our_vnode(VNODE))));
    let original = original(&json!([file()]));
    let plan = actions(planned(Some(&our_vnode(VNODE)), Some(&original), Some(&bare)));
    assert_eq!(perform(Some(bare), plan).unwrap().labels(), converged(&json!([file()])).labels());
}

/// A copy as a user, the original system or an older state of the worker may have left it.
fn some_copy() -> impl Strategy<Value = Option<CsiNode>> {
    let drivers = prop::sample::subsequence(vec![disk("i-1"), file()], 0..=2);
    let labels = prop::sample::subsequence(vec![("zone", "b"), ("users", "x")], 0..=2);
    let owner = prop::sample::select(vec![None, Some("v-0"), Some("v-1")]);
    prop::option::of((drivers, labels, owner, any::<bool>()).prop_map(|(drivers, labels, owner, synced)| {
        let mut object = json!({
            "metadata": {
                "name": VNODE, "uid": "c-1", "resourceVersion": "7",
                "labels": {label::MANAGED_BY: "kubeocean", label::CLUSTER_BINDING: "dc-east"},
                "annotations": {},
            },
            "spec": {"drivers": drivers},
        });
        for (key, value) in labels {
            object["metadata"]["labels"][key] = value.into();
        }
        if let Some(uid) = owner {
            let owners = json!([{"apiVersion": "v1", "kind": "Node", "name": VNODE, "uid": uid}]);
            object["metadata"]["ownerReferences"] = owners;
        }
        if synced {
            object["metadata"]["annotations"][annotation::LAST_SYNC_TIME] = "2026-01-01T00:00:00Z".into();
        }
        csi_node(&object)
    }))
}

fn some_original() -> impl Strategy<Value = Option<CsiNode>> {
    let drivers = prop::sample::subsequence(vec![disk("i-2"), file()], 0..=2);
    prop::option::of(drivers.prop_map(|drivers| original(&json!(drivers))))
}

proptest! {
    /// Whatever is there, one plan leads to where the next plan is empty, and what is there then is the wanted state.
    #[test]
    fn a_plan_converges(copy in some_copy(), original in some_original(), there in any::<bool>()) {
        let vnode = there.then(|| our_vnode(VNODE));
        let after = perform(copy.clone(), actions(planned(vnode.as_ref(), original.as_ref(), copy.as_ref())));
        prop_assert_eq!(planned(vnode.as_ref(), original.as_ref(), after.as_ref()), Plan::Do(vec![]));
        let fresh = perform(None, actions(planned(vnode.as_ref(), original.as_ref(), None)));
        let said = |copy: &Option<CsiNode>| {
            copy.as_ref().map(|copy| (copy.labels(), copy.annotations(), copy.owners().to_vec(), copy.spec.drivers.len()))
        };
        prop_assert_eq!(said(&after), said(&fresh));
    }

    /// Cut after any action, the next plan leads to the same.
    #[test]
    fn a_cut_plan_is_repaired(copy in some_copy(), original in some_original(), cut in 0_usize..2) {
        let vnode = our_vnode(VNODE);
        let mut first = actions(planned(Some(&vnode), original.as_ref(), copy.as_ref()));
        first.truncate(cut);
        let half = perform(copy, first);
        let after = perform(half.clone(), actions(planned(Some(&vnode), original.as_ref(), half.as_ref())));
        prop_assert_eq!(planned(Some(&vnode), original.as_ref(), after.as_ref()), Plan::Do(vec![]));
    }
}

fn stores() -> (Arc<NodeStore>, Arc<CsiNodeStore>) {
    let nodes = NodeStore::new(identity(), BindingView::default(), Arc::default());
    let csinodes = CsiNodeStore::new(Arc::clone(&nodes));
    (nodes, csinodes)
}

fn stored_vnode() -> NodeView {
    serde_json::from_value(json!({"metadata": {
        "name": VNODE, "uid": "v-1", "resourceVersion": "1",
        "labels": {
            label::TYPE: "virtual-kubelet", label::CLUSTER_BINDING: "dc-east", label::PHYSICAL_CLUSTER_ID: "cls-a",
            label::PHYSICAL_NODE_NAME: "n1",
        },
    }}))
    .unwrap()
}

#[test]
fn content_is_kept_only_while_there_is_a_vnode() {
    let (nodes, csinodes) = stores();
    csinodes.reset_originals(vec![original(&json!([file()]))]);
    assert_eq!(csinodes.snapshot(VNODE).original, Original::Unread);
    nodes.saw_vnode(stored_vnode());
    assert_eq!(csinodes.snapshot(VNODE).original, Original::Unread, "it is read when it is needed");
    csinodes.read_original(VNODE, Some(original(&json!([file()]))));
    let Original::Known(known) = csinodes.snapshot(VNODE).original else { unreachable!() };
    assert_eq!(known.spec.drivers.len(), 1);
    // An event is newer than any read that was under way.
    csinodes.saw_original(original(&json!([])));
    csinodes.read_original(VNODE, Some(original(&json!([file()]))));
    let Original::Known(known) = csinodes.snapshot(VNODE).original else { unreachable!() };
    assert_eq!(known.spec.drivers.len(), 0);
    nodes.lost_vnode(VNODE, "v-1", u64::MAX);
    assert_eq!(csinodes.snapshot(VNODE).original, Original::Unread);
    csinodes.lost_original(&original(&json!([])));
    assert_eq!(csinodes.snapshot(VNODE).original, Original::Absent);
}

fn copy_at(version: u32) -> CsiNode {
    let mut copy = converged(&json!([file()]));
    copy.metadata.resource_version = Some(version.to_string());
    copy
}

#[test]
fn a_late_answer_brings_no_deleted_copy_back() {
    let (_, csinodes) = stores();
    csinodes.lost_copy(&copy_at(11));
    assert!(!csinodes.take_copy(copy_at(10)));
    assert_eq!(csinodes.snapshot(VNODE).copy, None);
    assert!(csinodes.take_copy(copy_at(12)));
    assert!(!csinodes.take_copy(copy_at(11)));
    assert_eq!(csinodes.snapshot(VNODE).copy.unwrap().resource_version(), "12");
    assert!(!csinodes.drop_copy(VNODE, "another", 13), "another object had the name before");
    csinodes.reset_copies(vec![]);
    assert_eq!(csinodes.snapshot(VNODE).copy, None);
}

#[tokio::test]
async fn our_own_writes_come_back_through_the_watch_without_work() {
    let (_, csinodes) = stores();
    assert!(csinodes.take_copy(copy_at(5)));
    csinodes.saw_copy(copy_at(5));
    assert!(csinodes.drop_copy(VNODE, "c-2", u64::MAX));
    csinodes.lost_copy(&copy_at(6));
    assert!(csinodes.queue.is_empty());
}

#[tokio::test]
async fn every_change_of_either_side_is_work() {
    let (_, csinodes) = stores();
    let steps: [&dyn Fn(&CsiNodeStore); 5] = [
        &|store| store.saw_original(original(&json!([file()]))),
        &|store| store.saw_copy(copy_at(1)),
        &|store| store.lost_original(&original(&json!([]))),
        &|store| store.lost_copy(&copy_at(2)),
        &|store| store.vnode_changed(VNODE),
    ];
    for step in steps {
        step(&csinodes);
        assert_eq!(csinodes.queue.len(), 1);
        let key = csinodes.queue.next().await;
        assert_eq!(&*key, VNODE);
        csinodes.queue.done(&key, Outcome::Done);
    }
}
