//! Taking a vnode back (BU-901, BU-902, BU-907).
//!
//! Pure. In: why, what is there, the pods on the vnode. Out: the next steps; each prefix of them is repairable.
//! Order: label off the worker node, taint and cordon, wait for a promised grace period, delete, drain, finalizer off.

use std::fmt;

use jiff::{SignedDuration, Timestamp};
use kubeocean_api::keys::{annotation, condition_type, finalizer, taint};

use super::{
    action::{Action, NodeChanges, PodDeletion, Shown, VnodeEvent},
    conditions::{condition, stated},
    decision::Reclaim,
    reclaim::parse_reclaim,
    terms::{Terms, earlier, unless_to_come},
    view::{NO_SCHEDULE, NodeAddress, NodeCondition, NodeView, Taint},
    vnode::Written,
};
use kubeocean_runtime::clock::{parse_rfc3339, rfc3339};

/// Why a vnode is withdrawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The worker node is gone or going.
    NodeGone,
    /// Another worker node has its name now.
    NodeReplaced,
    /// Somebody deleted the vnode.
    Deleted,
    /// The binding is being deleted.
    BindingDeleted,
    /// The worker node is of a kind that is never leased.
    Excluded,
    /// The binding's selector no longer matches.
    NotSelected,
    /// No policy governs the node any more.
    PolicyLost,
}

impl Cause {
    /// Reason of condition `Draining` (API-808).
    pub fn reason(self) -> &'static str {
        match self {
            Self::NodeGone => "NodeGone",
            Self::NodeReplaced => "NodeReplaced",
            Self::Deleted => "Deleted",
            Self::BindingDeleted => "BindingDeleted",
            Self::Excluded | Self::NotSelected => "NotSelected",
            Self::PolicyLost => "PolicyLost",
        }
    }

    /// Whether nothing but a policy or a selector is the reason. Then a grace period that the policy announced is waited
    /// for.
    pub fn ends_lease(self) -> bool {
        matches!(self, Self::NotSelected | Self::PolicyLost)
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NodeGone => "the worker node is gone",
            Self::NodeReplaced => "the worker node was replaced",
            Self::Deleted => "the vnode was deleted",
            Self::BindingDeleted => "the binding is being deleted",
            Self::Excluded => "the worker node is of a kind that is never leased",
            Self::NotSelected => "the binding does not select the worker node",
            Self::PolicyLost => "no policy governs the worker node",
        })
    }
}

/// A pod on the vnode, as the vpod index knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "independent facts about one pod")]
pub struct PodOnVnode {
    /// Namespace and name.
    pub key: kubeocean_api::name::ObjectKey,
    /// UID.
    pub uid: String,
    /// Phase Succeeded or Failed.
    pub terminal: bool,
    /// Already being deleted.
    pub deleting: bool,
    /// Owned by a DaemonSet.
    pub daemonset: bool,
    /// In a namespace that is never mapped, as host port reservations are.
    pub system: bool,
    /// Tolerates the out-of-window taint, so a reclaim leaves it alone (BU-807).
    pub tolerates_reclaim: bool,
}

impl PodOnVnode {
    /// Keeps the vnode from going (BU-901(f)). Pods of DaemonSets come back as long as the vnode is there.
    pub fn blocks(&self) -> bool {
        !self.terminal && !self.system && !self.daemonset
    }
}

/// What a withdrawal needs to know.
#[derive(Clone, Debug)]
pub struct Withdrawal<'a> {
    /// Now.
    pub now: Timestamp,
    /// Why.
    pub cause: Cause,
    /// The vnode.
    pub vnode: &'a NodeView,
    /// When it began; `None`: not yet.
    pub since: Option<Timestamp>,
    /// What this process knows of the end of the lease.
    pub terms: Terms,
    /// Pods on it.
    pub pods: &'a [PodOnVnode],
    /// The vnode's conditions as they shall appear, but for the progress.
    pub conditions: &'a [NodeCondition],
    /// Its addresses.
    pub addresses: &'a [NodeAddress],
    /// To be remembered once these are written.
    pub written: Option<Written>,
}

/// See the module documentation. Appends to `actions`; returns when to look again without an event.
pub fn withdraw(input: &Withdrawal<'_>, actions: &mut Vec<Action>) -> Option<Timestamp> {
    let vnode = input.vnode;
    if vnode.terminating() {
        drain(input, actions);
        return None;
    }
    let since = input.since.unwrap_or(input.now);
    let until = grace(input).map(|grace| since.saturating_add(grace).unwrap_or(Timestamp::MAX));
    if !is_marked(vnode, input.since) {
        actions.push(Action::PatchVnode(begin(input, since)));
        if begins(vnode, input.since) {
            actions.push(Action::Event(VnodeEvent::draining(input.cause)));
        }
        return until;
    }
    if let Some(until) = until.filter(|until| *until > input.now) {
        show_progress(input, actions);
        return Some(until);
    }
    actions.push(Action::DeleteVnode { name: vnode.name().to_owned(), uid: vnode.uid().to_owned() });
    None
}

/// Whether a withdrawal of this vnode would begin now. One that began goes on, whichever of its marks somebody took off:
/// they come back without a turn.
pub fn begins(vnode: &NodeView, since: Option<Timestamp>) -> bool {
    !vnode.terminating() && since.is_none()
}

/// When the withdrawal of a vnode began: as it is recorded, unless this process knows better.
pub fn withdrawal_since(vnode: &NodeView, known: &Terms, now: Timestamp) -> Option<Timestamp> {
    earlier(unless_to_come(recorded_start(vnode), now), unless_to_come(known.withdrawal_since, now))
}

fn recorded_start(vnode: &NodeView) -> Option<Timestamp> {
    vnode.annotation(annotation::DELETION_TAINT_TIME).and_then(parse_rfc3339)
}

/// Whether nothing of what the drain began with is missing.
fn is_marked(vnode: &NodeView, since: Option<Timestamp>) -> bool {
    let shown = recorded_start(vnode);
    vnode.taint(taint::VNODE_DELETING).is_some()
        && vnode.spec.unschedulable
        && vnode.annotation(annotation::POLICIES_APPLIED).is_none_or(str::is_empty)
        // Written times have whole seconds.
        && shown.is_some()
        && shown.map(Timestamp::as_second) == since.map(Timestamp::as_second)
}

/// The grace period that the lost policy announced: the shorter one, where the vnode says another than is known.
fn grace(input: &Withdrawal<'_>) -> Option<SignedDuration> {
    let seconds = |announced: Reclaim| match announced {
        Reclaim::Graceful(seconds) => seconds,
        Reclaim::Force | Reclaim::Keep => 0,
    };
    let shown = input.vnode.annotation(annotation::RECLAIM).and_then(parse_reclaim).map(seconds)?;
    let grace = input.terms.announced.map_or(shown, |known| shown.min(seconds(known)));
    (grace > 0 && input.cause.ends_lease()).then(|| SignedDuration::from_secs(i64::from(grace)))
}

/// Taint, cordon and time in one write. The policy's name goes, so that its finalizer waits for nobody.
fn begin(input: &Withdrawal<'_>, since: Timestamp) -> NodeChanges {
    let vnode = input.vnode;
    let mut taints: Vec<Taint> =
        vnode.spec.taints.iter().filter(|taint| taint.key != taint::VNODE_DELETING).cloned().collect();
    taints.push(Taint {
        time_added: Some(rfc3339(input.now).into()),
        ..Taint::new(taint::VNODE_DELETING, Some("true"), NO_SCHEDULE)
    });
    let mut changes = NodeChanges::of(vnode);
    changes.taints = Some(taints);
    changes.unschedulable = Some(true);
    changes.annotations.insert(annotation::DELETION_TAINT_TIME.to_owned(), Some(rfc3339(since)));
    changes.annotations.insert(annotation::POLICIES_APPLIED.to_owned(), Some(String::new()));
    changes.terms = Some(Terms { withdrawal_since: Some(since), ..input.terms });
    changes
}

/// The vnode is terminating: its pods go, those of DaemonSets last, then our finalizer.
fn drain(input: &Withdrawal<'_>, actions: &mut Vec<Action>) {
    let vnode = input.vnode;
    let ours = vnode.metadata.finalizers.iter().any(|name| name == finalizer::VNODE);
    if !ours {
        return;
    }
    let blocking = input.pods.iter().any(PodOnVnode::blocks);
    let due = input.pods.iter().filter(|pod| !pod.deleting && (!pod.daemonset || !blocking));
    actions.extend(due.map(|pod| Action::DeletePod {
        key: pod.key.clone(),
        uid: pod.uid.clone(),
        why: PodDeletion::Drained,
    }));
    if blocking {
        show_progress(input, actions);
    } else {
        actions.push(Action::ReleaseVnode { name: vnode.name().to_owned(), uid: vnode.uid().to_owned() });
    }
}

/// Condition `Draining`, the others and the addresses.
fn show_progress(input: &Withdrawal<'_>, actions: &mut Vec<Action>) {
    let vnode = input.vnode;
    let left = input.pods.iter().filter(|pod| pod.blocks()).count();
    // A vnode that we deleted ourselves is terminating for the reason it was deleted for.
    let shown = vnode.condition(condition_type::DRAINING).map(|shown| shown.reason.as_str());
    let reason = match (input.cause, shown) {
        (Cause::Deleted, Some(shown)) if !shown.is_empty() => shown,
        (cause, _) => cause.reason(),
    };
    let message = format!("{left} pods left");
    let draining =
        stated(Some(vnode), condition(condition_type::DRAINING, "True", reason, &message), input.now);
    let mut wanted = input.conditions.to_vec();
    wanted.push(draining);
    let shown = Shown {
        conditions: &wanted,
        addresses: Some(input.addresses),
        written: input.written.clone(),
        ..Shown::default()
    };
    actions.extend(Action::show(vnode, shown));
}
