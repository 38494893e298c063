//! One worker node and its vnode in memory: a plan is applied to it, so that what follows can be planned as well.

use std::{net::IpAddr, sync::OnceLock};

use jiff::Timestamp;
use kubeocean_api::keys::{annotation, label};
use kubeocean_engine::{Engine, EngineConfig};
use serde_json::{Value, json};

use crate::nodes::{
    action::{Action, status_patch},
    decision::{Decision, DecisionReason, Reclaim, Standing, Verdict},
    loss::WorkerLoss,
    plan::{Knowledge, LabelOwner, NodeInput, NodePlan, plan_node},
    snapshot::{Amounts, available, base},
    terms::Terms,
    view::NodeView,
    vnode::{BindingView, GoverningPolicy, Settings, Written},
    withdraw::PodOnVnode,
};

pub(super) const VNODE: &str = "vnode-cls-a-n1";

pub(super) fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

/// The policy engine, once for all tests: modules are compiled once.
pub(in crate::nodes) fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::start(EngineConfig { threads: 2, ..EngineConfig::default() }).unwrap())
}

/// One worker node, its vnode, and everything a plan looks at.
pub(super) struct Model {
    pub(super) now: i64,
    pub(super) binding: BindingView,
    pub(super) settings: Settings,
    pub(super) pnode: Option<Value>,
    pub(super) vnode: Option<Value>,
    pub(super) used: Amounts,
    pub(super) decision: Option<Decision>,
    pub(super) node_known: bool,
    pub(super) policy: Option<GoverningPolicy>,
    pub(super) owner: LabelOwner,
    pub(super) proxier: Vec<IpAddr>,
    pub(super) loss: Option<WorkerLoss>,
    pub(super) written: Option<Written>,
    pub(super) terms: Terms,
    pub(super) pods: Vec<PodOnVnode>,
}

impl Model {
    pub(super) fn new() -> Self {
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
            used: Amounts::new(),
            decision: Some(offer(&[])),
            node_known: true,
            policy: Some(GoverningPolicy { name: "p".into(), details: "p".into(), held: true }),
            owner: LabelOwner::OursOrNobody,
            proxier: vec!["192.0.2.1".parse().unwrap()],
            loss: None,
            written: None,
            terms: Terms::default(),
            pods: Vec::new(),
        }
    }

    pub(super) fn leased() -> Self {
        let mut model = Self::new();
        model.settle();
        model
    }

    pub(super) fn plan(&self) -> NodePlan {
        self.planned(plan_node)
    }

    pub(super) fn planned<T>(&self, plan: impl FnOnce(&NodeInput<'_>) -> T) -> T {
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
            loss: self.loss,
            written: self.written.as_ref(),
            terms: self.terms,
            pods: &self.pods,
        })
    }

    /// Plans and applies until nothing is left to do; returns every action as one line each.
    pub(super) fn settle(&mut self) -> Vec<String> {
        self.settle_by(Self::apply)
    }

    fn settle_by(&mut self, apply: impl Fn(&mut Self, Action)) -> Vec<String> {
        let mut lines = Vec::new();
        for _ in 0..8 {
            let plan = self.plan();
            self.terms = plan.terms.unwrap_or(self.terms);
            if plan.actions.is_empty() {
                return lines;
            }
            for action in plan.actions {
                lines.push(action.to_string());
                apply(self, action);
            }
        }
        panic!("never settles: {lines:#?}");
    }

    /// The first `writes` actions only.
    pub(super) fn perform(&mut self, writes: usize) {
        let mut left = writes;
        while left > 0 {
            let NodePlan { actions, terms, .. } = self.plan();
            self.terms = terms.unwrap_or(self.terms);
            let some = actions.len().min(left);
            left -= some;
            actions.into_iter().take(some).for_each(|action| self.apply(action));
        }
    }

    pub(super) fn apply(&mut self, action: Action) {
        match action {
            Action::HoldPolicy { .. } => self.policy.as_mut().unwrap().held = true,
            Action::CreateVnode { body, written, .. } => {
                let mut vnode = body;
                vnode["metadata"]["uid"] = "v-1".into();
                self.vnode = Some(vnode);
                self.written = Some(written);
            }
            Action::PatchVnode(changes) => {
                merge(self.vnode.as_mut().unwrap(), &changes.patch());
                self.terms = changes.terms.unwrap_or(self.terms);
            }
            Action::UpdateVnode { mut patch, written, .. } => {
                patch["metadata"].as_object_mut().unwrap().remove("resourceVersion");
                merge(self.vnode.as_mut().unwrap(), &patch);
                self.written = Some(written);
            }
            Action::PatchStatus { conditions, addresses, lowered, written, .. } => {
                let status = status_patch(&conditions, addresses.as_deref(), &lowered);
                merge(self.vnode.as_mut().unwrap(), &json!({"status": status}));
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

    /// A new process knows nothing of what the one before wrote.
    pub(super) fn restart(&mut self) {
        (self.written, self.terms) = (None, Terms::default());
    }

    pub(super) fn vnode(&self) -> NodeView {
        serde_json::from_value(self.vnode.clone().unwrap()).unwrap()
    }

    pub(super) fn taint(&self, key: &str) -> Option<String> {
        self.vnode().taint(key).map(|taint| taint.effect.to_string())
    }
}

impl Model {
    /// As `settle`, but deleted pods linger as terminating ones.
    pub(super) fn settle_until_blocked(&mut self) -> Vec<String> {
        self.settle_by(|model, action| {
            if let Action::DeletePod { uid, .. } = &action {
                model.pods.iter_mut().find(|pod| pod.uid == *uid).unwrap().deleting = true;
            } else {
                model.apply(action);
            }
        })
    }
}

/// RFC 7386.
pub(super) fn merge(target: &mut Value, patch: &Value) {
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

pub(super) fn offer(amounts: &[(&str, i64)]) -> Decision {
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

pub(super) fn withhold(reclaim: Reclaim) -> Decision {
    Decision {
        verdict: Verdict::Withhold,
        withheld: true,
        reclaim,
        reason: Some(reason("OutsideTimeWindow")),
        ..offer(&[])
    }
}

pub(super) fn held(code: &str, withheld: bool) -> Decision {
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

pub(super) fn reason(code: &str) -> DecisionReason {
    DecisionReason { entry: "e".into(), code: code.into(), message: "m".into() }
}

pub(super) fn pod(uid: &str) -> PodOnVnode {
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

/// A vnode without what tells when and how often it was written.
pub(super) fn timeless(vnode: Option<&Value>) -> Option<Value> {
    let mut vnode = vnode.cloned()?;
    let metadata = vnode["metadata"].as_object_mut().unwrap();
    metadata.remove("resourceVersion");
    metadata["annotations"].as_object_mut().unwrap().remove(annotation::LAST_SYNC_TIME);
    let conditions = vnode["status"]["conditions"].as_array_mut().unwrap();
    conditions.sort_by_key(|condition| condition["type"].to_string());
    Some(vnode)
}
