//! What is read of the two clusters to explain a node, as the Syncer sees it.

use kube::Client;
use kubeocean_api::{ClusterBindingSpec, name::vnode_name};
use kubeocean_runtime::request::paths;
use kubeocean_syncer::{
    nodes::view::{NodeView, WorkerPod},
    policies::view::PolicyView,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    cluster::{get, list},
    failure::Failure,
};

/// The worker cluster's part.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) node: NodeView,
    /// Pods on the node.
    pub(super) pods: Vec<WorkerPod>,
    pub(super) policies: Vec<PolicyView>,
}

/// The computing cluster's part.
#[derive(Debug)]
pub(super) struct Computing {
    /// Identity of the cluster.
    pub(super) uid: String,
    pub(super) binding: ClusterBindingSpec,
    pub(super) vnode: Option<NodeView>,
}

/// Reads the node, its pods and all policies.
pub(super) async fn worker(client: &Client, node: &str) -> Result<Worker, Failure> {
    let plain = !node.is_empty() && node.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-'));
    if !plain {
        return Err(Failure::unusable(format!("{node:?} is not the name of a node")));
    }
    let found = get(client, &paths::node(node)).await?;
    let found = found.ok_or_else(|| {
        Failure::unusable(format!("the worker cluster has no node {node}; is --context the worker cluster?"))
    })?;
    let pods = list(client, &format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{node}")).await?;
    let policies = list(client, paths::policy("").trim_end_matches('/')).await?.ok_or_else(|| {
        Failure::unusable(
            "the worker cluster does not know ResourceLeasingPolicies: install the worker chart",
        )
    })?;
    Ok(Worker {
        node: decode(found, "the node")?,
        pods: decode_all(pods.unwrap_or_default(), "a pod")?,
        policies: decode_all(policies, "a policy")?,
    })
}

/// Reads the binding and the vnode. `None` when there is no such binding.
pub(super) async fn computing(
    client: &Client,
    binding: &str,
    node: &str,
) -> Result<Option<Computing>, Failure> {
    let Some(mut found) = get(client, &paths::binding(binding)).await? else { return Ok(None) };
    let binding: ClusterBindingSpec =
        decode(found.get_mut("spec").map(Value::take).unwrap_or_default(), "the ClusterBinding")?;
    let system = get(client, &paths::namespace("kube-system")).await?.unwrap_or_default();
    let uid = system.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default().to_owned();
    let vnode = get(client, &paths::node(&vnode_name(&binding.cluster_id, node))).await?;
    let vnode = vnode.map(|vnode| decode(vnode, "the virtual node")).transpose()?;
    Ok(Some(Computing { uid, binding, vnode }))
}

fn decode<T: DeserializeOwned>(value: Value, what: &str) -> Result<T, Failure> {
    serde_json::from_value(value)
        .map_err(|error| Failure::unusable(format!("{what} cannot be read: {error}")))
}

fn decode_all<T: DeserializeOwned>(values: Vec<Value>, what: &str) -> Result<Vec<T>, Failure> {
    values.into_iter().map(|value| decode(value, what)).collect()
}
