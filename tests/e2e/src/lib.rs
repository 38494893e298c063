//! Black-box tests of the Syncer on real clusters, and what they share.

pub mod commands;
pub mod debug;
pub mod exposition;
pub mod in_place;
pub mod kubelet;
pub mod leasing;
pub mod logconfigs;
pub mod modules;
pub mod pod_events;
pub mod pods;
pub mod promql;
pub mod rights;
pub mod storm;
pub mod users;
pub mod veto;
pub mod volumes;
