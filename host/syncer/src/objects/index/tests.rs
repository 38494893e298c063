use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use kubeocean_api::keys;
use serde_json::json;

use super::*;
use crate::config::CLUSTER_DOMAIN;
use crate::objects::{PodDirectory, Woken};
use crate::pods::vpod_identity::VpodIdentity;
use kubeocean_runtime::clock::SystemClock;

fn store() -> (ObjectStore, Arc<Woken>) {
    let store = ObjectStore::new(Arc::new(SystemClock), CLUSTER_DOMAIN);
    let woken = Arc::new(Woken::default());
    store.connect(woken.clone());
    (store, woken)
}

fn settings() -> ObjectRef {
    ObjectRef::new(ObjectKind::ConfigMap, "team-a", "settings")
}

fn at(uid: &str, version: u32) -> Revision {
    Revision { uid: uid.to_owned(), resource_version: version.to_string(), deleting: false }
}

/// The objects that wait in the queue, taken out.
async fn queued(store: &ObjectStore) -> usize {
    let mut count = 0;
    while !store.queue.is_empty() {
        let object = store.queue.next().await;
        store.queue.done(&object, kubeocean_runtime::queue::Outcome::Done);
        count += 1;
    }
    count
}

#[tokio::test]
async fn our_own_writes_come_back_through_the_watches_without_work() {
    let (store, _) = store();
    store.converged(&settings(), "copy", at("v", 10), at("p", 20));
    assert!(store.is_ready(&settings()));
    for (side, seen) in
        [(Side::Original, at("v", 9)), (Side::Original, at("v", 10)), (Side::Copy, at("p", 20))]
    {
        store.seen(&settings(), side, seen);
    }
    assert!(store.is_ready(&settings()));
    assert_eq!(queued(&store).await, 0);
}

#[tokio::test]
async fn a_newer_version_on_either_side_is_work() {
    for (side, newer) in [(Side::Original, at("v", 11)), (Side::Copy, at("p", 21))] {
        let (store, _) = store();
        store.converged(&settings(), "copy", at("v", 10), at("p", 20));
        store.seen(&settings(), side, newer);
        assert!(!store.is_ready(&settings()));
        assert_eq!(queued(&store).await, 1);
    }
}

#[tokio::test]
async fn the_end_of_a_predecessor_is_not_the_end_of_the_copy() {
    let (store, _) = store();
    store.converged(&settings(), "copy", at("v", 10), at("p2", 20));
    store.vanished(&settings(), Side::Copy, Some("p1"));
    assert!(store.is_ready(&settings()));
    store.vanished(&settings(), Side::Copy, Some("p2"));
    assert!(!store.is_ready(&settings()));
    assert_eq!(queued(&store).await, 1);
}

/// A claim whose copy was refused stays; at the next try it must not be the proof that somebody's copy is ours.
#[test]
fn marks_are_new_until_a_copy_is_in_order() {
    let (store, _) = store();
    let scope = Scope {
        binding: "dc-east".into(),
        cluster_id: "east".into(),
        computing_uid: "computing".into(),
        mount_namespace: "mount".into(),
    };
    let original = |uid: &str, held: bool| {
        let finalizers: Vec<String> = held.then(|| keys::object_finalizer("east")).into_iter().collect();
        let metadata = json!({"uid": uid, "resourceVersion": "1", "finalizers": finalizers});
        Original::of(ObjectKind::ConfigMap, &json!({"metadata": metadata}))
    };
    let are_new = |uid, held| store.marks_are_new(&settings(), &scope, &original(uid, held));
    assert!(!are_new("v1", true), "nobody saw it without");
    assert!(!are_new("v1", false));
    assert!(are_new("v1", true));
    store.seen(&settings(), Side::Original, at("v1", 2));
    store.vanished(&settings(), Side::Copy, None);
    assert!(are_new("v1", true), "another try");
    assert!(!are_new("v2", true), "another original");
    store.converged(&settings(), "copy", at("v1", 2), at("p", 3));
    assert!(!are_new("v1", true));
}

#[tokio::test]
async fn what_is_found_missing_once_more_is_no_news() {
    let (store, _) = store();
    let lock = store.lock_of(&settings());
    store.vanished(&settings(), Side::Original, None);
    assert_eq!(queued(&store).await, 0);
    store.seen(&settings(), Side::Original, at("v", 1));
    assert_eq!(queued(&store).await, 1);
    for news in [1, 0] {
        store.vanished(&settings(), Side::Original, None);
        assert_eq!(queued(&store).await, news);
    }
    drop(lock);
}

#[tokio::test]
async fn a_relist_reports_what_vanished_meanwhile() {
    let (store, _) = store();
    let other = ObjectRef::new(ObjectKind::ConfigMap, "team-a", "other");
    store.reset(
        ObjectKind::ConfigMap,
        Side::Original,
        vec![(settings(), at("v", 1)), (other.clone(), at("o", 2))],
    );
    assert_eq!(queued(&store).await, 2);
    store.reset(ObjectKind::Secret, Side::Original, vec![]);
    assert_eq!(queued(&store).await, 0, "another kind");
    store.reset(ObjectKind::ConfigMap, Side::Original, vec![(other.clone(), at("o", 2))]);
    assert!(!store.is_known(&settings()) && store.is_known(&other));
}

#[tokio::test]
async fn pods_are_woken_by_what_they_wait_for_and_only_once() {
    let (store, woken) = store();
    let pod = ObjectKey::new("team-a", "web");
    store.is_missing(&settings(), Some(&pod));
    store.is_missing(&settings(), None);
    assert_eq!(store.missing_places().len(), 1);
    store.appeared(&ObjectRef::new(ObjectKind::Secret, "team-a", "settings"));
    assert_eq!(woken.0.lock().len(), 0, "another kind of that name");
    store.appeared(&settings());
    store.appeared(&settings());
    assert_eq!(*woken.0.lock(), std::slice::from_ref(&pod));
    store.converged(&settings(), "copy", at("v", 1), at("p", 1));
    assert_eq!(store.missing_places().len(), 0, "its stream ends");

    store.wait_for_replacement(&settings(), &pod);
    store.vanished(&settings(), Side::Copy, Some("p"));
    assert_eq!(woken.0.lock().len(), 2);
}

/// The copy was made for another pod, or by the object's own turn in the queue, from what was read just then.
#[test]
fn pods_are_woken_when_the_copy_is_there_before_the_event_they_wait_for() {
    let (store, woken) = store();
    let [early, late] = ["early", "late"].map(|name| ObjectKey::new("team-a", name));
    store.is_missing(&settings(), Some(&early));
    store.converged(&settings(), "copy", at("v", 1), at("p1", 2));
    assert_eq!(*woken.0.lock(), std::slice::from_ref(&early));
    store.appeared(&settings());
    store.converged(&settings(), "copy", at("v", 1), at("p1", 2));
    assert_eq!(woken.0.lock().len(), 1, "once");

    store.wait_for_replacement(&settings(), &late);
    store.converged(&settings(), "copy", at("v", 3), at("p2", 4));
    assert_eq!(*woken.0.lock(), [early, late]);
    store.vanished(&settings(), Side::Copy, Some("p1"));
    assert_eq!(woken.0.lock().len(), 2, "once");
}

#[test]
fn a_pod_that_begins_to_wait_while_an_object_is_given_up_looks_again() {
    let (store, woken) = store();
    let pod = ObjectKey::new("team-a", "web");
    store.is_missing(&settings(), Some(&pod));
    store.not_missing(&settings());
    assert_eq!(*woken.0.lock(), [pod]);
    assert!(store.missing_places().is_empty());
}

#[tokio::test]
async fn a_pod_that_is_gone_waits_for_nothing() {
    let (store, woken) = store();
    let other = ObjectRef::new(ObjectKind::Secret, "team-a", "other");
    let [pod, stays] = ["web", "stays"].map(|name| ObjectKey::new("team-a", name));
    store.is_missing(&settings(), Some(&pod));
    store.wait_for_replacement(&other, &pod);
    store.wait_for_replacement(&other, &stays);
    store.pod_gone(&pod);
    assert_eq!(queued(&store).await, 2, "somebody else may need them, or nobody");
    store.appeared(&settings());
    store.vanished(&other, Side::Copy, None);
    assert_eq!(*woken.0.lock(), [stays]);
    let state = store.state.lock();
    assert!(state.waiting_for_missing.is_empty() && state.waiting_for_replacement.is_empty());
}

#[test]
fn nothing_is_unused_before_the_pods_are_connected() {
    let store = ObjectStore::new(Arc::new(SystemClock), CLUSTER_DOMAIN);
    assert!(store.pods.uses(&settings()));
    assert!(store.pods.runs(&ObjectKey::new("team-a", "web"), "uid"));
}

/// Pods use these and nothing else.
struct Users(Vec<ObjectRef>);

impl PodDirectory for Users {
    fn uses(&self, object: &ObjectRef) -> bool {
        self.0.contains(object)
    }
    fn users(&self, object: &ObjectRef, limit: usize) -> Vec<VpodIdentity> {
        let user = VpodIdentity { key: ObjectKey::new("team-a", "web"), uid: "u".to_owned() };
        std::iter::repeat_n(user, usize::from(self.uses(object)).min(limit)).collect()
    }
    fn runs(&self, _: &ObjectKey, _: &str) -> bool {
        true
    }
    fn has_copy(&self, _: &VpodIdentity) -> bool {
        true
    }
    fn wake(&self, _: Vec<ObjectKey>) {}
}

#[tokio::test]
async fn what_a_used_claim_needs_is_used_and_what_it_may_need_is_not_let_go() {
    let claim = ObjectRef::new(ObjectKind::PersistentVolumeClaim, "team-a", "data");
    let volume = ObjectRef::volume("pv");
    let keys = ObjectRef::new(ObjectKind::Secret, "vault", "keys");
    let other = ObjectRef::new(ObjectKind::ConfigMap, "team-a", "settings");
    let store = ObjectStore::new(Arc::new(SystemClock), CLUSTER_DOMAIN);
    store.connect(Arc::new(Users(vec![claim.clone()])));
    let usage = || [&claim, &volume, &keys, &other].map(|object| store.usage(object));

    // A Syncer has just started: it saw what carries its label, and read nothing.
    for (object, version) in [(&claim, 1), (&volume, 2), (&keys, 3)] {
        store.seen(object, Side::Original, at("v", version));
    }
    assert_eq!(usage(), [Usage::Used, Usage::Unknown, Usage::Unknown, Usage::Unused]);
    store.needs(&claim, std::slice::from_ref(&volume));
    assert_eq!(usage(), [Usage::Used, Usage::Used, Usage::Unknown, Usage::Unused]);
    store.needs(&volume, std::slice::from_ref(&keys));
    assert_eq!(usage(), [Usage::Used, Usage::Used, Usage::Used, Usage::Unused]);
    assert_eq!(store.users(&keys, 20).len(), 1, "the claim's pod is told of it");
    assert!(store.is_needed_by_others(&keys) && !store.is_needed_by_others(&claim));

    // The claim is bound to another volume now, and that needs no Secret.
    queued(&store).await;
    store.needs(&claim, &[ObjectRef::volume("other")]);
    assert_eq!(usage(), [Usage::Used, Usage::Unused, Usage::Unused, Usage::Unused]);
    assert_eq!(queued(&store).await, 1, "the volume's time begins");
}

/// Pods use every claim, or nothing.
#[derive(Default)]
struct Counting {
    use_claims: AtomicBool,
    asked: AtomicUsize,
}

impl PodDirectory for Counting {
    fn uses(&self, object: &ObjectRef) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed);
        object.kind == ObjectKind::PersistentVolumeClaim && self.use_claims.load(Ordering::Relaxed)
    }
    fn users(&self, _: &ObjectRef, _: usize) -> Vec<VpodIdentity> {
        Vec::new()
    }
    fn runs(&self, _: &ObjectKey, _: &str) -> bool {
        true
    }
    fn has_copy(&self, _: &VpodIdentity) -> bool {
        true
    }
    fn wake(&self, _: Vec<ObjectKey>) {}
}

/// A Syncer has just started with thousands of volumes; each look is made on a thread that others need.
#[test]
fn who_may_need_an_object_is_asked_once_each_and_no_more_than_needed() {
    const VOLUMES: usize = 300;
    let (pods, keys) = (Arc::new(Counting::default()), ObjectRef::new(ObjectKind::Secret, "vault", "keys"));
    let store = ObjectStore::new(Arc::new(SystemClock), CLUSTER_DOMAIN);
    store.connect(pods.clone());
    let claim = |number: usize| {
        ObjectRef::new(ObjectKind::PersistentVolumeClaim, "team-a", &format!("data-{number}"))
    };
    let volume = |number: usize| ObjectRef::volume(&format!("pv-{number}"));
    for number in 0..VOLUMES {
        store.seen(&claim(number), Side::Original, at("c", 1));
        store.seen(&volume(number), Side::Original, at("v", 1));
    }
    let look = || (store.usage(&keys), pods.asked.swap(0, Ordering::Relaxed));

    let (usage, asked) = look();
    assert_eq!(usage, Usage::Unused);
    assert!(asked <= 2 * VOLUMES + 2, "asked {asked} times");
    pods.use_claims.store(true, Ordering::Relaxed);
    let (usage, asked) = look();
    assert_eq!(usage, Usage::Unknown);
    assert!(asked <= VOLUMES + 3, "asked {asked} times, the first claim is used");
    store.needs(&volume(0), std::slice::from_ref(&keys));
    store.needs(&claim(0), &[volume(0)]);
    let (usage, asked) = look();
    assert_eq!(usage, Usage::Used);
    assert!(asked <= 4, "asked {asked} times, though it is known who needs it");
}

#[tokio::test]
async fn a_namespace_full_of_objects_delays_one_of_another_by_one_turn() {
    let (store, _) = store();
    let object = |namespace: &str, number: u32| {
        ObjectRef::new(ObjectKind::ConfigMap, namespace, &format!("settings-{number}"))
    };
    for object in (0..100).map(|number| object("team-a", number)).chain([object("team-b", 0)]) {
        store.seen(&object, Side::Original, at("v", 1));
    }
    assert_eq!(store.queue.next().await, object("team-a", 0));
    assert_eq!(store.queue.next().await, object("team-b", 0));
}

/// They are of many tenants, although none of them says so.
#[test]
fn volumes_do_not_wait_for_each_other() {
    let volume = |name: &str| flow(&ObjectRef::new(ObjectKind::PersistentVolume, "", name));
    assert_ne!(volume("pv-1"), volume("pv-2"));
    let settings = |name: &str| flow(&ObjectRef::new(ObjectKind::ConfigMap, "team-a", name));
    assert_eq!(settings("one"), settings("two"));
}
