//! What is told of a lease when it opens, closes, changes or ends (PO-1503). Pure.

use kubeocean_api::keys::{condition_type, taint};

use super::{
    action::VnodeEvent,
    compare::Difference,
    decision::{Decision, Verdict},
    plan::NodeInput,
    reclaim::Reclaiming,
    view::{NO_EXECUTE, NodeView},
    vnode::{Content, evicts},
};

/// Reason of the event about changed amounts.
pub(super) const LEASE_CHANGED: &str = "LeaseChanged";
/// Shortest time between two events about changed amounts of a vnode (PO-1503).
const LEASE_CHANGED_PERIOD: jiff::SignedDuration = jiff::SignedDuration::from_mins(5);

pub(super) fn lease_event(
    input: &NodeInput<'_>,
    decision: &Decision,
    vnode: &NodeView,
    wanted: &Content,
    reclaiming: &Reclaiming,
    difference: Difference,
) -> Option<VnodeEvent> {
    let shown = vnode.condition(condition_type::LEASE).map(|condition| condition.status.as_str())?;
    let normal = |reason, message: String| Some(VnodeEvent { warning: false, reason, message });
    let why = decision.reason.as_ref().map_or_else(String::new, |reason| format!(" ({})", reason.code));
    let was_evicting = vnode.taint(taint::OUT_OF_TIME_WINDOWS).is_some_and(|t| t.effect == NO_EXECUTE);
    if evicts(reclaiming.state) && !was_evicting {
        let message = format!("the lease ended{why}, pods are evicted");
        return Some(VnodeEvent { warning: true, reason: "LeaseReclaimed", message });
    }
    match (shown, wanted.lease_status()) {
        ("True", "False") => normal("LeaseClosed", format!("no new pods{why}")),
        ("False", "True") => normal("LeaseOpened", "the node is leased again".to_owned()),
        _ if difference == (Difference::Now { amounts: true }) && decision.verdict == Verdict::Offer => {
            let quiet = input
                .written
                .and_then(|written| written.event_at)
                .is_some_and(|at| input.now.duration_since(at) < LEASE_CHANGED_PERIOD);
            if quiet { None } else { normal(LEASE_CHANGED, format!("leased amounts changed{why}")) }
        }
        _ => None,
    }
}
