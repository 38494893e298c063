//! Everything one plan is made from.

use std::sync::Arc;

use jiff::Timestamp;

use super::view::ManagedBinding;
use crate::{components::Running, worker::report::Report};

/// One binding and what is known around it.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// The binding.
    pub managed: Arc<ManagedBinding>,
    /// Name of another binding that owns the clusterID, if there is one (API-108).
    pub owner: Option<String>,
    /// What its worker answered; `None` until it has been asked.
    pub report: Option<Report>,
    /// How its components are.
    pub running: Running,
    /// Whether the role forbids a forced detach; asked where somebody wants one.
    pub detach_forbidden: bool,
    /// The time.
    pub now: Timestamp,
}
