//! What the Manager asks of worker clusters: whether they answer, accept the kubeconfig and grant what is needed
//! (MC section 3). One attendant per binding; what it finds is a [`report::Report`]. Nothing is ever changed in a worker.

pub mod ask;
pub mod attend;
pub mod credentials;
pub mod report;
pub mod rights;
