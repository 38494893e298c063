//! What of a worker node appears on its vnode, and in which form; also while the vnode is withdrawn or waits for that.

use kubeocean_api::keys::{annotation, label, taint};
use rstest::rstest;
use serde_json::{Value, json};

use super::model::{Model, offer, pod, withhold};
use crate::nodes::{
    action::{Action, status_alone},
    decision::Reclaim,
    loss::WorkerLoss,
    metadata::ExpectedMetadata,
    plan::plan_waiting,
    snapshot::published,
    view::{NodeView, Taint},
};

/// Sets the worker node's Ready condition.
fn ready(model: &mut Model, status: &str) {
    let condition = json!([{"type": "Ready", "status": status, "reason": "R"}]);
    model.pnode.as_mut().unwrap()["status"]["conditions"] = condition;
}

/// The node lifecycle controller of the computing cluster finds the Lease of a vnode expired.
fn expire(model: &mut Model) {
    let unknown = json!({"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"});
    let conditions = model.vnode.as_mut().unwrap()["status"]["conditions"].as_array_mut().unwrap();
    conditions.retain(|condition| condition["type"] != "Ready");
    conditions.push(unknown);
}

/// BU-401: on either label, and whatever policy there is.
#[rstest]
#[case(label::INSTANCE_TYPE, "external", true)]
#[case(label::INSTANCE_TYPE, "vnode", true)]
#[case(label::INSTANCE_TYPE_BETA, "eklet", true)]
#[case(label::INSTANCE_TYPE_BETA, "external", true)]
#[case(label::TYPE, "virtual-kubelet", true)]
#[case(label::INSTANCE_TYPE, "m5.large", false)]
#[case(label::TYPE, "node", false)]
fn nodes_that_are_never_leased(#[case] key: &str, #[case] value: &str, #[case] excluded: bool) {
    let mut model = Model::new();
    model.pnode.as_mut().unwrap()["metadata"]["labels"][key] = value.into();
    model.settle();
    assert_eq!(model.vnode.is_none(), excluded);
    let mark = &model.pnode.unwrap()["metadata"]["labels"][label::POLICY_APPLIED];
    assert_eq!(mark.is_null(), excluded);
}

/// BU section 4: values that are no label values are altered there and whole in the annotation.
#[rstest]
#[case::v4("10.0.0.7", "10.0.0.7", None)]
#[case::v6("2001:db8::7", "2001-db8--7", Some("2001:db8::7"))]
#[case::v6_that_begins_with_a_colon("::7", "7", Some("::7"))]
fn addresses_of_worker_nodes(#[case] address: &str, #[case] value: &str, #[case] whole: Option<&str>) {
    let mut model = Model::new();
    model.pnode.as_mut().unwrap()["status"]["addresses"] = json!([
        {"type": "ExternalIP", "address": "198.51.100.1"},
        {"type": "InternalIP", "address": address},
        {"type": "InternalIP", "address": "10.9.9.9"},
    ]);
    model.settle();
    assert_eq!(model.vnode().label(label::PHYSICAL_NODE_INNER_IP), Some(value));
    assert_eq!(model.vnode().annotation(annotation::PHYSICAL_NODE_INNER_IP), whole);
    model.pnode.as_mut().unwrap()["status"]["addresses"] = json!([]);
    model.settle();
    assert_eq!(model.vnode().annotation_or_label(annotation::PHYSICAL_NODE_INNER_IP), None);
}

#[test]
fn long_names_are_cut_in_labels_and_whole_in_annotations() {
    let mut model = Model::new();
    let node = format!("{}.{}", "n".repeat(62), "x".repeat(40));
    model.pnode.as_mut().unwrap()["metadata"]["name"] = node.clone().into();
    model.policy.as_mut().unwrap().name = "p".repeat(80);
    model.settle();
    let vnode = model.vnode();
    assert_eq!(vnode.label(label::PHYSICAL_NODE_NAME), Some(&*"n".repeat(62)), "and no dot at the end");
    assert_eq!(vnode.annotation(annotation::PHYSICAL_NODE_NAME), Some(&*node));
    assert_eq!(vnode.annotation(annotation::POLICIES_APPLIED), Some(&*"p".repeat(80)));
    let mark = &model.pnode.unwrap()["metadata"]["labels"][label::POLICY_APPLIED];
    assert_eq!(mark.as_str(), Some(&*"p".repeat(63)));
}

/// The API server refuses two taints of one key and effect.
#[test]
fn taints_of_the_worker_that_are_also_ours_appear_once() {
    let mut model = Model::new();
    model.pnode.as_mut().unwrap()["spec"]["taints"] = json!([
        {"key": taint::VNODE, "value": "theirs", "effect": "NoSchedule"},
        {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
        {"key": taint::PHYSICAL_NODE_UNSCHEDULABLE, "effect": "NoSchedule"},
        {"key": taint::OUT_OF_TIME_WINDOWS, "effect": "NoExecute"},
        {"key": taint::VNODE, "effect": "NoExecute"},
    ]);
    model.settle();
    let shown: Vec<_> = model.vnode().spec.taints.iter().map(|t| (t.key.clone(), t.effect.clone())).collect();
    let pair = |key: &str, effect: &str| (key.into(), effect.into());
    assert_eq!(
        shown,
        [
            pair(taint::VNODE, "NoSchedule"),
            pair(taint::PHYSICAL_NODE_UNSCHEDULABLE, "NoSchedule"),
            pair(taint::VNODE, "NoExecute"),
        ]
    );
}

/// Nobody knows what was written before: what is never a user's goes nevertheless, and what may be a user's stays.
#[test]
fn without_a_record_only_what_is_certainly_ours_goes() {
    let mut model = Model::leased();
    let vnode = model.vnode.as_mut().unwrap();
    vnode["metadata"]["annotations"][annotation::EXPECTED_METADATA] =
        ExpectedMetadata::default().encode().into();
    vnode["spec"]["taints"].as_array_mut().unwrap().extend([
        json!({"key": taint::PHYSICAL_NODE_UNSCHEDULABLE, "effect": "NoSchedule"}),
        json!({"key": "users", "effect": "NoSchedule"}),
    ]);
    model.settle();
    assert_eq!(model.taint(taint::PHYSICAL_NODE_UNSCHEDULABLE), None);
    assert!(model.taint("users").is_some());
}

/// BU section 7: what a user makes of our record of the worker node's UID is restored, and drains nobody.
#[rstest]
#[case("annotations")]
#[case("labels")]
fn an_edited_uid_of_the_worker_node_drains_nobody(#[case] map: &str) {
    let mut model = Model::leased();
    model.vnode.as_mut().unwrap()["metadata"][map][annotation::PHYSICAL_NODE_UID] = "other".into();
    let lines = model.settle();
    let vnode = model.vnode.unwrap();
    assert_eq!(vnode["metadata"]["deletionTimestamp"], Value::Null, "{lines:?}");
    assert_eq!(vnode["metadata"][map][annotation::PHYSICAL_NODE_UID], "p-1");
}

/// What is written while policies load are conditions; taints that came meanwhile are mirrored afterwards.
#[test]
fn a_lifecycle_taint_that_came_while_policies_loaded_is_not_forgotten() {
    let mut model = Model::leased();
    let decision = model.decision.take();
    model.pnode.as_mut().unwrap()["spec"]["taints"] =
        json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]);
    ready(&mut model, "False");
    assert!(!model.settle().is_empty());
    model.decision = decision;
    model.settle();
    assert_eq!(model.taint("node.kubernetes.io/not-ready").as_deref(), Some("NoExecute"));
}

fn promised_grace() -> Model {
    let mut model = Model::new();
    model.decision.as_mut().unwrap().reclaim = Reclaim::Graceful(600);
    model.settle();
    model.pods = vec![pod("a")];
    model
}

/// BU-906: conditions are mirrored in every state, and BU section 10: without flapping, and the Lease pauses.
#[rstest]
#[case::draining(promised_grace(), |m: &mut Model| m.decision.as_mut().unwrap().governed_by = None)]
#[case::policies_load(Model::leased(), |m: &mut Model| m.decision = None)]
fn what_the_worker_node_tells_is_shown_once_in_every_state(
    #[case] mut model: Model,
    #[case] change: impl Fn(&mut Model),
) {
    change(&mut model);
    model.settle();
    ready(&mut model, "False");
    model.settle();
    assert_eq!(model.vnode().condition("Ready").unwrap().status, "False");
    assert!(!model.written.as_ref().unwrap().ready, "the Lease pauses");
    expire(&mut model);
    assert_eq!(model.settle(), Vec::<String>::new(), "Unknown stands");
    ready(&mut model, "True");
    model.settle();
    assert!(model.vnode().ready() && model.written.as_ref().unwrap().ready);
}

/// BU section 10: metadata that is refused each time makes the status no news each time.
#[test]
fn what_is_shown_without_the_metadata_is_shown_once() {
    let mut model = Model::leased();
    model.pnode.as_mut().unwrap()["metadata"]["labels"]["zone"] = "z2".into();
    ready(&mut model, "False");
    model.update_status_alone();
    assert_eq!(model.vnode().condition("Ready").unwrap().status, "False");
    assert!(!model.written.as_ref().unwrap().ready, "the Lease pauses");
    expire(&mut model);
    model.update_status_alone();
    assert_eq!(model.vnode().condition("Ready").unwrap().status, "Unknown", "it stands");
    assert_eq!(model.vnode().label("zone"), Some("z1"));
    assert_eq!(model.settle(), ["update vnode vnode-cls-a-n1"], "the metadata is still to be written");
}

/// PO-1503: what comes after a refused write is not done.
#[test]
fn an_event_that_was_not_sent_is_not_taken_for_one_that_was() {
    let mut model = Model::leased();
    model.now = 10;
    model.used.insert("cpu".into(), 1000);
    model.update_status_alone();
    assert_eq!(published(&model.vnode()).amounts["cpu"], 3000);
    model.used.insert("cpu".into(), 2000);
    assert!(model.settle().contains(&"event LeaseChanged: leased amounts changed".to_owned()));
}

/// BU-906: as long as pods are left, somebody may want their logs.
#[test]
fn a_draining_vnode_follows_the_proxier() {
    let mut model = promised_grace();
    model.decision.as_mut().unwrap().governed_by = None;
    model.settle();
    model.proxier = vec!["192.0.2.9".parse().unwrap()];
    assert_eq!(model.settle(), ["patch conditions of vnode vnode-cls-a-n1"]);
    assert_eq!(model.vnode().address("InternalIP"), Some("192.0.2.9"));
    model.proxier.clear();
    model.settle();
    assert_eq!(model.vnode().address("InternalIP"), Some("192.0.2.9"), "the last one stays");
    assert_eq!(model.vnode().condition("kubeocean.io/ProxierReady").unwrap().status, "False");
}

/// A vnode whose withdrawal waits for its turn stays as it is, but for what its node tells and others take.
#[test]
fn a_withdrawal_that_waits_for_its_turn_changes_conditions_only() {
    let mut model = Model::leased();
    model.decision.as_mut().unwrap().governed_by = None;
    assert!(model.plan().ends_lease);
    let before = model.vnode.clone().unwrap();
    assert_eq!(model.wait(), Vec::<String>::new());
    ready(&mut model, "False");
    assert_eq!(model.wait(), ["patch conditions of vnode vnode-cls-a-n1"]);
    assert!(!model.vnode().ready());
    let but_conditions = |mut vnode: Value| {
        vnode["status"]["conditions"].take();
        vnode
    };
    assert_eq!(but_conditions(model.vnode.clone().unwrap()), but_conditions(before));
}

/// BU-906: whatever keeps a vnode from being decided, others may take more of its node meanwhile.
#[rstest]
#[case::waits_for_its_turn(|m: &mut Model| m.decision.as_mut().unwrap().governed_by = None, Model::wait)]
#[case::policies_load(|m: &mut Model| m.decision = None, Model::settle)]
fn nothing_is_offered_that_others_took(
    #[case] change: impl Fn(&mut Model),
    #[case] act: impl Fn(&mut Model) -> Vec<String>,
) {
    let mut model = Model::new();
    model.decision = Some(offer(&[("cpu", 2000)]));
    model.settle();
    change(&mut model);
    let amounts = |model: &Model| published(&model.vnode()).amounts;
    model.used = [("cpu".to_owned(), 1500), ("memory".to_owned(), 1 << 30)].into();
    assert_eq!(act(&mut model), ["lower amounts of vnode vnode-cls-a-n1"]);
    assert_eq!((amounts(&model)["cpu"], amounts(&model)["memory"]), (2000, 7 << 30), "only what is above");
    model.used.insert("cpu".to_owned(), 2500);
    act(&mut model);
    assert_eq!(amounts(&model)["cpu"], 1500);
    assert_eq!(model.vnode().status.capacity.get("cpu"), Some("1500m"));
    // A resource that the node lost.
    model.pnode.as_mut().unwrap()["status"]["allocatable"].as_object_mut().unwrap().remove("pods");
    act(&mut model);
    assert_eq!(amounts(&model)["pods"], 0);
    model.used.clear();
    assert_eq!(act(&mut model), Vec::<String>::new(), "what is free again waits for a decision");
}

/// Whoever waits for a taint to go is placed by the amounts of that moment: what others took meanwhile is taken off first.
#[rstest]
#[case::the_worker_is_back(|m: &mut Model| m.loss = Some(WorkerLoss::Silent), |m: &mut Model| m.loss = None, Model::settle)]
#[case::and_policies_load(
    |m: &mut Model| m.loss = Some(WorkerLoss::Silent),
    |m: &mut Model| { m.loss = None; m.decision = None; },
    Model::settle
)]
#[case::and_a_withdrawal_waits(
    |m: &mut Model| m.loss = Some(WorkerLoss::Silent),
    |m: &mut Model| { m.loss = None; m.decision.as_mut().unwrap().governed_by = None; },
    |m: &mut Model| [m.wait(), m.wait()].concat()
)]
#[case::a_window_opens(
    |m: &mut Model| m.decision = Some(withhold(Reclaim::Keep)),
    |m: &mut Model| m.decision = Some(offer(&[("cpu", 2500)])),
    Model::settle
)]
#[case::a_withdrawal_is_called_off(
    |m: &mut Model| { m.decision.as_mut().unwrap().reclaim = Reclaim::Graceful(600); m.settle(); m.decision.as_mut().unwrap().governed_by = None; },
    |m: &mut Model| m.decision = Some(offer(&[])),
    Model::settle
)]
fn amounts_that_fell_are_lowered_before_pods_come(
    #[case] close: impl Fn(&mut Model),
    #[case] open: impl Fn(&mut Model),
    #[case] act: impl Fn(&mut Model) -> Vec<String>,
) {
    let mut model = Model::leased();
    close(&mut model);
    model.settle();
    open(&mut model);
    model.used.insert("cpu".to_owned(), 1500);
    let lines = act(&mut model);
    let opens = lines.iter().position(|line| line.starts_with("patch taints")).unwrap();
    let lowers = lines.iter().position(|line| line.starts_with("lower amounts"));
    assert!(lowers.is_some_and(|at| at < opens), "{lines:?}");
    assert_eq!(published(&model.vnode()).amounts["cpu"], 2500);
}

impl Model {
    /// Plans an update and applies what is left of it where its metadata is refused.
    fn update_status_alone(&mut self) {
        let is_update = |action: &Action| matches!(action, Action::UpdateVnode { .. });
        let update = self.plan().actions.into_iter().find(is_update);
        let Some(Action::UpdateVnode { name, mut patch, written }) = update else {
            panic!("nothing to update")
        };
        let written = status_alone(&mut patch, written, self.written.as_ref());
        self.apply(Action::UpdateVnode { name, patch, written });
    }

    /// Plans and applies what a vnode that waits for its turn needs.
    fn wait(&mut self) -> Vec<String> {
        let actions = self.planned(plan_waiting);
        let lines = actions.iter().map(ToString::to_string).collect();
        for action in actions {
            self.apply(action);
        }
        lines
    }
}

#[test]
fn a_taint_of_the_worker_is_passed_on_as_it_is() {
    let mut model = Model::new();
    let taint = json!({"key": "dedicated", "value": "db", "effect": "NoExecute", "timeAdded": "2027-01-15T08:00:00Z"});
    model.pnode.as_mut().unwrap()["spec"]["taints"] = json!([taint]);
    model.settle();
    let vnode: NodeView = model.vnode();
    let expected: Taint = serde_json::from_value(taint).unwrap();
    assert_eq!(vnode.spec.taints.first(), Some(&expected));
    assert_eq!(vnode.spec.taints.last().map(|taint| taint.key.as_str()), Some(taint::VNODE));
}

/// TD section 16: a Syncer that was away for so long that its vnodes' Leases ended. Without that its first renewal would
/// wait for a vnode that is Ready, and nobody would make it so.
#[test]
fn a_vnode_that_was_given_up_while_the_syncer_was_away_is_ready_again() {
    let mut model = Model::leased();
    expire(&mut model);
    model.restart();
    model.settle();
    assert!(model.vnode().ready());
    assert!(model.written.as_ref().unwrap().ready);
}
