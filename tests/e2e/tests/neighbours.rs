//! Two computing clusters that use one worker and one mount namespace, with the same names for everything: neither reads,
//! changes or takes along what is the other's (TD section 11).
//!
//! In: a binding of each cluster, a namespace of one name in both. Out: what their pods are told, and what is stored in the worker.

use std::collections::BTreeMap;
use std::time::Duration;

use kubeocean_api::keys::{annotation, condition_type, label};
use kubeocean_e2e::pods::{Scene, Stage, condition, text};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_harness::{BindingSpec, NodeShape, second_computing, shared_site, wait_until};
use serde_json::{Value, json};

const HOME: &str = "near";
/// A binding ends when its pods have.
const DETACHED: Duration = Duration::from_mins(2);

/// A binding of the second computing cluster to the mount namespace of `other`.
async fn stage_beside(other: &Stage, name: &str) -> Stage {
    let spec = BindingSpec::new(name).mount_namespace(other.binding.mount_namespace());
    let binding = shared_site().await.bind_at(second_computing().await, spec).await.expect("a binding");
    binding.worker().create_nodes(name, 1, &NodeShape::new("32", "128Gi")).await.expect("a node");
    let all = json!({"resourceLimits": [{"resource": "cpu", "percent": 100}]});
    binding.policy(name, all).await.expect("a policy");
    let syncer = binding.syncer(&[]).await.expect("a Syncer");
    Stage::served_by(binding, 1, syncer).await
}

/// ConfigMaps and Secrets of one name, with content that tells whose they are.
async fn create_objects(scene: &Scene<'_>, names: &[&str], whose: &str) {
    for name in names {
        scene.create_object("configmaps", name, json!({"data": {"whose": whose}})).await;
        scene.create_object("secrets", name, json!({"stringData": {"whose": whose}})).await;
    }
}

/// Refers to a ConfigMap and a Secret, or one of them, of a name in every way that differs.
fn user_of(name: &str, optional: bool) -> Vec<(String, Value)> {
    let volume = |source: Value| json!({"volumes": [source]});
    let from = |reference: Value| json!({"containers": [{"name": "main", "image": "example.test/image", "envFrom": [reference]}]});
    let named = json!({"name": name, "optional": optional});
    let all = [
        ("map", volume(json!({"name": "v", "configMap": named}))),
        ("secret", volume(json!({"name": "v", "secret": {"secretName": name, "optional": optional}}))),
        ("variables", from(json!({"configMapRef": named}))),
        ("keys", from(json!({"secretRef": named}))),
    ];
    all.into_iter().map(|(kind, spec)| (format!("{name}-{kind}"), spec)).collect()
}

/// What one of the two has in the mount namespace.
async fn belongings(scene: &Scene<'_>, whose: &Stage) -> BTreeMap<String, Value> {
    let mount = whose.binding.mount_namespace();
    let mut all = BTreeMap::new();
    for kind in ["pods", "configmaps", "secrets"] {
        for object in scene.worker.list(&format!("/api/v1/namespaces/{mount}/{kind}")).await {
            let metadata = &object["metadata"];
            if metadata["labels"][label::CLUSTER_BINDING] == *whose.binding.name() {
                let essence = json!([
                    metadata["uid"],
                    metadata["labels"],
                    metadata["deletionTimestamp"],
                    object["data"],
                ]);
                all.insert(format!("{kind} {}", text(&metadata["name"])), essence);
            }
        }
    }
    all
}

async fn wait_conflict(scene: &Scene<'_>, pod: &str) {
    let refused = |pod: &Value| {
        let created = condition(pod, condition_type::WORKER_POD_CREATED);
        (created["reason"] == "NameConflict").then(|| text(&created["message"]).to_owned())
    };
    let message = scene.computing.wait(&format!("a conflict of {pod}"), &scene.vpod(pod), refused).await;
    assert!(!message.contains(scene.stage.binding.mount_namespace()), "{message}");
}

/// Deletes a binding, and waits for its end.
async fn detach(scene: &Scene<'_>, binding: &str) {
    let path = format!("/apis/cloud.tencent.com/v1beta1/clusterbindings/{binding}");
    scene.computing.delete(&path, None).await;
    wait_until("the binding to go", DETACHED, async || match scene.computing.get(&path).await {
        None => Ok(()),
        Some(binding) => Err(binding["status"].to_string()),
    })
    .await;
}

#[tokio::test]
async fn clusters_with_the_same_names_reach_nothing_of_each_other() {
    let east_stage = Stage::start(BindingSpec::new("near-east"), 1).await;
    let west_stage = stage_beside(&east_stage, "near-west").await;
    let (east, west) = (east_stage.scene(HOME).await, west_stage.scene(HOME).await);
    create_objects(&east, &["both", "theirs"], "east").await;
    for (name, spec) in user_of("both", false).into_iter().chain(user_of("theirs", false)) {
        east.run_pod(&name, spec).await;
    }
    let before = belongings(&east, &east_stage).await;
    assert_eq!(before.len(), 8 + 4, "pods and what they refer to: {:?}", before.keys());

    // The west has one of the two names as well. What it has not, its pods say they can do without.
    create_objects(&west, &["both"], "west").await;
    let mut refused = Vec::new();
    for (name, spec) in user_of("both", false).into_iter().chain(user_of("theirs", true)) {
        // Under a name of its own the pod itself has a place.
        let own = format!("west-{name}");
        west.create_pod(&west.pod(&own, spec)).await;
        west.create_pod(&west.pod(&name, json!({}))).await;
        refused.extend([own, name]);
    }
    for pod in &refused {
        wait_conflict(&west, pod).await;
    }
    create_objects(&west, &["own"], "west").await;
    for (name, spec) in user_of("own", false).into_iter().chain(user_of("nobodys", true)) {
        west.run_pod(&name, spec).await;
    }
    let wests = belongings(&west, &west_stage).await;
    let mine = |key: &&String| key.contains(" own") || key.contains(" nobodys");
    assert_eq!(
        wests.keys().filter(mine).count(),
        wests.len(),
        "only of what is no conflict: {:?}",
        wests.keys()
    );
    assert_eq!(belongings(&east, &east_stage).await, before);

    // The west goes, conflicts and all, then the east.
    detach(&west, "near-west").await;
    assert_eq!(belongings(&west, &west_stage).await, BTreeMap::new());
    for kind in ["configmaps", "secrets"] {
        let own = west.computing.get(&west.object(kind, "both")).await.expect("the west's own");
        assert!(!own["metadata"].to_string().contains(annotation::PHYSICAL_NAME), "{own:#}");
    }
    assert_eq!(belongings(&east, &east_stage).await, before);
    assert_rights(&west_stage.binding);
    detach(&east, "near-east").await;
    assert_eq!(belongings(&east, &east_stage).await, BTreeMap::new());
    assert_rights(&east_stage.binding);
}
