//! Static volumes and claims of the computing cluster, bound by its real controllers.

use kubeocean_api::name::phys_name;
use serde_json::{Value, json};

use crate::pods::Objects;

/// Claims as paths name them.
pub const CLAIMS: &str = "persistentvolumeclaims";
/// Access modes of what is made here.
pub const MODES: [&str; 1] = ["ReadWriteMany"];

/// All volumes.
pub const VOLUMES: &str = "/api/v1/persistentvolumes";

/// Path of a volume.
pub fn volume_path(name: &str) -> String {
    format!("{VOLUMES}/{name}")
}

/// Path of its copy in the worker cluster, under the name of TD-301.
pub fn volume_copy(name: &str) -> String {
    volume_path(&phys_name(name, ""))
}

fn object(kind: &str, metadata: &Value, spec: &Value, more: &Value) -> Value {
    let mut object = json!({"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec});
    for (field, value) in more.as_object().into_iter().flatten() {
        object["spec"][field] = value.clone();
    }
    object
}

/// Creates a volume that fits [`create_claim`]; `spec` has more fields, and its source if it is not a host path. The binder
/// has seen it then: a claim that is older waits for the binder's next round.
///
/// # Panics
/// It is refused.
pub async fn create_volume(computing: &Objects, name: &str, spec: Value) {
    let base = json!({
        "capacity": {"storage": "1Gi"}, "accessModes": MODES, "persistentVolumeReclaimPolicy": "Retain",
        "storageClassName": "",
    });
    let mut volume = object("PersistentVolume", &json!({"name": name}), &base, &spec);
    if ["csi", "local", "hostPath"].iter().all(|source| spec.get(source).is_none()) {
        volume["spec"]["hostPath"] = json!({"path": format!("/volumes/{name}")});
    }
    computing.create(VOLUMES, &volume).await;
    let is_seen = |volume: &Value| (volume["status"]["phase"] != "Pending").then_some(());
    computing.wait("the binder to see the volume", &volume_path(name), is_seen).await;
}

/// Creates a claim for a volume that is there and waits until the two are bound: a scheduler that meets the pod of a claim
/// in the moment of its binding may refuse it, and tries again minutes later. `spec` has more fields.
///
/// # Panics
/// It is refused, or not bound.
pub async fn create_claim(computing: &Objects, namespace: &str, name: &str, volume: &str, spec: Value) {
    let path = create_unbound_claim(computing, namespace, name, volume, spec).await;
    let is_bound = |claim: &Value| (claim["status"]["phase"] == "Bound").then_some(());
    computing.wait("the claim to be bound", &path, is_bound).await;
}

/// Creates a claim for a volume that may come later; returns its path. `spec` has more fields.
///
/// # Panics
/// It is refused.
pub async fn create_unbound_claim(
    computing: &Objects,
    namespace: &str,
    name: &str,
    volume: &str,
    spec: Value,
) -> String {
    let base = json!({
        "accessModes": MODES, "storageClassName": "", "volumeName": volume,
        "resources": {"requests": {"storage": "1Gi"}},
    });
    let metadata = json!({"name": name, "namespace": namespace});
    let claim = object("PersistentVolumeClaim", &metadata, &base, &spec);
    let claims = format!("/api/v1/namespaces/{namespace}/{CLAIMS}");
    computing.create(&claims, &claim).await;
    format!("{claims}/{name}")
}

/// Spec of a pod that uses a claim.
pub fn user_of(claim: &str) -> Value {
    json!({"volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}]})
}
