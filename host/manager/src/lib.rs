//! The Manager: lifecycle of ClusterBindings (MC sections 1 to 6).
//!
//! It follows all bindings and their kubeconfig Secrets, asks every worker cluster whether it answers and grants what is
//! needed, has the components of each accepted binding run, and says on the binding what is and what is missing. How
//! components run is behind the trait [`components::Components`].
//!
//! ```text
//! bindings/ watch ─► index ─► snapshot ─► plan ─► apply ──► finalizer, status, events
//!                      ▲                            ├────► worker/  one attendant per binding: Secret, probe, report
//!                      └──── reports, changes ──────┴────► components (a Syncer and a Proxier per binding)
//! ```

#![forbid(unsafe_code)]

pub mod bindings;
pub mod components;
pub mod config;
pub mod detach;
pub mod extender;
pub mod metrics;
pub mod process;
pub mod worker;
