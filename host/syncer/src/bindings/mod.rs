//! The Syncer's own marks on the binding it serves, and what the binding's deletion leaves to do.

pub(crate) mod deletion;
pub(crate) mod finalizer;
pub(crate) mod status;
pub(crate) mod strays;
pub(crate) mod worker_identity;
