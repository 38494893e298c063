//! What ConfigMaps and Secrets hold does not travel because they are watched.

use std::collections::BTreeSet;

use http::Method;
use kubeocean_e2e::storm::{RECOVERED, Shelter, Side};
use kubeocean_harness::site::SYSTEM_NAMESPACE;
use kubeocean_harness::wait_until;
use serde_json::json;

/// And in the worker those of others are not even listed.
#[tokio::test]
async fn configmaps_and_secrets_are_listed_and_watched_without_their_content() {
    let shelter = Shelter::start("content").await;
    let scene = shelter.stage.scene("content").await;
    // The namespace in which something is missing is watched beside what is copied.
    let missing = json!({"volumes": [
        {"name": "v", "configMap": {"name": "missing", "optional": true}},
        {"name": "w", "secret": {"secretName": "missing", "optional": true}},
    ]});
    scene.run_pod("hopes", missing).await;

    let mount = format!("/api/v1/namespaces/{}/", shelter.stage.binding.mount_namespace());
    // One Secret, by its name: the kubeconfig.
    let own = format!("/api/v1/namespaces/{SYSTEM_NAMESPACE}/secrets");
    for (side, places) in [(Side::Computing, 2), (Side::Worker, 1)] {
        let asked = wait_until("lists and watches of both kinds", RECOVERED, async || {
            let mut asked = shelter.proxy(side).served();
            asked.retain(|request| {
                let of_many = request.path.ends_with("/configmaps") || request.path.ends_with("/secrets");
                of_many && request.method == Method::GET && request.path != own
            });
            let kinds: BTreeSet<_> =
                asked.iter().map(|request| (request.path.clone(), request.watch)).collect();
            if kinds.len() >= 4 * places { Ok(asked) } else { Err(kinds) }
        })
        .await;
        for request in asked {
            assert!(request.accept.contains("as=PartialObjectMetadata"), "{side:?}: {request:?}");
            assert!(side == Side::Computing || request.path.starts_with(&mount), "{request:?}");
        }
    }
}
