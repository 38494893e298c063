//! The conditions of a vnode: its worker node's as they are told, and our own (API-808).
//!
//! Pure. Invariant: what the computing cluster's node lifecycle controller says of a vnode stands until the worker node
//! says something new; two writers of one condition would never come to rest.

use std::{
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash, Hasher},
    net::IpAddr,
};

use jiff::Timestamp;
use kubeocean_api::keys::condition_type;

use super::{
    decision::{Decision, Verdict},
    loss::WorkerLoss,
    reclaim::Reclaiming,
    view::{NodeCondition, NodeView},
    vnode::Written,
};
use kubeocean_runtime::clock::rfc3339;

fn is_ours(condition: &NodeCondition) -> bool {
    [
        condition_type::LEASE,
        condition_type::WORKER_REACHABLE,
        condition_type::PROXIER_READY,
        condition_type::DRAINING,
    ]
    .contains(&condition.type_.as_str())
}

/// A list of conditions with some replaced by type or added, and without those of the types `gone`.
pub fn with_conditions(
    there: &[NodeCondition],
    wanted: &[NodeCondition],
    gone: &[&str],
) -> Vec<NodeCondition> {
    let stays = |condition: &&NodeCondition| !gone.contains(&condition.type_.as_str());
    let mut conditions: Vec<NodeCondition> = there.iter().filter(stays).cloned().collect();
    for condition in wanted {
        match conditions.iter_mut().find(|there| there.type_ == condition.type_) {
            Some(there) => there.clone_from(condition),
            None => conditions.push(condition.clone()),
        }
    }
    conditions
}

/// The worker node's conditions as they shall appear on the vnode. While the node is not ready and says nothing new,
/// the `Unknown` that the computing cluster's node lifecycle controller puts on a vnode without Lease stands (BU
/// section 10), otherwise the two would take turns.
pub fn mirrored_conditions(
    pnode: &NodeView,
    vnode: Option<&NodeView>,
    written: Option<&Written>,
) -> Vec<NodeCondition> {
    let quiet = !pnode.ready() && written.is_none_or(|written| written.conditions == statements(pnode));
    pnode
        .status
        .conditions
        .iter()
        .filter(|condition| !is_ours(condition))
        .map(|condition| match vnode.and_then(|vnode| vnode.condition(&condition.type_)) {
            Some(shown) if quiet && set_by_lifecycle_controller(shown) => shown.clone(),
            _ => condition.clone(),
        })
        .collect()
}

/// The condition is not the worker's: the computing cluster missed the vnode's Lease.
pub(super) fn set_by_lifecycle_controller(condition: &NodeCondition) -> bool {
    condition.status == "Unknown"
        && matches!(condition.reason.as_str(), "NodeStatusUnknown" | "NodeStatusNeverUpdated")
}

/// Types of the conditions that are mirrored, sorted.
pub(super) fn mirrored_types(pnode: &NodeView) -> Vec<String> {
    let mirrored = pnode.status.conditions.iter().filter(|condition| !is_ours(condition));
    let mut types: Vec<String> = mirrored.map(|condition| condition.type_.to_string()).collect();
    types.sort();
    types
}

/// A digest of the mirrored conditions of a node without times.
pub(super) fn statements(pnode: &NodeView) -> u64 {
    let mut hasher = BuildHasherDefault::<DefaultHasher>::default().build_hasher();
    pnode.status.conditions.iter().filter(|condition| !is_ours(condition)).for_each(
        |NodeCondition { type_, status, reason, message, .. }| {
            (type_, status, reason, message).hash(&mut hasher);
        },
    );
    hasher.finish()
}

/// A condition of ours with the time of its last change.
pub fn stated(vnode: Option<&NodeView>, condition: NodeCondition, now: Timestamp) -> NodeCondition {
    let since = vnode
        .and_then(|vnode| vnode.condition(&condition.type_))
        .filter(|shown| shown.status == condition.status)
        .and_then(|shown| shown.last_transition_time.clone());
    NodeCondition { last_transition_time: Some(since.unwrap_or_else(|| rfc3339(now).into())), ..condition }
}

pub(super) fn lease_condition(decision: &Decision, reclaiming: &Reclaiming) -> NodeCondition {
    let (status, fallback) = match decision.verdict {
        Verdict::Offer => ("True", "Offered"),
        Verdict::Withhold => ("False", "Withheld"),
        Verdict::Held => ("Unknown", "ModuleFailed"),
    };
    let reason = decision.reason.as_ref().map_or(fallback, |reason| reason.code.as_str());
    let mut message = reclaiming.state.to_string();
    if let Some(reason) = &decision.reason {
        for part in [&reason.entry, &reason.message] {
            if !part.is_empty() {
                message.push_str(": ");
                message.push_str(part);
            }
        }
    }
    condition(condition_type::LEASE, status, if reason.is_empty() { fallback } else { reason }, &message)
}

/// Whether the worker is watched.
pub fn reachable_condition(loss: Option<WorkerLoss>) -> NodeCondition {
    match loss {
        Some(loss) => condition(condition_type::WORKER_REACHABLE, "False", loss.reason(), &loss.message()),
        None => condition(condition_type::WORKER_REACHABLE, "True", "WatchEstablished", ""),
    }
}

/// Whether a Proxier serves the vnode.
pub fn proxier_condition(proxier: &[IpAddr]) -> NodeCondition {
    if proxier.is_empty() {
        let message = "no ready Proxier; logs, exec and metrics are not available";
        condition(condition_type::PROXIER_READY, "False", "NoReadyProxier", message)
    } else {
        condition(condition_type::PROXIER_READY, "True", "ProxierAvailable", "")
    }
}

/// A condition without times.
pub fn condition(type_: &str, status: &str, reason: &str, message: &str) -> NodeCondition {
    NodeCondition {
        type_: type_.into(),
        status: status.into(),
        reason: reason.into(),
        message: message.into(),
        last_heartbeat_time: None,
        last_transition_time: None,
    }
}
