//! What becomes of a plan that meets trouble: an API server that does not answer, a policy that is gone. And which pods keep
//! a vnode.

use std::sync::atomic::AtomicBool;

use jiff::tz::TimeZone;
use kube::Config;
use kubeocean_engine::{BindingFacts, PolicyHost};
use kubeocean_runtime::{client::client, clock::SystemClock, events::EventRecorder, sink::Sink};
use rstest::rstest;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::{
    nodes::{
        action::NodeChanges,
        decide::{PodsOnVnode, WorkerSide},
        index::Identity,
        pace::Pace,
        store::NodeStore,
        tests::model::engine,
        vnode::{BindingView, Settings, Written},
        withdraw::PodOnVnode,
    },
    policies::{modules::ModulePlaces, store::PolicyStore, view::PolicyView},
};

struct NoPods;

impl PodsOnVnode for NoPods {
    fn on_vnode(&self, _: &str) -> Vec<PodOnVnode> {
        Vec::new()
    }

    fn saw(&self, _: &Value) {}
}

const VNODE: &str = "vnode-cls-a-n1";

/// Both clusters are out of reach: nobody listens on the discard port of this machine.
fn runtime() -> (NodeRuntime, Arc<PolicyStore>) {
    let clusters = client(Config::new("http://127.0.0.1:9".parse().unwrap()), None).unwrap();
    let identity =
        Identity { binding: "dc-east".into(), cluster_id: "cls-a".into(), computing_uid: "c-1".into() };
    let clock: Arc<dyn kubeocean_runtime::clock::Clock> = Arc::new(SystemClock);
    let cancel = CancellationToken::new();
    let (events, _) = EventRecorder::new(clusters.clone(), "test".into(), Arc::clone(&clock), cancel.clone());
    let places = ModulePlaces { default: "policies".into(), mount: "mount".into(), files: false };
    let policies = PolicyStore::new(identity.clone(), places);
    let facts = BindingFacts { name: "dc-east".into(), cluster_id: "cls-a".into() };
    let runtime = NodeRuntime {
        store: NodeStore::new(identity, BindingView::default(), Arc::default()),
        computing: clusters.clone(),
        worker: Some(WorkerSide {
            client: clusters,
            policies: Arc::clone(&policies),
            host: Arc::new(PolicyHost::new(engine(), facts, TimeZone::UTC, Box::new(|| {}))),
            labels_off: Arc::new(AtomicBool::new(false)),
        }),
        pods: Arc::new(NoPods),
        events,
        binding_uid: "b".into(),
        system_namespace: "system".into(),
        clock,
        settings: Settings::default(),
        pace: Arc::new(Pace::new(0)),
        health: Arc::default(),
        workers: 1,
        cancel,
    };
    (runtime, policies)
}

fn hold() -> Action {
    Action::HoldPolicy { policy: "p".into() }
}

fn make() -> Action {
    let body = json!({"metadata": {"name": VNODE}});
    Action::CreateVnode { name: VNODE.into(), body, written: Written::default() }
}

fn update() -> Action {
    let patch = json!({"metadata": {}});
    Action::UpdateVnode { name: VNODE.into(), patch, written: Written::default() }
}

fn policy(deleting: bool) -> PolicyView {
    let mut policy = json!({
        "metadata": {"name": "p", "uid": "u", "resourceVersion": "1"},
        "spec": {"cluster": "dc-east"},
    });
    if deleting {
        policy["metadata"]["deletionTimestamp"] = "2026-03-02T12:00:00Z".into();
    }
    serde_json::from_value(policy).unwrap()
}

/// The decision is older than the policy's end: nothing is asked of either cluster, the node is decided anew.
#[rstest]
#[case::gone(None)]
#[case::going(Some(policy(true)))]
#[tokio::test]
async fn nothing_is_built_from_a_policy_that_is_gone(#[case] known: Option<PolicyView>) {
    let (runtime, policies) = runtime();
    if let Some(policy) = known {
        policies.apply(policy);
    }
    let done = perform(&runtime, VNODE, &Snapshot::default(), vec![hold(), make()], None).await;
    assert_eq!(done, Err(Outcome::Stale));
    assert!(!runtime.store.is_unsettled(VNODE), "no write was tried");
}

/// Nobody says whether the write was done, so it counts as none, and the vnode is read before it is decided anew.
#[tokio::test]
async fn a_write_that_nobody_answered_is_not_counted_and_to_be_looked_up() {
    let (runtime, _) = runtime();
    for (action, unsettled) in [
        (hold(), false),
        (Action::DeleteVnode { name: VNODE.into(), uid: "u".into() }, false),
        (update(), true),
    ] {
        let (runtime, policies) = self::runtime();
        policies.apply(policy(false));
        let text = action.to_string();
        let done = perform(&runtime, VNODE, &Snapshot::default(), vec![action], None).await;
        assert_eq!(done, Err(Outcome::Unanswered), "{text}");
        assert_eq!(runtime.store.is_unsettled(VNODE), unsettled, "{text}");
        let counters = &runtime.store.counters;
        let counted =
            [&counters.created, &counters.updated, &counters.deleted].map(|it| it.load(Ordering::Relaxed));
        assert_eq!(counted, [0, 0, 0], "{text}");
    }
    assert_eq!(
        perform(&runtime, VNODE, &Snapshot::default(), vec![make()], None).await,
        Err(Outcome::Unanswered)
    );
    assert!(runtime.store.is_unsettled(VNODE));
    assert_eq!(settle(&runtime, VNODE).await, Outcome::Unanswered);
    assert!(runtime.store.is_unsettled(VNODE), "it could not be read either");
}

/// A policy that came back meanwhile, also while the first writes of the plan were under way, may govern the node.
#[tokio::test]
async fn nothing_is_deleted_by_policies_that_are_no_longer_so() {
    let (runtime, policies) = runtime();
    let decided_by = Some(policies.changes());
    let delete = || {
        let pod = Action::DeletePod {
            key: kubeocean_api::name::ObjectKey::new("team", "a"),
            uid: "u".into(),
            why: PodDeletion::Drained,
        };
        let mark = |key: &str, effect: &str| {
            let taints = Some(vec![Taint::new(key, Some("true"), effect)]);
            Action::PatchVnode(NodeChanges { name: VNODE.into(), taints, ..NodeChanges::default() })
        };
        [
            mark(taint::VNODE_DELETING, "NoSchedule"),
            mark(taint::OUT_OF_TIME_WINDOWS, "NoExecute"),
            pod,
            Action::DeleteVnode { name: VNODE.into(), uid: "u".into() },
        ]
    };
    for (number, action) in delete().into_iter().enumerate() {
        let done = perform(&runtime, VNODE, &Snapshot::default(), vec![action], decided_by).await;
        assert_eq!(done, Err(Outcome::Unanswered), "{number} was tried");
    }
    policies.apply(policy(false));
    for (number, action) in delete().into_iter().enumerate() {
        let done = perform(&runtime, VNODE, &Snapshot::default(), vec![action], decided_by).await;
        assert_eq!(done, Err(Outcome::Stale), "{number}");
    }
}

/// BU-906, BU-908: amounts are not kept up by what is refused before them, or together with them.
#[rstest]
#[case::the_policy_is_held(hold(), true)]
#[case::taints_are_set(Action::PatchVnode(NodeChanges::default()), true)]
#[case::all_else_is_written(update(), true)]
#[case::nothing_is_published_yet(make(), false)]
#[case::the_worker_node_is_labelled(Action::LabelWorkerNode { node: "n1".into(), policy: None }, false)]
#[case::the_vnode_goes(Action::DeleteVnode { name: VNODE.into(), uid: "u".into() }, false)]
fn after_the_refusal_of_which_writes_amounts_are_lowered(#[case] write: Action, #[case] lowered: bool) {
    assert_eq!(precedes_amounts(&write), lowered);
}

/// New vnodes do not wait for labels (BU-408); alone, the write would have been tried, and failed.
#[tokio::test(start_paused = true)]
async fn a_label_waits_while_many_nodes_are_looked_at() {
    let (runtime, _) = runtime();
    let label = || vec![Action::LabelWorkerNode { node: "n1".into(), policy: Some("p".into()) }];
    let alone = perform(&runtime, VNODE, &Snapshot::default(), label(), None).await;
    assert_eq!(alone, Ok(Some(SOFT_RETRY)));
    runtime.store.queue.add_all((0..MANY).map(|n| format!("vnode-{n}").into()));
    let busy = perform(&runtime, VNODE, &Snapshot::default(), label(), None).await;
    assert_eq!(busy, Ok(Some(LABEL_LATER + LABEL_EACH * 64)));
    tokio::time::advance(LABEL_LATEST.saturating_sub(Duration::from_secs(1))).await;
    let soon = perform(&runtime, VNODE, &Snapshot::default(), label(), None).await;
    assert_eq!(soon, Ok(Some(Duration::from_secs(1))));
    tokio::time::advance(Duration::from_secs(1)).await;
    let tried = perform(&runtime, VNODE, &Snapshot::default(), label(), None).await;
    assert_eq!(tried, Ok(Some(SOFT_RETRY)), "it does not wait for ever");
    let gone = vec![Action::LabelWorkerNode { node: "n1".into(), policy: None }];
    let removed = perform(&runtime, VNODE, &Snapshot::default(), gone, None).await;
    assert_eq!(removed, Ok(Some(SOFT_RETRY)), "the removal comes first in a withdrawal");
}

#[rstest]
#[case(json!({"metadata": {"namespace": "team"}, "status": {"phase": "Running"}}), true)]
#[case(json!({"metadata": {"namespace": "team"}, "status": {"phase": "Pending"}}), true)]
#[case(json!({"metadata": {"namespace": "team"}, "status": {"phase": "Failed"}}), false)]
#[case(json!({"metadata": {"namespace": "kube-system"}, "status": {"phase": "Running"}}), false)]
#[case(json!({"metadata": {"namespace": "components"}, "status": {"phase": "Running"}}), false)]
#[case(json!({"metadata": {"namespace": "team", "ownerReferences": [{"kind": "DaemonSet"}]}}), false)]
#[case(json!({"metadata": {"namespace": "team", "ownerReferences": [{"kind": "Job"}]}}), true)]
#[case(json!({"metadata": {"namespace": "team", "labels": {label::HOSTPORT_FAKE_POD: "true"}}}), true)]
#[case(json!({"metadata": {"namespace": "kubeocean-fake"}}), false)]
fn which_pods_keep_a_vnode(#[case] pod: Value, #[case] expected: bool) {
    assert_eq!(blocks(&pod, "components"), expected);
}
