//! What is left of a worker when the binding leads to another one. No cluster answers here: what must happen happens
//! before anybody is asked.

use std::time::Duration;

use kubeocean_api::ClusterBinding;
use kubeocean_runtime::{
    binding::{Binding, connection::Connection},
    sink::Sink,
};
use serde_json::json;

use super::*;

fn client(config: &kube::Config) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::try_from(config.clone()).unwrap()
}

/// A link to a server that nobody asks.
fn link(server: &str) -> WorkerLink {
    let config = kube::Config::new(server.parse().unwrap());
    WorkerLink::new(&Connection { client: client(&config), config }, "m").unwrap()
}

/// A binding that serves a pod.
fn ready() -> Arc<BindingPart> {
    let part = Arc::new(BindingPart::new("b"));
    part.connected(link("https://127.0.0.1:1"));
    let pod = json!({"metadata": {"name": "copy", "namespace": "m", "uid": "c",
        "annotations": {"kubeocean.io/virtual-pod-uid": "v"}}});
    part.ppods.apply(serde_json::from_value(pod).unwrap());
    part.health.send_replace(BindingHealth::Ready);
    part
}

fn has_pod(part: &BindingPart) -> bool {
    !part.ppods.of_vpod("v").is_empty()
}

#[tokio::test]
async fn new_credentials_change_nothing_else() {
    let part = ready();
    part.connected(link("https://127.0.0.1:1"));
    assert!(has_pod(&part) && *part.health.borrow() == BindingHealth::Ready);
}

#[tokio::test]
async fn a_kubeconfig_of_another_cluster_knows_no_pod_of_the_former() {
    let part = ready();
    part.connected(link("https://127.0.0.1:2"));
    assert!(!has_pod(&part));
    assert!(matches!(&*part.health.borrow(), BindingHealth::Waiting(_)));
    assert!(part.worker().is_some(), "it is asked from now on");
}

fn follow(part: &Arc<BindingPart>, cancel: &CancellationToken) -> Follow {
    Follow {
        part: Arc::clone(part),
        computing: client(&kube::Config::new("https://127.0.0.1:1".parse().unwrap())),
        rules: kubeocean_runtime::binding::KubeconfigRules::default(),
        authorities: Arc::default(),
        vnodes_listed: Arc::default(),
        cancel: cancel.clone(),
    }
}

#[tokio::test]
async fn a_watch_is_a_part_of_its_binding_and_does_not_outlive_it() {
    let (part, cancel) = (ready(), CancellationToken::new());
    let follow = follow(&part, &cancel);
    let place = Place {
        secret: SecretRef { name: "s".to_owned(), namespace: "ns".to_owned() },
        mount_namespace: "m".to_owned(),
    };
    let mut watching = follow.watch_ppods(follow.computing.clone(), &place, cancel).boxed();
    assert!((&mut watching).now_or_never().is_none());
    assert!(Arc::strong_count(&part.ppods) > 1, "it writes the index");
    drop(watching);
    assert_eq!(Arc::strong_count(&part.ppods), 1, "nothing else runs that could panic unseen");
}

fn present(secret: &str) -> BindingState {
    let object: ClusterBinding = serde_json::from_value(json!({
        "metadata": {"name": "b", "uid": "u"},
        "spec": {"clusterID": "c", "mountNamespace": "m", "secretRef": {"name": secret, "namespace": "ns"}},
    }))
    .unwrap();
    BindingState::Present(Arc::new(Binding::of(&object)))
}

#[tokio::test]
async fn a_binding_that_moves_is_not_ready() {
    let part = ready();
    let cancel = CancellationToken::new();
    let follow = follow(&part, &cancel);
    let (sender, states) = watch::channel(present("first"));
    let running = tokio::spawn(async move { Box::pin(follow.run(states)).await });
    let mut health = part.health();
    tokio::task::yield_now().await;
    assert_eq!(*health.borrow(), BindingHealth::Ready, "a bad moment of the same worker changes nothing");
    let moved = async {
        sender.send(present("second")).unwrap();
        health.wait_for(|health| *health != BindingHealth::Ready).await.unwrap();
    };
    let moved = tokio::time::timeout(Duration::from_secs(10), moved).await;
    assert!(moved.is_ok(), "it says that it serves a worker nobody knows");
    assert!(part.worker().is_none() && !has_pod(&part));
    cancel.cancel();
    running.await.unwrap();
}
