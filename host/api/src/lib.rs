//! What every part of Kubeocean agrees on: the two custom resources users write, every label, annotation, finalizer
//! and taint key, the names derived from them, exact quantities, and the one validation function per kind.
//!
//! Nothing here does I/O, reads a clock or knows a client. Stored objects are never rejected while decoding: the
//! resource types keep their wire form, and [`validate`] says what is wrong with them (API-906).

#![forbid(unsafe_code)]
#![deny(missing_docs)]

pub mod binding;
pub mod condition;
pub mod crd;
pub mod keys;
pub mod name;
pub mod node_selector;
pub mod place;
pub mod policy;
pub mod quantity;
pub mod resource;
mod schema;
pub mod validate;
pub mod vnode;

pub use binding::{ClusterBinding, ClusterBindingSpec, ClusterBindingStatus};
pub use condition::Condition;
pub use node_selector::NodeSelector;
pub use policy::{ResourceLeasingPolicy, ResourceLeasingPolicySpec, ResourceLeasingPolicyStatus};
pub use quantity::Quantity;

/// API group of both custom resources.
pub const GROUP: &str = "cloud.tencent.com";
/// The only version of both custom resources, served and stored.
pub const VERSION: &str = "v1beta1";
