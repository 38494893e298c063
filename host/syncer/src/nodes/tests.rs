//! Planner tests on a model: the plan is applied to a vnode in memory, so that what follows can be planned as well.

mod mirrored;

use std::net::IpAddr;

use jiff::Timestamp;
use kubeocean_api::keys::{annotation, condition_type, finalizer, label, taint};
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::{
    action::{Action, PodDeletion},
    decision::{Decision, DecisionReason, Reclaim, Standing, Verdict},
    plan::{Knowledge, LabelOwner, NodeInput, NodePlan, plan_node},
    snapshot::{Amounts, available, base},
    view::{NodeView, Taint},
    vnode::{BindingView, GoverningPolicy, Settings, Written},
    withdraw::PodOnVnode,
};

const VNODE: &str = "vnode-cls-a-n1";

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

/// One worker node, its vnode, and everything a plan looks at.
struct Model {
    now: i64,
    binding: BindingView,
    settings: Settings,
    pnode: Option<Value>,
    vnode: Option<Value>,
    /// Keys our apply owns, which the next apply removes when it lacks them.
    applied: Vec<(String, String)>,
    used: Amounts,
    decision: Option<Decision>,
    node_known: bool,
    policy: Option<GoverningPolicy>,
    owner: LabelOwner,
    proxier: Vec<IpAddr>,
    unreachable: bool,
    written: Option<Written>,
    pods: Vec<PodOnVnode>,
}

impl Model {
    fn new() -> Self {
        Self {
            now: 0,
            binding: BindingView {
                name: "dc-east".into(),
                cluster_id: "cls-a".into(),
                deleting: false,
                disable_default_taint: false,
            },
            settings: Settings { prometheus_port: 9006, ..Settings::default() },
            pnode: Some(json!({
                "metadata": {"name": "n1", "uid": "p-1", "labels": {"zone": "z1", "kubeocean.io/role": "worker"}, "annotations": {"note": "x"}},
                "spec": {},
                "status": {
                    "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
                    "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": "2027-01-15T08:00:00Z"}],
                    "addresses": [{"type": "InternalIP", "address": "10.0.0.7"}],
                    "nodeInfo": {"architecture": "amd64", "operatingSystem": "linux", "swap": {"capacity": 1}},
                },
            })),
            vnode: None,
            applied: Vec::new(),
            used: Amounts::new(),
            decision: Some(offer(&[])),
            node_known: true,
            policy: Some(GoverningPolicy { name: "p".into(), details: "p".into(), held: true }),
            owner: LabelOwner::OursOrNobody,
            proxier: vec!["192.0.2.1".parse().unwrap()],
            unreachable: false,
            written: None,
            pods: Vec::new(),
        }
    }

    fn leased() -> Self {
        let mut model = Self::new();
        model.settle();
        model
    }

    fn plan(&self) -> NodePlan {
        self.planned(plan_node)
    }

    fn planned<T>(&self, plan: impl FnOnce(&NodeInput<'_>) -> T) -> T {
        let view = |value: &Option<Value>| -> Option<NodeView> {
            value.as_ref().map(|value| serde_json::from_value(value.clone()).unwrap())
        };
        let (pnode, vnode) = (view(&self.pnode), view(&self.vnode));
        let left = pnode.as_ref().map(|pnode| available(&base(pnode), &self.used)).unwrap_or_default();
        let decision = self.decision.clone().map(|mut decision| {
            for (resource, amount) in &left {
                decision.amounts.entry(resource.clone()).or_insert(*amount);
            }
            decision
        });
        plan(&NodeInput {
            now: at(self.now),
            binding: &self.binding,
            settings: &self.settings,
            vnode_name: VNODE,
            pnode: pnode.as_ref(),
            vnode: vnode.as_ref(),
            knowledge: match (&decision, self.node_known) {
                (_, false) => Knowledge::Nothing,
                (None, true) => Knowledge::NodeOnly,
                (Some(decision), true) => Knowledge::Decided(decision),
            },
            available: &left,
            policy: self.policy.as_ref(),
            label_owner: self.owner,
            port: 19_389,
            proxier: &self.proxier,
            unreachable: self.unreachable,
            written: self.written.as_ref(),
            pods: &self.pods,
        })
    }

    /// Plans and applies until nothing is left to do; returns every action as one line each.
    fn settle(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for _ in 0..8 {
            let plan = self.plan();
            if plan.actions.is_empty() {
                return lines;
            }
            for action in plan.actions {
                lines.push(action.to_string());
                self.apply(action);
            }
        }
        panic!("never settles: {lines:#?}");
    }

    /// The first `writes` actions only.
    fn perform(&mut self, writes: usize) {
        let mut left = writes;
        while left > 0 {
            let actions = self.plan().actions;
            let some = actions.len().min(left);
            left -= some;
            actions.into_iter().take(some).for_each(|action| self.apply(action));
        }
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::HoldPolicy { .. } => self.policy.as_mut().unwrap().held = true,
            Action::CreateVnode { body, written, .. } => {
                let mut vnode = body;
                vnode["metadata"]["uid"] = "v-1".into();
                self.vnode = Some(vnode);
                self.written = Some(written);
            }
            Action::PatchVnode(changes) => merge(self.vnode.as_mut().unwrap(), &changes.patch()),
            Action::ApplyVnode { body, written, .. } => {
                self.server_side_apply(&body);
                self.written = Some(written);
            }
            Action::PatchStatus { conditions, addresses, written, .. } => {
                let vnode = self.vnode.as_mut().unwrap();
                vnode["status"]["conditions"] = json!(conditions);
                if let Some(addresses) = addresses {
                    vnode["status"]["addresses"] = json!(addresses);
                }
                self.written = written.or(self.written.take());
            }
            Action::LabelWorkerNode { policy, .. } => {
                let patch = json!({"metadata": {"labels": {label::POLICY_APPLIED: policy}}});
                merge(self.pnode.as_mut().unwrap(), &patch);
            }
            Action::DeletePod { uid, .. } => self.pods.retain(|pod| pod.uid != uid),
            Action::DeleteVnode { .. } => {
                self.vnode.as_mut().unwrap()["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z".into();
            }
            Action::ReleaseVnode { .. } => self.vnode = None,
            Action::Event(_) => {}
        }
    }

    fn server_side_apply(&mut self, body: &Value) {
        let vnode = self.vnode.as_mut().unwrap();
        let mut owned = Vec::new();
        for map in ["labels", "annotations"] {
            for (key, value) in body["metadata"][map].as_object().unwrap() {
                vnode["metadata"][map][key] = value.clone();
                owned.push((map.to_owned(), key.clone()));
            }
        }
        for (map, key) in self.applied.iter().filter(|entry| !owned.contains(entry)) {
            vnode["metadata"][map.as_str()].as_object_mut().unwrap().remove(key);
        }
        self.applied = owned;
        for (field, value) in body["status"].as_object().unwrap() {
            if field == "conditions" || field == "addresses" {
                let shown = vnode["status"][field.as_str()].as_array_mut().unwrap();
                for entry in value.as_array().unwrap() {
                    shown.retain(|other| other["type"] != entry["type"]);
                    shown.push(entry.clone());
                }
            } else {
                vnode["status"][field.as_str()] = value.clone();
            }
        }
    }

    fn vnode(&self) -> NodeView {
        serde_json::from_value(self.vnode.clone().unwrap()).unwrap()
    }

    fn taint(&self, key: &str) -> Option<String> {
        self.vnode().taint(key).map(|taint| taint.effect.clone())
    }
}

/// RFC 7386.
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key.as_str()], value);
        }
    }
}

fn offer(amounts: &[(&str, i64)]) -> Decision {
    Decision {
        governed_by: Some("p".into()),
        generation: 3,
        selected: true,
        amounts: amounts.iter().map(|(resource, amount)| ((*resource).to_owned(), *amount)).collect(),
        announce: true,
        may_create: true,
        ..Decision::default()
    }
}

fn withhold(reclaim: Reclaim) -> Decision {
    Decision {
        verdict: Verdict::Withhold,
        withheld: true,
        reclaim,
        reason: Some(reason("OutsideTimeWindow")),
        ..offer(&[])
    }
}

fn held(code: &str, withheld: bool) -> Decision {
    Decision {
        verdict: Verdict::Held,
        withheld,
        announce: false,
        standing: Standing::Recorded,
        policy_invalid: code == "PolicyInvalid",
        may_create: false,
        reason: Some(reason(code)),
        ..offer(&[])
    }
}

fn reason(code: &str) -> DecisionReason {
    DecisionReason { entry: "e".into(), code: code.into(), message: "m".into() }
}

fn pod(uid: &str) -> PodOnVnode {
    PodOnVnode {
        key: kubeocean_api::name::ObjectKey::new("team", uid),
        uid: uid.into(),
        terminal: false,
        deleting: false,
        daemonset: false,
        system: false,
        tolerates_reclaim: false,
    }
}

#[test]
fn a_new_node_becomes_a_vnode_in_one_request() {
    let mut model = Model::new();
    assert_eq!(model.settle(), ["create vnode vnode-cls-a-n1", "label node n1 with p"]);
    let mut vnode = model.vnode.clone().unwrap();
    let encoded =
        vnode["metadata"]["annotations"][annotation::EXPECTED_METADATA].as_str().unwrap().to_owned();
    vnode["metadata"]["annotations"][annotation::EXPECTED_METADATA] = "(checked below)".into();
    insta::assert_yaml_snapshot!("new_vnode", vnode);
    let expected = super::metadata::ExpectedMetadata::decode(Some(&encoded));
    assert_eq!(expected.labels["zone"], "z1");
    assert!(!expected.annotations.contains_key(annotation::LAST_SYNC_TIME));
    assert_eq!(expected.taints, [Taint::new(taint::VNODE, None, "NoSchedule")]);
}

#[test]
fn the_policy_is_held_before_its_first_vnode() {
    let mut model = Model::new();
    model.policy.as_mut().unwrap().held = false;
    assert_eq!(model.settle()[..2], ["hold policy p", "create vnode vnode-cls-a-n1"]);
}

#[rstest]
#[case::nothing_changes(|_: &mut Model| {}, &[])]
#[case::heartbeats_within_five_minutes(|m: &mut Model| m.pnode.as_mut().unwrap()["status"]["conditions"][0]["lastHeartbeatTime"] = "2027-01-15T08:04:59Z".into(), &[])]
#[case::a_late_heartbeat(|m: &mut Model| m.pnode.as_mut().unwrap()["status"]["conditions"][0]["lastHeartbeatTime"] = "2027-01-15T08:05:00Z".into(), &["apply vnode vnode-cls-a-n1"])]
#[case::usage_of_others(|m: &mut Model| { m.used.insert("cpu".into(), 1000); }, &["apply vnode vnode-cls-a-n1", "event LeaseChanged: leased amounts changed"])]
#[case::a_users_label(|m: &mut Model| m.vnode.as_mut().unwrap()["metadata"]["labels"]["users"] = "1".into(), &[])]
#[case::a_users_taint(|m: &mut Model| m.vnode.as_mut().unwrap()["spec"]["taints"].as_array_mut().unwrap().push(json!({"key": "kubeocean.io/vnode", "effect": "NoExecute"})), &[])]
#[case::a_users_cordon(|m: &mut Model| m.vnode.as_mut().unwrap()["spec"]["unschedulable"] = true.into(), &[])]
#[case::a_managed_label_edited(|m: &mut Model| m.vnode.as_mut().unwrap()["metadata"]["labels"]["zone"] = "other".into(), &["apply vnode vnode-cls-a-n1"])]
#[case::the_default_taint_removed(|m: &mut Model| m.vnode.as_mut().unwrap()["spec"]["taints"] = json!([]), &["patch taints of vnode vnode-cls-a-n1"])]
#[case::the_finalizer_removed(|m: &mut Model| m.vnode.as_mut().unwrap()["metadata"]["finalizers"] = json!([]), &["patch finalizer of vnode vnode-cls-a-n1"])]
#[case::quantities_written_differently(|m: &mut Model| m.vnode.as_mut().unwrap()["status"]["allocatable"]["cpu"] = "4000m".into(), &[])]
#[case::another_condition_of_somebody(|m: &mut Model| m.vnode.as_mut().unwrap()["status"]["conditions"].as_array_mut().unwrap().push(json!({"type": "NetworkUnavailable", "status": "False"})), &[])]
#[case::a_field_the_server_does_not_know(|m: &mut Model| { m.vnode.as_mut().unwrap()["status"]["nodeInfo"].as_object_mut().unwrap().remove("swap"); }, &[])]
#[case::a_worker_label_removed(|m: &mut Model| { m.pnode.as_mut().unwrap()["metadata"]["labels"].as_object_mut().unwrap().remove("zone"); }, &["patch metadata of vnode vnode-cls-a-n1", "apply vnode vnode-cls-a-n1"])]
#[case::the_worker_cordons(|m: &mut Model| m.pnode.as_mut().unwrap()["spec"] = json!({"unschedulable": true, "taints": [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule", "timeAdded": "2027-01-15T08:00:00Z"}]}), &["patch taints of vnode vnode-cls-a-n1", "apply vnode vnode-cls-a-n1"])]
#[case::the_default_taint_is_disabled(|m: &mut Model| m.binding.disable_default_taint = true, &["patch taints of vnode vnode-cls-a-n1", "apply vnode vnode-cls-a-n1"])]
#[case::the_proxier_moves(|m: &mut Model| m.proxier = vec!["192.0.2.2".parse().unwrap()], &["apply vnode vnode-cls-a-n1"])]
#[case::another_policy_takes_over(|m: &mut Model| { m.policy = Some(GoverningPolicy { name: "q".into(), held: false, ..GoverningPolicy::default() }); m.decision.as_mut().unwrap().governed_by = Some("q".into()); }, &["hold policy q", "apply vnode vnode-cls-a-n1", "label node n1 with q"])]
#[case::the_label_of_another_binding_stays(|m: &mut Model| { m.owner = LabelOwner::Other; m.pnode.as_mut().unwrap()["metadata"]["labels"][label::POLICY_APPLIED] = "theirs".into(); }, &[])]
#[case::a_window_closes(|m: &mut Model| m.decision = Some(withhold(Reclaim::Keep)), &["patch taints of vnode vnode-cls-a-n1", "apply vnode vnode-cls-a-n1", "event LeaseClosed: no new pods (OutsideTimeWindow)"])]
#[case::an_invalid_policy(|m: &mut Model| m.decision = Some(held("PolicyInvalid", true)), &["patch taints of vnode vnode-cls-a-n1", "apply vnode vnode-cls-a-n1"])]
#[case::policies_load(|m: &mut Model| m.decision = None, &[])]
#[case::policies_load_and_the_proxier_moves(|m: &mut Model| { m.decision = None; m.proxier.clear(); }, &["patch conditions of vnode vnode-cls-a-n1"])]
#[case::the_worker_cannot_be_reached(|m: &mut Model| m.unreachable = true, &["patch taints of vnode vnode-cls-a-n1", "apply vnode vnode-cls-a-n1"])]
#[case::nor_could_it_ever(|m: &mut Model| { m.unreachable = true; m.node_known = false; }, &["patch taints of vnode vnode-cls-a-n1", "patch conditions of vnode vnode-cls-a-n1"])]
#[case::an_address_of_somebody(|m: &mut Model| m.vnode.as_mut().unwrap()["status"]["addresses"].as_array_mut().unwrap().push(json!({"type": "ExternalIP", "address": "198.51.100.7"})), &["patch conditions of vnode vnode-cls-a-n1"])]
#[case::a_second_address_of_our_type(|m: &mut Model| m.vnode.as_mut().unwrap()["status"]["addresses"].as_array_mut().unwrap().push(json!({"type": "InternalIP", "address": "198.51.100.7"})), &["patch conditions of vnode vnode-cls-a-n1"])]
#[case::an_edited_port(|m: &mut Model| m.vnode.as_mut().unwrap()["metadata"]["labels"][label::PROXIER_PORT] = "20000".into(), &["apply vnode vnode-cls-a-n1"])]
#[case::a_vnode_under_deletion_is_not_revived(|m: &mut Model| { m.vnode.as_mut().unwrap()["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z".into(); m.decision = None; }, &["remove label of node n1", "release vnode vnode-cls-a-n1"])]
fn what_a_leased_node_does_when(#[case] change: impl Fn(&mut Model), #[case] expected: &[&str]) {
    let mut model = Model::leased();
    change(&mut model);
    assert_eq!(model.settle(), expected);
}

#[test]
fn lifecycle_taints_and_unknown_of_the_computing_cluster_stand_until_the_worker_says_something_new() {
    let mut model = Model::leased();
    let not_ready = json!({"type": "Ready", "status": "False", "reason": "KubeletNotReady"});
    let mirrored = json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoExecute"}]);
    model.pnode.as_mut().unwrap()["status"]["conditions"] = json!([not_ready]);
    model.pnode.as_mut().unwrap()["spec"]["taints"] = mirrored;
    model.settle();
    assert_eq!(model.taint("node.kubernetes.io/not-ready").as_deref(), Some("NoExecute"));
    // The node lifecycle controller finds the Lease expired.
    let unknown = json!({"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"});
    let conditions = model.vnode.as_mut().unwrap()["status"]["conditions"].as_array_mut().unwrap();
    conditions.retain(|condition| condition["type"] != "Ready");
    conditions.push(unknown);
    model.vnode.as_mut().unwrap()["spec"]["taints"] = json!([
        {"key": "kubeocean.io/vnode", "effect": "NoSchedule"}, {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"},
    ]);
    assert_eq!(model.settle(), Vec::<String>::new());
    model.pnode = Model::new().pnode;
    model.settle();
    assert!(model.vnode().ready());
}

#[test]
fn a_condition_the_worker_node_has_no_more_goes_and_a_users_stays() {
    let mut model = Model::new();
    let problem = json!({"type": "KernelDeadlock", "status": "True", "reason": "R"});
    model.pnode.as_mut().unwrap()["status"]["conditions"].as_array_mut().unwrap().push(problem);
    model.settle();
    let users = json!({"type": "NetworkUnavailable", "status": "False"});
    model.vnode.as_mut().unwrap()["status"]["conditions"].as_array_mut().unwrap().push(users);
    model.pnode.as_mut().unwrap()["status"]["conditions"].as_array_mut().unwrap().pop();
    model.written = None; // a restart in between
    let lines = model.settle();
    assert_eq!(lines, ["patch conditions of vnode vnode-cls-a-n1", "apply vnode vnode-cls-a-n1"]);
    assert_eq!(model.vnode().condition("KernelDeadlock"), None);
    assert!(model.vnode().condition("NetworkUnavailable").is_some());
}

#[rstest]
#[case::policy_lost(|m: &mut Model| m.decision.as_mut().unwrap().governed_by = None, true)]
#[case::not_selected(|m: &mut Model| m.decision.as_mut().unwrap().selected = false, true)]
#[case::node_gone(|m: &mut Model| m.pnode = None, false)]
#[case::binding_deleted(|m: &mut Model| m.binding.deleting = true, false)]
#[case::leased(|_: &mut Model| {}, false)]
fn only_the_beginning_of_a_lost_lease_is_paced(#[case] lose: impl Fn(&mut Model), #[case] paced: bool) {
    let mut model = Model::new();
    model.decision.as_mut().unwrap().reclaim = Reclaim::Graceful(60);
    model.settle();
    lose(&mut model);
    assert_eq!(model.plan().ends_lease, paced);
    model.settle_until_blocked();
    if model.vnode.is_some() {
        assert!(!model.plan().ends_lease, "what has begun is not paced again");
    }
}

/// Stops after every number of writes, starts again, and must come to the same end (BU section 18).
#[rstest]
#[case::leased(|_: &mut Model| {})]
#[case::closed(|m: &mut Model| m.decision = Some(withhold(Reclaim::Keep)))]
#[case::reclaimed(|m: &mut Model| { m.decision = Some(withhold(Reclaim::Force)); m.pods = vec![pod("a"), pod("b")]; })]
#[case::another_policy(|m: &mut Model| { m.policy = Some(GoverningPolicy { name: "q".into(), held: false, ..GoverningPolicy::default() }); m.decision.as_mut().unwrap().governed_by = Some("q".into()); })]
#[case::worker_changes(|m: &mut Model| { m.pnode.as_mut().unwrap()["metadata"]["labels"] = json!({}); m.pnode.as_mut().unwrap()["status"]["conditions"] = json!([{"type": "Ready", "status": "False", "reason": "R"}]); })]
#[case::withdrawn(|m: &mut Model| { m.decision.as_mut().unwrap().governed_by = None; m.pods = vec![pod("a"), PodOnVnode { daemonset: true, ..pod("daemon") }]; })]
#[case::node_gone(|m: &mut Model| { m.pnode = None; m.pods = vec![pod("a")]; })]
fn a_crash_between_any_two_writes_ends_the_same(
    #[case] change: impl Fn(&mut Model),
    #[values(false, true)] leased_before: bool,
) {
    let begin = || {
        let mut model = if leased_before { Model::leased() } else { Model::new() };
        change(&mut model);
        model
    };
    let mut whole = begin();
    let writes = whole.settle().len();
    for stop in 0..writes {
        let mut model = begin();
        model.perform(stop);
        model.written = None;
        model.settle();
        let parts = |m: &Model| (timeless(m.vnode.as_ref()), m.pnode.clone(), m.pods.clone());
        assert_eq!(parts(&model), parts(&whole), "stopped after {stop} of {writes} writes");
    }
}

/// A vnode without what tells when and how often it was written.
fn timeless(vnode: Option<&Value>) -> Option<Value> {
    let mut vnode = vnode.cloned()?;
    let metadata = vnode["metadata"].as_object_mut().unwrap();
    metadata.remove("resourceVersion");
    metadata["annotations"].as_object_mut().unwrap().remove(annotation::LAST_SYNC_TIME);
    let conditions = vnode["status"]["conditions"].as_array_mut().unwrap();
    conditions.sort_by_key(|condition| condition["type"].to_string());
    Some(vnode)
}

#[test]
fn a_resource_the_worker_lost_is_published_as_zero() {
    let mut model = Model::new();
    model.pnode.as_mut().unwrap()["status"]["allocatable"]["nvidia.com/gpu"] = "8".into();
    model.settle();
    model.pnode.as_mut().unwrap()["status"]["allocatable"].as_object_mut().unwrap().remove("nvidia.com/gpu");
    model.settle();
    assert_eq!(model.vnode().status.allocatable["nvidia.com/gpu"], "0");
}

#[test]
fn small_grows_wait_and_shrinks_do_not() {
    let mut model = Model::new();
    model.used.insert("cpu".into(), 20);
    model.settle();
    model.now = 10;
    model.used.insert("cpu".into(), 0);
    let plan = model.plan();
    assert_eq!((plan.actions.len(), plan.next_wake), (0, Some(at(30))));
    model.now = 30;
    assert_eq!(model.settle()[0], "apply vnode vnode-cls-a-n1");
    model.used.insert("cpu".into(), 1);
    assert_eq!(model.settle()[0], "apply vnode vnode-cls-a-n1");
}

#[test]
fn a_held_or_failing_policy_makes_no_new_vnode() {
    let mut model = Model::new();
    model.decision = Some(held("PolicyInvalid", true));
    assert_eq!(model.settle(), Vec::<String>::new());
}

#[test]
fn a_withheld_node_still_gets_its_vnode_with_the_taint() {
    let mut model = Model::new();
    model.decision = Some(withhold(Reclaim::Keep));
    model.settle();
    assert_eq!(model.taint(taint::OUT_OF_TIME_WINDOWS).as_deref(), Some("NoSchedule"));
}

#[test]
fn graceful_reclaim_waits_then_evicts_and_reopens() {
    let mut model = Model::leased();
    model.pods = vec![
        pod("normal"),
        PodOnVnode { tolerates_reclaim: true, ..pod("tolerant") },
        PodOnVnode { system: true, ..pod("system") },
        PodOnVnode { deleting: true, ..pod("leaving") },
    ];
    model.decision = Some(withhold(Reclaim::Graceful(60)));
    model.settle();
    assert_eq!(model.taint(taint::OUT_OF_TIME_WINDOWS).as_deref(), Some("NoSchedule"));
    assert_eq!(model.plan().next_wake, Some(at(60)));
    model.now = 59;
    model.written = None; // a restart in between
    assert_eq!(model.settle(), Vec::<String>::new());
    model.now = 60;
    let plan = model.plan();
    let deleted: Vec<_> = plan
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::DeletePod { uid, why: PodDeletion::Reclaimed, .. } => Some(uid.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(deleted, ["normal"]);
    model.settle();
    assert_eq!(model.taint(taint::OUT_OF_TIME_WINDOWS).as_deref(), Some("NoExecute"));
    model.decision = Some(offer(&[]));
    model.settle();
    assert_eq!(model.taint(taint::OUT_OF_TIME_WINDOWS), None);
    assert_eq!(model.vnode().annotation(annotation::RECLAIM_SINCE), None);
}

#[rstest]
#[case::node_gone(|m: &mut Model| m.pnode = None, "NodeGone", 0)]
#[case::node_terminating(|m: &mut Model| m.pnode.as_mut().unwrap()["metadata"]["deletionTimestamp"] = "2027-01-15T08:00:00Z".into(), "NodeGone", 0)]
#[case::node_replaced(|m: &mut Model| m.pnode.as_mut().unwrap()["metadata"]["uid"] = "p-2".into(), "NodeReplaced", 0)]
#[case::binding_deleted(|m: &mut Model| m.binding.deleting = true, "BindingDeleted", 0)]
#[case::excluded(|m: &mut Model| m.pnode.as_mut().unwrap()["metadata"]["labels"][label::INSTANCE_TYPE] = "eklet".into(), "NotSelected", 0)]
#[case::node_replaced_and_not_selected(|m: &mut Model| { m.pnode.as_mut().unwrap()["metadata"]["uid"] = "p-2".into(); m.decision.as_mut().unwrap().selected = false; }, "NodeReplaced", 0)]
#[case::not_selected(|m: &mut Model| m.decision.as_mut().unwrap().selected = false, "NotSelected", 60)]
#[case::policy_lost(|m: &mut Model| m.decision.as_mut().unwrap().governed_by = None, "PolicyLost", 60)]
fn a_withdrawal_drains_in_order(#[case] lose: impl Fn(&mut Model), #[case] reason: &str, #[case] grace: i64) {
    let mut model = Model::new();
    model.decision.as_mut().unwrap().reclaim = Reclaim::Graceful(60);
    model.settle();
    model.pods = vec![pod("normal"), PodOnVnode { daemonset: true, ..pod("daemon") }];
    lose(&mut model);
    let lines = model.settle_until_blocked();
    let begun = lines.iter().position(|line| line.starts_with("patch taints, cordon, metadata")).unwrap();
    assert_eq!(model.taint(taint::VNODE_DELETING).as_deref(), Some("NoSchedule"));
    assert_eq!(model.vnode().annotation(annotation::POLICIES_APPLIED), Some(""));
    if grace > 0 {
        assert!(!model.vnode().terminating(), "{lines:?}");
        assert_eq!(model.vnode().condition(condition_type::DRAINING).unwrap().reason, reason);
        assert_eq!(model.plan().next_wake, Some(at(grace)));
        model.now = grace;
        model.settle_until_blocked();
    } else {
        assert!(lines[begun..].contains(&"delete vnode vnode-cls-a-n1".to_owned()), "{lines:?}");
    }
    // The pod is terminating: it still blocks, the daemon is left alone.
    assert!(model.vnode().terminating());
    assert_eq!(model.vnode().condition(condition_type::DRAINING).unwrap().reason, reason);
    assert_eq!(model.vnode().condition(condition_type::DRAINING).unwrap().message, "1 pods left");
    model.pods.retain(|pod| pod.daemonset);
    let plan = model.plan();
    assert_eq!(plan.to_string(), "delete pod team/daemon (Drained); release vnode vnode-cls-a-n1");
}

impl Model {
    /// As `settle`, but deleted pods linger as terminating ones.
    fn settle_until_blocked(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        for _ in 0..8 {
            let plan = self.plan();
            if plan.actions.is_empty() {
                return lines;
            }
            for action in plan.actions {
                lines.push(action.to_string());
                if let Action::DeletePod { uid, .. } = &action {
                    self.pods.iter_mut().find(|pod| pod.uid == *uid).unwrap().deleting = true;
                } else {
                    self.apply(action);
                }
            }
        }
        panic!("never settles: {lines:#?}");
    }
}

#[test]
fn a_withdrawal_that_is_called_off_leaves_no_trace() {
    let mut model = Model::new();
    model.decision.as_mut().unwrap().reclaim = Reclaim::Graceful(600);
    model.settle();
    let before = model.vnode.clone();
    model.decision.as_mut().unwrap().governed_by = None;
    model.settle();
    assert!(model.vnode().spec.unschedulable);
    model.decision.as_mut().unwrap().governed_by = Some("p".into());
    model.settle();
    let strip = |mut vnode: Value| {
        vnode["metadata"]["annotations"].as_object_mut().unwrap().remove(annotation::LAST_SYNC_TIME);
        vnode["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        vnode
    };
    assert_eq!(strip(model.vnode.unwrap()), strip(before.unwrap()));
}

#[test]
fn a_vnode_of_the_original_is_taken_over_without_a_drain() {
    let mut model = Model::leased();
    let prev = super::metadata::ExpectedMetadata {
        labels: [("gone".to_owned(), "1".to_owned())].into(),
        ..Default::default()
    };
    let vnode = model.vnode.as_mut().unwrap();
    vnode["metadata"]["labels"]["gone"] = "1".into();
    vnode["metadata"]["annotations"][annotation::EXPECTED_METADATA] = prev.encode().into();
    model.written = None;
    let lines = model.settle();
    assert_eq!(lines, ["patch metadata of vnode vnode-cls-a-n1", "apply vnode vnode-cls-a-n1"]);
    assert_eq!(model.vnode().label("gone"), None);
    assert!(model.vnode().metadata.finalizers.unwrap().contains(&finalizer::VNODE.to_owned()));
}

proptest! {
    /// Whatever is decided: never above what others leave, falling with usage, nothing left to do afterwards.
    #[test]
    fn amounts_are_bounded_monotone_and_settled(
        granted in 0_i64..20_000, used in 0_i64..8000, more in 0_i64..8000,
        verdict in 0_usize..3, reclaim in 0_usize..3,
    ) {
        let decisions = [offer(&[("cpu", granted)]), withhold([Reclaim::Keep, Reclaim::Graceful(60), Reclaim::Force][reclaim]), held("ModuleFailed", reclaim == 0)];
        let mut model = Model::leased();
        model.used.insert("cpu".into(), used);
        let mut decision = decisions[verdict].clone();
        decision.amounts.insert("cpu".into(), granted);
        model.decision = Some(decision);
        model.now = 100;
        model.settle();
        let published = super::snapshot::published(&model.vnode()).amounts["cpu"];
        prop_assert!(published <= (4000 - used).max(0));
        prop_assert!(published <= granted);
        model.now = 200;
        model.used.insert("cpu".into(), used + more);
        model.settle();
        let later = super::snapshot::published(&model.vnode()).amounts["cpu"];
        prop_assert!(later <= published);
        prop_assert!(model.plan().actions.is_empty());
    }
}
