//! Both directions of one binding: nodes of a worker cluster become vnodes of the computing cluster, and pods bound to
//! vnodes run on the worker's nodes.
//!
//! Every concern is a folder with the same stages: `watch` feeds an `index` of trimmed `view`s, a `snapshot` of one key
//! goes to a pure `plan`, and `apply` performs the plan's actions. Only `apply`, `watch` and the wiring
//! talk to an API server.

#![forbid(unsafe_code)]

pub mod bindings;
pub mod config;
mod connect;
pub mod csinodes;
mod directories;
pub mod hostports;
pub mod leader;
pub mod leases;
pub mod logconfigs;
pub mod metrics;
pub mod nodes;
pub mod objects;
pub mod placement;
pub mod podevents;
pub mod pods;
pub mod policies;
pub mod policy_server;
pub mod process;
pub mod session;
#[cfg(test)]
mod simulation;
pub mod stores;
mod tombstones;
