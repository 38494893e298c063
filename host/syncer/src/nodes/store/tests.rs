//! What the store tells whom, and when.

use super::*;
use crate::nodes::{
    snapshot::Amounts,
    view::{Stamp, Taint, WorkerPod},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::json;

fn store() -> Arc<NodeStore> {
    let identity =
        Identity { binding: "dc-east".into(), cluster_id: "cls-a".into(), computing_uid: "c-1".into() };
    NodeStore::new(identity, BindingView::default(), Arc::default())
}

fn vnode(name: &str, version: u32, port: u16) -> NodeView {
    serde_json::from_value(json!({"metadata": {
        "name": name, "uid": name, "resourceVersion": version.to_string(),
        "labels": {label::TYPE: "virtual-kubelet", label::PROXIER_PORT: port.to_string()},
    }}))
    .unwrap()
}

#[test]
fn a_vnode_that_names_another_binding_is_not_ours() {
    let store = store();
    for (version, (name, ours)) in (1..).zip([("", true), ("dc-east", true), ("dc-west", false)]) {
        let vnode = json!({"metadata": {
            "name": "vnode-cls-a-n1", "uid": "u", "resourceVersion": version.to_string(),
            "labels": {
                label::TYPE: "virtual-kubelet",
                label::CLUSTER_BINDING: "dc-east", label::PHYSICAL_CLUSTER_ID: "cls-a",
            },
            "annotations": {annotation::PHYSICAL_CLUSTER_NAME: name},
        }});
        store.saw_vnode(serde_json::from_value(vnode).unwrap());
        assert_eq!(store.vnode("vnode-cls-a-n1").unwrap().ours, ours, "{name:?}");
    }
}

/// Its finalizer waits for the last vnode that names it, also for one that went while nobody watched: a list tells only
/// that the vnode has to be read.
#[test]
fn a_policy_hears_of_vnodes_that_went_unseen() {
    let store = store();
    let mut named = vnode("vnode-cls-a-n1", 1, 20_001);
    named.annotations = named.annotations.with(annotation::POLICIES_APPLIED, "p");
    store.saw_vnode(named);
    store.reset_vnodes(Vec::new());
    assert!(store.is_unsettled("vnode-cls-a-n1") && store.vnode("vnode-cls-a-n1").is_some());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ears = Arc::clone(&heard);
    store.on_policy_usage_change(move |policy| ears.lock().push(policy.to_owned()));
    store.settle_vnode("vnode-cls-a-n1", Some("vnode-cls-a-n1"), None);
    assert_eq!(*heard.lock(), ["p"]);
    assert!(!store.is_unsettled("vnode-cls-a-n1") && store.vnode("vnode-cls-a-n1").is_none());
}

/// What the watch no longer shows may only have lost its labels; another node of its name is not ours.
#[test]
fn a_vnode_that_its_watch_misses_stands_until_it_is_read() {
    const NAME: &str = "vnode-cls-a-n1";
    let store = store();
    store.saw_vnode(vnode(NAME, 3, 20_001));
    store.missed_vnode(NAME, NAME, 5);
    assert!(store.is_unsettled(NAME) && store.vnode(NAME).is_some());
    store.settle_vnode(NAME, Some(NAME), Some(vnode(NAME, 4, 20_001)));
    assert!(store.is_unsettled(NAME), "read before it was missed");
    store.settle_vnode(NAME, Some(NAME), Some(vnode(NAME, 5, 20_001)));
    assert!(!store.is_unsettled(NAME));
    assert_eq!(store.snapshot(NAME).vnode.unwrap().resource_version(), "5");
    store.missed_vnode(NAME, NAME, 6);
    let mut another = vnode(NAME, 7, 20_001);
    another.metadata.uid = "another".into();
    store.settle_vnode(NAME, Some(NAME), Some(another));
    assert!(!store.is_unsettled(NAME) && store.vnode(NAME).is_none());
}

#[test]
fn numbers_of_a_policy_are_sums_over_the_nodes_it_governs() {
    let store = store();
    let amounts = |cpu: i64| Amounts::from([("cpu".to_owned(), cpu)]);
    let pod = |uid: &str, node: &str, own: bool| {
        let stamp = if own {
            json!({
                "labels": {label::MANAGED_BY: label::MANAGED_BY_VALUE, label::CLUSTER_BINDING: "dc-east"},
                "annotations": {annotation::COMPUTING_CLUSTER_UID: "c-1"},
            })
        } else {
            json!({})
        };
        let mut pod = json!({
            "metadata": {"uid": uid, "name": uid, "namespace": "x"},
            "spec": {"nodeName": node, "containers": [{"name": "c", "resources": {"requests": {"cpu": "1"}}}]},
            "status": {"phase": "Running"},
        });
        pod["metadata"].as_object_mut().unwrap().extend(stamp.as_object().unwrap().clone());
        serde_json::from_value::<crate::nodes::view::WorkerPod>(pod).unwrap()
    };
    for name in ["n1", "n2", "n3"] {
        let node = json!({"metadata": {"name": name, "uid": name}, "status": {"allocatable": {"cpu": "4"}}});
        store.change(|index| index.set_pnode(serde_json::from_value(node).unwrap()).into_iter().collect());
    }
    store.change(|index| {
        index.reset_pods(vec![pod("a", "n1", false), pod("b", "n1", true), pod("c", "n2", true)])
    });
    let publish = |node: &str, version: u32, cpu: &str| {
        let mut vnode = vnode(&format!("vnode-cls-a-{node}"), version, 20_000);
        vnode.status.allocatable = vnode.status.allocatable.with("cpu", cpu);
        store.saw_vnode(vnode);
    };
    for (node, policy, published, withheld) in
        [("n1", "p", "500m", false), ("n2", "p", "2", true), ("n3", "q", "100m", false)]
    {
        publish(node, 1, published);
        let decided = Decided { governed_by: Some(policy.to_owned()), withheld, ..Decided::default() };
        store.set_decided(&format!("vnode-cls-a-{node}").into(), Some(decided));
    }
    let numbers = store.policy_numbers();
    let p = PolicyNumbers { offered: amounts(2500), available: amounts(7000), withheld: 1, overcommitted: 1 };
    assert_eq!(numbers["p"], p);
    assert_eq!(numbers["q"].overcommitted, 0);
    assert_eq!(numbers.len(), 2);

    // A vnode that waits for its turn to be withdrawn is not decided anew, but what it publishes may fall.
    publish("n2", 2, "500m");
    let p = PolicyNumbers { offered: amounts(1000), overcommitted: 2, ..p };
    assert_eq!(store.policy_numbers()["p"], p);
    let told: Vec<_> = store.numbers().into_iter().map(|it| (it.origin, it.available)).collect();
    assert_eq!(told, [500, 500, 100].map(|cpu| (amounts(4000), amounts(cpu))));
}

#[test]
fn an_edited_port_label_changes_no_port() {
    let store = store();
    store.saw_vnode(vnode("vnode-cls-a-n1", 1, 20_000));
    store.saw_vnode(vnode("vnode-cls-a-n1", 2, 20_001));
    assert_eq!(store.port("vnode-cls-a-n1"), Ok(20_000));
    store.reset_vnodes(vec![vnode("vnode-cls-a-n1", 3, 20_002)]);
    assert_eq!(store.port("vnode-cls-a-n1"), Ok(20_000));
}

/// MC-134, over the bindings of one process.
#[tokio::test]
async fn the_older_vnode_keeps_a_port_and_the_binding_of_the_younger_is_told() {
    let ports: Arc<Ports> = Arc::default();
    let of = |binding: &str, cluster_id: &str| {
        let identity =
            Identity { binding: binding.into(), cluster_id: cluster_id.into(), computing_uid: "c".into() };
        NodeStore::new(identity, BindingView::default(), Arc::clone(&ports))
    };
    let aged = |name: &str, created: &str| -> NodeView {
        let mut vnode = vnode(name, 1, 20_000);
        vnode.metadata.created = Some(created.parse().unwrap());
        vnode
    };
    let (east, west) = (of("dc-east", "cls-a"), of("dc-west", "cls-b"));
    let (older, younger) =
        (aged("vnode-cls-b-n1", "2026-01-01T00:00:00Z"), aged("vnode-cls-a-n1", "2026-01-02T00:00:00Z"));
    east.reset_vnodes(vec![younger.clone()]);
    assert_eq!(east.queue.next().await.as_ref(), "vnode-cls-a-n1");
    east.queue.done(&"vnode-cls-a-n1".into(), kubeocean_runtime::queue::Outcome::Done);
    west.saw_vnode(older);
    assert_eq!(west.port("vnode-cls-b-n1"), Ok(20_000));
    assert_eq!(east.queue.next().await.as_ref(), "vnode-cls-a-n1", "it is looked at again");
    assert_eq!(east.port_conflict(&younger), Some((20_000, "vnode-cls-b-n1".to_owned())));
    assert_ne!(east.port("vnode-cls-a-n1"), Ok(20_000));
}

/// BU section 6 *Do better*.
#[tokio::test(start_paused = true)]
async fn changes_of_requests_are_taken_together() {
    let store = store();
    let key: VnodeName = "vnode-cls-a-n1".into();
    let start = Instant::now();
    let mut reactions = Vec::new();
    let mut next = std::pin::pin!(store.queue.next());
    for step in 0..40 {
        tokio::time::sleep_until(start + Duration::from_millis(step * 100)).await;
        store.change_requests(|_| BTreeSet::from([Arc::clone(&key)]));
        while let Ok(key) = tokio::time::timeout(Duration::from_millis(1), next.as_mut()).await {
            store.queue.done(&key, kubeocean_runtime::queue::Outcome::Done);
            next.set(store.queue.next());
            reactions.push(start.elapsed().as_millis());
        }
    }
    assert!((200..300).contains(&reactions[0]), "{reactions:?}");
    assert!(reactions.windows(2).all(|two| (500..1_500).contains(&(two[1] - two[0]))), "{reactions:?}");
    assert!((4..=6).contains(&reactions.len()), "{reactions:?}");
}

/// A pod that comes or goes costs no decision while nothing of its vnode depends on it.
#[test]
fn pods_matter_to_a_vnode_that_closes() {
    let store = store();
    let name = "vnode-cls-a-n1";
    let wakes = |store: &NodeStore| {
        let before = store.queue.len();
        store.pods_changed(name);
        store.queue.len() > before
    };
    assert!(wakes(&store), "nothing is known of it");
    for (version, key, deleting, matters) in [
        (1, "users.example/taint", false, false),
        (2, taint::OUT_OF_TIME_WINDOWS, false, true),
        (3, taint::VNODE_DELETING, false, true),
        (4, "users.example/taint", true, true),
    ] {
        let store = self::store();
        let mut shown = vnode(name, version, 20_000);
        shown.spec.taints = [Taint::new(key, None, "NoSchedule")].into();
        shown.metadata.deleting = deleting;
        store.change(|index| {
            index.set_vnode(shown);
            BTreeSet::new()
        });
        assert_eq!(wakes(&store), matters, "{key} {deleting}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_leased_pods_ask_for_wakes_a_node_only_if_a_policy_reads_it() {
    for matter in [true, false] {
        let store = store();
        store.leased_pods_matter(matter);
        let told = Arc::new(AtomicU64::new(0));
        let ears = Arc::clone(&told);
        store.on_facts_change(move |_| {
            ears.fetch_add(1, Ordering::Relaxed);
        });
        let pod = |stamp: Stamp| WorkerPod {
            metadata: ObjectMeta { uid: Some("u".into()), ..ObjectMeta::default() },
            node: "n1".into(),
            stamp,
            ..WorkerPod::default()
        };
        let Identity { binding, computing_uid, .. } = store.identity().clone();
        let ours = Stamp::Stamped { binding, cluster_uid: computing_uid };
        let woken = async || tokio::time::timeout(Duration::from_secs(2), store.queue.next()).await.is_ok();
        store.change_requests(|index| index.set_pod(pod(ours)).into_iter().collect());
        assert_eq!(woken().await, matter);
        assert_eq!(told.load(Ordering::Relaxed), 1, "placement is told in any case");
        store.change_requests(|index| index.set_pod(pod(Stamp::None)).into_iter().collect());
        assert!(matter || woken().await, "others' pods always count");
    }
}

#[test]
fn a_port_is_released_only_without_a_vnode() {
    let store = store();
    store.saw_vnode(vnode("vnode-cls-a-n1", 1, 20_000));
    store.release_port_of_no_vnode("vnode-cls-a-n1");
    assert_eq!(store.port("vnode-cls-a-n1"), Ok(20_000));
    store.lost_vnode("vnode-cls-a-n1", "vnode-cls-a-n1", u64::MAX);
    store.release_port_of_no_vnode("vnode-cls-a-n1");
    assert_ne!(store.port("vnode-cls-a-n1"), Ok(20_000));
}

#[tokio::test]
async fn policies_are_told_about_after_each_node_was_decided_once() {
    let store = store();
    let names: Vec<VnodeName> = ["vnode-cls-a-n1", "vnode-cls-a-n2"].map(Into::into).into();
    for name in &names {
        store.saw_vnode(vnode(name, 1, 20_000));
    }
    store.set_readiness(Readiness::Ready);
    store.was_decided(&names[0]);
    store.was_decided(&names[0]);
    assert!(!store.is_settled());
    store.was_decided(&names[1]);
    assert!(store.is_settled());
    store.set_readiness(Readiness::Listing);
    assert!(!store.is_settled(), "a new connection begins anew");
}

#[tokio::test]
async fn without_nodes_there_is_nothing_to_wait_for() {
    let store = store();
    store.set_readiness(Readiness::Ready);
    assert!(store.is_settled());
}

#[test]
fn a_measurement_is_a_fact_and_tells_of_the_nodes_it_changes() {
    let store = store();
    for name in ["n1", "n2"] {
        let node = json!({"metadata": {"name": name, "uid": name}, "status": {"allocatable": {"cpu": "4"}}});
        store.change(|index| index.set_pnode(serde_json::from_value(node).unwrap()).into_iter().collect());
    }
    let heard = Arc::new(Mutex::new(Vec::new()));
    let ears = Arc::clone(&heard);
    store.on_facts_change(move |vnode| ears.lock().push(vnode.map(str::to_owned)));
    let of = |amounts: &[(&str, i64)]| {
        let mean =
            |(node, cpu): &(&str, i64)| ((*node).to_owned(), Amounts::from([("cpu".to_owned(), *cpu)]));
        amounts.iter().map(mean).collect::<BTreeMap<_, _>>()
    };
    let measured = |vnode: &str| store.snapshot(vnode).usage.measured.get("cpu").copied();
    for (means, [n1, n2], changed) in [
        (
            of(&[("n1", 700), ("n2", 900)]),
            [Some(700), Some(900)],
            ["vnode-cls-a-n1", "vnode-cls-a-n2"].as_slice(),
        ),
        (of(&[("n1", 700), ("n2", 800)]), [Some(700), Some(800)], &["vnode-cls-a-n2"]),
        (of(&[("n2", 800)]), [None, Some(800)], &["vnode-cls-a-n1"]),
        (of(&[("n2", 800)]), [None, Some(800)], &[]),
    ] {
        store.measured(&means, true);
        assert_eq!([measured("vnode-cls-a-n1"), measured("vnode-cls-a-n2")], [n1, n2]);
        let told: Vec<_> = heard.lock().drain(..).flatten().collect();
        assert_eq!(told, changed);
        let waiting = store.some_facts(2).into_iter().find(|facts| facts.node_name == "n2").unwrap();
        assert_eq!(waiting.usage.get("cpu").copied(), n2);
    }
}
