//! LogConfigs, objects of a log agent that may run in both clusters (TD section 15, API section 7): one that selects pods
//! of the computing cluster is copied so that the worker's agent finds their copies. Optional: on only while both API
//! servers serve the kind.
//!
//! ```text
//! computing: LogConfigs ---> index --name--> translate (pure) --> plan --> writes
//! worker:    managed ones -->  |
//! ```
//!
//! LogConfigs stay JSON: what no rule names is copied as it is.

mod apply;
mod index;
mod plan;
#[cfg(test)]
mod tests;
mod translate;
mod view;
mod watch;

pub use apply::{Left, LogConfigSync, release_all};
pub use index::LogConfigStore;
pub use watch::run;
