//! Limits of streams and connections, and listeners that cannot open their port: each with a Proxier of its own.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use futures::{AsyncBufReadExt, TryStreamExt};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;
use kubeocean_e2e::kubelet::Kubelet;
use kubeocean_e2e::leasing::generous;
use kubeocean_e2e::pods::{DEADLINE, Stage};
use kubeocean_e2e::rights::assert_proxier_rights;
use kubeocean_harness::{BindingSpec, Program, wait_until};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{apiserver, kubectl, port_of};

/// Waits until a line of the metrics is there.
async fn wait_metric(proxier: &Program, line: &str) {
    wait_until(line, DEADLINE, async || {
        let text = proxier.metrics().await.map_err(|error| error.to_string())?;
        if text.lines().any(|one| one == line) { Ok(()) } else { Err(text) }
    })
    .await;
}

#[tokio::test]
async fn streams_beyond_the_limit_of_a_pod_are_refused_until_one_ends() {
    let (stage, proxier) =
        Stage::start_with_proxier(BindingSpec::new("limits"), 1, &["--max-streams-per-pod=2"]).await;
    let scene = stage.scene("limits").await;
    let (vpod, _) = scene.run_pod("full", json!({})).await;
    scene.run_pod("other", json!({})).await;
    wait_until("the first log", DEADLINE, async || kubectl(&scene, &["logs", "full"]).await).await;
    wait_metric(&proxier, "kubeocean_proxier_streams{clusterbinding=\"limits\",kind=\"logs\"} 0").await;

    let client = stage.binding.computing().client().await.expect("a client");
    let pods: Api<Pod> = Api::namespaced(client, "limits");
    let follow = LogParams { follow: true, tail_lines: Some(1), ..LogParams::default() };
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut lines = pods.log_stream("full", &follow).await.expect("a log").lines();
        lines.try_next().await.expect("readable").expect("a line");
        open.push(lines);
    }
    let address = SocketAddr::new(proxier.ip(), port_of(&scene, &vpod).await);
    let node = Kubelet::at(address, Some(&apiserver(&scene))).await.expect("a caller");
    let full = "/containerLogs/limits/full/main";
    assert_eq!(node.get(full).await, (429, "too many open streams to this pod".to_owned()));
    assert_eq!(node.get("/containerLogs/limits/other/main").await.0, 200, "others are not concerned");
    let refused = kubectl(&scene, &["exec", "full", "--", "echo", "x"]).await;
    assert!(refused.is_err(), "commands are streams too: {refused:?}");

    open.pop();
    wait_until("a place", DEADLINE, async || match node.get(full).await {
        (200, _) => Ok(()),
        (code, text) => Err(format!("{code} {text}")),
    })
    .await;
    drop(open);
    assert_proxier_rights(&stage.binding);
}

#[tokio::test]
async fn silent_streams_and_silent_callers_are_closed() {
    let args = ["--streaming-connection-idle-timeout=2s"];
    let (stage, proxier) = Stage::start_with_proxier(BindingSpec::new("idle"), 1, &args).await;
    let scene = stage.scene("idle").await;
    let (vpod, _) = scene.run_pod("web", json!({})).await;
    let address = SocketAddr::new(proxier.ip(), port_of(&scene, &vpod).await);
    wait_until("the first log", DEADLINE, async || kubectl(&scene, &["logs", "web"]).await).await;

    // Callers that do not finish their handshake, and one that never begins it.
    let silent = async |words: &[u8]| {
        let mut stream = TcpStream::connect(address).await.expect("the vnode's port");
        stream.write_all(words).await.expect("written");
        let began = Instant::now();
        let mut rest = Vec::new();
        let read = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut rest)).await;
        assert!(read.is_ok(), "a caller that says nothing keeps its place");
        began.elapsed()
    };
    // A command that says nothing. The API server asks after 5 s whether we live, which is later.
    let command = async {
        let began = Instant::now();
        // Of a stream that ends without a status kubectl says nothing, as when a kubelet cuts it.
        let sleeping = kubectl(&scene, &["exec", "web", "--", "sleep", "50"]);
        let ended = tokio::time::timeout(DEADLINE, sleeping).await;
        println!("the silent command ended: {ended:?}");
        assert!(ended.is_ok(), "kubectl waits on a stream that is cut");
        began.elapsed()
    };
    let (nothing, half, command) = tokio::join!(silent(b""), silent(&[0x16, 0x03, 0x01]), command);
    println!("closed after {nothing:?} and {half:?}, the silent command after {command:?}");
    for took in [nothing, half] {
        assert!(took >= Duration::from_secs(9) && took < generous(Duration::from_secs(12)), "{took:?}");
    }
    assert!(command >= Duration::from_secs(2) && command < generous(Duration::from_secs(8)), "{command:?}");
    let ended = "kubeocean_proxier_stream_end_total{clusterbinding=\"idle\",kind=\"exec\",reason=\"idle\"} 1";
    wait_metric(&proxier, ended).await;
    assert!(kubectl(&scene, &["exec", "web", "--", "echo", "x"]).await.is_ok(), "the next one works");
}

#[tokio::test]
async fn a_port_in_use_is_told_and_taken_when_it_is_free() {
    let (stage, mut proxier) = Stage::start_with_proxier(BindingSpec::new("occupied"), 1, &[]).await;
    let scene = stage.scene("occupied").await;
    let (vpod, _) = scene.run_pod("web", json!({})).await;
    wait_until("the first log", DEADLINE, async || kubectl(&scene, &["logs", "web"]).await).await;
    let address = SocketAddr::new(proxier.ip(), port_of(&scene, &vpod).await);

    proxier.kill();
    let occupier = std::net::TcpListener::bind(address).expect("the port is free");
    proxier.restart().expect("it starts again");
    proxier.wait_ready().await;
    let node = vpod["spec"]["nodeName"].as_str().expect("a node");
    let events = format!(
        "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3D{node}%2Creason%3DProxierPortUnavailable"
    );
    let message = wait_until("the event on the vnode", DEADLINE, async || {
        let events = scene.computing.list(&events).await;
        events.first().map(|event| event["message"].as_str().unwrap_or_default().to_owned())
    })
    .await;
    assert!(message.contains(&format!("port {}", address.port())), "{message}");
    wait_metric(&proxier, "kubeocean_proxier_listeners{state=\"failed\"} 1").await;
    // Whoever asks through the shared port is served meanwhile.
    let shared = SocketAddr::new(proxier.ip(), 10250);
    let shared = Kubelet::at(shared, Some(&apiserver(&scene))).await.expect("a caller");
    wait_until("the log through the shared port", DEADLINE, async || {
        match shared.get("/containerLogs/occupied/web/main").await {
            (200, _) => Ok(()),
            (code, text) => Err(format!("{code} {text}")),
        }
    })
    .await;

    drop(occupier);
    let freed = Instant::now();
    wait_until("the log", Duration::from_mins(2), async || kubectl(&scene, &["logs", "web"]).await).await;
    println!("served {:?} after the port was free", freed.elapsed());
    assert!(freed.elapsed() < Duration::from_mins(1) + DEADLINE / 6, "{:?}", freed.elapsed());
    wait_metric(&proxier, "kubeocean_proxier_listeners{state=\"failed\"} 0").await;
}
