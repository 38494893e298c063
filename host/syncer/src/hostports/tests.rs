//! Tables of the planner, its properties on a model of the API server, and the index.

use std::sync::Arc;

use kubeocean_api::keys::label;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::{
    index::HostPortStore,
    plan::{Action, Input, fake_namespace, plan},
    view::FakePod,
};
use crate::nodes::{
    host_ports::HostPort,
    index::Identity,
    store::{NodeStore, VnodeRef},
    tests::our_vnode,
    vnode::BindingView,
};

const VNODE: &str = "vnode-cls-a-n1";

fn held(ports: &[i32]) -> Vec<HostPort> {
    let port = |port: &i32| HostPort { ip: "0.0.0.0".into(), protocol: "TCP".into(), port: *port };
    ports.iter().map(port).collect()
}

/// A reservation as it is when it is in order.
fn fake(name: &str, ports: &[i32]) -> Value {
    let ports: Vec<Value> =
        ports.iter().map(|port| json!({"containerPort": port, "hostPort": port})).collect();
    json!({
        "metadata": {
            "name": name, "uid": name, "resourceVersion": "5", "namespace": "kubeocean-fake",
            "labels": {label::CLUSTER_BINDING: "dc-east"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": VNODE, "uid": "v-1"}],
        },
        "spec": {"nodeName": VNODE, "containers": [{"name": "fake-container", "ports": ports}]},
        "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]},
    })
}

fn parse(pod: &Value) -> Arc<FakePod> {
    Arc::new(serde_json::from_value(pod.clone()).unwrap())
}

fn planned(vnode: Option<&VnodeRef>, held: &[HostPort], pods: &[Value]) -> Vec<Action> {
    let fakes: Vec<_> = pods.iter().map(parse).collect();
    plan(&Input { binding: "dc-east", image: "pause:1", vnode, held, fakes: &fakes })
}

fn texts(actions: &[Action]) -> Vec<String> {
    actions.iter().map(ToString::to_string).collect()
}

#[test]
fn a_reservation_holds_each_port_once_runs_nowhere_and_goes_with_its_vnode() {
    let mut ports = held(&[80, 8080]);
    ports.push(HostPort { ip: "127.0.0.1".into(), protocol: "UDP".into(), port: 53 });
    let actions = planned(Some(&our_vnode(VNODE)), &ports, &[]);
    let [Action::Create { body }] = actions.as_slice() else { unreachable!("{actions:?}") };
    let expected = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": "fake-pod-for-hostport-",
            "namespace": "kubeocean-fake",
            "labels": {
                "kubeocean.io/hostport-fake-pod": "true",
                "kubeocean.io/managed-by": "kubeocean",
                "kubeocean.io/cluster-binding": "dc-east",
            },
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": VNODE, "uid": "v-1"}],
        },
        "spec": {
            "nodeName": VNODE,
            "containers": [{
                "name": "fake-container",
                "image": "pause:1",
                "ports": [
                    {"name": "port-0", "containerPort": 80, "hostPort": 80, "protocol": "TCP", "hostIP": "0.0.0.0"},
                    {"name": "port-1", "containerPort": 8080, "hostPort": 8080, "protocol": "TCP", "hostIP": "0.0.0.0"},
                    {"name": "port-2", "containerPort": 53, "hostPort": 53, "protocol": "UDP", "hostIP": "127.0.0.1"},
                ],
            }],
            "restartPolicy": "Never",
            "priorityClassName": "system-node-critical",
            "tolerations": [{"operator": "Exists"}],
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "terminationGracePeriodSeconds": 0,
        },
    });
    assert_eq!(*body, expected);
}

/// Pod Security of a cluster whose default is stricter would refuse host ports.
#[test]
fn the_namespace_of_reservations_takes_pods_with_host_ports() {
    let expected = json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": "kubeocean-fake",
            "labels": {
                "kubeocean.io/managed-by": "kubeocean",
                "pod-security.kubernetes.io/enforce": "privileged",
            },
        },
    });
    assert_eq!(fake_namespace(), expected);
}

fn with(mut pod: Value, pointer: &str, value: Value) -> Value {
    *pod.pointer_mut(pointer).unwrap() = value;
    pod
}

fn deleting(mut pod: Value) -> Value {
    pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    pod
}

fn deleting_within(seconds: i64, pod: Value) -> Value {
    let mut pod = deleting(pod);
    pod["metadata"]["deletionGracePeriodSeconds"] = seconds.into();
    pod
}

#[rstest]
#[case::nothing_held_nothing_there(&[], vec![], &[])]
#[case::in_order(&[80], vec![fake("a", &[80])], &[])]
#[case::none_yet(&[80], vec![], &["reserve host ports"])]
#[case::other_ports(&[80, 81], vec![fake("a", &[80])], &["reserve host ports", "delete port reservation a"])]
#[case::nothing_held_any_more(&[], vec![fake("a", &[80])], &["delete port reservation a"])]
#[case::of_two_equal_ones_one_goes(&[80], vec![fake("a", &[80]), fake("b", &[80])], &["delete port reservation b"])]
#[case::of_two_the_equal_one_stays(&[80], vec![fake("a", &[81]), fake("b", &[80])], &["delete port reservation a"])]
#[case::one_that_ends_does_not_count(&[80], vec![deleting(fake("a", &[80]))], &["reserve host ports"])]
#[case::one_that_waits_for_a_kubelet_is_ended(&[], vec![deleting_within(30, fake("a", &[80]))], &["delete port reservation a"])]
#[case::one_that_is_ended_and_held_is_left(&[], vec![deleting_within(0, fake("a", &[80]))], &[])]
#[case::one_that_ended_does_not_count(
    &[80],
    vec![with(fake("a", &[80]), "/status/phase", json!("Failed"))],
    &["reserve host ports", "delete port reservation a"]
)]
#[case::not_shown_as_scheduled(
    &[80],
    vec![with(fake("a", &[80]), "/status/conditions", json!([]))],
    &["show port reservation a as scheduled"]
)]
#[case::of_the_vnode_before(
    &[80],
    vec![with(fake("a", &[80]), "/metadata/ownerReferences/0/uid", json!("v-0"))],
    &["adopt port reservation a"]
)]
#[case::container_port_does_not_matter(
    &[80],
    vec![with(fake("a", &[80]), "/spec/containers/0/ports/0/containerPort", json!(7))],
    &[]
)]
fn what_is_done(#[case] ports: &[i32], #[case] fakes: Vec<Value>, #[case] expected: &[&str]) {
    assert_eq!(texts(&planned(Some(&our_vnode(VNODE)), &held(ports), &fakes)), expected);
}

#[test]
fn without_a_vnode_or_while_it_goes_nothing_is_reserved() {
    let going = VnodeRef { deleting: true, ..our_vnode(VNODE) };
    for vnode in [None, Some(&going)] {
        assert!(planned(vnode, &held(&[80]), &[]).is_empty());
        let there = planned(vnode, &held(&[80]), &[fake("a", &[80])]);
        assert_eq!(texts(&there), ["delete port reservation a"]);
    }
}

#[test]
fn a_vnode_with_foreign_labels_is_not_touched() {
    let foreign = VnodeRef { ours: false, ..our_vnode(VNODE) };
    assert!(planned(Some(&foreign), &held(&[80]), &[fake("a", &[81])]).is_empty());
}

#[test]
fn other_conditions_stay_when_the_pod_is_shown_as_scheduled() {
    let conditions =
        json!([{"type": "DisruptionTarget", "status": "False"}, {"type": "PodScheduled", "status": "False"}]);
    let pod = with(fake("a", &[80]), "/status/conditions", conditions);
    let actions = planned(Some(&our_vnode(VNODE)), &held(&[80]), &[pod]);
    let [Action::ShowScheduled { patch, .. }] = actions.as_slice() else { unreachable!("{actions:?}") };
    let expected =
        json!([{"type": "DisruptionTarget", "status": "False"}, {"type": "PodScheduled", "status": "True"}]);
    assert_eq!(patch["status"]["conditions"], expected);
    assert_eq!(patch["metadata"], json!({"uid": "a", "resourceVersion": "5"}));
}

/// The API server, as far as reservations go.
fn perform(pods: Vec<Value>, actions: Vec<Action>, made: &mut usize) -> Vec<Value> {
    let mut pods = pods;
    for action in actions {
        match action {
            Action::Create { mut body } => {
                *made += 1;
                for key in ["name", "uid"] {
                    body["metadata"][key] = format!("made-{made}").into();
                }
                body["status"] = json!({"phase": "Pending"});
                pods.push(body);
            }
            Action::Adopt { name, patch } => {
                let pod = pods.iter_mut().find(|pod| pod["metadata"]["name"] == name.as_str()).unwrap();
                pod["metadata"]["ownerReferences"] = patch["metadata"]["ownerReferences"].clone();
            }
            Action::ShowScheduled { name, patch } => {
                let pod = pods.iter_mut().find(|pod| pod["metadata"]["name"] == name.as_str()).unwrap();
                pod["status"]["conditions"] = patch["status"]["conditions"].clone();
            }
            Action::Delete { name, uid } => {
                let before = pods.len();
                pods.retain(|pod| {
                    pod["metadata"]["name"] != name.as_str() || pod["metadata"]["uid"] != uid.as_str()
                });
                assert_eq!(pods.len() + 1, before, "it was there");
            }
        }
    }
    pods
}

fn some_fakes() -> impl Strategy<Value = Vec<Value>> {
    let ports = prop::sample::subsequence(vec![80, 81], 0..=2);
    let one =
        (ports, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(ports, scheduled, owned, ended)| {
            let mut pod = fake("", &ports);
            if !scheduled {
                pod["status"]["conditions"] = json!([]);
            }
            if !owned {
                pod["metadata"]["ownerReferences"] = Value::Null;
            }
            if ended {
                pod["status"]["phase"] = "Succeeded".into();
            }
            pod
        });
    prop::collection::vec(one, 0..4).prop_map(|mut pods| {
        for (number, pod) in pods.iter_mut().enumerate() {
            for key in ["name", "uid"] {
                pod["metadata"][key] = format!("there-{number}").into();
            }
        }
        pods
    })
}

proptest! {
    /// Whatever is there, and wherever the first plan is cut: two more plans, and nothing is left to do. Then there is one
    /// reservation with the held ports, or none.
    #[test]
    fn plans_converge(
        fakes in some_fakes(), ports in prop::sample::subsequence(vec![80, 81], 0..=2),
        there in any::<bool>(), cut in 0_usize..6,
    ) {
        let (vnode, held) = (there.then(|| our_vnode(VNODE)), held(&ports));
        let plan = |pods: &[Value]| planned(vnode.as_ref(), &held, pods);
        let mut made = 0;
        let mut first = plan(&fakes);
        first.truncate(cut);
        let mut pods = perform(fakes, first, &mut made);
        for _ in 0..2 {
            let next = plan(&pods);
            pods = perform(pods, next, &mut made);
        }
        prop_assert_eq!(plan(&pods), vec![]);
        let expected: Vec<Vec<HostPort>> = (there && !held.is_empty()).then(|| held.clone()).into_iter().collect();
        let shown: Vec<Vec<HostPort>> = pods.iter().map(|pod| parse(pod).ports.to_vec()).collect();
        prop_assert_eq!(shown, expected);
        prop_assert!(made <= 1, "{} were made", made);
    }

    /// At no moment is a held port unreserved that was reserved before.
    #[test]
    fn a_port_stays_reserved_while_its_reservation_is_replaced(fakes in some_fakes()) {
        let held = held(&[80]);
        let reserved = |pods: &[Value]| pods.iter().map(parse).any(|pod| !pod.terminal && pod.ports.contains(&held[0]));
        let (mut pods, mut made) = (fakes, 0);
        if !reserved(&pods) {
            pods.push(fake("reserves", &[80]));
        }
        for action in planned(Some(&our_vnode(VNODE)), &held, &pods.clone()) {
            pods = perform(pods, vec![action], &mut made);
            prop_assert!(reserved(&pods));
        }
    }
}

fn store() -> Arc<HostPortStore> {
    let identity =
        Identity { binding: "dc-east".into(), cluster_id: "cls-a".into(), computing_uid: "c-1".into() };
    HostPortStore::new(NodeStore::new(identity, BindingView::default(), Arc::default()))
}

fn at(name: &str, version: u32) -> FakePod {
    let pod = with(fake(name, &[80]), "/metadata/resourceVersion", json!(version.to_string()));
    serde_json::from_value(pod).unwrap()
}

#[test]
fn reservations_are_known_by_vnode_and_a_late_answer_brings_none_back() {
    let store = store();
    let known = || store.snapshot(VNODE).fakes.iter().map(|fake| fake.name().to_owned()).collect::<Vec<_>>();
    store.saw(at("b", 2));
    store.saw(at("a", 1));
    store.saw(FakePod { vnode: "".into(), ..at("unbound", 1) });
    assert_eq!(known(), ["a", "b"]);
    assert!(store.remove(VNODE, "a", "a", 7));
    assert!(!store.remove(VNODE, "a", "a", 7), "the event of our own deletion");
    store.saw(at("a", 1));
    assert_eq!(known(), ["b"], "the answer to its creation comes after its end");
    store.listed(vec![at("c", 3)]);
    assert_eq!(known(), ["c"]);
    assert!(store.snapshot("vnode-cls-a-n2").fakes.is_empty());
}

#[tokio::test(start_paused = true)]
async fn changed_ports_are_acted_on_after_a_quiet_time() {
    let store = store();
    store.ports_changed(VNODE);
    assert!(store.queue.is_empty());
    let before = tokio::time::Instant::now();
    assert_eq!(&*store.queue.next().await, VNODE);
    assert_eq!(before.elapsed().as_millis(), 200);
}

#[tokio::test]
async fn our_own_writes_come_back_through_the_watch_without_work() {
    let store = store();
    assert!(store.take(at("a", 5)));
    for version in [4, 5] {
        store.saw(at("a", version));
    }
    assert!(store.queue.is_empty());
    store.saw(at("a", 6));
    assert_eq!(&*store.queue.next().await, VNODE);
}

#[tokio::test]
async fn a_reservation_that_comes_changes_or_goes_is_work() {
    let store = store();
    let steps: [&dyn Fn(&HostPortStore); 5] = [
        &|store| store.saw(at("a", 1)),
        &|store| store.saw(at("a", 2)),
        &|store| store.lost(&at("a", 3)),
        &|store| store.listed(vec![at("b", 4)]),
        &|store| store.listed(vec![]),
    ];
    for step in steps {
        step(&store);
        assert_eq!(store.queue.len(), 1);
        let key = store.queue.next().await;
        store.queue.done(&key, kubeocean_runtime::queue::Outcome::Done);
    }
}
