//! The Proxier: the kubelet API of vnodes.
//!
//! The computing cluster's API server asks a vnode's kubelet for logs, exec, attach and port-forward; the Proxier is that
//! kubelet, and passes each request to the worker cluster:
//!
//! ```text
//! API server ──TLS──► listen ──► handle ──► authn ──► authz ──► resolve ──► logs | stream ──TLS──► worker's API server
//!                     a port       who calls,  may it,  which ppod,           raw bytes
//!                     per vnode                          proven
//! ```
//!
//! Process-wide are the listeners, certificates, authentication, authorization and limits ([`Proxier`]); per binding are
//! vnodes, ppods and the connection to the worker, added and removed at run time ([`Proxier::serve`]).
//!
//! Invariants: no request reaches the worker for a caller that is not authenticated and authorized; only a ppod that says
//! itself whose it is can be asked for (`resolve`); no text of the worker's machines reaches a caller; memory of a
//! stream is constant; no header, command or token is logged.
//!
//! Source: `docs/spec/proxier.md`. Metrics and statistics of pods, and certificates signed by the cluster, are not here
//! yet.

#![forbid(unsafe_code)]

mod answer;
mod authn;
mod authz;
mod binding;
mod config;
mod handle;
mod keep_alive;
mod listen;
mod logs;
mod metrics;
mod path;
mod pods;
mod proxier;
mod readiness;
mod resolve;
mod route;
mod stream;
mod vnodes;
mod worker;

pub use binding::BindingHealth;
pub use config::{AuthorizationMode, ProxierConfig};
pub use proxier::{Proxier, StartError, TaskEnded};
