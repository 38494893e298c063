//! What the store says of pods without a plan: whose they are and what they use.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kubeocean_api::keys::{annotation, label, taint};
use rstest::rstest;
use serde::Deserialize;
use serde_json::{Value, json};

use super::builders::*;
use crate::{
    objects::{ObjectKind, ObjectRef, PodDirectory},
    pods::{
        index::PodStore,
        snapshot::{Absence, PodScope, VnodeState},
        view::{Phase, Ppod, PpodObject, Vpod, VpodObject},
        vpod_identity::VpodIdentity,
    },
};
use kubeocean_runtime::sink::Sink;

/// A store that the watches have told of these pods.
fn store(vpods: &[Pod], ppods: &[Pod]) -> Arc<PodStore> {
    let store = PodStore::new("cls-a", scope());
    store.vnode_changed(VNODE, true);
    for pod in vpods {
        store.apply(VpodObject::deserialize(&pod.0).unwrap());
    }
    for pod in ppods {
        store.apply(PpodObject::deserialize(&pod.0).unwrap());
    }
    store
}

#[rstest]
#[case::stamped(ppod(), 1)]
#[case::stamped_of_an_earlier_pod(ppod().annotate(annotation::VIRTUAL_POD_UID, "v0"), 1)]
#[case::of_the_original(unstamped(), 1)]
#[case::unstamped_of_a_pod_we_do_not_have(unstamped().annotate(annotation::VIRTUAL_POD_UID, "v0"), 0)]
#[case::of_another_binding(ppod().label(label::CLUSTER_BINDING, "west"), 0)]
fn only_ppods_that_will_be_ended_here_are_counted(#[case] copy: Pod, #[case] expected: usize) {
    assert_eq!(store(&[vpod()], &[copy]).ppod_count(), expected);
}

/// There are thousands of them, and each has several versions.
#[test]
fn versions_of_a_pod_share_what_names_it() {
    let store = store(&[vpod()], &[ppod()]);
    let seen = || {
        let snapshot = store.snapshot(&key(), jiff::Timestamp::UNIX_EPOCH, |_| VnodeState::Missing);
        (snapshot.vpod.expect("a vpod"), snapshot.ppod.expect("a ppod"))
    };
    let (vpod_before, ppod_before) = seen();
    let (mut vpod_after, mut ppod_after) = (vpod(), ppod());
    for pod in [&mut vpod_after, &mut ppod_after] {
        pod.0["metadata"]["resourceVersion"] = json!("900");
    }
    store.apply(VpodObject::deserialize(&vpod_after.0).unwrap());
    store.apply(PpodObject::deserialize(&ppod_after.0).unwrap());
    let (vpod, ppod) = seen();
    assert_eq!((&*vpod.resource_version, &*ppod.resource_version), ("900", "900"));
    let names = [
        (&vpod.key.name, &vpod_before.key.name),
        (&vpod.key.namespace, &vpod_before.key.namespace),
        (&vpod.node, &vpod_before.node),
        (&vpod.uid, &vpod_before.uid),
        (&ppod.key.name, &ppod_before.key.name),
        (&ppod.key.namespace, &ppod_before.key.namespace),
        (&ppod.uid, &ppod_before.uid),
    ];
    for (name, before) in names {
        assert!(Arc::ptr_eq(name, before), "{name} is there twice");
    }
}

/// What a list does not show any more may have ended well meanwhile, which its vpod does not say yet (TD-805).
#[rstest]
#[case::ended_well(ppod().running().phase("Succeeded"), Phase::Succeeded)]
#[case::started(ppod().running(), Phase::Running)]
fn what_was_seen_of_a_ppod_is_known_when_a_list_misses_it(#[case] copy: Pod, #[case] seen: Phase) {
    let store = store(&[recorded()], &[copy]);
    store.reset(Vec::<PpodObject>::new());
    let snapshot = store.snapshot(&key(), jiff::Timestamp::UNIX_EPOCH, |_| VnodeState::Missing);
    let Absence::Witnessed(lost) = snapshot.absence else { panic!("{:?}", snapshot.absence) };
    assert_eq!((lost.status.phase, lost.certain), (seen, false), "a list alone is no proof");
}

/// Pods that wait for the worker's scheduler have all their time anew when it was out of reach (TD-804).
#[tokio::test(start_paused = true)]
async fn the_time_without_a_node_begins_anew_with_the_worker() {
    let waits = || ppod().set(&["spec", "nodeName"], "");
    let store = store(&[recorded()], &[waits()]);
    let waited = || {
        let vnode = |_: &str| VnodeState::Missing;
        store.snapshot(&key(), jiff::Timestamp::UNIX_EPOCH, vnode).unscheduled_for.as_secs()
    };
    let four = Duration::from_mins(4);
    tokio::time::advance(four).await;
    assert_eq!(waited(), 240);
    // What the watch tells meanwhile changes nothing.
    store.apply(
        PpodObject::deserialize(
            &waits().label("team", "a").set(&["metadata", "resourceVersion"], json!("99")).0,
        )
        .unwrap(),
    );
    assert_eq!(waited(), 240);
    store.reset(vec![PpodObject::deserialize(&waits().0).unwrap()]);
    assert_eq!(waited(), 0, "listed anew");
    tokio::time::advance(four).await;
    store.worker_is_back();
    assert_eq!(waited(), 0);
}

#[test]
fn a_stamped_ppod_is_counted_after_its_vpod_is_gone() {
    assert_eq!(store(&[], &[ppod()]).ppod_count(), 1);
    assert_eq!(store(&[], &[unstamped()]).ppod_count(), 0);
}

/// A vpod that mounts ConfigMap `settings`.
fn mounting(pod: Pod) -> Pod {
    pod.set(&["spec", "volumes"], json!([{"name": "v", "configMap": {"name": "settings"}}]))
}

fn settings() -> ObjectRef {
    ObjectRef::new(ObjectKind::ConfigMap, "default", "settings")
}

#[rstest]
#[case::waits(vpod(), None, true)]
#[case::runs(recorded().running(), Some(ppod().running()), true)]
#[case::has_ended(recorded().running().phase("Succeeded"), Some(ppod().phase("Succeeded")), false)]
#[case::has_ended_before_its_copy(recorded().running().phase("Failed"), Some(ppod().running()), true)]
#[case::ended_unmapped(vpod().phase("Failed"), None, false)]
#[case::daemonset_pod_that_is_not_run(
    vpod().set(&["metadata", "ownerReferences"], json!([
        {"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": "d"}
    ])), None, false
)]
#[case::labelled_as_one(vpod().label(label::HOSTPORT_FAKE_POD, "true"), None, true)]
fn an_object_is_used_by_pods_that_run_or_will(
    #[case] pod: Pod,
    #[case] copy: Option<Pod>,
    #[case] expected: bool,
) {
    let store = store(&[mounting(pod)], copy.as_slice());
    assert_eq!(store.uses(&settings()), expected);
    assert_eq!(!store.users(&settings(), 9).is_empty(), expected);
}

/// Names of vnodes of `cls-a-2` begin like those of `cls-a`.
#[test]
fn a_pod_on_a_vnode_of_another_binding_uses_nothing_here() {
    const OTHER: &str = "vnode-cls-a-2-node-1";
    let store = store(&[mounting(vpod().set(&["spec", "nodeName"], OTHER))], &[]);
    let told = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&told);
    store.on_references_change(move |_, _| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    store.vnode_changed(OTHER, false);
    assert!(!store.uses(&settings()));
    assert_eq!(store.by_phase().0.values().sum::<usize>(), 0);
    store.vnode_changed(OTHER, true);
    assert!(store.uses(&settings()), "a node of ours may be called 2-node-1");
    store.vnode_changed(OTHER, true);
    assert_eq!(told.load(Ordering::Relaxed), 1);
    store.vnode_changed(OTHER, false);
    assert!(!store.uses(&settings()));
    assert_eq!(told.load(Ordering::Relaxed), 2);
}

/// BU-1601: pods that are, or are to be, copied.
#[rstest]
#[case::of_a_user(vpod(), 1)]
#[case::of_the_system(vpod().set(&["metadata", "namespace"], "kube-system"), 0)]
#[case::of_the_components(vpod().set(&["metadata", "namespace"], "ocean"), 0)]
#[case::that_only_reserves_host_ports(vpod().set(&["metadata", "namespace"], "kubeocean-fake"), 0)]
#[case::of_a_daemonset(of_a_daemonset(), 0)]
#[case::of_a_daemonset_that_ended(of_a_daemonset().phase("Failed"), 0)]
#[case::of_a_daemonset_that_is_run(of_a_daemonset().annotate(annotation::RUNNING_DAEMONSET, "true"), 1)]
fn a_pod_is_counted_by_phase(#[case] pod: Pod, #[case] expected: usize) {
    let ended = pod.0["status"]["phase"] == "Failed";
    let (vpods, ppods) = store(&[pod], &[]).by_phase();
    let phase = if ended { Phase::Failed } else { Phase::Pending };
    assert_eq!(vpods.get(&phase).copied().unwrap_or_default(), expected);
    assert_eq!(vpods.values().sum::<usize>(), expected);
    assert_eq!(ppods.values().sum::<usize>(), 0);
}

/// Whoever asks for all DaemonSets to be run has their pods counted (TD-404).
#[test]
fn pods_of_daemonsets_count_where_they_are_run_by_default() {
    let store = store(&[of_a_daemonset()], &[]);
    assert_eq!(store.by_phase().0.values().sum::<usize>(), 0);
    store.set_scope(PodScope { running_daemonset_by_default: true, ..scope() });
    assert_eq!(store.by_phase().0.values().sum::<usize>(), 1);
}

fn of_a_daemonset() -> Pod {
    vpod().set(
        &["metadata", "ownerReferences"],
        json!([{"apiVersion": "apps/v1", "kind": "DaemonSet", "name": "agent", "uid": "d"}]),
    )
}

/// BU-807: by the rules of Kubernetes, or by naming the key at all.
#[rstest]
#[case::none(json!([]), false)]
#[case::exists(json!([{"key": taint::OUT_OF_TIME_WINDOWS, "operator": "Exists"}]), true)]
#[case::value(json!([{"key": taint::OUT_OF_TIME_WINDOWS, "value": "true", "effect": "NoExecute"}]), true)]
#[case::another_value(json!([{"key": taint::OUT_OF_TIME_WINDOWS, "value": "no"}]), true)]
#[case::another_effect(json!([{"key": taint::OUT_OF_TIME_WINDOWS, "operator": "Exists", "effect": "NoSchedule"}]), true)]
#[case::everything(json!([{"operator": "Exists"}]), true)]
#[case::everything_that_executes(json!([{"operator": "Exists", "effect": "NoExecute"}]), true)]
#[case::everything_that_schedules(json!([{"operator": "Exists", "effect": "NoSchedule"}]), false)]
#[case::another_key(json!([{"key": taint::VNODE, "operator": "Exists"}]), false)]
#[case::nothing(json!([{"key": "", "operator": "Equal"}]), false)]
fn which_pods_a_reclaim_spares(#[case] tolerations: Value, #[case] spared: bool) {
    let store = store(&[vpod().set(&["spec", "tolerations"], tolerations)], &[]);
    assert_eq!(store.on_vnode(VNODE)[0].tolerates_out_of_window, spared);
}

#[test]
fn a_pod_that_is_refused_whole_uses_nothing() {
    let volumes = json!([
        {"name": "v", "configMap": {"name": "settings"}},
        {"name": "d", "glusterfs": {"path": "/", "endpoints": "x"}},
    ]);
    assert!(!store(&[vpod().set(&["spec", "volumes"], volumes)], &[]).uses(&settings()));
}

#[test]
fn the_end_of_a_pod_and_of_its_copy_are_told_to_those_who_keep_its_objects() {
    let (running, copy) = (mounting(recorded().running()), ppod().running());
    let store = store(std::slice::from_ref(&running), std::slice::from_ref(&copy));
    let told = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&told);
    store.on_references_change(move |_, _| {
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let ended = running.phase("Failed").set(&["metadata", "resourceVersion"], "11");
    store.apply(VpodObject::deserialize(&ended.0).unwrap());
    assert!(store.uses(&settings()), "its copy lives");
    store.delete(PpodObject::deserialize(&copy.0).unwrap());
    assert!(!store.uses(&settings()));
    assert_eq!(told.load(Ordering::Relaxed), 1);
}

/// A store in which [`vpod`] was refused, with nothing left in its queue.
async fn refused(ppods: &[Pod]) -> Arc<PodStore> {
    let store = store(&[vpod()], ppods);
    drain(&store).await;
    store.refused(&key());
    store
}

async fn drain(store: &PodStore) -> usize {
    let mut keys = 0;
    while !store.queue().is_empty() {
        let key = store.queue().next().await;
        store.queue().done(&key, kubeocean_runtime::queue::Outcome::Done);
        keys += 1;
    }
    keys
}

#[tokio::test]
async fn a_refused_pod_is_looked_at_again_when_the_binding_changes() {
    let store = refused(&[]).await;
    store.set_scope(PodScope { priority_class_name: "batch".into(), ..scope() });
    assert_eq!(drain(&store).await, 1);
    store.apply(PpodObject::deserialize(&ppod().0).unwrap());
    drain(&store).await;
    store.set_scope(scope());
    assert_eq!(drain(&store).await, 0, "it has its copy");
}

#[tokio::test]
async fn a_refused_pod_is_looked_at_again_when_its_place_becomes_free() {
    let foreign =
        ppod().annotate(annotation::VIRTUAL_POD_NAME, "").annotate(annotation::VIRTUAL_POD_UID, "x");
    let store = refused(std::slice::from_ref(&foreign)).await;
    store.delete(PpodObject::deserialize(&foreign.0).unwrap());
    assert_eq!(drain(&store).await, 1);

    let store = refused(std::slice::from_ref(&foreign)).await;
    store.reset(Vec::<PpodObject>::new());
    assert_eq!(drain(&store).await, 1, "it went while nobody watched");
}

#[rstest]
#[case::by_force(0, true)]
#[case::with_grace(30, false)]
fn how_a_vpod_was_deleted_is_remembered_for_its_ppod(#[case] grace_seconds: i64, #[case] forced: bool) {
    let store = store(&[recorded()], &[ppod().deleting(30)]);
    store.delete(VpodObject::deserialize(&recorded().deleting(grace_seconds).0).unwrap());
    let snapshot = store.snapshot(&key(), now(), |_| VnodeState::Missing);
    assert!(snapshot.gone_vpods.contains("v1"));
    assert_eq!(snapshot.forced_vpods.contains("v1"), forced);

    // As long as it says so, and however many others are deleted by force meanwhile.
    for number in 0..10_000 {
        let name = format!("other-{number}");
        let other = recorded().deleting(0).set(&["metadata", "name"], &*name).set(&["metadata", "uid"], name);
        store.delete(VpodObject::deserialize(&other.0).unwrap());
    }
    let snapshot = store.snapshot(&key(), now(), |_| VnodeState::Missing);
    assert_eq!(snapshot.forced_vpods.contains("v1"), forced);
    store.delete(PpodObject::deserialize(&ppod().0).unwrap());
    store.apply(PpodObject::deserialize(&ppod().set(&["metadata", "uid"], "p2").0).unwrap());
    let snapshot = store.snapshot(&key(), now(), |_| VnodeState::Missing);
    assert_eq!(snapshot.forced_vpods.len(), 0, "the next ppod of that name is not that one");
}

#[test]
fn a_name_is_free_when_no_vpod_has_it() {
    let store = store(&[recorded()], &[]);
    let told = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&told);
    store.on_vpod_gone(move |gone| {
        assert_eq!(*gone, key());
        counter.fetch_add(1, Ordering::Relaxed);
    });
    let successor = recorded().set(&["metadata", "uid"], "v2").set(&["metadata", "resourceVersion"], "900");
    store.apply(VpodObject::deserialize(&successor.0).unwrap());
    store.delete(VpodObject::deserialize(&recorded().0).unwrap());
    assert_eq!(told.load(Ordering::Relaxed), 0, "the end of a predecessor");
    store.delete(VpodObject::deserialize(&successor.0).unwrap());
    assert_eq!(told.load(Ordering::Relaxed), 1);
    store.apply(VpodObject::deserialize(&recorded().set(&["metadata", "uid"], "v3").0).unwrap());
    store.reset(Vec::<VpodObject>::new());
    assert_eq!(told.load(Ordering::Relaxed), 2, "it went while nobody watched");
}

#[test]
fn the_end_of_a_copy_is_told_with_the_pod_it_was_of() {
    let earlier = ppod().annotate(annotation::VIRTUAL_POD_UID, "v0");
    let store = store(&[vpod()], std::slice::from_ref(&earlier));
    let told = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let ears = Arc::clone(&told);
    store.on_copy_gone(move |pod| ears.lock().push(pod.uid.clone()));
    let owner = |uid: &str| VpodIdentity { key: key(), uid: uid.to_owned() };
    assert!(store.has_copy(&owner("v0")) && !store.has_copy(&owner("v1")));
    store.delete(PpodObject::deserialize(&earlier.0).unwrap());
    assert_eq!(*told.lock(), ["v0"]);
    assert!(!store.has_copy(&owner("v0")));
}

/// Its tokens are looked at again then: of a copy that went while nobody watched there is no event.
#[test]
fn the_end_of_a_pod_without_a_copy_is_told_too() {
    let store = store(&[vpod()], &[]);
    let told = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let ears = Arc::clone(&told);
    store.on_copy_gone(move |pod| ears.lock().push(pod.uid.clone()));
    let uid = vpod().0["metadata"]["uid"].as_str().unwrap().to_owned();
    let failed = vpod().set(&["metadata", "resourceVersion"], "100").set(&["status", "phase"], "Failed");
    store.apply(VpodObject::deserialize(&failed.0).unwrap());
    assert_eq!(told.lock().as_slice(), std::slice::from_ref(&uid));
    store.delete(VpodObject::deserialize(&failed.0).unwrap());
    assert_eq!(*told.lock(), [uid.clone(), uid]);

    let copied = self::store(&[vpod()], &[ppod()]);
    let ears = Arc::clone(&told);
    copied.on_copy_gone(move |pod| ears.lock().push(pod.uid.clone()));
    copied.apply(VpodObject::deserialize(&failed.0).unwrap());
    assert_eq!(told.lock().len(), 2, "its copy still runs");
}

/// What the node tasks' deletion of a pod answers may be here before its event, which is no news then.
#[tokio::test]
async fn what_somebody_elses_write_or_a_read_tells_wakes_its_pod_once() {
    let store = store(&[vpod()], &[ppod()]);
    drain(&store).await;

    let evicted = vpod()
        .set(&["metadata", "resourceVersion"], "100")
        .set(&["metadata", "deletionTimestamp"], NOW)
        .set(&["metadata", "deletionGracePeriodSeconds"], 30);
    store.saw_vpod(Vpod::from_json(&evicted.0).unwrap());
    assert_eq!(drain(&store).await, 1);
    store.apply(VpodObject::deserialize(&evicted.0).unwrap());
    assert_eq!(drain(&store).await, 0, "its event tells nothing new");

    let running = ppod().running().set(&["metadata", "resourceVersion"], "101");
    store.saw_ppod(Ppod::from_json(&running.0).unwrap());
    assert_eq!(drain(&store).await, 1);
    store.apply(PpodObject::deserialize(&running.0).unwrap());
    assert_eq!(drain(&store).await, 0, "its event tells nothing new");
}

/// Whoever wrote on the version it knew goes on by itself.
#[tokio::test]
async fn a_pods_own_writes_wake_nobody() {
    let store = store(&[vpod()], &[ppod()]);
    drain(&store).await;
    let (vpod, ppod) = (
        vpod().set(&["metadata", "resourceVersion"], "100").running(),
        ppod().set(&["metadata", "resourceVersion"], "101"),
    );
    store.feed_vpod(Vpod::from_json(&vpod.0).unwrap());
    store.feed_ppod(Ppod::from_json(&ppod.0).unwrap());
    store.apply(VpodObject::deserialize(&vpod.0).unwrap());
    store.apply(PpodObject::deserialize(&ppod.0).unwrap());
    assert_eq!(drain(&store).await, 0);
}
