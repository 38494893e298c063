//! Fake nodes: real objects of the API, kept Ready by kwok, with a kubelet API on loopback.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Node;
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::cluster::Cluster;
use crate::cluster::flags::{KWOK, KWOK_APART, KWOK_NODE};

/// The label that all nodes of one [`Cluster::create_nodes`] call share: its value is the prefix.
pub const NODE_SET: &str = "harness.test/node-set";

const READY_DEADLINE: Duration = Duration::from_mins(2);

/// The size and labels of nodes. Amounts are Kubernetes quantities; capacity and allocatable are the same.
#[derive(Clone, Debug)]
pub struct NodeShape {
    pub cpu: String,
    pub memory: String,
    pub ephemeral_storage: String,
    pub pods: u32,
    /// `nvidia.com/gpu`; 0 leaves the resource out.
    pub gpus: u32,
    pub labels: BTreeMap<String, String>,
}

impl Default for NodeShape {
    fn default() -> Self {
        Self {
            cpu: "8".to_owned(),
            memory: "32Gi".to_owned(),
            ephemeral_storage: "100Gi".to_owned(),
            pods: 110,
            gpus: 0,
            labels: BTreeMap::new(),
        }
    }
}

impl NodeShape {
    /// A node of this size.
    pub fn new(cpu: &str, memory: &str) -> Self {
        Self { cpu: cpu.to_owned(), memory: memory.to_owned(), ..Self::default() }
    }

    #[must_use]
    pub fn pods(mut self, pods: u32) -> Self {
        self.pods = pods;
        self
    }

    #[must_use]
    pub fn gpus(mut self, gpus: u32) -> Self {
        self.gpus = gpus;
        self
    }

    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// The node as a kubelet would register it. The addresses are there from the start: kwok may not set them.
    fn node(&self, name: &str, set: &str, kwok: &Kwok) -> Result<Node> {
        let mut capacity = json!({
            "cpu": self.cpu,
            "memory": self.memory,
            "ephemeral-storage": self.ephemeral_storage,
            "pods": self.pods.to_string(),
        });
        if self.gpus > 0 {
            capacity["nvidia.com/gpu"] = json!(self.gpus.to_string());
        }
        let mut labels = BTreeMap::from([
            ("kubernetes.io/hostname".to_owned(), name.to_owned()),
            ("kubernetes.io/os".to_owned(), "linux".to_owned()),
            ("kubernetes.io/arch".to_owned(), "amd64".to_owned()),
            (NODE_SET.to_owned(), set.to_owned()),
        ]);
        labels.extend(self.labels.clone());
        let node = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": name, "labels": labels, "annotations": {KWOK_NODE: kwok.nodes}},
            "status": {
                "capacity": capacity,
                "allocatable": capacity,
                "addresses": [
                    {"type": "InternalIP", "address": "127.0.0.1"},
                    {"type": "Hostname", "address": name},
                ],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": kwok.port}},
            },
        });
        serde_json::from_value(node).context("building a node")
    }
}

/// Which kwok a node is of.
struct Kwok {
    /// The value of the annotation by which it knows its nodes.
    nodes: &'static str,
    port: u16,
}

impl Cluster {
    /// Creates nodes `<prefix>-0` to `<prefix>-<count - 1>` and waits until pods can be scheduled on all of them.
    /// Returns the names in order.
    ///
    /// # Errors
    /// The cluster runs no kwok, a name is taken, or a node does not become Ready within two minutes.
    pub async fn create_nodes(&self, prefix: &str, count: usize, shape: &NodeShape) -> Result<Vec<String>> {
        if !self.has_kwok() {
            bail!("the cluster {} runs no kwok, so its nodes would never be Ready", self.name());
        }
        let names: Vec<_> = (0..count).map(|index| format!("{prefix}-{index}")).collect();
        self.create_nodes_of(&Kwok { nodes: KWOK, port: self.kubelet_port() }, prefix, &names, shape).await?;
        Ok(names)
    }

    /// Creates the node `<prefix>-apart` of the same set, which has a kwok of its own, and waits until pods can be scheduled
    /// on it. Returns its name.
    ///
    /// # Errors
    /// As [`Cluster::create_nodes`]; the kwok is that of [`crate::Kwoks::OneMoreApart`].
    pub async fn create_node_apart(&self, prefix: &str, shape: &NodeShape) -> Result<String> {
        if !self.has_kwok_apart() {
            bail!("the cluster {} runs no kwok apart, so its node would never be Ready", self.name());
        }
        let name = format!("{prefix}-apart");
        let kwok = Kwok { nodes: KWOK_APART, port: self.kubelet_port_apart() };
        self.create_nodes_of(&kwok, prefix, std::slice::from_ref(&name), shape).await?;
        Ok(name)
    }

    async fn create_nodes_of(
        &self,
        kwok: &Kwok,
        prefix: &str,
        names: &[String],
        shape: &NodeShape,
    ) -> Result<()> {
        let nodes: Api<Node> = Api::all(self.client().await?);
        stream::iter(names)
            .map(|name| {
                let nodes = nodes.clone();
                async move {
                    let node = shape.node(name, prefix, kwok)?;
                    nodes
                        .create(&PostParams::default(), &node)
                        .await
                        .map(drop)
                        .with_context(|| format!("creating the node {name}"))
                }
            })
            .buffer_unordered(32)
            .try_collect::<()>()
            .await?;
        self.nodes_ready(nodes, prefix, names).await
    }

    async fn nodes_ready(&self, nodes: Api<Node>, set: &str, names: &[String]) -> Result<()> {
        let mut waiting: BTreeSet<_> = names.iter().cloned().collect();
        let selected = watcher::Config::default().labels(&format!("{NODE_SET}={set}"));
        let mut changes = std::pin::pin!(watcher(nodes, selected).default_backoff().applied_objects());
        let all_ready = async {
            while !waiting.is_empty() {
                match changes.next().await {
                    Some(Ok(node)) if schedulable(&node) => {
                        waiting.remove(&node.name_any());
                    }
                    Some(_) => {}
                    None => break,
                }
            }
        };
        let timed_out = tokio::time::timeout(READY_DEADLINE, all_ready).await.is_err();
        if timed_out || !waiting.is_empty() {
            bail!(
                "after {READY_DEADLINE:?} {} nodes are not Ready, for example {:?}",
                waiting.len(),
                waiting.first()
            );
        }
        Ok(())
    }
}

/// Ready, and the taint that new nodes get is gone.
pub(crate) fn schedulable(node: &Node) -> bool {
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let ready = conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True");
    let taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
    ready && !taints.into_iter().any(|taint| taint.key == "node.kubernetes.io/not-ready")
}
