//! What no event tells is found by a sweep (TD-1201).

use std::time::Duration;

use kubeocean_api::name::token_secret_name;
use kubeocean_harness::{AuditEvent, wait_until};
use kubeocean_runtime::request::{DeleteOptions, delete_json, get_json, paths};

use super::{DEADLINE, World, pod_with_token, uid};

/// Time between two sweeps.
const SWEEP_EVERY: Duration = Duration::from_mins(30);

#[tokio::test]
async fn the_token_of_a_pod_that_went_unseen_is_removed() {
    let world = World::new("swept", None).await;
    world.directory.desert();
    let vpod = pod_with_token(&world).await;
    let mark = world.fleet.computing.audit_mark().unwrap();
    world.store.tokens.ensure(&world.clusters, &vpod).await.unwrap();
    let name = token_secret_name("web", "token", uid(&vpod), &world.namespace);
    let path = paths::core("secrets", &world.clusters.scope.mount_namespace, &name);
    let is_there = async || get_json(&world.clusters.worker, &path).await.unwrap().is_some();
    assert!(is_there().await);

    // Of a pod that does not run here yet nothing is due: once it was looked at, only the sweep comes back to it.
    let pod = paths::pod(&world.namespace, "web");
    let look = |event: &AuditEvent| event.verb == "get" && event.uri == pod;
    let looks = world.fleet.computing.audit_events_until(mark, 1, look).await.unwrap();
    assert!(!looks.is_empty(), "nobody looked at the pod");
    let at_once = DeleteOptions { grace_seconds: Some(0), ..DeleteOptions::default() };
    delete_json(&world.clusters.computing, &pod, &at_once).await.unwrap();

    tokio::time::pause();
    tokio::time::advance(SWEEP_EVERY).await;
    tokio::time::resume();
    wait_until("the Secret to be gone", DEADLINE, async || !is_there().await).await;
}
