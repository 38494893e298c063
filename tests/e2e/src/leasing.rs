//! What the tests of leasing and of policies share: a binding with nodes, a policy and a running Syncer, and looks at its
//! vnodes and policies.
//!
//! In: the shared site of the harness. Out: a [`Leasing`].
//!
//! Invariant: a [`Leasing`] sees only the nodes, vnodes and policies of its own binding, whatever else the shared fleet has.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{Node, Taint};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use kubeocean_api::keys::{condition_type, label, taint};
use kubeocean_harness::wait::{Look, try_wait_until};
use kubeocean_harness::{Binding, BindingSpec, NodeShape, Program, shared_site};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// For everything that happens within seconds on an idle machine.
pub const DEADLINE: Duration = Duration::from_mins(1);

/// A bound of the specification, with room for a machine that runs other tests at the same time. With
/// `KUBEOCEAN_STRICT_BOUNDS` set, for a run of one test on an idle machine, it is the bound itself.
pub fn generous(bound: Duration) -> Duration {
    if std::env::var_os("KUBEOCEAN_STRICT_BOUNDS").is_some() { bound } else { bound * 5 }
}

/// A binding with a policy and a running Syncer.
#[derive(Debug)]
pub struct Leasing {
    pub binding: Binding<'static>,
    pub syncer: Program,
    /// Worker nodes, in the order of their numbers.
    pub nodes: Vec<String>,
    /// When the Syncer was started.
    pub started: Instant,
}

impl Leasing {
    /// `name` is that of the binding, its clusterID, the nodes' prefix and the policy. Returns when the Syncer is ready.
    ///
    /// # Panics
    /// The clusters refuse an object or the Syncer does not become ready.
    pub async fn start(name: &str, nodes: usize, shape: &NodeShape, policy: Value) -> Self {
        Self::start_as(BindingSpec::new(name), nodes, shape, policy, &[]).await
    }

    /// The same with another binding, and flags for the Syncer.
    ///
    /// # Panics
    /// As [`Self::start`].
    pub async fn start_as(
        spec: BindingSpec,
        nodes: usize,
        shape: &NodeShape,
        policy: Value,
        flags: &[&str],
    ) -> Self {
        let name = spec.name.clone();
        let binding = shared_site().await.bind(spec).await.expect("a binding");
        let nodes = binding.worker().create_nodes(&name, nodes, shape).await.expect("worker nodes");
        binding.policy(&name, policy).await.expect("a policy");
        let started = Instant::now();
        let mut syncer = binding.syncer(flags).await.expect("a Syncer");
        syncer.wait_ready().await;
        Self { binding, syncer, nodes, started }
    }

    /// Replaces the spec of the policy that has the binding's name.
    ///
    /// # Panics
    /// The server refuses it.
    pub async fn edit(&self, policy: Value) {
        self.binding.policy(self.binding.name(), policy).await.expect("an edited policy");
    }

    /// The name of the vnode of a worker node (API section 6).
    pub fn vnode_name(&self, node: &str) -> String {
        format!("vnode-{}-{node}", self.binding.cluster_id())
    }

    /// Nodes of the computing cluster.
    ///
    /// # Panics
    /// No client can be made.
    pub async fn virtual_nodes(&self) -> Api<Node> {
        Api::all(self.binding.computing().client().await.expect("a client"))
    }

    /// Nodes of the worker cluster.
    ///
    /// # Panics
    /// No client can be made.
    pub async fn worker_nodes(&self) -> Api<Node> {
        Api::all(self.binding.worker().client().await.expect("a client"))
    }

    fn selector(&self) -> String {
        format!("{}={}", label::CLUSTER_BINDING, self.binding.name())
    }

    /// All vnodes of this binding, by name.
    ///
    /// # Panics
    /// The server does not answer.
    pub async fn vnodes(&self) -> Vec<Node> {
        let parameters = ListParams::default().labels(&self.selector());
        let mut nodes = self.virtual_nodes().await.list(&parameters).await.expect("vnodes").items;
        nodes.sort_by_key(ResourceExt::name_any);
        nodes
    }

    /// The vnode of a worker node.
    ///
    /// # Panics
    /// The server does not answer.
    pub async fn vnode(&self, node: &str) -> Option<Node> {
        self.virtual_nodes().await.get_opt(&self.vnode_name(node)).await.expect("an answer")
    }

    /// Waits as [`kubeocean_harness::wait_until`]; the failure also shows the end of the Syncer's log.
    ///
    /// # Panics
    /// The condition does not come.
    pub async fn until<L: Look>(
        &self,
        what: &str,
        deadline: Duration,
        look: impl AsyncFnMut() -> L,
    ) -> L::Value {
        match try_wait_until(what, deadline, look).await {
            Ok(value) => value,
            #[expect(clippy::panic, reason = "a condition that never came is a failed test")]
            Err(error) => panic!("{error}\nThe Syncer's last words:\n{}", tail(&self.syncer.log())),
        }
    }

    /// Waits until there is one vnode per worker node and `fits` holds for each.
    pub async fn all(&self, what: &str, deadline: Duration, fits: impl Fn(&Node) -> bool) -> Vec<Node> {
        self.until(what, deadline, async || {
            let vnodes = self.vnodes().await;
            if vnodes.len() == self.nodes.len() && vnodes.iter().all(&fits) {
                Ok(vnodes)
            } else {
                Err(vnodes.iter().map(summary).collect::<Vec<_>>())
            }
        })
        .await
    }

    /// Waits until the vnode of `node` fits.
    pub async fn one(&self, node: &str, what: &str, fits: impl Fn(&Node) -> bool) -> Node {
        self.until(what, DEADLINE, async || match self.vnode(node).await {
            Some(vnode) if fits(&vnode) => Ok(vnode),
            other => Err(other.as_ref().map(summary)),
        })
        .await
    }

    /// Waits until the vnode of `node` is gone.
    pub async fn withdrawn(&self, node: &str) {
        self.until(&format!("the vnode of {node} to go"), DEADLINE, async || match self.vnode(node).await {
            None => Ok(()),
            Some(vnode) => Err(summary(&vnode)),
        })
        .await;
    }

    /// ResourceLeasingPolicies of the worker cluster.
    ///
    /// # Panics
    /// No client can be made.
    pub async fn policies(&self) -> Api<DynamicObject> {
        Api::all_with(self.binding.worker().client().await.expect("a client"), &kind("ResourceLeasingPolicy"))
    }

    /// A policy with all its fields.
    ///
    /// # Panics
    /// The server does not answer.
    pub async fn policy(&self, name: &str) -> Option<Value> {
        let policy = self.policies().await.get_opt(name).await.expect("an answer")?;
        Some(serde_json::to_value(policy).expect("JSON"))
    }

    /// Waits until the stored policy is as `fits` says, and its status is about its present spec.
    pub async fn policy_until(&self, name: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
        self.until(what, DEADLINE, async || match self.policy(name).await {
            Some(policy) if up_to_date(&policy) && fits(&policy) => Ok(policy),
            Some(policy) => Err(policy["status"].to_string()),
            None => Err("no such policy".to_owned()),
        })
        .await
    }

    /// Deletes a policy; it goes when its finalizer does.
    ///
    /// # Panics
    /// The server refuses it.
    pub async fn delete_policy(&self, name: &str) {
        self.policies().await.delete(name, &DeleteParams::default()).await.expect("a deleted policy");
    }

    /// The ClusterBinding.
    ///
    /// # Panics
    /// No client can be made.
    pub async fn bindings(&self) -> Api<DynamicObject> {
        Api::all_with(self.binding.computing().client().await.expect("a client"), &kind("ClusterBinding"))
    }

    /// Makes a pod that is none of ours on a worker node.
    ///
    /// # Panics
    /// The server refuses it.
    pub async fn foreign_pod(&self, node: &str, cpu: &str) {
        let worker = self.binding.worker();
        let home = format!("{}-foreign", self.binding.name());
        worker.create_namespace(&home).await.expect("a namespace");
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": format!("online-{node}"), "namespace": home},
            "spec": {
                "nodeName": node,
                "containers": [{"name": "c", "image": "online:1", "resources": {"requests": {"cpu": cpu}}}],
            },
        });
        worker.apply_objects(vec![pod]).await.expect("a pod");
    }

    /// Records every state of this binding's vnodes from now on.
    pub async fn record(&self) -> Recording {
        let states: Arc<Mutex<Vec<Node>>> = Arc::default();
        let config = watcher::Config::default().labels(&self.selector());
        let nodes = self.virtual_nodes().await;
        let seen = Arc::clone(&states);
        let task = tokio::spawn(async move {
            let mut changes = std::pin::pin!(watcher(nodes, config).default_backoff().applied_objects());
            while let Some(change) = changes.next().await {
                if let (Ok(node), Ok(mut seen)) = (change, seen.lock()) {
                    seen.push(node);
                }
            }
        });
        let recording = Recording { states, task };
        self.until("the first states", DEADLINE, async || recording.states().len() >= self.nodes.len()).await;
        recording
    }
}

/// Every state of some vnodes since it was begun.
#[derive(Debug)]
pub struct Recording {
    states: Arc<Mutex<Vec<Node>>>,
    task: JoinHandle<()>,
}

impl Recording {
    /// All states so far, in order.
    ///
    /// # Panics
    /// A panic while it was recorded.
    pub fn states(&self) -> Vec<Node> {
        self.states.lock().expect("not poisoned").clone()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn kind(kind: &str) -> ApiResource {
    let plural = match kind {
        "ClusterBinding" => "clusterbindings",
        _ => "resourceleasingpolicies",
    };
    ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk("cloud.tencent.com", "v1beta1", kind), plural)
}

fn tail(log: &str) -> String {
    let lines: Vec<_> = log.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}

/// A resource as the vnode publishes it: capacity and allocatable are the same (BU-504).
pub fn amount<'n>(vnode: &'n Node, resource: &str) -> Option<&'n str> {
    let status = vnode.status.as_ref()?;
    let allocatable = status.allocatable.as_ref()?.get(resource)?;
    let capacity = status.capacity.as_ref()?.get(resource)?;
    (allocatable == capacity).then_some(allocatable.0.as_str())
}

/// The status and the reason of a condition of a node.
pub fn condition<'n>(node: &'n Node, of_type: &str) -> Option<(&'n str, &'n str)> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let found = conditions.iter().find(|condition| condition.type_ == of_type)?;
    Some((found.status.as_str(), found.reason.as_deref().unwrap_or_default()))
}

/// Whether the node is Ready.
pub fn is_ready(node: &Node) -> bool {
    condition(node, "Ready").is_some_and(|(status, _)| status == "True")
}

/// The taint of this key.
pub fn taint_of<'n>(node: &'n Node, key: &str) -> Option<&'n Taint> {
    node.spec.as_ref()?.taints.iter().flatten().find(|taint| taint.key == key)
}

/// Whether no policy withholds the vnode.
pub fn is_offered(vnode: &Node) -> bool {
    taint_of(vnode, taint::OUT_OF_TIME_WINDOWS).is_none()
        && condition(vnode, condition_type::LEASE).is_some_and(|(status, _)| status == "True")
}

/// Whether the vnode is withheld and nothing that runs there is asked to go.
pub fn is_withheld_gently(vnode: &Node) -> bool {
    taint_of(vnode, taint::OUT_OF_TIME_WINDOWS)
        .is_some_and(|taint| taint.effect == "NoSchedule" && taint.value.as_deref() == Some("true"))
}

/// What failure messages show of a node.
pub fn summary(node: &Node) -> String {
    let taints: Vec<_> = node
        .spec
        .iter()
        .flat_map(|spec| spec.taints.iter().flatten())
        .map(|taint| format!("{}:{}", taint.key, taint.effect))
        .collect();
    format!(
        "{} cpu={:?} gpu={:?} ready={} lease={:?} taints={taints:?} deleting={}",
        node.name_any(),
        amount(node, "cpu"),
        amount(node, "nvidia.com/gpu"),
        is_ready(node),
        condition(node, condition_type::LEASE),
        node.metadata.deletion_timestamp.is_some(),
    )
}

/// Status, reason and message of a condition of a policy.
pub fn policy_condition<'p>(policy: &'p Value, of_type: &str) -> Option<(&'p str, &'p str, &'p str)> {
    let conditions = policy["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|condition| condition["type"] == of_type)?;
    Some((found["status"].as_str()?, found["reason"].as_str()?, found["message"].as_str()?))
}

/// What the status says about an entry of `spec.policies`; null when it says nothing.
pub fn entry<'p>(policy: &'p Value, name: &str) -> &'p Value {
    const NONE: &Value = &Value::Null;
    let entries = policy["status"]["policies"].as_array();
    entries.and_then(|entries| entries.iter().find(|entry| entry["name"] == name)).unwrap_or(NONE)
}

/// The state of an entry of `spec.policies`, `""` when there is none yet.
pub fn entry_state<'p>(policy: &'p Value, name: &str) -> &'p str {
    entry(policy, name)["state"].as_str().unwrap_or_default()
}

/// The code of an entry's last error, `""` when there is none.
pub fn entry_error<'p>(policy: &'p Value, name: &str) -> &'p str {
    let text = entry(policy, name)["lastError"].as_str().unwrap_or_default();
    text.split_once(':').map_or(text, |(code, _)| code)
}

fn up_to_date(policy: &Value) -> bool {
    policy["status"]["observedGeneration"] == policy["metadata"]["generation"]
}

/// A JSON merge patch.
///
/// # Panics
/// The server refuses it.
pub async fn merge<K>(api: &Api<K>, name: &str, patch: Value) -> K
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    api.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await.expect("a patched object")
}

/// The legacy field that leases a share of a resource.
pub fn percent(resource: &str, percent: i64) -> Value {
    json!({"resource": resource, "percent": percent})
}
