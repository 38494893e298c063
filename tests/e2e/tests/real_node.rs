//! Pods with real containers on a leased node, used as a batch user does, through the computing cluster's API server: one
//! Manager process leases the node, copies the pods and serves the vnode's kubelet API.
//!
//! Where this machine cannot run a kubelet, each test says why in one line and does nothing; `KUBEOCEAN_REAL_NODE=required`
//! makes that a failure.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenReview, TokenReviewSpec};
use kube::Api;
use kube::api::PostParams;
use kubeocean_api::keys::taint;
use kubeocean_e2e::pods::{Objects, condition, pod_path};
use kubeocean_e2e::rights::assert_manager_rights;
use kubeocean_e2e::volumes::{create_claim, create_volume, user_of};
use kubeocean_harness::cluster::client_of;
use kubeocean_harness::exec::{PROTOCOLS, Protocol, Target, noise};
use kubeocean_harness::kubelet::BUSYBOX_IMAGE;
use kubeocean_harness::{
    Binding, BindingSpec, Cluster, ClusterSpec, Fleet, Program, RealNode, Site, wait_until,
};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::OnceCell;

/// Two busy cores start a container in seconds; a test machine may be busier.
const DEADLINE: Duration = Duration::from_mins(2);
/// The node, its binding and its policy.
const NAME: &str = "real-0";

/// A leased real node and the Manager that serves it. Its fields end in this order.
struct Leased {
    computing: &'static Cluster,
    _manager: Program,
    _binding: Binding<'static>,
    _node: RealNode,
}

/// The one that the tests of this process share, if this machine can run it.
async fn leased() -> Option<&'static Leased> {
    static FLEET: OnceCell<Fleet> = OnceCell::const_new();
    static SITE: OnceCell<Site<'static>> = OnceCell::const_new();
    static LEASED: OnceCell<Option<Leased>> = OnceCell::const_new();
    let start = async || {
        let specs = vec![ClusterSpec::worker("real").real_nodes()];
        let fleet = FLEET
            .get_or_init(async || Fleet::start_with(ClusterSpec::computing(), specs).await.expect("clusters"))
            .await;
        let node = fleet.worker().real_node_or_reason(NAME).await?;
        let site = SITE.get_or_init(async || Site::install(fleet).await.expect("charts")).await;
        let binding = site.bind(BindingSpec::new(NAME)).await.expect("a binding");
        let all = json!({"resourceLimits": [{"resource": "cpu", "percent": 100}]});
        binding.policy(NAME, all).await.expect("a policy");
        let mut manager = site.manager(&[]).await.expect("a Manager");
        manager.wait_ready().await;
        Some(Leased { computing: &fleet.computing, _manager: manager, _binding: binding, _node: node })
    };
    LEASED.get_or_init(start).await.as_ref()
}

impl Leased {
    /// Creates the pod `p` of one busybox container that runs `script`, in a namespace of its own. `fields` are more ones
    /// of the pod's `spec`, or of the container if those are its own.
    async fn create(&self, namespace: &str, script: &str, mut fields: Value) {
        self.computing.create_namespace(namespace).await.expect("a new namespace");
        let mut container = json!({
            "name": "c", "image": BUSYBOX_IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", script],
            "resources": {"requests": {"cpu": "10m"}},
        });
        for of_container in ["volumeMounts", "env", "readinessProbe", "lifecycle", "stdin", "stdinOnce"] {
            if !fields[of_container].is_null() {
                container[of_container] = fields[of_container].take();
            }
        }
        let mut spec = json!({
            "containers": [container],
            "terminationGracePeriodSeconds": 1,
            "tolerations": [{"key": taint::VNODE, "operator": "Exists"}],
        });
        for (name, value) in fields.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
            spec[name] = value.clone();
        }
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": namespace}, "spec": spec,
        });
        // The ServiceAccount of a new namespace comes a moment later.
        wait_until("the pod to be admitted", DEADLINE, async || {
            self.computing.apply_objects(vec![pod.clone()]).await.map_err(|error| format!("{error:#}"))
        })
        .await;
    }

    /// Waits until the pod of a namespace is as wanted.
    async fn wait<T>(&self, what: &str, namespace: &str, wanted: impl Fn(&Value) -> Option<T>) -> T {
        // A client belongs to the runtime of one test.
        let objects = Objects::of(self.computing).await;
        wait_until(what, DEADLINE, async || {
            let pod = objects.get(&pod_path(namespace, "p")).await;
            pod.as_ref().and_then(&wanted).ok_or_else(|| pod.map(|pod| pod["status"].to_string()))
        })
        .await
    }

    async fn run(&self, namespace: &str, script: &str, fields: Value) {
        self.create(namespace, script, fields).await;
        let running = |pod: &Value| (pod["status"]["phase"] == "Running").then_some(());
        self.wait("the pod to run", namespace, running).await;
    }

    /// What a command in the pod says, by standard output and standard error, and its exit code.
    async fn exec(
        &self,
        protocol: Protocol,
        namespace: &str,
        command: &[&str],
        input: Option<&[u8]>,
    ) -> (Option<i32>, Vec<u8>, String) {
        let target = Target { namespace, pod: "p" };
        let output = self.computing.exec(protocol, target, command, input).await.expect("kubectl ends");
        (output.status.code(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
    }

    async fn sh(&self, namespace: &str, script: &str) -> String {
        let (code, out, err) = self.exec(Protocol::WebSocket, namespace, &["sh", "-c", script], None).await;
        assert_eq!((code, err.as_str()), (Some(0), ""), "{script}");
        String::from_utf8(out).expect("text")
    }
}

#[tokio::test]
async fn logs_are_followed_to_the_end_of_the_container() {
    let Some(leased) = leased().await else { return };
    let script =
        "echo to stdout; echo to stderr >&2; until test -e /tmp/go; do sleep 0.1; done; echo last; exit 3";
    leased.run("logs", script, json!({"restartPolicy": "Never"})).await;
    let mut follow =
        leased.computing.kubectl_command(&["logs", "-f", "p", "-n", "logs"]).unwrap().spawn().unwrap();
    let mut log = BufReader::new(follow.stdout.take().unwrap()).lines();
    // Two streams have no order between them.
    let mut first = BTreeSet::new();
    for _ in 0..2 {
        first.insert(log.next_line().await.unwrap().unwrap());
    }
    assert_eq!(first, BTreeSet::from(["to stderr", "to stdout"].map(str::to_owned)));
    leased.sh("logs", "touch /tmp/go").await;
    assert_eq!(log.next_line().await.unwrap().as_deref(), Some("last"));
    assert_eq!(log.next_line().await.unwrap(), None, "the log ends with the container");
    assert!(follow.wait().await.unwrap().success());

    let ended = |pod: &Value| {
        let state = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
        (pod["status"]["phase"] == "Failed").then(|| state["exitCode"].clone())
    };
    assert_eq!(leased.wait("the pod to fail", "logs", ended).await, 3, "the exit code comes up");
    let kubectl = ["logs", "p", "-n", "logs", "--tail=1"];
    assert_eq!(
        leased.computing.kubectl_text(&kubectl).await.unwrap().trim_end(),
        "last",
        "also when it has ended"
    );
    assert_manager_rights(leased.computing);
}

#[tokio::test]
async fn exec_carries_output_errors_exit_code_and_the_end_of_input() {
    let Some(leased) = leased().await else { return };
    leased.run("exec", "sleep 1000", json!({})).await;
    for protocol in PROTOCOLS {
        let script = "echo out; echo err >&2; exit 7";
        let (code, out, err) = leased.exec(protocol, "exec", &["sh", "-c", script], None).await;
        assert_eq!(code, Some(7), "{protocol:?}");
        assert_eq!(out, b"out\n", "{protocol:?}");
        assert_eq!(err, "err\ncommand terminated with exit code 7\n", "{protocol:?}: kubectl adds a line");
        let (code, out, err) = leased.exec(protocol, "exec", &["cat"], Some(b"a\nb without newline")).await;
        assert_eq!((code, err.as_str()), (Some(0), ""), "{protocol:?}");
        assert_eq!(out, b"a\nb without newline", "{protocol:?}: the end of input came through");
    }
    assert_manager_rights(leased.computing);
}

#[tokio::test]
async fn a_hundred_mebibytes_come_back_through_exec_unchanged() {
    let Some(leased) = leased().await else { return };
    leased.run("bulk", "sleep 1000", json!({})).await;
    let sent = noise(100 << 20);
    for protocol in PROTOCOLS {
        let started = Instant::now();
        let (code, out, err) = leased.exec(protocol, "bulk", &["cat"], Some(&sent)).await;
        println!("100 MiB there and back over {protocol:?} in {:?}", started.elapsed());
        assert_eq!((code, err.as_str(), out.len()), (Some(0), "", sent.len()), "{protocol:?}");
        assert!(out == sent, "{protocol:?}: the content differs");
    }
    assert_manager_rights(leased.computing);
}

#[tokio::test]
async fn attach_and_forwarded_ports_reach_the_container() {
    let Some(leased) = leased().await else { return };
    let script =
        "echo hello >/tmp/f; httpd -p 8080 -h /tmp; while read line; do echo \"heard $line\"; done; echo end";
    let fields = json!({"stdin": true, "stdinOnce": true, "restartPolicy": "Never"});
    leased.run("attach", script, fields).await;
    let mut forward = leased
        .computing
        .kubectl_command(&["-n", "attach", "port-forward", "pod/p", ":8080"])
        .unwrap()
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(forward.stdout.take().unwrap()).lines();
    let line = lines.next_line().await.unwrap().unwrap();
    let local = line.split_whitespace().nth(2).unwrap().to_owned();
    let mut stream = TcpStream::connect(&local).await.unwrap();
    stream.write_all(b"GET /f HTTP/1.0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains(" 200 OK") && answer.ends_with("hello\n"), "{answer}");

    let mut attach = leased.computing.kubectl_command(&["attach", "-i", "p", "-n", "attach", "-q"]).unwrap();
    let mut attach = attach.stdin(std::process::Stdio::piped()).spawn().unwrap();
    let mut heard = BufReader::new(attach.stdout.take().unwrap()).lines();
    let mut stdin = attach.stdin.take().unwrap();
    stdin.write_all(b"one\n").await.unwrap();
    assert_eq!(heard.next_line().await.unwrap().as_deref(), Some("heard one"));
    drop(stdin);
    let ended = |pod: &Value| (pod["status"]["phase"] == "Succeeded").then_some(());
    leased.wait("the pod to end with its input", "attach", ended).await;
    assert_eq!(
        leased.computing.kubectl_text(&["logs", "p", "-n", "attach", "--tail=1"]).await.unwrap().trim(),
        "end"
    );
    assert_manager_rights(leased.computing);
}

#[tokio::test]
async fn settings_secrets_and_the_token_are_files_and_the_token_is_the_computing_clusters() {
    let Some(leased) = leased().await else { return };
    leased.computing.create_namespace("mounts").await.unwrap();
    let objects = json!([
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "mounts"},
            "data": {"colour": "blue"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hidden", "namespace": "mounts"},
            "stringData": {"word": "sesame"}},
    ]);
    leased.computing.apply_objects(objects.as_array().unwrap().clone()).await.unwrap();
    let fields = json!({
        "volumes": [
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "hidden", "secret": {"secretName": "hidden"}},
            {"name": "self", "downwardAPI": {"items": [
                {"path": "namespace", "fieldRef": {"fieldPath": "metadata.namespace"}},
                {"path": "cpu", "resourceFieldRef": {
                    "containerName": "c", "resource": "requests.cpu", "divisor": "1m",
                }},
            ]}},
        ],
        "volumeMounts": [
            {"name": "settings", "mountPath": "/settings"},
            {"name": "hidden", "mountPath": "/hidden"},
            {"name": "self", "mountPath": "/self"},
        ],
        "env": [
            {"name": "WORD", "valueFrom": {"secretKeyRef": {"name": "hidden", "key": "word"}}},
            {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ],
    });
    leased.run("mounts", "sleep 1000", fields).await;
    let said = leased.sh("mounts", "cat /settings/colour /hidden/word; echo \" $WORD $WHO\"").await;
    let (files, words) = said.trim_end().split_once(' ').unwrap();
    assert_eq!(files, "bluesesame");
    assert_eq!(words, "sesame p", "the pod's own name, not its copy's");
    let account = "/var/run/secrets/kubernetes.io/serviceaccount";
    let of_itself = leased.sh("mounts", &format!("cat /self/namespace {account}/namespace /self/cpu")).await;
    assert_eq!(of_itself, "mountsmounts10", "the pod's own namespace, not its copy's");

    // The token in the container is one of the computing cluster, for its ServiceAccount.
    let token = leased.sh("mounts", &format!("cat {account}/token")).await;
    let reviews: Api<TokenReview> = Api::all(leased.computing.client().await.unwrap());
    let spec = TokenReviewSpec { token: Some(token.trim().to_owned()), ..TokenReviewSpec::default() };
    let asked = TokenReview { spec, ..TokenReview::default() };
    let review = reviews.create(&PostParams::default(), &asked).await.unwrap().status.unwrap();
    assert_eq!((review.authenticated, review.error), (Some(true), None));
    let admin: Value = serde_saphyr::from_str(leased.computing.kubeconfig()).unwrap();
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": admin["clusters"],
        "contexts": [{"name": "c", "context": {"cluster": admin["clusters"][0]["name"], "user": "u"}}],
        "users": [{"name": "u", "user": {"token": token.trim()}}],
    });
    let api: Api<SelfSubjectReview> = Api::all(client_of(&kubeconfig.to_string()).await.unwrap());
    let review = api.create(&PostParams::default(), &SelfSubjectReview::default()).await.unwrap();
    let user = review.status.and_then(|status| status.user_info).and_then(|user| user.username);
    assert_eq!(user.as_deref(), Some("system:serviceaccount:mounts:default"));
    let authority = leased.sh("mounts", &format!("cat {account}/ca.crt")).await;
    assert!(authority.starts_with("-----BEGIN CERTIFICATE-----"), "{authority}");
    assert_manager_rights(leased.computing);
}

#[tokio::test]
async fn what_one_pod_writes_to_a_volume_another_one_reads() {
    let Some(leased) = leased().await else { return };
    // The kubelet's own folder on the node.
    let path = "/var/lib/volume-test";
    let host_path = json!({"hostPath": {"path": path, "type": "DirectoryOrCreate"}});
    let objects = Objects::of(leased.computing).await;
    let create = async |namespace: &str, source: Value| {
        leased.computing.create_namespace(namespace).await.unwrap();
        create_volume(&objects, namespace, source).await;
        create_claim(&objects, namespace, "data", namespace, json!({})).await;
    };
    create("volume-write", host_path).await;
    let mut mounted = user_of("data");
    mounted["restartPolicy"] = "Never".into();
    mounted["volumeMounts"] = json!([{"name": "data", "mountPath": "/data"}]);
    leased.create("volume-write", "echo written >/data/file", mounted.clone()).await;
    let ended = |pod: &Value| {
        (pod["status"]["phase"] == "Succeeded").then(|| pod["spec"]["nodeName"].as_str().unwrap().to_owned())
    };
    let vnode = leased.wait("the writer to end", "volume-write", ended).await;

    // A local volume is on a node: by its name here, and by another one in the worker cluster.
    let terms = json!([{"matchExpressions": [
        {"key": "kubernetes.io/hostname", "operator": "In", "values": [vnode]},
    ]}]);
    let local = json!({"local": {"path": path}, "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}});
    create("volume-read", local).await;
    leased.run("volume-read", "sleep 1000", mounted).await;
    assert_eq!(leased.sh("volume-read", "cat /data/file").await, "written\n");
    assert_manager_rights(leased.computing);
}

#[tokio::test]
async fn a_probe_decides_whether_the_pod_is_ready() {
    let Some(leased) = leased().await else { return };
    let probe = json!({"exec": {"command": ["test", "-e", "/tmp/ready"]}, "periodSeconds": 1});
    leased.run("probe", "sleep 1000", json!({"readinessProbe": probe})).await;
    let ready =
        |wanted: &'static str| move |pod: &Value| (condition(pod, "Ready")["status"] == wanted).then_some(());
    leased.wait("the pod not to be ready", "probe", ready("False")).await;
    leased.sh("probe", "touch /tmp/ready").await;
    leased.wait("the pod to be ready", "probe", ready("True")).await;
    leased.sh("probe", "rm /tmp/ready").await;
    leased.wait("the pod not to be ready again", "probe", ready("False")).await;
    assert_manager_rights(leased.computing);
}

#[tokio::test]
async fn a_deleted_pod_has_its_grace_and_is_followed_to_its_end() {
    let Some(leased) = leased().await else { return };
    let script = "trap 'echo bye; sleep 1; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    let before =
        json!({"preStop": {"exec": {"command": ["sh", "-c", "echo stopping >/proc/1/fd/1; sleep 1"]}}});
    leased.run("graceful", script, json!({"terminationGracePeriodSeconds": 300, "lifecycle": before})).await;
    let mut follow =
        leased.computing.kubectl_command(&["logs", "-f", "p", "-n", "graceful"]).unwrap().spawn().unwrap();
    let mut log = BufReader::new(follow.stdout.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).await.unwrap();
    assert_eq!(line, "up\n");
    let started = Instant::now();
    leased.computing.kubectl_text(&["delete", "pod", "p", "-n", "graceful", "--wait"]).await.unwrap();
    println!("deleted in {:?}", started.elapsed());
    assert!(started.elapsed() >= Duration::from_secs(2), "it had its time: {:?}", started.elapsed());
    let mut rest = String::new();
    log.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "stopping\nbye\n");
    assert_manager_rights(leased.computing);
}
