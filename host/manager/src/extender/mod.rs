//! The scheduler extender (PO-605, MC-108): what policies say about places, before the scheduler has chosen one.
//!
//! ```text
//! kube-scheduler ──HTTPS──► serve ──► places ──► Syncers: of this process, or apart ──► answer ──► filter, prioritize
//! ```
//!
//! A replica that does not lead, or has not seen all bindings, does not know whom to ask, and says so. Invariant: whatever
//! a policy does, the answer comes within four fifths of the time the scheduler has.

pub mod answer;
pub mod apart;
pub mod certificate;
pub mod known;
mod own_token;
pub mod places;
pub mod serve;
pub mod wire;
