//! What a policy decided about a node, as the planners take it.
//!
//! The type is the engine's; the planners see it under this name, so that they have one place to look.

pub use kubeocean_engine::{DecisionReason, NodeDecision as Decision, Reclaim, Standing, Verdict};
