//! Nothing of a node is left behind when its test process is killed.
//!
//! The test starts itself as a second process, which starts a node or only its network and waits to be killed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use kubeocean_harness::kubelet::Network;
use kubeocean_harness::{Cluster, ClusterSpec};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use super::traces::{Traces, processes, runs};
use super::{run_pod, shared};

const CHILD: &str = "KUBEOCEAN_HARNESS_REAL_NODE_CHILD";

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
    let name = node.system_name();
    println!("name {name}");
    println!("name {}", name.rsplit_once('-').unwrap().0);
    println!("directory {}", node.directory().display());
    println!("ready");
    std::future::pending::<()>().await;
}

/// Starts this test binary's [`child`] and collects what it says.
fn start_child(what: &str) -> (Child, Traces) {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["killed::child", "--exact", "--nocapture"])
        .env(CHILD, what)
        .stdout(Stdio::piped())
        .spawn()
        .expect("this test runs");
    let (mut processes, mut names, mut directory) = (Vec::new(), Vec::new(), String::new());
    for line in BufReader::new(child.stdout.take().expect("a pipe")).lines().map_while(Result::ok) {
        // The test runner may have written the test's name before the first line.
        if let Some((_, id)) = line.split_once("pid ") {
            processes.push(id.parse().expect("a process id"));
        } else if let Some((_, name)) = line.split_once("name ") {
            names.push(name.to_owned());
        } else if let Some((_, path)) = line.split_once("directory ") {
            path.clone_into(&mut directory);
        } else if line.ends_with("ready") {
            break;
        }
    }
    let traces = Traces::new(processes, names, directory);
    (child, traces)
}

fn send(id: u32, signal: Signal) {
    let id = i32::try_from(id).ok().and_then(Pid::from_raw).expect("a process id");
    kill_process(id, signal).expect("it runs");
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
}

#[tokio::test]
async fn ctrl_c_leaves_no_network() {
    if shared().await.is_none() {
        return;
    }
    let (mut child, traces) = tokio::task::spawn_blocking(|| start_child("network")).await.unwrap();
    send(child.id(), Signal::INT);
    child.wait().unwrap();
    traces.wait_gone().await;
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
    // Not the network's, but what this test kept the watchdog from removing.
    std::fs::remove_dir_all(&traces.directory).unwrap();
    // Another test process may be at it already, as the next; if not, this one is.
    let _next = tokio::task::spawn_blocking(Network::take).await.unwrap().unwrap();
    traces.wait_gone().await;
}
