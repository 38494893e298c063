//! What the harness promises: a pair starts, its parts work together, nothing is left behind.

use std::time::Duration;

use kubeocean_harness::{NodeShape, shared, wait_until};

#[tokio::test(flavor = "multi_thread")]
async fn a_pair_starts_and_runs_a_pod() {
    let fleet = shared().await;
    println!("pair {:?}, computing {:?}, worker {:?}", fleet.start_time(), fleet.computing.start_time(), fleet.worker().start_time());
    let worker = fleet.worker();
    let nodes = worker.create_nodes("pair", 3, &NodeShape::new("4", "8Gi").gpus(1)).await.unwrap();
    worker.create_namespace("pair").await.unwrap();
    worker.apply("
apiVersion: v1
kind: Pod
metadata: {name: p, namespace: pair}
spec: {containers: [{name: c, image: i}]}
").await.unwrap();
    let phase = wait_until("the pod to run", Duration::from_secs(20), async || {
        let phase = worker.kubectl_text(&["get", "pod", "-n", "pair", "p", "-o", "jsonpath={.status.phase} {.spec.nodeName}"]).await.unwrap();
        if phase.starts_with("Running") { Ok(phase) } else { Err(phase) }
    }).await;
    println!("{phase} {nodes:?}");
    println!("{}", worker.kubectl_text(&["get", "nodes,pods", "-A", "-o", "wide"]).await.unwrap());
    println!("{}", worker.kubectl_text(&["version"]).await.unwrap());
    println!("{}", worker.kubectl_text(&["logs", "-n", "pair", "p"]).await.unwrap());
    println!("{} audit events", worker.audit_events().unwrap().len());
    use kubeocean_harness::Component::*;
    for c in [Etcd, ApiServer, ControllerManager, Scheduler, Kwok] { println!("{c:?} {:?}", worker.usage(c)); }
}
