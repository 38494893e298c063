//! SIGKILL in the middle of work (TD section 16): the end state is that of an uninterrupted run.
//!
//! In: 100 pods on five nodes, with ConfigMap, token and volume. The Syncer is killed twice while it creates them and once while it
//! deletes them. Out: 100 copies, each of exactly one pod, none made twice; then nothing at all. A round whose SIGKILL came
//! too late to hit the middle must end well too, but proves little: another one follows, with earlier kills.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::core::PartialObjectMeta;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, ResourceExt};
use kubeocean_api::keys::annotation;
use kubeocean_e2e::pods::{Scene, Stage, text};
use kubeocean_e2e::rights::{assert_rights, requests};
use kubeocean_e2e::volumes::{CLAIMS, create_claim, create_volume, volume_copy, volume_path};
use kubeocean_harness::{BindingSpec, Cluster, wait_until};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const PODS: usize = 100;
const ROUNDS: usize = 4;
/// The work of each phase takes seconds on an idle machine.
const DEADLINE: Duration = Duration::from_mins(3);

/// Of each copy: UID of the copy by UID of its pod.
fn by_vpod(ppods: &[Value]) -> BTreeMap<String, String> {
    let pair = |ppod: &Value| {
        let vpod = text(&ppod["metadata"]["annotations"][annotation::VIRTUAL_POD_UID]);
        (vpod.to_owned(), text(&ppod["metadata"]["uid"]).to_owned())
    };
    ppods.iter().map(pair).collect()
}

/// Creates all pods, in a task of its own: the Syncer is to be killed meanwhile. Later rounds are slower, so that it cannot
/// have made all copies before that is seen.
async fn create_all(scene: &Scene<'_>, round: usize) -> JoinHandle<()> {
    scene.create_object("configmaps", "shared", json!({"data": {"key": "value"}})).await;
    let spec = json!({
        "automountServiceAccountToken": true,
        "volumes": [
            {"name": "settings", "configMap": {"name": "shared"}},
            {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        ],
    });
    let namespace = &scene.namespace;
    create_volume(&scene.computing, namespace, json!({})).await;
    create_claim(&scene.computing, namespace, "data", namespace, json!({})).await;
    let pods: Vec<_> = (0..PODS).map(|number| scene.pod(&format!("p{number}"), spec.clone())).collect();
    let computing = scene.computing.clone();
    let collection = format!("/api/v1/namespaces/{}/pods", scene.namespace);
    tokio::spawn(async move {
        stream::iter(&pods)
            .for_each_concurrent(10 / round, async |pod| {
                computing.create(&collection, pod).await;
            })
            .await;
    })
}

/// Returns as soon as the number of pods in a namespace is as wanted. A watch, because in the time between two looks the
/// Syncer makes most of them.
async fn wait_count(cluster: &Cluster, namespace: &str, is_enough: impl Fn(usize) -> bool) {
    let pods: Api<PartialObjectMeta<Pod>> =
        Api::namespaced(cluster.client().await.expect("a client"), namespace);
    let mut changes = std::pin::pin!(watcher(pods, watcher::Config::default()));
    let mut present = BTreeSet::new();
    let mut listed = false;
    let counted = async {
        while !listed || !is_enough(present.len()) {
            match changes.next().await.expect("a watch without end").expect("a watch that stands") {
                Event::Init => {
                    present.clear();
                    listed = false;
                }
                Event::InitApply(pod) | Event::Apply(pod) => {
                    present.insert(pod.name_any());
                }
                Event::InitDone => listed = true,
                Event::Delete(pod) => {
                    present.remove(&pod.name_any());
                }
            }
        }
    };
    timeout(DEADLINE, counted).await.expect("the Syncer to get on with its work");
}

/// What the Syncer made in the worker cluster so far, pods and volumes, and how many pods it deleted there. Of requests in
/// flight when it was killed nobody knows the answer.
fn made_and_deleted(stage: &Stage) -> (Vec<String>, usize) {
    let (_, worker) = requests(&stage.binding);
    let done = |verb: &'static str, kinds: &'static [&'static str]| {
        worker.iter().filter(move |event| {
            event.verb == verb
                && kinds.contains(&event.object_ref.resource.as_str())
                && event.response_status.code < 300
        })
    };
    let made = done("create", &["pods", CLAIMS, "persistentvolumes"]);
    (made.map(|event| event.object_ref.name.clone()).collect(), done("delete", &["pods"]).count())
}

/// Creation, killed with some of the copies made and again with some of the others. Whether both came in the middle.
async fn creation(stage: &mut Stage, namespace: &str, round: usize) -> bool {
    let (_, deleted_before) = made_and_deleted(stage);
    let mut created = Some(create_all(&stage.scene(namespace).await, round).await);
    let mut seen = BTreeMap::new();
    let mut in_the_middle = true;
    for _ in 0..2 {
        // Early: while this is seen, up to a hundred pods are under way.
        let part = (seen.len() + (PODS - seen.len()) / 10 / round + 1).min(PODS);
        wait_count(stage.binding.worker(), stage.binding.mount_namespace(), |made| made >= part).await;
        stage.syncer.kill();
        if let Some(created) = created.take() {
            created.await.expect("all pods to be created");
        }
        let made = by_vpod(&stage.scene(namespace).await.copies("pods").await);
        println!("killed with {} of {PODS} copies made", made.len());
        in_the_middle &= (1..PODS).contains(&made.len());
        for (vpod, ppod) in made {
            let before = seen.insert(vpod.clone(), ppod.clone());
            assert!(before.is_none_or(|before| before == ppod), "the copy of {vpod} was made twice");
        }
        stage.syncer.restart().expect("a restart");
    }

    let scene = stage.scene(namespace).await;
    wait_until("all pods to run", DEADLINE, async || {
        let pods = scene.vpods().await;
        let running = pods.iter().filter(|pod| pod["status"]["phase"] == "Running").count();
        if running == PODS { Ok(()) } else { Err(format!("{running} of {}", pods.len())) }
    })
    .await;
    let ppods = scene.copies("pods").await;
    assert_eq!(ppods.len(), PODS, "one copy for each pod");
    let made = by_vpod(&ppods);
    let vpods = scene.vpods().await;
    let wanted: BTreeSet<String> = vpods.iter().map(|pod| text(&pod["metadata"]["uid"]).to_owned()).collect();
    assert_eq!(made.keys().cloned().collect::<BTreeSet<_>>(), wanted, "each pod has its own copy");
    for (vpod, ppod) in &seen {
        assert_eq!(made.get(vpod), Some(ppod), "a copy made before a crash stays");
    }
    for pod in &vpods {
        let uid = text(&pod["metadata"]["uid"]);
        assert_eq!(pod["metadata"]["annotations"][annotation::PHYSICAL_POD_UID], made[uid].as_str());
    }
    assert_eq!(scene.copies("secrets").await.len(), PODS, "one token Secret for each pod");
    let bound = |claim: &Value| (claim["status"]["phase"] == "Bound").then_some(());
    scene.worker.wait("the claim's copy to be bound", &scene.copy(CLAIMS, "data"), bound).await;
    let (names, deleted) = made_and_deleted(stage);
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "a copy was made twice: {names:?}");
    assert_eq!(deleted, deleted_before, "a copy was deleted");
    in_the_middle
}

/// Deletion, killed with about a third of the pods gone. Whether that came in the middle.
async fn deletion(stage: &mut Stage, namespace: &str, round: usize) -> bool {
    {
        let scene = stage.scene(namespace).await;
        scene.computing.delete(&format!("/api/v1/namespaces/{namespace}/pods"), None).await;
    }
    let most = PODS - PODS / 3 / round;
    wait_count(stage.binding.computing(), namespace, |left| left <= most).await;
    stage.syncer.kill();
    let (pods, copies) = {
        let scene = stage.scene(namespace).await;
        (scene.vpods().await.len(), scene.copies("pods").await.len())
    };
    println!("killed with {pods} pods and {copies} copies left");
    stage.syncer.restart().expect("a restart");
    let scene = stage.scene(namespace).await;
    wait_until("everything to be gone", DEADLINE, async || {
        let left = (
            scene.vpods().await.len(),
            scene.copies("pods").await.len(),
            scene.copies("secrets").await.len(),
        );
        if left == (0, 0, 0) { Ok(()) } else { Err(left) }
    })
    .await;

    // Copies go with their originals, whoever made them before which crash.
    let pairs = [
        (scene.object("configmaps", "shared"), scene.copy("configmaps", "shared")),
        (scene.object(CLAIMS, "data"), scene.copy(CLAIMS, "data")),
        (volume_path(namespace), volume_copy(namespace)),
    ];
    for (original, copy) in &pairs {
        scene.computing.delete(original, None).await;
        scene.computing.wait_gone(original).await;
        scene.worker.wait_gone(copy).await;
    }
    (1..PODS).contains(&pods)
}

#[tokio::test]
async fn a_killed_syncer_loses_and_doubles_nothing() {
    let mut stage = Stage::start(BindingSpec::new("crash"), 5).await;
    let mut hit = (false, false);
    for round in 1..=ROUNDS {
        let namespace = format!("crash-{round}");
        hit.0 |= creation(&mut stage, &namespace, round).await;
        hit.1 |= deletion(&mut stage, &namespace, round).await;
        if hit == (true, true) {
            break;
        }
        println!("round {round}: creation and deletion were hit in the middle so far: {hit:?}");
    }
    assert_eq!(hit, (true, true), "in {ROUNDS} rounds SIGKILL came in the middle of creation, of deletion");
    assert_rights(&stage.binding);
}
