//! From bytes to an entry that may decide: the steps of PO-703, in that order, each with its own error code.
//!
//! In: module bytes, settings, limits, sample nodes. Out: a `Running`, or a `LoadError`.
//! Caller: `assemble`, on loader threads. Invariant: nothing that failed a step is ever called for a decision.

pub(crate) mod builtin;
pub(crate) mod cache;
pub(crate) mod child;
pub(crate) mod code_cache;
pub(crate) mod component;
pub(crate) mod error;
pub(crate) mod prepare;
pub(crate) mod schema;
pub(crate) mod settings;
mod shape;
pub(crate) mod trial;
