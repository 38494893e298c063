//! The sandbox: one wasmtime engine, its bindings, limits, and a fresh instance per work unit.
//!
//! In: compiled components and frames. Out: raw answers or a [`crate::Fault`]. Callers: `load` and `entry`.
//! Invariant: no store, instance or memory is shared by two work units (PO-903).

pub(crate) mod bindings;
pub(crate) mod in_use;
pub(crate) mod limits;
pub(crate) mod log;
pub(crate) mod place_unit;
pub(crate) mod runtime;
pub(crate) mod unit;
