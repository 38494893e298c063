//! A ClusterBinding as it is now, its kubeconfig Secret, and the connection to the worker cluster made from it.

pub mod connection;
pub mod kubeconfig;
mod rules;
pub mod view;
pub mod watch;

pub use rules::KubeconfigRules;
pub use view::Binding;
