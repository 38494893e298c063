//! What the worker cluster says about a copy, as users read it on their pod (TD-1704 ff.).
//!
//! In: worker events as its components would send them, and those of its real scheduler. Out: the events of the vpod.

use std::time::Duration;

use http::Method;
use kubeocean_api::keys::{annotation, label};
use kubeocean_e2e::pod_events::{events, said_of, say, wait_told};
use kubeocean_e2e::pods::{DEADLINE, Objects, Scene, Stage, text};
use kubeocean_e2e::rights::{assert_rights, features_off, requests, take_from_role};
use kubeocean_e2e::storm::pass;
use kubeocean_e2e::veto::Veto;
use kubeocean_harness::{AuditEvent, BindingSpec, wait_until};
use serde_json::{Value, json};

/// So long an event waits for the pod it is about (TD-1704).
const UNKNOWN: Duration = Duration::from_secs(10);

#[tokio::test]
async fn what_the_worker_says_about_a_copy_is_read_on_its_pod() {
    let mut stage = Stage::start(BindingSpec::new("said"), 1).await;
    let (ppod, before) = said_and_read(&stage.scene("said-users").await).await;

    // A Syncer that starts again finds all events once more, and writes what is there already.
    stage.syncer.kill();
    stage.syncer.restart().expect("a Syncer");
    stage.syncer.wait_ready().await;
    let scene = stage.scene("said-users").await;
    say(&scene.worker, &said_of(&ppod, "SecondBarrier", "what came before was looked at before")).await;
    wait_told(&scene, "web", "SecondBarrier", 1).await;
    assert_eq!(versions(&scene).await, before);
    assert_rights(&stage.binding);
}

/// Returns the copy the events are about, and the versions of the events.
async fn said_and_read(scene: &Scene<'_>) -> (Value, Vec<(String, String)>) {
    scene.create_object("configmaps", "settings", json!({"data": {"a": "1"}})).await;
    let volume = json!({"volumes": [{"name": "v", "configMap": {"name": "settings"}}]});
    let (vpod, ppod) = scene.run_pod("web", volume).await;
    let (copy, settings) = (scene.copy_name("web"), scene.copy_name("settings"));
    let mount = scene.stage.binding.mount_namespace();

    // In the words of this cluster, from the node users know.
    let node = text(&ppod["spec"]["nodeName"]);
    let message = format!(
        "Unable to mount configmap \"{settings}\" for pod {copy}_{mount}({}) on {node}.",
        text(&ppod["metadata"]["uid"])
    );
    let path = say(&scene.worker, &said_of(&ppod, "FailedMount", &message)).await;
    let event = wait_told(scene, "web", "FailedMount", 1).await;
    let (uid, vnode) = (text(&vpod["metadata"]["uid"]), text(&vpod["spec"]["nodeName"]));
    assert_eq!(
        text(&event["message"]),
        format!("Unable to mount configmap \"settings\" for pod web_said-users({uid}) on {vnode}.")
    );
    assert_eq!(event["source"], json!({"component": "kubelet", "host": vnode}));
    let object = &event["involvedObject"];
    assert_eq!(
        (&object["uid"], &object["fieldPath"]),
        (&vpod["metadata"]["uid"], &json!("spec.containers{main}"))
    );
    assert_eq!(
        (text(&event["type"]), text(&event["reportingComponent"])),
        ("Warning", "kubeocean-syncer-said")
    );
    for name in [mount, &*copy, &*settings] {
        assert!(!event.to_string().contains(name), "{name} is of the worker cluster: {event:#}");
    }

    // Once more, and with other numbers: the same event, counted.
    scene.worker.merge(&path, &json!({"count": 3})).await;
    wait_told(scene, "web", "FailedMount", 3).await;
    let again = message.replace("for pod", "after 2m1s for pod");
    say(&scene.worker, &said_of(&ppod, "FailedMount", &again)).await;
    let more = message.replace("for pod", "after 4m7s for pod");
    say(&scene.worker, &said_of(&ppod, "FailedMount", &more)).await;
    wait_until("two kinds of news, one of them twice", DEADLINE, async || {
        let mut counts: Vec<_> = events(scene, "web", &["FailedMount"]).await;
        counts.sort_by_key(|event| event["count"].as_i64());
        let counts: Vec<_> = counts.iter().map(|event| event["count"].clone()).collect();
        if counts == [2, 3] { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;

    only_of_ones_own_pods(scene, &ppod).await;
    let versions = versions(scene).await;
    assert_eq!(versions.len(), 3);
    (ppod, versions)
}

/// Events about other things, of others, or that are no trouble never appear on a user's pod.
async fn only_of_ones_own_pods(scene: &Scene<'_>, ppod: &Value) {
    let mount = scene.stage.binding.mount_namespace();
    // A pod of the worker's people, and one of another binding that says it is the copy of this very pod.
    let claims = json!({
        annotation::VIRTUAL_POD_NAMESPACE: scene.namespace, annotation::VIRTUAL_POD_NAME: "web",
        annotation::VIRTUAL_POD_UID: ppod["metadata"]["annotations"][annotation::VIRTUAL_POD_UID],
        annotation::COMPUTING_CLUSTER_UID: ppod["metadata"]["annotations"][annotation::COMPUTING_CLUSTER_UID],
    });
    for (name, labels) in [
        ("plain", json!({"app": "theirs"})),
        ("stamped", json!({label::MANAGED_BY: label::MANAGED_BY_VALUE, label::CLUSTER_BINDING: "another"})),
    ] {
        let foreign = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "namespace": mount, "labels": labels, "annotations": claims},
            "spec": {
                "schedulingGates": [{"name": "example.test/held"}],
                "containers": [{"name": "main", "image": "example.test/image"}],
            },
        });
        let foreign = scene.worker.create(&format!("/api/v1/namespaces/{mount}/pods"), &foreign).await;
        let mut event = said_of(&foreign, "Foreign", "the secret of somebody else");
        event["firstTimestamp"] = ppod["status"]["startTime"].clone();
        event["lastTimestamp"] = ppod["status"]["startTime"].clone();
        say(&scene.worker, &event).await;
    }
    let mut unknown = said_of(ppod, "Foreign", "another pod that has had this name");
    unknown["involvedObject"]["uid"] = json!("00000000-0000-0000-0000-000000000000");
    let mut thing = said_of(ppod, "Foreign", "not about a pod");
    thing["involvedObject"]["kind"] = json!("ConfigMap");
    let mut calm = said_of(ppod, "Foreign", "all is well");
    calm["type"] = json!("Normal");
    let mut own = said_of(ppod, "Foreign", "what the Syncer itself said");
    own["source"] = json!({"component": "kubeocean-syncer-said"});
    let mut old = said_of(ppod, "Foreign", "long ago");
    old["firstTimestamp"] = json!("2026-01-01T00:00:00Z");
    old["lastTimestamp"] = json!("2026-01-01T00:00:00Z");
    for event in [unknown, thing, calm, own, old] {
        say(&scene.worker, &event).await;
    }
    say(&scene.worker, &said_of(ppod, "Unhealthy", "Readiness probe failed")).await;
    wait_told(scene, "web", "Unhealthy", 1).await;
    // What is said of an unknown pod waits for that pod, and then for nobody.
    pass(UNKNOWN + Duration::from_secs(2)).await;
    say(&scene.worker, &said_of(ppod, "Barrier", "what was said before has been looked at")).await;
    wait_told(scene, "web", "Barrier", 1).await;
    let all = format!("/api/v1/namespaces/{}/events", scene.namespace);
    for event in scene.computing.list(&all).await {
        assert_ne!(event["reason"], "Foreign", "{event:#}");
    }
}

/// Name and version of each event.
async fn versions(scene: &Scene<'_>) -> Vec<(String, String)> {
    let of = |event: &Value| {
        let metadata = &event["metadata"];
        (text(&metadata["name"]).to_owned(), text(&metadata["resourceVersion"]).to_owned())
    };
    events(scene, "web", &["FailedMount", "Unhealthy"]).await.iter().map(of).collect()
}

#[tokio::test]
async fn the_workers_scheduler_says_why_a_pod_waits() {
    let stage = Stage::start(BindingSpec::new("said-full"), 1).await;
    let scene = stage.scene("said-full-users").await;
    let vnodes = scene.stage.wait_vnodes().await;
    // By name, past the scheduler of this cluster, which would see that it does not fit.
    let spec = json!({
        "nodeName": vnodes[0]["metadata"]["name"],
        "containers": [{"name": "main", "image": "example.test/image", "resources": {"requests": {"cpu": "1000"}}}],
    });
    scene.create_pod(&scene.pod("huge", spec)).await;
    let message = scene.wait_event("huge", "FailedScheduling").await;
    assert!(message.contains("Insufficient cpu"), "{message}");
    let events = events(&scene, "huge", &["FailedScheduling"]).await;
    assert_eq!(events[0]["source"]["component"], "default-scheduler", "{events:#?}");
    assert_rights(&scene.stage.binding);
}

#[tokio::test]
async fn what_is_no_trouble_appears_when_asked_for() {
    let stage = Stage::start_with(BindingSpec::new("said-all"), 1, &["--pod-events=all"]).await;
    let scene = stage.scene("said-all-users").await;
    let (_, ppod) = scene.run_pod("web", json!({})).await;
    let mut pulled = said_of(&ppod, "Pulled", "Successfully pulled the image");
    pulled["type"] = json!("Normal");
    say(&scene.worker, &pulled).await;
    assert_eq!(wait_told(&scene, "web", "Pulled", 1).await["type"], "Normal");
    say(&scene.worker, &said_of(&ppod, "Unhealthy", "Liveness probe failed")).await;
    wait_told(&scene, "web", "Unhealthy", 1).await;
    scene.wait_event("web", "PhysicalPodCreated").await;
}

/// From now on admission refuses events of a namespace, as a quota or a webhook would.
async fn refuse_events(stage: &Stage, namespace: &str) {
    let cluster = stage.binding.computing();
    let veto = Veto {
        cluster,
        name: &format!("refuses-{namespace}"),
        operation: "CREATE",
        of: ["", "v1", "events"],
        condition: &format!("object.metadata.namespace == '{namespace}'"),
        allowed: "false",
        reason: "Forbidden",
    };
    let computing = Objects::of(cluster).await;
    let dry = format!("/api/v1/namespaces/{namespace}/events?dryRun=All");
    let event = json!({
        "metadata": {"name": "probe"}, "involvedObject": {"namespace": namespace}, "reason": "Probe", "type": "Normal",
    });
    veto.begin(async || computing.attempt(Method::POST, &dry, &event).await).await;
}

/// What admission refuses looks like a missing right, and turns off nothing.
#[tokio::test]
async fn a_namespace_that_takes_no_events_silences_no_other() {
    let stage = Stage::start(BindingSpec::new("said-full-up"), 1).await;
    let (full, other) = (stage.scene("said-full-up").await, stage.scene("said-beside").await);
    let (_, in_full) = full.run_pod("web", json!({})).await;
    let (_, in_other) = other.run_pod("web", json!({})).await;
    refuse_events(&stage, "said-full-up").await;
    say(&full.worker, &said_of(&in_full, "Unhealthy", "Liveness probe failed")).await;
    let refused = |event: &AuditEvent| {
        event.verb == "create"
            && event.object_ref.resource == "events"
            && event.object_ref.namespace == "said-full-up"
            && event.response_status.code == 403
    };
    wait_until("the event to be refused", DEADLINE, async || {
        let (computing, _) = requests(&stage.binding);
        computing.iter().any(refused)
    })
    .await;
    say(&other.worker, &said_of(&in_other, "Unhealthy", "Liveness probe failed")).await;
    wait_told(&other, "web", "Unhealthy", 1).await;

    // Nor what the Syncer itself says about pods.
    let waits = json!({"volumes": [{"name": "v", "configMap": {"name": "missing"}}]});
    let attempts = || requests(&stage.binding).0.iter().filter(|event| refused(event)).count();
    let before = attempts();
    full.create_pod(&full.pod("waits", waits.clone())).await;
    wait_until("another event to be refused", DEADLINE, async || {
        let now = attempts();
        if now > before { Ok(()) } else { Err(now) }
    })
    .await;
    other.create_pod(&other.pod("waits", waits)).await;
    assert!(other.wait_event("waits", "FailedCreatePod").await.contains("missing"));
    assert_eq!(features_off(&full.computing, "said-full-up").await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_worker_that_hides_its_events_turns_this_off_and_nothing_else() {
    let mut stage = Stage::start(BindingSpec::new("said-not"), 1).await;
    stage.syncer.stop().await.expect("an end");
    take_from_role(&stage.binding, "events").await;
    stage.syncer.restart().expect("a Syncer");
    stage.syncer.wait_ready().await;
    let scene = stage.scene("said-not-users").await;

    let told = async || features_off(&scene.computing, stage.binding.name()).await;
    wait_until("the event on the binding", DEADLINE, async || match told().await.as_slice() {
        [event] if text(&event["message"]).contains("events") => Ok(()),
        other => Err(json!(other).to_string()),
    })
    .await;
    let refused = || -> Vec<String> {
        let (_, worker) = requests(&stage.binding);
        let refused = worker.iter().filter(|event| event.response_status.code == 403);
        refused.map(|event| event.uri.clone()).collect()
    };
    let until_off = refused();
    assert!(until_off.iter().all(|uri| uri.contains("/events?")), "{until_off:#?}");
    scene.run_pod("web", json!({})).await;
    // Long enough for whoever asks again: whether the worker answers is asked every 15 s.
    wait_until("three probes of the worker", DEADLINE, async || {
        let (_, worker) = requests(&stage.binding);
        let probe =
            |event: &&AuditEvent| event.uri.starts_with("/api/v1/nodes?") && event.uri.ends_with("limit=1");
        let probes = worker.iter().filter(probe).count();
        if probes >= 3 { Ok(()) } else { Err(probes) }
    })
    .await;
    assert_eq!(told().await.len(), 1);
    assert_eq!(refused(), until_off, "nobody asks any more");
}
