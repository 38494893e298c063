//! A real node: kubelet, containerd and runc in namespaces of their own, with real containers.
//!
//! For what kwok's nodes do not do: exit codes, the end of standard input, separate standard error, mounted ConfigMaps
//! and Secrets, tokens, probes, graceful deletion.
//!
//! In: a cluster started with [`ClusterSpec::real_nodes`](crate::ClusterSpec::real_nodes), packages of the machine, the
//! pinned kubelet. Out: a [`RealNode`] that is Ready, or [`WhyNot`]. Its pods use [`BUSYBOX_IMAGE`] and
//! `imagePullPolicy: Never`, and address the node by `nodeName` or by the label [`NODE_SET`](crate::nodes::NODE_SET), whose
//! value is the node's name: the binding of that name takes it.
//!
//! ```text
//! requirements ── network (bridge, /24) ── place ─┐
//!                                    namespace ───┴─ machine ── containerd ── kubelet ── RealNode
//!                                                                   └ image (tar)
//! ```
//!
//! Limits: no kube-proxy and no cluster DNS, so Services have no address inside pods; pods reach pods, nodes and servers
//! that listen on a network's address ([`Cluster::address`]). Three nodes for each cluster, 56 pods for each node.
//!
//! Invariants:
//! - Nothing of a node outlives the test process, however that ends: see `namespace` and `undo`.
//! - Nothing is changed outside of what is the node's: its own namespaces, cgroups, one link, one directory.

mod config;
mod containerd;
mod image;
mod machine;
mod namespace;
mod network;
mod requirements;
mod run;
mod tar;
mod undo;

use std::io::Write;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow};
use k8s_openapi::api::core::v1::Node;
use kube::Api;

use crate::assets::{self, Binary};
use crate::cluster::Cluster;
use crate::cluster::start::obtain;
use crate::nodes::schedulable;
use crate::process::Process;
use crate::reaper;
use crate::wait::try_wait_until;

use machine::Machine;

pub use image::BUSYBOX_IMAGE;
pub use network::Network;
pub use requirements::WhyNot;

/// Seconds on an idle machine.
const READY_DEADLINE: Duration = Duration::from_mins(2);
/// Far more than a slow containerd needs: each takes kubelet a third of a second.
const KUBELET_STARTS: u32 = 8;

/// A running node. Dropping it is a power cut: its processes are killed, its containers, mounts, links and files are
/// gone. The Node object stays, as that of a real machine would, and a new start under the name is a reboot.
///
/// The order of the fields is that of their ends: what is started first ends last.
#[derive(Debug)]
pub struct RealNode {
    name: String,
    start_time: Duration,
    kubelet: Process,
    containerd: Process,
    machine: Arc<Machine>,
}

impl Cluster {
    /// Starts a real node and waits until pods can be scheduled on it and its images are there.
    ///
    /// # Errors
    /// [`WhyNot::NotHere`] if this machine cannot run one, or the cluster was not started for it; [`WhyNot::Failed`] if
    /// it can but the node did not become Ready.
    pub async fn start_real_node(&self, name: &str) -> Result<RealNode, WhyNot> {
        let network = self.network().clone()?;
        obtain(&[Binary::Kubelet]).await?;
        if let Some(folder) = assets::find(Binary::Kubelet)?.as_deref().and_then(requirements::hidden) {
            let reason = format!("the kubelet program is below {folder}, which a node has of its own");
            return Err(WhyNot::not_here(reason));
        }
        let (started, since) = (Instant::now(), SystemTime::now());
        let machine = Arc::new(Machine::boot(name, &network).await?);
        let containerd = containerd::start(&machine).await?;
        let kubelet = config::start(self, name, &machine)?;
        let mut node =
            RealNode { name: name.to_owned(), start_time: Duration::ZERO, kubelet, containerd, machine };
        let ready = self.settle(&mut node, since).await;
        node.start_time = started.elapsed();
        match ready {
            Ok(()) => Ok(node),
            Err(error) => Err(error.context(node.log_tails()).into()),
        }
    }

    /// As [`Cluster::start_real_node`], for tests that have nothing to fall back to: where this machine cannot run one,
    /// it says why in one line and returns `None`.
    ///
    /// # Panics
    /// The node should have started and did not.
    pub async fn real_node_or_reason(&self, name: &str) -> Option<RealNode> {
        match self.start_real_node(name).await {
            Ok(node) => Some(node),
            Err(why @ WhyNot::NotHere(_)) => {
                // Past the test runner's capture: a test that did nothing must not look like one that did.
                let _ = writeln!(std::io::stderr(), "{why}");
                None
            }
            #[expect(clippy::panic, reason = "a node that does not start is a failed test")]
            Err(why @ WhyNot::Failed(_)) => panic!("{why}"),
        }
    }

    /// Images and readiness, which need containerd and kubelet to run.
    async fn settle(&self, node: &mut RealNode, since: SystemTime) -> Result<()> {
        let machine = Arc::clone(&node.machine);
        tokio::task::spawn_blocking(move || containerd::import_images(&machine))
            .await
            .context("importing images")??;
        self.real_node_ready(node, since).await
    }

    async fn real_node_ready(&self, node: &mut RealNode, since: SystemTime) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client().await?);
        let mut starts = 1;
        try_wait_until(&format!("the real node {} to be Ready", node.name), READY_DEADLINE, async || {
            if let Ok(Some(status)) = node.containerd.exited() {
                return Ok(Err(anyhow!("containerd ended with {status}")));
            }
            // As the init system of a real machine: kubelet gives up if containerd listens but is not initialised yet.
            match node.kubelet.exited() {
                Ok(Some(_)) if starts < KUBELET_STARTS => {
                    starts += 1;
                    node.kubelet.restart().map_err(|error| format!("{error:#}"))?;
                }
                Ok(Some(status)) => return Ok(Err(anyhow!("kubelet ended with {status}, {starts} times"))),
                _ => {}
            }
            match nodes.get(&node.name).await {
                Ok(found) if schedulable(&found) && has_spoken(&found, since) => Ok(Ok(())),
                Ok(found) => Err(format!("{:?}", found.status.map(|status| status.conditions))),
                Err(error) => Err(error.to_string()),
            }
        })
        .await?
    }
}

/// Whether the node's conditions are news: the object of a node that ran before under this name says Ready for minutes.
fn has_spoken(node: &Node, since: SystemTime) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut heartbeats = conditions.filter_map(|condition| condition.last_heartbeat_time.as_ref());
    // The API's times are whole seconds.
    heartbeats.any(|time| SystemTime::from(time.0) + Duration::from_secs(1) > since)
}

impl RealNode {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The node's address: this machine reaches its kubelet there, on port 10250.
    pub fn address(&self) -> IpAddr {
        IpAddr::V4(self.machine.place.address())
    }

    /// How long the start took, from nothing to Ready with images.
    pub fn start_time(&self) -> Duration {
        self.start_time
    }

    /// The files of the node: logs of its programs, and its `/var/lib`, `/var/log` and `/run` as `lib`, `log` and `run`.
    pub fn directory(&self) -> &Path {
        self.machine.directory()
    }

    /// The name of the node's link on this machine and of its cgroups.
    pub fn system_name(&self) -> String {
        self.machine.place.name()
    }

    /// Kubelet: its log, kill, restart. Signals reach its launcher, which takes it along when it dies.
    pub fn kubelet(&mut self) -> &mut Process {
        &mut self.kubelet
    }

    /// As [`RealNode::kubelet`]. Containers survive its restart, and so does kubelet, unless it is just starting.
    pub fn containerd(&mut self) -> &mut Process {
        &mut self.containerd
    }

    /// A command that will run on the node, seeing its processes, files and network.
    ///
    /// # Errors
    /// The watchdog of child processes cannot be started.
    pub fn command(&self, program: &str) -> Result<std::process::Command> {
        let mut command = self.machine.namespace.command(program);
        reaper::adopt(&mut command)?;
        Ok(command)
    }

    /// All processes of the node and of its containers, as this machine numbers them.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn processes(&self) -> Result<Vec<u32>> {
        self.machine.namespace.processes()
    }

    fn log_tails(&self) -> String {
        let tail =
            |process: &Process| format!("--- {}:\n{}", process.log_path().display(), process.log_tail(25));
        format!("{}\n{}", tail(&self.containerd), tail(&self.kubelet))
    }
}
