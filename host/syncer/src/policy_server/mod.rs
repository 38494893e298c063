//! The policy server of a Syncer that runs as a process of its own (PO-608): what its policies say about places, and
//! what they decided last.
//!
//! ```text
//! caller ──HTTPS, bearer token──► callers (TokenReview, SubjectAccessReview) ──► serve ──► desk of the leader
//! ```
//!
//! It listens from the start, so that a port in use ends the process; a replica that does not lead answers 503.
//! Invariant: nobody without the right on the path learns anything, not even who leads.

mod answer;
pub mod callers;
pub mod serve;

pub use answer::answer;
