//! Real control planes on loopback, for the tests and the demo.
//!
//! In: the module pins of `tests/control-plane/`, the two charts, the program `kubeocean`. Out: running etcd,
//! kube-apiserver, kube-controller-manager, kube-scheduler and kwok for a computing cluster and any number of worker
//! clusters, with admin clients, kubeconfigs, the audit log, nodes, and the product's programs beside them. There is
//! no fake API server and no mocked client anywhere: a test sees what a user's cluster would do.
//!
//! Used by every crate's integration tests, by `tests/e2e`, `tests/bench` and by `cargo demo`.
//!
//! ```text
//! Fleet ─┬─ Cluster "computing" ── etcd, apiserver, controller-manager, scheduler
//!        └─ Cluster "worker-n"  ── the same and kwok (fake nodes with a kubelet API)
//!                                  or RealNode (kubelet, containerd and containers in namespaces)
//! Site ──── both charts installed in a Fleet ── Binding ── Program (syncer, proxier, manager)
//! ```
//!
//! Invariants:
//! - No process outlives the test process, however that ends: see [`reaper`]. The same holds for what a real node is
//!   made of: see [`kubelet`].
//! - Nothing sleeps a fixed time; everything waits for a condition with a deadline: see [`wait::wait_until`].
//! - Ports come from the kernel, directories are new each time, addresses and subnets are locked, so any number of test processes can run side by side.

pub mod assets;
pub mod audit;
pub mod author;
pub mod binding;
pub mod chart;
pub mod cluster;
pub mod exec;
pub mod faults;
mod feed;
pub mod fleet;
mod http_get;
pub mod kubelet;
pub mod log_config;
mod loopback;
mod manifest;
pub mod nodes;
mod pki;
mod ports;
pub mod process;
pub mod program;
pub mod reaper;
pub mod registry;
pub mod site;
pub mod wait;
pub mod wire;

pub use audit::{AuditEvent, AuditMark};
pub use binding::{Binding, BindingSpec};
pub use cluster::{Cluster, ClusterSpec, Component, Kwoks};
pub use faults::FaultProxy;
pub use fleet::{Fleet, shared};
pub use kubelet::{RealNode, WhyNot};
pub use loopback::LoopbackAddress;
pub use nodes::NodeShape;
pub use program::{Program, ProgramSpec};
pub use site::{Site, second_computing, shared_site};
pub use wait::wait_until;
pub use wire::Wire;
