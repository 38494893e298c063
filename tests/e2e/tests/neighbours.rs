//! Two computing clusters that use one worker, with the same names for everything: neither reads, changes or takes along what
//! is the other's (TD section 11).
//!
//! In: a binding of each cluster, once with one mount namespace and a namespace of one name in both, once with the same name
//! themselves. Out: what their users are told, and what is stored in the worker.

use std::collections::BTreeMap;
use std::time::Duration;

use kubeocean_api::keys::{annotation, condition_type, label};
use kubeocean_api::name::{phys_name, token_secret_name};
use kubeocean_e2e::pods::{Objects, Scene, Stage, condition, core_path, text};
use kubeocean_e2e::rights::{assert_rights, requests};
use kubeocean_e2e::volumes::{self, CLAIMS, VOLUMES, create_claim, create_volume, volume_path};
use kubeocean_harness::{AuditEvent, BindingSpec, NodeShape, second_computing, shared_site, wait_until};
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

/// A ConfigMap, a Secret and a claim of one name, and the claim's volume, with content that tells whose they are.
async fn create_objects(scene: &Scene<'_>, name: &str, volume: &str, whose: &str) {
    scene.create_object("configmaps", name, json!({"data": {"whose": whose}})).await;
    scene.create_object("secrets", name, json!({"stringData": {"whose": whose}})).await;
    create_volume(&scene.computing, volume, json!({"hostPath": {"path": format!("/volumes/{whose}")}})).await;
    create_claim(&scene.computing, &scene.namespace, name, volume, json!({})).await;
}

/// Spec of a pod with a token of its own.
fn signer() -> Value {
    let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}});
    json!({"volumes": [{"name": "t", "projected": {"sources": [token]}}]})
}

/// Runs a pod of [`signer`]; returns the path of the Secret that its copy finds the token in.
async fn run_signer(scene: &Scene<'_>, name: &str) -> String {
    let (vpod, ppod) = scene.run_pod(name, signer()).await;
    let secret = token_secret_name(name, "t", text(&vpod["metadata"]["uid"]), &scene.namespace);
    assert_eq!(ppod["spec"]["volumes"][0]["projected"]["sources"][0]["secret"]["name"], *secret);
    core_path(scene.stage.binding.mount_namespace(), "secrets", &secret)
}

/// Refers to what there is of a name, but for claims, which no pod can do without, in every way that differs.
fn user_of(name: &str, optional: bool) -> Vec<(String, Value)> {
    let volume = |source: Value| json!({"volumes": [source]});
    let from = |reference: Value| json!({"containers": [{"name": "main", "image": "example.test/image", "envFrom": [reference]}]});
    let named = json!({"name": name, "optional": optional});
    let mut all = vec![
        ("map", volume(json!({"name": "v", "configMap": named}))),
        ("secret", volume(json!({"name": "v", "secret": {"secretName": name, "optional": optional}}))),
        ("variables", from(json!({"configMapRef": named}))),
        ("keys", from(json!({"secretRef": named}))),
    ];
    if !optional {
        all.push(("claim", volumes::user_of(name)));
    }
    all.into_iter().map(|(kind, spec)| (format!("{name}-{kind}"), spec)).collect()
}

/// What one of the two has in the mount namespace, and the volumes of its claims there.
async fn belongings(scene: &Scene<'_>, whose: &Stage) -> BTreeMap<String, Value> {
    let of_mount = format!("/api/v1/namespaces/{}", whose.binding.mount_namespace());
    let mut all = BTreeMap::new();
    for kind in ["pods", "configmaps", "secrets", CLAIMS, "persistentvolumes"] {
        let collection =
            if kind == "persistentvolumes" { VOLUMES.to_owned() } else { format!("{of_mount}/{kind}") };
        for object in scene.worker.list(&collection).await {
            let metadata = &object["metadata"];
            if metadata["labels"][label::CLUSTER_BINDING] == *whose.binding.name() {
                let essence = json!([
                    metadata["uid"],
                    metadata["labels"],
                    metadata["deletionTimestamp"],
                    object["data"],
                    object["spec"],
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

fn binding_path(binding: &str) -> String {
    format!("/apis/cloud.tencent.com/v1beta1/clusterbindings/{binding}")
}

/// Deletes a binding, and waits for its end.
async fn detach(computing: &Objects, binding: &str) {
    let path = binding_path(binding);
    computing.delete(&path, None).await;
    wait_until("the binding to go", DETACHED, async || match computing.get(&path).await {
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
    for name in ["both", "theirs"] {
        create_objects(&east, name, name, "east").await;
        for (name, spec) in user_of(name, false) {
            east.run_pod(&name, spec).await;
        }
    }
    let easts_token = run_signer(&east, "signs").await;
    let before = belongings(&east, &east_stage).await;
    assert_eq!(before.len(), 10 + 8 + 2, "pods and what they refer to: {:?}", before.keys());

    // The west has one of the two names as well. What it has not, its pods say they can do without.
    create_objects(&west, "both", "own-spare", "west").await;
    west.create_pod(&west.pod("signs", signer())).await;
    let mut refused = vec!["signs".to_owned()];
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
    // A claim of its own may have a volume that is called as one of the east's: that has a second name (TD-1016).
    create_objects(&west, "own", "both", "west").await;
    for (name, spec) in user_of("own", false).into_iter().chain(user_of("nobodys", true)) {
        west.run_pod(&name, spec).await;
    }
    let second = phys_name("both", west_stage.binding.mount_namespace());
    let claim = west.worker.get(&west.copy(CLAIMS, "own")).await.expect("the claim's copy");
    assert_eq!(claim["spec"]["volumeName"], *second);
    let volume = west.worker.get(&volume_path(&second)).await.expect("the volume's copy");
    assert_eq!(volume["spec"]["hostPath"]["path"], "/volumes/west");
    assert_ne!(run_signer(&west, "own-signs").await, easts_token);

    let wests = belongings(&west, &west_stage).await;
    let second = format!("persistentvolumes {second}");
    let mine = |key: &&String| key.contains(" own") || key.contains(" nobodys") || **key == second;
    assert_eq!(
        wests.keys().filter(mine).count(),
        wests.len(),
        "only of what is no conflict: {:?}",
        wests.keys()
    );
    assert_eq!(belongings(&east, &east_stage).await, before);

    // The west goes, conflicts and all, then the east.
    detach(&west.computing, "near-west").await;
    assert_eq!(belongings(&west, &west_stage).await, BTreeMap::new());
    let originals = ["configmaps", "secrets", CLAIMS].map(|kind| west.object(kind, "both"));
    for path in originals.into_iter().chain([volume_path("both")]) {
        let own = west.computing.get(&path).await.expect("the west's own");
        assert!(!own["metadata"].to_string().contains(annotation::PHYSICAL_NAME), "{own:#}");
    }
    assert_eq!(belongings(&east, &east_stage).await, before);
    assert_rights(&west_stage.binding);
    detach(&east.computing, "near-east").await;
    assert_eq!(belongings(&east, &east_stage).await, BTreeMap::new());
    assert_rights(&east_stage.binding);
}

/// TD-1104: whoever came first has the policy, as long as it wants it.
#[tokio::test]
async fn a_policy_that_both_clusters_name_leases_for_one_of_them() {
    const NAME: &str = "near-twins";
    let first = Stage::start(BindingSpec::new(NAME), 1).await;
    let worker = Objects::of(first.binding.worker()).await;
    let policy = format!("/apis/cloud.tencent.com/v1beta1/resourceleasingpolicies/{NAME}");
    let held = async || {
        let policy = worker.get(&policy).await.expect("the policy");
        let metadata = &policy["metadata"];
        json!([metadata["finalizers"], metadata["annotations"], metadata["labels"], policy["spec"]])
    };
    let before = held().await;

    let (site, other) = (shared_site().await, second_computing().await);
    let binding = site.bind_at(other, BindingSpec::new(NAME)).await.expect("a binding");
    let syncer = binding.syncer(&[]).await.expect("a Syncer");
    let second = Stage::served_by(binding, 0, syncer).await;
    let computing = Objects::of(second.binding.computing()).await;
    let taken = |binding: &Value| {
        let resolved = condition(binding, "PoliciesResolved");
        let taken = (&resolved["status"], &resolved["reason"]) == (&json!("False"), &json!("PolicyTaken"));
        taken.then(|| text(&resolved["message"]).to_owned())
    };
    let message = computing.wait("word about the policy", &binding_path(NAME), taken).await;
    assert!(message.contains(NAME), "{message}");
    let vnodes = async || {
        let mut nodes = computing.list("/api/v1/nodes").await;
        nodes.retain(|node| node["metadata"]["labels"][label::CLUSTER_BINDING] == NAME);
        nodes
    };
    assert_eq!(vnodes().await, Vec::<Value>::new());
    assert_eq!(held().await, before);
    let (_, asked) = requests(&second.binding);
    let written = |event: &&AuditEvent| {
        event.is_write() && ["resourceleasingpolicies", "nodes"].contains(&event.object_ref.resource.as_str())
    };
    let written: Vec<_> = asked.iter().filter(written).collect();
    assert!(written.is_empty(), "{written:#?}");

    // The first lets it go with its binding.
    detach(&Objects::of(first.binding.computing()).await, NAME).await;
    wait_until("the second to lease", DETACHED, async || match vnodes().await.as_slice() {
        [vnode] if condition(vnode, "Ready")["status"] == "True" => Ok(()),
        other => Err(json!(other).to_string()),
    })
    .await;
    assert_ne!(held().await, before);
    assert_rights(&first.binding);
    assert_rights(&second.binding);
}
