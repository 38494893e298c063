//! The binding a Syncer serves: its spec as it is now, the worker connection it names, and what its deletion leaves
//! to do.

pub mod connection;
pub mod kubeconfig;
pub mod view;
pub mod watch;

pub use view::Binding;
