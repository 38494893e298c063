//! Changes of a ClusterBinding that is served, and its end under hard conditions (BU section 14).

use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::core::v1::Node;
use kube::api::DeleteParams;
use kubeocean_api::keys::{condition_type, finalizer, label, taint};
use kubeocean_e2e::leasing::{
    DEADLINE, Leasing, amount, condition as node_condition, is_offered, is_ready, merge, percent, summary,
    taint_of,
};
use kubeocean_e2e::pods::{Objects, Stage, condition, text};
use kubeocean_e2e::rights::{LimitedAccount, assert_rights, features_off, requests};
use kubeocean_e2e::storm::pass;
use kubeocean_harness::{AuditEvent, BindingSpec, NodeShape, Wire, shared_site};
use serde_json::{Value, json};

fn tier(value: &str) -> Value {
    let expression = json!({"key": "e2e.test/tier", "operator": "In", "values": [value]});
    json!({"nodeSelectorTerms": [{"matchExpressions": [expression]}]})
}

fn all_cpu() -> Value {
    json!({"resourceLimits": [percent("cpu", 100)]})
}

#[tokio::test]
async fn one_edit_may_change_the_selector_and_the_default_taint() {
    let shape = NodeShape::new("8", "16Gi").label("e2e.test/tier", "binding-a");
    let mut leasing = Leasing::start("binding-edit", 2, &shape, all_cpu()).await;
    leasing.all("two vnodes", DEADLINE, |vnode| taint_of(vnode, taint::VNODE).is_some()).await;
    let workers = leasing.worker_nodes().await;
    let (leaves, stays) = (leasing.nodes[0].clone(), leasing.nodes[1].clone());
    merge(&workers, &stays, json!({"metadata": {"labels": {"e2e.test/tier": "binding-b"}}})).await;
    let edit = json!({"spec": {"nodeSelector": tier("binding-b"), "disableNodeDefaultTaint": true}});
    merge(&leasing.bindings().await, "binding-edit", edit).await;
    leasing.withdrawn(&leaves).await;
    leasing
        .one(&stays, "a vnode without the default taint", |vnode| {
            is_offered(vnode) && taint_of(vnode, taint::VNODE).is_none()
        })
        .await;

    // Back again: what only the new selector matches comes, and the taint with it.
    let edit = json!({"spec": {"nodeSelector": tier("binding-a"), "disableNodeDefaultTaint": false}});
    merge(&leasing.bindings().await, "binding-edit", edit).await;
    leasing.withdrawn(&stays).await;
    leasing.nodes.retain(|node| *node == leaves);
    leasing.one(&leaves, "a tainted vnode", |vnode| taint_of(vnode, taint::VNODE).is_some()).await;
    assert_rights(&leasing.binding);
}

/// A minute without the list, the pause between two looks, and between two attempts of the watch.
const NOTICED: Duration = Duration::from_mins(3);

/// Together: each is missed only after a minute.
#[tokio::test]
async fn a_right_that_is_missing_is_told_and_granting_it_is_enough() {
    let rights =
        [("rights-nodes", "nodes"), ("rights-pods", "pods"), ("rights-policies", "resourceleasingpolicies")];
    join_all(rights.into_iter().map(|(name, kind)| a_right_is_missing(name, kind))).await;
}

/// A kubeconfig is replaced by one that may not see a kind: nothing of what is leased is certain any more.
async fn a_right_is_missing(name: &str, kind: &str) {
    let leasing = Leasing::start(name, 1, &NodeShape::new("8", "16Gi"), all_cpu()).await;
    let node = leasing.nodes[0].clone();
    leasing.one(&node, "an open vnode", is_offered).await;
    let limited = LimitedAccount::without(&leasing.binding, kind).await;
    leasing.binding.write_kubeconfig(&limited.kubeconfig).await.expect("the Secret");
    none_are_seen(&leasing, kind).await;
    assert_eq!(leasing.syncer.health("/readyz").await.expect("an answer").0, 200);

    leasing.foreign_pod(&node, "6").await;
    limited.may_everything().await;
    let vnode = reach(&leasing, "the worker to be back", ("True", "WatchEstablished")).await;
    assert!(is_offered(&vnode));
    leasing.one(&node, "what the pod leaves", |vnode| amount(vnode, "cpu") == Some("2")).await;
}

/// Waits until the only vnode says how the worker can be reached, and is marked accordingly.
async fn reach(leasing: &Leasing, what: &str, wanted: (&str, &str)) -> Node {
    leasing
        .until(what, NOTICED, async || {
            let vnode = leasing.vnode(&leasing.nodes[0]).await.ok_or("no vnode")?;
            let marked = taint_of(&vnode, taint::WORKER_UNREACHABLE).is_some();
            let shown = node_condition(&vnode, condition_type::WORKER_REACHABLE) == Some(wanted);
            if shown && marked == (wanted.0 == "False") { Ok(vnode) } else { Err(summary(&vnode)) }
        })
        .await
}

/// Waits until the vnode says that the right to see a kind is missing, and what would help.
async fn none_are_seen(leasing: &Leasing, kind: &str) {
    let missed = format!("the watch of {kind} to be missed");
    let vnode = reach(leasing, &missed, ("False", "WatchFailed")).await;
    let conditions = vnode.status.and_then(|status| status.conditions).expect("conditions");
    let shown = conditions.iter().find(|one| one.type_ == condition_type::WORKER_REACHABLE).expect("ours");
    let message = shown.message.as_deref().unwrap_or_default();
    let needed = format!("list and watch {kind}");
    assert!(message.contains("403 Forbidden") && message.contains(&needed), "{message}");
}

/// A right is taken away from an account that uses it. An API server asks for rights when a watch begins, so what is
/// watched goes on until the watch ends, here because the connection does; then it is missed, and told.
#[tokio::test]
async fn a_right_that_is_lost_while_it_is_used_is_told_when_its_watch_ends() {
    let leasing = Leasing::start("binding-lost", 1, &NodeShape::new("8", "16Gi"), all_cpu()).await;
    let node = leasing.nodes[0].clone();
    let limited = LimitedAccount::new(&leasing.binding).await;
    let worker = leasing.binding.worker();
    let wire = Wire::to((worker.address(), worker.port()).into()).await.expect("a wire");
    let over_the_wire = limited.kubeconfig.replace(worker.server(), &format!("https://{}", wire.address()));
    assert_ne!(over_the_wire, limited.kubeconfig);
    leasing.binding.write_kubeconfig(&over_the_wire).await.expect("the Secret");
    leasing
        .until("a watch of pods by the new account", DEADLINE, async || {
            let events = worker.audit_events().expect("an audit log").into_iter();
            let mut watches = events.filter(|event| {
                event.user.username == limited.username
                    && (event.verb.as_str(), event.object_ref.resource.as_str()) == ("watch", "pods")
            });
            watches.any(|event| event.object_ref.namespace.is_empty())
        })
        .await;

    limited.hide("pods").await;
    leasing.foreign_pod(&node, "6").await;
    let vnode = leasing.one(&node, "what the pod leaves", |vnode| amount(vnode, "cpu") == Some("2")).await;
    assert_eq!(node_condition(&vnode, condition_type::WORKER_REACHABLE), Some(("True", "WatchEstablished")));

    assert!(wire.cut() > 0, "there were connections");
    let cut = Instant::now();
    none_are_seen(&leasing, "pods").await;
    println!("a lost right was told {:?} after its watch ended", cut.elapsed());
    let recording = leasing.record().await;
    delete_foreign_pod(&leasing, &node).await;
    limited.may_everything().await;
    let granted = Instant::now();
    reach(&leasing, "the worker to be back", ("True", "WatchEstablished")).await;
    println!("and used {:?} after it was granted", granted.elapsed());
    leasing.one(&node, "all of the node", |vnode| amount(vnode, "cpu") == Some("8")).await;
    assert!(recording.states().iter().all(is_ready), "the vnode was Ready all the time");
}

async fn delete_foreign_pod(leasing: &Leasing, node: &str) {
    let worker = Objects::of(leasing.binding.worker()).await;
    let home = format!("{}-foreign", leasing.binding.name());
    worker.delete(&format!("/api/v1/namespaces/{home}/pods/online-{node}"), Some(0)).await;
}

/// BU-408: a role that lets nobody label worker nodes costs the label, and nothing else.
#[tokio::test]
async fn without_the_right_to_label_worker_nodes_they_are_leased_all_the_same() {
    const NAME: &str = "binding-labels";
    let binding = shared_site().await.bind(BindingSpec::new(NAME)).await.expect("a binding");
    let limited = LimitedAccount::new(&binding).await;
    limited.hide_verb("patch", "nodes").await;
    binding.write_kubeconfig(&limited.kubeconfig).await.expect("the Secret");
    let nodes = binding.worker().create_nodes(NAME, 2, &NodeShape::new("8", "16Gi")).await.expect("nodes");
    binding.policy(NAME, all_cpu()).await.expect("a policy");
    let started = Instant::now();
    let mut syncer = binding.syncer(&[]).await.expect("a Syncer");
    syncer.wait_ready().await;
    let leasing = Leasing { binding, syncer, nodes, started };
    leasing.all("two vnodes", DEADLINE, is_offered).await;

    let computing = Objects::of(leasing.binding.computing()).await;
    let told = async || {
        let mut off = features_off(&computing, NAME).await;
        off.retain(|event| text(&event["message"]).contains(label::POLICY_APPLIED));
        off
    };
    leasing.until("the event", DEADLINE, async || !told().await.is_empty()).await;
    // Each edit would be a reason to try again; the second one comes after what the first one led to.
    for (share, cpu) in [(50, "4"), (25, "2")] {
        leasing.edit(json!({"resourceLimits": [percent("cpu", share)]})).await;
        leasing.all(&format!("cpu {cpu}"), DEADLINE, |vnode| amount(vnode, "cpu") == Some(cpu)).await;
    }
    let events = leasing.binding.worker().audit_events().expect("an audit log").into_iter();
    let tried = events.filter(|event| {
        event.user.username == limited.username
            && (event.verb.as_str(), event.object_ref.resource.as_str()) == ("patch", "nodes")
    });
    // The first two may have been on their way together.
    let tried: Vec<_> = tried.map(|event| (event.object_ref.name, event.response_status.code)).collect();
    assert!((1..=2).contains(&tried.len()) && tried.iter().all(|(_, code)| *code == 403), "{tried:?}");
    assert_eq!(told().await.len(), 1);
}

/// Nothing listens on the discard port of this machine.
const NOWHERE: &str = "https://127.0.0.1:9";

#[tokio::test]
async fn a_deletion_waits_for_the_worker_and_finds_what_lost_its_labels() {
    let leasing = Leasing::start("binding-end", 2, &NodeShape::new("8", "16Gi"), all_cpu()).await;
    leasing.all("two vnodes", DEADLINE, is_offered).await;
    let computing = Objects::of(leasing.binding.computing()).await;
    let account = leasing.binding.mount_namespace();
    let good = leasing.binding.worker().service_account_kubeconfig(account, "kubeocean-syncer").await;
    let good = good.expect("a kubeconfig");
    let broken = good.replace(leasing.binding.worker().server(), NOWHERE);
    leasing.binding.write_kubeconfig(&broken).await.expect("the Secret");
    leasing.syncer.wait_log("no connection to the worker cluster, retrying", DEADLINE).await;

    // Without its labels a vnode is not watched, and without a worker nobody makes it anew.
    let lost = leasing.vnode_name(&leasing.nodes[0]);
    let labels = json!({label::MANAGED_BY: null, label::CLUSTER_BINDING: null});
    let node = format!("/api/v1/nodes/{lost}");
    let stray = computing.merge(&node, &json!({"metadata": {"labels": labels}})).await;
    assert_eq!(stray["metadata"]["finalizers"], json!([finalizer::VNODE]));
    let bindings = leasing.bindings().await;
    bindings.delete("binding-end", &DeleteParams::default()).await.expect("a binding being deleted");
    let path = "/apis/cloud.tencent.com/v1beta1/clusterbindings/binding-end";
    let waits = |binding: &Value| {
        let cleanup = condition(binding, "SyncerCleanup");
        let message = cleanup["message"].as_str().unwrap_or_default().to_owned();
        (cleanup["reason"] == "WorkerLeftovers" && message.contains("virtual nodes left")).then_some(message)
    };
    let message = computing.wait("the deletion to say what it waits for", path, waits).await;
    assert!(message.contains("no connection to the worker cluster"), "{message}");
    assert_eq!(leasing.syncer.health("/healthz").await.expect("an answer").0, 200);

    leasing.binding.write_kubeconfig(&good).await.expect("the Secret");
    leasing
        .until("the binding to go", Duration::from_mins(2), async || {
            match bindings.get_opt("binding-end").await.expect("an answer") {
                None => Ok(()),
                Some(binding) => Err(binding.data["status"].to_string()),
            }
        })
        .await;
    for node in &leasing.nodes {
        assert!(leasing.vnode(node).await.is_none(), "{node} is left");
    }
    let workers = leasing.worker_nodes().await;
    for node in &leasing.nodes {
        let node = workers.get(node).await.expect("a worker node");
        assert!(!node.metadata.labels.unwrap_or_default().contains_key(label::POLICY_APPLIED));
    }
    // What lost its labels is looked for at the start, and when everything else is done.
    let (of_syncers, _) = requests(&leasing.binding);
    let all_nodes = |event: &&AuditEvent| {
        event.verb == "list" && event.object_ref.resource == "nodes" && !event.uri.contains("labelSelector")
    };
    let looks = of_syncers.iter().filter(all_nodes).count();
    assert!((2..=4).contains(&looks), "all nodes were listed {looks} times");
    leasing.delete_policy("binding-end").await;
    leasing.until("the policy to go", DEADLINE, async || leasing.policy("binding-end").await.is_none()).await;
    assert_rights(&leasing.binding);
}

/// After so long without news the next look is at least 8 s away: looks are 1, 2, 4, 8 and 16 s apart, less a tenth.
const IDLE: Duration = Duration::from_secs(20);
/// Sooner than that look; the work itself takes two seconds.
const AT_ONCE: Duration = Duration::from_secs(7);

#[tokio::test]
async fn a_deletion_that_has_waited_for_long_goes_on_with_what_it_waited_for() {
    let stage = Stage::start(BindingSpec::new("binding-events"), 1).await;
    let scene = stage.scene("binding-events").await;
    scene.run_pod("held", json!({"terminationGracePeriodSeconds": 1})).await;
    let hold = |finalizers: Value| json!({"metadata": {"finalizers": finalizers}});
    scene.worker.merge(&scene.ppod("held"), &hold(json!(["e2e.test/held"]))).await;

    let path = "/apis/cloud.tencent.com/v1beta1/clusterbindings/binding-events";
    scene.computing.delete(path, None).await;
    let drains =
        |binding: &Value| (condition(binding, "SyncerCleanup")["reason"] == "DrainingNodes").then_some(());
    scene.computing.wait("the deletion to say what it waits for", path, drains).await;
    pass(IDLE).await;
    scene.worker.merge(&scene.ppod("held"), &hold(Value::Null)).await;
    let freed = Instant::now();
    scene.computing.wait_gone(path).await;
    println!("a deletion went on and ended in {:?}", freed.elapsed());
    assert!(freed.elapsed() < AT_ONCE, "{:?}", freed.elapsed());
}
