//! One Manager process for all bindings, with the chart's rights: what it says on each binding, how one broken worker
//! leaves the others alone, and how bindings and the process itself end.
//!
//! The tests share one Manager, as the bindings of a cluster do; the one that ends and restarts it has clusters of its own.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kubeocean_api::keys::{annotation, finalizer, label, taint};
use kubeocean_e2e::leasing::generous;
use kubeocean_e2e::pods::{DEADLINE, Objects, condition, core_path, pod_path};
use kubeocean_e2e::rights::assert_manager_rights;
use kubeocean_harness::program::kubeocean_binary;
use kubeocean_harness::site::{SYNCER_ACCOUNT, SYSTEM_NAMESPACE};
use kubeocean_harness::{
    Binding, BindingSpec, Cluster, ClusterSpec, Fleet, NodeShape, Program, Site, shared_site, wait_until,
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// What the product promises for a mended Secret and for its own end.
const PROMISE: Duration = Duration::from_secs(5);

fn binding_path(name: &str) -> String {
    format!("/apis/cloud.tencent.com/v1beta1/clusterbindings/{name}")
}

fn vnodes_path(binding: &str) -> String {
    format!("/api/v1/nodes?labelSelector={}%3D{binding}", label::CLUSTER_BINDING.replace('/', "%2F"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// Starts the one Manager of the shared site.
async fn shared_manager() -> &'static Site<'static> {
    static MANAGER: OnceCell<Program> = OnceCell::const_new();
    let site = shared_site().await;
    MANAGER
        .get_or_init(async || {
            let mut manager = site.manager(&[]).await.expect("a Manager");
            manager.wait_ready().await;
            manager
        })
        .await;
    site
}

/// A binding with worker nodes and a policy that offers all of their cpu.
async fn bind<'a>(site: &Site<'a>, spec: BindingSpec, nodes: usize) -> Binding<'a> {
    let name = spec.name.clone();
    let binding = site.bind(spec).await.expect("a binding");
    binding.worker().create_nodes(&name, nodes, &NodeShape::new("8", "32Gi")).await.expect("worker nodes");
    let all = json!({"resourceLimits": [{"resource": "cpu", "percent": 100}]});
    binding.policy(&name, all).await.expect("a policy");
    binding
}

/// Waits until the condition of a binding has this status and reason; returns its message.
async fn wait_condition(computing: &Objects, binding: &str, kind: &str, wanted: &str) -> String {
    wait_until(&format!("{kind} of {binding} to be {wanted}"), DEADLINE, async || {
        let Some(object) = computing.get(&binding_path(binding)).await else {
            return Err("there is no such binding".to_owned());
        };
        let condition = condition(&object, kind);
        let is = format!("{}/{}", text(&condition["status"]), text(&condition["reason"]));
        if is == wanted { Ok(text(&condition["message"])) } else { Err(object["status"].to_string()) }
    })
    .await
}

async fn wait_ready(computing: &Objects, binding: &str) {
    wait_condition(computing, binding, "Ready", "True/ValidationPassed").await;
}

/// Waits until a binding has `count` vnodes and all are Ready; returns them.
async fn wait_vnodes(computing: &Objects, binding: &str, count: usize) -> Vec<Value> {
    wait_until(&format!("{count} vnodes of {binding}"), DEADLINE, async || {
        let vnodes = computing.list(&vnodes_path(binding)).await;
        let ready = vnodes.iter().filter(|vnode| condition(vnode, "Ready")["status"] == "True").count();
        if ready == count { Ok(vnodes) } else { Err(format!("{ready} of {}", vnodes.len())) }
    })
    .await
}

/// Runs a pod of `namespace` on a vnode of the binding.
async fn run_pod(cluster: &Cluster, binding: &str, namespace: &str) {
    cluster.create_namespace(namespace).await.expect("a namespace");
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "batch", "namespace": namespace},
        "spec": {
            "automountServiceAccountToken": false,
            "nodeSelector": {label::CLUSTER_BINDING: binding},
            "tolerations": [{"key": taint::VNODE, "operator": "Exists"}],
            "containers": [{"name": "c", "image": "batch:1", "resources": {"requests": {"cpu": "1"}}}],
        },
    });
    cluster.apply_objects(vec![pod]).await.expect("a pod");
    let computing = Objects::of(cluster).await;
    let running = |pod: &Value| (pod["status"]["phase"] == "Running").then_some(());
    computing.wait("the pod to run", &pod_path(namespace, "batch"), running).await;
}

/// Messages of the events of a reason on a binding.
async fn events(computing: &Objects, binding: &str, reason: &str) -> Vec<String> {
    let path = format!(
        "/api/v1/namespaces/default/events?fieldSelector=involvedObject.kind%3DClusterBinding%2C\
         involvedObject.name%3D{binding}%2Creason%3D{reason}"
    );
    computing.list(&path).await.iter().map(|event| text(&event["message"])).collect()
}

async fn wait_event(computing: &Objects, binding: &str, reason: &str) {
    let what = format!("the event {reason} on {binding}");
    wait_until(&what, DEADLINE, async || !events(computing, binding, reason).await.is_empty()).await;
}

fn uids(objects: &[Value]) -> Vec<String> {
    let mut uids: Vec<_> = objects.iter().map(|object| text(&object["metadata"]["uid"])).collect();
    uids.sort();
    uids
}

/// When each vnode became Ready, by name.
fn since(vnodes: &[Value]) -> Vec<(String, String)> {
    let mut all: Vec<_> = vnodes
        .iter()
        .map(|vnode| {
            let ready = condition(vnode, "Ready");
            assert_eq!(ready["status"], "True", "{}", vnode["metadata"]["name"]);
            (text(&vnode["metadata"]["name"]), text(&ready["lastTransitionTime"]))
        })
        .collect();
    all.sort();
    all
}

#[tokio::test]
async fn one_process_serves_all_bindings_and_a_broken_one_concerns_only_itself() {
    let workers = ["one", "two"].map(ClusterSpec::worker);
    let fleet = Fleet::start_with(ClusterSpec::computing(), workers.to_vec()).await.expect("clusters");
    let site = Site::install(&fleet).await.expect("charts");
    let computing = Objects::of(&fleet.computing).await;
    let a = bind(&site, BindingSpec::new("good-a"), 2).await;
    let b = bind(&site, BindingSpec::new("good-b").worker(1), 2).await;
    let c = bind(&site, BindingSpec::new("broken"), 1).await;
    let good = c
        .worker()
        .service_account_kubeconfig(c.mount_namespace(), SYNCER_ACCOUNT)
        .await
        .expect("a kubeconfig");
    // Nothing listens on the discard port of this machine.
    c.write_kubeconfig(&good.replace(c.worker().server(), "https://127.0.0.1:9")).await.expect("a Secret");

    let flags = ["--leader-elect=true", "--kubeconfig-namespaces=elsewhere"];
    let mut manager = site.manager(&flags).await.expect("a Manager");
    manager.wait_ready().await;
    let started = Instant::now();
    for binding in [&a, &b] {
        wait_ready(&computing, binding.name()).await;
        wait_vnodes(&computing, binding.name(), 2).await;
    }
    println!("two bindings Ready and leasing {:?} after the start", started.elapsed());
    run_pod(&fleet.computing, a.name(), "users-a").await;
    run_pod(&fleet.computing, b.name(), "users-b").await;
    // The Proxiers of both bindings answer on the listeners of the one process.
    for namespace in ["users-a", "users-b"] {
        let exec = ["exec", "-n", namespace, "batch", "--", "echo", namespace];
        let said = fleet.computing.kubectl_text(&exec).await.expect("kubectl exec");
        assert_eq!(said.trim(), namespace);
    }
    let wait = ["wait", "--for=condition=Ready", "--timeout=10s", "cb/good-a", "cb/good-b"];
    let said = fleet.computing.kubectl_text(&wait).await.expect("kubectl wait");
    assert!(said.contains("condition met"), "{said}");

    // The third says why, on the binding, as an event and as a phase, and nothing of it exists.
    let message = wait_condition(&computing, c.name(), "Connected", "False/Refused").await;
    assert!(message.contains("connection refused") && message.contains(&c.secret_name()), "{message}");
    wait_condition(&computing, c.name(), "Ready", "False/ConnectivityFailed").await;
    wait_event(&computing, c.name(), "ConnectivityFailed").await;
    let object = computing.get(&binding_path(c.name())).await.expect("the binding");
    assert_eq!(object["status"]["phase"], "Failed");
    assert_eq!(condition(&object, "Stalled")["status"], "True");
    assert!(computing.list(&vnodes_path(c.name())).await.is_empty());

    let mended = Instant::now();
    c.write_kubeconfig(&good).await.expect("a Secret");
    wait_ready(&computing, c.name()).await;
    println!("Ready {:?} after the Secret was mended", mended.elapsed());
    assert!(mended.elapsed() < generous(PROMISE), "{:?}", mended.elapsed());
    wait_vnodes(&computing, c.name(), 1).await;
    let metrics = manager.metrics().await.expect("metrics");
    for line in [
        "kubeocean_clusterbindings_total{status=\"Ready\"} 3",
        "kubeocean_clusterbindings_total{status=\"Failed\"} 0",
        "kubeocean_manager_worker_reachable{clusterbinding=\"broken\"} 1",
        "kubeocean_manager_component_available_replicas{clusterbinding=\"good-a\",component=\"syncer\"} 1",
        "leader_election_master_status{name=\"kubeocean-manager-leader\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is missing in\n{metrics}");
    }
    let types =
        metrics.lines().filter(|line| line.starts_with("# TYPE kubeocean_syncer_vnode_total ")).count();
    assert_eq!(types, 1, "one description for the samples of all bindings");

    a_binding_reaches_no_secret_of_others(&site, &computing, &good).await;
    restart(&computing, &mut manager, &[&a, &b, &c]).await;
    delete(&computing, &fleet.computing, &b, &a).await;
    let released = manager.log().contains("binding released");
    assert!(released, "{}", manager.log());
    assert_manager_rights(&fleet.computing);
}

/// MC-822: whoever may write bindings cannot make the Manager use a Secret of a namespace that is not among those named,
/// also not by a finalizer that says that the binding was served before.
async fn a_binding_reaches_no_secret_of_others(site: &Site<'_>, computing: &Objects, kubeconfig: &str) {
    site.computing().create_namespace("private").await.expect("a namespace");
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "theirs", "namespace": "private"},
        "stringData": {"kubeconfig": kubeconfig},
    });
    site.computing().apply_objects(vec![secret]).await.expect("a Secret");
    let mark = site.computing().audit_mark().expect("an audit log");
    let reference = json!({"name": "theirs", "namespace": "private"});
    let spec = BindingSpec::new("curious").field("secretRef", reference);
    let curious = bind(site, spec, 1).await;
    let served = json!({"metadata": {"finalizers": [finalizer::BINDING_SYNCER]}});
    computing.merge(&binding_path(curious.name()), &served).await;
    let forbidden = "False/SecretForbidden";
    let message = wait_condition(computing, curious.name(), "CredentialsValid", forbidden).await;
    assert!(message.contains("private") && message.contains("--kubeconfig-namespaces"), "{message}");
    // Its Syncer runs, since it may have something to clean up, and says the same.
    let event = "WorkerConnectionFailed";
    wait_event(computing, curious.name(), event).await;
    assert!(computing.list(&vnodes_path(curious.name())).await.is_empty());
    let events = site.computing().audit_events_since(mark).expect("an audit log");
    let read = events.iter().filter(|one| one.user.username.ends_with(":kubeocean-manager"));
    let read: Vec<_> = read.filter(|one| one.object_ref.namespace == "private").collect();
    assert!(read.is_empty(), "{read:#?}");
    let released = json!({"metadata": {"finalizers": null}});
    computing.merge(&binding_path(curious.name()), &released).await;
    computing.delete(&binding_path(curious.name()), None).await;
    computing.wait_gone(&binding_path(curious.name())).await;
}

/// When each vnode's Lease was renewed last, by name.
async fn renewals(computing: &Objects) -> BTreeMap<String, String> {
    let leases = computing.list("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases").await;
    leases
        .iter()
        .map(|lease| (text(&lease["metadata"]["name"]), text(&lease["spec"]["renewTime"])))
        .filter(|(name, _)| name.starts_with("vnode-"))
        .collect()
}

/// Ctrl-C ends everything; a restart finds everything, and no vnode noticed.
async fn restart(computing: &Objects, manager: &mut Program, bindings: &[&Binding<'_>]) {
    let mut before = Vec::new();
    for binding in bindings {
        before.push(since(&computing.list(&vnodes_path(binding.name())).await));
    }
    // A vnode gets its first Lease when its turn comes.
    let vnodes: usize = before.iter().map(Vec::len).sum();
    wait_until("a Lease for each vnode", DEADLINE, async || {
        let now = renewals(computing).await;
        if now.len() == vnodes { Ok(()) } else { Err(now) }
    })
    .await;
    let stopping = Instant::now();
    let status = manager.interrupt().await.expect("an end");
    println!("ended {:?} after Ctrl-C", stopping.elapsed());
    assert!(status.success(), "{status}");
    assert!(stopping.elapsed() < generous(PROMISE), "{:?}", stopping.elapsed());
    let leases = format!("/apis/coordination.k8s.io/v1/namespaces/{SYSTEM_NAMESPACE}/leases");
    for lease in computing.list(&leases).await {
        let holder = text(&lease["spec"]["holderIdentity"]);
        assert_eq!(holder, "", "{} was released", lease["metadata"]["name"]);
    }
    let left = renewals(computing).await;
    assert_eq!(left.len(), vnodes, "the vnodes' Leases stay: {left:?}");

    manager.restart().expect("a restart");
    manager.wait_ready().await;
    let restarted = Instant::now();
    wait_until("all vnodes' Leases to be renewed", DEADLINE, async || {
        let now = renewals(computing).await;
        let old: Vec<_> = left.iter().filter(|(name, before)| now.get(*name) <= Some(*before)).collect();
        if old.is_empty() { Ok(()) } else { Err(format!("{old:?} of {now:?}")) }
    })
    .await;
    println!("all vnodes' Leases renewed {:?} after the restart", restarted.elapsed());
    for (binding, before) in bindings.iter().zip(before) {
        wait_ready(computing, binding.name()).await;
        let now = since(&computing.list(&vnodes_path(binding.name())).await);
        assert_eq!(now, before, "no vnode of {} was NotReady", binding.name());
    }
}

/// Deleting a binding takes everything of it away, in order, and nothing of another.
async fn delete(computing: &Objects, cluster: &Cluster, gone: &Binding<'_>, stays: &Binding<'_>) {
    let worker = Objects::of(gone.worker()).await;
    let kept = uids(&computing.list(&vnodes_path(stays.name())).await);
    let mark = cluster.audit_mark().expect("an audit log");
    computing.delete(&binding_path(gone.name()), None).await;
    wait_until("the binding to be gone", DEADLINE * 2, async || {
        match computing.get(&binding_path(gone.name())).await {
            None => Ok(()),
            Some(object) => Err(json!([object["metadata"]["finalizers"], object["status"]]).to_string()),
        }
    })
    .await;
    assert!(computing.list(&vnodes_path(gone.name())).await.is_empty());
    let selector = format!("{}%3D{}", label::MANAGED_BY.replace('/', "%2F"), label::MANAGED_BY_VALUE);
    for kind in ["pods", "secrets", "configmaps"] {
        let path = format!("/api/v1/namespaces/{}/{kind}?labelSelector={selector}", gone.mount_namespace());
        assert!(worker.list(&path).await.is_empty(), "copies of {kind} are left");
    }
    for node in worker.list("/api/v1/nodes").await {
        let applied = &node["metadata"]["labels"][label::POLICY_APPLIED];
        assert_eq!(applied, &Value::Null, "{}", node["metadata"]["name"]);
    }
    // The Syncer's finalizer went before the Manager's.
    let path = format!("{}?", binding_path(gone.name()));
    let mut wrote = cluster
        .audit_events_until(mark, 2, |event| event.verb == "patch" && event.uri.starts_with(&path))
        .await
        .expect("an audit log");
    // The Manager acts on what the Syncer did, not on its entry in the log.
    wrote.sort_by(|one, other| one.request_received_timestamp.cmp(&other.request_received_timestamp));
    let wrote: Vec<String> = wrote
        .into_iter()
        .filter_map(|event| event.uri.split("fieldManager=").nth(1)?.split('&').next().map(str::to_owned))
        .collect();
    assert_eq!(wrote, ["kubeocean-syncer", "kubeocean-manager"]);
    for reason in ["WaitingSyncerCleanup", "Cleanup", "Deleted"] {
        wait_event(computing, gone.name(), reason).await;
    }
    wait_ready(computing, stays.name()).await;
    assert_eq!(uids(&computing.list(&vnodes_path(stays.name())).await), kept);
    let pod = computing.get(&pod_path("users-a", "batch")).await.expect("the other binding's pod");
    assert_eq!(pod["status"]["phase"], "Running");
    assert!(pod["metadata"]["annotations"][annotation::PHYSICAL_POD_UID].is_string());
}

#[tokio::test]
async fn of_two_bindings_with_one_cluster_id_the_older_is_served() {
    let site = shared_manager().await;
    let computing = Objects::of(site.computing()).await;
    let older = bind(site, BindingSpec::new("twin-older").cluster_id("twin"), 1).await;
    wait_ready(&computing, older.name()).await;
    let vnodes = uids(&wait_vnodes(&computing, older.name(), 1).await);

    let younger = site.bind(BindingSpec::new("twin-younger").cluster_id("twin")).await.expect("a binding");
    let message = wait_condition(&computing, younger.name(), "SpecValid", "False/ClusterIDConflict").await;
    assert_eq!(
        message,
        "clusterID twin is already used by ClusterBinding twin-older, cannot be used by twin-younger"
    );
    wait_condition(&computing, younger.name(), "Ready", "False/ValidationFailed").await;
    let object = computing.get(&binding_path(younger.name())).await.expect("the binding");
    let finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    assert_eq!(finalizers, [finalizer::BINDING_MANAGER], "no Syncer touched it");

    computing.delete(&binding_path(younger.name()), None).await;
    computing.wait_gone(&binding_path(younger.name())).await;
    wait_ready(&computing, older.name()).await;
    assert_eq!(uids(&computing.list(&vnodes_path(older.name())).await), vnodes);

    // Who waited for the clusterID gets it when its owner goes. All of this may happen within one second, and of two
    // bindings made in one second the smaller name is served (API-108): the heir's is the greater.
    let heir = site.bind(BindingSpec::new("twin-then-heir").cluster_id("twin")).await.expect("a binding");
    wait_condition(&computing, heir.name(), "SpecValid", "False/ClusterIDConflict").await;
    computing.delete(&binding_path(older.name()), None).await;
    computing.wait_gone(&binding_path(older.name())).await;
    wait_ready(&computing, heir.name()).await;
    assert_manager_rights(site.computing());
}

#[tokio::test]
async fn every_mistake_in_a_secret_has_its_reason_and_mending_it_is_enough() {
    let site = shared_manager().await;
    let computing = Objects::of(site.computing()).await;
    let binding = site.bind(BindingSpec::new("mistakes")).await.expect("a binding");
    let good = binding
        .worker()
        .service_account_kubeconfig(binding.mount_namespace(), SYNCER_ACCOUNT)
        .await
        .expect("a kubeconfig");
    wait_ready(&computing, binding.name()).await;
    let secret = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/secrets/{}", binding.secret_name());
    let token =
        good.split("token: ").nth(1).and_then(|rest| rest.split_whitespace().next()).expect("a token");
    let token = token.trim_matches(['"', '\'', ',', '}']);
    let of_nobody = binding.worker().token_kubeconfig(SYSTEM_NAMESPACE, "not-a-token");
    binding.worker().create_namespace("no-rights").await.expect("a namespace");
    let without_rights =
        binding.worker().service_account_kubeconfig("no-rights", "default").await.expect("a kubeconfig");
    let marker = format!("/tmp/kubeocean-exec-{}", std::process::id());
    let runs = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: w\ncontexts: [{{name: w, context: {{cluster: w, user: w}}}}]\n\
         clusters: [{{name: w, cluster: {{server: '{}'}}}}]\n\
         users: [{{name: w, user: {{exec: {{apiVersion: client.authentication.k8s.io/v1, command: touch, \
         args: [{marker}], interactiveMode: Never}}}}}}]\n",
        binding.worker().server()
    );
    let reads = runs.replace("exec: {apiVersion", "tokenFile: /etc/hostname, x: {apiVersion");
    let untrusted: String = good
        .lines()
        .filter(|line| !line.contains("certificate-authority-data"))
        .flat_map(|line| [line, "\n"])
        .collect();

    computing.delete(&secret, None).await;
    let message =
        wait_condition(&computing, binding.name(), "CredentialsValid", "False/SecretNotFound").await;
    assert!(message.contains(&format!("{SYSTEM_NAMESPACE}/{}", binding.secret_name())), "{message}");
    let object = computing.get(&binding_path(binding.name())).await.expect("the binding");
    assert_eq!(object["status"]["phase"], "Failed");

    for (content, kind, wanted) in [
        (Some(json!({"other": "x"})), "CredentialsValid", "False/KeyMissing"),
        (Some(json!({"kubeconfig": " "})), "CredentialsValid", "False/KeyMissing"),
        (Some(json!({"kubeconfig": "no kubeconfig"})), "CredentialsValid", "False/KubeconfigInvalid"),
        (Some(json!({"kubeconfig": runs})), "CredentialsValid", "False/KubeconfigUnsafe"),
        (Some(json!({"kubeconfig": reads})), "CredentialsValid", "False/KubeconfigUnsafe"),
        (Some(json!({"kubeconfig": of_nobody})), "CredentialsValid", "False/Unauthorized"),
        (Some(json!({"kubeconfig": without_rights})), "CredentialsValid", "False/PermissionsMissing"),
        (Some(json!({"kubeconfig": untrusted})), "Connected", "False/TLSFailed"),
        (
            Some(
                json!({"kubeconfig": good.replace(binding.worker().server(), "https://worker.invalid:6443")}),
            ),
            "Connected",
            "False/DNSFailed",
        ),
        (None, "CredentialsValid", "True/KubeconfigValid"),
    ] {
        let content = content.unwrap_or_else(|| json!({"kubeconfig": good}));
        let mended = Instant::now();
        let object = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": binding.secret_name(), "namespace": SYSTEM_NAMESPACE},
            "stringData": content,
        });
        computing.delete(&secret, None).await;
        computing.create(&format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/secrets"), &object).await;
        let message = wait_condition(&computing, binding.name(), kind, wanted).await;
        println!("{wanted} after {:?}: {message}", mended.elapsed());
        assert!(!message.contains(token), "a token is in a condition: {message}");
        if wanted.ends_with("PermissionsMissing") {
            assert!(message.contains("nodes: get list watch"), "{message}");
        }
    }
    let mended = Instant::now();
    wait_ready(&computing, binding.name()).await;
    println!("Ready {:?} after that", mended.elapsed());
    assert!(mended.elapsed() < generous(PROMISE), "{:?}", mended.elapsed());
    assert!(!std::path::Path::new(&marker).exists(), "the command of the kubeconfig was run");
    assert_manager_rights(site.computing());
}

/// MC section 5: nothing of the worker is needed, and nothing in it is touched.
#[tokio::test]
async fn a_worker_that_is_gone_for_good_is_given_up() {
    let site = shared_manager().await;
    let computing = Objects::of(site.computing()).await;
    let binding = bind(site, BindingSpec::new("given-up"), 1).await;
    let worker = Objects::of(binding.worker()).await;
    wait_ready(&computing, binding.name()).await;
    let vnode = text(&wait_vnodes(&computing, binding.name(), 1).await[0]["metadata"]["name"]);
    site.computing().create_namespace("given-up").await.expect("a namespace");
    let settings = core_path("given-up", "configmaps", "settings");
    let content = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "finalizers": ["users.example/x"]},
        "data": {"a": "b"},
    });
    let before = computing.create("/api/v1/namespaces/given-up/configmaps", &content).await;
    let pod = |name: &str| {
        json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {
                "automountServiceAccountToken": false, "nodeName": vnode,
                "containers": [{"name": "c", "image": "batch:1", "envFrom": [{"configMapRef": {"name": "settings"}}]}],
            },
        })
    };
    computing.create("/api/v1/namespaces/given-up/pods", &pod("batch")).await;
    let running = |pod: &Value| (pod["status"]["phase"] == "Running").then(|| pod.clone());
    let path = pod_path("given-up", "batch");
    let vpod = computing.wait("the pod to run", &path, running).await;
    let copy = text(&vpod["metadata"]["annotations"][annotation::PHYSICAL_POD_NAME]);
    let kept = json!({"metadata": {"finalizers": ["users.example/x"]}});
    computing.merge(&path, &kept).await;
    let lease = format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{vnode}");
    assert!(computing.get(&lease).await.is_some());

    let gone = binding.worker().token_kubeconfig(SYSTEM_NAMESPACE, "not-a-token");
    binding.write_kubeconfig(&gone).await.expect("a Secret");
    wait_condition(&computing, binding.name(), "CredentialsValid", "False/Unauthorized").await;
    computing.delete(&binding_path(binding.name()), None).await;
    wait_condition(&computing, binding.name(), "Terminating", "True/WorkerUnreachable").await;
    assert!(computing.get(&vnode_path(&vnode)).await.is_some(), "nobody gave it up yet");
    let give_up = json!({"metadata": {"annotations": {annotation::FORCE_DETACH: "true"}}});
    computing.merge(&binding_path(binding.name()), &give_up).await;
    computing.wait_gone(&binding_path(binding.name())).await;

    assert_eq!(computing.get(&vnode_path(&vnode)).await, None);
    assert_eq!(computing.get(&lease).await, None);
    let failed = computing.get(&path).await.expect("a pod that somebody else holds");
    assert_eq!(
        (text(&failed["status"]["phase"]), text(&failed["status"]["reason"])),
        ("Failed".to_owned(), "WorkerDetached".to_owned())
    );
    assert!(failed["metadata"]["deletionTimestamp"].is_string());
    let released = computing.get(&settings).await.expect("the user's ConfigMap");
    for marks in ["labels", "annotations", "finalizers"] {
        assert_eq!(released["metadata"][marks], before["metadata"][marks], "{marks}");
    }
    wait_event(&computing, binding.name(), "ForcedDetach").await;
    let told = events(&computing, binding.name(), "ForcedDetach").await;
    assert!(
        told[0].contains(&format!("pods/{copy}")) && told[0].contains("configmaps/settings-"),
        "{told:?}"
    );
    let left = worker.get(&pod_path(binding.mount_namespace(), &copy)).await.expect("the copy");
    assert!(left["metadata"]["deletionTimestamp"].is_null(), "nobody touched the worker");
    computing.merge(&path, &json!({"metadata": {"finalizers": null}})).await;
    assert_manager_rights(site.computing());
}

fn vnode_path(vnode: &str) -> String {
    format!("/api/v1/nodes/{vnode}")
}

#[tokio::test]
async fn the_other_runtime_is_refused_in_words() {
    let run = || std::process::Command::new(kubeocean_binary().expect("the program")).arg("manager").output();
    let output = tokio::task::spawn_blocking(run).await.expect("a task").expect("a run");
    assert_eq!(output.status.code(), Some(1));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains("--runtime=deployment is not part of this version"), "{message}");
}
