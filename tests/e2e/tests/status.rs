//! Status on its way up (BU section 15): a storm of reports is coalesced, what matters goes at once, an end is final, and
//! only what is proven to be ours is touched.

use std::time::{Duration, Instant};

use kubeocean_api::keys::{annotation, label};
use kubeocean_e2e::leasing::generous;
use kubeocean_e2e::pods::{DEADLINE, Scene, Stage, condition, pod_path, text};
use kubeocean_e2e::rights::{assert_rights, requests};
use kubeocean_harness::{AuditEvent, AuditMark, BindingSpec, wait_until};
use serde_json::{Value, json};

/// Time between two reports of the storm.
const GUST: Duration = Duration::from_millis(20);
const STORM: Duration = Duration::from_secs(5);

async fn report(scene: &Scene<'_>, pod: &str, status: &Value) {
    scene.worker.merge(&format!("{}/status", scene.ppod(pod)), &json!({"status": status})).await;
}

/// The Syncer's writes to a pod's status since `mark`.
fn writes(scene: &Scene<'_>, pod: &str, mark: AuditMark) -> Vec<AuditEvent> {
    let events = scene.stage.binding.computing().audit_events_since(mark).expect("an audit log");
    let of_pod = |event: &AuditEvent| {
        let object = &event.object_ref;
        object.resource == "pods" && object.name == pod && object.namespace == scene.namespace
    };
    let by_syncer =
        |event: &AuditEvent| event.user.username.ends_with("kubeocean-syncer") && event.is_write();
    events.into_iter().filter(|event| of_pod(event) && by_syncer(event)).collect()
}

/// Container statuses with another number of restarts.
fn restarted(ppod: &Value, times: usize) -> Value {
    let mut statuses = ppod["status"]["containerStatuses"].clone();
    statuses[0]["restartCount"] = json!(times);
    json!({"containerStatuses": statuses})
}

fn restarts(pod: &Value) -> u64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or_default()
}

/// Conditions with another readiness.
fn readiness(ppod: &Value, ready: bool) -> Value {
    let mut conditions = ppod["status"]["conditions"].clone();
    for one in conditions.as_array_mut().into_iter().flatten().filter(|one| one["type"] == "Ready") {
        one["status"] = json!(if ready { "True" } else { "False" });
    }
    json!({"conditions": conditions})
}

#[tokio::test]
async fn a_storm_of_reports_is_a_write_a_second_and_an_end_is_final() {
    let stage = Stage::start(BindingSpec::new("status"), 1).await;
    let scene = stage.scene("status-users").await;
    let (_, ppod) = scene.run_pod("stormy", json!({"restartPolicy": "OnFailure"})).await;

    let mark = stage.binding.computing().audit_mark().expect("an audit log");
    let began = Instant::now();
    let mut gusts = tokio::time::interval(GUST);
    let mut reports = 0;
    while began.elapsed() < STORM {
        gusts.tick().await;
        reports += 1;
        report(&scene, "stormy", &restarted(&ppod, reports)).await;
        if reports == 20 {
            let edit = json!({"metadata": {"labels": {"team": "blue"}}});
            scene.computing.merge(&scene.vpod("stormy"), &edit).await;
        }
    }
    let last = u64::try_from(reports).expect("a number");
    let all = |pod: &Value| (restarts(pod) == last).then(|| pod.clone());
    let vpod = scene.computing.wait("the last report to arrive", &scene.vpod("stormy"), all).await;
    let took = began.elapsed();
    let written = writes(&scene, "stormy", mark);
    println!("{reports} reports within {took:?} were {} writes", written.len());
    assert!(reports > 20, "{reports} reports make no storm");
    assert!(written.len() <= usize::try_from(took.as_secs()).expect("a number") + 2, "{}", written.len());
    assert!(written.len() >= 3, "reports do not wait for the end of the storm: {}", written.len());
    assert_eq!(vpod["metadata"]["labels"]["team"], "blue", "a user's edit survives");
    let followed = |pod: &Value| (pod["metadata"]["labels"]["team"] == "blue").then_some(());
    scene.worker.wait("the edit to go down", &scene.ppod("stormy"), followed).await;

    // Readiness goes at once: coalesced, ten changes would take ten seconds.
    let began = Instant::now();
    for round in 0..10 {
        let ready = round % 2 == 1;
        report(&scene, "stormy", &readiness(&ppod, ready)).await;
        let shown = |pod: &Value| {
            (condition(pod, "Ready")["status"] == if ready { "True" } else { "False" }).then_some(())
        };
        scene.computing.wait("the readiness", &scene.vpod("stormy"), shown).await;
    }
    println!("10 changes of readiness arrived within {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());

    // An end is final, whatever is reported afterwards.
    report(&scene, "stormy", &json!({"phase": "Succeeded"})).await;
    let ended = |pod: &Value| (pod["status"]["phase"] == "Succeeded").then_some(());
    let end = Instant::now();
    scene.computing.wait("the end", &scene.vpod("stormy"), ended).await;
    assert!(end.elapsed() < generous(Duration::from_secs(1)), "{:?}", end.elapsed());
    report(&scene, "stormy", &json!({"phase": "Running"})).await;
    scene.worker.wait_gone(&scene.ppod("stormy")).await;
    let vpod = scene.computing.get(&scene.vpod("stormy")).await.expect("the pod");
    assert_eq!(vpod["status"]["phase"], "Succeeded");

    only_what_is_ours_is_touched(&scene).await;
    messages_are_cut_and_not_logged(&scene).await;
    assert_rights(&stage.binding);
}

/// A pod in the mount namespace that says it is the copy of a pod which does not exist.
async fn copy_of(scene: &Scene<'_>, name: &str, computing_cluster: &str) -> Value {
    let mount = scene.stage.binding.mount_namespace();
    let copy = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": scene.copy_name(name), "namespace": mount,
            "labels": {
                label::MANAGED_BY: label::MANAGED_BY_VALUE, label::CLUSTER_BINDING: scene.stage.binding.name(),
            },
            "annotations": {
                annotation::VIRTUAL_POD_NAMESPACE: scene.namespace, annotation::VIRTUAL_POD_NAME: name,
                annotation::VIRTUAL_POD_UID: "00000000-0000-0000-0000-000000000000",
                annotation::COMPUTING_CLUSTER_UID: computing_cluster,
            },
        },
        // The gate keeps the worker cluster from writing it.
        "spec": {
            "schedulingGates": [{"name": "example.test/held"}],
            "containers": [{"name": "c", "image": "example.test/image"}],
        },
    });
    scene.worker.create(&format!("/api/v1/namespaces/{mount}/pods"), &copy).await
}

/// An orphan of ours goes after a look at the live pod; one of another computing cluster is nobody's business.
async fn only_what_is_ours_is_touched(scene: &Scene<'_>) {
    let system = scene.computing.get("/api/v1/namespaces/kube-system").await.expect("kube-system");
    let foreign = copy_of(scene, "theirs", "another-cluster").await;
    copy_of(scene, "ghost", text(&system["metadata"]["uid"])).await;
    scene.worker.wait_gone(&scene.ppod("ghost")).await;
    let untouched = scene.worker.get(&scene.ppod("theirs")).await.expect("their pod");
    assert_eq!(untouched["metadata"], foreign["metadata"]);

    let copy = scene.copy_name("ghost");
    let times = wait_until("both requests in the audit logs", DEADLINE, async || {
        let (computing, worker) = requests(&scene.stage.binding);
        let asked = computing.iter().find(|event| {
            event.verb == "get"
                && event.response_status.code == 404
                && event.uri.starts_with(&pod_path(&scene.namespace, "ghost"))
        });
        let deleted = worker.iter().find(|event| event.verb == "delete" && event.object_ref.name == copy);
        Some((asked?.request_received_timestamp.clone(), deleted?.request_received_timestamp.clone()))
    })
    .await;
    assert!(times.0 < times.1, "asked at {}, deleted at {}", times.0, times.1);
}

/// What a program of the worker says is shown within bounds, and is in no log.
async fn messages_are_cut_and_not_logged(scene: &Scene<'_>) {
    const SECRET: &str = "registry.internal.test";
    let (_, ppod) = scene.run_pod("chatty", json!({})).await;
    let mut statuses = ppod["status"]["containerStatuses"].clone();
    let words = format!("{SECRET} {}", "x".repeat(4000));
    statuses[0]["lastState"] = json!({"terminated": {
        "exitCode": 1, "reason": "Error", "message": words, "startedAt": null, "finishedAt": null,
    }});
    report(scene, "chatty", &json!({"containerStatuses": statuses, "message": words})).await;
    let said = |pod: &Value| {
        let status = &pod["status"];
        let of_container = &status["containerStatuses"][0]["lastState"]["terminated"]["message"];
        Some((status["message"].as_str()?.to_owned(), of_container.as_str()?.to_owned()))
    };
    let (of_pod, of_container) = scene.computing.wait("the messages", &scene.vpod("chatty"), said).await;
    for message in [of_pod, of_container] {
        assert!(message.starts_with(SECRET) && message.len() <= 1024, "{} bytes", message.len());
    }
    assert!(!scene.stage.syncer.log().contains(SECRET), "a message is in the log");
}
