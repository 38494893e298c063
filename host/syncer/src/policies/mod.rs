//! The ResourceLeasingPolicies of a binding (BU section 13, PO sections 7 and 15): what the engine is told, the modules
//! it runs, and what the objects say about it.
//!
//! `watch` and [`store`] hold the policies and the bytes of their modules. [`modules`] says where those are, [`fetch`] gets
//! them: from ConfigMaps, through `oci` from registries, through `dev_file` from a folder. [`status`], [`finalizer`],
//! [`modules`] and [`news`] are pure; `apply` writes, and tells the engine when something changed.

pub mod apply;
mod dev_file;
pub mod fetch;
pub mod finalizer;
pub mod metrics;
pub mod modules;
pub mod news;
mod oci;
pub mod status;
pub mod store;
#[cfg(test)]
mod tests;
pub mod view;
