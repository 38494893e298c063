//! One use of a module in a policy: what runs, in which state, with which memory of its answers.
//!
//! In: a loaded module, rows. Out: answers or failures. Caller: `compose`.
//! Invariant: a fault of one entry is seen by no other entry (PO-704, PO-903).

pub(crate) mod answers;
pub(crate) mod counters;
pub(crate) mod evaluate;
pub(crate) mod health;
mod interned;
pub(crate) mod last_known;
pub(crate) mod memo;
pub(crate) mod nodeless;
pub(crate) mod packed;
pub(crate) mod running;
pub(crate) mod slot;
