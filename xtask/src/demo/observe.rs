//! One look at all clusters, as a user with `kubectl` could take it.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use kubeocean_api::keys::{annotation, condition_type, label, taint};
use kubeocean_api::quantity::Rounding;
use kubeocean_api::resource::to_base_units;
use serde_json::Value;

use super::scene::{NAMESPACE, Scene};

/// Base units by resource: millicores, bytes, pieces.
pub(crate) type Amounts = BTreeMap<String, i64>;

/// One virtual node.
#[derive(Clone, Debug, Default)]
pub(crate) struct Vnode {
    pub(crate) name: String,
    pub(crate) binding: String,
    pub(crate) node: String,
    pub(crate) ready: bool,
    pub(crate) withheld: bool,
    pub(crate) amounts: Amounts,
    /// What its worker node has.
    pub(crate) origin: Amounts,
    pub(crate) policy: String,
    /// Status and reason of condition `kubeocean.io/Lease`.
    pub(crate) lease: (String, String),
    /// Annotation `kubeocean.io/policy-decision`.
    pub(crate) decision: Value,
    /// Pods of the computing cluster on it that have not ended.
    pub(crate) pods: usize,
}

/// Copies in one worker cluster.
#[derive(Clone, Debug, Default)]
pub(crate) struct WorkerPods {
    pub(crate) binding: String,
    pub(crate) running: usize,
    pub(crate) succeeded: usize,
    pub(crate) other: usize,
}

/// All of it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshot {
    /// By binding and node.
    pub(crate) vnodes: Vec<Vnode>,
    pub(crate) workers: Vec<WorkerPods>,
    /// Pods of the demo's namespace by phase.
    pub(crate) phases: BTreeMap<String, usize>,
    /// Decisions about nodes since the Manager started: answers of modules and of the memo.
    pub(crate) decisions: u64,
}

impl Snapshot {
    /// A vnode by its worker node.
    pub(crate) fn vnode(&self, binding: &str, node: &str) -> Option<&Vnode> {
        self.vnodes.iter().find(|vnode| vnode.binding == binding && vnode.node == node)
    }
}

/// Looks.
pub(crate) async fn look(scene: &Scene<'_>) -> Result<Snapshot> {
    let pods: Vec<Pod> = list(Api::namespaced(scene.computing.clone(), NAMESPACE), "").await?;
    let selector = format!("{}={}", label::MANAGED_BY, label::MANAGED_BY_VALUE);
    let mut snapshot = Snapshot::default();
    for pod in &pods {
        *snapshot.phases.entry(phase(pod).to_owned()).or_default() += 1;
    }
    let mut origins = BTreeMap::new();
    for (binding, client) in scene.bindings.iter().zip(&scene.workers) {
        for node in list::<Node>(Api::all(client.clone()), "").await? {
            origins.insert((binding.name().to_owned(), node.name_any()), allocatable(&node));
        }
        let copies = Api::namespaced(client.clone(), binding.mount_namespace());
        snapshot.workers.push(count(binding.name(), &list::<Pod>(copies, &selector).await?));
    }
    for node in list::<Node>(Api::all(scene.computing.clone()), &selector).await? {
        let mut vnode = read(&node);
        let on_it = |pod: &&Pod| {
            pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(vnode.name.as_str())
                && !matches!(phase(pod), "Succeeded" | "Failed")
        };
        vnode.pods = pods.iter().filter(on_it).count();
        vnode.origin = origins.get(&(vnode.binding.clone(), vnode.node.clone())).cloned().unwrap_or_default();
        snapshot.vnodes.push(vnode);
    }
    snapshot.vnodes.sort_by(|a, b| (&a.binding, &a.node).cmp(&(&b.binding, &b.node)));
    snapshot.decisions = decisions(&scene.manager.metrics().await?);
    Ok(snapshot)
}

async fn list<K>(api: Api<K>, selector: &str) -> Result<Vec<K>>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    Ok(api.list(&ListParams::default().labels(selector)).await.context("looking at a cluster")?.items)
}

/// A client's own view of the demo's pods.
pub(crate) async fn demo_pods(computing: &Client, selector: &str) -> Result<Vec<Pod>> {
    list(Api::namespaced(computing.clone(), NAMESPACE), selector).await
}

/// The pod's phase; a pod nobody has reported on is Pending.
pub(crate) fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

fn count(binding: &str, copies: &[Pod]) -> WorkerPods {
    let mut pods = WorkerPods { binding: binding.to_owned(), ..WorkerPods::default() };
    for copy in copies {
        match phase(copy) {
            "Running" => pods.running += 1,
            "Succeeded" => pods.succeeded += 1,
            _ => pods.other += 1,
        }
    }
    pods
}

fn allocatable(node: &Node) -> Amounts {
    let written = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
    written
        .into_iter()
        .flatten()
        .filter_map(|(resource, text)| {
            Some((resource.clone(), to_base_units(resource, &text.0, Rounding::Down).ok()?))
        })
        .collect()
}

fn read(node: &Node) -> Vnode {
    let labelled = |key: &str| node.labels().get(key).cloned().unwrap_or_default();
    let annotated = |key: &str| node.annotations().get(key).map(String::as_str).unwrap_or_default();
    let condition = |type_: &str| {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        conditions.into_iter().flatten().find(|condition| condition.type_ == type_)
    };
    let lease = condition(condition_type::LEASE);
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    Vnode {
        name: node.name_any(),
        binding: labelled(label::CLUSTER_BINDING),
        node: annotated(annotation::PHYSICAL_NODE_NAME).to_owned(),
        ready: condition("Ready").is_some_and(|ready| ready.status == "True"),
        withheld: taints.into_iter().flatten().any(|taint| taint.key == taint::OUT_OF_TIME_WINDOWS),
        amounts: allocatable(node),
        origin: Amounts::new(),
        policy: annotated(annotation::POLICIES_APPLIED).to_owned(),
        lease: lease
            .map(|lease| (lease.status.clone(), lease.reason.clone().unwrap_or_default()))
            .unwrap_or_default(),
        decision: serde_json::from_str(annotated(annotation::POLICY_DECISION)).unwrap_or_default(),
        pods: 0,
    }
}

/// Rows that modules decided and rows that the memo answered, from the text of `/metrics`.
fn decisions(metrics: &str) -> u64 {
    metrics
        .lines()
        .filter(|line| {
            line.starts_with("kubeocean_policy_rows_total{")
                || (line.starts_with("kubeocean_policy_memo_total{") && line.contains("result=\"hit\""))
        })
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_rows_and_hits_of_the_memo() {
        let text = "# TYPE kubeocean_policy_rows counter\n\
                    kubeocean_policy_rows_total{entry=\"a/b\",result=\"offer\"} 3\n\
                    kubeocean_policy_memo_total{entry=\"a/b\",result=\"hit\"} 4\n\
                    kubeocean_policy_memo_total{entry=\"a/b\",result=\"miss\"} 3\n";
        assert_eq!(decisions(text), 7);
    }
}
