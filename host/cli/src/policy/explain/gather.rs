//! What is read of the two clusters to explain a node.

use kube::Client;
use kubeocean_api::name::vnode_name;
use kubeocean_runtime::request::{get_json, paths};
use kubeocean_syncer::{
    nodes::{
        measured,
        view::{NodeView, WorkerPod},
    },
    policies::view::PolicyView,
};
use serde_json::Value;

use crate::{
    cluster::{get, list},
    failure::Failure,
    policy::gather::{decode, decode_all, policies},
};

/// The worker cluster's part.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) node: NodeView,
    /// Pods on the node.
    pub(super) pods: Vec<WorkerPod>,
    pub(super) policies: Vec<PolicyView>,
    /// What is used of the nodes now; `None`: not served, or not allowed.
    pub(super) usage: Option<Value>,
}

/// Refuses what cannot be the name of a node.
pub(super) fn check_name(node: &str) -> Result<(), Failure> {
    let plain = !node.is_empty() && node.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'));
    if plain { Ok(()) } else { Err(Failure::unusable(format!("{node:?} is not the name of a node"))) }
}

/// Reads the node, its pods and all policies.
pub(super) async fn worker(client: &Client, node: &str) -> Result<Worker, Failure> {
    check_name(node)?;
    let found = get(client, &paths::node(node)).await?;
    let found = found.ok_or_else(|| {
        Failure::unusable(format!("the worker cluster has no node {node}; is --context the worker cluster?"))
    })?;
    let pods = list(client, &format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}")).await?;
    let policies = policies(client).await?.ok_or_else(|| {
        Failure::unusable(
            "the worker cluster does not know ResourceLeasingPolicies: install the worker chart",
        )
    })?;
    // As the Syncer: without a measurement (PO-405).
    let usage = get_json(client, measured::PATH).await.unwrap_or_default();
    Ok(Worker {
        usage,
        node: decode(found, "the node")?,
        pods: decode_all(pods.unwrap_or_default(), "a pod")?,
        policies,
    })
}

/// Reads the vnode of a node.
pub(super) async fn vnode(
    client: &Client,
    cluster_id: &str,
    node: &str,
) -> Result<Option<NodeView>, Failure> {
    let found = get(client, &paths::node(&vnode_name(cluster_id, node))).await?;
    found.map(|vnode| decode(vnode, "the virtual node")).transpose()
}
