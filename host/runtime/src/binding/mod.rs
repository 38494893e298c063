//! A ClusterBinding as it is now, its kubeconfig Secret, and the connection to the worker cluster made from it.

pub mod connection;
pub mod kubeconfig;
pub mod view;
pub mod watch;

pub use view::Binding;
