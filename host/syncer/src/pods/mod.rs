//! Pods on vnodes run on worker nodes: creation, status, metadata, loss and deletion of their copies.
//!
//! ```text
//! vpods, ppods --watch--> index --key--> snapshot --> plan --> apply --> one request per action
//!                           ^                                    |
//!                           '------------- answers --------------'
//! ```
//!
//! "Why did this vpod get that?" is answered by [`plan::plan_pod`]; whether a ppod may be written at all by
//! [`ownership::check`]; what a ppod looks like by [`transform::to_worker_pod`].

pub mod action;
pub mod admission;
pub mod apply;
pub mod conditions;
mod create;
mod deletion;
pub mod features;
mod follow;
pub mod in_place;
pub mod index;
pub mod metadata;
pub mod names;
pub mod ownership;
pub mod plan;
pub mod priority_class;
pub mod references;
pub mod service_environment;
pub mod snapshot;
pub mod status;
pub mod status_hash;
#[cfg(test)]
pub(crate) mod tests;
pub mod tokens;
pub mod transform;
pub mod view;
pub mod vpod_identity;
pub mod vpod_spec;
pub mod watch;
pub mod wording;
pub(crate) mod words;
pub mod workload;

pub(crate) use follow::FAILED_UPDATE;
