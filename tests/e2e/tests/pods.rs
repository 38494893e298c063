//! Pods on vnodes: what their copies look like, what follows whom, what is refused, and that no tenant reaches another's
//! copy.
//!
//! In: one binding with a Syncer that all tests share, a namespace for each test. Every test ends by looking at all requests
//! of the Syncer so far: none forbidden, each allowed by a role of the charts.

use std::collections::BTreeMap;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kubeocean_api::keys::{
    DEFAULT_PRIORITY, DEFAULT_PRIORITY_CLASS, annotation, condition_type, label, object_finalizer, synced_by,
};
use kubeocean_api::name::token_secret_name;
use kubeocean_e2e::pods::{DEADLINE, Scene, Stage, condition, core_path, pod_path, text};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_harness::{BindingSpec, wait_until};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

async fn stage() -> &'static Stage {
    static STAGE: OnceCell<Stage> = OnceCell::const_new();
    STAGE.get_or_init(|| Stage::start(BindingSpec::new("pods"), 4)).await
}

fn token_volume(vpod: &Value) -> &str {
    let volumes = vpod["spec"]["volumes"].as_array().expect("volumes");
    let names = volumes.iter().map(|volume| text(&volume["name"]));
    names.into_iter().find(|name| name.starts_with("kube-api-access-")).expect("a token volume")
}

fn token_secret_of(vpod: &Value) -> String {
    let metadata = &vpod["metadata"];
    token_secret_name(
        text(&metadata["name"]),
        token_volume(vpod),
        text(&metadata["uid"]),
        text(&metadata["namespace"]),
    )
}

#[tokio::test]
async fn a_copy_is_what_the_specification_says() {
    let stage = stage().await;
    let scene = stage.scene("copy").await;
    let mut pod = scene.pod("web", json!({"automountServiceAccountToken": true}));
    pod["metadata"]["labels"] = json!({"app": "web"});
    pod["metadata"]["annotations"] = json!({"team": "blue"});
    scene.create_pod(&pod).await;
    let (vpod, ppod) = scene.wait_running("web").await;
    let mount = stage.binding.mount_namespace();

    // Place and identity.
    let system = scene.computing.get("/api/v1/namespaces/kube-system").await.expect("kube-system");
    let vnode_path = format!("/api/v1/nodes/{}", text(&vpod["spec"]["nodeName"]));
    let vnode = scene.computing.get(&vnode_path).await.expect("the vnode");
    let worker_node = &vnode["metadata"]["labels"][label::PHYSICAL_NODE_NAME];
    let labels = &ppod["metadata"]["labels"];
    for (key, value) in [
        (label::MANAGED_BY, label::MANAGED_BY_VALUE),
        (label::CLUSTER_BINDING, "pods"),
        (label::VIRTUAL_NAMESPACE, "copy"),
        (label::WORKLOAD_TYPE, "pod"),
        ("app", "web"),
    ] {
        assert_eq!(labels[key], value, "{key}");
    }
    let annotations = &ppod["metadata"]["annotations"];
    for (key, value) in [
        (annotation::VIRTUAL_POD_NAMESPACE, &json!("copy")),
        (annotation::VIRTUAL_POD_NAME, &json!("web")),
        (annotation::VIRTUAL_POD_UID, &vpod["metadata"]["uid"]),
        (annotation::VIRTUAL_NODE_NAME, &vpod["spec"]["nodeName"]),
        (annotation::COMPUTING_CLUSTER_UID, &system["metadata"]["uid"]),
        ("team", &json!("blue")),
    ] {
        assert_eq!(&annotations[key], value, "{key}");
    }
    let expected = STANDARD.decode(text(&annotations[annotation::EXPECTED_METADATA])).expect("base64");
    let expected: Value = serde_json::from_slice(&expected).expect("JSON");
    assert_eq!(expected, json!({"labels": {"app": "web"}, "annotations": {"team": "blue"}}));
    assert!(ppod["metadata"]["ownerReferences"].is_null() && ppod["metadata"]["finalizers"].is_null());
    let mapping = &vpod["metadata"]["annotations"];
    assert_eq!(mapping[annotation::PHYSICAL_POD_NAMESPACE], mount);
    assert_eq!(mapping[annotation::PHYSICAL_POD_NAME], scene.copy_name("web"));
    assert_eq!(mapping[annotation::PHYSICAL_POD_UID], ppod["metadata"]["uid"]);

    // Scheduling.
    let spec = &ppod["spec"];
    let on_node = json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [worker_node]}]},
    ]}}});
    assert_eq!(spec["affinity"], on_node);
    assert_eq!(&spec["nodeName"], worker_node);
    assert!(spec["nodeSelector"].is_null());
    assert_eq!(
        (&spec["priorityClassName"], &spec["priority"]),
        (&json!(DEFAULT_PRIORITY_CLASS), &json!(DEFAULT_PRIORITY))
    );
    let class = format!("/apis/scheduling.k8s.io/v1/priorityclasses/{DEFAULT_PRIORITY_CLASS}");
    let class = scene.worker.get(&class).await.expect("the default class");
    assert_eq!(class["value"], DEFAULT_PRIORITY);
    assert_eq!(class["preemptionPolicy"], "PreemptLowerPriority");
    assert_eq!(class["metadata"]["labels"][label::MANAGED_BY], label::MANAGED_BY_VALUE);
    assert!(!text(&class["description"]).is_empty(), "{class:#}");

    check_identity(&scene, &vpod, &ppod).await;
    check_environment(&scene, spec);

    scene.computing.delete(&scene.vpod("web"), None).await;
    scene.computing.wait_gone(&scene.vpod("web")).await;
    scene.worker.wait_gone(&core_path(mount, "secrets", &token_secret_of(&vpod))).await;
    assert_rights(&stage.binding);
}

/// No identity of the worker cluster; a token of the computing cluster that works there.
async fn check_identity(scene: &Scene<'_>, vpod: &Value, ppod: &Value) {
    let spec = &ppod["spec"];
    let mount = scene.stage.binding.mount_namespace();
    // The worker's admission writes the namespace's default account, and mounts no token of it.
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(
        (&spec["automountServiceAccountToken"], &spec["enableServiceLinks"]),
        (&json!(false), &json!(false))
    );
    let volumes = spec["volumes"].as_array().expect("volumes");
    assert_eq!(volumes.len(), 1, "no volume of the worker's admission: {volumes:?}");
    let sources = volumes[0]["projected"]["sources"].to_string();
    assert!(!sources.contains("serviceAccountToken"), "{sources}");
    let secret_name = token_secret_of(vpod);
    assert!(
        sources.contains(&secret_name) && sources.contains(&scene.copy_name("kube-root-ca.crt")),
        "{sources}"
    );
    let back = format!("metadata.annotations['{}']", annotation::VIRTUAL_POD_NAMESPACE);
    assert!(sources.contains(&back), "{sources}");

    let secret_path = core_path(mount, "secrets", &secret_name);
    let secret = scene.worker.get(&secret_path).await.expect("the token Secret");
    assert_eq!(secret["metadata"]["labels"][label::SERVICE_ACCOUNT_TOKEN], "true");
    assert_eq!(secret["metadata"]["annotations"][annotation::SERVICE_ACCOUNT], "default");
    assert_eq!(secret["type"], "Opaque");
    let token =
        String::from_utf8(STANDARD.decode(text(&secret["data"]["token"])).expect("base64")).expect("a token");
    let review = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token},
    });
    let review = scene.computing.create("/apis/authentication.k8s.io/v1/tokenreviews", &review).await;
    let user = &review["status"]["user"];
    assert_eq!(user["username"], format!("system:serviceaccount:{}:default", scene.namespace));
    assert_eq!(user["extra"]["authentication.kubernetes.io/pod-uid"], json!([vpod["metadata"]["uid"]]));

    let own = scene.computing.get(&scene.object("configmaps", "kube-root-ca.crt")).await.expect("the CA");
    let copy = scene.worker.get(&scene.copy("configmaps", "kube-root-ca.crt")).await.expect("its copy");
    assert_eq!(own["data"], copy["data"]);

    scene.worker.delete(&secret_path, None).await;
    let restored = |found: &Value| (found["metadata"]["uid"] != secret["metadata"]["uid"]).then_some(());
    scene.worker.wait("the token Secret to be restored", &secret_path, restored).await;
}

/// DNS, hosts and variables are the computing cluster's.
fn check_environment(scene: &Scene<'_>, spec: &Value) {
    assert_eq!(spec["dnsPolicy"], "None");
    let dns = json!({
        "nameservers": ["127.0.0.1"],
        "searches": [
            format!("{}.svc.cluster.local", scene.namespace), "svc.cluster.local", "cluster.local",
        ],
        "options": [{"name": "ndots", "value": "5"}],
    });
    assert_eq!(spec["dnsConfig"], dns);
    assert_eq!(spec["hostAliases"][0]["hostnames"].as_array().map(Vec::len), Some(4));
    let env: BTreeMap<_, _> = spec["containers"][0]["env"]
        .as_array()
        .expect("variables")
        .iter()
        .map(|variable| (text(&variable["name"]), text(&variable["value"])))
        .collect();
    let port = scene.stage.binding.computing().port().to_string();
    assert_eq!(env["KUBERNETES_SERVICE_HOST"], "127.0.0.1");
    assert_eq!(env["KUBERNETES_SERVICE_PORT"], port);
    assert_eq!(env["KUBERNETES_PORT"], format!("tcp://127.0.0.1:{port}"));
    assert_eq!(env["HOSTNAME"], "web");
}

/// Acceptance check 2.
#[tokio::test]
async fn a_name_may_be_used_in_every_namespace_and_pods_of_other_nodes_are_not_ours() {
    let stage = stage().await;
    let (one, other) = (stage.scene("same-name").await, stage.scene("same-name-too").await);
    one.create_object("configmaps", "settings", json!({"data": {"k": "one"}})).await;
    other.create_object("configmaps", "settings", json!({"data": {"k": "other"}})).await;
    let spec = json!({"volumes": [{"name": "v", "configMap": {"name": "settings"}}]});
    let ((_, first), (_, second)) =
        tokio::join!(one.run_pod("web", spec.clone()), other.run_pod("web", spec.clone()));
    assert_ne!(first["metadata"]["name"], second["metadata"]["name"]);
    for (scene, copy, content) in [(&one, &first, "one"), (&other, &second, "other")] {
        let mounted = text(&copy["spec"]["volumes"][0]["configMap"]["name"]);
        let path = core_path(stage.binding.mount_namespace(), "configmaps", mounted);
        assert_eq!(scene.worker.get(&path).await.expect("a copy")["data"]["k"], content);
    }

    // Unscheduled, and on a node that nobody leases.
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "foreign"}});
    one.computing.create("/api/v1/nodes", &node).await;
    one.create_pod(&one.pod("foreign", json!({"nodeName": "foreign"}))).await;
    one.create_pod(&one.pod("unscheduled", json!({"schedulerName": "nobody"}))).await;
    one.barrier("beside").await;
    for name in ["foreign", "unscheduled"] {
        assert_eq!(one.worker.get(&one.ppod(name)).await, None);
        let pod = one.computing.get(&one.vpod(name)).await.expect("the user's pod");
        assert!(pod["metadata"]["annotations"][annotation::PHYSICAL_POD_NAME].is_null(), "{pod:#}");
    }
    // The end of one is not the end of the other.
    one.computing.delete(&one.vpod("web"), None).await;
    one.computing.wait_gone(&one.vpod("web")).await;
    let still = other.worker.get(&other.ppod("web")).await.expect("the other's copy");
    assert_eq!(still["metadata"]["uid"], second["metadata"]["uid"]);
    assert!(still["metadata"]["deletionTimestamp"].is_null());
    one.computing.delete("/api/v1/nodes/foreign", None).await;
}

/// A pod spec that refers to ConfigMaps and Secrets in every way.
fn referring_spec() -> Value {
    json!({
        "imagePullSecrets": [{"name": "pull"}],
        "initContainers": [{"name": "init", "image": "example.test/image", "env": [
            {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "a"}}},
        ]}],
        "containers": [{
            "name": "main",
            "image": "example.test/image",
            "env": [
                {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "a"}}},
                {"name": "K", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "k"}}},
            ],
            "envFrom": [
                {"configMapRef": {"name": "more"}},
                {"secretRef": {"name": "keys"}},
                {"configMapRef": {"name": "later", "optional": true}},
            ],
        }],
        "volumes": [
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "keys", "secret": {"secretName": "keys"}},
            {"name": "both", "projected": {"sources": [
                {"configMap": {"name": "more"}},
                {"secret": {"name": "keys"}},
            ]}},
        ],
    })
}

#[tokio::test]
async fn objects_of_a_pod_arrive_and_follow() {
    let stage = stage().await;
    let scene = stage.scene("objects").await;
    scene.create_object("configmaps", "settings", json!({"data": {"a": "1"}})).await;
    scene.create_object("configmaps", "more", json!({"data": {"b": "2"}})).await;
    scene.create_object("secrets", "keys", json!({"stringData": {"k": "secret"}})).await;
    let pull = json!({
        "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": "{\"auths\":{}}"},
    });
    scene.create_object("secrets", "pull", pull).await;
    let (_, ppod) = scene.run_pod("reader", referring_spec()).await;

    let spec = &ppod["spec"];
    let renamed = |name: &str| json!(scene.copy_name(name));
    for (pointer, name) in [
        ("/imagePullSecrets/0/name", "pull"),
        ("/volumes/0/configMap/name", "settings"),
        ("/volumes/1/secret/secretName", "keys"),
        ("/volumes/2/projected/sources/0/configMap/name", "more"),
        ("/volumes/2/projected/sources/1/secret/name", "keys"),
        ("/containers/0/envFrom/0/configMapRef/name", "more"),
        ("/containers/0/envFrom/1/secretRef/name", "keys"),
        ("/containers/0/envFrom/2/configMapRef/name", "later"),
    ] {
        assert_eq!(spec.pointer(pointer), Some(&renamed(name)), "{pointer}");
    }
    for container in [&spec["containers"][0], &spec["initContainers"][0]] {
        let env = container["env"].as_array().expect("variables");
        let a = env.iter().find(|variable| variable["name"] == "A").expect("the user's variable");
        assert_eq!(a["valueFrom"]["configMapKeyRef"]["name"], renamed("settings"));
    }

    let synced = synced_by(stage.binding.cluster_id());
    for (kind, name) in
        [("configmaps", "settings"), ("configmaps", "more"), ("secrets", "keys"), ("secrets", "pull")]
    {
        let own = scene.computing.get(&scene.object(kind, name)).await.expect("an object");
        let copy = scene.worker.get(&scene.copy(kind, name)).await.expect("its copy");
        assert_eq!((&own["data"], &own["type"]), (&copy["data"], &copy["type"]), "{name}");
        assert_eq!(copy["metadata"]["labels"][label::MANAGED_BY], label::MANAGED_BY_VALUE);
        assert_eq!(copy["metadata"]["labels"][&synced], "true");
        let back = &copy["metadata"]["annotations"];
        assert_eq!(back[annotation::VIRTUAL_NAME], name);
        assert_eq!(back[annotation::VIRTUAL_NAMESPACE], "objects");
        assert_eq!(back[annotation::VIRTUAL_UID], own["metadata"]["uid"]);
        let finalizer = json!(object_finalizer(stage.binding.cluster_id()));
        assert!(
            own["metadata"]["finalizers"].as_array().is_some_and(|list| list.contains(&finalizer)),
            "{own}"
        );
    }
    check_updates(&scene).await;
    check_repairs(&scene).await;

    // An optional object that comes later.
    scene.create_object("configmaps", "later", json!({"data": {"c": "3"}})).await;
    let arrived = |copy: &Value| (copy["data"]["c"] == "3").then_some(());
    scene.worker.wait("the late ConfigMap", &scene.copy("configmaps", "later"), arrived).await;

    scene.computing.delete(&scene.vpod("reader"), None).await;
    scene.computing.wait_gone(&scene.vpod("reader")).await;
    for (kind, name) in [("configmaps", "settings"), ("secrets", "keys")] {
        scene.computing.delete(&scene.object(kind, name), None).await;
        scene.computing.wait_gone(&scene.object(kind, name)).await;
        scene.worker.wait_gone(&scene.copy(kind, name)).await;
    }
    assert_rights(&stage.binding);
}

async fn check_updates(scene: &Scene<'_>) {
    let started = Instant::now();
    scene
        .computing
        .merge(&scene.object("configmaps", "settings"), &json!({"data": {"a": "10", "new": "x"}}))
        .await;
    scene.computing.merge(&scene.object("secrets", "keys"), &json!({"stringData": {"k": "changed"}})).await;
    let updated = |copy: &Value| (copy["data"] == json!({"a": "10", "new": "x"})).then_some(());
    scene.worker.wait("the update of a ConfigMap", &scene.copy("configmaps", "settings"), updated).await;
    let changed = STANDARD.encode("changed");
    let updated = |copy: &Value| (copy["data"]["k"] == changed.as_str()).then_some(());
    scene.worker.wait("the update of a Secret", &scene.copy("secrets", "keys"), updated).await;
    println!("updates of a ConfigMap and a Secret arrived after {:?}", started.elapsed());
}

/// What is deleted or edited by hand in the worker cluster is as it was again.
async fn check_repairs(scene: &Scene<'_>) {
    for (kind, name) in [("configmaps", "settings"), ("secrets", "keys"), ("secrets", "pull")] {
        let path = scene.copy(kind, name);
        let before = scene.worker.get(&path).await.expect("a copy");
        scene.worker.delete(&path, None).await;
        let restored = |copy: &Value| {
            (copy["metadata"]["uid"] != before["metadata"]["uid"] && copy["data"] == before["data"])
                .then_some(())
        };
        scene.worker.wait(&format!("the copy of {name} to be restored"), &path, restored).await;
    }
    let path = scene.copy("configmaps", "settings");
    scene.worker.merge(&path, &json!({"data": {"a": "by hand"}})).await;
    let reverted = |copy: &Value| (copy["data"]["a"] == "10").then_some(());
    scene.worker.wait("an edit by hand to be undone", &path, reverted).await;
}

#[tokio::test]
async fn deletion_loss_and_metadata_travel_between_the_clusters() {
    let stage = stage().await;
    let scene = stage.scene("life").await;

    // A deleted pod goes when its copy is gone, a force-deleted one takes its copy along.
    scene.run_pod("deleted", json!({})).await;
    scene.computing.delete(&scene.vpod("deleted"), None).await;
    scene.computing.wait_gone(&scene.vpod("deleted")).await;
    assert!(scene.worker.get(&scene.ppod("deleted")).await.is_none(), "the copy goes first");
    let (old, _) = scene.run_pod("again", json!({})).await;
    scene.computing.delete(&scene.vpod("again"), Some(0)).await;
    scene.create_pod(&scene.pod("again", json!({}))).await;
    let (new, copy) = scene.wait_running("again").await;
    assert_ne!(old["metadata"]["uid"], new["metadata"]["uid"]);
    assert_eq!(copy["metadata"]["annotations"][annotation::VIRTUAL_POD_UID], new["metadata"]["uid"]);
    scene.computing.delete(&scene.vpod("again"), Some(0)).await;
    scene.worker.wait_gone(&scene.ppod("again")).await;

    // A lost copy fails its pod, and is not made again.
    scene.run_pod("lost", json!({})).await;
    scene.worker.delete(&scene.ppod("lost"), Some(0)).await;
    let failed = |pod: &Value| (pod["status"]["phase"] == "Failed").then(|| pod.clone());
    let lost = scene.computing.wait("the pod to fail", &scene.vpod("lost"), failed).await;
    assert_eq!(lost["status"]["reason"], "PhysicalPodLost");
    assert_eq!(condition(&lost, "Ready")["status"], "False");
    scene.wait_event("lost", "PhysicalPodLost").await;

    // A finished pod stays finished when its copy is cleaned up.
    scene.run_pod("done", json!({"restartPolicy": "Never"})).await;
    let finished = json!({"status": {
        "phase": "Succeeded",
        "containerStatuses": [{
            "name": "main", "image": "example.test/image", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"terminated": {"exitCode": 0, "reason": "Completed"}},
        }],
    }});
    scene.worker.merge(&format!("{}/status", scene.ppod("done")), &finished).await;
    let succeeded = |pod: &Value| (pod["status"]["phase"] == "Succeeded").then_some(());
    scene.computing.wait("the pod to succeed", &scene.vpod("done"), succeeded).await;
    scene.worker.delete(&scene.ppod("done"), Some(0)).await;
    scene.worker.wait_gone(&scene.ppod("done")).await;
    scene.barrier("after-loss").await;
    let done = scene.computing.get(&scene.vpod("done")).await.expect("the finished pod");
    assert_eq!(done["status"]["phase"], "Succeeded");
    for name in ["lost", "done"] {
        assert!(scene.worker.get(&scene.ppod(name)).await.is_none(), "the copy of {name} was made again");
    }

    check_metadata(&scene).await;
    assert_rights(&stage.binding);
}

async fn check_metadata(scene: &Scene<'_>) {
    let (_, before) = scene.run_pod("marked", json!({})).await;
    let set = json!({"metadata": {
        "labels": {"one": "1", "empty": ""}, "annotations": {"three": "3", "four": "4"},
    }});
    scene.computing.merge(&scene.vpod("marked"), &set).await;
    let arrived = |pod: &Value| {
        let (labels, annotations) = (&pod["metadata"]["labels"], &pod["metadata"]["annotations"]);
        (labels["one"] == "1"
            && labels["empty"] == ""
            && annotations["three"] == "3"
            && annotations["four"] == "4")
            .then_some(())
    };
    scene.worker.wait("new metadata on the copy", &scene.ppod("marked"), arrived).await;
    let unset = json!({"metadata": {"labels": {"one": null}, "annotations": {"three": null}}});
    scene.computing.merge(&scene.vpod("marked"), &unset).await;
    let gone = |pod: &Value| {
        let (labels, annotations) = (&pod["metadata"]["labels"], &pod["metadata"]["annotations"]);
        (labels["one"].is_null() && annotations["three"].is_null()).then(|| pod.clone())
    };
    let after = scene.worker.wait("removed metadata on the copy", &scene.ppod("marked"), gone).await;
    assert_eq!(after["metadata"]["annotations"]["four"], "4");
    for key in [label::MANAGED_BY, label::CLUSTER_BINDING, label::VIRTUAL_NAMESPACE] {
        assert_eq!(after["metadata"]["labels"][key], before["metadata"]["labels"][key], "{key}");
    }
    for key in [annotation::VIRTUAL_POD_UID, annotation::COMPUTING_CLUSTER_UID] {
        assert_eq!(after["metadata"]["annotations"][key], before["metadata"]["annotations"][key], "{key}");
    }

    let up = json!({"metadata": {"labels": {"from-worker": "a"}, "annotations": {"note": "b"}}});
    scene.worker.merge(&scene.ppod("marked"), &up).await;
    let arrived = |pod: &Value| {
        let metadata = &pod["metadata"];
        (metadata["labels"]["from-worker"] == "a" && metadata["annotations"]["note"] == "b").then_some(())
    };
    scene.computing.wait("the worker's metadata on the pod", &scene.vpod("marked"), arrived).await;
}

#[tokio::test]
async fn what_cannot_be_created_is_said_and_unusual_pods_run() {
    let stage = stage().await;
    let scene = stage.scene("unusual").await;
    let refused = |reason: &'static str| {
        move |pod: &Value| {
            let created = condition(pod, condition_type::WORKER_POD_CREATED);
            (created["status"] == "False" && created["reason"] == reason)
                .then(|| text(&created["message"]).to_owned())
        }
    };

    // A required object is missing, and comes.
    let needs = json!({"volumes": [{"name": "v", "configMap": {"name": "absent"}}]});
    scene.create_pod(&scene.pod("waiting", needs)).await;
    let waiting = scene.vpod("waiting");
    let message = scene.computing.wait("the condition", &waiting, refused("DependencyMissing")).await;
    assert!(message.contains("absent"), "{message}");
    assert!(scene.wait_event("waiting", "FailedCreatePod").await.contains("absent"));
    assert!(scene.worker.get(&scene.ppod("waiting")).await.is_none());
    scene.create_object("configmaps", "absent", json!({"data": {}})).await;
    let created = Instant::now();
    let (vpod, _) = scene.wait_running("waiting").await;
    println!("a pod runs {:?} after its missing ConfigMap came", created.elapsed());
    assert!(condition(&vpod, condition_type::WORKER_POD_CREATED).is_null(), "{vpod}");

    // A readiness gate lives on the pod only.
    let gate = json!({"readinessGates": [{"conditionType": "example.test/ready"}]});
    let (_, ppod) = scene.run_pod("gated", gate).await;
    assert!(ppod["spec"]["readinessGates"].is_null());
    let path = scene.vpod("gated");
    let held =
        |pod: &Value| (condition(pod, "Ready")["reason"] == "ReadinessGatesNotReady").then(|| pod.clone());
    let pod = scene.computing.wait("the gate to hold", &path, held).await;
    let mut conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.push(json!({"type": "example.test/ready", "status": "True"}));
    scene.computing.merge(&format!("{path}/status"), &json!({"status": {"conditions": conditions}})).await;
    let ready = |pod: &Value| (condition(pod, "Ready")["status"] == "True").then_some(());
    scene.computing.wait("the gate to open", &path, ready).await;

    // Dots in the name of a pod, and where a copy's name is cut.
    let dotted = format!("{}.tail", "x".repeat(29));
    scene.create_object("configmaps", &dotted, json!({"data": {"a": "1"}})).await;
    let volume = json!({"volumes": [{"name": "v", "configMap": {"name": dotted}}]});
    let (_, ppod) = scene.run_pod("a.dotted.name", volume).await;
    assert_eq!(ppod["spec"]["hostname"], "a-dotted-name");
    assert!(scene.worker.get(&scene.copy("configmaps", &dotted)).await.is_some());
    assert_rights(&stage.binding);
}

#[tokio::test]
async fn tenants_reach_no_copy_but_their_own() {
    let stage = stage().await;
    let victim = stage.scene("victim").await;
    let attacker = stage.scene("attacker").await;
    let (target, copy) = victim.run_pod("target", json!({})).await;
    let copy_path = victim.ppod("target");
    let mount = stage.binding.mount_namespace();

    // Everything of the mapping and of the back reference says that the attacker's pod is the victim's.
    let mut forged = attacker.pod("forged", json!({}));
    forged["metadata"]["labels"] = json!({label::VIRTUAL_NAMESPACE: "victim"});
    forged["metadata"]["annotations"] = json!({
        annotation::PHYSICAL_POD_NAMESPACE: mount,
        annotation::PHYSICAL_POD_NAME: victim.copy_name("target"),
        annotation::PHYSICAL_POD_UID: copy["metadata"]["uid"],
        annotation::VIRTUAL_POD_NAMESPACE: "victim",
        annotation::VIRTUAL_POD_NAME: "target",
        annotation::VIRTUAL_POD_UID: target["metadata"]["uid"],
    });
    attacker.create_pod(&forged).await;
    let (pod, own) = attacker.wait_running("forged").await;
    assert_ne!(own["metadata"]["uid"], copy["metadata"]["uid"], "the attacker has a copy of its own");
    assert_eq!(own["metadata"]["annotations"][annotation::VIRTUAL_POD_UID], pod["metadata"]["uid"]);
    assert_eq!(own["metadata"]["annotations"][annotation::VIRTUAL_POD_NAMESPACE], "attacker");
    assert_eq!(own["metadata"]["labels"][label::VIRTUAL_NAMESPACE], "attacker");

    // Changed later, with something to push, and deleted.
    let change = json!({"metadata": {"labels": {"pushed": "yes"}, "annotations": {
        annotation::PHYSICAL_POD_NAME: victim.copy_name("target"),
        annotation::PHYSICAL_POD_UID: copy["metadata"]["uid"],
    }}});
    attacker.computing.merge(&attacker.vpod("forged"), &change).await;
    let pushed = |pod: &Value| (pod["metadata"]["labels"]["pushed"] == "yes").then_some(());
    attacker.worker.wait("the label on the own copy", &attacker.ppod("forged"), pushed).await;
    attacker.computing.delete(&attacker.vpod("forged"), None).await;
    attacker.computing.wait_gone(&attacker.vpod("forged")).await;
    attacker.worker.wait_gone(&attacker.ppod("forged")).await;
    let untouched = victim.worker.get(&copy_path).await.expect("the victim's copy");
    assert_eq!(untouched["metadata"], copy["metadata"]);

    check_foreign_pod(&attacker).await;
    assert_rights(&stage.binding);
}

/// Somebody else's pod in the worker cluster that has the name a copy needs.
async fn check_foreign_pod(scene: &Scene<'_>) {
    let mount = scene.stage.binding.mount_namespace();
    for (name, labels) in [
        ("plain", json!({"app": "theirs"})),
        ("stamped", json!({label::MANAGED_BY: label::MANAGED_BY_VALUE, label::CLUSTER_BINDING: "another"})),
    ] {
        // The gate keeps everybody of the worker cluster from writing it.
        let foreign = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": scene.copy_name(name), "namespace": mount, "labels": labels},
            "spec": {
                "schedulingGates": [{"name": "example.test/held"}],
                "containers": [{"name": "theirs", "image": "example.test/image"}],
            },
        });
        let foreign = scene.worker.create(&format!("/api/v1/namespaces/{mount}/pods"), &foreign).await;
        scene.create_pod(&scene.pod(name, json!({}))).await;
        let conflict = |pod: &Value| {
            (condition(pod, condition_type::WORKER_POD_CREATED)["reason"] == "NameConflict").then_some(())
        };
        scene.computing.wait("the condition", &scene.vpod(name), conflict).await;
        scene.wait_event(name, "FailedCreatePod").await;
        scene.computing.delete(&scene.vpod(name), None).await;
        scene.computing.wait_gone(&scene.vpod(name)).await;
        let untouched = scene.worker.get(&pod_path(mount, &scene.copy_name(name))).await.expect("their pod");
        assert_eq!(untouched["metadata"], foreign["metadata"], "{name}");
    }
}

#[tokio::test]
async fn a_pod_waits_for_the_priority_class_its_binding_names() {
    let binding = BindingSpec::new("classes").field("podPriorityClassName", json!("late-class"));
    let stage = Stage::start(binding, 1).await;
    let scene = stage.scene("classes").await;
    scene.create_pod(&scene.pod("waiting", json!({}))).await;
    let missing = |pod: &Value| {
        let created = condition(pod, condition_type::WORKER_POD_CREATED);
        (created["reason"] == "DependencyMissing").then(|| text(&created["message"]).to_owned())
    };
    let message = scene.computing.wait("the condition", &scene.vpod("waiting"), missing).await;
    assert!(message.contains("PriorityClass"), "{message}");
    let class = json!({
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": "late-class"},
        "value": -5,
    });
    scene.worker.create("/apis/scheduling.k8s.io/v1/priorityclasses", &class).await;
    let (_, ppod) = scene.wait_running("waiting").await;
    assert_eq!(ppod["spec"]["priorityClassName"], "late-class");
}

/// Row 5 of TD section 5: the copy is of an earlier pod of the name, and nobody saw that one go.
/// TD section 16: pods and copies come and go while there is no Syncer; the next one finds them so.
#[tokio::test]
async fn what_happens_to_pods_while_nobody_looks_is_made_good() {
    let mut stage = Stage::start(BindingSpec::new("anew"), 1).await;
    let with_token = json!({"automountServiceAccountToken": true});
    let scene = stage.scene("anew-users").await;
    let mut copies = BTreeMap::new();
    for name in ["web", "gone", "neither", "lost", "unmapped"] {
        copies.insert(name, scene.run_pod(name, with_token.clone()).await.1);
    }
    let recorded = |vpod: &Value| vpod["metadata"]["annotations"][annotation::PHYSICAL_POD_UID].is_string();
    for name in copies.keys() {
        let known = |vpod: &Value| recorded(vpod).then_some(());
        scene.computing.wait("a pod that names its copy", &scene.vpod(name), known).await;
    }
    drop(scene);
    stage.syncer.kill();

    let scene = stage.scene("anew-users").await;
    for name in ["web", "gone", "neither"] {
        scene.computing.delete(&scene.vpod(name), Some(0)).await;
        scene.computing.wait_gone(&scene.vpod(name)).await;
    }
    let anew = scene.create_pod(&scene.pod("web", with_token)).await;
    for name in ["neither", "lost"] {
        scene.worker.delete(&scene.ppod(name), Some(0)).await;
        scene.worker.wait_gone(&scene.ppod(name)).await;
    }
    let names =
        [annotation::PHYSICAL_POD_NAMESPACE, annotation::PHYSICAL_POD_NAME, annotation::PHYSICAL_POD_UID];
    let nothing: Value = names.iter().map(|name| ((*name).to_owned(), Value::Null)).collect();
    let unmapped = json!({"metadata": {"annotations": nothing}});
    let before = scene.computing.merge(&scene.vpod("unmapped"), &unmapped).await;
    assert!(!recorded(&before));
    for name in ["web", "gone", "unmapped"] {
        let kept = scene.worker.get(&scene.ppod(name)).await.expect("nobody has taken the copy away");
        assert_eq!(kept["metadata"]["uid"], copies[name]["metadata"]["uid"]);
    }
    drop(scene);
    stage.syncer.restart().expect("a restart");
    stage.syncer.wait_ready().await;

    let scene = stage.scene("anew-users").await;
    let (vpod, ppod) = scene.wait_running("web").await;
    assert_eq!(vpod["metadata"]["uid"], anew["metadata"]["uid"]);
    assert_eq!(ppod["metadata"]["annotations"][annotation::VIRTUAL_POD_UID], anew["metadata"]["uid"]);
    assert_ne!(ppod["metadata"]["uid"], copies["web"]["metadata"]["uid"]);
    assert_eq!(vpod["metadata"]["annotations"][annotation::PHYSICAL_POD_UID], ppod["metadata"]["uid"]);

    scene.worker.wait_gone(&scene.ppod("gone")).await;
    let failed = |vpod: &Value| (vpod["status"]["phase"] == "Failed").then(|| vpod.clone());
    let lost = scene.computing.wait("a pod that has lost its copy", &scene.vpod("lost"), failed).await;
    assert_eq!(lost["status"]["reason"], "PhysicalPodLost");
    let again = |vpod: &Value| recorded(vpod).then(|| vpod.clone());
    let adopted = scene.computing.wait("the copy to be known again", &scene.vpod("unmapped"), again).await;
    let ppod = scene.worker.get(&scene.ppod("unmapped")).await.expect("its copy");
    assert_eq!(ppod["metadata"]["uid"], copies["unmapped"]["metadata"]["uid"], "it is the same copy");
    for (name, is) in names.into_iter().zip(["namespace", "name", "uid"]) {
        assert_eq!(adopted["metadata"]["annotations"][name], ppod["metadata"][is], "{name}");
    }

    assert!(scene.worker.get(&scene.ppod("lost")).await.is_none(), "a lost copy is not made again");

    // The tokens of those that are gone go with them.
    scene.computing.delete(&scene.vpod("lost"), Some(0)).await;
    let tokens = async || {
        let tokens = scene.copies("secrets").await;
        let of =
            |token: &Value| text(&token["metadata"]["annotations"][annotation::VIRTUAL_POD_UID]).to_owned();
        tokens.iter().map(of).collect::<std::collections::BTreeSet<_>>()
    };
    let mine = [&anew, &adopted].map(|vpod| text(&vpod["metadata"]["uid"]).to_owned()).into();
    wait_until("the earlier tokens to go", DEADLINE, async || {
        let tokens = tokens().await;
        if tokens == mine { Ok(()) } else { Err(format!("{tokens:?} instead of {mine:?}")) }
    })
    .await;
    assert_rights(&stage.binding);
}
