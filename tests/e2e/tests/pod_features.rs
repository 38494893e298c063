//! What few pods ask for: debug containers, a node by name, a volume claim.
//!
//! In: one binding that all tests but one share, a namespace for each test. Out: the copy, or the condition and the event
//! that say why there is none.

use kubeocean_api::keys::{annotation, condition_type, label};
use kubeocean_e2e::pods::{Scene, Stage, condition, text};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_e2e::volumes::{CLAIMS, create_claim, create_volume};
use kubeocean_harness::{AuditMark, BindingSpec};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

async fn stage() -> &'static Stage {
    static STAGE: OnceCell<Stage> = OnceCell::const_new();
    STAGE.get_or_init(|| Stage::start(BindingSpec::new("features"), 2)).await
}

/// The debug containers of a pod.
fn debug_containers(pod: &Value) -> Vec<Value> {
    pod["spec"]["ephemeralContainers"].as_array().cloned().unwrap_or_default()
}

fn names(containers: &[Value]) -> Vec<&str> {
    containers.iter().map(|container| text(&container["name"])).collect()
}

fn variable<'a>(container: &'a Value, name: &str) -> &'a Value {
    let env = container["env"].as_array().expect("variables");
    env.iter().find(|variable| variable["name"] == name).unwrap_or(&Value::Null)
}

/// Adds a debug container to a pod of either cluster, as `kubectl debug` does.
async fn debug(objects: &kubeocean_e2e::pods::Objects, path: &str, container: Value) {
    let mut all = debug_containers(&objects.get(path).await.expect("the pod"));
    all.push(container);
    objects
        .merge(&format!("{path}/ephemeralcontainers"), &json!({"spec": {"ephemeralContainers": all}}))
        .await;
}

#[tokio::test]
async fn debug_containers_are_added_to_the_copy() {
    let stage = stage().await;
    let scene = stage.scene("debug").await;
    scene.create_object("configmaps", "tools", json!({"data": {"shell": "sh"}})).await;
    let (_, before) = scene.run_pod("patient", json!({})).await;
    let (vpod, ppod) = (scene.vpod("patient"), scene.ppod("patient"));

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
    let spec = json!({"nodeName": vnode, "volumes": [
        {"name": "data", "persistentVolumeClaim": {"claimName": "data"}},
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "old", "glusterfs": gluster},
        {"name": "older", "glusterfs": gluster},
    ]});
    scene.create_pod(&scene.pod("p", spec)).await;
    let wanted = "not supported on leased nodes: GlusterFS volume \"old\", GlusterFS volume \"older\"";
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
