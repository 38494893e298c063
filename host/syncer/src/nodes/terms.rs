//! On which terms the lease of a vnode ends: since when, and with which grace.
//!
//! The vnode records them, so that they survive this process. As long as it lives it knows them too, and the earlier and
//! stricter of both counts: who edits the record puts nothing off (BU-909).
//! Pure; the index keeps them by vnode.

use jiff::{SignedDuration, Timestamp};
use kubeocean_api::keys::annotation;
use kubeocean_runtime::clock::rfc3339;

use super::{
    decision::{Decision, Reclaim},
    plan::NodeInput,
    reclaim::{Reclaiming, format_reclaim},
};

/// How far the clock that wrote a time may be ahead of ours.
const CLOCKS_DIFFER: SignedDuration = SignedDuration::from_mins(1);

/// What this process knows of the end of a lease.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Terms {
    /// Start of a forced reclaim that is under way.
    pub reclaim_since: Option<Timestamp>,
    /// Start of a withdrawal.
    pub withdrawal_since: Option<Timestamp>,
    /// How pods are reclaimed, as last announced on the vnode.
    pub announced: Option<Reclaim>,
}

/// A recorded time, unless it is to come.
pub fn unless_to_come(recorded: Option<Timestamp>, now: Timestamp) -> Option<Timestamp> {
    recorded.filter(|at| at.duration_since(now) <= CLOCKS_DIFFER)
}

/// The earlier of two starts.
pub fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    [a, b].into_iter().flatten().min()
}

/// What is known of the end of a lease that stands. A start counts once the vnode shows it: pods are given the whole grace,
/// however long the first write of it takes. What is over, or announced anew, is forgotten at once.
pub(super) fn terms_while_leased(
    input: &NodeInput<'_>,
    decision: &Decision,
    reclaiming: &Reclaiming,
) -> Terms {
    let shows =
        |key: &str, value: &str| input.vnode.is_some_and(|vnode| vnode.annotation(key) == Some(value));
    let began = |since: &Timestamp| {
        input.terms.reclaim_since.is_some() || shows(annotation::RECLAIM_SINCE, &rfc3339(*since))
    };
    let announced = if decision.announce {
        let told = shows(annotation::RECLAIM, &format_reclaim(decision.reclaim))
            || input.terms.announced == Some(decision.reclaim);
        told.then_some(decision.reclaim)
    } else {
        input.terms.announced
    };
    Terms { reclaim_since: reclaiming.since.filter(began), withdrawal_since: None, announced }
}
