//! What is to be done about one node: the rows of BU section 9, first match wins.
//!
//! Pure: no clock, client or logging. In: [`NodeInput`], a snapshot of one key. Out: [`NodePlan`]: actions in an order
//! for which every prefix is repairable, and when to look again without an event.

use std::{fmt, net::IpAddr};

use jiff::Timestamp;
use kubeocean_api::keys::{annotation, condition_type, label, taint};

use super::{
    action::{Action, PodDeletion, Shown, VnodeEvent},
    changes::{admits_pods, changes},
    compare::{Difference, difference},
    decision::Decision,
    lease_event::{LEASE_CHANGED, lease_event},
    loss::WorkerLoss,
    reclaim::{LeaseState, Observed, Reclaiming, reclaiming},
    snapshot::Amounts,
    terms::{Terms, terms_while_leased},
    undecided::{addresses_of, lowered, mark_anew, mark_reachability, mirror, told},
    view::{NodeAddress, NodeView},
    vnode::{BindingView, Content, GoverningPolicy, Ingredients, Settings, Written, content, evicts},
    withdraw::{Cause, PodOnVnode, Withdrawal, begins, withdraw, withdrawal_since},
};

/// How much is known about a node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Knowledge<'a> {
    /// The worker's first lists are not complete: nothing is known about the node.
    Nothing,
    /// The node is known, the policies are not loaded (PO-704): nothing is written but conditions, addresses and amounts
    /// that fell.
    NodeOnly,
    /// Decided.
    Decided(&'a Decision),
}

/// Who the policy named by a worker node's label `policy-applied` belongs to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LabelOwner {
    /// To this binding, or the policy does not exist: the label is ours to change.
    #[default]
    OursOrNobody,
    /// To another binding.
    Other,
}

/// Everything about one node at one moment.
#[derive(Clone, Copy, Debug)]
pub struct NodeInput<'a> {
    /// Now.
    pub now: Timestamp,
    /// The binding.
    pub binding: &'a BindingView,
    /// Settings.
    pub settings: &'a Settings,
    /// Name the vnode has or gets.
    pub vnode_name: &'a str,
    /// The worker node, if it exists.
    pub pnode: Option<&'a NodeView>,
    /// The vnode, if it exists.
    pub vnode: Option<&'a NodeView>,
    /// What is known.
    pub knowledge: Knowledge<'a>,
    /// What others leave of the node.
    pub available: &'a Amounts,
    /// The policy named by the decision.
    pub policy: Option<&'a GoverningPolicy>,
    /// Owner of the node's label `policy-applied`.
    pub label_owner: LabelOwner,
    /// Port of the vnode.
    pub port: u16,
    /// Addresses of ready Proxiers.
    pub proxier: &'a [IpAddr],
    /// Why the worker has been out of reach for 60 s, if it has.
    pub loss: Option<WorkerLoss>,
    /// What this process wrote before.
    pub written: Option<&'a Written>,
    /// What this process knows of the end of the lease.
    pub terms: Terms,
    /// Pods on the vnode.
    pub pods: &'a [PodOnVnode],
}

/// What to do, and when to look again.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodePlan {
    /// In order.
    pub actions: Vec<Action>,
    /// Without an event.
    pub next_wake: Option<Timestamp>,
    /// The vnode is, or is going to be, built from this policy.
    pub leased_by: Option<String>,
    /// The plan begins a withdrawal for no other reason than a policy or a selector; such are paced.
    pub ends_lease: bool,
    /// The plan closes or deletes a vnode for no other reason than a policy or a selector: it holds as long as the policies
    /// stay as they are.
    pub hangs_on_policies: bool,
    /// What is known of the end of the lease from now on, whatever becomes of the writes; `None`: what was known.
    pub terms: Option<Terms>,
}

impl fmt::Display for NodePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let actions: Vec<String> = self.actions.iter().map(ToString::to_string).collect();
        f.write_str(&actions.join("; "))
    }
}

/// See the module documentation.
pub fn plan_node(input: &NodeInput<'_>) -> NodePlan {
    match (input.knowledge, withdrawal_cause(input)) {
        (Knowledge::Nothing, _) => NodePlan { actions: mark_reachability(input), ..NodePlan::default() },
        (_, Some(cause)) => plan_withdrawal(input, cause),
        (Knowledge::NodeOnly, None) => NodePlan { actions: mirror(input), ..NodePlan::default() },
        (Knowledge::Decided(decision), None) => plan_lease(input, decision),
    }
}

/// Rows 1 and 3 to 6.
fn withdrawal_cause(input: &NodeInput<'_>) -> Option<Cause> {
    if input.knowledge == Knowledge::Nothing {
        return None;
    }
    let Some(pnode) = input.pnode.filter(|pnode| !pnode.terminating()) else { return Some(Cause::NodeGone) };
    if input.binding.deleting {
        return Some(Cause::BindingDeleted);
    }
    if pnode.excluded() {
        return Some(Cause::Excluded);
    }
    if let Some(vnode) = input.vnode {
        // One of the two is enough: a user may have edited the other, which is then restored.
        let said = [vnode.annotation(annotation::PHYSICAL_NODE_UID), vnode.label(label::PHYSICAL_NODE_UID)];
        if !said.contains(&Some(pnode.uid())) {
            return Some(Cause::NodeReplaced);
        }
        if vnode.terminating() {
            return Some(Cause::Deleted);
        }
    }
    if let Knowledge::Decided(decision) = input.knowledge
        && !decision.selected
    {
        return Some(Cause::NotSelected);
    }
    match input.knowledge {
        Knowledge::Decided(decision) if decision.governed_by.is_none() || input.policy.is_none() => {
            Some(Cause::PolicyLost)
        }
        _ => None,
    }
}

fn plan_withdrawal(input: &NodeInput<'_>, cause: Cause) -> NodePlan {
    let mut actions = Vec::new();
    actions.extend(unlabel_worker_node(input));
    let Some(vnode) = input.vnode else { return NodePlan { actions, ..NodePlan::default() } };
    actions.extend(mark_anew(input, vnode));
    let pnode = input.pnode.filter(|_| cause != Cause::NodeReplaced);
    let since = withdrawal_since(vnode, &input.terms, input.now);
    let withdrawal = Withdrawal {
        now: input.now,
        cause,
        vnode,
        since,
        terms: input.terms,
        pods: input.pods,
        conditions: &told(input, pnode, vnode),
        addresses: &addresses_of(input, vnode),
        written: pnode.map(|pnode| Written::conditions_of(pnode, input.written)),
    };
    let next_wake = withdraw(&withdrawal, &mut actions);
    let decided = match input.knowledge {
        Knowledge::Decided(decision) => decision.wake_at.and_then(|at| Timestamp::from_second(at).ok()),
        _ => None,
    };
    let closes = |action: &Action| match action {
        Action::PatchVnode(changes) => changes.taints.is_some(),
        action => matches!(action, Action::DeleteVnode { .. }),
    };
    NodePlan {
        hangs_on_policies: cause.ends_lease() && actions.iter().any(closes),
        actions,
        next_wake: earliest(next_wake, decided),
        leased_by: None,
        ends_lease: cause.ends_lease() && begins(vnode, since),
        terms: Some(Terms { withdrawal_since: since, ..input.terms }),
    }
}

/// What to do for a vnode whose withdrawal has to wait for its turn: it stays leased, but for what others take of its
/// node meanwhile, and tells what its node tells.
pub fn plan_waiting(input: &NodeInput<'_>) -> Vec<Action> {
    mirror(input)
}

fn earliest(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    [a, b].into_iter().flatten().min()
}

/// Row 7.
fn plan_lease(input: &NodeInput<'_>, decision: &Decision) -> NodePlan {
    let wake = decision.wake_at.and_then(|at| Timestamp::from_second(at).ok());
    let (Some(pnode), Some(policy)) = (input.pnode, input.policy) else { return NodePlan::default() };
    if input.vnode.is_none() && !decision.may_create {
        let actions = unlabel_worker_node(input).into_iter().collect();
        return NodePlan { actions, next_wake: wake, ..NodePlan::default() };
    }
    let observed = Observed::of(input.vnode, &input.terms, input.now);
    let mut reclaiming = reclaiming(decision, &observed, input.now);
    if input.loss.is_some() {
        reclaiming = reclaiming.suspended();
    }
    if let Some(until) = rests_until(input, &reclaiming) {
        return NodePlan {
            actions: mirror(input),
            next_wake: earliest(Some(until), wake),
            leased_by: Some(policy.name.clone()),
            ..NodePlan::default()
        };
    }
    let wanted = content(&Ingredients {
        now: input.now,
        binding: input.binding,
        settings: input.settings,
        name: input.vnode_name,
        pnode,
        vnode: input.vnode,
        available: input.available,
        decision,
        policy,
        reclaiming: &reclaiming,
        port: input.port,
        proxier: input.proxier,
        loss: input.loss,
        written: input.written,
    });
    let terms = terms_while_leased(input, decision, &reclaiming);
    let mut plan = NodePlan {
        leased_by: Some(policy.name.clone()),
        next_wake: wake,
        terms: Some(terms),
        ..NodePlan::default()
    };
    if !policy.held {
        plan.actions.push(Action::HoldPolicy { policy: policy.name.clone() });
    }
    match input.vnode {
        None => plan.actions.push(Action::CreateVnode {
            name: input.vnode_name.to_owned(),
            body: wanted.create_body(input.vnode_name, input.now),
            written: remembered(pnode, input, true, false),
        }),
        Some(vnode) => {
            let later = update(input, decision, pnode, vnode, &wanted, &reclaiming, &mut plan.actions);
            plan.next_wake = earliest(plan.next_wake, later);
        }
    }
    let remembered = input.vnode.and_then(|vnode| vnode.annotation(annotation::EXPECTED_METADATA));
    if !wanted.left_out.is_empty()
        && remembered != wanted.annotations.get(annotation::EXPECTED_METADATA).map(String::as_str)
    {
        let message = format!("annotations of the node that are too large: {}", wanted.left_out.join(", "));
        plan.actions.push(Action::Event(VnodeEvent {
            warning: true,
            reason: "AnnotationsNotMirrored",
            message,
        }));
    }
    label_worker_node(input, pnode, &policy.name, &mut plan.actions);
    if let LeaseState::Closing { until } = reclaiming.state {
        plan.next_wake = earliest(plan.next_wake, Some(until));
    }
    if evicts(reclaiming.state) {
        evict(input.pods, &mut plan.actions);
    }
    plan
}

/// A lease that opened a moment ago does not close at once: whoever cannot decide evicts nobody each second. Returns when
/// it may.
fn rests_until(input: &NodeInput<'_>, reclaiming: &Reclaiming) -> Option<Timestamp> {
    let opened = input.written?.opened_at?;
    let until = opened.checked_add(REST).ok()?;
    let closes = reclaiming.taint.is_some() && input.vnode?.taint(taint::OUT_OF_TIME_WINDOWS).is_none();
    (closes && input.now < until && opened <= input.now).then_some(until)
}

fn remembered(pnode: &NodeView, input: &NodeInput<'_>, amounts: bool, event: bool) -> Written {
    let mut written = Written::of(pnode, input.written);
    if amounts {
        written.amounts_at = Some(input.now);
    }
    if event {
        written.event_at = Some(input.now);
    }
    written
}

/// Brings an existing vnode to its content. Returns when a postponed write is due.
fn update(
    input: &NodeInput<'_>,
    decision: &Decision,
    pnode: &NodeView,
    vnode: &NodeView,
    wanted: &Content,
    reclaiming: &Reclaiming,
    actions: &mut Vec<Action>,
) -> Option<Timestamp> {
    let mut changes = changes(vnode, wanted);
    if !changes.is_empty() {
        if changes.annotations.contains_key(annotation::RECLAIM_SINCE) {
            let known = terms_while_leased(input, decision, reclaiming);
            changes.terms = Some(Terms { reclaim_since: reclaiming.since, ..known });
        }
        if admits_pods(&changes, vnode) {
            // Whoever waits for that is placed by the amounts of that moment.
            let lowered = lowered(vnode, &wanted.amounts);
            actions.extend(Action::show(vnode, Shown { lowered, ..Shown::default() }));
        }
        actions.push(Action::PatchVnode(changes));
    }
    let gone: Vec<&str> =
        wanted.vanished.iter().map(String::as_str).chain([condition_type::DRAINING]).collect();
    let difference = difference(wanted, vnode, pnode, input.written, input.now);
    let event = lease_event(input, decision, vnode, wanted, reclaiming, difference);
    if let Difference::Now { amounts } = difference {
        let told = event.as_ref().is_some_and(|event| event.reason == LEASE_CHANGED);
        let mut written = remembered(pnode, input, amounts, told);
        if reclaiming.taint.is_none() && vnode.taint(taint::OUT_OF_TIME_WINDOWS).is_some() {
            written.opened_at = Some(input.now);
        }
        actions.push(Action::UpdateVnode {
            name: input.vnode_name.to_owned(),
            patch: wanted.update(vnode, &gone, input.now),
            written,
        });
    } else {
        // What shall go is no difference of what shall be there.
        let addresses = strangers(&wanted.addresses, vnode).then_some(wanted.addresses.as_slice());
        actions.extend(Action::show(vnode, Shown { addresses, removed: &gone, ..Shown::default() }));
    }
    actions.extend(event.map(Action::Event));
    match difference {
        Difference::Later(due) => Some(due),
        Difference::None | Difference::Now { .. } => None,
    }
}

/// Whether the vnode shows an address beside ours.
fn strangers(ours: &[NodeAddress], vnode: &NodeView) -> bool {
    let shown = &vnode.status.addresses;
    shown.len() > ours.len() || shown.iter().any(|other| !ours.iter().any(|one| one.type_ == other.type_))
}

/// Shortest time between the opening of a lease and its next closing (BU section 20).
const REST: jiff::SignedDuration = jiff::SignedDuration::from_secs(10);

fn label_worker_node(input: &NodeInput<'_>, pnode: &NodeView, policy: &str, actions: &mut Vec<Action>) {
    let value = kubeocean_api::name::fit_label_value(policy);
    let shown = pnode.label(label::POLICY_APPLIED);
    if shown != Some(value.as_str()) && (shown.is_none() || input.label_owner == LabelOwner::OursOrNobody) {
        actions.push(Action::LabelWorkerNode { node: pnode.name().to_owned(), policy: Some(value) });
    }
}

/// A node without a vnode carries no label of ours.
fn unlabel_worker_node(input: &NodeInput<'_>) -> Option<Action> {
    let pnode = input.pnode.filter(|pnode| pnode.label(label::POLICY_APPLIED).is_some())?;
    (input.label_owner == LabelOwner::OursOrNobody)
        .then(|| Action::LabelWorkerNode { node: pnode.name().to_owned(), policy: None })
}

/// Pods a reclaim takes (BU-807).
fn evict(pods: &[PodOnVnode], actions: &mut Vec<Action>) {
    let due =
        pods.iter().filter(|pod| !pod.terminal && !pod.deleting && !pod.system && !pod.tolerates_reclaim);
    actions.extend(due.map(|pod| Action::DeletePod {
        key: pod.key.clone(),
        uid: pod.uid.clone(),
        why: PodDeletion::Reclaimed,
    }));
}
