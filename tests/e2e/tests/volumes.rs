//! Claims and their volumes (TD section 10, acceptance checks 7, 8 and 13 of section 20).
//!
//! In: static volumes, bound by the real controllers of both clusters. Out: copies that are bound to each other, follow their
//! originals and go with them; and nothing that belongs to somebody else is touched.

use kubeocean_api::keys::{annotation, label, object_finalizer, synced_by};
use kubeocean_api::name::phys_name;
use kubeocean_e2e::pods::{Objects, Scene, Stage, condition, text};
use kubeocean_e2e::rights::{LimitedAccount, assert_rights};
use kubeocean_e2e::volumes::{
    CLAIMS, MODES, create_claim, create_unbound_claim, create_volume, user_of, volume_copy, volume_path,
};
use kubeocean_harness::{AuditEvent, BindingSpec};
use serde_json::{Value, json};

fn is_bound(object: &Value) -> Option<Value> {
    (object["status"]["phase"] == "Bound").then(|| object.clone())
}

/// Waits until the copies of a claim and its volume are bound to each other; returns both.
async fn wait_bound(scene: &Scene<'_>, claim: &str, volume_copy: &str) -> (Value, Value) {
    let claim = scene.worker.wait("the claim's copy to be bound", &scene.copy(CLAIMS, claim), is_bound).await;
    let to_it = |volume: &Value| {
        let bound = is_bound(volume)?;
        (volume["spec"]["claimRef"]["uid"] == claim["metadata"]["uid"]).then_some(bound)
    };
    let volume = scene.worker.wait("the volume's copy to be bound to it", volume_copy, to_it).await;
    assert_eq!(claim["spec"]["volumeName"], volume["metadata"]["name"]);
    (claim, volume)
}

/// Whether an object of the computing cluster has the marks of this stage's binding.
fn is_claimed(object: &Value, stage: &Stage) -> bool {
    let cluster_id = stage.binding.cluster_id();
    let finalizer = json!(object_finalizer(cluster_id));
    let held = object["metadata"]["finalizers"].as_array().is_some_and(|list| list.contains(&finalizer));
    assert_eq!(held, object["metadata"]["labels"][&synced_by(cluster_id)] == "true", "{object:#}");
    held
}

async fn delete_pod(scene: &Scene<'_>, name: &str) {
    scene.computing.delete(&scene.vpod(name), None).await;
    scene.computing.wait_gone(&scene.vpod(name)).await;
}

#[tokio::test]
async fn a_volume_and_its_drivers_secrets_come_with_the_pod_and_go_with_their_originals() {
    let stage = Stage::start(BindingSpec::new("vol-csi"), 1).await;
    let scene = stage.scene("vol-csi").await;
    for name in ["publish", "stage"] {
        scene.create_object("secrets", name, json!({"stringData": {"k": name}})).await;
    }
    let secret = |name: &str| json!({"name": name, "namespace": scene.namespace});
    let csi = json!({
        "driver": "csi.example.test", "volumeHandle": "handle", "nodePublishSecretRef": secret("publish"),
        "nodeStageSecretRef": secret("stage"),
    });
    create_volume(
        &scene.computing,
        "vol-csi",
        json!({"csi": csi, "persistentVolumeReclaimPolicy": "Delete"}),
    )
    .await;
    create_claim(&scene.computing, &scene.namespace, "data", "vol-csi", json!({})).await;
    let (_, ppod) = scene.run_pod("p", user_of("data")).await;
    assert_eq!(ppod["spec"]["volumes"][0]["persistentVolumeClaim"]["claimName"], *scene.copy_name("data"));

    let (claim, volume) = wait_bound(&scene, "data", &volume_copy("vol-csi")).await;
    assert_eq!(claim["spec"]["storageClassName"], "");
    assert_eq!(claim["metadata"]["annotations"][annotation::VIRTUAL_NAME], "data");
    assert_eq!(volume["spec"]["persistentVolumeReclaimPolicy"], "Retain");
    assert_eq!(volume["spec"]["csi"]["volumeHandle"], "handle");
    assert_eq!(volume["metadata"]["labels"][label::MANAGED_BY], label::MANAGED_BY_VALUE);
    for (name, reference) in [("publish", "nodePublishSecretRef"), ("stage", "nodeStageSecretRef")] {
        let wanted = json!({"name": scene.copy_name(name), "namespace": stage.binding.mount_namespace()});
        assert_eq!(volume["spec"]["csi"][reference], wanted);
        let copy = scene.worker.get(&scene.copy("secrets", name)).await.expect("a copy of the Secret");
        let original = scene.computing.get(&scene.object("secrets", name)).await.expect("the Secret");
        assert_eq!(copy["data"], original["data"]);
        for secret in [&copy, &original] {
            assert_eq!(secret["metadata"]["labels"][label::USED_BY_PV], "true", "{secret:#}");
        }
    }
    let claimed = [
        scene.object(CLAIMS, "data"),
        volume_path("vol-csi"),
        scene.object("secrets", "publish"),
        scene.object("secrets", "stage"),
    ];
    for path in &claimed {
        let original = scene.computing.get(path).await.expect("an original");
        assert!(is_claimed(&original, &stage), "{original:#}");
        assert!(original["metadata"]["annotations"][annotation::PHYSICAL_NAME].is_string(), "{original:#}");
    }

    // Each original takes its copy along: the claim when no pod uses it, the volume when no claim does.
    delete_pod(&scene, "p").await;
    let copies = [
        scene.copy(CLAIMS, "data"),
        volume_copy("vol-csi"),
        scene.copy("secrets", "publish"),
        scene.copy("secrets", "stage"),
    ];
    for (original, copy) in claimed.iter().zip(&copies) {
        scene.computing.delete(original, None).await;
        scene.computing.wait_gone(original).await;
        scene.worker.wait_gone(copy).await;
    }
    assert_rights(&stage.binding);
}

#[tokio::test]
async fn a_syncer_that_starts_knows_whose_volume_is_used() {
    let idle = ["--gc-idle-objects=1s", "--gc-idle-volumes=1s"];
    let mut stage = Stage::start_with(BindingSpec::new("vol-start"), 1, &idle).await;
    {
        let scene = stage.scene("vol-start").await;
        scene.create_object("secrets", "keys", json!({"stringData": {"k": "v"}})).await;
        let csi = json!({
            "driver": "csi.example.test", "volumeHandle": "handle",
            "nodePublishSecretRef": {"name": "keys", "namespace": scene.namespace},
        });
        create_volume(&scene.computing, "vol-start", json!({"csi": csi})).await;
        create_claim(&scene.computing, &scene.namespace, "data", "vol-start", json!({})).await;
        scene.run_pod("p", user_of("data")).await;
        wait_bound(&scene, "data", &volume_copy("vol-start")).await;
    }
    let mark = stage.binding.worker().audit_mark().expect("a mark");
    stage.syncer.kill();
    stage.syncer.restart().expect("a restart");
    let scene = stage.scene("vol-start-after").await;
    scene.create_object("configmaps", "idle", json!({"data": {"k": "v"}})).await;
    let volumes = json!([{"name": "v", "configMap": {"name": "idle"}}]);
    scene.run_pod("q", json!({"volumes": volumes})).await;
    delete_pod(&scene, "q").await;
    // What is idle goes; nothing else did meanwhile.
    scene.worker.wait_gone(&scene.copy("configmaps", "idle")).await;
    let account = format!("system:serviceaccount:{}:kubeocean-syncer", stage.binding.mount_namespace());
    let deletes = |event: &AuditEvent| event.user.username == account && event.verb == "delete";
    let events = stage.binding.worker().audit_events_until(mark, 2, deletes).await.expect("an audit log");
    let deleted: Vec<_> = events.into_iter().map(|event| event.object_ref.resource).collect();
    assert_eq!(deleted, ["pods", "configmaps"]);

    // And what the pod leaves goes to the last, though it was not this Syncer that made it.
    let mut scene = scene;
    scene.namespace = "vol-start".to_owned();
    delete_pod(&scene, "p").await;
    for copy in [scene.copy(CLAIMS, "data"), volume_copy("vol-start"), scene.copy("secrets", "keys")] {
        scene.worker.wait_gone(&copy).await;
    }
    for path in [scene.object(CLAIMS, "data"), volume_path("vol-start"), scene.object("secrets", "keys")] {
        let released = |original: &Value| (!is_claimed(original, &stage)).then_some(());
        scene.computing.wait("the original to be let go", &path, released).await;
    }
    assert_rights(&stage.binding);
}

#[tokio::test]
async fn copies_of_the_original_are_taken_over_in_place() {
    let mut stage = Stage::start(BindingSpec::new("vol-legacy"), 1).await;
    // The original worked before, and ours starts when it has stopped.
    stage.syncer.kill();
    let scene = stage.scene("vol-legacy").await;
    create_volume(&scene.computing, "vol-legacy", json!({})).await;
    create_claim(&scene.computing, &scene.namespace, "data", "vol-legacy", json!({})).await;
    let claim = scene.computing.wait("the claim to be bound", &scene.object(CLAIMS, "data"), is_bound).await;
    let (mount, volume_name) = (stage.binding.mount_namespace(), phys_name("vol-legacy", ""));
    let labels = json!({label::MANAGED_BY: label::MANAGED_BY_VALUE});
    let spec = |fields: Value| {
        let mut spec = json!({"accessModes": MODES});
        for (field, value) in fields.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        spec
    };
    let volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": volume_name, "labels": labels, "annotations": {
            annotation::VIRTUAL_NAME: "vol-legacy", annotation::VIRTUAL_NAMESPACE: "",
        }},
        "spec": spec(json!({
            "capacity": {"storage": "1Gi"}, "hostPath": {"path": "/volumes/vol-legacy"},
            "persistentVolumeReclaimPolicy": "Retain",
        })),
    });
    scene.worker.create("/api/v1/persistentvolumes", &volume).await;
    let copy = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": scene.copy_name("data"), "labels": labels, "annotations": {
            annotation::VIRTUAL_NAME: "data", annotation::VIRTUAL_NAMESPACE: scene.namespace,
            "pv.kubernetes.io/bind-completed": "yes",
        }},
        "spec": spec(json!({"volumeName": volume_name, "resources": {"requests": {"storage": "1Gi"}}})),
    });
    scene.worker.create(&format!("/api/v1/namespaces/{mount}/{CLAIMS}"), &copy).await;
    let cluster_id = stage.binding.cluster_id();
    for path in [scene.object(CLAIMS, "data"), volume_path("vol-legacy")] {
        let marks = json!({"metadata": {"labels": {
            label::MANAGED_BY: label::MANAGED_BY_VALUE, synced_by(cluster_id): "true",
        }}});
        scene.computing.merge(&path, &marks).await;
    }
    let (bound, volume) = wait_bound(&scene, "data", &volume_copy("vol-legacy")).await;

    drop(scene);
    stage.syncer.restart().expect("a Syncer");
    stage.syncer.wait_ready().await;
    let scene = stage.scene("vol-legacy").await;
    scene.run_pod("p", user_of("data")).await;
    let (now, volume_now) = wait_bound(&scene, "data", &volume_copy("vol-legacy")).await;
    assert_eq!(now["metadata"]["uid"], bound["metadata"]["uid"]);
    assert_eq!(volume_now["metadata"]["uid"], volume["metadata"]["uid"]);
    assert_eq!(now["metadata"]["annotations"][annotation::VIRTUAL_UID], claim["metadata"]["uid"]);
    assert_eq!(now["metadata"]["annotations"]["pv.kubernetes.io/bind-completed"], "yes");
    assert!(volume_now["metadata"]["annotations"][annotation::COMPUTING_CLUSTER_UID].is_string());
    assert_rights(&stage.binding);
}

#[tokio::test]
async fn a_pod_waits_until_its_claim_is_bound() {
    let stage = Stage::start(BindingSpec::new("vol-late"), 1).await;
    let scene = stage.scene("vol-late").await;
    create_unbound_claim(&scene.computing, &scene.namespace, "data", "vol-late", json!({})).await;
    // The scheduler would wait as well.
    let vnodes = stage.wait_vnodes().await;
    let mut spec = user_of("data");
    spec["nodeName"] = vnodes[0]["metadata"]["name"].clone();
    scene.create_pod(&scene.pod("p", spec)).await;
    let refused = |pod: &Value| {
        let created = condition(pod, "WorkerPodCreated");
        (created["status"] == "False").then(|| created.clone())
    };
    let created = scene.computing.wait("the condition", &scene.vpod("p"), refused).await;
    assert_eq!(created["reason"], "DependencyMissing", "{created:#}");
    assert!(text(&created["message"]).contains("\"data\" is not bound yet"), "{created:#}");
    assert!(scene.wait_event("p", "FailedCreatePod").await.contains("not bound yet"));
    assert_eq!(scene.worker.get(&scene.ppod("p")).await, None);
    assert_eq!(scene.worker.get(&scene.copy(CLAIMS, "data")).await, None);

    create_volume(&scene.computing, "vol-late", json!({})).await;
    scene.wait_running("p").await;
    wait_bound(&scene, "data", &volume_copy("vol-late")).await;
    assert_rights(&stage.binding);
}

#[tokio::test]
async fn an_ephemeral_volume_is_the_pods_own_claim() {
    let stage = Stage::start(BindingSpec::new("vol-eph"), 1).await;
    let scene = stage.scene("vol-eph").await;
    create_volume(&scene.computing, "vol-eph", json!({})).await;
    let template = json!({"spec": {
        "accessModes": MODES, "storageClassName": "", "volumeName": "vol-eph",
        "resources": {"requests": {"storage": "1Gi"}},
    }});
    let volumes = json!([{"name": "scratch", "ephemeral": {"volumeClaimTemplate": template}}]);
    let (vpod, ppod) = scene.run_pod("p", json!({"volumes": volumes})).await;
    let volume = &ppod["spec"]["volumes"][0];
    assert_eq!(volume.get("ephemeral"), None);
    assert_eq!(volume["persistentVolumeClaim"]["claimName"], *scene.copy_name("p-scratch"));
    wait_bound(&scene, "p-scratch", &volume_copy("vol-eph")).await;

    // A claim of that name that is not the pod's is not mounted; the scheduler would not place the pod either.
    create_volume(&scene.computing, "vol-eph-other", json!({})).await;
    create_claim(&scene.computing, &scene.namespace, "q-scratch", "vol-eph-other", json!({})).await;
    let mut spec = json!({"volumes": volumes});
    spec["nodeName"] = vpod["spec"]["nodeName"].clone();
    scene.create_pod(&scene.pod("q", spec)).await;
    assert!(scene.wait_event("q", "FailedCreatePod").await.contains("not made for this pod"));
    assert_eq!(scene.worker.get(&scene.copy(CLAIMS, "q-scratch")).await, None);

    // The claim is owned by the pod.
    delete_pod(&scene, "p").await;
    scene.computing.wait_gone(&scene.object(CLAIMS, "p-scratch")).await;
    scene.worker.wait_gone(&scene.copy(CLAIMS, "p-scratch")).await;
    assert_rights(&stage.binding);
}

async fn create_class(objects: &Objects, name: &str) {
    let class = json!({
        "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": name},
        "provisioner": "example.test/none", "allowVolumeExpansion": true,
    });
    objects.create("/apis/storage.k8s.io/v1/storageclasses", &class).await;
}

async fn grow(scene: &Scene<'_>, claim: &str, volume: &str) {
    let request = json!({"spec": {"resources": {"requests": {"storage": "2Gi"}}}});
    scene.computing.merge(&scene.object(CLAIMS, claim), &request).await;
    let capacity = json!({"spec": {"capacity": {"storage": "2Gi"}}});
    scene.computing.merge(&volume_path(volume), &capacity).await;
}

#[tokio::test]
async fn a_volume_grows_in_both_clusters() {
    let stage = Stage::start(BindingSpec::new("vol-grow"), 1).await;
    let scene = stage.scene("vol-grow").await;
    let class = json!({"storageClassName": "vol-grow"});
    create_class(&scene.computing, "vol-grow").await;
    create_class(&scene.worker, "vol-grow").await;
    create_volume(&scene.computing, "vol-grow", class.clone()).await;
    create_claim(&scene.computing, &scene.namespace, "data", "vol-grow", class).await;
    scene.run_pod("p", user_of("data")).await;
    let (claim, _) = wait_bound(&scene, "data", &volume_copy("vol-grow")).await;
    assert_eq!(claim["spec"]["storageClassName"], "vol-grow");
    grow(&scene, "data", "vol-grow").await;
    let asks = |claim: &Value| (claim["spec"]["resources"]["requests"]["storage"] == "2Gi").then_some(());
    scene.worker.wait("the request to grow", &scene.copy(CLAIMS, "data"), asks).await;
    let has = |volume: &Value| (volume["spec"]["capacity"]["storage"] == "2Gi").then_some(());
    scene.worker.wait("the volume to grow", &volume_copy("vol-grow"), has).await;
    assert_rights(&stage.binding);
}

#[tokio::test]
async fn a_worker_that_gives_no_more_room_stops_no_pod() {
    let stage = Stage::start(BindingSpec::new("vol-small"), 1).await;
    let scene = stage.scene("vol-small").await;
    // The worker does not know the class, so its admission does not let claims of it grow.
    let class = json!({"storageClassName": "vol-small"});
    create_class(&scene.computing, "vol-small").await;
    create_volume(&scene.computing, "vol-small", class.clone()).await;
    create_claim(&scene.computing, &scene.namespace, "data", "vol-small", class).await;
    scene.run_pod("p", user_of("data")).await;
    wait_bound(&scene, "data", &volume_copy("vol-small")).await;
    grow(&scene, "data", "vol-small").await;
    let message = scene.wait_event("data", "VolumeNotGrown").await;
    assert!(message.contains("storage class"), "{message}");
    scene.run_pod("another", user_of("data")).await;
}

#[tokio::test]
async fn copies_that_are_lost_or_left_over_are_made_anew() {
    let stage = Stage::start(BindingSpec::new("vol-anew"), 1).await;
    let scene = stage.scene("vol-anew").await;
    create_volume(&scene.computing, "vol-anew", json!({})).await;
    create_claim(&scene.computing, &scene.namespace, "data", "vol-anew", json!({})).await;
    scene.run_pod("p", user_of("data")).await;
    let (first, _) = wait_bound(&scene, "data", &volume_copy("vol-anew")).await;

    // Deleted in the worker: it waits for the pod that mounts it, then both are bound again, though the volume had
    // been bound to a claim that is gone.
    scene.worker.delete(&scene.copy(CLAIMS, "data"), None).await;
    delete_pod(&scene, "p").await;
    let is_new = |claim: &Value| (claim["metadata"]["uid"] != first["metadata"]["uid"]).then_some(());
    scene.create_pod(&scene.pod("q", user_of("data"))).await;
    scene.worker.wait("a new copy of the claim", &scene.copy(CLAIMS, "data"), is_new).await;
    scene.wait_running("q").await;
    let (second, volume) = wait_bound(&scene, "data", &volume_copy("vol-anew")).await;

    // Deleted and made again in the computing cluster under the same names: nothing of the old ones is used.
    delete_pod(&scene, "q").await;
    for path in [scene.object(CLAIMS, "data"), volume_path("vol-anew")] {
        scene.computing.delete(&path, None).await;
        scene.computing.wait_gone(&path).await;
    }
    create_volume(&scene.computing, "vol-anew", json!({"hostPath": {"path": "/volumes/other"}})).await;
    create_claim(&scene.computing, &scene.namespace, "data", "vol-anew", json!({})).await;
    scene.run_pod("r", user_of("data")).await;
    let (third, new_volume) = wait_bound(&scene, "data", &volume_copy("vol-anew")).await;
    assert_ne!(third["metadata"]["uid"], second["metadata"]["uid"]);
    assert_ne!(new_volume["metadata"]["uid"], volume["metadata"]["uid"]);
    assert_eq!(new_volume["spec"]["hostPath"]["path"], "/volumes/other");
    assert_rights(&stage.binding);
}

#[tokio::test]
async fn what_somebody_else_has_under_our_names_is_left_alone() {
    let stage = Stage::start(BindingSpec::new("vol-hostile"), 1).await;
    let scene = stage.scene("vol-hostile").await;
    let (name, mount) = (phys_name("vol-hostile", ""), stage.binding.mount_namespace());
    let theirs = json!({
        "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": MODES, "hostPath": {"path": "/theirs"},
            "claimRef": {"namespace": "kube-system", "name": "theirs"},
        },
    });
    scene.worker.create("/api/v1/persistentvolumes", &theirs).await;
    let claims = format!("/api/v1/namespaces/{mount}/{CLAIMS}");
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": scene.copy_name("taken")},
        "spec": {"accessModes": MODES, "storageClassName": "none", "resources": {"requests": {"storage": "1Gi"}}},
    });
    scene.worker.create(&claims, &claim).await;
    let before = async || {
        let volume = scene.worker.get(&volume_path(&name)).await.expect("their volume");
        let claim = scene.worker.get(&scene.copy(CLAIMS, "taken")).await.expect("their claim");
        let parts = |object: Value| (object["metadata"]["labels"].clone(), object["spec"].clone());
        (parts(volume), parts(claim))
    };
    let untouched = before().await;

    // The volume takes its second name.
    create_volume(&scene.computing, "vol-hostile", json!({})).await;
    create_claim(&scene.computing, &scene.namespace, "data", "vol-hostile", json!({})).await;
    scene.run_pod("p", user_of("data")).await;
    wait_bound(&scene, "data", &volume_path(&phys_name("vol-hostile", mount))).await;

    // A claim has but one.
    create_volume(&scene.computing, "vol-taken", json!({})).await;
    create_claim(&scene.computing, &scene.namespace, "taken", "vol-taken", json!({})).await;
    scene.create_pod(&scene.pod("q", user_of("taken"))).await;
    let refused = |pod: &Value| {
        let created = condition(pod, "WorkerPodCreated");
        (created["reason"] == "NameConflict").then_some(())
    };
    scene.computing.wait("the conflict", &scene.vpod("q"), refused).await;
    assert_eq!(scene.worker.get(&scene.ppod("q")).await, None);
    assert_eq!(before().await, untouched);
    assert_rights(&stage.binding);
}

#[tokio::test]
async fn two_bindings_use_one_claim_and_part_from_it_one_by_one() {
    let idle: &[&str] = &["--gc-idle-volumes=1s"];
    let (left, right) = tokio::join!(
        Stage::start_with(BindingSpec::new("vol-left"), 1, idle),
        Stage::start_with(BindingSpec::new("vol-right"), 1, idle),
    );
    let in_left = left.scene("vol-shared").await;
    let in_right = Scene {
        stage: &right,
        computing: in_left.computing.clone(),
        worker: in_left.worker.clone(),
        namespace: in_left.namespace.clone(),
    };
    create_volume(&in_left.computing, "vol-shared", json!({})).await;
    create_claim(&in_left.computing, &in_left.namespace, "data", "vol-shared", json!({})).await;
    let claim = in_left.object(CLAIMS, "data");
    in_left.run_pod("on-left", user_of("data")).await;
    in_right.run_pod("on-right", user_of("data")).await;

    // A volume has one claim, so each mount namespace has a volume of its own.
    let first = volume_copy("vol-shared");
    let second = volume_path(&phys_name("vol-shared", right.binding.mount_namespace()));
    wait_bound(&in_left, "data", &first).await;
    wait_bound(&in_right, "data", &second).await;

    // The left one goes, the right one stays.
    delete_pod(&in_left, "on-left").await;
    in_left.worker.wait_gone(&in_left.copy(CLAIMS, "data")).await;
    in_left.worker.wait_gone(&first).await;
    for path in [&claim, &volume_path("vol-shared")] {
        let released = |object: &Value| (!is_claimed(object, &left)).then(|| object.clone());
        let original = in_left.computing.wait("the left claim to go", path, released).await;
        assert!(is_claimed(&original, &right), "{original:#}");
    }
    wait_bound(&in_right, "data", &second).await;

    // Back again, beside the other one; then the original takes both along.
    in_left.run_pod("on-left-again", user_of("data")).await;
    wait_bound(&in_left, "data", &first).await;
    delete_pod(&in_left, "on-left-again").await;
    delete_pod(&in_right, "on-right").await;
    for path in [&claim, &volume_path("vol-shared")] {
        in_left.computing.delete(path, None).await;
        in_left.computing.wait_gone(path).await;
    }
    for path in [in_left.copy(CLAIMS, "data"), in_right.copy(CLAIMS, "data"), first, second] {
        in_left.worker.wait_gone(&path).await;
    }
    assert_rights(&left.binding);
    assert_rights(&right.binding);
}

/// Both want the volume's first name at the same moment.
#[tokio::test]
async fn two_bindings_that_come_at_once_both_get_their_volumes() {
    let (left, right) = tokio::join!(
        Stage::start(BindingSpec::new("vol-race-left"), 1),
        Stage::start(BindingSpec::new("vol-race-right"), 1),
    );
    let in_left = left.scene("vol-race").await;
    let in_right = Scene {
        stage: &right,
        computing: in_left.computing.clone(),
        worker: in_left.worker.clone(),
        namespace: in_left.namespace.clone(),
    };
    let names: Vec<String> = (0..6).map(|number| format!("vol-race-{number}")).collect();
    for name in &names {
        create_volume(&in_left.computing, name, json!({})).await;
        create_claim(&in_left.computing, &in_left.namespace, name, name, json!({})).await;
        in_left.computing.wait("the claim to be bound", &in_left.object(CLAIMS, name), is_bound).await;
    }
    let pods: Vec<Value> = names
        .iter()
        .flat_map(|name| {
            [("l", &in_left), ("r", &in_right)]
                .map(|(side, scene)| scene.pod(&format!("{name}-{side}"), user_of(name)))
        })
        .collect();
    futures::future::join_all(pods.iter().map(|pod| in_left.create_pod(pod))).await;
    for name in &names {
        let (_, on_left) = in_left.wait_running(&format!("{name}-l")).await;
        let (_, on_right) = in_right.wait_running(&format!("{name}-r")).await;
        assert_ne!(on_left["metadata"]["namespace"], on_right["metadata"]["namespace"]);
        let mut volumes = Vec::new();
        for scene in [&in_left, &in_right] {
            let claim = scene.worker.wait("the copy to be bound", &scene.copy(CLAIMS, name), is_bound).await;
            let volume =
                scene.worker.get(&volume_path(text(&claim["spec"]["volumeName"]))).await.expect("a volume");
            assert_eq!(volume["spec"]["claimRef"]["uid"], claim["metadata"]["uid"]);
            volumes.push(volume["metadata"]["name"].clone());
        }
        assert_ne!(volumes[0], volumes[1]);
    }
    assert_rights(&left.binding);
    assert_rights(&right.binding);
}

/// The copy is made for the first pod, and its affinity can never be changed.
#[tokio::test]
async fn a_volume_of_some_nodes_is_reached_from_all_of_them_whoever_made_its_copy() {
    let left = Stage::start(BindingSpec::new("vol-nodes"), 1).await;
    let shared = BindingSpec::new("vol-nodes-too").mount_namespace(left.binding.mount_namespace());
    let right = Stage::start(shared, 1).await;
    let in_left = left.scene("vol-nodes").await;
    let in_right = Scene {
        stage: &right,
        computing: in_left.computing.clone(),
        worker: in_left.worker.clone(),
        namespace: in_left.namespace.clone(),
    };
    let mut vnodes = Vec::new();
    for stage in [&left, &right] {
        vnodes.extend(stage.wait_vnodes().await.iter().map(|vnode| vnode["metadata"]["name"].clone()));
    }
    let on = json!([{"key": "kubernetes.io/hostname", "operator": "In", "values": vnodes}]);
    let affinity = json!({"required": {"nodeSelectorTerms": [{"matchExpressions": on}]}});
    let spec = json!({"local": {"path": "/volumes/local"}, "nodeAffinity": affinity});
    create_volume(&in_left.computing, "vol-nodes", spec).await;
    create_claim(&in_left.computing, &in_left.namespace, "data", "vol-nodes", json!({})).await;
    in_left.run_pod("first", user_of("data")).await;
    in_right.run_pod("second", user_of("data")).await;
    assert_rights(&left.binding);
}

#[tokio::test]
async fn without_the_right_to_volumes_only_pods_with_volumes_wait_and_are_told() {
    let mut stage = Stage::start(BindingSpec::new("vol-no-right"), 1).await;
    let limited = LimitedAccount::without(&stage.binding, "persistentvolumes").await;
    stage.binding.write_kubeconfig(&limited.kubeconfig).await.expect("a Secret");
    stage.syncer.kill();
    stage.syncer.restart().expect("a Syncer");
    stage.syncer.wait_ready().await;
    let scene = stage.scene("vol-no-right").await;
    create_volume(&scene.computing, "vol-no-right", json!({})).await;
    create_claim(&scene.computing, &scene.namespace, "data", "vol-no-right", json!({})).await;
    scene.create_pod(&scene.pod("with", user_of("data"))).await;
    scene.run_pod("without", json!({})).await;
    let refused = |pod: &Value| {
        let created = condition(pod, "WorkerPodCreated");
        (created["reason"] == "DependencyMissing").then(|| text(&created["message"]).to_owned())
    };
    let message = scene.computing.wait("the condition", &scene.vpod("with"), refused).await;
    assert!(message.contains("may not get persistentvolumes") && message.contains("grant"), "{message}");
    assert!(scene.wait_event("with", "FailedCreatePod").await.contains("persistentvolumes"));
    limited.may_everything().await;
    scene.wait_running("with").await;
}

#[tokio::test]
async fn a_deleted_binding_leaves_no_volume_behind() {
    let stage = Stage::start(BindingSpec::new("vol-end"), 1).await;
    let scene = stage.scene("vol-end").await;
    scene.create_object("secrets", "keys", json!({"stringData": {"k": "v"}})).await;
    let csi = json!({
        "driver": "csi.example.test", "volumeHandle": "handle",
        "nodeStageSecretRef": {"name": "keys", "namespace": scene.namespace},
    });
    create_volume(&scene.computing, "vol-end", json!({"csi": csi})).await;
    create_claim(&scene.computing, &scene.namespace, "data", "vol-end", json!({})).await;
    scene.run_pod("p", user_of("data")).await;
    wait_bound(&scene, "data", &volume_copy("vol-end")).await;

    let binding = "/apis/cloud.tencent.com/v1beta1/clusterbindings/vol-end";
    scene.computing.delete(binding, None).await;
    scene.computing.wait_gone(binding).await;
    for path in [scene.copy(CLAIMS, "data"), volume_copy("vol-end"), scene.copy("secrets", "keys")] {
        scene.worker.wait_gone(&path).await;
    }
    for path in [scene.object(CLAIMS, "data"), volume_path("vol-end"), scene.object("secrets", "keys")] {
        let original = scene.computing.get(&path).await.expect("the original stays");
        assert!(!is_claimed(&original, &stage));
        assert!(!original["metadata"]["annotations"].to_string().contains("kubeocean.io/"), "{original:#}");
        assert!(!original["metadata"]["labels"].to_string().contains("kubeocean.io/"), "{original:#}");
    }
    assert_rights(&stage.binding);
}
