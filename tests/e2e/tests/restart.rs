//! A Syncer that starts anew beside what it made before: what is not listed yet is not gone, and what lost its marks while
//! nobody looked is still its own (BU sections 1, 4 and 18).

use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt;
use kube::api::DeleteParams;
use kubeocean_api::keys::{finalizer, label, taint};
use kubeocean_api::{GROUP, VERSION};
use kubeocean_e2e::leasing::{DEADLINE, Leasing, amount, is_offered, merge, percent, summary, taint_of};
use kubeocean_e2e::pods::Objects;
use kubeocean_e2e::rights::{assert_rights, writes_since};
use kubeocean_e2e::storm::pass;
use kubeocean_harness::faults::{Fault, Requests, Rule};
use kubeocean_harness::site::SYNCER_ACCOUNT;
use kubeocean_harness::{FaultProxy, NodeShape};
use serde_json::{Map, Value, json};

/// Later than any test waits.
const LATE: Duration = Duration::from_hours(1);
/// Whoever does not wait for a list has decided and written by then.
const WATCHED: Duration = Duration::from_secs(5);

/// Starts the Syncer anew while the list of one kind of the worker is late, and looks that nothing is written before it is
/// complete.
async fn waits_for(leasing: &mut Leasing, proxy: &FaultProxy, kind: &str) {
    let (computing, worker) = (leasing.binding.computing(), leasing.binding.worker());
    let late = format!("/api/v1/{kind}");
    let policies = format!("/apis/{GROUP}/{VERSION}/resourceleasingpolicies");
    let mut others = vec!["/api/v1/nodes".to_owned(), "/api/v1/pods".to_owned(), policies];
    others.retain(|path| *path != late);
    // A watch begins when its list is complete.
    let listed = |path: &str| proxy.served().iter().any(|request| request.watch && request.path == path);

    leasing.syncer.stop().await.expect("an end");
    let list = Requests::reads().about(&format!("{late}?"));
    proxy.inject(Rule::new(list, Fault::Slow(LATE)));
    proxy.forget();
    let marks = (computing.audit_mark().expect("an audit log"), worker.audit_mark().expect("an audit log"));
    leasing.syncer.restart().expect("a restart");
    leasing.syncer.wait_ready().await;
    leasing
        .until("the other lists", DEADLINE, async || others.iter().all(|path| listed(path.as_str())))
        .await;
    pass(WATCHED).await;
    assert!(!listed(&late), "the list of {kind} was to be late");
    let writes = writes_since(&leasing.binding, marks.0, marks.1);
    assert!(writes.is_empty(), "before the list of {kind}: {writes:#?}");

    proxy.heal();
    proxy.break_connections();
    leasing.until(&format!("the list of {kind}"), DEADLINE, async || listed(&late)).await;
}

/// Without its node a vnode would be withdrawn, and without the pods of others all of its node would be leased.
#[tokio::test]
async fn nothing_is_written_before_the_first_lists_of_the_worker_are_complete() {
    let share = |of: i64| json!({"resourceLimits": [percent("cpu", of)]});
    let mut leasing = Leasing::start("restart-lists", 1, &NodeShape::new("8", "16Gi"), share(100)).await;
    let node = leasing.nodes[0].clone();
    leasing.foreign_pod(&node, "6").await;
    let before = leasing.one(&node, "what the pod leaves", |vnode| amount(vnode, "cpu") == Some("2")).await;
    let worker = leasing.binding.worker();
    let proxy = FaultProxy::start(worker).await.expect("a proxy");
    let account = leasing.binding.mount_namespace();
    let direct = worker.service_account_kubeconfig(account, SYNCER_ACCOUNT).await.expect("a kubeconfig");
    leasing.binding.write_kubeconfig(&proxy.through(&direct)).await.expect("the Secret");

    let recording = leasing.record().await;
    for (late, of, cpu) in [("nodes", 50, "1"), ("pods", 100, "2")] {
        waits_for(&mut leasing, &proxy, late).await;
        leasing.edit(share(of)).await;
        leasing.one(&node, &format!("cpu {cpu}"), |vnode| amount(vnode, "cpu") == Some(cpu)).await;
    }
    for state in recording.states() {
        let seen = summary(&state);
        assert!(amount(&state, "cpu").is_some_and(|cpu| ["1", "2"].contains(&cpu)), "{seen}");
        assert!(taint_of(&state, taint::VNODE_DELETING).is_none(), "{seen}");
        assert_eq!(state.uid(), before.uid(), "{seen}");
    }
}

/// What its annotations say of the worker node is enough.
#[tokio::test]
async fn a_vnode_without_our_labels_and_finalizer_is_adopted() {
    const NAME: &str = "restart-adopts";
    let lease = json!({"resourceLimits": [percent("cpu", 100)]});
    let mut leasing = Leasing::start(NAME, 1, &NodeShape::new("8", "16Gi"), lease).await;
    let node = leasing.nodes[0].clone();
    leasing.one(&node, "an open vnode", is_offered).await;
    leasing.syncer.stop().await.expect("an end");
    let first = leasing.vnode(&node).await.expect("the vnode");
    let none: Map<String, Value> = first.labels().keys().map(|key| (key.clone(), Value::Null)).collect();
    let bare = json!({"metadata": {"labels": none, "finalizers": null}});
    let bare = merge(&leasing.virtual_nodes().await, &first.name_any(), bare).await;
    assert!(bare.finalizers().is_empty() && !bare.labels().contains_key(label::MANAGED_BY), "{bare:?}");

    leasing.syncer.restart().expect("a restart");
    let ours = [
        label::MANAGED_BY,
        label::CLUSTER_BINDING,
        label::PHYSICAL_CLUSTER_ID,
        label::PHYSICAL_NODE_NAME,
        label::PHYSICAL_NODE_UID,
        label::PROXIER_PORT,
        label::TYPE,
    ];
    let marked = |vnode: &Node| {
        ours.iter().all(|key| vnode.labels().get(*key) == first.labels().get(*key))
            && vnode.finalizers() == first.finalizers()
    };
    let shown = leasing.one(&node, "its labels and its finalizer", marked).await;
    assert_eq!(shown.uid(), first.uid());
    let of = format!("involvedObject.name%3D{NAME},reason%3DVirtualNodeConflict");
    let path = format!("/api/v1/namespaces/default/events?fieldSelector={of}");
    let conflicts = Objects::of(leasing.binding.computing()).await.list(&path).await;
    assert_eq!(conflicts, Vec::<Value>::new());
    assert_rights(&leasing.binding);
}

/// The label on the worker node, and the finalizer on the policy.
async fn marks(leasing: &Leasing) -> [bool; 2] {
    let node = leasing.worker_nodes().await.get(&leasing.nodes[0]).await.expect("a worker node");
    let policy = leasing.policy(leasing.binding.name()).await.expect("the policy");
    [
        node.metadata.labels.unwrap_or_default().contains_key(label::POLICY_APPLIED),
        policy["metadata"]["finalizers"] == json!([finalizer::POLICY]),
    ]
}

/// BU-1402: the API server lets nobody put a finalizer on what is being deleted.
#[tokio::test]
async fn a_deletion_is_carried_out_though_somebody_took_our_finalizer_off() {
    const NAME: &str = "restart-unheld";
    let lease = json!({"resourceLimits": [percent("cpu", 100)]});
    let mut leasing = Leasing::start(NAME, 1, &NodeShape::new("8", "16Gi"), lease).await;
    let node = leasing.nodes[0].clone();
    leasing.one(&node, "an open vnode", is_offered).await;
    leasing.until("our marks", DEADLINE, async || marks(&leasing).await == [true, true]).await;
    leasing.syncer.stop().await.expect("an end");
    let bindings = leasing.bindings().await;
    merge(&bindings, NAME, json!({"metadata": {"finalizers": ["e2e.test/keep"]}})).await;
    bindings.delete(NAME, &DeleteParams::default()).await.expect("a binding being deleted");

    leasing.syncer.restart().expect("a restart");
    leasing.withdrawn(&node).await;
    leasing
        .until("our marks to go", DEADLINE, async || {
            let left = marks(&leasing).await;
            if left == [false, false] { Ok(()) } else { Err(left) }
        })
        .await;
    let kept = bindings.get(NAME).await.expect("the binding");
    assert_eq!(json!(kept.metadata.finalizers), json!(["e2e.test/keep"]));
    merge(&bindings, NAME, json!({"metadata": {"finalizers": null}})).await;
    assert_rights(&leasing.binding);
}
