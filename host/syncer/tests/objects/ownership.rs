//! Whose something is that a watch has not shown yet, or that changed since it was read (TD-1103).

use std::sync::{Arc, atomic::Ordering};

use kubeocean_api::{
    keys::{annotation, label},
    name::{ObjectKey, phys_name},
};
use kubeocean_harness::AuditEvent;
use kubeocean_runtime::{
    clock::SystemClock,
    error::ApplyError,
    request::{Deletion, create_json, delete_unchanged, get_json, merge_patch, paths},
};
use kubeocean_syncer::{
    config::CLUSTER_DOMAIN,
    objects::{EnsureError, ObjectKind, ObjectStore},
    pods::references::references,
};
use serde_json::{Value, json};

use super::{World, config_map_volume, pod_with_token, uid};

/// As the original of another computing cluster makes it, where namespaces and objects have the same names.
#[tokio::test]
async fn an_unstamped_copy_that_no_watch_has_shown_is_judged_before_its_object_is_marked() {
    let world = World::new("unseen", None).await;
    world.create(ObjectKind::ConfigMap, "settings", json!({"data": {"a": "1"}})).await;
    let theirs = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": {"theirs": "1"},
        "metadata": {
            "name": phys_name("settings", &world.namespace),
            "labels": {label::MANAGED_BY: label::MANAGED_BY_VALUE},
            "annotations": {
                annotation::VIRTUAL_NAME: "settings", annotation::VIRTUAL_NAMESPACE: world.namespace,
            },
        },
    });
    let mount = &world.clusters.scope.mount_namespace;
    create_json(&world.clusters.worker, &paths::core_all("configmaps", mount), &theirs).await.unwrap();

    let unseeing = ObjectStore::new(Arc::new(SystemClock), CLUSTER_DOMAIN);
    let pod = ObjectKey::new(world.namespace.as_str(), "web");
    let needed = references("web", &config_map_volume("settings"));
    for time in ["first", "second"] {
        let error = unseeing.ensure(&world.clusters, &needed, &pod).await.unwrap_err();
        assert!(matches!(error, EnsureError::Foreign { .. }), "the {time} time: {error}");
        let original = world.original(ObjectKind::ConfigMap, "settings").await.unwrap();
        for member in ["labels", "annotations", "finalizers"] {
            assert_eq!(original["metadata"].get(member), None, "no mark that would be a proof");
        }
    }
    let copy = world.copy(ObjectKind::ConfigMap, "settings").await.unwrap();
    assert_eq!((&copy["data"], copy["metadata"]["labels"].as_object().unwrap().len()), (&theirs["data"], 1));
}

/// Another binding may have joined a copy since we saw that nobody uses it.
#[tokio::test]
async fn what_changed_since_it_was_read_is_not_deleted() {
    let world = World::new("versions", None).await;
    world.create(ObjectKind::ConfigMap, "settings", json!({"data": {"a": "1"}})).await;
    let path = world.original_path(ObjectKind::ConfigMap, "settings");
    let before = world.original(ObjectKind::ConfigMap, "settings").await.unwrap();
    let now = merge_patch(&world.clusters.computing, &path, &json!({"data": {"b": "2"}})).await.unwrap();
    let delete = async |read: &Value| {
        let version = read["metadata"]["resourceVersion"].as_str().unwrap();
        delete_unchanged(&world.clusters.computing, &path, uid(read), version).await
    };
    let refused = delete(&before).await;
    assert!(matches!(refused, Err(ApplyError::Conflict { .. })), "{refused:?}");
    assert_eq!(delete(&now).await.unwrap(), Deletion::Gone);
    assert_eq!(delete(&now).await.unwrap(), Deletion::Gone, "it is gone already");
}

/// The original marks its Secrets with their pod only.
#[tokio::test]
async fn the_unstamped_token_of_a_pod_on_a_vnode_of_another_binding_is_left_alone() {
    let world = World::new("begins-alike", None).await;
    world.directory.elsewhere.store(true, Ordering::Relaxed);
    world.directory.uncopied.store(true, Ordering::Relaxed);
    let vpod = pod_with_token(&world).await;
    let mark = world.fleet.computing.audit_mark().unwrap();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "stringData": {"token": "of the original"},
        "metadata": {
            "name": "token",
            "labels": {label::MANAGED_BY: label::MANAGED_BY_VALUE, label::SERVICE_ACCOUNT_TOKEN: "true"},
            "annotations": {
                annotation::VIRTUAL_POD_NAMESPACE: world.namespace, annotation::VIRTUAL_POD_NAME: "web",
                annotation::VIRTUAL_POD_UID: uid(&vpod),
            },
        },
    });
    let mount = &world.clusters.scope.mount_namespace;
    create_json(&world.clusters.worker, &paths::core_all("secrets", mount), &secret).await.unwrap();

    // Nothing else makes anybody ask for the pod than the question whose the Secret is.
    let pod = paths::pod(&world.namespace, "web");
    let about_it = |event: &AuditEvent| {
        let asks_for_token =
            event.object_ref.subresource == "token" && event.object_ref.namespace == world.namespace;
        event.uri == pod || asks_for_token
    };
    let asked = world.fleet.computing.audit_events_until(mark, 1, about_it).await.unwrap();
    let verbs: Vec<&str> = asked.iter().map(|event| event.verb.as_str()).collect();
    assert_eq!(verbs, ["get"], "it is read, and no token is requested");
    let path = paths::core("secrets", mount, "token");
    let kept = get_json(&world.clusters.worker, &path).await.unwrap().expect("a Secret");
    assert_eq!(kept["metadata"]["labels"].get(label::CLUSTER_BINDING), None);
}
