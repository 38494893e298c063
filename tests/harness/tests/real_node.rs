//! A real kubelet with real containers: what runs on it behaves as in production, and nothing of it stays.
//!
//! Where a real node cannot run, each test says why in one line and does nothing; `KUBEOCEAN_REAL_NODE=required` makes that
//! a failure.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use kubeocean_harness::kubelet::{BUSYBOX_IMAGE, Network};
use kubeocean_harness::{Cluster, ClusterSpec, RealNode, WhyNot, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::OnceCell;

/// Two busy cores start a container in seconds; a test machine may be busier.
const DEADLINE: Duration = Duration::from_mins(1);
const CHILD: &str = "KUBEOCEAN_HARNESS_REAL_NODE_CHILD";

#[derive(Clone, Copy, Debug)]
enum Protocol {
    Spdy,
    WebSocket,
}

const PROTOCOLS: [Protocol; 2] = [Protocol::Spdy, Protocol::WebSocket];

/// The cluster and its node that the tests of this process share, if this machine can run it.
async fn shared() -> Option<&'static (Cluster, RealNode)> {
    static SHARED: OnceCell<Option<(Cluster, RealNode)>> = OnceCell::const_new();
    let start = async || {
        let cluster = Cluster::start(ClusterSpec::worker("real").real_nodes()).await.unwrap();
        let node = cluster.real_node_or_reason("real-0").await?;
        println!("cluster ready in {:?}, real node in {:?}", cluster.start_time(), node.start_time());
        Some((cluster, node))
    };
    SHARED.get_or_init(start).await.as_ref()
}

/// Starts a pod of one busybox container that runs `script`, in a namespace of its own, and waits until it runs.
async fn run_pod(cluster: &Cluster, node: &str, namespace: &str, script: &str, mut fields: Value) {
    cluster.create_namespace(namespace).await.unwrap();
    let mut container = json!({
        "name": "c", "image": BUSYBOX_IMAGE, "imagePullPolicy": "Never", "command": ["sh", "-c", script],
    });
    if let Some(mounts) = fields.as_object_mut().and_then(|fields| fields.remove("volumeMounts")) {
        container["volumeMounts"] = mounts;
    }
    let mut spec = json!({"nodeName": node, "containers": [container]});
    spec.as_object_mut().unwrap().extend(fields.as_object().cloned().unwrap_or_default());
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p", "namespace": namespace}, "spec": spec,
    });
    cluster.apply_objects(vec![pod]).await.unwrap();
    wait_until("the pod to run", DEADLINE, async || {
        let get = ["get", "pod", "p", "-n", namespace, "-o", "jsonpath={.status.phase} {.status.conditions}"];
        let status = cluster.kubectl_text(&get).await.map_err(|error| format!("{error:#}"))?;
        if status.starts_with("Running") { Ok(()) } else { Err(status) }
    })
    .await;
}

/// `kubectl exec` of a command in the pod, with the input and then its end if there is one.
async fn exec(
    cluster: &Cluster,
    protocol: Protocol,
    namespace: &str,
    command: &[&str],
    input: Option<&[u8]>,
) -> Output {
    let mut args = vec!["exec", "p", "-n", namespace];
    args.extend(input.map(|_| "-i"));
    args.push("--");
    args.extend(command);
    let sockets = matches!(protocol, Protocol::WebSocket).to_string();
    let mut kubectl = cluster.kubectl_command(&args).unwrap();
    kubectl.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", sockets);
    let mut child = kubectl.stdin(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let feed = async {
        // A command that does not read all its input has its reason; the test looks at its output.
        let _ = stdin.write_all(input.unwrap_or_default()).await;
        drop(stdin);
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feed);
    output.unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

#[tokio::test]
async fn logs_are_what_the_container_wrote() {
    let Some((cluster, node)) = shared().await else { return };
    run_pod(cluster, node.name(), "logs", "echo to stdout; echo to stderr >&2; sleep 1000", json!({})).await;
    wait_until("the log", DEADLINE, async || {
        let log =
            cluster.kubectl_text(&["logs", "p", "-n", "logs"]).await.map_err(|error| format!("{error:#}"))?;
        // Two streams have no order between them.
        let lines: BTreeSet<_> = log.lines().collect();
        if lines == BTreeSet::from(["to stdout", "to stderr"]) { Ok(()) } else { Err(log) }
    })
    .await;
    let wide = cluster.kubectl_text(&["get", "node", node.name(), "-o", "wide"]).await.unwrap();
    println!("{wide}");
    assert!(wide.contains("containerd://") && wide.contains(&node.address().to_string()), "{wide}");
    // The API server refuses this route for addresses on loopback.
    let path = format!("/api/v1/nodes/{}/proxy/healthz", node.name());
    assert_eq!(cluster.kubectl_text(&["get", "--raw", &path]).await.unwrap(), "ok");
}

#[tokio::test]
async fn exec_carries_output_errors_exit_code_and_the_end_of_input() {
    let Some((cluster, node)) = shared().await else { return };
    run_pod(cluster, node.name(), "exec", "sleep 1000", json!({})).await;
    for protocol in PROTOCOLS {
        let script = "echo out; echo err >&2; exit 7";
        let output = exec(cluster, protocol, "exec", &["sh", "-c", script], None).await;
        assert_eq!(output.status.code(), Some(7), "{protocol:?}");
        assert_eq!(text(&output.stdout), "out\n", "{protocol:?}");
        assert_eq!(
            text(&output.stderr),
            "err\ncommand terminated with exit code 7\n",
            "{protocol:?}: kubectl adds a line"
        );
        let output = exec(cluster, protocol, "exec", &["cat"], Some(b"a\nb without newline")).await;
        assert!(output.status.success(), "{protocol:?}: {}", text(&output.stderr));
        assert_eq!(text(&output.stdout), "a\nb without newline", "{protocol:?}");
        assert_eq!(text(&output.stderr), "", "{protocol:?}");
    }
}

#[tokio::test]
async fn a_hundred_mebibytes_come_back_through_exec_unchanged() {
    let Some((cluster, node)) = shared().await else { return };
    run_pod(cluster, node.name(), "bulk", "sleep 1000", json!({})).await;
    // Not periodic, so that a lost or doubled piece is seen.
    let mut state = 1_u64;
    let sent: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    })
    .take((100 << 20) / 8)
    .flatten()
    .collect();
    for protocol in PROTOCOLS {
        let started = Instant::now();
        let output = exec(cluster, protocol, "bulk", &["cat"], Some(&sent)).await;
        println!("100 MiB there and back over {protocol:?} in {:?}", started.elapsed());
        assert!(output.status.success(), "{protocol:?}: {}", text(&output.stderr));
        assert_eq!(output.stdout.len(), sent.len(), "{protocol:?}");
        assert!(output.stdout == sent, "{protocol:?}: the content differs");
    }
}

#[tokio::test]
async fn mounted_config_maps_secrets_and_tokens_are_files() {
    let Some((cluster, node)) = shared().await else { return };
    cluster.create_namespace("mounts").await.unwrap();
    let objects = json!([
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings", "namespace": "mounts"},
            "data": {"colour": "blue"}},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "hidden", "namespace": "mounts"},
            "stringData": {"word": "sesame"}},
    ]);
    cluster.apply_objects(objects.as_array().unwrap().clone()).await.unwrap();
    let fields = json!({
        "volumes": [
            {"name": "settings", "configMap": {"name": "settings"}},
            {"name": "hidden", "secret": {"secretName": "hidden"}},
        ],
        "volumeMounts": [
            {"name": "settings", "mountPath": "/settings"},
            {"name": "hidden", "mountPath": "/hidden"},
        ],
    });
    run_pod(cluster, node.name(), "mounts", "sleep 1000", fields).await;
    let script = "cat /settings/colour /hidden/word; test -s /run/secrets/kubernetes.io/serviceaccount/token || \
                  test -s /var/run/secrets/kubernetes.io/serviceaccount/token; echo \" $?\"";
    let output = exec(cluster, Protocol::WebSocket, "mounts", &["sh", "-c", script], None).await;
    assert_eq!(text(&output.stdout), "bluesesame 0\n", "{}", text(&output.stderr));
}

#[tokio::test]
async fn a_pod_and_its_cluster_reach_each_other() {
    let Some((cluster, node)) = shared().await else { return };
    run_pod(cluster, node.name(), "network", "echo hello >/tmp/f; httpd -f -p 8080 -h /tmp", json!({})).await;
    let connect = format!("nc -w 10 {} {} </dev/null", cluster.address(), cluster.port());
    let output = exec(cluster, Protocol::WebSocket, "network", &["sh", "-c", &connect], None).await;
    assert!(output.status.success(), "{output:?}");
    let ip = cluster
        .kubectl_text(&["get", "pod", "p", "-n", "network", "-o", "jsonpath={.status.podIP}"])
        .await
        .unwrap();
    let answer = wait_until("the pod's server", DEADLINE, async || {
        let mut stream = tokio::net::TcpStream::connect((ip.as_str(), 8080)).await?;
        stream.write_all(b"GET /f HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map(|_| answer)
    })
    .await;
    assert!(answer.ends_with("hello\n"), "{answer}");
}

#[tokio::test]
async fn a_deleted_pod_ends_gracefully() {
    let Some((cluster, node)) = shared().await else { return };
    let script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    let grace = json!({"terminationGracePeriodSeconds": 300});
    run_pod(cluster, node.name(), "graceful", script, grace).await;
    let mut follow =
        cluster.kubectl_command(&["logs", "-f", "p", "-n", "graceful"]).unwrap().spawn().unwrap();
    let mut log = tokio::io::BufReader::new(follow.stdout.take().unwrap());
    let mut line = String::new();
    tokio::io::AsyncBufReadExt::read_line(&mut log, &mut line).await.unwrap();
    assert_eq!(line, "up\n");
    let started = Instant::now();
    cluster.kubectl_text(&["delete", "pod", "p", "-n", "graceful", "--wait"]).await.unwrap();
    println!("deleted in {:?}", started.elapsed());
    let mut rest = String::new();
    log.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "bye\n");
}

/// What a node has on this machine, to be looked for when it is gone.
struct Traces {
    processes: Vec<u32>,
    name: String,
    directory: String,
}

impl Traces {
    fn of(node: &RealNode) -> Self {
        let directory = node.directory().display().to_string();
        Self { processes: node.processes().unwrap(), name: node.system_name(), directory }
    }

    /// What of it is still there.
    fn left(&self) -> Vec<String> {
        let mut left: Vec<_> =
            self.processes.iter().filter(|id| runs(**id)).map(|id| format!("process {id}")).collect();
        if link_exists(&self.name) {
            left.push(format!("link {}", self.name));
        }
        left.extend(cgroups(&self.name));
        // Another test's panic makes it evidence.
        let kept = Path::new(&self.directory).parent().is_some_and(|parent| parent.join("keep").exists());
        if Path::new(&self.directory).exists() && !kept {
            left.push(self.directory.clone());
        }
        // Of every process: a mount may hide in a namespace that somebody keeps.
        for id in processes() {
            let mounts = std::fs::read_to_string(format!("/proc/{id}/mountinfo")).unwrap_or_default();
            left.extend(
                mounts
                    .lines()
                    .filter(|line| line.contains(&self.directory))
                    .map(|line| format!("mount of {id}: {line}")),
            );
        }
        left
    }

    async fn wait_gone(&self) {
        wait_until("everything to be gone", Duration::from_secs(20), async || {
            let left = self.left();
            if left.is_empty() { Ok(()) } else { Err(left) }
        })
        .await;
    }
}

fn processes() -> BTreeSet<u32> {
    let entries = std::fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect()
}

/// Whether a process exists and is not merely waiting to be collected by init.
fn runs(id: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{id}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(')').map(|(_, rest)| !rest.trim_start().starts_with('Z')))
        .unwrap_or(false)
}

fn link_exists(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

fn cgroups(name: &str) -> Vec<String> {
    let root = Path::new("/sys/fs/cgroup");
    let controllers = std::fs::read_dir(root).unwrap().filter_map(|entry| Some(entry.ok()?.path()));
    let folders = controllers.chain([root.to_owned()]).map(|folder| folder.join(name));
    folders.filter(|path| path.exists()).map(|path| format!("cgroup {}", path.display())).collect()
}

#[tokio::test]
async fn a_second_node_survives_restarts_of_its_programs_and_leaves_nothing() {
    let Some((cluster, _)) = shared().await else { return };
    let mut node = cluster.start_real_node("real-1").await.unwrap();
    println!("second node in {:?}", node.start_time());
    let fields = json!({"volumes": [{"name": "v", "emptyDir": {"medium": "Memory"}}],
        "volumeMounts": [{"name": "v", "mountPath": "/v"}]});
    run_pod(cluster, "real-1", "leaves", "sleep 100000", fields).await;
    let sleeps = |node: &RealNode| {
        let line = |id: u32| std::fs::read_to_string(format!("/proc/{id}/cmdline")).unwrap_or_default();
        node.processes().unwrap().into_iter().find(|id| line(*id).contains("sleep\0100000"))
    };
    let container = sleeps(&node).expect("the container is among the node's processes");
    for restart in [RealNode::containerd, RealNode::kubelet] {
        restart(&mut node).restart().unwrap();
        wait_until("the node to serve again", DEADLINE, async || {
            let output = exec(cluster, Protocol::WebSocket, "leaves", &["echo", "again"], None).await;
            if output.stdout == b"again\n" { Ok(()) } else { Err(text(&output.stderr).to_owned()) }
        })
        .await;
    }
    assert_eq!(sleeps(&node), Some(container), "the container survived");
    let traces = Traces::of(&node);
    assert!(traces.processes.len() > 4, "{:?}", traces.processes);
    let mounts = node.command("cat").unwrap().arg("/proc/self/mountinfo").output().unwrap();
    assert!(text(&mounts.stdout).contains("overlay") && text(&mounts.stdout).contains("tmpfs"));
    // The link, the directory and a cgroup in each hierarchy; no mount is seen outside.
    let before = traces.left();
    assert!(!cgroups(&traces.name).is_empty() && link_exists(&traces.name), "{before:?}");
    let started = Instant::now();
    drop(node);
    println!("dropped in {:?}", started.elapsed());
    traces.wait_gone().await;
}

#[tokio::test]
async fn the_machine_keeps_its_settings() {
    let Some((_, node)) = shared().await else { return };
    let mut inside = node.command("cat").unwrap();
    let inside = inside.arg("/proc/sys/vm/overcommit_memory").output().unwrap();
    assert_eq!(text(&inside.stdout).trim(), "1", "what kubelet wants");
    let log = std::fs::read_to_string(node.directory().join("kubelet.log")).unwrap();
    assert!(!log.contains("Updating kernel flag"), "kubelet found everything set");
}

#[tokio::test]
async fn a_cluster_that_was_not_started_for_it_says_so() {
    let cluster = Cluster::start(ClusterSpec::computing()).await.unwrap();
    let why = cluster.start_real_node("none").await.unwrap_err();
    assert!(matches!(&why, WhyNot::NotHere(reason) if reason.contains("ClusterSpec::real_nodes")), "{why}");
}

/// The second process: does nothing in an ordinary run.
#[tokio::test]
async fn child() {
    let network_only = match std::env::var(CHILD) {
        Err(_) => return,
        Ok(what) => what == "network",
    };
    if network_only {
        let network = Network::take().unwrap();
        println!("name {}", network.name());
        let directory = std::env::temp_dir().join(format!("kubeocean-{}-1", std::process::id()));
        println!("directory {}", directory.display());
        println!("ready");
        std::future::pending::<()>().await;
    }
    let cluster = Cluster::start(ClusterSpec::worker("doomed").real_nodes()).await.unwrap();
    let node = cluster.start_real_node("doomed-0").await.unwrap();
    run_pod(&cluster, "doomed-0", "doomed", "sleep 1000", json!({})).await;
    for id in node.processes().unwrap() {
        println!("pid {id}");
    }
    println!("name {}", node.system_name());
    println!("directory {}", node.directory().display());
    println!("ready");
    std::future::pending::<()>().await;
}

/// Starts this test binary's [`child`] and collects what it says.
fn start_child(what: &str) -> (std::process::Child, Traces) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env(CHILD, what)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut traces = Traces { processes: Vec::new(), name: String::new(), directory: String::new() };
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        // The test runner may have written the test's name before the first line.
        if let Some((_, id)) = line.split_once("pid ") {
            traces.processes.push(id.parse().unwrap());
        } else if let Some((_, name)) = line.split_once("name ") {
            name.clone_into(&mut traces.name);
        } else if let Some((_, path)) = line.split_once("directory ") {
            path.clone_into(&mut traces.directory);
        } else if line.ends_with("ready") {
            break;
        }
    }
    assert!(link_exists(&traces.name), "the child did not start what it should");
    (child, traces)
}

fn send(id: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(id).unwrap()).unwrap(), signal).unwrap();
}

#[tokio::test]
async fn a_killed_test_process_leaves_nothing_of_its_node() {
    if shared().await.is_none() {
        return;
    }
    let (mut child, traces) = tokio::task::spawn_blocking(|| start_child("node")).await.unwrap();
    assert!(traces.processes.len() > 4 && traces.processes.iter().all(|id| runs(*id)));
    child.kill().unwrap();
    child.wait().unwrap();
    traces.wait_gone().await;
    let bridge = traces.name.rsplit_once('-').unwrap().0;
    wait_until("the network to be gone", DEADLINE, async || !link_exists(bridge)).await;
}

#[tokio::test]
async fn ctrl_c_leaves_no_network() {
    if shared().await.is_none() {
        return;
    }
    let (mut child, traces) = tokio::task::spawn_blocking(|| start_child("network")).await.unwrap();
    send(child.id(), Signal::INT);
    child.wait().unwrap();
    wait_until("the network to be gone", DEADLINE, async || !link_exists(&traces.name)).await;
}

#[tokio::test]
async fn what_a_killed_watchdog_did_not_remove_the_next_start_removes() {
    if shared().await.is_none() {
        return;
    }
    let (mut child, traces) = tokio::task::spawn_blocking(|| start_child("network")).await.unwrap();
    let id = child.id();
    let children = processes().into_iter().filter(|candidate| {
        let stat = std::fs::read_to_string(format!("/proc/{candidate}/stat")).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| rest.split_whitespace().nth(1) == Some(&id.to_string()))
    });
    // Its watchdog and what it watches, first: they would notice.
    for process in children.collect::<Vec<_>>() {
        send(process, Signal::KILL);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(link_exists(&traces.name), "nobody was left to remove it");
    std::fs::remove_dir_all(&traces.directory).unwrap();
    let next = tokio::task::spawn_blocking(Network::take).await.unwrap().unwrap();
    assert!(!link_exists(&traces.name) || next.name() == traces.name);
}
