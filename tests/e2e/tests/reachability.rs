//! API servers that fall silent: they hold connections open and answer nothing, as behind a network that drops packets.
//!
//! One test, because it freezes the servers of its fleet.

use std::time::{Duration, Instant};

use kubeocean_api::keys::{condition_type, taint};
use kubeocean_e2e::leasing::{DEADLINE, Leasing, amount, condition, is_offered, is_ready, percent, taint_of};
use kubeocean_harness::{Component, NodeShape};
use serde_json::json;

/// A minute without an answer, and the pause between two questions.
const NOTICED: Duration = Duration::from_mins(3);

#[tokio::test]
async fn servers_that_fall_silent_are_noticed_and_forgiven() {
    let shape = NodeShape::new("8", "16Gi");
    let half = json!({"resourceLimits": [percent("cpu", 50)]});
    let leasing = Leasing::start("silence", 1, &shape, half).await;
    let node = leasing.nodes[0].clone();
    leasing.one(&node, "an open vnode", is_offered).await;

    // The worker: vnodes say so, stay Ready, and get no new pods.
    let recording = leasing.record().await;
    let worker = leasing.binding.worker();
    worker.freeze(Component::ApiServer).unwrap();
    let frozen = Instant::now();
    let vnode = leasing
        .until("the worker to be missed", NOTICED, async || {
            let vnode = leasing.vnode(&node).await.ok_or("no vnode")?;
            let marked = taint_of(&vnode, taint::WORKER_UNREACHABLE).is_some();
            let shown =
                condition(&vnode, condition_type::WORKER_REACHABLE) == Some(("False", "NoWorkerWatch"));
            if marked && shown { Ok(vnode) } else { Err("not yet") }
        })
        .await;
    println!("a silent worker was noticed after {:?}", frozen.elapsed());
    assert!(frozen.elapsed() > Duration::from_secs(55), "a minute is granted");
    assert_eq!(taint_of(&vnode, taint::WORKER_UNREACHABLE).unwrap().effect, "NoSchedule");
    assert_eq!(leasing.syncer.health("/readyz").await.unwrap().0, 200, "readiness does not depend on it");
    worker.thaw(Component::ApiServer).unwrap();
    leasing
        .one(&node, "the worker to be back", |vnode| {
            taint_of(vnode, taint::WORKER_UNREACHABLE).is_none()
                && condition(vnode, condition_type::WORKER_REACHABLE) == Some(("True", "WatchEstablished"))
        })
        .await;
    leasing.edit(json!({"resourceLimits": [percent("cpu", 25)]})).await;
    leasing.one(&node, "cpu 2", |vnode| amount(vnode, "cpu") == Some("2")).await;
    assert!(recording.states().iter().all(is_ready), "the vnode was Ready all the time");

    // The computing cluster: the Syncer is not ready, but alive.
    let computing = leasing.binding.computing();
    computing.freeze(Component::ApiServer).unwrap();
    let frozen = Instant::now();
    leasing
        .until("a Syncer that is not ready", NOTICED, async || {
            leasing.syncer.health("/readyz").await.is_ok_and(|(code, _)| code == 503)
        })
        .await;
    println!("a silent computing cluster was noticed after {:?}", frozen.elapsed());
    assert_eq!(leasing.syncer.health("/healthz").await.unwrap().0, 200);
    computing.thaw(Component::ApiServer).unwrap();
    leasing
        .until("a ready Syncer", DEADLINE, async || {
            leasing.syncer.health("/readyz").await.is_ok_and(|(code, _)| code == 200)
        })
        .await;
}
