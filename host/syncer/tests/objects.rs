//! Copies, tokens and the transformation against real API servers. Each test has namespaces and a binding of its own in
//! the two control planes that this binary shares.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
#![allow(clippy::similar_names, reason = "vpod and ppod are the words for the two sides")]

#[path = "objects/ownership.rs"]
mod ownership;
#[path = "objects/sweep.rs"]
mod sweep;

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use kubeocean_api::{
    keys::{annotation, label},
    name::{ObjectKey, phys_name, token_secret_name},
};
use kubeocean_harness::{AuditEvent, Fleet, shared, wait_until};
use kubeocean_runtime::{
    clock::{Clock, SystemClock},
    events::{EventRecorder, Regarding},
    request::{
        DeleteOptions, Right, any_listed, create_json, delete_json, get_json, is_permitted, list_metadata,
        merge_patch, paths,
    },
};
use kubeocean_syncer::{
    config::CLUSTER_DOMAIN,
    objects::{
        Clusters, EnsureError, IdleTimes, ObjectHealth, ObjectKind, ObjectRef, ObjectStore, ObjectSync,
        PodDirectory, Scope, run_objects,
    },
    pods::{
        features::{Feature, Features},
        references::{References, references},
        service_environment::{ServiceEnvironment, dns_need},
        tokens::TokenOwner,
        transform::{Scheduling, TransformContext, to_worker_pod},
    },
};
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

const DEADLINE: Duration = Duration::from_secs(20);

/// What the store of pods would say.
#[derive(Default)]
struct Directory {
    used: Mutex<BTreeSet<ObjectRef>>,
    woken: Mutex<Vec<ObjectKey>>,
    /// No pod runs here.
    stopped: AtomicBool,
    /// What runs is on vnodes of another binding.
    elsewhere: AtomicBool,
    /// None has a copy.
    uncopied: AtomicBool,
}

impl Directory {
    /// From now on no pod runs here, and none has a copy.
    fn desert(&self) {
        self.stopped.store(true, Ordering::Relaxed);
        self.uncopied.store(true, Ordering::Relaxed);
    }
}

impl PodDirectory for Directory {
    fn uses(&self, object: &ObjectRef) -> bool {
        self.used.lock().unwrap().contains(object)
    }
    fn users(&self, object: &ObjectRef, _: usize) -> Vec<TokenOwner> {
        let user = || TokenOwner {
            key: ObjectKey::new(Arc::clone(&object.key.namespace), "web"),
            uid: "web-uid".to_owned(),
        };
        self.uses(object).then(user).into_iter().collect()
    }
    fn runs(&self, _: &ObjectKey, _: &str) -> bool {
        !self.stopped.load(Ordering::Relaxed)
    }
    fn serves(&self, pod: &ObjectKey, uid: &str) -> bool {
        self.runs(pod, uid) && !self.elsewhere.load(Ordering::Relaxed)
    }
    fn has_copy(&self, _: &TokenOwner) -> bool {
        !self.uncopied.load(Ordering::Relaxed)
    }
    fn wake(&self, pods: Vec<ObjectKey>) {
        self.woken.lock().unwrap().extend(pods);
    }
}

/// Is ahead of the API servers.
#[derive(Debug)]
struct Ahead(Mutex<SignedDuration>);

impl Ahead {
    fn by(ahead: SignedDuration) -> Arc<Self> {
        Arc::new(Self(Mutex::new(ahead)))
    }

    /// For this process so much time passes, its timers included.
    async fn pass(&self, time: Duration) {
        *self.0.lock().unwrap() += SignedDuration::try_from(time).unwrap();
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }
}

impl Clock for Ahead {
    fn now(&self) -> Timestamp {
        SystemClock.now() + *self.0.lock().unwrap()
    }
}

/// One binding whose objects are kept by the real tasks.
struct World {
    fleet: &'static Fleet,
    clusters: Arc<Clusters>,
    store: Arc<ObjectStore>,
    directory: Arc<Directory>,
    events: EventRecorder,
    namespace: String,
    _stop: DropGuard,
}

impl World {
    /// `idle` is how long unused copies stay.
    async fn new(name: &str, idle: Option<Duration>) -> Self {
        Self::with_clock(name, idle, Arc::new(SystemClock)).await
    }

    async fn with_clock(name: &str, idle: Option<Duration>, clock: Arc<dyn Clock>) -> Self {
        let fleet = shared().await;
        let namespace = format!("team-{name}");
        let scope = Scope {
            binding: format!("binding-{name}"),
            cluster_id: name.to_owned(),
            computing_uid: "computing".to_owned(),
            mount_namespace: format!("mount-{name}"),
        };
        fleet.computing.create_namespace(&namespace).await.unwrap();
        fleet.worker().create_namespace(&scope.mount_namespace).await.unwrap();
        let computing = fleet.computing.client().await.unwrap();
        let worker = fleet.worker().client().await.unwrap();
        let clusters = Arc::new(Clusters { computing, worker, scope });
        let store = Arc::new(ObjectStore::new(clock, CLUSTER_DOMAIN));
        let directory = Arc::new(Directory::default());
        store.connect(Arc::clone(&directory) as Arc<dyn PodDirectory>);
        let cancel = CancellationToken::new();
        let health = ObjectHealth::default();
        let (events, sending) = EventRecorder::new(
            clusters.computing.clone(),
            "kubeocean-syncer-test".to_owned(),
            Arc::new(SystemClock),
            cancel.clone(),
        );
        tokio::spawn(sending);
        let sync = ObjectSync {
            clusters: Arc::clone(&clusters),
            store: Arc::clone(&store),
            events: events.clone(),
            health: Arc::default(),
            idle: IdleTimes { objects: idle, volumes: idle },
        };
        let gate = std::future::ready(());
        tokio::spawn(run_objects(Arc::new(sync), health.clone(), gate, 10, cancel.clone()));
        health.synced().await;
        Self { fleet, clusters, store, directory, events, namespace, _stop: cancel.drop_guard() }
    }

    async fn create(&self, kind: ObjectKind, name: &str, fields: Value) {
        let mut object = json!({"apiVersion": "v1", "kind": kind.as_str(), "metadata": {"name": name}});
        object.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        create_json(&self.clusters.computing, &paths::core_all(kind.plural(), &self.namespace), &object)
            .await
            .unwrap();
    }

    fn object(&self, kind: ObjectKind, name: &str) -> ObjectRef {
        ObjectRef::new(kind, &self.namespace, name)
    }

    fn original_path(&self, kind: ObjectKind, name: &str) -> String {
        paths::core(kind.plural(), &self.namespace, name)
    }

    fn copy_path(&self, kind: ObjectKind, name: &str) -> String {
        paths::core(kind.plural(), &self.clusters.scope.mount_namespace, &phys_name(name, &self.namespace))
    }

    async fn original(&self, kind: ObjectKind, name: &str) -> Option<Value> {
        get_json(&self.clusters.computing, &self.original_path(kind, name)).await.unwrap()
    }

    async fn copy(&self, kind: ObjectKind, name: &str) -> Option<Value> {
        get_json(&self.clusters.worker, &self.copy_path(kind, name)).await.unwrap()
    }

    /// A pod that refers to ConfigMaps, as its store would know it.
    fn refer(&self, spec: &Value) -> References {
        let references = references("web", spec);
        let objects = references.objects().map(|(kind, name, _)| self.object(kind, name));
        self.directory.used.lock().unwrap().extend(objects);
        references
    }

    async fn ensure(&self, references: &References, pod: &str) -> Result<(), EnsureError> {
        self.store.ensure(&self.clusters, references, &ObjectKey::new(self.namespace.as_str(), pod)).await
    }

    async fn wait_copy(&self, what: &str, name: &str, good: impl Fn(&Value) -> bool) -> Value {
        wait_until(what, DEADLINE, async || match self.copy(ObjectKind::ConfigMap, name).await {
            Some(copy) if good(&copy) => Ok(copy),
            other => Err(other),
        })
        .await
    }
}

fn config_map_volume(name: &str) -> Value {
    json!({"volumes": [{"name": "v", "configMap": {"name": name}}]})
}

#[tokio::test]
async fn a_hundred_pods_that_share_an_object_cause_one_write_in_each_cluster() {
    let world = World::new("shared", None).await;
    world.create(ObjectKind::ConfigMap, "settings", json!({"data": {"a": "1"}})).await;
    let references = world.refer(&config_map_volume("settings"));
    let (computing, worker) = (&world.fleet.computing, world.fleet.worker());
    let marks = (computing.audit_mark().unwrap(), worker.audit_mark().unwrap());

    let pods: Vec<String> = (0..100).map(|number| format!("web-{number}")).collect();
    for answer in join_all(pods.iter().map(|pod| world.ensure(&references, pod))).await {
        answer.unwrap();
    }
    let copy = world.copy(ObjectKind::ConfigMap, "settings").await.unwrap();
    assert_eq!(copy["data"], json!({"a": "1"}));
    assert_eq!(copy["metadata"]["annotations"]["kubeocean.io/virtual-name"], "settings");
    let original = world.original(ObjectKind::ConfigMap, "settings").await.unwrap();
    assert_eq!(original["metadata"]["finalizers"], json!(["kubeocean.io/finalizer-shared"]));

    // A change that has arrived proves that everything before it has been worked on.
    let path = world.original_path(ObjectKind::ConfigMap, "settings");
    merge_patch(
        &world.clusters.computing,
        &path,
        &json!({"data": {"b": "2"}, "metadata": {"labels": {"l": "x"}}}),
    )
    .await
    .unwrap();
    world.wait_copy("the change", "settings", |copy| copy["data"] == json!({"a": "1", "b": "2"})).await;
    let writes = async |cluster: &kubeocean_harness::Cluster, mark, namespace: &str| {
        let mine = |event: &AuditEvent| {
            event.object_ref.namespace == namespace
                && event.is_write()
                && event.object_ref.name != "kube-root-ca.crt"
        };
        let events = cluster.audit_events_until(mark, 2, mine).await.unwrap();
        events.into_iter().map(|event| event.verb).collect::<Vec<_>>()
    };
    assert_eq!(
        writes(computing, marks.0, &world.namespace).await,
        ["patch", "patch"],
        "our claim and the test's change"
    );
    assert_eq!(writes(worker, marks.1, &world.clusters.scope.mount_namespace).await, ["create", "patch"]);
}

#[tokio::test]
async fn a_copy_comes_back_when_it_is_deleted_or_edited_and_goes_with_its_original() {
    let world = World::new("heals", None).await;
    world.create(ObjectKind::ConfigMap, "settings", json!({"data": {"a": "1"}})).await;
    let references = world.refer(&config_map_volume("settings"));
    world.ensure(&references, "web").await.unwrap();
    let path = world.copy_path(ObjectKind::ConfigMap, "settings");

    merge_patch(&world.clusters.worker, &path, &json!({"data": {"a": "edited", "x": "y"}})).await.unwrap();
    let copy = world.wait_copy("the edit undone", "settings", |copy| copy["data"] == json!({"a": "1"})).await;
    let uid = copy["metadata"]["uid"].clone();
    delete_json(&world.clusters.worker, &path, &DeleteOptions::default()).await.unwrap();
    world.wait_copy("the copy to be back", "settings", |copy| copy["metadata"]["uid"] != uid).await;

    let original = world.original_path(ObjectKind::ConfigMap, "settings");
    delete_json(&world.clusters.computing, &original, &DeleteOptions::default()).await.unwrap();
    wait_until("both to be gone", DEADLINE, async || {
        let left = (
            world.original(ObjectKind::ConfigMap, "settings").await,
            world.copy(ObjectKind::ConfigMap, "settings").await,
        );
        if left == (None, None) { Ok(()) } else { Err(left) }
    })
    .await;

    // Re-created while a pod still refers to it: copied again, without anybody asking.
    world.create(ObjectKind::ConfigMap, "settings", json!({"data": {"a": "2"}})).await;
    world.wait_copy("the new copy", "settings", |copy| copy["data"] == json!({"a": "2"})).await;
}

#[tokio::test]
async fn a_list_is_searched_to_its_last_page() {
    let world = World::new("pages", None).await;
    for name in ["a", "b", "c"] {
        world.create(ObjectKind::ConfigMap, name, json!({"data": {"n": name}})).await;
    }
    let path = paths::core_all("configmaps", &world.namespace);
    let has = async |name: &str| {
        any_listed(&world.clusters.computing, &path, 1, |map| map["data"]["n"] == name).await.unwrap()
    };
    assert!(has("a").await && has("c").await);
    assert!(!has("d").await);
}

#[tokio::test]
async fn a_pod_that_waits_for_an_object_is_woken_when_it_appears() {
    let world = World::new("missing", None).await;
    let references = world.refer(&json!({"volumes": [
        {"name": "v", "secret": {"secretName": "late"}},
        {"name": "w", "configMap": {"name": "optional", "optional": true}},
    ]}));
    let error = world.ensure(&references, "web").await.unwrap_err();
    assert!(
        matches!(&error, EnsureError::Missing { kind: ObjectKind::Secret, name } if name == "late"),
        "{error}"
    );
    world.create(ObjectKind::Secret, "late", json!({"stringData": {"k": "v"}})).await;
    wait_until("the pod to be woken", DEADLINE, async || {
        world.directory.woken.lock().unwrap().contains(&ObjectKey::new(world.namespace.as_str(), "web"))
    })
    .await;
    world.ensure(&references, "web").await.unwrap();
    assert!(world.copy(ObjectKind::Secret, "late").await.is_some());

    world.create(ObjectKind::ConfigMap, "optional", json!({"data": {"k": "v"}})).await;
    world.wait_copy("the optional object to be copied", "optional", |_| true).await;
}

/// Also while somebody else's object has the name of its copy.
#[tokio::test]
async fn an_object_that_does_not_exist_is_not_asked_for_again_and_again() {
    let world = World::new("absent", None).await;
    let mark = world.fleet.computing.audit_mark().unwrap();
    let foreign = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": phys_name("taken", &world.namespace)},
    });
    let mount = &world.clusters.scope.mount_namespace;
    create_json(&world.clusters.worker, &paths::core_all("configmaps", mount), &foreign).await.unwrap();
    for name in ["absent", "taken"] {
        let optional = json!({"volumes": [{"name": "v", "configMap": {"name": name, "optional": true}}]});
        let answer = world.ensure(&world.refer(&optional), "web").await;
        assert_eq!(answer.is_ok(), name == "absent", "{answer:?}");
    }
    // Long enough for a second try after a pause.
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.create(ObjectKind::ConfigMap, "absent", json!({"data": {"a": "1"}})).await;
    world.wait_copy("what came late", "absent", |copy| copy["data"] == json!({"a": "1"})).await;
    let events = world.fleet.computing.audit_events_since(mark).unwrap();
    for name in ["absent", "taken"] {
        let path = world.original_path(ObjectKind::ConfigMap, name);
        let reads = events.iter().filter(|event| event.verb == "get" && event.uri == path).count();
        assert!((1..=10).contains(&reads), "{name} was read {reads} times");
    }
}

#[tokio::test]
async fn an_unused_copy_goes_and_a_foreign_object_stays() {
    let world = World::new("idle", Some(Duration::from_millis(10))).await;
    world.create(ObjectKind::ConfigMap, "settings", json!({"data": {"a": "1"}})).await;
    let references = world.refer(&config_map_volume("settings"));
    world.ensure(&references, "web").await.unwrap();
    world.directory.used.lock().unwrap().clear();
    world.store.references_changed(&world.namespace, &references);
    wait_until("the copy to be gone and the original to be free", DEADLINE, async || {
        let original = world.original(ObjectKind::ConfigMap, "settings").await.unwrap();
        let free =
            original["metadata"].get("finalizers").is_none() && original["metadata"].get("labels").is_none();
        free && world.copy(ObjectKind::ConfigMap, "settings").await.is_none()
    })
    .await;

    let foreign = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"theirs": "1"},
        "metadata": {"name": phys_name("settings", &world.namespace)},
    });
    let mount = &world.clusters.scope.mount_namespace;
    create_json(&world.clusters.worker, &paths::core_all("configmaps", mount), &foreign).await.unwrap();
    let references = world.refer(&config_map_volume("settings"));
    let error = world.ensure(&references, "web").await.unwrap_err();
    assert!(matches!(error, EnsureError::Foreign { .. }), "{error}");
    assert_eq!(world.copy(ObjectKind::ConfigMap, "settings").await.unwrap()["data"], json!({"theirs": "1"}));

    // Nor is it given to a pod that can do without an object that does not exist. When it goes, the pod can be made.
    let original = world.original_path(ObjectKind::ConfigMap, "settings");
    delete_json(&world.clusters.computing, &original, &DeleteOptions::default()).await.unwrap();
    let optional = world
        .refer(&json!({"volumes": [{"name": "v", "configMap": {"name": "settings", "optional": true}}]}));
    let error = world.ensure(&optional, "hopes").await.unwrap_err();
    assert!(matches!(error, EnsureError::Foreign { .. }), "{error}");
    let path = world.copy_path(ObjectKind::ConfigMap, "settings");
    delete_json(&world.clusters.worker, &path, &DeleteOptions::default()).await.unwrap();
    world.ensure(&optional, "hopes").await.unwrap();
}

/// TD section 16: the Syncer that claimed it ended before it made the copy, and the pod that wanted it is gone.
#[tokio::test]
async fn an_object_that_was_claimed_and_never_copied_is_let_go() {
    let world = World::new("claimed", None).await;
    world.create(ObjectKind::ConfigMap, "used", json!({"data": {"a": "1"}})).await;
    world.ensure(&world.refer(&config_map_volume("used")), "web").await.unwrap();
    let mut left = world.original(ObjectKind::ConfigMap, "used").await.unwrap()["metadata"].clone();
    left.as_object_mut()
        .unwrap()
        .retain(|member, _| ["labels", "annotations", "finalizers"].contains(&member.as_str()));
    assert!(left["finalizers"].is_array(), "{left}");
    let copy = phys_name("left", &world.namespace);
    left["name"] = "left".into();
    let left = left.to_string().replace(&phys_name("used", &world.namespace), &copy);
    let left: Value = serde_json::from_str(&left).unwrap();
    world.create(ObjectKind::ConfigMap, "left", json!({"metadata": left, "data": {"a": "1"}})).await;
    wait_until("the object to be free", DEADLINE, async || {
        let metadata = world.original(ObjectKind::ConfigMap, "left").await.unwrap()["metadata"].clone();
        let free =
            ["labels", "annotations", "finalizers"].iter().all(|member| metadata.get(*member).is_none());
        if free { Ok(()) } else { Err(metadata) }
    })
    .await;
    assert_eq!(world.copy(ObjectKind::ConfigMap, "left").await, None);
}

#[tokio::test]
async fn a_copy_that_somebody_takes_over_is_told_and_tried_again() {
    let world = World::new("taken", None).await;
    world.create(ObjectKind::ConfigMap, "settings", json!({"data": {"a": "1"}})).await;
    let references = world.refer(&config_map_volume("settings"));
    world.ensure(&references, "web").await.unwrap();
    let path = world.copy_path(ObjectKind::ConfigMap, "settings");
    let theirs = json!({"metadata": {
        "labels": {"kubeocean.io/managed-by": null},
        "annotations": {"kubeocean.io/computing-cluster-uid": null},
    }});
    merge_patch(&world.clusters.worker, &path, &theirs).await.unwrap();

    let message = wait_until("the event on the pod", DEADLINE, async || {
        let path = paths::events(&world.namespace);
        let events = get_json(&world.clusters.computing, &path).await.unwrap().unwrap();
        let told = events["items"]
            .as_array()
            .unwrap()
            .iter()
            .find(|event| event["reason"] == "NameConflict" && event["involvedObject"]["name"] == "web");
        told.map(|event| event["message"].as_str().unwrap().to_owned()).ok_or(events)
    })
    .await;
    assert!(message.contains("settings") && !message.contains("mount-taken"), "{message}");

    // It is nobody's now, so no watch tells when it goes.
    delete_json(&world.clusters.worker, &path, &DeleteOptions::default()).await.unwrap();
    world.wait_copy("the copy to be back", "settings", |copy| copy["data"] == json!({"a": "1"})).await;
}

#[tokio::test]
async fn a_feature_without_its_right_is_turned_off_and_told_once() {
    let world = World::new("features", None).await;
    let right = Right {
        verb: "patch",
        resource: "pods",
        subresource: "ephemeralcontainers",
        namespace: &world.clusters.scope.mount_namespace,
    };
    assert!(is_permitted(&world.clusters.worker, &right).await.unwrap(), "the tests may do everything");

    let features = Features::new(Regarding::binding("binding-features", "uid"), world.events.clone());
    assert!(features.turn_off(Feature::DebugContainers));
    assert!(!features.turn_off(Feature::DebugContainers), "no news");
    assert!(features.is_off(Feature::DebugContainers) && !features.is_off(Feature::DefaultPriorityClass));
    wait_until("one event on the binding", DEADLINE, async || {
        let path = paths::events("default");
        let events = get_json(&world.clusters.computing, &path).await.unwrap().unwrap();
        let about = |event: &&Value| event["involvedObject"]["name"] == "binding-features";
        let told: Vec<_> = events["items"].as_array().unwrap().iter().filter(about).cloned().collect();
        let good = told.len() == 1 && told[0]["reason"] == "FeatureDisabled";
        if good { Ok(()) } else { Err(told) }
    })
    .await;
}

#[tokio::test]
async fn a_deleted_binding_leaves_nothing_behind() {
    let world = World::new("leaves", None).await;
    for name in ["a", "b"] {
        world.create(ObjectKind::ConfigMap, name, json!({"data": {"a": "1"}})).await;
        world.create(ObjectKind::Secret, name, json!({"stringData": {"a": "1"}})).await;
        let references = world.refer(&json!({"volumes": [
            {"name": "v", "configMap": {"name": name}}, {"name": "w", "secret": {"secretName": name}},
        ]}));
        world.ensure(&references, "web").await.unwrap();
    }
    let all = paths::core_all("secrets", &world.clusters.scope.mount_namespace);
    for page in [1, 2, 500] {
        let copies = list_metadata(&world.clusters.worker, &all, page).await.unwrap();
        assert_eq!(copies.len(), 2, "in pages of {page}: {copies:?}");
    }
    let left = world.store.release_all(&world.clusters).await.unwrap();
    assert_eq!((left.total, left.examples), (0, vec![]));
    for name in ["a", "b"] {
        for kind in [ObjectKind::ConfigMap, ObjectKind::Secret] {
            assert_eq!(world.copy(kind, name).await, None);
            let original = world.original(kind, name).await.unwrap();
            assert!(!original["metadata"].to_string().contains("kubeocean.io/f"), "{original}");
        }
    }
}

/// A pod with one token of ten minutes, as stored; its account is there.
async fn pod_with_token(world: &World) -> Value {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "runner"}});
    let accounts = paths::core_all("serviceaccounts", &world.namespace);
    create_json(&world.clusters.computing, &accounts, &account).await.unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web"},
        "spec": {
            "serviceAccountName": "runner", "nodeName": "vnode-x", "automountServiceAccountToken": false,
            "containers": [{"name": "app", "image": "example.test/app"}],
            "volumes": [{"name": "token", "projected": {"sources": [
                {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
            ]}}],
        },
    });
    create_json(&world.clusters.computing, &paths::pods(&world.namespace), &pod).await.unwrap()
}

fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap()
}

/// Acceptance check 9. Of the ten minutes of each token eight pass, by a clock that the API servers' is soon far behind.
#[tokio::test]
async fn a_token_is_replaced_before_it_ends_as_long_as_its_pod_runs() {
    let clock = Ahead::by(SignedDuration::ZERO);
    let world = World::with_clock("renews", None, Arc::clone(&clock) as Arc<dyn Clock>).await;
    let vpod = pod_with_token(&world).await;
    let mark = world.fleet.computing.audit_mark().unwrap();
    let mark_of_worker = world.fleet.worker().audit_mark().unwrap();
    world.store.tokens.ensure(&world.clusters, &vpod).await.unwrap();
    let name = token_secret_name("web", "token", uid(&vpod), &world.namespace);
    let path = paths::core("secrets", &world.clusters.scope.mount_namespace, &name);
    let read = async || get_json(&world.clusters.worker, &path).await.unwrap().expect("a Secret");
    let renewal = |event: &AuditEvent| event.verb == "patch" && event.object_ref.name == name;
    let mut before = read().await;
    for times in 1..=2 {
        clock.pass(Duration::from_mins(8)).await;
        let after = wait_until(&format!("the token to be renewed, {times}"), DEADLINE, async || {
            let now = read().await;
            if now["data"]["token"] == before["data"]["token"] { Err("not yet") } else { Ok(now) }
        })
        .await;
        assert_eq!(uid(&after), uid(&before), "the same Secret");
        before = after;
        // No request is under way when time passes, or it would be given up.
        let renewals = world.fleet.worker().audit_events_until(mark_of_worker, times, renewal).await.unwrap();
        assert_eq!(renewals.len(), times, "one at its time");
    }
    // The pod has ended and its copy is still there, whose end takes the Secret along: nobody even asks for the pod.
    world.directory.stopped.store(true, Ordering::Relaxed);
    let stopped = Timestamp::now();
    clock.pass(Duration::from_mins(10)).await;
    // What is due is looked at before this process waits for an answer.
    assert_eq!(world.original(ObjectKind::ConfigMap, "absent").await, None);
    let absent = world.original_path(ObjectKind::ConfigMap, "absent");
    let last = |event: &AuditEvent| event.uri == absent;
    world.fleet.computing.audit_events_until(mark, 1, last).await.unwrap();

    let requests = world.fleet.computing.audit_events_since(mark).unwrap();
    let of_a_token = |event: &AuditEvent| {
        event.object_ref.subresource == "token" && event.object_ref.namespace == world.namespace
    };
    assert_eq!(requests.iter().filter(|event| of_a_token(event)).count(), 3, "one for each token");
    let pod = paths::pod(&world.namespace, "web");
    let late = requests.iter().filter(|event| {
        let asked: Timestamp = event.request_received_timestamp.parse().unwrap();
        asked > stopped && (of_a_token(event) || event.verb == "get" && event.uri == pod)
    });
    let late: Vec<_> = late.map(|event| (&event.verb, &event.uri)).collect();
    assert!(late.is_empty(), "what has ended needs no other token: {late:?}");
    assert_eq!(read().await["data"], before["data"], "its Secret goes with its copy");
}

/// The original marks its Secrets with their pod only: what nobody uses goes, what may be somebody's stays.
#[tokio::test]
async fn an_unstamped_token_goes_when_its_pod_is_nobodys() {
    let world = World::with_clock("unstamped", None, Ahead::by(SignedDuration::from_hours(2))).await;
    world.directory.desert();
    let elsewhere = pod_with_token(&world).await;
    let mount = &world.clusters.scope.mount_namespace;
    let write = async |name: &str, pod: &str, uid: &str| {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "stringData": {"token": "t"},
            "metadata": {
                "name": name,
                "labels": {label::MANAGED_BY: label::MANAGED_BY_VALUE, label::SERVICE_ACCOUNT_TOKEN: "true"},
                "annotations": {
                    annotation::VIRTUAL_POD_NAMESPACE: world.namespace, annotation::VIRTUAL_POD_NAME: pod,
                    annotation::VIRTUAL_POD_UID: uid,
                },
            },
        });
        create_json(&world.clusters.worker, &paths::core_all("secrets", mount), &secret).await.unwrap();
    };
    // On a vnode of another binding, which still has the original's Syncer.
    write("elsewhere", "web", uid(&elsewhere)).await;
    write("went", "web", "of-an-earlier-pod").await;
    write("never-was", "db", "unknown").await;
    let read = async |name: &str| {
        get_json(&world.clusters.worker, &paths::core("secrets", mount, name)).await.unwrap()
    };
    for name in ["went", "never-was"] {
        wait_until("what nobody uses to go", DEADLINE, async || read(name).await.is_none()).await;
    }
    assert!(read("elsewhere").await.is_some());
}

#[tokio::test]
async fn a_pod_with_tokens_is_accepted_by_the_worker_and_its_tokens_are_kept() {
    let world = World::new("tokens", None).await;
    let pods = paths::pods(&world.namespace);
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "runner"}});
    let accounts = paths::core_all("serviceaccounts", &world.namespace);
    create_json(&world.clusters.computing, &accounts, &account).await.unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web.v1"},
        "spec": {
            "serviceAccountName": "runner", "nodeName": "vnode-x",
            "containers": [{"name": "app", "image": "example.test/app"}],
            "readinessGates": [{"conditionType": "example.test/gate"}],
            "volumes": [{"name": "extra", "projected": {"sources": [
                {"serviceAccountToken": {"path": "a", "expirationSeconds": 600}},
                {"serviceAccountToken": {"path": "b", "audience": "vault", "expirationSeconds": 600}},
            ]}}],
        },
    });
    // The API server adds the account's own token volume, preemption policy, tolerations and so on.
    let vpod = create_json(&world.clusters.computing, &pods, &pod).await.unwrap();
    let references = world.refer(&vpod["spec"]);
    wait_until("the namespace's CA to exist", DEADLINE, async || world.ensure(&references, "web.v1").await)
        .await;
    world.store.tokens.ensure(&world.clusters, &vpod).await.unwrap();

    let services = ServiceEnvironment {
        api_address: "10.0.0.1".parse().unwrap(),
        api_port: 443,
        dns_address: Some("10.0.0.53".parse().unwrap()),
        cluster_domain: CLUSTER_DOMAIN.into(),
    };
    assert_eq!(dns_need(&vpod["spec"]), kubeocean_syncer::pods::service_environment::DnsNeed::Cluster);
    let scope = &world.clusters.scope;
    let ppod = to_worker_pod(
        &vpod,
        &TransformContext {
            binding: &scope.binding,
            computing_uid: &scope.computing_uid,
            mount_namespace: &scope.mount_namespace,
            worker_node: "worker-node-1",
            scheduling: Scheduling::ByAffinity,
            priority_class: "system-node-critical",
            workload_type: "pod",
            workload_name: "",
            expected_metadata: Some("e30="),
            services: &services,
        },
    )
    .unwrap();
    let stored = create_json(&world.clusters.worker, &paths::pods(&scope.mount_namespace), &ppod)
        .await
        .expect("it is valid");
    assert_eq!(stored["spec"]["hostname"], "web-v1");
    let volumes = stored["spec"]["volumes"].as_array().unwrap();
    assert_eq!(
        volumes.len(),
        vpod["spec"]["volumes"].as_array().unwrap().len(),
        "no token of the worker is added"
    );
    let secret_of = |volume: &Value| {
        volume.pointer("/projected/sources/0/secret/name").and_then(Value::as_str).map(str::to_owned)
    };
    let secrets: Vec<String> = volumes.iter().filter_map(secret_of).collect();
    assert_eq!(secrets.len(), 2, "{volumes:?}");
    let read = async |name: &str| {
        get_json(&world.clusters.worker, &paths::core("secrets", &scope.mount_namespace, name)).await.unwrap()
    };
    let keys = async |name: &str| {
        let secret = read(name).await?;
        Some(secret["data"].as_object()?.keys().cloned().collect::<Vec<_>>())
    };
    assert_eq!(keys(&secrets[0]).await.unwrap(), ["token", "token-1"]);
    assert_eq!(keys(&secrets[1]).await.unwrap(), ["token"]);

    let mark = world.fleet.computing.audit_mark().unwrap();
    world.store.tokens.ensure(&world.clusters, &vpod).await.unwrap();
    let first = read(&secrets[0]).await.unwrap()["metadata"]["uid"].clone();
    let path = paths::core("secrets", &scope.mount_namespace, &secrets[0]);
    delete_json(&world.clusters.worker, &path, &DeleteOptions::default()).await.unwrap();
    wait_until("the secret to be restored", DEADLINE, async || {
        read(&secrets[0]).await.filter(|secret| secret["metadata"]["uid"] != first)
    })
    .await;
    let requests = world.fleet.computing.audit_events_since(mark).unwrap();
    let tokens = requests.iter().filter(|event| {
        event.object_ref.subresource == "token" && event.object_ref.namespace == world.namespace
    });
    assert_eq!(tokens.count(), 2, "only the deleted one is requested again");

    let owner = TokenOwner::of(&vpod).unwrap();
    delete_json(
        &world.clusters.computing,
        &paths::pod(&world.namespace, "web.v1"),
        &DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() },
    )
    .await
    .unwrap();
    world.store.tokens.release(&world.clusters, &owner).await.unwrap();
    for secret in &secrets {
        wait_until("the token secret to be gone", DEADLINE, async || read(secret).await.is_none()).await;
    }
}
