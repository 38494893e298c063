//! Names that a tenant gives are names, not ways through the API server (TD-605).
//!
//! In: pods whose volumes name objects by paths and queries, which the API server accepts. Out: they are told that there is no
//! such object, and no request leaves the tenant's namespace.

use kubeocean_api::keys::condition_type;
use kubeocean_e2e::pods::{Stage, condition, text};
use kubeocean_e2e::rights::requests;
use kubeocean_harness::BindingSpec;
use serde_json::json;

#[tokio::test]
async fn a_name_leads_to_no_other_object() {
    let stage = Stage::start(BindingSpec::new("names"), 1).await;
    let scene = stage.scene("names").await;
    scene.create_object("secrets", "keys", json!({"stringData": {"k": "v"}})).await;
    let volumes = [
        json!({"secret": {"secretName": "../../kube-system/secrets/keys"}}),
        json!({"secret": {"secretName": "keys?watch=true"}}),
        json!({"configMap": {"name": "../secrets/keys"}}),
        json!({"configMap": {"name": "kube-root-ca.crt/../../secrets/keys"}}),
    ];
    for (number, volume) in volumes.into_iter().enumerate() {
        let mut volume = volume;
        volume["name"] = json!("v");
        let name = format!("path-{number}");
        scene.create_pod(&scene.pod(&name, json!({"volumes": [volume]}))).await;
        let refused = |pod: &serde_json::Value| {
            let created = condition(pod, condition_type::WORKER_POD_CREATED);
            (created["reason"] == "DependencyMissing").then(|| text(&created["message"]).to_owned())
        };
        let message = scene.computing.wait("the refusal", &scene.vpod(&name), refused).await;
        assert!(message.contains("does not exist"), "{message}");
        assert!(scene.worker.get(&scene.ppod(&name)).await.is_none());
    }
    let (computing, worker) = requests(&stage.binding);
    for event in computing.iter().chain(&worker) {
        let strange = ["..", "watch=true/", "keys?watch"].iter().any(|part| event.uri.contains(part));
        assert!(!strange, "{}", event.uri);
    }
}
