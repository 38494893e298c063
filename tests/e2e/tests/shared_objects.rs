//! One ConfigMap and one Secret that the pods of two bindings use (TD-1103, acceptance check 13).
//!
//! In: two bindings on one worker cluster, with mount namespaces of their own or one for both. Out: a copy in each, that
//! follows the original and goes with the last pod that uses it, never with another's.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kubeocean_api::keys::{annotation, label, object_finalizer, synced_by};
use kubeocean_e2e::pods::{Scene, Stage};
use kubeocean_e2e::rights::{assert_rights, requests};
use kubeocean_harness::{AuditEvent, BindingSpec, wait_until};
use serde_json::{Value, json};

const OBJECTS: [(&str, &str); 2] = [("configmaps", "settings"), ("secrets", "keys")];

/// A pod spec that needs both objects.
fn reader() -> Value {
    json!({"volumes": [
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "keys", "secret": {"secretName": "keys"}},
    ]})
}

/// Gives both objects a new content.
async fn write(scene: &Scene<'_>, content: &str) {
    for (kind, name) in OBJECTS {
        let data = json!({"data": {"key": encoded(kind, content)}});
        scene.computing.merge(&scene.object(kind, name), &data).await;
    }
}

fn encoded(kind: &str, content: &str) -> String {
    if kind == "secrets" { STANDARD.encode(content) } else { content.to_owned() }
}

/// Waits until both copies of a binding have a content.
async fn wait_copies(scene: &Scene<'_>, content: &str) {
    for (kind, name) in OBJECTS {
        let wanted = encoded(kind, content);
        let arrived = |copy: &Value| (copy["data"]["key"] == wanted.as_str()).then_some(());
        let what = format!("{content:?} in the copy of {name} for {}", scene.stage.binding.name());
        scene.worker.wait(&what, &scene.copy(kind, name), arrived).await;
    }
}

/// Whether a binding has put its marks on an object of the computing cluster.
fn is_claimed(object: &Value, stage: &Stage) -> bool {
    let cluster_id = stage.binding.cluster_id();
    let metadata = &object["metadata"];
    let finalizer = json!(object_finalizer(cluster_id));
    let held = metadata["finalizers"].as_array().is_some_and(|list| list.contains(&finalizer));
    let labelled = metadata["labels"][&synced_by(cluster_id)] == "true";
    assert_eq!(held, labelled, "{cluster_id}: both marks or none on {object:#}");
    held
}

async fn uids(scene: &Scene<'_>) -> Vec<Value> {
    let mut uids = Vec::new();
    for (kind, name) in OBJECTS {
        let copy = scene.worker.get(&scene.copy(kind, name)).await.expect("a copy");
        uids.push(copy["metadata"]["uid"].clone());
    }
    uids
}

#[tokio::test]
async fn two_bindings_use_one_object_and_part_from_it_one_by_one() {
    // Copies that nobody uses go at once, so that "the other's stays" means something.
    let idle: &[&str] = &["--gc-idle-objects=1s"];
    let (left, right) = tokio::join!(
        Stage::start_with(BindingSpec::new("left"), 1, idle),
        Stage::start_with(BindingSpec::new("right"), 1, idle)
    );
    assert_ne!(left.binding.mount_namespace(), right.binding.mount_namespace());
    let (in_left, in_right) = (left.scene("shared").await, right.scene("shared").await);
    in_left.create_object("configmaps", "settings", json!({"data": {"key": "first"}})).await;
    in_left.create_object("secrets", "keys", json!({"stringData": {"key": "first"}})).await;
    tokio::join!(in_left.run_pod("on-left", reader()), in_right.run_pod("on-right", reader()));

    // Both have it, and it is claimed by both.
    wait_copies(&in_left, "first").await;
    wait_copies(&in_right, "first").await;
    for (kind, name) in OBJECTS {
        let original = in_left.computing.get(&in_left.object(kind, name)).await.expect("an object");
        assert!(is_claimed(&original, &left) && is_claimed(&original, &right), "{original:#}");
    }
    write(&in_left, "second").await;
    wait_copies(&in_left, "second").await;
    wait_copies(&in_right, "second").await;

    // The left one's last pod goes, and with it the left copy and claim. Nothing else.
    let before = uids(&in_right).await;
    in_left.computing.delete(&in_left.vpod("on-left"), None).await;
    in_left.computing.wait_gone(&in_left.vpod("on-left")).await;
    for (kind, name) in OBJECTS {
        in_left.worker.wait_gone(&in_left.copy(kind, name)).await;
        let released = |object: &Value| (!is_claimed(object, &left)).then(|| object.clone());
        let path = in_left.object(kind, name);
        let original = in_left.computing.wait("the left claim to go", &path, released).await;
        assert!(is_claimed(&original, &right), "{original:#}");
        assert_eq!(original["metadata"]["labels"][label::MANAGED_BY], label::MANAGED_BY_VALUE);
        assert!(original["metadata"]["annotations"][annotation::PHYSICAL_NAME].is_string(), "{original:#}");
    }
    write(&in_right, "third").await;
    wait_copies(&in_right, "third").await;
    assert_eq!(uids(&in_right).await, before, "the right copies were never away");

    // A deleted object that both use takes both copies along and does not hang.
    in_left.run_pod("on-left-again", reader()).await;
    wait_copies(&in_left, "third").await;
    for (kind, name) in OBJECTS {
        in_left.computing.delete(&in_left.object(kind, name), None).await;
        in_left.computing.wait_gone(&in_left.object(kind, name)).await;
        in_left.worker.wait_gone(&in_left.copy(kind, name)).await;
        in_right.worker.wait_gone(&in_right.copy(kind, name)).await;
    }
    assert_rights(&left.binding);
    assert_rights(&right.binding);
}

/// The same mount namespace: there is one copy of each object, which both users mark, and who leaves takes only his mark.
#[tokio::test]
async fn two_bindings_that_share_a_mount_namespace_share_a_copy() {
    let idle: &[&str] = &["--gc-idle-objects=1s"];
    let one = Stage::start_with(BindingSpec::new("mount-one"), 1, idle).await;
    let mount = one.binding.mount_namespace();
    let two = Stage::start_with(BindingSpec::new("mount-two").mount_namespace(mount), 1, idle).await;
    let (in_one, in_two) = (one.scene("mount-shared").await, two.scene("mount-shared").await);
    in_one.create_object("configmaps", "settings", json!({"data": {"key": "first"}})).await;
    in_one.create_object("secrets", "keys", json!({"stringData": {"key": "first"}})).await;
    tokio::join!(in_one.run_pod("on-one", reader()), in_two.run_pod("on-two", reader()));
    let before = uids(&in_one).await;
    for (kind, name) in OBJECTS {
        assert_eq!(in_one.copy(kind, name), in_two.copy(kind, name));
        let marked = |copy: &Value| {
            let shown =
                |stage: &Stage| copy["metadata"]["labels"][synced_by(stage.binding.cluster_id())] == "true";
            (shown(&one) && shown(&two)).then_some(())
        };
        in_one.worker.wait("both marks", &in_one.copy(kind, name), marked).await;
    }
    write(&in_one, "second").await;
    wait_copies(&in_two, "second").await;

    // One leaves: the other's pod keeps what it mounts, and it still follows.
    in_one.computing.delete(&in_one.vpod("on-one"), None).await;
    in_one.computing.wait_gone(&in_one.vpod("on-one")).await;
    for (kind, name) in OBJECTS {
        let left = |copy: &Value| {
            let labels = &copy["metadata"]["labels"];
            labels[synced_by(one.binding.cluster_id())].is_null().then(|| copy.clone())
        };
        let copy = in_two.worker.wait("the mark to go", &in_two.copy(kind, name), left).await;
        assert_eq!(copy["metadata"]["labels"][synced_by(two.binding.cluster_id())], "true", "{copy:#}");
        let released = |object: &Value| (!is_claimed(object, &one)).then(|| object.clone());
        let original = in_one.computing.wait("the claim to go", &in_one.object(kind, name), released).await;
        assert!(is_claimed(&original, &two), "{original:#}");
    }
    write(&in_two, "third").await;
    wait_copies(&in_two, "third").await;
    assert_eq!(uids(&in_two).await, before, "the copies were never away");

    // The last one leaves.
    in_two.computing.delete(&in_two.vpod("on-two"), None).await;
    in_two.computing.wait_gone(&in_two.vpod("on-two")).await;
    for (kind, name) in OBJECTS {
        in_two.worker.wait_gone(&in_two.copy(kind, name)).await;
        let released = |object: &Value| (!is_claimed(object, &two)).then_some(());
        in_two.computing.wait("the last claim to go", &in_two.object(kind, name), released).await;
    }
    assert_rights(&one.binding);
    assert_rights(&two.binding);
}

/// Acceptance check 15: a Deployment whose replicas share a ConfigMap and a Secret.
#[tokio::test]
async fn a_thousand_replicas_that_share_two_objects_cost_one_write_of_each() {
    const REPLICAS: usize = 1000;
    let stage = Stage::start(BindingSpec::new("thousand"), 10).await;
    let scene = stage.scene("thousand").await;
    scene.create_object("configmaps", "settings", json!({"data": {"k": "v"}})).await;
    scene.create_object("secrets", "keys", json!({"stringData": {"k": "v"}})).await;
    let mut pod = scene.pod_spec();
    pod["volumes"] = reader()["volumes"].clone();
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"},
        "spec": {
            "replicas": REPLICAS, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}}, "spec": pod},
        },
    });
    let path = "/apis/apps/v1/namespaces/thousand/deployments";
    scene.computing.create(path, &deployment).await;
    let ready = format!("{path}/web");
    wait_until("a thousand replicas", Duration::from_mins(4), async || {
        let deployment = scene.computing.get(&ready).await.unwrap_or_default();
        let ready = deployment["status"]["readyReplicas"].as_u64().unwrap_or_default();
        if ready == REPLICAS as u64 { Ok(()) } else { Err(ready) }
    })
    .await;
    let (computing, worker) = requests(&stage.binding);
    for (kind, name) in OBJECTS {
        let (here, there) = (scene.object(kind, name), scene.copy(kind, name));
        let writes = |events: &[AuditEvent], path: &str| -> Vec<(String, u16)> {
            let of =
                events.iter().filter(|event| event.is_write() && event.uri.split('?').next() == Some(path));
            of.map(|event| (event.verb.clone(), event.response_status.code)).collect()
        };
        assert_eq!(writes(&computing, &here), [("patch".to_owned(), 200)], "{name} is marked once");
        let made = worker.iter().filter(|event| {
            event.verb == "create"
                && event.object_ref.resource == kind
                && event.object_ref.name == scene.copy_name(name)
        });
        assert_eq!((made.count(), writes(&worker, &there)), (1, vec![]), "{name} is copied once");
    }
    // In the computing cluster the account is every Syncer's, in the worker this one's.
    let here = computing.iter().filter(|event| event.object_ref.namespace == scene.namespace);
    let conflicts = here.chain(&worker).filter(|event| event.response_status.code == 409);
    let objects =
        |event: &&AuditEvent| ["configmaps", "secrets"].contains(&event.object_ref.resource.as_str());
    assert_eq!(conflicts.filter(objects).count(), 0);
    let events = scene
        .computing
        .list("/api/v1/namespaces/thousand/events?fieldSelector=reason%3DFailedCreatePod")
        .await;
    assert_eq!(events, [] as [Value; 0]);
    scene.computing.delete(&ready, None).await;
    assert_rights(&stage.binding);
}
