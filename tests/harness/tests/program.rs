//! Processes beside the control planes: how they end is seen, and they can come back.

use std::time::Duration;

use kubeocean_harness::process::{Process, ProcessSpec};
use kubeocean_harness::{Program, ProgramSpec, shared_site, wait_until};

const DEADLINE: Duration = Duration::from_secs(20);

fn shell(name: &str, script: &str) -> Process {
    let log = std::env::temp_dir().join(format!("kubeocean-test-{name}-{}.log", std::process::id()));
    let args = ["-c", script].map(Into::into).to_vec();
    Process::spawn(ProcessSpec {
        name: name.to_owned(),
        program: "/bin/sh".into(),
        args,
        env: Vec::new(),
        log,
    })
    .unwrap()
}

async fn wait_starts(process: &Process, starts: usize) {
    wait_until("the shell to have started", DEADLINE, async || {
        let seen = process.log().matches("up").count();
        if seen == starts { Ok(()) } else { Err(seen) }
    })
    .await;
}

#[tokio::test]
async fn a_process_is_stopped_restarted_and_killed() {
    let mut process = shell("stops", "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.01; done");
    wait_starts(&process, 1).await;
    assert!(process.rss_kib().unwrap() > 0 && process.cpu_seconds().unwrap() >= 0.0);
    assert_eq!(process.stop(DEADLINE).await.unwrap().code(), Some(7));
    assert!(process.log().contains("bye"));
    assert_eq!(process.id(), None);
    process.restart().unwrap();
    wait_starts(&process, 2).await;
    process.kill();
    assert_eq!(process.id(), None);
    std::fs::remove_file(process.log_path()).unwrap();
}

#[tokio::test]
async fn a_process_that_ignores_the_request_to_stop_is_killed() {
    let mut process = shell("stubborn", "trap '' TERM; echo up; while :; do sleep 0.01; done");
    wait_starts(&process, 1).await;
    process.stop(Duration::from_millis(200)).await.unwrap_err();
    assert_eq!(process.id(), None);
    std::fs::remove_file(process.log_path()).unwrap();
}

#[tokio::test]
async fn the_end_of_a_program_is_reported_without_waiting_for_the_deadline() {
    let site = shared_site().await;
    let spec = ProgramSpec::syncer("no-such-binding");
    let mut program = Program::start(site.computing(), spec).await.unwrap();
    let error = program.try_wait_ready(Duration::from_mins(5)).await.unwrap_err();
    assert!(error.to_string().contains("the syncer ended with"), "{error}");
}
