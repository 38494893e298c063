//! The performance table on real clusters: what a run is asked for, what it found, how it is shown.
//!
//! The program is the bench target `cluster` (`cargo bench -p kubeocean-bench`); the parts of it that need no cluster
//! are here, where they have tests.

pub mod figure;
pub mod leases;
pub mod requests;
pub mod scale;
pub mod traffic;

pub use figure::{Figure, check_allowed, table};
pub use leases::Renewals;
pub use requests::RequestCount;
pub use scale::Scale;
pub use traffic::{Traffic, traffic};
