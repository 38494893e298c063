//! What commands read of the two clusters with a person's own rights, as the Syncer sees it.

use std::path::PathBuf;

use clap::Args as ClapArgs;
use kube::{Client, Config};
use kubeocean_api::{ClusterBindingSpec, name::vnode_name};
use kubeocean_runtime::request::paths;
use kubeocean_syncer::{
    nodes::{
        index::Identity,
        view::{Stamp, WorkerPod},
    },
    policies::view::PolicyView,
};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    cluster::{self, ClusterFlags, get, list},
    failure::Failure,
};

/// Which clusters, and which binding of them.
#[derive(Debug, Clone, ClapArgs)]
pub(super) struct BindingFlags {
    #[command(flatten)]
    worker: ClusterFlags,
    /// Context of the computing cluster, to add the binding's selector and what virtual nodes publish
    #[arg(long, value_name = "NAME")]
    computing_context: Option<String>,
    /// Kubeconfig of the computing cluster [default: that of the worker cluster]
    #[arg(long, value_name = "FILE")]
    computing_kubeconfig: Option<PathBuf>,
    /// ClusterBinding that is meant [default: the one policies name]
    #[arg(long, value_name = "NAME")]
    pub(super) binding: Option<String>,
}

/// Connections to the clusters.
pub(super) struct Clusters {
    pub(super) worker: Client,
    /// Only if a flag names it.
    pub(super) computing: Option<Client>,
    /// Where that is, and who we are there.
    pub(super) computing_config: Option<Config>,
}

impl BindingFlags {
    /// Connects, and asks nothing yet.
    pub(super) async fn connect(&self) -> Result<Clusters, Failure> {
        let kubeconfig = cluster::read_kubeconfig(self.worker.kubeconfig.as_deref())?;
        let (worker, _) = cluster::connect(kubeconfig.clone(), self.worker.context.as_deref()).await?;
        if self.computing_context.is_none() && self.computing_kubeconfig.is_none() {
            return Ok(Clusters { worker, computing: None, computing_config: None });
        }
        let kubeconfig = match &self.computing_kubeconfig {
            Some(path) => cluster::read_kubeconfig(Some(path))?,
            None => kubeconfig,
        };
        let (computing, config) = cluster::connect(kubeconfig, self.computing_context.as_deref()).await?;
        Ok(Clusters { worker, computing: Some(computing), computing_config: Some(config) })
    }
}

impl Clusters {
    /// The computing cluster's part of a binding. `None`: not asked for, or there is no such binding.
    pub(super) async fn computing_of(&self, binding: &str) -> Result<Option<Computing>, Failure> {
        match &self.computing {
            Some(client) if !binding.is_empty() => computing(client, binding).await,
            _ => Ok(None),
        }
    }
}

/// The computing cluster's part.
#[derive(Debug, Clone)]
pub(super) struct Computing {
    /// Identity of the cluster.
    pub(super) uid: String,
    pub(super) binding: ClusterBindingSpec,
}

async fn computing(client: &Client, binding: &str) -> Result<Option<Computing>, Failure> {
    let Some(mut found) = get(client, &paths::binding(binding)).await? else { return Ok(None) };
    let binding: ClusterBindingSpec =
        decode(found.get_mut("spec").map(Value::take).unwrap_or_default(), "the ClusterBinding")?;
    let system = get(client, &paths::namespace("kube-system")).await?.unwrap_or_default();
    let uid = system.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default().to_owned();
    Ok(Some(Computing { uid, binding }))
}

/// All policies of the worker cluster; `None` where it does not know the kind.
pub(super) async fn policies(worker: &Client) -> Result<Option<Vec<PolicyView>>, Failure> {
    let found = list(worker, &paths::policies()).await?;
    found.map(|policies| decode_all(policies, "a policy")).transpose()
}

/// The wanted binding, or those that policies name.
pub(super) fn bindings(policies: &[PolicyView], wanted: Option<&str>) -> Vec<String> {
    if let Some(name) = wanted {
        return vec![name.to_owned()];
    }
    let names: std::collections::BTreeSet<String> =
        policies.iter().map(|policy| policy.spec.spec.cluster.clone()).collect();
    names.into_iter().collect()
}

/// Who the Syncer of this binding is. Without the computing cluster the policies know who holds them.
pub(super) fn identity<'p>(
    binding: &str,
    computing: Option<&Computing>,
    policies: &[PolicyView],
    pods: impl IntoIterator<Item = &'p WorkerPod>,
) -> Identity {
    let mut holders =
        policies.iter().filter(|policy| policy.spec.spec.cluster == binding).filter_map(PolicyView::holder);
    let (cluster_id, computing_uid) = match computing {
        Some(computing) => (computing.binding.cluster_id.clone(), computing.uid.clone()),
        None => (
            pods.into_iter().find_map(cluster_id_of_pod).unwrap_or_default(),
            holders.next().unwrap_or_default().to_owned(),
        ),
    };
    Identity { binding: binding.to_owned(), cluster_id, computing_uid }
}

/// Pods of the original name their vnode, which tells the clusterID.
fn cluster_id_of_pod(pod: &WorkerPod) -> Option<String> {
    let Stamp::Legacy { vnode } = &pod.stamp else { return None };
    let id = vnode.strip_prefix("vnode-")?.strip_suffix(pod.node.as_str())?.strip_suffix('-')?;
    (vnode_name(id, &pod.node) == *vnode).then(|| id.to_owned())
}

pub(super) fn decode<T: DeserializeOwned>(value: Value, what: &str) -> Result<T, Failure> {
    serde_json::from_value(value)
        .map_err(|error| Failure::unusable(format!("{what} cannot be read: {error}")))
}

pub(super) fn decode_all<T: DeserializeOwned>(values: Vec<Value>, what: &str) -> Result<Vec<T>, Failure> {
    values.into_iter().map(|value| decode(value, what)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(spec: &Value) -> PolicyView {
        serde_json::from_value(json!({"metadata": {"name": "p"}, "spec": spec})).unwrap()
    }

    #[test]
    fn bindings_come_from_the_policies() {
        let all = [policy(&json!({"cluster": "b"})), policy(&json!({"cluster": "a"}))];
        assert_eq!(bindings(&all, None), ["a", "b"]);
        assert_eq!(bindings(&all, Some("c")), ["c"]);
        assert!(bindings(&[], None).is_empty());
    }
}
