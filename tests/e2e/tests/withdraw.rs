//! Nodes that are leased no more: by an edit of a selector or a policy, at a bounded pace, and to the last pod.

#![expect(clippy::unwrap_used, reason = "a step that fails is a failed test")]

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use kubeocean_api::keys::{condition_type, finalizer, label, taint};
use kubeocean_e2e::exposition::Page;
use kubeocean_e2e::leasing::{
    DEADLINE, Leasing, amount, condition, generous, is_offered, merge, percent, summary, taint_of,
};
use kubeocean_e2e::rights::assert_rights;
use kubeocean_e2e::users::Users;
use kubeocean_e2e::veto::Veto;
use kubeocean_harness::{BindingSpec, NodeShape};
use serde_json::{Value, json};

/// What an edit may take to reach vnodes without pods.
const BOUND: Duration = Duration::from_secs(2);

fn half() -> Value {
    json!({"resourceLimits": [percent("cpu", 50)]})
}

/// Selects the nodes made for a binding of this name.
fn nodes_of(name: &str) -> Value {
    json!({"nodeSelectorTerms": [
        {"matchExpressions": [{"key": "harness.test/node-set", "operator": "In", "values": [name]}]},
    ]})
}

/// Waits until the number of vnodes is as wanted; says how long it took.
async fn becomes(leasing: &Leasing, what: &str, vnodes: usize) {
    let edited = Instant::now();
    leasing
        .until(&format!("{vnodes} vnodes: {what}"), DEADLINE, async || {
            let there = leasing.vnodes().await;
            if there.len() == vnodes { Ok(()) } else { Err(there.len()) }
        })
        .await;
    println!("{what}: {vnodes} vnodes after {:?} (bound {BOUND:?})", edited.elapsed());
    assert!(edited.elapsed() < generous(BOUND), "{what}: {:?}", edited.elapsed());
}

#[tokio::test]
async fn edits_take_effect_at_once_and_the_last_pod_decides() {
    let leasing = Leasing::start("withdraw", 2, &NodeShape::new("8", "16Gi"), half()).await;
    leasing.all("open vnodes", DEADLINE, is_offered).await;
    let bindings = leasing.bindings().await;
    let select = async |selector: Value| {
        merge(&bindings, "withdraw", json!({"spec": {"nodeSelector": selector}})).await;
    };
    select(nodes_of("nobody")).await;
    becomes(&leasing, "the binding selects other nodes", 0).await;
    select(nodes_of("withdraw")).await;
    becomes(&leasing, "the binding selects them again", 2).await;

    // The policy leases for somebody else: it is let go, though nobody serves that binding.
    let policies = leasing.policies().await;
    merge(&policies, "withdraw", json!({"spec": {"cluster": "somebody-else"}})).await;
    becomes(&leasing, "the policy is another binding's", 0).await;
    leasing
        .until("the policy to be let go", DEADLINE, async || {
            let held = policies.get("withdraw").await.unwrap();
            held.finalizers().iter().all(|name| name != finalizer::POLICY)
        })
        .await;
    merge(&policies, "withdraw", json!({"spec": {"cluster": "withdraw"}})).await;
    becomes(&leasing, "the policy is ours again", 2).await;
    assert_rights(&leasing.binding);
    the_last_pod_decides(&leasing).await;
}

/// Check 13: the worker node goes; its vnode goes after the last pod, whatever a DaemonSet does.
async fn the_last_pod_decides(leasing: &Leasing) {
    let node = leasing.nodes[0].clone();
    let vnode = leasing.one(&node, "an open vnode", is_offered).await;
    let name = vnode.name_any();
    let users = Users::of(leasing).await;
    users.run("a-stubborn", &name, &[]).await;
    users.run("batch", &name, &[]).await;
    let protection = Veto {
        cluster: leasing.binding.computing(),
        name: "withdraw-protects",
        operation: "DELETE",
        of: ["", "v1", "pods"],
        condition: "oldObject.metadata.name == 'a-stubborn'",
        allowed: "false",
        reason: "Invalid",
    };
    let dry = DeleteParams::default().dry_run();
    protection.begin(async || users.pods.delete("a-stubborn", &dry).await).await;
    let client = leasing.binding.computing().client().await.unwrap();
    let daemons: Api<DaemonSet> = Api::namespaced(client, &users.home);
    let everywhere = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "agent", "namespace": users.home},
        "spec": {
            "selector": {"matchLabels": {"app": "agent"}},
            "template": {
                "metadata": {"labels": {"app": "agent"}},
                "spec": {
                    "tolerations": [{"operator": "Exists"}],
                    "nodeSelector": {label::HOSTNAME: name},
                    "containers": [{"name": "c", "image": "agent:1"}],
                },
            },
        },
    });
    leasing.binding.computing().apply_objects(vec![everywhere]).await.unwrap();
    leasing
        .until("the DaemonSet's pod", DEADLINE, async || {
            let daemon = daemons.get("agent").await.unwrap();
            daemon.status.is_some_and(|status| status.current_number_scheduled == 1)
        })
        .await;
    // Somebody holds the pod after its end.
    let held = json!({"metadata": {"finalizers": ["e2e.test/keep"]}});
    users.pods.patch("batch", &PatchParams::default(), &Patch::Merge(&held)).await.unwrap();

    leasing.worker_nodes().await.delete(&node, &DeleteParams::default()).await.unwrap();
    let shown = leasing
        .one(&node, "a draining vnode", |vnode| {
            let draining = condition(vnode, condition_type::DRAINING);
            draining == Some(("True", "NodeGone")) && vnode.metadata.deletion_timestamp.is_some()
        })
        .await;
    assert_eq!(taint_of(&shown, taint::VNODE_DELETING).unwrap().effect, "NoSchedule");
    let conditions = shown.status.as_ref().unwrap().conditions.as_ref().unwrap();
    let draining = conditions.iter().find(|one| one.type_ == condition_type::DRAINING).unwrap();
    assert_eq!(draining.message.as_deref(), Some("2 pods left"));
    // One that cannot be deleted holds up no other, and goes as soon as it can.
    asked_to_go(leasing, &users, "batch").await;
    assert!(users.pods.get("a-stubborn").await.unwrap().metadata.deletion_timestamp.is_none());
    protection.end().await;
    asked_to_go(leasing, &users, "a-stubborn").await;

    // The worker's control plane ends pods of a node that is gone, a minute later; this is the same.
    let worker = leasing.binding.worker().client().await.unwrap();
    let copies: Api<Pod> = Api::namespaced(worker, leasing.binding.mount_namespace());
    let of_the_node = ListParams::default().fields(&format!("spec.nodeName={node}"));
    copies.delete_collection(&DeleteParams::default().grace_period(0), &of_the_node).await.unwrap();
    // A refused deletion counts nothing, and one that is asked for again nothing more; the DaemonSet's pod waits.
    leasing
        .until("two drained pods", DEADLINE, async || {
            let page = Page::parse(&leasing.syncer.metrics().await.unwrap());
            let labels = [("clusterbinding", "withdraw"), ("mode", "drained")];
            let drained = page.value("kubeocean_syncer_reclaim_pods_total", &labels);
            if drained == Some(2.0) { Ok(()) } else { Err(drained) }
        })
        .await;
    leasing
        .one(&node, "the vnode to wait for its last pod", |vnode| vnode.metadata.deletion_timestamp.is_some())
        .await;
    let free = json!({"metadata": {"finalizers": null}});
    users.pods.patch("batch", &PatchParams::default(), &Patch::Merge(&free)).await.unwrap();
    leasing.withdrawn(&node).await;
    let daemon = daemons.get("agent").await.unwrap();
    println!("the DaemonSet when the vnode was gone: {:?}", daemon.status);
}

async fn asked_to_go(leasing: &Leasing, users: &Users<'_>, pod: &str) {
    leasing
        .until(&format!("the pod {pod} to be asked to go"), DEADLINE, async || {
            users.pods.get(pod).await.unwrap().metadata.deletion_timestamp.is_some()
        })
        .await;
}

/// Nodes that may have lost their lease since `begun`, at one a minute.
fn turns(begun: Instant) -> usize {
    1 + usize::try_from(begun.elapsed().as_secs() / 60).unwrap()
}

/// Whether the vnode's withdrawal has not begun.
fn waits(vnode: &Node) -> bool {
    taint_of(vnode, taint::VNODE_DELETING).is_none() && vnode.metadata.deletion_timestamp.is_none()
}

/// However slow the machine is: each look is held to the turns that were possible by its end.
#[tokio::test]
async fn a_mistake_takes_one_node_a_minute() {
    const NODES: usize = 5;
    let leasing = Leasing::start_as(
        BindingSpec::new("withdraw-pace"),
        NODES,
        &NodeShape::new("8", "16Gi"),
        half(),
        &["--reclaim-max-nodes-per-minute=1"],
    )
    .await;
    let before = leasing.all("open vnodes", DEADLINE, is_offered).await;
    let mut mistake = half();
    mistake["nodeSelector"] = nodes_of("nobody");
    let begun = Instant::now();
    leasing.edit(mistake).await;
    let fewer = leasing
        .until("the first one to go", DEADLINE, async || {
            let there = leasing.vnodes().await;
            if there.len() < NODES { Ok(there.len()) } else { Err(there.len()) }
        })
        .await;
    assert!(NODES - fewer <= turns(begun), "{fewer} left after {:?}", begun.elapsed());

    // The others stay as they are, tell how their nodes are, and offer nothing that others took.
    let workers = leasing.worker_nodes().await;
    let problem =
        json!({"status": {"conditions": [{"type": "KernelDeadlock", "status": "True", "reason": "Test"}]}});
    for node in &leasing.nodes {
        workers.patch_status(node, &PatchParams::default(), &Patch::Strategic(&problem)).await.unwrap();
        leasing.foreign_pod(node, "6").await;
    }
    let fits = |vnode: &Node| {
        condition(vnode, "KernelDeadlock") == Some(("True", "Test")) && amount(vnode, "cpu") == Some("2")
    };
    let waiting = leasing
        .until("what the nodes tell and what is left of them", DEADLINE, async || {
            let mut waiting = leasing.vnodes().await;
            waiting.retain(waits);
            if waiting.iter().all(fits) {
                Ok(waiting)
            } else {
                Err(waiting.iter().map(summary).collect::<Vec<_>>())
            }
        })
        .await;
    assert!(!waiting.is_empty() && NODES - waiting.len() <= turns(begun), "after {:?}", begun.elapsed());
    assert!(waiting.iter().all(is_offered));
    // What is told is what is published, though nothing new was decided: 2 cores of each that waits.
    leasing
        .until("the metrics of what waits", DEADLINE, async || {
            let page = Page::parse(&leasing.syncer.metrics().await.unwrap());
            let mut left = leasing.vnodes().await;
            left.retain(waits);
            let labels = [("clusterbinding", "withdraw-pace"), ("rlp", "withdraw-pace"), ("resource", "cpu")];
            let told = page.value("kubeocean_policy_offered", &labels).map(|cores| cores / 2000.0);
            let waiting = u32::try_from(left.len()).map(f64::from).ok();
            if told == waiting { Ok(()) } else { Err((told, waiting)) }
        })
        .await;
    let policy = leasing.policy("withdraw-pace").await.unwrap();
    assert!(
        policy["metadata"]["finalizers"].as_array().unwrap().iter().any(|held| held == finalizer::POLICY)
    );

    // Noticed in time.
    leasing.edit(half()).await;
    let after = leasing.all("open vnodes", DEADLINE, |vnode| is_offered(vnode) && waits(vnode)).await;
    let kept = after.iter().filter(|vnode| before.iter().any(|one| one.uid() == vnode.uid())).count();
    assert!(kept > 0 && NODES - kept <= turns(begun), "{kept} kept after {:?}", begun.elapsed());
    assert_rights(&leasing.binding);
}
