//! What few pods ask for: debug containers, a node by name, a volume claim.
//!
//! In: one binding that all tests but one share, a namespace for each test. Out: the copy, or the condition and the event
//! that say why there is none.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kubeocean_api::keys::{annotation, condition_type, label};
use kubeocean_api::name::token_secret_name;
use kubeocean_e2e::debug::{debug, debug_containers};
use kubeocean_e2e::in_place::{changed, report_resources, resize, set_image, wait_cpu};
use kubeocean_e2e::pods::{DEADLINE, Objects, Scene, Stage, condition, core_path, text};
use kubeocean_e2e::rights::{assert_rights, features_off, requests, take_from_role};
use kubeocean_e2e::volumes::{CLAIMS, create_claim, create_volume};
use kubeocean_harness::{AuditMark, BindingSpec, wait_until};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

async fn stage() -> &'static Stage {
    static STAGE: OnceCell<Stage> = OnceCell::const_new();
    STAGE.get_or_init(|| Stage::start(BindingSpec::new("features"), 2)).await
}

fn names(containers: &[Value]) -> Vec<&str> {
    containers.iter().map(|container| text(&container["name"])).collect()
}

fn variable<'a>(container: &'a Value, name: &str) -> &'a Value {
    let env = container["env"].as_array().expect("variables");
    env.iter().find(|variable| variable["name"] == name).unwrap_or(&Value::Null)
}

#[tokio::test]
async fn debug_containers_are_added_to_the_copy() {
    let stage = stage().await;
    let scene = stage.scene("debug").await;
    scene.create_object("configmaps", "tools", json!({"data": {"shell": "sh"}})).await;
    // What the pod was started with is gone meanwhile: a debug container does not need it.
    scene.create_object("configmaps", "gone", json!({"data": {"a": "1"}})).await;
    let spec = json!({"volumes": [{"name": "v", "configMap": {"name": "gone"}}]});
    let (_, before) = scene.run_pod("patient", spec).await;
    let (vpod, ppod) = (scene.vpod("patient"), scene.ppod("patient"));
    scene.computing.delete(&scene.object("configmaps", "gone"), None).await;
    scene.computing.wait_gone(&scene.object("configmaps", "gone")).await;

    // What it refers to comes along, and it speaks of the pod of the computing cluster.
    let first = json!({
        "name": "first", "image": "example.test/tools", "targetContainerName": "main", "stdin": true,
        "env": [
            {"name": "SHELL", "valueFrom": {"configMapKeyRef": {"name": "tools", "key": "shell"}}},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
        ],
    });
    debug(&scene.computing, &vpod, first).await;
    let added = |pod: &Value| {
        let containers = debug_containers(pod);
        (names(&containers) == ["first"]).then(|| containers[0].clone())
    };
    let container = scene.worker.wait("the debug container", &ppod, added).await;
    assert_eq!(container["targetContainerName"], "main");
    let shell = &variable(&container, "SHELL")["valueFrom"]["configMapKeyRef"];
    assert_eq!(shell["name"], scene.copy_name("tools"));
    let copy = scene.worker.get(&scene.copy("configmaps", "tools")).await.expect("the copy is there first");
    assert_eq!(copy["data"]["shell"], "sh");
    let node = &variable(&container, "NODE")["valueFrom"]["fieldRef"]["fieldPath"];
    assert_eq!(node, &json!(format!("metadata.annotations['{}']", annotation::VIRTUAL_NODE_NAME)));
    assert_eq!(variable(&container, "KUBERNETES_SERVICE_HOST")["value"], "127.0.0.1");
    let port = stage.binding.computing().port().to_string();
    assert_eq!(variable(&container, "KUBERNETES_SERVICE_PORT")["value"], port);

    // Its state goes up.
    let running = json!({"status": {"ephemeralContainerStatuses": [{
        "name": "first", "image": "example.test/tools", "imageID": "", "ready": false, "restartCount": 0,
        "containerID": "test://first", "state": {"running": {"startedAt": "2026-01-02T03:04:05Z"}},
    }]}});
    scene.worker.merge(&format!("{ppod}/status"), &running).await;
    let reported = |pod: &Value| {
        (pod["status"]["ephemeralContainerStatuses"][0]["state"]["running"]["startedAt"]
            == "2026-01-02T03:04:05Z")
            .then_some(())
    };
    scene.computing.wait("the debug container's state", &vpod, reported).await;

    // One that the worker's administrator adds stays there and stops nothing. One whose ConfigMap is missing is added all
    // the same: it must not hold up the others.
    debug(&scene.worker, &ppod, json!({"name": "theirs", "image": "example.test/tools"})).await;
    let late = json!({"name": "late", "image": "example.test/tools", "envFrom": [{"configMapRef": {"name": "later"}}]});
    debug(&scene.computing, &vpod, late).await;
    let all =
        |pod: &Value| (names(&debug_containers(pod)) == ["first", "theirs", "late"]).then(|| pod.clone());
    let after = scene.worker.wait("all debug containers", &ppod, all).await;
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    let of_vpod = scene.computing.get(&vpod).await.expect("the pod");
    assert_eq!(names(&debug_containers(&of_vpod)), ["first", "late"]);
    scene.create_object("configmaps", "later", json!({"data": {"a": "1"}})).await;
    let arrived = |copy: &Value| (copy["data"]["a"] == "1").then_some(());
    scene.worker.wait("the late ConfigMap", &scene.copy("configmaps", "later"), arrived).await;
    assert_rights(&stage.binding);
}

/// One that the worker's admission refuses, and one whose ConfigMap has a name that is taken there.
#[tokio::test]
async fn a_debug_container_that_cannot_be_started_holds_up_no_other() {
    let stage = Stage::start(BindingSpec::new("debug-refused"), 1).await;
    let scene = stage.scene("debug-refused").await;
    let mount = stage.binding.mount_namespace();
    let level = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}});
    scene.worker.merge(&format!("/api/v1/namespaces/{mount}"), &level).await;
    let theirs = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": scene.copy_name("taken")}, "data": {"a": "1"},
    });
    scene.worker.create(&format!("/api/v1/namespaces/{mount}/configmaps"), &theirs).await;
    scene.run_pod("patient", json!({})).await;
    let (vpod, ppod) = (scene.vpod("patient"), scene.ppod("patient"));
    let image = "example.test/tools";
    let all = json!([
        {"name": "root", "image": image, "securityContext": {"privileged": true}},
        {"name": "reads", "image": image, "envFrom": [{"configMapRef": {"name": "taken"}}]},
        {"name": "first", "image": image},
    ]);
    let path = format!("{vpod}/ephemeralcontainers");
    scene.computing.merge(&path, &json!({"spec": {"ephemeralContainers": all}})).await;
    let has = |wanted: &'static [&'static str]| {
        move |pod: &Value| (names(&debug_containers(pod)) == wanted).then_some(())
    };
    scene.worker.wait("the harmless one", &ppod, has(&["first"])).await;
    debug(&scene.computing, &vpod, json!({"name": "second", "image": image})).await;
    scene.worker.wait("the next harmless one", &ppod, has(&["first", "second"])).await;

    // Each of the others is told of by its name.
    let path = format!(
        "/api/v1/namespaces/{}/events?fieldSelector=involvedObject.name%3Dpatient%2Creason%3DFailedCreatePod",
        scene.namespace
    );
    let told = async || {
        let events = scene.computing.list(&path).await;
        events.iter().map(|event| text(&event["message"]).to_owned()).collect::<Vec<_>>()
    };
    for (container, why) in [("root", "was not accepted"), ("reads", "is taken in the worker cluster")] {
        wait_until(&format!("word about {container}"), DEADLINE, async || {
            let told = told().await;
            let said = told.iter().any(|it| it.contains(&format!("{container:?}")) && it.contains(why));
            if said { Ok(()) } else { Err(told.join("\n")) }
        })
        .await;
    }
    let open = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": null}}});
    scene.worker.merge(&format!("/api/v1/namespaces/{mount}"), &open).await;
    debug(&scene.computing, &vpod, json!({"name": "third", "image": image})).await;
    let permitted = has(&["first", "second", "root", "third"]);
    scene.worker.wait("what is permitted now", &ppod, permitted).await;
}

/// A vnode of the stage and the worker node behind it.
async fn vnode(stage: &Stage) -> (String, String) {
    let vnodes = stage.wait_vnodes().await;
    let metadata = &vnodes[vnodes.len() - 1]["metadata"];
    (text(&metadata["name"]).to_owned(), text(&metadata["labels"][label::PHYSICAL_NODE_NAME]).to_owned())
}

/// How often a scheduler of the worker cluster bound the copy of a pod.
fn times_bound(scene: &Scene<'_>, name: &str, since: AuditMark) -> usize {
    let copy = scene.copy_name(name);
    let events = scene.stage.binding.worker().audit_events_since(since).expect("an audit log");
    let bound = |event: &&kubeocean_harness::AuditEvent| {
        event.object_ref.subresource == "binding" && event.object_ref.name == copy
    };
    events.iter().filter(bound).count()
}

#[tokio::test]
async fn a_pod_may_name_its_vnode_itself() {
    let stage = stage().await;
    let scene = stage.scene("named").await;
    let (vnode, worker_node) = vnode(stage).await;
    let since = stage.binding.worker().audit_mark().expect("an audit log");
    let (vpod, ppod) = scene.run_pod("named", json!({"nodeName": vnode})).await;
    assert_eq!(ppod["spec"]["nodeName"], worker_node.as_str());
    assert_eq!(ppod["metadata"]["annotations"][annotation::VIRTUAL_NODE_NAME], vnode.as_str());
    // No scheduler of the computing cluster saw it; the worker's placed the copy.
    assert_eq!(condition(&vpod, "PodScheduled")["status"], "True");
    assert!(!ppod["spec"]["affinity"].is_null());
    assert_eq!(times_bound(&scene, "named", since), 1);

    // Names that are no vnodes of this binding, one of them almost.
    for (name, node) in [("elsewhere", "some-node"), ("almost", &format!("{vnode}0"))] {
        scene.create_pod(&scene.pod(name, json!({"nodeName": node}))).await;
    }
    scene.barrier("after-named").await;
    for name in ["elsewhere", "almost"] {
        assert!(scene.worker.get(&scene.ppod(name)).await.is_none(), "{name} has a copy");
        let pod = scene.computing.get(&scene.vpod(name)).await.expect("the pod");
        assert!(pod["metadata"]["annotations"].is_null(), "{pod:#}");
    }
    assert_rights(&stage.binding);
}

#[tokio::test]
async fn direct_scheduling_passes_the_workers_scheduler_by() {
    let spec = BindingSpec::new("direct").field("directScheduling", json!(true));
    let stage = Stage::start(spec, 2).await;
    let scene = stage.scene("direct").await;
    let since = stage.binding.worker().audit_mark().expect("an audit log");
    // What a user says about places is about the computing cluster.
    let affinity = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [
        {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"none": "such"}}},
    ]}});
    let (vpod, ppod) = scene.run_pod("direct", json!({"affinity": affinity})).await;
    let path = format!("/api/v1/nodes/{}", text(&vpod["spec"]["nodeName"]));
    let vnode = scene.computing.get(&path).await.expect("the vnode");
    assert_eq!(ppod["spec"]["nodeName"], vnode["metadata"]["labels"][label::PHYSICAL_NODE_NAME]);
    assert!(ppod["spec"]["affinity"].is_null() && ppod["spec"]["nodeSelector"].is_null(), "{ppod:#}");
    assert_eq!(times_bound(&scene, "direct", since), 0);

    // Nobody checked whether it fits, so the kubelet may refuse it; that goes up as it is.
    let message = "Pod was rejected: Node didn't have enough resource: cpu";
    let refused = json!({"status": {"phase": "Failed", "reason": "OutOfcpu", "message": message}});
    scene.worker.merge(&format!("{}/status", scene.ppod("direct")), &refused).await;
    let failed = |pod: &Value| (pod["status"]["phase"] == "Failed").then(|| pod["status"].clone());
    let status = scene.computing.wait("the refusal", &scene.vpod("direct"), failed).await;
    assert_eq!((text(&status["reason"]), text(&status["message"])), ("OutOfcpu", message));
    assert_rights(&stage.binding);
}

/// Waits until a pod is refused, and checks that the condition and the event say the same and that nothing was begun.
async fn check_refused(scene: &Scene<'_>, name: &str, wanted: &str) {
    let refused = |pod: &Value| {
        let created = condition(pod, condition_type::WORKER_POD_CREATED);
        (created["status"] == "False").then(|| (created.clone(), pod.clone()))
    };
    let (created, pod) = scene.computing.wait("the condition", &scene.vpod(name), refused).await;
    assert_eq!((text(&created["reason"]), text(&created["message"])), ("NotSupported", wanted));
    assert_eq!(scene.wait_event(name, "FailedCreatePod").await, wanted);
    assert_eq!(pod["status"]["phase"], "Pending");
    assert!(pod["metadata"]["annotations"][annotation::PHYSICAL_POD_NAME].is_null(), "half-built: {pod:#}");
    assert!(scene.worker.get(&scene.ppod(name)).await.is_none());
}

#[tokio::test]
async fn a_pod_with_a_volume_that_is_not_mapped_is_refused_whole() {
    let stage = stage().await;
    let scene = stage.scene("unmapped").await;
    scene.create_object("configmaps", "settings", json!({"data": {"a": "1"}})).await;
    create_volume(&scene.computing, "unmapped", json!({})).await;
    create_claim(&scene.computing, "unmapped", "data", "unmapped", json!({})).await;

    // All that is not mapped is said at once.
    let (vnode, _) = vnode(stage).await;
    let gluster = json!({"endpoints": "x", "path": "/"});
    let attributes = json!({"secretName": "theirs", "shareName": "x"});
    let spec = json!({"nodeName": vnode, "volumes": [
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "old", "glusterfs": gluster},
        {"name": "older", "glusterfs": gluster},
        {"name": "files", "csi": {"driver": "file.csi.azure.com", "volumeAttributes": attributes}},
    ]});
    scene.create_pod(&scene.pod("p", spec)).await;
    let wanted = "not supported on leased nodes: GlusterFS volume \"old\", GlusterFS volume \"older\", \
                  attribute \"secretName\" of the CSI volume \"files\"";
    check_refused(&scene, "p", wanted).await;

    // What such a pod refers to is left alone, and it goes at once.
    for (kind, name) in [("configmaps", "settings"), (CLAIMS, "data")] {
        let original = scene.computing.get(&scene.object(kind, name)).await.expect("an original");
        assert!(!original["metadata"].to_string().contains("kubeocean.io/"), "{original:#}");
        assert!(scene.worker.get(&scene.copy(kind, name)).await.is_none());
    }
    scene.computing.delete(&scene.vpod("p"), None).await;
    scene.computing.wait_gone(&scene.vpod("p")).await;
    assert_rights(&stage.binding);
}

#[tokio::test]
async fn a_running_pod_is_changed_in_place() {
    let stage = stage().await;
    let scene = stage.scene("in-place").await;
    let (vpod, before) = scene.run_pod("grows", json!({})).await;
    let (path, copy) = (scene.vpod("grows"), scene.ppod("grows"));

    set_image(&scene, "grows", "example.test/image:2").await;
    let mut tolerations = vpod["spec"]["tolerations"].as_array().cloned().expect("tolerations");
    let extra = json!({"key": "example.test/extra", "operator": "Exists", "effect": "NoSchedule"});
    tolerations.push(extra.clone());
    scene.computing.merge(&path, &json!({"spec": {"tolerations": tolerations}})).await;
    let tolerates = |pod: &Value| {
        let all = pod["spec"]["tolerations"].as_array()?;
        (all.contains(&extra) && all.len() > before["spec"]["tolerations"].as_array()?.len()).then_some(())
    };
    scene.worker.wait("the toleration", &copy, tolerates).await;
    report_resources(&scene, "grows").await;
    resize(&scene, "grows", "70m").await;
    let after = wait_cpu(&scene, "grows", "70m").await;
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert_eq!(after["spec"]["containers"][0]["image"], "example.test/image:2");

    // What the worker's people change is not fought, until the pod itself changes.
    let theirs = changed(&after, |main| main["image"] = json!("mirror.test/image:2"));
    scene.worker.merge(&copy, &theirs).await;
    scene.barrier("after-theirs").await;
    let kept = scene.worker.get(&copy).await.expect("the copy");
    assert_eq!(kept["spec"]["containers"][0]["image"], "mirror.test/image:2");
    set_image(&scene, "grows", "example.test/image:3").await;

    // A kubelet's word about a resize is shown while it says it.
    let mut conditions = kept["status"]["conditions"].as_array().cloned().expect("conditions");
    let pending =
        json!({"type": "PodResizePending", "status": "True", "reason": "Deferred", "message": "no room"});
    conditions.push(pending);
    let report = |conditions: Value| json!({"status": {"conditions": conditions}});
    scene.worker.merge(&format!("{copy}/status"), &report(json!(conditions))).await;
    let said = |pod: &Value| (condition(pod, "PodResizePending")["reason"] == "Deferred").then_some(());
    scene.computing.wait("the kubelet's word", &path, said).await;
    conditions.pop();
    scene.worker.merge(&format!("{copy}/status"), &report(json!(conditions))).await;
    let over = |pod: &Value| condition(pod, "PodResizePending").is_null().then_some(());
    scene.computing.wait("the end of it", &path, over).await;
    assert_rights(&stage.binding);
}

#[tokio::test]
async fn without_the_right_to_resize_everything_else_goes_on() {
    let stage = Stage::start(BindingSpec::new("no-resize"), 1).await;
    let scene = stage.scene("no-resize-users").await;
    take_from_role(&stage.binding, "pods/resize").await;

    scene.run_pod("grows", json!({})).await;
    report_resources(&scene, "grows").await;
    resize(&scene, "grows", "70m").await;
    assert!(scene.wait_event("grows", "FeatureDisabled").await.contains("pods/resize"));
    set_image(&scene, "grows", "example.test/image:2").await;
    let copy = scene.worker.get(&scene.ppod("grows")).await.expect("the copy");
    assert_eq!(copy["spec"]["containers"][0]["resources"]["requests"]["cpu"], "10m");
    // Another one that wants it: told on the pod, and nothing is asked again.
    scene.run_pod("wants-too", json!({})).await;
    report_resources(&scene, "wants-too").await;
    resize(&scene, "wants-too", "70m").await;
    scene.wait_event("wants-too", "FeatureDisabled").await;
    let (_, worker) = requests(&stage.binding);
    let asked = worker.iter().filter(|event| event.object_ref.subresource == "resize").count();
    assert_eq!(asked, 1);
    let told = features_off(&scene.computing, "no-resize").await;
    assert_eq!(told.len(), 1, "{told:#?}");
    let log = stage.syncer.log();
    assert!(!log.contains("does not settle"), "{log}");
}

/// A pod that the worker's scheduler finds no place for is given up in time, with the scheduler's words (TD-804).
#[tokio::test]
async fn a_copy_that_finds_no_place_is_given_up_in_time() {
    let stage = Stage::start_with(BindingSpec::new("no-place"), 1, &["--scheduling-timeout=4s"]).await;
    let scene = stage.scene("no-place-users").await;
    let (vnode, _) = vnode(&stage).await;
    let spec = json!({
        "nodeName": vnode,
        "containers": [{"name": "main", "image": "example.test/image", "resources": {"requests": {"cpu": "1000"}}}],
    });
    scene.create_pod(&scene.pod("huge", spec)).await;
    let failed = |pod: &Value| (pod["status"]["phase"] == "Failed").then(|| pod["status"].clone());
    let status = scene.computing.wait("the end", &scene.vpod("huge"), failed).await;
    assert!(text(&status["message"]).contains("Insufficient cpu"), "{status:#}");
    let message = scene.wait_event("huge", "FailedSchedulingPod").await;
    assert!(message.contains("within 4 s") && message.contains("Insufficient cpu"), "{message}");
    scene.worker.wait_gone(&scene.ppod("huge")).await;
    assert_rights(&stage.binding);
}

/// Acceptance check 16: what a worker's API server would refuse or what has no name there, and still runs.
#[tokio::test]
async fn unusual_pods_run() {
    let stage = stage().await;
    let scene = stage.scene("unusual-specs").await;
    let class = json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": "patient"},
        "value": 100, "preemptionPolicy": "Never",
    });
    scene.computing.create("/apis/scheduling.k8s.io/v1/priorityclasses", &class).await;
    let (vpod, ppod) = scene.run_pod("patient", json!({"priorityClassName": "patient"})).await;
    assert_eq!(vpod["spec"]["preemptionPolicy"], "Never");
    assert_eq!(text(&ppod["spec"]["priorityClassName"]), "kubeocean-default");

    // A sidecar is an init container that is restarted; its state goes up beside the others'.
    let sidecar = json!({"initContainers": [
        {"name": "prepare", "image": "example.test/prepare"},
        {"name": "mesh", "image": "example.test/mesh", "restartPolicy": "Always", "env": [
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ]},
    ]});
    let (_, ppod) = scene.run_pod("meshed", sidecar).await;
    let mesh = &ppod["spec"]["initContainers"][1];
    assert_eq!(mesh["restartPolicy"], "Always");
    let from = &variable(mesh, "POD")["valueFrom"]["fieldRef"]["fieldPath"];
    assert_eq!(text(from), format!("metadata.annotations['{}']", annotation::VIRTUAL_POD_NAME));
    let status = json!({"status": {"initContainerStatuses": [
        {"name": "prepare", "image": "example.test/prepare", "imageID": "", "ready": true, "restartCount": 0,
         "state": {"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": null, "finishedAt": null}}},
        {"name": "mesh", "image": "example.test/mesh", "imageID": "", "ready": true, "started": true,
         "restartCount": 3, "state": {"running": {"startedAt": "2026-01-02T03:04:05Z"}}},
    ]}});
    scene.worker.merge(&format!("{}/status", scene.ppod("meshed")), &status).await;
    let shown = |pod: &Value| (pod["status"]["initContainerStatuses"][1]["restartCount"] == 3).then_some(());
    scene.computing.wait("the sidecar's state", &scene.vpod("meshed"), shown).await;

    // A workload whose name is no label value.
    let name = format!("{}.{}", "w".repeat(100), "x".repeat(50));
    let mut owned = scene.pod("owned", json!({}));
    owned["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "batch.example.test/v1", "kind": "TrainingRun", "name": name,
        "uid": "00000000-0000-0000-0000-000000000001",
    }]);
    scene.create_pod(&owned).await;
    // Nobody made that owner, so the pod's own cluster would collect it; its copy is what counts.
    let labels = |pod: &Value| Some(pod["metadata"]["labels"].clone());
    let labels = scene.worker.wait("the copy", &scene.ppod("owned"), labels).await;
    assert_eq!(labels[label::WORKLOAD_TYPE], "trainingrun");
    assert!(text(&labels[label::WORKLOAD_NAME]).len() <= 63, "{labels}");
    assert_rights(&stage.binding);
}

/// The tokens of a pod's volume as the worker's kubelet finds them, and the version of their Secret.
async fn tokens(scene: &Scene<'_>, secret: &str) -> (Vec<String>, Value) {
    let path = core_path(scene.stage.binding.mount_namespace(), "secrets", secret);
    let secret = scene.worker.get(&path).await.expect("the token Secret");
    let decode = |key: &str| {
        let bytes = STANDARD.decode(text(&secret["data"][key])).expect("base64");
        String::from_utf8(bytes).expect("a token")
    };
    (["token", "token-1"].map(decode).to_vec(), secret["metadata"].clone())
}

/// Whether the computing cluster accepts a token for an audience.
async fn is_accepted(scene: &Scene<'_>, token: &str, audiences: Value) -> bool {
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": audiences},
    });
    let review = scene.computing.create("/apis/authentication.k8s.io/v1/tokenreviews", &review).await;
    review["status"]["authenticated"] == true
}

#[tokio::test]
async fn tokens_of_two_audiences_are_valid_and_kept_over_a_restart() {
    let mut stage = Stage::start(BindingSpec::new("audiences"), 1).await;
    let volume = json!({"serviceAccountName": "default", "volumes": [{"name": "t", "projected": {"sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}},
        {"serviceAccountToken": {"path": "vault", "audience": "vault", "expirationSeconds": 3600}},
    ]}}]});
    let scene = stage.scene("audience-users").await;
    let (vpod, _) = scene.run_pod("signs", volume).await;
    let secret = token_secret_name("signs", "t", text(&vpod["metadata"]["uid"]), "audience-users");
    let (first, before) = tokens(&scene, &secret).await;
    assert!(is_accepted(&scene, &first[0], Value::Null).await);
    assert!(is_accepted(&scene, &first[1], json!(["vault"])).await);
    assert!(!is_accepted(&scene, &first[1], Value::Null).await, "each for its own audience");
    drop(scene);

    // A restart finds them, and asks for none.
    let mark = stage.binding.computing().audit_mark().expect("an audit log");
    stage.syncer.kill();
    stage.syncer.restart().expect("a Syncer");
    stage.syncer.wait_ready().await;
    let scene = stage.scene("audience-users").await;
    scene.barrier("after-restart").await;
    assert_eq!(tokens(&scene, &secret).await, (first.clone(), before));
    drop(scene);
    let asked = stage.binding.computing().audit_events_since(mark).expect("an audit log");
    let asked = asked.iter().filter(|event| {
        event.object_ref.subresource == "token" && event.object_ref.namespace == "audience-users"
    });
    assert_eq!(asked.count(), 0);

    // One that finds them about to end renews them before they do.
    stage.syncer.kill();
    let worker = Objects::of(stage.binding.worker()).await;
    let path = core_path(stage.binding.mount_namespace(), "secrets", &secret);
    let ends = json!({"metadata": {"annotations": {annotation::TOKEN_EXPIRATION: "2026-01-02T03:04:05Z"}}});
    worker.merge(&path, &ends).await;
    stage.syncer.restart().expect("a Syncer");
    let renewed = |secret: &Value| {
        let ends = text(&secret["metadata"]["annotations"][annotation::TOKEN_EXPIRATION]);
        (ends > "2026-01-02T03:04:05Z").then_some(())
    };
    worker.wait("new tokens", &path, renewed).await;
    let scene = stage.scene("audience-users").await;
    let (second, _) = tokens(&scene, &secret).await;
    assert_ne!(second, first);
    assert!(is_accepted(&scene, &second[1], json!(["vault"])).await);
    scene.computing.delete(&scene.vpod("signs"), None).await;
    scene.computing.wait_gone(&scene.vpod("signs")).await;
    scene.worker.wait_gone(&path).await;
    assert_rights(&stage.binding);
}

/// Acceptance check 9.
#[tokio::test]
async fn a_token_that_somebody_deletes_comes_back_and_the_last_user_takes_it_along() {
    let stage = stage().await;
    let scene = stage.scene("token-users").await;
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "runner"}});
    scene.computing.create("/api/v1/namespaces/token-users/serviceaccounts", &account).await;
    let spec = json!({"serviceAccountName": "runner", "volumes": [{"name": "t", "projected": {"sources": [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": 600}},
        {"serviceAccountToken": {"path": "vault", "audience": "vault", "expirationSeconds": 600}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
    ]}}]});
    let mut secrets = Vec::new();
    for name in ["one", "two"] {
        let (vpod, ppod) = scene.run_pod(name, spec.clone()).await;
        assert_eq!(
            text(&ppod["spec"]["serviceAccountName"]),
            "default",
            "the worker's own, which has no token here"
        );
        assert_eq!(ppod["spec"]["automountServiceAccountToken"], false);
        let sources = &ppod["spec"]["volumes"][0]["projected"]["sources"];
        let secret = token_secret_name(name, "t", text(&vpod["metadata"]["uid"]), "token-users");
        assert_eq!(text(&sources[0]["secret"]["name"]), secret);
        assert_eq!(text(&sources[2]["configMap"]["name"]), scene.copy_name("kube-root-ca.crt"));
        let authority =
            scene.worker.get(&scene.copy("configmaps", "kube-root-ca.crt")).await.expect("a copy");
        let original =
            scene.computing.get(&scene.object("configmaps", "kube-root-ca.crt")).await.expect("an original");
        assert_eq!(authority["data"], original["data"]);
        secrets.push(secret);
    }
    let path = |secret: &str| core_path(stage.binding.mount_namespace(), "secrets", secret);
    let (first, metadata) = tokens(&scene, &secrets[0]).await;
    assert!(is_accepted(&scene, &first[0], Value::Null).await);
    // Whatever life the API server gave it, it is renewed before that ends.
    let ends: jiff::Timestamp =
        text(&metadata["annotations"][annotation::TOKEN_EXPIRATION]).parse().expect("an end");
    assert!(ends > jiff::Timestamp::now());

    scene.worker.delete(&path(&secrets[0]), None).await;
    let restored = |secret: &Value| (secret["metadata"]["uid"] != metadata["uid"]).then_some(());
    scene.worker.wait("the token to come back", &path(&secrets[0]), restored).await;
    let (second, _) = tokens(&scene, &secrets[0]).await;
    assert!(is_accepted(&scene, &second[0], Value::Null).await);
    assert!(is_accepted(&scene, &second[1], json!(["vault"])).await);

    // Each pod takes its own along, and the authority goes when nobody needs it (here: when its original does).
    scene.computing.delete(&scene.vpod("one"), None).await;
    scene.computing.wait_gone(&scene.vpod("one")).await;
    scene.worker.wait_gone(&path(&secrets[0])).await;
    assert!(is_accepted(&scene, &tokens(&scene, &secrets[1]).await.0[0], Value::Null).await);
    // It was bound to its pod. The API server remembers for some seconds that it accepted a token.
    wait_until("the token to end with its pod", DEADLINE, async || {
        if is_accepted(&scene, &second[0], Value::Null).await { Err("accepted") } else { Ok(()) }
    })
    .await;
    scene.computing.delete(&scene.vpod("two"), None).await;
    scene.computing.wait_gone(&scene.vpod("two")).await;
    scene.worker.wait_gone(&path(&secrets[1])).await;
    let labelled = format!(
        "/api/v1/namespaces/{}/secrets?labelSelector=kubeocean.io%2Fservice-account-token%3Dtrue",
        stage.binding.mount_namespace()
    );
    for secret in scene.worker.list(&labelled).await {
        assert_ne!(
            text(&secret["metadata"]["annotations"][annotation::VIRTUAL_POD_NAMESPACE]),
            "token-users"
        );
    }
    assert_rights(&stage.binding);
}
