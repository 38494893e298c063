//! Pods: from vpod to ppod and back.

pub mod references;
pub mod service_environment;
pub mod tokens;
pub mod transform;
pub mod vpod_identity;
