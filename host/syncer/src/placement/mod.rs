//! Placement by policies: what the engine is told of a pod and of vnodes, and who asks it (PO-604 to 606).
//!
//! ```text
//! vnodes, vpods --changes--> facts kept per vnode --> desk --> engine --> Admission, PlaceRow
//! ```

pub mod desk;
mod facts;
pub mod slot;
#[cfg(test)]
mod tests;

pub use facts::{facts_of_pod, pod_facts, vnode_facts};
