//! What every controller of Kubeocean shares: trimmed watches, the work queue, single requests with preconditions,
//! events, leader election, probes, and the connection to a worker cluster. No decision about any object is made here.
//!
//! Callers: the Syncer, the Manager, the Proxier.

#![forbid(unsafe_code)]

pub mod binding;
pub mod callers;
pub mod client;
pub mod clock;
mod connect;
pub mod durations;
pub mod election;
pub mod error;
pub mod events;
pub mod first_failure;
pub mod health;
pub mod leading;
pub mod meta;
pub mod packed;
pub mod probe;
pub mod queue;
pub mod rate;
pub mod request;
pub mod server;
pub mod shared;
pub mod sink;
pub mod tasks;
pub mod tls;
pub mod watch;
