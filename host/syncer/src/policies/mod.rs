//! The ResourceLeasingPolicies of a binding (BU section 13, PO sections 7 and 15): what the engine is told, the modules
//! it runs, and what the objects say about it.
//!
//! `watch` and [`store`] hold the policies, [`modules`] the bytes of modules in ConfigMaps. [`status`], [`finalizer`]
//! and [`news`] are pure; `apply` writes, and tells the engine when something changed.

pub mod apply;
pub mod fetch;
pub mod finalizer;
pub mod metrics;
pub mod modules;
pub mod news;
pub mod status;
pub mod store;
#[cfg(test)]
mod tests;
pub mod view;
