//! What a hostile tenant of the computing cluster may try, and that it reaches nothing: no object of another tenant, none
//! of the worker's own, no token, no room that others need.
//!
//! In: one binding that a victim and the attackers share, a namespace for each. Out: what is stored in the worker cluster,
//! before and after.

use std::collections::BTreeMap;

use kubeocean_api::keys::{annotation, condition_type, label, synced_by};
use kubeocean_api::name::phys_name;
use kubeocean_e2e::pods::{Scene, Stage, condition, core_path, pod_path, text};
use kubeocean_e2e::rights::{assert_rights, requests};
use kubeocean_e2e::volumes::{CLAIMS, MODES, create_claim, create_volume, user_of, volume_copy};
use kubeocean_harness::BindingSpec;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

async fn stage() -> &'static Stage {
    static STAGE: OnceCell<Stage> = OnceCell::const_new();
    STAGE.get_or_init(|| Stage::start(BindingSpec::new("attacked"), 1)).await
}

/// A victim with a pod, its token, a ConfigMap and a Secret.
async fn victim(name: &str) -> Scene<'static> {
    let scene = stage().await.scene(name).await;
    scene.create_object("configmaps", "settings", json!({"data": {"mine": "1"}})).await;
    scene.create_object("secrets", "keys", json!({"stringData": {"mine": "secret"}})).await;
    let spec = json!({
        "automountServiceAccountToken": true,
        "volumes": [
            {"name": "a", "configMap": {"name": "settings"}}, {"name": "b", "secret": {"secretName": "keys"}},
        ],
    });
    scene.run_pod("target", spec).await;
    scene
}

/// What of an object nobody else may change.
fn essence(object: &Value) -> Value {
    let metadata = &object["metadata"];
    json!({
        "uid": metadata["uid"], "labels": metadata["labels"], "annotations": metadata["annotations"],
        "finalizers": metadata["finalizers"], "owners": metadata["ownerReferences"],
        "deleted": metadata["deletionTimestamp"], "spec": object["spec"], "data": object["data"],
    })
}

/// Everything of a victim: its copies in the worker cluster and its own objects.
async fn belongings(victim: &Scene<'_>) -> BTreeMap<String, Value> {
    let mount = victim.stage.binding.mount_namespace();
    let mut all = BTreeMap::new();
    for kind in ["pods", "configmaps", "secrets"] {
        for object in victim.worker.list(&format!("/api/v1/namespaces/{mount}/{kind}")).await {
            let of = |key: &str| text(&object["metadata"]["annotations"][key]).to_owned();
            let owner = [annotation::VIRTUAL_POD_NAMESPACE, annotation::VIRTUAL_NAMESPACE].map(of);
            if owner.contains(&victim.namespace) {
                all.insert(format!("worker {kind} {}", text(&object["metadata"]["name"])), essence(&object));
            }
        }
        for object in victim.computing.list(&format!("/api/v1/namespaces/{}/{kind}", victim.namespace)).await
        {
            let mut own = essence(&object);
            // Rewritten with every report of the victim's own pod.
            own["annotations"][annotation::LAST_SYNC_TIME] = Value::Null;
            all.insert(format!("computing {kind} {}", text(&object["metadata"]["name"])), own);
        }
    }
    assert!(all.len() >= 8, "{:?}", all.keys());
    all
}

/// What the worker cluster itself has in the mount namespace.
async fn of_the_worker(scene: &Scene<'_>) -> BTreeMap<String, Value> {
    let mount = scene.stage.binding.mount_namespace();
    let mut all = BTreeMap::new();
    for kind in ["configmaps", "secrets", "serviceaccounts"] {
        for object in scene.worker.list(&format!("/api/v1/namespaces/{mount}/{kind}")).await {
            if object["metadata"]["labels"][label::MANAGED_BY] != label::MANAGED_BY_VALUE {
                all.insert(format!("{kind} {}", text(&object["metadata"]["name"])), essence(&object));
            }
        }
    }
    assert!(all.contains_key("configmaps kube-root-ca.crt"), "{:?}", all.keys());
    all
}

/// Waits for the condition that says why a pod has no copy.
async fn wait_refused(scene: &Scene<'_>, pod: &str, reason: &str) -> String {
    let refused = |pod: &Value| {
        let created = condition(pod, condition_type::WORKER_POD_CREATED);
        (created["reason"] == reason).then(|| text(&created["message"]).to_owned())
    };
    scene.computing.wait(&format!("{reason} on {pod}"), &scene.vpod(pod), refused).await
}

#[tokio::test]
async fn forged_keys_on_a_pod_name_nobody_elses_copy() {
    let victim = victim("attack-keys-victim").await;
    let attacker = stage().await.scene("attack-keys").await;
    let before = belongings(&victim).await;
    let (target, copy) = victim.wait_running("target").await;
    let mount = attacker.stage.binding.mount_namespace();

    // Every key of ours, with the victim's values, when the pod is made and afterwards.
    let labels = json!({
        label::MANAGED_BY: "attacker", label::CLUSTER_BINDING: "another", label::VIRTUAL_NAMESPACE: victim.namespace,
        label::WORKLOAD_TYPE: "deployment", label::WORKLOAD_NAME: "victims", label::SERVICE_ACCOUNT_TOKEN: "true",
        label::USED_BY_PV: "true", "kubeocean.io/synced-by-attacked": "true",
        label::PHYSICAL_NODE_NAME: "another-node",
    });
    let annotations = json!({
        annotation::PHYSICAL_POD_NAMESPACE: mount, annotation::PHYSICAL_POD_NAME: victim.copy_name("target"),
        annotation::PHYSICAL_POD_UID: copy["metadata"]["uid"],
        annotation::VIRTUAL_POD_NAMESPACE: victim.namespace, annotation::VIRTUAL_POD_NAME: "target",
        annotation::VIRTUAL_POD_UID: target["metadata"]["uid"], annotation::VIRTUAL_NODE_NAME: "vnode-another",
        annotation::EXPECTED_METADATA: copy["metadata"]["annotations"][annotation::EXPECTED_METADATA],
        annotation::EXPECTED_SPEC: "00.00", annotation::COMPUTING_CLUSTER_UID: "another",
        annotation::SERVICE_ACCOUNT: "kubeocean-syncer", annotation::TOKEN_EXPIRATION: "2099-01-01T00:00:00Z",
        annotation::VIRTUAL_NAME: "settings", annotation::VIRTUAL_NAMESPACE: victim.namespace,
        annotation::PHYSICAL_NAME: victim.copy_name("settings"), annotation::PHYSICAL_NAMESPACE: mount,
        "kubeocean.io/deleting-attacked": "attacked",
    });
    let mut forged = attacker.pod("forged", json!({}));
    forged["metadata"]["labels"] = labels.clone();
    forged["metadata"]["annotations"] = annotations.clone();
    attacker.create_pod(&forged).await;
    let (pod, own) = attacker.wait_running("forged").await;
    check_identity(&attacker, &pod, &own);
    let mut metadata = json!({"labels": labels, "annotations": annotations});
    metadata["labels"]["pushed"] = json!("yes");
    attacker.computing.merge(&attacker.vpod("forged"), &json!({"metadata": metadata})).await;
    let pushed = |pod: &Value| (pod["metadata"]["labels"]["pushed"] == "yes").then(|| pod.clone());
    let own = attacker.worker.wait("the harmless label", &attacker.ppod("forged"), pushed).await;
    check_identity(&attacker, &pod, &own);
    attacker.computing.delete(&attacker.vpod("forged"), None).await;
    attacker.computing.wait_gone(&attacker.vpod("forged")).await;
    attacker.worker.wait_gone(&attacker.ppod("forged")).await;
    assert_eq!(belongings(&victim).await, before);
    assert_rights(&attacker.stage.binding);
}

/// A copy says whose it is, whatever its pod says.
fn check_identity(scene: &Scene<'_>, pod: &Value, copy: &Value) {
    let (labels, annotations) = (&copy["metadata"]["labels"], &copy["metadata"]["annotations"]);
    for (key, value) in [
        (label::MANAGED_BY, label::MANAGED_BY_VALUE),
        (label::CLUSTER_BINDING, scene.stage.binding.name()),
        (label::VIRTUAL_NAMESPACE, &scene.namespace),
        (label::WORKLOAD_TYPE, "pod"),
    ] {
        assert_eq!(text(&labels[key]), value, "{key}");
    }
    for key in
        [label::WORKLOAD_NAME, label::SERVICE_ACCOUNT_TOKEN, label::USED_BY_PV, label::PHYSICAL_NODE_NAME]
    {
        assert!(labels[key].is_null(), "{key}: {labels:#}");
    }
    assert_eq!(annotations[annotation::VIRTUAL_POD_NAMESPACE], json!(scene.namespace));
    assert_eq!(annotations[annotation::VIRTUAL_POD_NAME], pod["metadata"]["name"]);
    assert_eq!(annotations[annotation::VIRTUAL_POD_UID], pod["metadata"]["uid"]);
    assert_eq!(annotations[annotation::VIRTUAL_NODE_NAME], pod["spec"]["nodeName"]);
    assert_ne!(annotations[annotation::COMPUTING_CLUSTER_UID], "another");
    assert_ne!(annotations[annotation::EXPECTED_SPEC], "00.00");
    for key in [annotation::VIRTUAL_NAME, annotation::PHYSICAL_NAME, annotation::TOKEN_EXPIRATION] {
        assert!(annotations[key].is_null(), "{key}: {annotations:#}");
    }
}

#[tokio::test]
async fn forged_keys_on_an_object_move_nobody_elses() {
    let victim = victim("attack-objects-victim").await;
    let attacker = stage().await.scene("attack-objects").await;
    let before = belongings(&victim).await;
    let mount = attacker.stage.binding.mount_namespace();
    let metadata = |name: &str| {
        json!({
            "name": name, "namespace": attacker.namespace,
            "labels": {
                label::MANAGED_BY: label::MANAGED_BY_VALUE, "kubeocean.io/synced-by-attacked": "true",
                label::SERVICE_ACCOUNT_TOKEN: "true",
            },
            "annotations": {
                annotation::PHYSICAL_NAME: victim.copy_name(name), annotation::PHYSICAL_NAMESPACE: mount,
                annotation::VIRTUAL_NAME: name, annotation::VIRTUAL_NAMESPACE: victim.namespace,
            },
        })
    };
    for (kind, name, object) in [
        ("configmaps", "settings", json!({"kind": "ConfigMap", "data": {"mine": "stolen"}})),
        ("secrets", "keys", json!({"kind": "Secret", "stringData": {"mine": "stolen"}})),
    ] {
        let mut object = object;
        object["apiVersion"] = json!("v1");
        object["metadata"] = metadata(name);
        attacker
            .computing
            .create(&format!("/api/v1/namespaces/{}/{kind}", attacker.namespace), &object)
            .await;
    }
    let spec = json!({"volumes": [
        {"name": "a", "configMap": {"name": "settings"}}, {"name": "b", "secret": {"secretName": "keys"}},
    ]});
    attacker.run_pod("user", spec).await;
    let own = attacker.worker.get(&attacker.copy("configmaps", "settings")).await.expect("its own copy");
    assert_eq!(text(&own["metadata"]["annotations"][annotation::VIRTUAL_NAMESPACE]), attacker.namespace);
    assert!(own["metadata"]["labels"][label::SERVICE_ACCOUNT_TOKEN].is_null(), "{own:#}");
    attacker.computing.delete(&attacker.vpod("user"), None).await;
    attacker.computing.wait_gone(&attacker.vpod("user")).await;
    for (kind, name) in [("configmaps", "settings"), ("secrets", "keys")] {
        attacker.computing.delete(&attacker.object(kind, name), None).await;
        attacker.computing.wait_gone(&attacker.object(kind, name)).await;
        attacker.worker.wait_gone(&attacker.copy(kind, name)).await;
    }
    assert_eq!(belongings(&victim).await, before);
    assert_rights(&attacker.stage.binding);
}

#[tokio::test]
async fn names_of_copies_name_nothing_in_the_computing_cluster() {
    let victim = victim("attack-names-victim").await;
    let attacker = stage().await.scene("attack-names").await;
    let before = belongings(&victim).await;
    let worker_before = of_the_worker(&attacker).await;
    let mount = attacker.stage.binding.mount_namespace();
    let tokens: Vec<String> = before
        .keys()
        .filter_map(|key| key.strip_prefix("worker secrets "))
        .filter(|name| *name != victim.copy_name("keys"))
        .map(str::to_owned)
        .collect();
    assert_eq!(tokens.len(), 1, "the token of the victim's pod");

    // A Secret of the worker cluster by its name there: the victim's token, its copy, and the Syncer's own credential.
    for (number, secret) in
        [&tokens[0], &victim.copy_name("keys"), "kubeocean-syncer"].into_iter().enumerate()
    {
        let name = format!("reads-{number}");
        let spec = json!({"volumes": [{"name": "v", "secret": {"secretName": secret}}]});
        attacker.create_pod(&attacker.pod(&name, spec)).await;
        assert!(wait_refused(&attacker, &name, "DependencyMissing").await.contains(secret));
        assert!(attacker.worker.get(&attacker.ppod(&name)).await.is_none());
    }
    // The same, optional: the pod runs, and what it mounts is a name of its own.
    let all: Vec<Value> = [tokens[0].as_str(), "kubeocean-syncer"]
        .into_iter()
        .map(|name| json!({"secretRef": {"name": name, "optional": true}}))
        .collect();
    let container = json!({"name": "main", "image": "example.test/image", "envFrom": all});
    let (_, copy) = attacker.run_pod("hopes", json!({"containers": [container]})).await;
    let from = copy["spec"]["containers"][0]["envFrom"].to_string();
    assert!(from.contains(&phys_name("kubeocean-syncer", &attacker.namespace)), "{from}");
    assert!(
        !from.contains(&format!("\"{}\"", tokens[0])) && !from.contains("\"kubeocean-syncer\""),
        "{from}"
    );

    // A pod and a ConfigMap named like the victim's copies, and a ConfigMap named like one that every namespace has.
    let (pod, settings) = (victim.copy_name("target"), victim.copy_name("settings"));
    attacker.create_object("configmaps", &settings, json!({"data": {"mine": "stolen"}})).await;
    let volumes = json!({"volumes": [
        {"name": "a", "configMap": {"name": settings}}, {"name": "b", "configMap": {"name": "kube-root-ca.crt"}},
    ]});
    let (_, copy) = attacker.run_pod(&pod, volumes).await;
    assert_eq!(copy["metadata"]["name"], json!(phys_name(&pod, &attacker.namespace)));
    let root = attacker.copy_name("kube-root-ca.crt");
    assert_eq!(text(&copy["spec"]["volumes"][1]["configMap"]["name"]), root);
    let mapped = attacker.worker.get(&core_path(mount, "configmaps", &root)).await.expect("a copy");
    let theirs =
        attacker.worker.get(&core_path(mount, "configmaps", "kube-root-ca.crt")).await.expect("theirs");
    assert_ne!(mapped["data"], theirs["data"], "each cluster has its own authority");

    // An account of the worker's, as which the Syncer works there.
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "kubeocean-syncer"}});
    let accounts = format!("/api/v1/namespaces/{}/serviceaccounts", attacker.namespace);
    attacker.computing.create(&accounts, &account).await;
    let spec = json!({"serviceAccountName": "kubeocean-syncer", "automountServiceAccountToken": true});
    let (_, copy) = attacker.run_pod("poses", spec).await;
    assert_eq!(text(&copy["spec"]["serviceAccountName"]), "default");
    assert_eq!(copy["spec"]["automountServiceAccountToken"], false);
    assert!(!copy["spec"].to_string().contains("serviceAccountToken\":{"), "{copy:#}");

    assert_eq!(belongings(&victim).await, before);
    assert_eq!(of_the_worker(&attacker).await, worker_before);
    assert_rights(&attacker.stage.binding);
}

/// Which hosts' files a pod may read is the worker's to say, as of its own pods: the Syncer passes `hostPath` on, and the
/// Pod Security level of the mount namespace refuses it.
#[tokio::test]
async fn files_of_a_node_are_as_closed_as_the_worker_closes_them() {
    let mut stage = Stage::start(BindingSpec::new("attacked-host"), 1).await;
    let scene = stage.scene("attack-host").await;
    let mount = stage.binding.mount_namespace();
    let level = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "baseline"}}});
    scene.worker.merge(&format!("/api/v1/namespaces/{mount}"), &level).await;
    let tokens = json!({"volumes": [{"name": "v", "hostPath": {"path": "/var/lib/kubelet/pods"}}]});
    let privileged = json!({"containers": [
        {"name": "main", "image": "example.test/image", "securityContext": {"privileged": true}},
    ]});
    // Behind a claim Pod Security sees no path.
    let on_nodes = json!([{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "Exists"}]}]);
    for (name, source) in [
        ("attack-path", json!({"hostPath": {"path": "/var/lib/kubelet/pods"}})),
        (
            "attack-disk",
            json!({
                "local": {"path": "/"}, "nodeAffinity": {"required": {"nodeSelectorTerms": on_nodes}},
            }),
        ),
    ] {
        create_volume(&scene.computing, name, source).await;
        create_claim(&scene.computing, &scene.namespace, name, name, json!({})).await;
        scene.create_pod(&scene.pod(name, user_of(name))).await;
        let message = wait_refused(&scene, name, "Rejected").await;
        assert!(message.contains("own files") && message.contains("\"baseline\""), "{message}");
        assert!(!message.contains(mount) && !message.contains("kubelet"), "{message}");
        for copy in [scene.ppod(name), scene.copy(CLAIMS, name), volume_copy(name)] {
            assert!(scene.worker.get(&copy).await.is_none(), "{copy}");
        }
    }
    for (name, spec) in [("files", tokens), ("root", privileged), ("processes", json!({"hostPID": true}))] {
        scene.create_pod(&scene.pod(name, spec)).await;
        let message = wait_refused(&scene, name, "Rejected").await;
        assert!(!message.contains(mount) && !message.contains("kubelet"), "{message}");
        assert!(scene.worker.get(&scene.ppod(name)).await.is_none());
    }
    scene.barrier("harmless").await;

    // Storage that is no node's own is not concerned, and an open level lets the rest through.
    let driver = json!({"csi": {"driver": "csi.example.test", "volumeHandle": "h"}});
    create_volume(&scene.computing, "attack-driver", driver).await;
    create_claim(&scene.computing, &scene.namespace, "driver", "attack-driver", json!({})).await;
    scene.run_pod("driver", user_of("driver")).await;
    let open = json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": "privileged"}}});
    scene.worker.merge(&format!("/api/v1/namespaces/{mount}"), &open).await;
    let (_, ran) = scene.wait_running("attack-path").await;

    // Once closed again, the copy that was made meanwhile serves who has it, and nobody new.
    scene.worker.merge(&format!("/api/v1/namespaces/{mount}"), &level).await;
    scene.create_pod(&scene.pod("attack-late", user_of("attack-path"))).await;
    let message = wait_refused(&scene, "attack-late", "Rejected").await;
    assert!(message.contains("\"attack-path\"") && message.contains("own files"), "{message}");
    assert!(scene.worker.get(&scene.ppod("attack-late")).await.is_none());
    let (_, runs) = scene.wait_running("attack-path").await;
    assert_eq!(runs["metadata"]["uid"], ran["metadata"]["uid"], "what runs is left alone");
    // A Syncer that has just begun knows no more of the copy than what it reads.
    drop(scene);
    stage.syncer.kill();
    stage.syncer.restart().expect("a restart");
    let scene = stage.scene("attack-host").await;
    scene.barrier("after-a-restart").await;
    scene.create_pod(&scene.pod("attack-later", user_of("attack-path"))).await;
    wait_refused(&scene, "attack-later", "Rejected").await;
    assert!(scene.worker.get(&scene.ppod("attack-later")).await.is_none());
    scene.worker.merge(&format!("/api/v1/namespaces/{mount}"), &open).await;
    for late in ["attack-late", "attack-later"] {
        scene.wait_running(late).await;
    }
}

#[tokio::test]
async fn owners_and_finalizers_stay_where_they_are() {
    let scene = stage().await.scene("attack-owners").await;
    let victim = victim("attack-owners-victim").await;
    let before = belongings(&victim).await;
    let mut held = scene.pod("held", json!({}));
    held["metadata"]["finalizers"] = json!(["example.test/held"]);
    held["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "v1", "kind": "ConfigMap", "name": "kube-root-ca.crt",
        "uid": scene.computing.get(&scene.object("configmaps", "kube-root-ca.crt")).await.expect("a ConfigMap")
            ["metadata"]["uid"],
        "blockOwnerDeletion": true,
    }]);
    scene.create_pod(&held).await;
    let (_, copy) = scene.wait_running("held").await;
    assert!(
        copy["metadata"]["finalizers"].is_null() && copy["metadata"]["ownerReferences"].is_null(),
        "{copy:#}"
    );

    // The pod is held, its copy and its room on the node are not.
    scene.computing.delete(&scene.vpod("held"), None).await;
    scene.worker.wait_gone(&scene.ppod("held")).await;
    let ended = |pod: &Value| matches!(text(&pod["status"]["phase"]), "Failed" | "Succeeded").then_some(());
    scene.computing.wait("the held pod to end", &scene.vpod("held"), ended).await;
    scene.barrier("beside-held").await;
    assert!(scene.worker.get(&scene.ppod("held")).await.is_none(), "not made again");
    scene.computing.merge(&scene.vpod("held"), &json!({"metadata": {"finalizers": null}})).await;
    scene.computing.wait_gone(&scene.vpod("held")).await;

    // A copy that is held in the worker holds its pod, and only that.
    scene.run_pod("kept", json!({})).await;
    let finalizer = json!({"metadata": {"finalizers": ["example.test/kept"]}});
    scene.worker.merge(&scene.ppod("kept"), &finalizer).await;
    scene.computing.delete(&scene.vpod("kept"), None).await;
    let deleting = |pod: &Value| (!pod["metadata"]["deletionTimestamp"].is_null()).then_some(());
    scene.worker.wait("the copy to be deleted", &scene.ppod("kept"), deleting).await;
    scene.barrier("beside-kept").await;
    assert!(scene.computing.get(&scene.vpod("kept")).await.is_some(), "a pod lives as long as its copy");
    scene.worker.merge(&scene.ppod("kept"), &json!({"metadata": {"finalizers": null}})).await;
    scene.computing.wait_gone(&scene.vpod("kept")).await;
    assert_eq!(belongings(&victim).await, before);
}

/// What an object's annotations may take in all.
const ANNOTATIONS_MAX_BYTES: usize = 256 * 1024;

fn filler(bytes: usize) -> Value {
    json!({"example.test/filler": "x".repeat(bytes)})
}

#[tokio::test]
async fn oversized_annotations_harm_their_own_pod_only() {
    let scene = stage().await.scene("attack-size").await;
    // Too much to be written down twice: the copy has it once, and does not follow.
    let mut large = scene.pod("large", json!({}));
    large["metadata"]["annotations"] = filler(120 * 1024);
    scene.create_pod(&large).await;
    let (_, copy) = scene.wait_running("large").await;
    assert!(copy["metadata"]["annotations"][annotation::EXPECTED_METADATA].is_null());
    assert_eq!(text(&copy["metadata"]["annotations"]["example.test/filler"]).len(), 120 * 1024);

    // Grown while it runs, up to the brim: its state still arrives.
    scene.run_pod("grows", json!({})).await;
    for bytes in [120 * 1024, 200 * 1024, ANNOTATIONS_MAX_BYTES - 700] {
        let annotations = json!({"metadata": {"annotations": filler(bytes)}});
        scene.computing.merge(&scene.vpod("grows"), &annotations).await;
    }
    let copy = scene.worker.get(&scene.ppod("grows")).await.expect("the copy");
    let mut statuses = copy["status"]["containerStatuses"].clone();
    statuses[0]["restartCount"] = json!(7);
    let status = json!({"status": {"containerStatuses": statuses}});
    scene.worker.merge(&format!("{}/status", scene.ppod("grows")), &status).await;
    let shown = |pod: &Value| (pod["status"]["containerStatuses"][0]["restartCount"] == 7).then_some(());
    scene.computing.wait("the state of the full pod", &scene.vpod("grows"), shown).await;

    // No room for our own, in either cluster: it is said, and the pod goes when it is deleted.
    for (name, room) in [("no-room-there", 300), ("no-room-here", 40)] {
        let mut full = scene.pod(name, json!({}));
        full["metadata"]["annotations"] = filler(ANNOTATIONS_MAX_BYTES - room);
        scene.create_pod(&full).await;
        let message = wait_refused(&scene, name, "Rejected").await;
        assert!(message.contains("metadata.annotations"), "{message}");
        assert!(scene.worker.get(&scene.ppod(name)).await.is_none());
        scene.computing.delete(&scene.vpod(name), None).await;
        scene.computing.wait_gone(&scene.vpod(name)).await;
    }
    // Nor on an object that a pod refers to.
    let full = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "full", "annotations": filler(ANNOTATIONS_MAX_BYTES - 60)}, "data": {"k": "v"},
    });
    scene.computing.create(&format!("/api/v1/namespaces/{}/configmaps", scene.namespace), &full).await;
    let spec = json!({"volumes": [{"name": "v", "configMap": {"name": "full"}}]});
    scene.create_pod(&scene.pod("user", spec)).await;
    let message = wait_refused(&scene, "user", "Rejected").await;
    assert!(message.contains("metadata.annotations"), "{message}");
    assert!(scene.worker.get(&scene.copy("configmaps", "full")).await.is_none(), "no copy without a holder");
    scene.barrier("beside-full").await;
    let (computing, _) = requests(&scene.stage.binding);
    let path = scene.object("configmaps", "full");
    let tried = computing.iter().filter(|event| event.is_write() && event.uri.starts_with(&path)).count();
    assert!(tried <= 6, "{tried} attempts at once");
    scene.computing.delete(&scene.vpod("user"), None).await;
    scene.computing.wait_gone(&scene.vpod("user")).await;
    scene.computing.delete(&path, None).await;
    scene.computing.wait_gone(&path).await;
    // Nothing is tried again and again at once.
    scene.barrier("beside-large").await;
    let (_, worker) = requests(&scene.stage.binding);
    let grows = pod_path(scene.stage.binding.mount_namespace(), &scene.copy_name("grows"));
    let writes = worker.iter().filter(|event| event.is_write() && event.uri.starts_with(&grows)).count();
    assert!(writes <= 10, "{writes} writes to one copy");
}

/// The metadata of an object that claims to be everybody's.
fn hostile_metadata(scene: &Scene<'_>, name: &str) -> Value {
    json!({
        "name": name, "namespace": scene.namespace,
        "finalizers": ["example.test/held"],
        "ownerReferences": [{
            "apiVersion": "v1", "kind": "ServiceAccount", "name": "kubeocean-syncer",
            "uid": "00000000-0000-0000-0000-000000000002",
        }],
        "labels": {
            label::CLUSTER_BINDING: "another", "kubeocean.io/synced-by-another": "true", label::USED_BY_PV: "true",
            label::SERVICE_ACCOUNT_TOKEN: "true", "team": "a",
        },
        "annotations": {
            annotation::COMPUTING_CLUSTER_UID: "another", annotation::VIRTUAL_UID: "another",
            annotation::VIRTUAL_NAME: "another", annotation::VIRTUAL_NAMESPACE: "another",
            annotation::VIRTUAL_POD_NAMESPACE: "another", annotation::VIRTUAL_POD_NAME: "another",
            annotation::VIRTUAL_POD_UID: "another", annotation::SERVICE_ACCOUNT: "kubeocean-syncer",
            "kubeocean.io/deleting-another": "another",
        },
    })
}

/// The label of another binding would keep a copy for ever, an owner or finalizer would let the worker's collector take it or
/// hold it, another cluster's stamp would leave it to nobody.
#[tokio::test]
async fn marks_of_others_on_an_object_stay_on_the_object() {
    let scene = stage().await.scene("attack-marks").await;
    let victim = victim("attack-marks-victim").await;
    let before = belongings(&victim).await;
    let claim = json!({
        "accessModes": MODES, "storageClassName": "", "volumeName": "attack-marks",
        "resources": {"requests": {"storage": "1Gi"}},
    });
    create_volume(&scene.computing, "attack-marks", json!({})).await;
    let objects = [
        ("configmaps", "own", json!({"kind": "ConfigMap", "data": {"k": "v"}})),
        ("secrets", "own", json!({"kind": "Secret", "stringData": {"k": "v"}})),
        (CLAIMS, "own", json!({"kind": "PersistentVolumeClaim", "spec": claim})),
    ];
    let mut hostile = hostile_metadata(&scene, "own");
    // The computing cluster's collector would take an object whose owner does not exist.
    let accounts = format!("/api/v1/namespaces/{}/serviceaccounts", scene.namespace);
    let account =
        json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "kubeocean-syncer"}});
    let account = scene.computing.create(&accounts, &account).await;
    hostile["ownerReferences"][0]["uid"] = account["metadata"]["uid"].clone();
    for (kind, _, object) in &objects {
        let mut object = object.clone();
        object["apiVersion"] = json!("v1");
        object["metadata"] = hostile.clone();
        scene.computing.create(&format!("/api/v1/namespaces/{}/{kind}", scene.namespace), &object).await;
    }
    let spec = json!({"volumes": [
        {"name": "a", "configMap": {"name": "own"}}, {"name": "b", "secret": {"secretName": "own"}},
        {"name": "c", "persistentVolumeClaim": {"claimName": "own"}},
    ]});
    scene.run_pod("user", spec).await;
    let (cluster_id, binding) = (scene.stage.binding.cluster_id(), scene.stage.binding.name());
    for (kind, name, _) in &objects {
        let original = scene.computing.get(&scene.object(kind, name)).await.expect("an original");
        let copy = scene.worker.get(&scene.copy(kind, name)).await.expect("a copy");
        let metadata = &copy["metadata"];
        assert!(metadata["ownerReferences"].is_null(), "{copy:#}");
        assert!(!metadata["finalizers"].to_string().contains("example.test/held"), "{copy:#}");
        let labels = json!({
            "team": "a", label::MANAGED_BY: label::MANAGED_BY_VALUE, label::CLUSTER_BINDING: binding,
            synced_by(cluster_id): "true",
        });
        assert_eq!(metadata["labels"], labels, "{kind}");
        for (key, value) in [
            (annotation::VIRTUAL_NAME, json!("own")),
            (annotation::VIRTUAL_NAMESPACE, json!(scene.namespace)),
            (annotation::VIRTUAL_UID, original["metadata"]["uid"].clone()),
        ] {
            assert_eq!(metadata["annotations"][key], value, "{kind} {key}");
        }
        assert_ne!(metadata["annotations"][annotation::COMPUTING_CLUSTER_UID], "another");
        for key in [annotation::VIRTUAL_POD_UID, annotation::SERVICE_ACCOUNT, "kubeocean.io/deleting-another"]
        {
            assert!(metadata["annotations"][key].is_null(), "{kind} {key}");
        }
    }
    // The copies go, also those whose originals somebody holds.
    scene.computing.delete(&scene.vpod("user"), None).await;
    scene.computing.wait_gone(&scene.vpod("user")).await;
    for (kind, name, _) in &objects {
        scene.computing.delete(&scene.object(kind, name), None).await;
        scene.worker.wait_gone(&scene.copy(kind, name)).await;
        scene.computing.merge(&scene.object(kind, name), &json!({"metadata": {"finalizers": null}})).await;
        scene.computing.wait_gone(&scene.object(kind, name)).await;
    }
    assert_eq!(belongings(&victim).await, before);
}

/// Meshes and clusters put ConfigMaps of fixed names in every namespace, and trust what is in them.
#[tokio::test]
async fn a_configmap_named_like_a_systems_is_not_the_systems() {
    let scene = stage().await.scene("attack-system").await;
    let mount = scene.stage.binding.mount_namespace();
    for name in ["istio-ca-root-cert", "linkerd-identity-trust-roots"] {
        let theirs = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"root-cert.pem": "the worker's"},
        });
        scene.worker.create(&format!("/api/v1/namespaces/{mount}/configmaps"), &theirs).await;
        scene.create_object("configmaps", name, json!({"data": {"root-cert.pem": "the attacker's"}})).await;
    }
    let before = of_the_worker(&scene).await;
    // Whoever may write ConfigMaps may also change the one with the cluster's authority, for a moment.
    let forged = json!({"data": {"ca.crt": "the attacker's"}});
    scene.computing.merge(&scene.object("configmaps", "kube-root-ca.crt"), &forged).await;
    let names = ["istio-ca-root-cert", "linkerd-identity-trust-roots", "kube-root-ca.crt"];
    let volumes: Vec<Value> = names
        .iter()
        .enumerate()
        .map(|(number, name)| json!({"name": format!("v{number}"), "configMap": {"name": name}}))
        .collect();
    let (_, copy) = scene.run_pod("user", json!({"volumes": volumes})).await;
    for (number, name) in names.iter().enumerate() {
        let mounted = text(&copy["spec"]["volumes"][number]["configMap"]["name"]);
        assert_eq!(mounted, scene.copy_name(name), "its own, under a name that no system looks for");
    }
    assert_eq!(of_the_worker(&scene).await, before);
    assert_rights(&scene.stage.binding);
}

/// Who is in the namespace may guess how the Secret with a pod's token is called in the worker cluster.
#[tokio::test]
async fn a_secret_that_would_be_a_pods_token_is_nobodys() {
    let victim = victim("attack-token").await;
    let before = belongings(&victim).await;
    let target = victim.computing.get(&victim.vpod("target")).await.expect("the victim's pod");
    let volumes = target["spec"]["volumes"].as_array().expect("volumes");
    let token =
        volumes.iter().map(|volume| text(&volume["name"])).find(|name| name.starts_with("kube-api-access"));
    let name = format!("target-{}-{}", token.expect("a token volume"), text(&target["metadata"]["uid"]));
    let secret = victim.worker.get(&victim.copy("secrets", &name)).await.expect("the token has that name");
    let from = |reference: Value| json!([{"name": "main", "image": "example.test/image", "envFrom": [{"secretRef": reference}]}]);
    let optional = json!({"name": name, "optional": true});
    let sources = json!([{"secret": optional}]);
    let references = [
        ("volume", json!({"volumes": [{"name": "v", "secret": {"secretName": name, "optional": true}}]})),
        ("projected", json!({"volumes": [{"name": "v", "projected": {"sources": sources}}]})),
        ("variables", json!({"containers": from(optional)})),
    ];
    // There is no such Secret in the computing cluster, and these pods say they can do without.
    for (pod, spec) in &references {
        victim.create_pod(&victim.pod(pod, spec.clone())).await;
    }
    victim.run_pod("debugged", json!({})).await;
    let debug = json!({"spec": {"ephemeralContainers": [{
        "name": "reads", "image": "example.test/image", "envFrom": [{"secretRef": {"name": name}}],
    }]}});
    victim.computing.merge(&format!("{}/ephemeralcontainers", victim.vpod("debugged")), &debug).await;
    for (pod, _) in &references {
        let message = wait_refused(&victim, pod, "NameConflict").await;
        assert!(!message.contains(text(&secret["data"]["token"])), "{message}");
        assert!(victim.worker.get(&victim.ppod(pod)).await.is_none(), "{pod}");
    }
    let told = victim.wait_event("debugged", "FailedCreatePod").await;
    assert!(told.contains("is taken in the worker cluster"), "{told}");
    let copy = victim.worker.get(&victim.ppod("debugged")).await.expect("the pod runs on");
    assert!(copy["spec"]["ephemeralContainers"].is_null(), "{copy:#}");
    for pod in ["volume", "projected", "variables", "debugged"] {
        victim.computing.delete(&victim.vpod(pod), None).await;
        victim.computing.wait_gone(&victim.vpod(pod)).await;
    }

    // One that the tenant makes, and that it insists on.
    victim.create_object("secrets", &name, json!({"stringData": {"token": "forged"}})).await;
    let spec = json!({"volumes": [{"name": "v", "secret": {"secretName": name}}]});
    victim.create_pod(&victim.pod("attacker", spec)).await;
    let message = wait_refused(&victim, "attacker", "NameConflict").await;
    assert!(!message.contains(text(&secret["data"]["token"])), "{message}");
    assert!(victim.worker.get(&victim.ppod("attacker")).await.is_none());
    let now = victim.worker.get(&victim.copy("secrets", &name)).await.expect("the token");
    assert_eq!((&now["metadata"]["uid"], &now["data"]), (&secret["metadata"]["uid"], &secret["data"]));
    for (path, it) in [(victim.vpod("attacker"), "pod"), (victim.object("secrets", &name), "secret")] {
        victim.computing.delete(&path, None).await;
        victim.computing.wait_gone(&path).await;
        assert!(victim.worker.get(&victim.copy("secrets", &name)).await.is_some(), "the end of the {it}");
    }
    assert_eq!(belongings(&victim).await, before);
}
