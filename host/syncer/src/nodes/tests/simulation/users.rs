//! What happens without the Syncer: users of both clusters, kubelets, other controllers.

use std::collections::BTreeMap;

use kubeocean_api::keys::{annotation, label, taint};
use serde_json::{Value, json};

use super::clusters::{BINDING, Clusters, Kind};
use crate::simulation::Random;

pub(super) const NODES: [&str; 3] = ["n1", "n2", "n3"];
const POLICIES: [&str; 3] = ["p1", "p2", "p3"];

/// Keys that users put on a vnode, by its UID: label, annotation and taint of one name.
pub(super) type UserKeys = BTreeMap<String, Vec<String>>;

/// One step of somebody.
pub(super) fn act(clusters: &mut Clusters, random: &mut Random, keys: &mut UserKeys) {
    let node = random.pick(&NODES);
    let vnode = format!("vnode-cls-a-{node}");
    match random.below(20) {
        0..=2 => worker_node(clusters, random, node),
        3..=6 => worker_pod(clusters, random, node),
        7..=10 => policy(clusters, random),
        11..=13 => vpod(clusters, random, &vnode),
        14..=16 => vpod_goes_on(clusters, random),
        17 => binding(clusters, random),
        _ => edit_vnode(clusters, random, &vnode, keys),
    }
}

fn selector(random: &mut Random) -> Value {
    match random.pick(&["", "a", "b"]) {
        "" => Value::Null,
        pool => {
            json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "In", "values": [pool]}]}]})
        }
    }
}

fn worker_node(clusters: &mut Clusters, random: &mut Random, node: &str) {
    if clusters.get(Kind::Pnode, node).is_none() {
        let (uid, pool) = (clusters.uid(), random.pick(&["a", "b"]));
        let cpu = random.pick(&["4", "8"]);
        clusters.put(
            Kind::Pnode,
            json!({
                "metadata": {"name": node, "uid": uid, "labels": {"pool": pool, "zone": "z1"}},
                "spec": {},
                "status": {
                    "allocatable": {"cpu": format!("{cpu}000m"), "memory": "8192Mi", "pods": "110"},
                    "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": "2026-03-02T12:00:00Z"}],
                    "addresses": [{"type": "InternalIP", "address": "10.0.0.7"}],
                    "nodeInfo": {"architecture": "amd64", "operatingSystem": "linux"},
                },
            }),
        );
        return;
    }
    match random.below(8) {
        0 => clusters.delete(Kind::Pnode, node, None).unwrap(),
        1 => clusters.remove(Kind::Pnode, node),
        2 => clusters.edit(Kind::Pnode, node, |pnode| {
            let labels = &mut pnode["metadata"]["labels"];
            let excluded = labels.get(label::INSTANCE_TYPE).is_some();
            labels[label::INSTANCE_TYPE] = "eklet".into();
            if excluded {
                labels.as_object_mut().unwrap().remove(label::INSTANCE_TYPE);
            }
        }),
        3 => {
            let pool = random.pick(&["a", "b"]);
            clusters.edit(Kind::Pnode, node, |pnode| pnode["metadata"]["labels"]["pool"] = pool.into());
        }
        4 => {
            let cpu = random.pick(&["2000m", "3990m", "4000m", "8000m"]);
            clusters.edit(Kind::Pnode, node, |pnode| pnode["status"]["allocatable"]["cpu"] = cpu.into());
        }
        5 => clusters.edit(Kind::Pnode, node, |pnode| {
            let cordoned = pnode["spec"]["unschedulable"] == true;
            pnode["spec"] = if cordoned { json!({}) } else { json!({"unschedulable": true, "taints": [
                    {"key": taint::NODE_UNSCHEDULABLE, "effect": "NoSchedule", "timeAdded": "2026-03-02T12:00:00Z"}
                ]}) };
        }),
        6 => clusters.edit(Kind::Pnode, node, |pnode| {
            let ready = pnode["status"]["conditions"][0]["status"] == "True";
            pnode["status"]["conditions"][0]["status"] = if ready { "False" } else { "True" }.into();
        }),
        _ => {
            let zone = random.pick(&["z1", "z2"]);
            clusters.edit(Kind::Pnode, node, |pnode| pnode["metadata"]["labels"]["zone"] = zone.into());
        }
    }
}

/// Pods of the worker: of its own users, ours, another binding's, of the original.
fn worker_pod(clusters: &mut Clusters, random: &mut Random, node: &str) {
    let name = format!("w{}", random.below(8));
    if let Some(pod) = clusters.get(Kind::WorkerPod, &name) {
        let running = pod["status"]["phase"] == "Running";
        if running && random.once_in(2) {
            let phase = random.pick(&["Succeeded", "Failed"]);
            clusters.edit(Kind::WorkerPod, &name, |pod| pod["status"]["phase"] = phase.into());
        } else {
            clusters.remove(Kind::WorkerPod, &name);
        }
        return;
    }
    let stamp = |binding: &str, cluster: &str| {
        (
            json!({label::MANAGED_BY: "kubeocean", label::CLUSTER_BINDING: binding}),
            json!({annotation::COMPUTING_CLUSTER_UID: cluster}),
        )
    };
    let (labels, annotations) = match random.below(8) {
        0 | 1 => stamp(BINDING, "computing"),
        2 => stamp("dc-west", "computing"),
        3 => stamp(BINDING, "another"),
        4 => (
            json!({label::MANAGED_BY: "kubeocean"}),
            json!({annotation::VIRTUAL_NODE_NAME: format!("vnode-cls-a-{}", random.pick(&NODES))}),
        ),
        _ => (json!({}), json!({})),
    };
    let (cpu, memory) = (random.pick(&["5m", "250m", "1000m", "5000m"]), random.pick(&["64Mi", "1024Mi"]));
    let uid = clusters.uid();
    clusters.put(
        Kind::WorkerPod,
        json!({
            "metadata": {"name": name, "namespace": "kubeocean-worker", "uid": uid, "labels": labels, "annotations": annotations},
            "spec": {"nodeName": node, "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]},
            "status": {"phase": random.pick(&["Pending", "Running"])},
        }),
    );
}

fn policy(clusters: &mut Clusters, random: &mut Random) {
    let name = random.pick(&POLICIES);
    if clusters.get(Kind::Policy, name).is_some() && random.once_in(5) {
        clusters.delete(Kind::Policy, name, None).unwrap();
        return;
    }
    let windows = match random.below(10) {
        0..=3 => json!([]),
        4 => json!([{"start": "12:00", "end": "12:20"}]),
        5 => json!([{"start": "12:10", "end": "12:40"}, {"start": "13:00", "end": "11:00"}]),
        6 => json!([{"start": "25:00", "end": "08:00"}]),
        _ => json!([{"start": "03:00", "end": "03:01"}]),
    };
    let limits = match random.below(7) {
        0..=2 => json!([]),
        3 => json!([{"resource": "cpu", "percent": 50}, {"resource": "pods", "percent": 33}]),
        4 => json!([{"resource": "cpu", "percent": 0}]),
        5 => {
            json!([{"resource": "cpu", "quantity": "2", "percent": 80}, {"resource": "memory", "percent": 75}])
        }
        _ => json!([{"resource": "cpu", "percent": 101}]),
    };
    let spec = json!({
        "cluster": if random.once_in(8) { "dc-west" } else { BINDING },
        "nodeSelector": selector(random),
        "resourceLimits": limits,
        "timeWindows": windows,
        "timeZone": "UTC",
        "forceReclaim": !random.once_in(3),
        "gracefulReclaimPeriodSeconds": random.pick(&[0, 60, 300]),
    });
    if clusters.get(Kind::Policy, name).is_some() {
        clusters.edit(Kind::Policy, name, |policy| {
            policy["metadata"]["generation"] =
                (policy["metadata"]["generation"].as_i64().unwrap() + 1).into();
            policy["spec"] = spec;
        });
        return;
    }
    let uid = clusters.uid();
    let created = format!("2026-03-02T11:{:02}:00Z", random.below(60));
    clusters.put(
        Kind::Policy,
        json!({"metadata": {"name": name, "uid": uid, "generation": 1, "creationTimestamp": created}, "spec": spec}),
    );
}

/// Pods of the computing cluster, some of which no reclaim may take.
fn vpod(clusters: &mut Clusters, random: &mut Random, vnode: &str) {
    let name = format!("v{}", random.below(8));
    // Whoever binds by himself asks for no taint; a terminating node gets nothing from the scheduler.
    let live = |node: &Value| node["metadata"].get("deletionTimestamp").is_none();
    if !clusters.get(Kind::Vnode, vnode).is_some_and(live) || clusters.get(Kind::Vpod, &name).is_some() {
        return;
    }
    let namespace = if random.once_in(6) { "kube-system" } else { "team" };
    let owner = if random.once_in(5) { "DaemonSet" } else { "ReplicaSet" };
    let tolerations = match random.below(6) {
        0 => json!([{"key": taint::OUT_OF_TIME_WINDOWS, "operator": "Exists"}]),
        1 => json!([{"operator": "Exists"}]),
        _ => json!([]),
    };
    let uid = clusters.uid();
    clusters.put(
        Kind::Vpod,
        json!({
            "metadata": {"name": name, "namespace": namespace, "uid": uid,
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": owner, "name": "o", "uid": "o"}]},
            "spec": {"nodeName": vnode, "tolerations": tolerations},
            "status": {"phase": "Running"},
        }),
    );
}

/// Whether a reclaim must leave this pod alone (BU-807).
pub(super) fn is_exempt(pod: &Value) -> bool {
    pod["metadata"]["namespace"] == "kube-system" || pod["spec"]["tolerations"] != json!([])
}

/// Whether a vnode has to wait for this pod (BU-901(f)).
pub(super) fn blocks(pod: &Value) -> bool {
    pod["metadata"]["namespace"] != "kube-system"
        && pod["metadata"]["ownerReferences"][0]["kind"] != "DaemonSet"
        && pod["status"]["phase"] != "Succeeded"
}

/// Pods end, are deleted, and leave.
fn vpod_goes_on(clusters: &mut Clusters, random: &mut Random) {
    let names: Vec<String> = clusters.all(Kind::Vpod).keys().cloned().collect();
    if names.is_empty() {
        return;
    }
    let name = &names[random.below(names.len())];
    match random.below(4) {
        0 => clusters.edit(Kind::Vpod, name, |pod| pod["status"]["phase"] = "Succeeded".into()),
        1 => clusters.delete(Kind::Vpod, name, None).unwrap(),
        _ if clusters.all(Kind::Vpod)[name]["metadata"].get("deletionTimestamp").is_some() => {
            clusters.remove(Kind::Vpod, name);
        }
        _ => {}
    }
}

fn binding(clusters: &mut Clusters, random: &mut Random) {
    let (selector, disable) = (selector(random), random.once_in(2));
    clusters.edit(Kind::Binding, BINDING, |binding| {
        binding["nodeSelector"] = selector;
        binding["disableDefaultTaint"] = disable.into();
    });
}

fn edit_vnode(clusters: &mut Clusters, random: &mut Random, vnode: &str, keys: &mut UserKeys) {
    let Some(uid) =
        clusters.get(Kind::Vnode, vnode).map(|it| it["metadata"]["uid"].as_str().unwrap().to_owned())
    else {
        return;
    };
    match random.below(9) {
        0 => clusters.delete(Kind::Vnode, vnode, None).unwrap(),
        8 => {
            let key = random.pick(&[label::MANAGED_BY, label::CLUSTER_BINDING]);
            clusters.edit(Kind::Vnode, vnode, |node| {
                node["metadata"]["labels"].as_object_mut().unwrap().remove(key);
            });
        }
        1..=3 => {
            let key = format!("users.example/{}", random.below(3));
            clusters.edit(Kind::Vnode, vnode, |node| {
                node["metadata"]["labels"][&key] = "mine".into();
                node["metadata"]["annotations"][&key] = "mine".into();
                let taints = node["spec"]["taints"].as_array_mut().unwrap();
                if !taints.iter().any(|taint| taint["key"] == *key) {
                    taints.push(json!({"key": key, "effect": "PreferNoSchedule"}));
                }
            });
            keys.entry(uid).or_default().push(key);
        }
        4 => clusters.edit(Kind::Vnode, vnode, |node| node["metadata"]["labels"]["zone"] = "edited".into()),
        5 => clusters.edit(Kind::Vnode, vnode, |node| {
            let ours =
                [taint::VNODE, taint::VNODE_DELETING, taint::OUT_OF_TIME_WINDOWS, taint::WORKER_UNREACHABLE];
            let key = random.pick(&ours);
            node["spec"]["taints"].as_array_mut().unwrap().retain(|taint| taint["key"] != key);
        }),
        6 => clusters.edit(Kind::Vnode, vnode, |node| {
            node["spec"]["unschedulable"] = (node["spec"]["unschedulable"] != true).into();
        }),
        _ => clusters.edit(Kind::Vnode, vnode, |node| {
            node["metadata"]["labels"].as_object_mut().unwrap().remove(label::PHYSICAL_NODE_NAME);
            node["status"]["allocatable"]["cpu"] = "64".into();
        }),
    }
}
