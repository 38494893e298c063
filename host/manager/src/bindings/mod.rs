//! Reconciliation of ClusterBindings: what is said about them, and when their components start and stop.

pub mod action;
pub mod apply;
pub mod conditions;
pub mod deletion;
pub mod index;
pub mod plan;
pub mod snapshot;
pub mod view;
pub mod watch;

#[cfg(test)]
mod tests;
