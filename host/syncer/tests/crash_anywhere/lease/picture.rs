//! What both clusters show of one binding, without what differs between two runs: names, UIDs, versions and times.

use kubeocean_api::{
    keys::{annotation, condition_type, label, namespace},
    name::phys_name,
};
use kubeocean_runtime::request::paths;
use serde_json::{Value, json};

use crate::life::{Place, get, list};

/// Annotations whose values are times, UIDs, or made of such; the last one is the control plane's own.
pub(crate) const VOLATILE: [&str; 11] = [
    annotation::LAST_SYNC_TIME,
    annotation::EXPECTED_METADATA,
    annotation::POLICY_DECISION,
    annotation::RECLAIM_SINCE,
    annotation::DELETION_TAINT_TIME,
    annotation::PHYSICAL_NODE_UID,
    annotation::PHYSICAL_POD_UID,
    annotation::VIRTUAL_POD_UID,
    annotation::VIRTUAL_UID,
    annotation::COMPUTING_CLUSTER_UID,
    "node.alpha.kubernetes.io/ttl",
];

/// A binding in both clusters, in a form that two runs can be compared by.
pub(crate) async fn picture(scenario: &Place) -> Value {
    let (computing, worker) = (&scenario.computing, &scenario.worker);
    let name = &scenario.name;
    let vnode = get(computing, &paths::node(&scenario.vnode)).await;
    let lease = get(computing, &paths::lease("kube-node-lease", &scenario.vnode)).await;
    let leased = json!({
        "holder": lease["spec"]["holderIdentity"],
        "of the vnode": lease["metadata"]["ownerReferences"][0]["uid"] == vnode["metadata"]["uid"],
    });
    let copies = |kind: &str| paths::core_all(kind, &scenario.mount);
    let picture = json!({
        "vnode": node(&vnode),
        "lease": if lease.is_null() || vnode.is_null() { Value::Null } else { leased },
        "pnode": get(worker, &paths::node(&scenario.pnode)).await["metadata"]["labels"][label::POLICY_APPLIED],
        "policy": policy(&get(worker, &paths::policy(name)).await),
        "binding": get(computing, &paths::binding(name)).await["metadata"]["finalizers"],
        "vpods": pods(&list(computing, &paths::pods(&scenario.namespace)).await),
        "ppods": pods(&list(worker, &paths::pods(&scenario.mount)).await),
        "copies": names(&list(worker, &copies("configmaps")).await),
        "secrets": names(&list(worker, &copies("secrets")).await),
        "originals": [
            marks(&get(computing, &paths::core("configmaps", &scenario.namespace, "settings")).await),
            marks(&get(computing, &paths::core("secrets", &scenario.namespace, "settings")).await),
        ],
        "csinode": csi_node(&get(computing, &paths::csi_node(&scenario.vnode)).await),
        "reserved": reserved(&list(computing, &paths::pods(namespace::FAKE)).await, &scenario.vnode),
    });
    let mut text = picture.to_string();
    for (own, common) in [
        (phys_name("web", &scenario.namespace), "COPY"),
        (phys_name("settings", &scenario.namespace), "SETTINGS"),
        (scenario.mount.clone(), "MOUNT"),
        (name.clone(), "NAME"),
    ] {
        text = text.replace(&own, common);
    }
    serde_json::from_str(&text).unwrap()
}

pub(crate) fn texts(texts: &Value) -> Value {
    let mut texts = texts.clone();
    if let Some(texts) = texts.as_object_mut() {
        texts.retain(|key, _| !VOLATILE.contains(&key.as_str()) && key != label::PROXIER_PORT);
    }
    texts
}

/// What an object of a user says about its copy.
fn marks(original: &Value) -> Value {
    let metadata = &original["metadata"];
    json!([metadata["finalizers"], texts(&metadata["labels"]), texts(&metadata["annotations"])])
}

fn node(vnode: &Value) -> Value {
    if vnode.is_null() {
        return Value::Null;
    }
    let taints = vnode["spec"]["taints"].as_array().cloned().unwrap_or_default();
    let conditions = vnode["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let stated =
        |type_: &str| conditions.iter().find(|it| it["type"] == type_).map(|it| &it["status"]).cloned();
    json!({
        "labels": texts(&vnode["metadata"]["labels"]),
        "annotations": texts(&vnode["metadata"]["annotations"]),
        "finalizers": vnode["metadata"]["finalizers"],
        "deleting": vnode["metadata"].get("deletionTimestamp").is_some(),
        "taints": taints.iter().map(|it| json!([it["key"], it["effect"]])).collect::<Vec<_>>(),
        "unschedulable": vnode["spec"]["unschedulable"],
        "allocatable": vnode["status"]["allocatable"],
        "capacity": vnode["status"]["capacity"],
        "addresses": vnode["status"]["addresses"],
        "ready": stated("Ready"),
        "offered": stated(condition_type::LEASE),
    })
}

fn policy(policy: &Value) -> Value {
    let conditions = policy["status"]["conditions"].as_array().cloned().unwrap_or_default();
    json!({
        "finalizers": policy["metadata"]["finalizers"],
        "phase": policy["status"]["phase"],
        "conditions": conditions.iter().map(|it| json!([it["type"], it["status"], it["reason"]])).collect::<Vec<_>>(),
    })
}

fn pods(pods: &[Value]) -> Vec<Value> {
    let shown = |pod: &Value| {
        json!({
            "labels": texts(&pod["metadata"]["labels"]),
            "annotations": texts(&pod["metadata"]["annotations"]),
            "phase": pod["status"]["phase"],
            "address": pod["status"]["podIP"].is_string(),
            "deleting": pod["metadata"].get("deletionTimestamp").is_some(),
        })
    };
    pods.iter().map(shown).collect()
}

fn csi_node(copy: &Value) -> Value {
    if copy.is_null() {
        return Value::Null;
    }
    let drivers = copy["spec"]["drivers"].as_array().cloned().unwrap_or_default();
    json!({
        "labels": texts(&copy["metadata"]["labels"]),
        "drivers": drivers.iter().map(|driver| driver["name"].clone()).collect::<Vec<_>>(),
        "owned": copy["metadata"]["ownerReferences"][0]["kind"],
    })
}

/// Reservations on the vnode: their ports, and whether they pass for scheduled.
pub(crate) fn reserved(fakes: &[Value], vnode: &str) -> Vec<Value> {
    let ports = |fake: &Value| -> Vec<Value> {
        let ports = fake["spec"]["containers"][0]["ports"].as_array().cloned().unwrap_or_default();
        ports.iter().map(|port| port["hostPort"].clone()).collect()
    };
    let scheduled = |fake: &Value| {
        let conditions = fake["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.iter().find(|it| it["type"] == "PodScheduled").map(|it| it["status"].clone())
    };
    let ours = fakes.iter().filter(|fake| fake["spec"]["nodeName"] == *vnode);
    ours.map(|fake| json!([ports(fake), scheduled(fake)])).collect()
}

/// Copies that are ours; a namespace has a ConfigMap of its own.
fn names(objects: &[Value]) -> Vec<Value> {
    let ours =
        objects.iter().filter(|it| it["metadata"]["labels"][label::MANAGED_BY] == label::MANAGED_BY_VALUE);
    ours.map(|object| object["metadata"]["annotations"]["kubeocean.io/virtual-name"].clone()).collect()
}
