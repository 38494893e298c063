//! What somebody can do with the credentials of a Syncer, beyond what its role says: the admission policies of the worker's
//! chart, and of the computing cluster's for nodes and pods.
//!
//! In: a binding without a program; its account, used by hand. Out: what the API server refuses, and that it permits what a
//! Syncer needs.

#![expect(clippy::needless_pass_by_value, reason = "callers write JSON in place")]

use http::Method;
use kubeocean_api::keys::{
    DEFAULT_PRIORITY, DEFAULT_PRIORITY_CLASS, annotation, finalizer, label, namespace,
};
use kubeocean_e2e::logconfigs;
use kubeocean_e2e::pods::{DEADLINE, Objects, pod_path};
use kubeocean_e2e::volumes::{MODES, VOLUMES, volume_path};
use kubeocean_harness::chart::{Chart, helm_template};
use kubeocean_harness::site::{MOUNT_NAMESPACE, SYNCER_ACCOUNT, SYSTEM_NAMESPACE};
use kubeocean_harness::{Binding, BindingSpec, shared_site, wait_until};
use serde_json::{Value, json};

const POLICIES: &str = "/apis/cloud.tencent.com/v1beta1/resourceleasingpolicies";
const NODES: &str = "/api/v1/nodes";
const CSINODES: &str = "/apis/storage.k8s.io/v1/csinodes";
const CLASSES: &str = "/apis/scheduling.k8s.io/v1/priorityclasses";

/// The account of one mount namespace.
struct Thief(Objects);

impl Thief {
    async fn of(binding: &Binding<'_>, mount: &str) -> Self {
        let kubeconfig = binding.worker().service_account_kubeconfig(mount, SYNCER_ACCOUNT).await;
        Self(Objects::with(&kubeconfig.expect("a kubeconfig")).await)
    }

    /// A write that is refused, for the reason that contains `why`.
    async fn refused(&self, method: Method, path: &str, body: &Value, why: &str) {
        let answer = self.0.attempt(method.clone(), path, body).await;
        let error = answer.expect_err(&format!("{method} {path} {body}"));
        assert!(error.code == 403 && error.message.contains(why), "{method} {path} {body}: {error:?}");
    }

    /// A write that a Syncer needs.
    async fn permitted(&self, method: Method, path: &str, body: &Value) {
        let answer = self.0.attempt(method.clone(), path, body).await;
        assert!(answer.is_ok(), "{method} {path} {body}: {answer:?}");
    }
}

async fn thief(name: &str) -> (Binding<'static>, Thief) {
    let binding = shared_site().await.bind(BindingSpec::new(name)).await.expect("a binding");
    let thief = Thief::of(&binding, binding.mount_namespace()).await;
    let foreign = volume(name, "kube-system", json!({}));
    wait_until("the admission policies to be in force", DEADLINE, async || {
        let answer = thief.0.attempt(Method::POST, &format!("{VOLUMES}?dryRun=All"), &foreign).await;
        answer.is_err().then_some(()).ok_or("not refused")
    })
    .await;
    (binding, thief)
}

/// A volume as the Syncer makes it, but for these fields of its spec.
fn volume(name: &str, namespace: &str, change: Value) -> Value {
    let mut volume = json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": name, "labels": {label::MANAGED_BY: label::MANAGED_BY_VALUE}},
        "spec": {
            "capacity": {"storage": "1Gi"}, "accessModes": MODES, "hostPath": {"path": "/volumes"},
            "persistentVolumeReclaimPolicy": "Retain", "claimRef": {"namespace": namespace, "name": "data"},
        },
    });
    for (field, value) in change.as_object().into_iter().flatten() {
        volume["spec"][field] = value.clone();
    }
    volume
}

#[tokio::test]
async fn it_makes_volumes_for_its_own_claims_only() {
    let (binding, thief) = thief("thief-volumes").await;
    let mount = binding.mount_namespace();
    let name = "thief-volumes";
    let mut unlabelled = volume(name, mount, json!({}));
    unlabelled["metadata"]["labels"] = Value::Null;
    for (volume, why) in [
        (unlabelled, "managed-by"),
        (volume(name, "kube-system", json!({})), "mount namespace"),
        (volume(name, mount, json!({"claimRef": null})), "mount namespace"),
        (volume(name, mount, json!({"persistentVolumeReclaimPolicy": "Delete"})), "retained"),
    ] {
        thief.refused(Method::POST, VOLUMES, &volume, why).await;
    }
    thief.permitted(Method::POST, VOLUMES, &volume(name, mount, json!({}))).await;
    let grown = json!({"spec": {"capacity": {"storage": "2Gi"}}});
    thief.permitted(Method::PATCH, &volume_path(name), &grown).await;
    thief.permitted(Method::DELETE, &volume_path(name), &Value::Null).await;
}

#[tokio::test]
async fn it_takes_and_deletes_no_volume_of_another_tenant() {
    let (binding, thief) = thief("thief-takes").await;
    let worker = Objects::of(binding.worker()).await;
    let mount = binding.mount_namespace();
    let own = json!({"spec": {"claimRef": {"namespace": mount, "name": "data"}}});
    let elsewhere = json!({"spec": {"claimRef": {"namespace": "another", "name": "data"}}});
    // One that another tenant uses, one of the original that nobody has claimed yet, and one of ours that lost its claim.
    let mut lost = volume("thief-lost", mount, json!({"claimRef": null}));
    lost["metadata"]["annotations"] = json!({annotation::COMPUTING_CLUSTER_UID: "uid"});
    for other in [
        volume("thief-others", "another", json!({})),
        volume("thief-unclaimed", mount, json!({"claimRef": null})),
        lost.clone(),
    ] {
        worker.create(VOLUMES, &other).await;
        let path = volume_path(other["metadata"]["name"].as_str().expect("a name"));
        let before = worker.get(&path).await.expect("the volume");
        let marks = json!({"metadata": {"labels": {"team": "thief"}}});
        for patch in [&own, &marks] {
            thief.refused(Method::PATCH, &path, patch, "mount namespace").await;
        }
        thief.refused(Method::DELETE, &path, &Value::Null, "mount namespace").await;
        let after = worker.get(&path).await.expect("the volume is still there");
        assert_eq!(
            (&after["spec"], &after["metadata"]["labels"]),
            (&before["spec"], &before["metadata"]["labels"])
        );
    }
    // Nor does it give its own away.
    thief.permitted(Method::POST, VOLUMES, &volume("thief-own", mount, json!({}))).await;
    thief.refused(Method::PATCH, &volume_path("thief-own"), &elsewhere, "mount namespace").await;

    // The original had one mount namespace, which the chart's own account takes over.
    let successor = Thief::of(&binding, MOUNT_NAMESPACE).await;
    let taken = json!({"spec": {"claimRef": {"namespace": MOUNT_NAMESPACE, "name": "data"}}});
    successor.refused(Method::PATCH, &volume_path("thief-lost"), &taken, "mount namespace").await;
    successor.permitted(Method::PATCH, &volume_path("thief-unclaimed"), &taken).await;
    for name in ["thief-others", "thief-unclaimed", "thief-lost", "thief-own"] {
        worker.delete(&volume_path(name), None).await;
    }
}

/// Pod Security of the mount namespace does not look behind claims.
#[tokio::test]
async fn it_makes_no_volume_of_a_nodes_files_where_pod_security_permits_none() {
    let (binding, thief) = thief("thief-files").await;
    let mount = binding.mount_namespace();
    let values = json!({"podSecurity": "baseline", "namespace": {"name": mount}});
    let text =
        helm_template(Chart::KubeoceanWorker, "any", MOUNT_NAMESPACE, &values).await.expect("it renders");
    let mut objects: Vec<Value> = serde_saphyr::from_multiple(&text).expect("YAML");
    objects.retain(|object| object["metadata"]["name"] == "kubeocean-volume-writes");
    assert_eq!(objects.len(), 2, "a policy and its binding");
    for object in &mut objects {
        object["metadata"]["name"] = json!("thief-files");
        if object["kind"] == "ValidatingAdmissionPolicyBinding" {
            object["spec"]["policyName"] = json!("thief-files");
        }
    }
    binding.worker().apply_objects(objects).await.expect("the policy");
    let local = json!({
        "hostPath": null, "local": {"path": "/"},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [
            {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "Exists"}]},
        ]}},
    });
    let files = volume("thief-files", mount, json!({}));
    wait_until("the policy to be in force", DEADLINE, async || {
        let answer = thief.0.attempt(Method::POST, &format!("{VOLUMES}?dryRun=All"), &files).await;
        answer.is_err().then_some(()).ok_or("not refused")
    })
    .await;
    for volume in [files, volume("thief-files", mount, local)] {
        thief
            .refused(
                Method::POST,
                VOLUMES,
                &volume,
                "level baseline permits no volumes of a node's own files",
            )
            .await;
    }
    let driver = json!({"hostPath": null, "csi": {"driver": "csi.example.test", "volumeHandle": "h"}});
    thief.permitted(Method::POST, VOLUMES, &volume("thief-files", mount, driver)).await;
    thief.permitted(Method::DELETE, &volume_path("thief-files"), &Value::Null).await;
}

#[tokio::test]
async fn it_holds_policies_and_changes_none() {
    let (binding, thief) = thief("thief-policies").await;
    let worker = Objects::of(binding.worker()).await;
    let policy = json!({
        "apiVersion": "cloud.tencent.com/v1beta1", "kind": "ResourceLeasingPolicy",
        "metadata": {
            "name": "thief-policies", "labels": {"team": "a"}, "annotations": {"owner": "a"},
            "finalizers": ["example.test/theirs"],
        },
        "spec": {"cluster": "nobody", "resourceLimits": [{"resource": "cpu", "percent": 10}]},
    });
    worker.create(POLICIES, &policy).await;
    let path = format!("{POLICIES}/thief-policies");
    let meta = |field: &str, value: Value| json!({"metadata": {field: value}});
    for (patch, why) in [
        (json!({"spec": {"resourceLimits": null}}), "what a policy says"),
        (json!({"spec": {"cluster": "thief-policies"}}), "what a policy says"),
        (
            json!({"spec": {"policies": [{"name": "x", "module": {"builtin": "time-windows"}}]}}),
            "what a policy says",
        ),
        (meta("labels", json!({"team": "thief"})), "what a policy says"),
        (meta("annotations", json!({"owner": "thief"})), "annotations and finalizer"),
        (meta("annotations", json!({"owner": null})), "annotations and finalizer"),
        (meta("annotations", json!({"kubeocean.io/other": "x"})), "annotations and finalizer"),
        (meta("finalizers", json!([finalizer::POLICY])), "annotations and finalizer"),
        (
            meta("finalizers", json!(["example.test/theirs", "example.test/thief"])),
            "annotations and finalizer",
        ),
        (
            meta("ownerReferences", json!([{"apiVersion": "v1", "kind": "Node", "name": "n", "uid": "u"}])),
            "what a policy says",
        ),
    ] {
        thief.refused(Method::PATCH, &path, &patch, why).await;
    }
    // The role has neither verb.
    thief.refused(Method::DELETE, &path, &Value::Null, "cannot delete").await;
    thief.refused(Method::POST, POLICIES, &policy, "cannot create").await;
    let stored = worker.get(&path).await.expect("the policy");
    assert_eq!((&stored["spec"], &stored["metadata"]["generation"]), (&policy["spec"], &json!(1)));

    let held = json!({"metadata": {
        "finalizers": ["example.test/theirs", finalizer::POLICY],
        "annotations": {annotation::COMPUTING_CLUSTER_UID: "uid", annotation::CLUSTER_BINDING: binding.name()},
    }});
    let released = json!({"metadata": {
        "finalizers": ["example.test/theirs"],
        "annotations": {annotation::COMPUTING_CLUSTER_UID: null, annotation::CLUSTER_BINDING: null},
    }});
    let status = json!({"status": {"phase": "Active"}});
    thief.permitted(Method::PATCH, &path, &held).await;
    thief.permitted(Method::PATCH, &format!("{path}/status"), &status).await;
    thief.permitted(Method::PATCH, &path, &released).await;
    worker.merge(&path, &json!({"metadata": {"finalizers": null}})).await;
    worker.delete(&path, None).await;
}

#[tokio::test]
async fn it_makes_the_one_class_below_all_others_and_no_other() {
    let (_binding, thief) = thief("thief-classes").await;
    let class = |name: &str, value: i32, default: bool| {
        json!({
            "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
            "value": value, "globalDefault": default,
        })
    };
    let dry = format!("{CLASSES}?dryRun=All");
    for class in [
        class("thief", DEFAULT_PRIORITY, false),
        class(DEFAULT_PRIORITY_CLASS, 1_000_000, false),
        class(DEFAULT_PRIORITY_CLASS, DEFAULT_PRIORITY, true),
    ] {
        thief.refused(Method::POST, &dry, &class, "kubeocean-default").await;
    }
    // Another test may have brought it already.
    let ours = class(DEFAULT_PRIORITY_CLASS, DEFAULT_PRIORITY, false);
    let answer = thief.0.attempt(Method::POST, &dry, &ours).await;
    assert!(answer.as_ref().err().is_none_or(|error| error.code == 409), "{answer:?}");
}

#[tokio::test]
async fn it_collects_logs_of_its_own_pods_only() {
    let (binding, thief) = thief("thief-logs").await;
    logconfigs::serve(binding.worker()).await;
    let worker = Objects::of(binding.worker()).await;
    let mount = binding.mount_namespace();
    let all = logconfigs::all();
    let config = |name: &str, input: Value| {
        let mut config = logconfigs::original(name, &input);
        config["metadata"]["labels"][label::MANAGED_BY] = json!(label::MANAGED_BY_VALUE);
        config
    };
    let stdout = |more: Value| {
        let mut input = logconfigs::stdout(mount);
        for (field, value) in more.as_object().into_iter().flatten() {
            input["containerStdout"][field] = value.clone();
        }
        input
    };
    let files = |more: Value| {
        let mut input =
            json!({"type": "container_file", "containerFile": {"namespace": mount, "logPath": "/logs"}});
        for (field, value) in more.as_object().into_iter().flatten() {
            input["containerFile"][field] = value.clone();
        }
        input
    };
    let beside = |mut input: Value, section: &str, source: Value| {
        input[section] = source;
        input
    };
    let system = json!({"namespace": "kube-system"});
    let workload = json!({"kind": "deployment", "name": "dns", "namespace": "kube-system"});
    for (name, input, why) in [
        ("system", logconfigs::stdout("kube-system"), "mount namespace"),
        ("several", logconfigs::stdout(&format!("{mount},kube-system")), "mount namespace"),
        ("nowhere", json!({"type": "container_stdout"}), "mount namespace"),
        ("everything", stdout(json!({"allContainers": true})), "mount namespace"),
        ("workloads", stdout(json!({"workloads": [workload]})), "mount namespace"),
        ("labelled", stdout(json!({"nsLabelSelector": "a in (b)"})), "mount namespace"),
        ("a-workload", files(json!({"workload": workload})), "mount namespace"),
        ("labelled-files", files(json!({"nsLabelSelector": "a in (b)"})), "mount namespace"),
        ("two-sources", beside(stdout(json!({})), "containerFile", system.clone()), "one source"),
        ("two-other-sources", beside(files(json!({})), "containerStdout", system.clone()), "one source"),
        ("beside", beside(stdout(json!({})), "hostFile", json!({"logPath": "/"})), "one source"),
        ("future", beside(stdout(json!({})), "journal", json!({"unit": "kubelet"})), "one source"),
        (
            "host-files",
            json!({"type": "host_file", "hostFile": {"logPath": "/"}, "containerFile": {"namespace": mount}}),
            "mount namespace",
        ),
    ] {
        thief.refused(Method::POST, &all, &config(name, input), why).await;
        assert!(worker.get(&logconfigs::path(name)).await.is_none());
    }
    let mut unmanaged = config("unmanaged", stdout(json!({})));
    unmanaged["metadata"]["labels"][label::MANAGED_BY] = json!("me");
    thief.refused(Method::POST, &all, &unmanaged, "managed-by").await;

    // What a Syncer writes, also where a schema fills in empty fields.
    let empty = json!({"allContainers": false, "nsLabelSelector": "", "workloads": []});
    thief.permitted(Method::POST, &all, &config("thief-own", stdout(empty))).await;
    thief.permitted(Method::POST, &all, &config("thief-own-files", files(json!({})))).await;
    let widened = json!({"spec": {"inputDetail": {"containerFile": system}}});
    for name in ["thief-own", "thief-own-files"] {
        let why = if name == "thief-own" { "one source" } else { "mount namespace" };
        thief.refused(Method::PATCH, &logconfigs::path(name), &widened, why).await;
    }
    // One that collects elsewhere is not its own, whatever label it has.
    worker.create(&all, &config("thief-others", logconfigs::stdout("kube-system"))).await;
    let own = json!({"spec": {"inputDetail": stdout(json!({}))}});
    thief.refused(Method::PATCH, &logconfigs::path("thief-others"), &own, "mount namespace").await;
    thief.refused(Method::DELETE, &logconfigs::path("thief-others"), &Value::Null, "mount namespace").await;
    for name in ["thief-own", "thief-own-files"] {
        thief.permitted(Method::DELETE, &logconfigs::path(name), &Value::Null).await;
    }
    worker.delete(&logconfigs::path("thief-others"), None).await;
}

/// In the computing cluster: the label by which vnodes are passed over does not open other nodes.
#[tokio::test]
async fn it_writes_no_node_but_vnodes() {
    let computing = shared_site().await.computing();
    let owner = Objects::of(computing).await;
    let kubeconfig = computing.service_account_kubeconfig(SYSTEM_NAMESPACE, SYNCER_ACCOUNT).await;
    let thief = Thief(Objects::with(&kubeconfig.expect("a kubeconfig")).await);
    let why = "starts with vnode-";
    let ours = json!({label::MANAGED_BY: label::MANAGED_BY_VALUE});
    let node = |name: &str, labels: &Value| json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}});
    let csinode = |name: &str, labels: &Value| {
        json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "CSINode", "metadata": {"name": name, "labels": labels},
            "spec": {"drivers": []},
        })
    };
    // The site is shared: what an earlier run left goes first.
    let (real, csi) = (format!("{NODES}/thief-owners"), format!("{CSINODES}/thief-owners"));
    let given = format!("{NODES}/thief-given");
    for path in [&real, &csi, &given] {
        owner.delete(path, None).await;
        owner.wait_gone(path).await;
    }
    owner.create(NODES, &node("thief-owners", &json!({}))).await;
    owner.create(CSINODES, &csinode("thief-owners", &json!({}))).await;
    wait_until("the admission policies to be in force", DEADLINE, async || {
        let dry = format!("{NODES}?dryRun=All");
        let made = thief.0.attempt(Method::POST, &dry, &node("thief-dry", &ours)).await;
        let patch = json!({"metadata": {"labels": {"team": "thief"}}});
        let written =
            thief.0.attempt(Method::PATCH, &format!("{NODES}/thief-owners?dryRun=All"), &patch).await;
        (made.is_err() && written.is_err()).then_some(()).ok_or("not refused")
    })
    .await;

    let labelled = json!({"metadata": {"labels": ours}});
    let cordoned = json!({"metadata": {"labels": ours}, "spec": {"unschedulable": true}});
    let unlabelled = json!({"metadata": {"labels": {label::MANAGED_BY: null}}});
    let emptied = json!({"metadata": {"labels": ours}, "status": {"allocatable": {"cpu": "0"}}});
    for labels in [&json!({}), &ours] {
        thief.refused(Method::POST, NODES, &node("thief-made", labels), why).await;
        thief.refused(Method::POST, CSINODES, &csinode("thief-made", labels), why).await;
    }
    for (path, patch) in
        [(&real, &labelled), (&real, &cordoned), (&format!("{real}/status"), &emptied), (&csi, &labelled)]
    {
        thief.refused(Method::PATCH, path, patch, why).await;
    }
    for path in [&real, &csi] {
        thief.refused(Method::DELETE, path, &Value::Null, why).await;
        let left = owner.get(path).await.expect("it is still there");
        assert_eq!(left["metadata"]["labels"], Value::Null, "{left}");
    }

    // Who labels a node of theirs opens it, until the label goes; it is not looked into.
    owner.create(NODES, &node("thief-given", &ours)).await;
    thief.permitted(Method::PATCH, &given, &cordoned).await;
    thief.refused(Method::PATCH, &given, &unlabelled, why).await;

    // What a Syncer does with a vnode, also with one that lost the label.
    let vnode = format!("{NODES}/vnode-thief-own");
    thief.permitted(Method::POST, NODES, &node("vnode-thief-own", &ours)).await;
    for patch in [&cordoned, &unlabelled, &labelled] {
        thief.permitted(Method::PATCH, &vnode, patch).await;
    }
    thief.permitted(Method::PATCH, &format!("{vnode}/status"), &emptied).await;
    thief.permitted(Method::DELETE, &vnode, &Value::Null).await;
    let own = format!("{CSINODES}/vnode-thief-own");
    thief.permitted(Method::POST, CSINODES, &csinode("vnode-thief-own", &ours)).await;
    thief.permitted(Method::DELETE, &own, &Value::Null).await;
    for path in [real, csi, given] {
        owner.delete(&path, None).await;
    }
}

/// In the computing cluster: whoever makes pods that run, or changes what runs, is whoever these pods are.
#[tokio::test]
async fn it_makes_no_pod_that_runs_and_changes_none() {
    const HOME: &str = "thief-pods";
    const MANAGER_ACCOUNT: &str = "kubeocean-manager";
    let computing = shared_site().await.computing();
    let owner = Objects::of(computing).await;
    for name in [HOME, namespace::FAKE] {
        computing.create_namespace(name).await.expect("a namespace");
    }
    let [homes, fakes] = [HOME, namespace::FAKE].map(|home| format!("/api/v1/namespaces/{home}/pods"));
    let (running, reservation) = (pod_path(HOME, "running"), pod_path(namespace::FAKE, "thief-own"));
    // The site is shared: what an earlier run left goes first.
    for path in [&running, &reservation] {
        owner.delete(path, Some(0)).await;
        owner.wait_gone(path).await;
    }
    let pod = |name: &str, more: Value| {
        let mut spec = json!({
            "containers": [{"name": "c", "image": "theirs:1"}],
            "automountServiceAccountToken": false, "terminationGracePeriodSeconds": 0,
        });
        for (field, value) in more.as_object().into_iter().flatten() {
            spec[field] = value.clone();
        }
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    };
    // No scheduler puts it on the vnode of another test.
    owner.create(&homes, &pod("running", json!({"schedulerName": "nobody"}))).await;
    let runs = json!({"status": {"phase": "Running"}});
    owner.merge(&format!("{running}/status"), &runs).await;
    let before = owner.get(&running).await.expect("the pod");

    let image = json!({"spec": {"containers": [{"name": "c", "image": "thief:1"}]}});
    let labelled = json!({"metadata": {"labels": {"app": "theirs"}}});
    let ended = json!({"spec": {"activeDeadlineSeconds": 1}});
    let on_vnode = json!({"nodeName": "vnode-thief-pods", "tolerations": [{"operator": "Exists"}]});
    let on_real = json!({"nodeName": "real", "tolerations": [{"operator": "Exists"}]});
    let host = json!({"nodeName": "real", "hostPID": true, "hostNetwork": true});
    for account in [SYNCER_ACCOUNT, MANAGER_ACCOUNT] {
        let kubeconfig = computing.service_account_kubeconfig(SYSTEM_NAMESPACE, account).await;
        let thief = Thief(Objects::with(&kubeconfig.expect("a kubeconfig")).await);
        let dry = format!("{homes}?dryRun=All");
        wait_until("the admission policies to be in force", DEADLINE, async || {
            let made = thief.0.attempt(Method::POST, &dry, &pod("dry", json!({}))).await;
            made.is_err().then_some(()).ok_or("not refused")
        })
        .await;
        let why = "only in namespace kubeocean-fake";
        for more in [&json!({}), &on_vnode, &on_real, &host] {
            thief.refused(Method::POST, &homes, &pod("thief-made", more.clone()), why).await;
        }
        for patch in [&image, &labelled, &ended] {
            thief.refused(Method::PATCH, &running, patch, why).await;
        }
        // The role has no right to the subresources that change what runs, or where.
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": "running"},
            "target": {"apiVersion": "v1", "kind": "Node", "name": "real"},
        });
        thief.refused(Method::POST, &format!("{running}/binding"), &binding, "cannot create").await;
        let debug = json!({"spec": {"ephemeralContainers": [{"name": "d", "image": "thief:1"}]}});
        thief.refused(Method::PATCH, &format!("{running}/ephemeralcontainers"), &debug, "cannot patch").await;
        // Where reservations are, nothing may run either.
        let why = "bound to a node whose name starts with vnode-";
        for more in [&json!({}), &on_real, &host] {
            thief.refused(Method::POST, &fakes, &pod("thief-made", more.clone()), why).await;
        }

        // What a Syncer does with a reservation, and with a vpod.
        let mut own = pod("thief-own", on_vnode.clone());
        own["metadata"]["labels"] =
            json!({label::HOSTPORT_FAKE_POD: "true", label::MANAGED_BY: label::MANAGED_BY_VALUE});
        thief.permitted(Method::POST, &fakes, &own).await;
        let adopted = json!({"metadata": {"labels": {label::CLUSTER_BINDING: "thief-pods"}}});
        thief.permitted(Method::PATCH, &reservation, &adopted).await;
        let scheduled = json!({"status": {"conditions": [{"type": "PodScheduled", "status": "True"}]}});
        thief.permitted(Method::PATCH, &format!("{reservation}/status"), &scheduled).await;
        thief.permitted(Method::DELETE, &reservation, &Value::Null).await;
        let mapped = json!({
            "metadata": {"annotations": {annotation::PHYSICAL_POD_NAME: account}},
            "status": {"message": "as the copy says"},
        });
        thief.permitted(Method::PATCH, &format!("{running}/status"), &mapped).await;
    }
    let after = owner.get(&running).await.expect("the pod is still there");
    assert_eq!(
        (&after["spec"], &after["metadata"]["labels"]),
        (&before["spec"], &before["metadata"]["labels"])
    );
    owner.delete(&running, Some(0)).await;
}
