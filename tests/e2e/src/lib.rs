//! Black-box tests of the Syncer on real clusters, and what they share.

pub mod commands;
pub mod exposition;
pub mod kubelet;
pub mod leasing;
pub mod logconfigs;
pub mod modules;
pub mod pods;
pub mod rights;
pub mod storm;
pub mod users;
pub mod volumes;
