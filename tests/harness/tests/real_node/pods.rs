//! What users do with pods, on a real node.

use std::collections::BTreeSet;
use std::time::Instant;

use kubeocean_harness::exec::{PROTOCOLS, Protocol, noise};
use kubeocean_harness::{Cluster, ClusterSpec, WhyNot, wait_until};
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;

use super::{DEADLINE, exec, run_pod, shared, text};

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
    let sent = noise(100 << 20);
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
    let ports = json!({"ports": [{"containerPort": 8080, "hostPort": 8099}]});
    run_pod(cluster, node.name(), "network", "echo hello >/tmp/f; httpd -f -p 8080 -h /tmp", ports).await;
    let connect = format!("nc -w 10 {} {} </dev/null", cluster.address(), cluster.port());
    let output = exec(cluster, Protocol::WebSocket, "network", &["sh", "-c", &connect], None).await;
    assert!(output.status.success(), "{output:?}");
    let ip = cluster
        .kubectl_text(&["get", "pod", "p", "-n", "network", "-o", "jsonpath={.status.podIP}"])
        .await
        .unwrap();
    // The pod's own port, and the node's that leads to it.
    for (host, port) in [(ip, 8080), (node.address().to_string(), 8099)] {
        let answer = wait_until("the pod's server", DEADLINE, async || {
            let mut stream = TcpStream::connect((host.as_str(), port)).await?;
            stream.write_all(b"GET /f HTTP/1.0\r\n\r\n").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.map(|_| answer)
        })
        .await;
        assert!(answer.ends_with("hello\n"), "{host}:{port}: {answer}");
    }
}

#[tokio::test]
async fn a_deleted_pod_ends_gracefully() {
    let Some((cluster, node)) = shared().await else { return };
    let script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.1; done";
    let grace = json!({"terminationGracePeriodSeconds": 300});
    run_pod(cluster, node.name(), "graceful", script, grace).await;
    let mut follow =
        cluster.kubectl_command(&["logs", "-f", "p", "-n", "graceful"]).unwrap().spawn().unwrap();
    let mut log = BufReader::new(follow.stdout.take().unwrap());
    let mut line = String::new();
    log.read_line(&mut line).await.unwrap();
    assert_eq!(line, "up\n");
    let started = Instant::now();
    cluster.kubectl_text(&["delete", "pod", "p", "-n", "graceful", "--wait"]).await.unwrap();
    println!("deleted in {:?}", started.elapsed());
    let mut rest = String::new();
    log.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "bye\n");
}

#[tokio::test]
async fn a_cluster_that_was_not_started_for_it_says_so() {
    let cluster = Cluster::start(ClusterSpec::computing()).await.unwrap();
    let why = cluster.start_real_node("none").await.unwrap_err();
    assert!(matches!(&why, WhyNot::NotHere(reason) if reason.contains("ClusterSpec::real_nodes")), "{why}");
}
