//! Nothing is left behind, however a test process ends.
//!
//! The test starts itself as a second process, which starts a cluster and waits to be killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use kubeocean_harness::{Cluster, ClusterSpec, Component, wait_until};

const CHILD: &str = "KUBEOCEAN_HARNESS_TEST_CHILD";
const PROGRAMS: [Component; 5] = [
    Component::Etcd,
    Component::ApiServer,
    Component::ControllerManager,
    Component::Scheduler,
    Component::Kwok,
];

/// The second process: does nothing in an ordinary run.
#[tokio::test]
async fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let cluster = Cluster::start(ClusterSpec::worker("doomed")).await.unwrap();
    for program in PROGRAMS {
        println!("pid {}", cluster.process_id(program).unwrap());
    }
    println!("directory {}", cluster.directory().display());
    println!("ready");
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn a_killed_test_process_leaves_no_process_and_no_directory() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut pids = Vec::new();
    let mut directory = None;
    for line in BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok) {
        // The test runner may have written the test's name before the first line.
        if let Some((_, pid)) = line.split_once("pid ") {
            pids.push(pid.to_owned());
        } else if let Some(path) = line.strip_prefix("directory ") {
            directory = Some(path.to_owned());
        } else if line == "ready" {
            break;
        }
    }
    assert_eq!(pids.len(), PROGRAMS.len(), "the child did not start its cluster");
    assert!(pids.iter().all(|pid| runs(pid)));
    child.kill().unwrap();
    child.wait().unwrap();
    wait_until("the programs to be gone", Duration::from_secs(20), async || {
        let left: Vec<_> = pids.iter().filter(|pid| runs(pid)).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    let directory = directory.unwrap();
    wait_until("the directory to be gone", Duration::from_secs(20), async || !Path::new(&directory).exists())
        .await;
}

/// Whether a process exists and is not merely waiting to be collected by init.
fn runs(pid: &str) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .ok()
        .and_then(|stat| stat.rsplit_once(')').map(|(_, rest)| !rest.trim_start().starts_with('Z')))
        .unwrap_or(false)
}
