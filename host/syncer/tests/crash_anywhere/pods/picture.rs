//! What both clusters show of the pods of one binding, without what differs between two runs: names, UIDs, versions, times.

use kubeocean_api::{
    keys::{annotation, label},
    name::phys_name,
};
use kubeocean_runtime::request::paths;
use serde_json::{Value, json};

use crate::{
    lease::picture::texts,
    life::{Place, get, list},
};

/// Pods of the story.
const PODS: [&str; 2] = ["lost", "web"];
/// What they refer to, by kind; the volume has the name of the place.
const OBJECTS: [(&str, &str); 4] = [
    ("configmaps", "kube-root-ca.crt"),
    ("configmaps", "settings"),
    ("persistentvolumeclaims", "data"),
    ("secrets", "password"),
];

pub(super) async fn picture(place: &Place) -> Value {
    let (computing, worker) = (&place.computing, &place.worker);
    let mut shown = json!({});
    for name in PODS {
        let vpod = get(computing, &paths::pod(&place.namespace, name)).await;
        let ppod = get(worker, &paths::pod(&place.mount, &phys_name(name, &place.namespace))).await;
        shown[name] = json!({"vpod": pod(&vpod), "ppod": pod(&ppod), "paired": paired(&vpod, &ppod)});
    }
    for (kind, name) in OBJECTS {
        let original = get(computing, &paths::core(kind, &place.namespace, name)).await;
        let copy = get(worker, &paths::core(kind, &place.mount, &phys_name(name, &place.namespace))).await;
        shown[format!("{kind}/{name}")] = pair(&original, &copy);
    }
    let volume = |name: &str| paths::cluster_core("persistentvolumes", name);
    let original = get(computing, &volume(&place.name)).await;
    let copy = get(worker, &volume(&phys_name(&place.name, ""))).await;
    shown["volume"] = pair(&original, &copy);

    let secrets = list(worker, &paths::core_all("secrets", &place.mount)).await;
    let of_token = |secret: &&Value| secret["metadata"]["labels"][label::SERVICE_ACCOUNT_TOKEN] == "true";
    let owner = |secret: &Value| secret["metadata"]["annotations"][annotation::VIRTUAL_POD_NAME].clone();
    shown["tokens"] = secrets.iter().filter(of_token).map(owner).collect();
    let pods = list(worker, &paths::pods(&place.mount)).await;
    shown["copies of pods"] = pods.len().into();
    let events = list(computing, &paths::events(&place.namespace)).await;
    let said = events.iter().filter(|event| event["reason"] == "FailedMount");
    shown["said"] = said.map(|event| json!([event["message"], event["count"]])).collect();

    let mut text = shown.to_string().replace(&phys_name(&place.name, ""), "VOLUME-COPY");
    for name in PODS.into_iter().chain(OBJECTS.map(|(_, name)| name)) {
        text = text.replace(&phys_name(name, &place.namespace), "COPY");
    }
    text = text.replace(&place.mount, "MOUNT").replace(place.name.as_str(), "NAME");
    serde_json::from_str(&text).unwrap()
}

fn pod(pod: &Value) -> Value {
    if pod.is_null() {
        return Value::Null;
    }
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let debug = pod["spec"]["ephemeralContainers"].as_array().into_iter().flatten();
    json!({
        "labels": texts(&pod["metadata"]["labels"]),
        "annotations": texts(&pod["metadata"]["annotations"]),
        "cpu": pod["spec"]["containers"][0]["resources"]["requests"]["cpu"],
        "debug": debug.map(|container| container["name"].clone()).collect::<Vec<_>>(),
        "phase": pod["status"]["phase"],
        "reason": pod["status"]["reason"],
        "address": pod["status"]["podIP"].is_string(),
        "conditions": conditions.map(|it| json!([it["type"], it["status"]])).collect::<Vec<_>>(),
        "deleting": pod["metadata"].get("deletionTimestamp").is_some(),
    })
}

/// Whether each names the other.
fn paired(vpod: &Value, ppod: &Value) -> bool {
    let names = |pod: &Value, key: &str, other: &Value| {
        !other.is_null() && pod["metadata"]["annotations"][key] == other["metadata"]["uid"]
    };
    names(vpod, annotation::PHYSICAL_POD_UID, ppod) && names(ppod, annotation::VIRTUAL_POD_UID, vpod)
}

fn pair(original: &Value, copy: &Value) -> Value {
    let shown = |object: &Value| {
        if object.is_null() {
            return Value::Null;
        }
        json!({
            "labels": texts(&object["metadata"]["labels"]),
            "annotations": texts(&object["metadata"]["annotations"]),
            "finalizers": object["metadata"]["finalizers"],
            "data": if object["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("kube-root-ca")) {
                object["data"].is_object().into()
            } else {
                object["data"].clone()
            },
            "volume": object["spec"]["volumeName"],
            "phase": object["status"]["phase"],
        })
    };
    json!({"original": shown(original), "copy": shown(copy)})
}
