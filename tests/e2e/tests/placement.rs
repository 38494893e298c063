//! Placement policies on real clusters: what the Syncer does not admit, and what a real scheduler is told (PO-605, PO-606).
//!
//! The module is `place.wat`: a worker node says by the amounts of extended resources what the answer about it is.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kubeocean_api::keys::{annotation, condition_type, label, namespace, taint};
use kubeocean_e2e::pods::{DEADLINE, Objects, Stage, condition, pod_path, text};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_harness::{BindingSpec, Cluster, Fleet, NodeShape, Site, wait_until};
use kubeocean_hostile_policies::{Guest, digest, place_guest};
use serde_json::{Value, json};

/// An entry that does what worker nodes say.
async fn entry(worker: &Cluster, name: &str) -> Value {
    let mut entry = publish(worker, name, &place_guest('a')).await;
    entry["name"] = "where".into();
    entry
}

/// Puts a module where policies are read from, and returns an entry of that name which runs it.
async fn publish(worker: &Cluster, name: &str, guest: &Guest) -> Value {
    let module = guest.bytes();
    let config_map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace::POLICIES},
        "binaryData": {"policy.wasm": STANDARD.encode(&module)},
    });
    worker.apply_objects(vec![config_map]).await.unwrap();
    json!({"name": name, "module": {"configMap": {"name": name}, "digest": digest(&module)}})
}

/// Makes a worker node say what the answer about it is.
async fn answer(worker: &Objects, node: &str, fit: u32, score: u32) {
    let amounts = json!({"a.test/fit": fit.to_string(), "a.test/score": score.to_string()});
    let patch = json!({"status": {"capacity": amounts, "allocatable": amounts}});
    worker.merge(&format!("/api/v1/nodes/{node}/status"), &patch).await;
}

#[tokio::test]
async fn a_pod_that_policies_do_not_admit_waits_and_runs_when_a_fact_or_the_policy_changes() {
    let stage = Stage::start(BindingSpec::new("place-admit"), 1).await;
    let scene = stage.scene("place-admit").await;
    let vnode = stage.wait_vnodes().await.remove(0);
    let node = text(&vnode["metadata"]["annotations"][annotation::PHYSICAL_NODE_NAME]).to_owned();
    let vnode = text(&vnode["metadata"]["name"]).to_owned();
    scene.run_pod("before", json!({"nodeName": vnode})).await;

    let entry = entry(stage.binding.worker(), "place-admit").await;
    answer(&scene.worker, &node, 1, 0).await;
    stage.binding.policy("place-admit", json!({"policies": [entry]})).await.unwrap();
    let vnode_path = format!("/api/v1/nodes/{vnode}");
    scene
        .computing
        .wait("the vnode to say it", &vnode_path, |vnode| {
            (vnode["status"]["allocatable"]["a.test/fit"] == "1").then_some(())
        })
        .await;

    let denied = |pod: &Value| {
        let told = condition(pod, condition_type::POLICY_ADMITTED);
        (told["status"] == "False" && told["reason"] == "Hostile").then(|| told.clone())
    };
    for (name, admit) in [("fact", 0), ("policy", 1)] {
        scene.create_pod(&scene.pod(name, json!({"nodeName": vnode}))).await;
        let told = scene.computing.wait("the pod to be denied", &scene.vpod(name), denied).await;
        assert_eq!(text(&told["message"]), "on purpose (policy place-admit/where)");
        let event = scene.wait_event(name, "PolicyDenied").await;
        assert_eq!(event, "Hostile: on purpose (policy place-admit/where)");
        assert!(scene.worker.get(&scene.ppod(name)).await.is_none(), "nothing was made for it");
        if admit == 0 {
            answer(&scene.worker, &node, 0, 0).await;
        } else {
            let all = json!({"resourceLimits": [{"resource": "cpu", "percent": 100}]});
            stage.binding.policy("place-admit", all).await.unwrap();
        }
        let (pod, _) = scene.wait_running(name).await;
        assert_eq!(condition(&pod, condition_type::POLICY_ADMITTED)["status"], "True");
        if admit == 0 {
            answer(&scene.worker, &node, 1, 0).await;
            scene
                .computing
                .wait("the vnode to say it again", &vnode_path, |vnode| {
                    (vnode["status"]["allocatable"]["a.test/fit"] == "1").then_some(())
                })
                .await;
        }
    }
    let before = scene.computing.get(&scene.vpod("before")).await.unwrap();
    assert_eq!(before["status"]["phase"], "Running", "what has a copy keeps it");
    assert!(condition(&before, condition_type::POLICY_ADMITTED).is_null());
    assert_rights(&stage.binding);
}

/// A free port of this machine's first loopback address.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// A pod for vnodes of the binding, `more` in its spec.
fn pod(name: &str, binding: &str, more: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "automountServiceAccountToken": false,
            "nodeSelector": {label::CLUSTER_BINDING: binding},
            "tolerations": [{"key": taint::VNODE, "operator": "Exists"}],
            "containers": [{"name": "c", "image": "batch:1", "resources": {"requests": {"cpu": "10m"}}}],
        },
    });
    for (key, value) in more.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

/// Waits until a pod has a node, and returns that node's name.
async fn scheduled(computing: &Objects, name: &str) -> String {
    let node = |pod: &Value| pod["spec"]["nodeName"].as_str().map(str::to_owned);
    computing.wait(&format!("{name} to be scheduled"), &pod_path("default", name), node).await
}

#[tokio::test]
async fn a_real_scheduler_keeps_away_from_rejected_vnodes_and_prefers_good_ones() {
    let fleet = Fleet::start(1).await.unwrap();
    let site = Site::install(&fleet).await.unwrap();
    let computing = Objects::of(&fleet.computing).await;
    let binding = site.bind(BindingSpec::new("ext")).await.unwrap();
    let nodes = binding.worker().create_nodes("ext", 3, &NodeShape::new("8", "32Gi")).await.unwrap();
    let worker = Objects::of(binding.worker()).await;
    for (node, fit, score) in [(0, 1, 0), (1, 0, 11), (2, 0, 101)] {
        answer(&worker, &nodes[node], fit, score).await;
    }
    let where_to = entry(binding.worker(), "ext").await;
    let forever = place_guest('z').with("POISONED", "(call $forever)");
    let mut loops = publish(binding.worker(), "ext-loops", &forever).await;
    loops["onError"] = "Ignore".into();
    binding.policy("ext", json!({"policies": [where_to, loops]})).await.unwrap();

    let address = format!("127.0.0.1:{}", free_port());
    let flag = format!("--scheduler-extender-bind-address={address}");
    let mut manager = site.manager(&[&flag]).await.unwrap();
    manager.wait_ready().await;
    let extender = json!({
        "urlPrefix": format!("https://{address}/scheduler"),
        "filterVerb": "filter", "prioritizeVerb": "prioritize", "weight": 100,
        "enableHTTPS": true, "tlsConfig": {"insecure": true},
        "nodeCacheCapable": true, "ignorable": true, "httpTimeout": "1s",
    });
    fleet.computing.restart_scheduler_with(&[extender]).await.unwrap();
    let vnode = |node: &str| format!("vnode-{}-{node}", binding.cluster_id());
    for node in &nodes {
        let ready = |vnode: &Value| {
            let taints = vnode["spec"]["taints"].as_array();
            let keys = taints.into_iter().flatten().map(|taint| text(&taint["key"]));
            let told = vnode["status"]["allocatable"]["a.test/fit"].is_string();
            let ready = condition(vnode, "Ready")["status"] == "True";
            (told && ready && keys.filter(|key| key.starts_with("node.kubernetes.io/")).count() == 0)
                .then_some(())
        };
        computing.wait("the vnode", &format!("/api/v1/nodes/{}", vnode(node)), ready).await;
    }
    wait_until("both entries to run", DEADLINE, async || {
        let path = "/apis/cloud.tencent.com/v1beta1/resourceleasingpolicies/ext";
        let policy = worker.get(path).await.unwrap_or_default();
        let entries = policy["status"]["policies"].as_array().cloned().unwrap_or_default();
        let active = entries.iter().filter(|entry| entry["state"] == "Active").count();
        if active == 2 { Ok(()) } else { Err(policy["status"].to_string()) }
    })
    .await;

    // From now on the second entry loops at every question, until it is in quarantine; nobody waits for it for long.
    let looping =
        json!({"status": {"capacity": {"z.test/fit": "666"}, "allocatable": {"z.test/fit": "666"}}});
    worker.merge(&format!("/api/v1/nodes/{}/status", nodes[1]), &looping).await;
    let says = |vnode: &Value| vnode["status"]["allocatable"]["z.test/fit"].is_string().then_some(());
    computing.wait("the vnode", &format!("/api/v1/nodes/{}", vnode(&nodes[1])), says).await;
    for number in 0..5 {
        let name = format!("best-{number}");
        computing.create("/api/v1/namespaces/default/pods", &pod(&name, "ext", &json!({}))).await;
        assert_eq!(scheduled(&computing, &name).await, vnode(&nodes[2]), "the place with the best score");
    }
    let only = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {
        "nodeSelectorTerms": [{"matchFields": [
            {"key": "metadata.name", "operator": "In", "values": [vnode(&nodes[0])]},
        ]}],
    }}}});
    computing.create("/api/v1/namespaces/default/pods", &pod("rejected", "ext", &only)).await;
    let events = "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Drejected%2Creason%3DFailedScheduling";
    let said = wait_until("the scheduler to say why", DEADLINE, async || {
        let events = computing.list(events).await;
        let texts: Vec<String> = events.iter().map(|event| text(&event["message"]).to_owned()).collect();
        texts.iter().find(|text| text.contains("Hostile")).cloned().ok_or(texts)
    })
    .await;
    assert!(said.contains("Hostile: on purpose (policy ext/where)"), "{said}");
    println!("the scheduler says: {said}");

    // Without the extender the scheduler goes on: it is ignorable.
    drop(manager);
    computing.create("/api/v1/namespaces/default/pods", &pod("alone", "ext", &only)).await;
    assert_eq!(scheduled(&computing, "alone").await, vnode(&nodes[0]));
}
