//! Placement: which pods may go to which vnodes, and how good a place each is (PO-604, PO-605).
//!
//! ```text
//! PodFacts, vnodes ─► project ─► guest (fresh instance per entry) ─► PlaceAnswer ─► compose ─► Placement
//! ```
//!
//! The scheduler and the last check before a copy is made ask the same function with another stage (PO-107). Every
//! entry of the policy that governs a vnode is asked once for all its candidates, side by side with the others; who has
//! not answered by the deadline of the question counts as failed.

pub(crate) mod answer;
pub(crate) mod compose;
pub(crate) mod counters;
pub(crate) mod evaluate;
pub(crate) mod explain;
pub(crate) mod facts;
pub(crate) mod health;
pub(crate) mod host;
pub(crate) mod known_rows;
pub(crate) mod module;
pub(crate) mod needs;
pub(crate) mod record;
pub(crate) mod trial;
