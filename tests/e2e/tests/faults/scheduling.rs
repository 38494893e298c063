//! Copies that wait for the worker's scheduler, while the Syncer cannot know whether they still do (TD-804).

use std::time::{Duration, Instant};

use http::Method;
use kubeocean_api::keys::label;
use kubeocean_e2e::storm::{RECOVERED, Shelter, Side};
use kubeocean_harness::faults::{Fault, Refusal, Requests, Rule};
use kubeocean_harness::wait_until;
use serde_json::{Value, json};

/// Longer than a busy machine takes to bind a copy once it is there.
const TIMEOUT: Duration = Duration::from_secs(4);
/// So late the watch tells of the node.
const LATE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn no_pod_is_given_up_before_the_worker_says_that_its_copy_still_waits() {
    let flag = format!("--scheduling-timeout={}s", TIMEOUT.as_secs());
    let shelter = Shelter::start_with("unscheduled", &[&flag]).await;
    let scene = shelter.stage.scene("unscheduled").await;
    let proxy = shelter.proxy(Side::Worker);
    let copies = format!("/namespaces/{}/pods", shelter.stage.binding.mount_namespace());
    proxy.inject(Rule::new(Requests::watches().about(&copies), Fault::Slow(LATE)));
    let looks_at = |name: &str| -> Vec<Instant> {
        let path = scene.ppod(name);
        let looks = proxy.served().into_iter().filter(|look| look.method == Method::GET && look.path == path);
        looks.map(|look| look.at).collect()
    };
    let unanswered = Requests::reads().about(&scene.ppod("unanswered"));
    proxy.inject(Rule::new(unanswered, Fault::Refuse(Refusal::InternalError)));
    // A watch that was there before is under no rule.
    proxy.break_connections();

    let vnode = shelter.stage.wait_vnodes().await.remove(0);
    let huge = json!({
        "nodeName": vnode["metadata"]["name"],
        "containers": [{"name": "main", "image": "example.test/image", "resources": {"requests": {"cpu": "1000"}}}],
    });
    for name in ["bound", "unanswered"] {
        scene.create_pod(&scene.pod(name, huge.clone())).await;
    }

    // One gets a node in time, and nothing but a look at its copy tells.
    let copy = |pod: &Value| Some(pod.clone());
    let before = scene.worker.wait("the copy", &scene.ppod("bound"), copy).await;
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": scene.copy_name("bound")},
        "target": {
            "apiVersion": "v1", "kind": "Node", "name": vnode["metadata"]["labels"][label::PHYSICAL_NODE_NAME],
        },
    });
    scene.worker.create(&format!("{}/binding", scene.ppod("bound")), &binding).await;
    let (_, after) = scene.wait_running("bound").await;
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
    assert!(!looks_at("bound").is_empty(), "the watch told");

    // Of the other one the worker says nothing: its scheduler gets all its time anew, and not just until the next try.
    let (first, second) =
        wait_until("two looks", RECOVERED, async || match looks_at("unanswered").as_slice() {
            [first, second, ..] => Ok((*first, *second)),
            looks => Err(looks.len()),
        })
        .await;
    let pause = second.duration_since(first);
    assert!(pause >= TIMEOUT, "asked again after {pause:?}");
    let waits = scene.computing.get(&scene.vpod("unanswered")).await.expect("the pod");
    assert_eq!(waits["status"]["phase"], "Pending", "{waits:#}");
}
