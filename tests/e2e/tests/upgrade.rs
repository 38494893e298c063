//! A Syncer that takes over from the original (BU sections 2 to 7, TD section 11): vnodes, Leases, policies and copies as
//! the original wrote them are adopted in place. Names and ports stay, nothing is drained or made anew, what the original
//! left behind goes, what users added stays, and the way back is open.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kubeocean_api::{
    keys::{annotation, finalizer, label, taint},
    name::{phys_name, token_secret_name, vnode_name},
};
use kubeocean_e2e::leasing::{DEADLINE, Leasing, percent};
use kubeocean_e2e::pods::{Objects, condition, core_path, pod_path, text};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_harness::{AuditEvent, Binding, BindingSpec, NodeShape, shared_site, wait_until};
use serde_json::{Value, json};

const NAME: &str = "upgrade";
const HOME: &str = "upgrade-users";
/// Not the port that the vnode's name hashes to: collisions had moved it.
const PORT: u16 = 23_456;
const TOKEN_VOLUME: &str = "token";
/// When the original wrote last.
const LONG_AGO: &str = "2025-01-01T00:00:00Z";

/// The labels and annotations the original put on a vnode, beside the worker node's.
fn metadata_of(node: &Value, vnode: &str) -> (Value, Value) {
    let (name, uid) = (&node["metadata"]["name"], &node["metadata"]["uid"]);
    let mut labels = node["metadata"]["labels"].clone();
    for (key, value) in [
        (label::MANAGED_BY, json!(label::MANAGED_BY_VALUE)),
        (label::CLUSTER_BINDING, json!(NAME)),
        (label::PHYSICAL_CLUSTER_ID, json!(NAME)),
        (label::PHYSICAL_NODE_NAME, name.clone()),
        (label::PHYSICAL_NODE_UID, uid.clone()),
        (annotation::PHYSICAL_NODE_INNER_IP, json!("127.0.0.1")),
        (label::PROXIER_PORT, json!(PORT.to_string())),
        (label::TYPE, json!(label::TYPE_VIRTUAL_KUBELET)),
        ("node.kubernetes.io/instance-type", json!("vnode")),
        ("beta.kubernetes.io/instance-type", json!("vnode")),
        ("kubernetes.io/hostname", json!(vnode)),
        // Of the worker node as it was then.
        ("e2e.test/retired", json!("1")),
    ] {
        labels[key] = value;
    }
    let mut annotations = node["metadata"]["annotations"].clone();
    for (key, value) in [
        (annotation::LAST_SYNC_TIME, json!(LONG_AGO)),
        (annotation::PHYSICAL_NODE_NAME, name.clone()),
        (annotation::PHYSICAL_NODE_UID, uid.clone()),
        (annotation::POLICIES_APPLIED, json!(NAME)),
        (annotation::POLICY_DETAILS, json!(format!("{NAME}(cpu=/50%)"))),
        (annotation::PROMETHEUS_URL, json!(format!("<pending>:9006/{vnode}"))),
        ("e2e.test/retired", json!("1")),
    ] {
        annotations[key] = value;
    }
    (labels, annotations)
}

/// Creates the vnode of a worker node as the original left it; returns it as stored.
async fn write_vnode(computing: &Objects, node: &Value) -> Value {
    let vnode = vnode_name(NAME, text(&node["metadata"]["name"]));
    let (mut labels, mut annotations) = metadata_of(node, &vnode);
    let default_taint = json!({"key": taint::VNODE, "effect": "NoSchedule"});
    let expected = json!({
        "labels": labels, "annotations": annotations,
        "taints": [{"key": taint::VNODE, "effect": "NoSchedule", "timeAdded": LONG_AGO}],
    });
    annotations[annotation::EXPECTED_METADATA] = json!(STANDARD.encode(expected.to_string()));
    labels["e2e.test/team"] = json!("blue");
    annotations["e2e.test/note"] = json!("keep");
    let amounts = json!({"cpu": "4", "memory": "16Gi", "pods": "110", "ephemeral-storage": "100Gi"});
    let object = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": vnode, "labels": labels, "annotations": annotations, "finalizers": [finalizer::VNODE],
        },
        "spec": {"taints": [default_taint, {"key": "e2e.test/mine", "value": "x", "effect": "NoSchedule"}]},
        "status": {
            "capacity": amounts, "allocatable": amounts, "phase": "Running",
            "conditions": node["status"]["conditions"], "nodeInfo": node["status"]["nodeInfo"],
            "addresses": [{"type": "Hostname", "address": vnode}],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": PORT}},
        },
    });
    let stored = computing.create("/api/v1/nodes?fieldManager=syncer", &object).await;
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": vnode, "namespace": "kube-node-lease", "ownerReferences": [
            {"apiVersion": "v1", "kind": "Node", "name": vnode, "uid": stored["metadata"]["uid"]},
        ]},
        "spec": {
            "holderIdentity": vnode, "leaseDurationSeconds": 40, "renewTime": "2025-01-01T00:00:00.000000Z",
        },
    });
    computing.create("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", &lease).await;
    stored
}

/// Names of the Secrets with tokens of a pod, as the original knows them: its volume's, and the one it had before (TD-302).
fn token_names(pod: &str, uid: &str) -> [String; 2] {
    [token_secret_name(pod, TOKEN_VOLUME, uid, HOME), phys_name(&format!("{pod}-{uid}"), HOME)]
}

/// A Secret with a token of a pod as the original made it, without a stamp; returns its path.
async fn write_token(binding: &Binding<'_>, worker: &Objects, name: &str, pod: &str, uid: &str) -> String {
    let mount = binding.mount_namespace();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque", "stringData": {"token": "of the original"},
        "metadata": {
            "name": name, "namespace": mount,
            "labels": {label::MANAGED_BY: label::MANAGED_BY_VALUE, label::SERVICE_ACCOUNT_TOKEN: "true"},
            "annotations": {
                annotation::VIRTUAL_POD_NAMESPACE: HOME, annotation::VIRTUAL_POD_NAME: pod,
                annotation::VIRTUAL_POD_UID: uid, annotation::SERVICE_ACCOUNT: "default",
            },
        },
    });
    worker.create(&format!("/api/v1/namespaces/{mount}/secrets"), &secret).await;
    core_path(mount, "secrets", name)
}

/// A running pod with a token, and its copy, as the original left them: mapped, not stamped.
async fn write_pod(
    binding: &Binding<'_>,
    computing: &Objects,
    worker: &Objects,
    vnode: &str,
    node: &str,
) -> (Value, Value) {
    let spec = |node: &str, source: Value| {
        json!({
            "nodeName": node, "automountServiceAccountToken": false,
            "volumes": [{"name": TOKEN_VOLUME, "projected": {"sources": [source]}}],
            "tolerations": [{"key": taint::VNODE, "operator": "Exists"}],
            "containers": [{"name": "c", "image": "batch:1", "resources": {"requests": {"cpu": "1"}}}],
        })
    };
    let (mount, name) = (binding.mount_namespace(), phys_name("batch", HOME));
    let vpod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "batch", "namespace": HOME,
            "labels": {"app": "batch", label::MANAGED_BY: label::MANAGED_BY_VALUE},
            "annotations": {
                annotation::PHYSICAL_POD_NAMESPACE: mount, annotation::PHYSICAL_POD_NAME: name,
                annotation::LAST_SYNC_TIME: LONG_AGO,
            },
        },
        "spec": spec(vnode, json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}})),
    });
    let vpod = computing.create(&format!("/api/v1/namespaces/{HOME}/pods"), &vpod).await;
    let uid = text(&vpod["metadata"]["uid"]);
    let tokens = token_names("batch", uid);
    for name in &tokens {
        write_token(binding, worker, name, "batch", uid).await;
    }
    let token = json!({"secret": {"name": tokens[0], "items": [{"key": "token", "path": "token"}]}});
    let expected = json!({"labels": {"app": "batch"}});
    let ppod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name, "namespace": mount,
            "labels": {"app": "batch", label::MANAGED_BY: label::MANAGED_BY_VALUE},
            "annotations": {
                annotation::VIRTUAL_POD_NAMESPACE: HOME, annotation::VIRTUAL_POD_NAME: "batch",
                annotation::VIRTUAL_POD_UID: vpod["metadata"]["uid"],
                annotation::VIRTUAL_NODE_NAME: vnode,
                annotation::EXPECTED_METADATA: STANDARD.encode(expected.to_string()),
            },
        },
        "spec": spec(node, token),
    });
    worker.create(&format!("/api/v1/namespaces/{mount}/pods"), &ppod).await;
    let running = |pod: &Value| (pod["status"]["phase"] == "Running").then(|| pod.clone());
    let ppod = worker.wait("the copy to run", &pod_path(mount, &name), running).await;
    let recorded = json!({
        "metadata": {"annotations": {annotation::PHYSICAL_POD_UID: ppod["metadata"]["uid"]}},
        "status": {"phase": "Running", "podIP": ppod["status"]["podIP"], "conditions": ppod["status"]["conditions"]},
    });
    let path = pod_path(HOME, "batch");
    (computing.merge(&format!("{path}/status"), &recorded).await, ppod)
}

/// What the original set on the worker's objects.
async fn write_marks(binding: &Binding<'_>, computing: &Objects, worker: &Objects, node: &str) {
    let applied = json!({"metadata": {"labels": {label::POLICY_APPLIED: NAME}}});
    worker.merge(&format!("/api/v1/nodes/{node}"), &applied).await;
    binding.policy(NAME, json!({"resourceLimits": [percent("cpu", 50)]})).await.expect("a policy");
    let policies = "/apis/cloud.tencent.com/v1beta1/resourceleasingpolicies";
    let held = json!({"metadata": {"finalizers": [finalizer::POLICY]}});
    worker.merge(&format!("{policies}/{NAME}"), &held).await;
    let served = json!({"metadata": {"finalizers": [finalizer::BINDING_SYNCER]}});
    computing.merge(&format!("/apis/cloud.tencent.com/v1beta1/clusterbindings/{NAME}"), &served).await;
}

/// Requests since the beginning that made or ended a node or pod of this test.
fn births_and_deaths(events: Vec<AuditEvent>) -> Vec<String> {
    let of_us = |event: &AuditEvent| {
        let object = &event.object_ref;
        ["nodes", "pods"].contains(&object.resource.as_str())
            && (object.name.contains(NAME) || object.namespace == HOME || object.name.starts_with("batch"))
    };
    let hard = |event: &AuditEvent| {
        ["create", "delete", "deletecollection"].contains(&event.verb.as_str())
            && event.user.username.ends_with("kubeocean-syncer")
    };
    let shown = |event: AuditEvent| format!("{} {}", event.verb, event.uri);
    events.into_iter().filter(|event| hard(event) && of_us(event)).map(shown).collect()
}

#[tokio::test]
async fn what_the_original_left_is_taken_over_in_place() {
    let binding = shared_site().await.bind(BindingSpec::new(NAME)).await.expect("a binding");
    let nodes = binding.worker().create_nodes(NAME, 1, &NodeShape::new("8", "16Gi")).await.expect("a node");
    let computing = Objects::of(binding.computing()).await;
    let worker = Objects::of(binding.worker()).await;
    binding.computing().create_namespace(HOME).await.expect("a namespace");
    write_marks(&binding, &computing, &worker, &nodes[0]).await;
    let node = worker.get(&format!("/api/v1/nodes/{}", nodes[0])).await.expect("a node");
    let left = write_vnode(&computing, &node).await;
    let vnode = text(&left["metadata"]["name"]).to_owned();
    let (vpod, ppod) = write_pod(&binding, &computing, &worker, &vnode, &nodes[0]).await;
    // It may be that of a pod of another computing cluster, which is about to be created.
    let unknown = "00000000-0000-0000-0000-000000000000";
    let [others, _] = token_names("unknown", unknown);
    let others = write_token(&binding, &worker, &others, "unknown", unknown).await;
    let others_before = worker.get(&others).await;
    let marks = [binding.computing(), binding.worker()].map(|cluster| cluster.audit_mark().expect("a mark"));

    let started = std::time::Instant::now();
    let mut syncer = binding.syncer(&[]).await.expect("a Syncer");
    syncer.wait_ready().await;
    let leasing = Leasing { binding, syncer, nodes, started };
    let path = format!("/api/v1/nodes/{vnode}");
    let taken_over = |shown: &Value| {
        let gone = shown["metadata"]["labels"]["e2e.test/retired"].is_null()
            && shown["metadata"]["annotations"]["e2e.test/retired"].is_null();
        (gone && shown["metadata"]["annotations"][annotation::LAST_SYNC_TIME] != LONG_AGO)
            .then(|| shown.clone())
    };
    let shown = computing.wait("what is stale to go", &path, taken_over).await;

    check_vnode(&left, &shown);
    check_way_back(&shown);
    check_pod(&leasing, &computing, &worker, &vpod, &ppod).await;
    check_token(leasing.binding.mount_namespace(), &worker, &vpod).await;
    assert_eq!(worker.get(&others).await, others_before);
    check_lease(&computing, &vnode, &left).await;
    let policy = leasing
        .policy_until(NAME, "the policy to be active", |policy| policy["status"]["phase"] == "Active")
        .await;
    assert_eq!(policy["metadata"]["finalizers"], json!([finalizer::POLICY]));
    for (cluster, mark) in [leasing.binding.computing(), leasing.binding.worker()].into_iter().zip(marks) {
        let events = cluster.audit_events_since(mark).expect("an audit log");
        assert_eq!(births_and_deaths(events), Vec::<String>::new());
    }
    let now = computing.get(&path).await.expect("the vnode");
    assert_eq!(now["metadata"]["uid"], left["metadata"]["uid"]);
    check_end_of_tokens(leasing.binding.mount_namespace(), &computing, &worker, &vpod).await;
    assert_eq!(worker.get(&others).await, others_before);
    assert_rights(&leasing.binding);
}

/// The same object with the same name and port, not drained; users' marks are there.
fn check_vnode(left: &Value, shown: &Value) {
    let (labels, annotations) = (&shown["metadata"]["labels"], &shown["metadata"]["annotations"]);
    assert_eq!(shown["metadata"]["uid"], left["metadata"]["uid"]);
    assert_eq!(labels[label::PROXIER_PORT], PORT.to_string());
    assert_eq!(shown["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"], PORT);
    assert_eq!(shown["status"]["allocatable"]["cpu"], "4");
    assert_eq!(condition(shown, "Ready")["status"], "True");
    assert_eq!((&labels["e2e.test/team"], &annotations["e2e.test/note"]), (&json!("blue"), &json!("keep")));
    assert!(shown["spec"]["unschedulable"].is_null(), "{shown}");
    // What the computing cluster's own controllers say about a new node is theirs.
    let own = |key: &&Value| !text(key).starts_with("node.kubernetes.io/");
    let taints = shown["spec"]["taints"].as_array().into_iter().flatten().map(|one| &one["key"]);
    let taints: Vec<_> = taints.filter(own).collect();
    assert_eq!(taints, [taint::VNODE, "e2e.test/mine"]);
}

/// The original could read what it finds after a downgrade.
fn check_way_back(shown: &Value) {
    let encoded = text(&shown["metadata"]["annotations"][annotation::EXPECTED_METADATA]);
    let decoded = STANDARD.decode(encoded).expect("base64");
    let expected: Value = serde_json::from_slice(&decoded).expect("JSON");
    assert_eq!(expected["labels"][label::PROXIER_PORT], PORT.to_string());
    assert_eq!(expected["annotations"][annotation::POLICIES_APPLIED], NAME);
    assert_eq!(expected["taints"], json!([{"key": taint::VNODE, "effect": "NoSchedule"}]));
    assert!(expected["annotations"][annotation::LAST_SYNC_TIME].is_null(), "{expected}");
    assert!(
        expected["labels"]["e2e.test/team"].is_null() && expected["labels"]["e2e.test/retired"].is_null()
    );
}

/// The copy is the same pod, and stamped for this binding now.
async fn check_pod(leasing: &Leasing, computing: &Objects, worker: &Objects, vpod: &Value, ppod: &Value) {
    let path = pod_path(text(&ppod["metadata"]["namespace"]), text(&ppod["metadata"]["name"]));
    let system = computing.get("/api/v1/namespaces/kube-system").await.expect("kube-system");
    let stamped = |pod: &Value| {
        let binding = &pod["metadata"]["labels"][label::CLUSTER_BINDING];
        let cluster = &pod["metadata"]["annotations"][annotation::COMPUTING_CLUSTER_UID];
        (*binding == NAME && *cluster == system["metadata"]["uid"]).then(|| pod.clone())
    };
    let now = worker.wait("the copy to be stamped", &path, stamped).await;
    assert_eq!(now["metadata"]["uid"], ppod["metadata"]["uid"]);
    let shown = computing.get(&pod_path(HOME, "batch")).await.expect("the pod");
    assert_eq!(shown["metadata"]["uid"], vpod["metadata"]["uid"]);
    assert_eq!(shown["status"]["phase"], "Running");
    assert!(!leasing.syncer.log().contains("ppod deleted"));
}

/// The Secret with its token is the same, stamped, and the token is renewed before it ends.
async fn check_token(mount: &str, worker: &Objects, vpod: &Value) {
    let [name, _] = token_names("batch", text(&vpod["metadata"]["uid"]));
    let renewed = |secret: &Value| {
        let metadata = &secret["metadata"];
        let stamped = metadata["labels"][label::CLUSTER_BINDING] == NAME
            && metadata["annotations"][annotation::COMPUTING_CLUSTER_UID].is_string();
        let ends = metadata["annotations"][annotation::TOKEN_EXPIRATION].is_string();
        (stamped && ends && secret["data"]["token"] != STANDARD.encode("of the original")).then_some(())
    };
    worker.wait("the token to be renewed", &core_path(mount, "secrets", &name), renewed).await;
}

/// Both Secrets are there as long as their pod, whatever the name, and no longer (TD-901).
async fn check_end_of_tokens(mount: &str, computing: &Objects, worker: &Objects, vpod: &Value) {
    let pod = pod_path(HOME, "batch");
    let secrets = token_names("batch", text(&vpod["metadata"]["uid"]));
    let secrets = secrets.map(|name| core_path(mount, "secrets", &name));
    for secret in &secrets {
        assert!(worker.get(secret).await.is_some(), "{secret} went before its pod");
    }
    computing.delete(&pod, Some(1)).await;
    computing.wait_gone(&pod).await;
    for secret in &secrets {
        worker.wait_gone(secret).await;
    }
}

async fn check_lease(computing: &Objects, vnode: &str, left: &Value) {
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{vnode}");
    wait_until("the Lease to be renewed", DEADLINE, async || {
        let lease = computing.get(&path).await.ok_or("no Lease")?;
        assert_eq!(lease["spec"]["holderIdentity"], vnode);
        assert_eq!(lease["metadata"]["ownerReferences"][0]["uid"], left["metadata"]["uid"]);
        let renewed = text(&lease["spec"]["renewTime"]);
        if renewed > "2026" { Ok(()) } else { Err("not renewed") }
    })
    .await;
}
