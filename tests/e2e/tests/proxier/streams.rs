//! What a hundred followers cost, credentials that change under running streams, and the orderly end.

use std::time::{Duration, Instant};

use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;
use kubeocean_e2e::kubelet::Kubelet;
use kubeocean_e2e::pods::{DEADLINE, Stage};
use kubeocean_e2e::rights::{assert_proxier_rights, assert_rights};
use kubeocean_harness::{BindingSpec, wait_until};
use serde_json::json;

use super::{kubectl, write_log};

/// Open sockets of a process.
fn sockets(pid: u32) -> usize {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("a running Proxier");
    let is_socket = |path: std::path::PathBuf| {
        std::fs::read_link(path).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    };
    files.filter_map(Result::ok).filter(|file| is_socket(file.path())).count()
}

#[tokio::test]
async fn a_hundred_followers_cost_little_and_leave_nothing() {
    let (stage, mut proxier) = Stage::start_with_proxier(BindingSpec::new("followers"), 1, &[]).await;
    let scene = stage.scene("followers").await;
    for pod in ["a", "b"] {
        scene.run_pod(pod, json!({})).await;
    }
    wait_until("the first log", DEADLINE, async || kubectl(&scene, &["logs", "a"]).await).await;
    let pid = proxier.process().id().expect("it runs");
    let (before, idle) = (proxier.process().rss_kib().expect("memory"), sockets(pid));

    let client = stage.binding.computing().client().await.expect("a client");
    let pods: Api<Pod> = Api::namespaced(client, "followers");
    let follow = LogParams { follow: true, tail_lines: Some(1), ..LogParams::default() };
    let opened = futures::stream::iter(0..100)
        .map(|number| {
            let (pods, follow) = (pods.clone(), follow.clone());
            async move {
                let mut lines =
                    pods.log_stream(["a", "b"][number % 2], &follow).await.expect("a log").lines();
                lines.try_next().await.expect("readable").expect("a line");
                lines
            }
        })
        .buffer_unordered(20)
        .collect::<Vec<_>>()
        .await;
    let after = proxier.process().rss_kib().expect("memory");
    let open = sockets(pid);
    println!("100 followers: {before} -> {after} KiB, {idle} -> {open} sockets");
    // The first follower uses the connection that the first log left open.
    assert!(open + 1 >= idle + 200, "one connection to each side a follower");
    assert!(after - before < 20 * 1024, "{before} -> {after} KiB");

    let gone = Instant::now();
    drop(opened);
    wait_until("all connections to be closed", DEADLINE, async || {
        let open = sockets(pid);
        // The API server keeps up to 25 idle connections for reuse; none leads to the worker.
        let text = proxier.metrics().await.map_err(|error| error.to_string())?;
        let none = "kubeocean_proxier_streams{clusterbinding=\"followers\",kind=\"logs\"} 0";
        if open <= idle + 25 && text.contains(none) { Ok(()) } else { Err(format!("{open} sockets")) }
    })
    .await;
    println!("all closed after {:?}", gone.elapsed());
    assert!(gone.elapsed() < kubeocean_e2e::leasing::generous(Duration::from_secs(2)));
    assert_rights(&stage.binding);
    assert_proxier_rights(&stage.binding);
}

#[tokio::test]
async fn credentials_change_under_running_streams_and_the_end_is_orderly() {
    let args = ["--drain-delay=1s", "--termination-grace-period=8s"];
    let (stage, mut proxier) = Stage::start_with_proxier(BindingSpec::new("rotation"), 1, &args).await;
    let scene = stage.scene("rotation").await;
    scene.run_pod("web", json!({})).await;
    wait_until("the first log", DEADLINE, async || kubectl(&scene, &["logs", "web"]).await).await;
    let client = stage.binding.computing().client().await.expect("a client");
    let pods: Api<Pod> = Api::namespaced(client, "rotation");
    let follow = LogParams { follow: true, tail_lines: Some(1), ..LogParams::default() };
    let mut lines = pods.log_stream("web", &follow).await.expect("a log").lines();
    lines.try_next().await.expect("readable").expect("a line");

    // A kubeconfig that would run a program is refused, and what works goes on.
    let worker = stage.binding.worker();
    let account =
        worker.service_account_kubeconfig(stage.binding.mount_namespace(), "kubeocean-syncer").await;
    let account = account.expect("a kubeconfig");
    let (head, _) = account.split_once("token:").expect("a token");
    let tail = account.split_once("contexts:").expect("contexts").1;
    let evil = format!(
        "{head}exec: {{command: touch, apiVersion: client.authentication.k8s.io/v1}}\ncontexts:{tail}"
    );
    stage.binding.write_kubeconfig(&evil).await.expect("written");
    proxier.wait_log("users[].user.exec", DEADLINE).await;
    assert!(kubectl(&scene, &["logs", "web"]).await.is_ok(), "the former credentials are still good");

    // A new token is used without a restart.
    stage.binding.write_kubeconfig(&account).await.expect("written");
    let connections = |log: &str| log.matches("connected to the worker cluster").count();
    wait_until("the second connection", DEADLINE, async || {
        let count = connections(&proxier.log());
        if count >= 2 { Ok(()) } else { Err(count) }
    })
    .await;
    assert!(kubectl(&scene, &["logs", "web"]).await.is_ok());
    write_log(&scene, "after the change");
    let line = tokio::time::timeout(DEADLINE, async {
        loop {
            let line = lines.try_next().await.expect("the stream lives").expect("a line");
            if line == "after the change" {
                return line;
            }
        }
    });
    assert!(line.await.is_ok());

    // Told to stop: unready at once, no new streams a little later, the running one until its grace is over.
    let stopping = Instant::now();
    let address = proxier.health_address();
    let stopped = async {
        let status = proxier.stop().await.expect("it ends");
        (status, stopping.elapsed())
    };
    let draining = async {
        let nobody = Kubelet::at(address, None).await.expect("a caller");
        wait_until("it to be unready", DEADLINE, async || {
            let (code, text) = nobody.get("/readyz").await;
            if code == 503 && text == "shutting down" { Ok(()) } else { Err(text) }
        })
        .await;
        assert_eq!(nobody.get("/healthz").await.0, 200);
    };
    let ((status, took), ()) = tokio::join!(stopped, draining);
    assert!(status.success(), "{status}");
    println!("ended after {took:?}");
    assert!(took >= Duration::from_secs(2), "the running stream had its grace: {took:?}");
    // What was on its way is read to the end.
    let cut = async { while let Ok(Some(_)) = lines.try_next().await {} };
    tokio::time::timeout(DEADLINE, cut).await.expect("and was cut then");
    let log = proxier.log();
    for secret in ["Bearer", "Authorization", "authorization:", "eyJ"] {
        assert!(!log.contains(secret), "{secret} in the log");
    }
}
