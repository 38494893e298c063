//! What an entry says when no node is meant: a status tells whether time windows are open, nodes or not (PO-544).
//!
//! In: the version that runs. Out: its answer about absent facts. Invariant: no decision is counted or recorded. Counters,
//! records and remembered answers are about decisions, and a node without a name has none.

use std::sync::Arc;

use super::evaluate::{Ask, Instant, contained, row};
use super::memo::Lookup;
use super::running::Running;
use crate::answer::Answer;
use crate::facts::{NodeFacts, PolicyFacts};

/// Its answer now; `None` while it is in quarantine, and when the call fails.
pub(crate) fn answer_without_node(
    running: &Running,
    facts: &PolicyFacts,
    now: &Instant,
) -> Option<Arc<Answer>> {
    if running.lease_health.lock().is_quarantined() {
        return None;
    }
    let mut key = Vec::new();
    row(running, facts, now, &Ask { node: &NodeFacts::default(), amounts: &[] }, &mut key);
    // Where nodes have this very row, their answer is at hand.
    let known = running.memo.lock().look_up(&key, now.unix());
    match known {
        Lookup::Hit(answer, _) | Lookup::Promised(answer) => Some(answer),
        Lookup::Expired | Lookup::Miss => contained(|| running.run(now.civil, &[key])).ok()?.pop(),
    }
}
