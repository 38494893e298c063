//! Performs the actions of a node's plan, in their order, each with its preconditions. No decisions here.
//!
//! Answers are fed into the store, so that the next plan sees what was just written.

use std::{
    borrow::Cow,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use kube::Client;
use kubeocean_api::{
    keys::{annotation, finalizer, label, manager, namespace, syncer_manager, taint},
    name::fit_label_value,
};
use serde_json::{Value, json};

use super::{
    action::{Action, PodDeletion, Shown, VnodeEvent, status_alone, status_patch},
    decide::NodeRuntime,
    index::Snapshot,
    metadata::ExpectedMetadata,
    snapshot::{available, base},
    store::{NodeCounters, NodeStore},
    undecided::lowered,
    view::{NO_EXECUTE, NodeView, Taint},
};
use crate::policies::apply::Hold;
use kubeocean_runtime::{
    error::ApplyError,
    events::{Event, Regarding, Severity},
    queue::Outcome,
    request::{
        DeleteOptions, PAGE, Right, any_listed, create_as, delete_answered, get_json, is_permitted,
        merge_patch_as, paths,
    },
};

/// How soon a write that is not urgent, such as the worker node's label, is tried again.
const SOFT_RETRY: Duration = Duration::from_secs(30);
/// How soon the label is judged anew if the worker node changed meanwhile: its watch tells by then.
const LABEL_ANEW: Duration = Duration::from_secs(1);
/// While so many nodes are looked at, new vnodes do not wait for the labels of the ones before them.
const MANY: usize = 64;
/// How long a label waits then, and how much longer for each node that is before it: they must not come back together.
const LABEL_LATER: Duration = Duration::from_secs(3);
const LABEL_EACH: Duration = Duration::from_millis(10);
/// However many nodes are looked at all the time, a label is written after this time.
const LABEL_LATEST: Duration = Duration::from_secs(30);

/// What became of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Done {
    Now,
    /// There was nothing to do, so nothing is counted.
    Already,
    /// Not done, and not urgent.
    After(Duration),
}

/// Why a plan was not carried out to its end.
enum Stop {
    Error(ApplyError),
    /// Not an error: the plan's view is outdated, or something is to be waited for.
    Later(Outcome),
}

impl From<ApplyError> for Stop {
    fn from(error: ApplyError) -> Self {
        Self::Error(error)
    }
}

/// Performs `actions`. Ok: everything urgent is done, with a delay if something is to be tried again. A pod that cannot be
/// deleted holds up neither the others nor what follows; it is tried again afterwards. `decided_by`: the changes of
/// policies that led to the plan; once there are more, nothing of it is done that takes a pod or the vnode away.
pub(super) async fn perform(
    runtime: &NodeRuntime,
    vnode: &str,
    snapshot: &Snapshot,
    actions: Vec<Action>,
    decided_by: Option<u64>,
) -> Result<Option<Duration>, Outcome> {
    let outdated = || {
        let changes = runtime.worker.as_ref().map(|worker| worker.policies.changes());
        decided_by.is_some_and(|known| changes.is_some_and(|changes| changes != known))
    };
    let mut retry = None;
    let mut refused = None;
    // Version after our own preconditioned writes; the plan's version before them.
    let mut version = snapshot.vnode.as_ref().map(|vnode| vnode.resource_version().to_owned());
    for action in actions {
        let text = action.to_string();
        let (notable, counter) = (is_notable(&action), counter(&runtime.store.counters, &action));
        let (deletes_pod, names_policy) = (matches!(action, Action::DeletePod { .. }), action.names_policy());
        let precedes_amounts = precedes_amounts(&action);
        if takes_away(&action) && outdated() {
            return Err(Outcome::Stale);
        }
        match one(runtime, vnode, snapshot, action, &mut version).await {
            Ok(Done::Now) => {
                if let Some(counter) = counter {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
                if notable {
                    tracing::info!(vnode, "{text}");
                }
            }
            Ok(Done::Already) => {}
            Ok(Done::After(delay)) => retry = retry.into_iter().chain([delay]).min(),
            Err(Stop::Later(outcome)) => return Err(outcome),
            Err(Stop::Error(error)) => {
                if deletes_pod {
                    refused = Some(error.log(vnode, &text));
                    continue;
                }
                if precedes_amounts && error.is_refusal() {
                    lower_amounts(runtime, vnode).await;
                }
                if names_policy && error.may_be_done() {
                    runtime.store.not_answered(vnode);
                }
                if let ApplyError::Conflict { .. } = &error {
                    runtime.store.conflicted(snapshot.vnode.as_deref());
                }
                if let (ApplyError::NotFound { .. }, Some(gone)) = (&error, &snapshot.vnode) {
                    runtime.store.lost_vnode(gone.name(), gone.uid(), u64::MAX);
                    return Err(Outcome::Stale);
                }
                return Err(error.log(vnode, &text));
            }
        }
    }
    refused.map_or(Ok(retry), Err)
}

/// What an administrator finds in the log: the cluster was changed, and not only a number.
fn is_notable(action: &Action) -> bool {
    match action {
        Action::PatchVnode(changes) => changes.taints.is_some() || changes.unschedulable.is_some(),
        Action::CreateVnode { .. }
        | Action::DeletePod { .. }
        | Action::DeleteVnode { .. }
        | Action::ReleaseVnode { .. } => true,
        Action::HoldPolicy { .. }
        | Action::UpdateVnode { .. }
        | Action::PatchStatus { .. }
        | Action::LabelWorkerNode { .. }
        | Action::Event(_) => false,
    }
}

/// Whether the action deletes pods or the vnode, or has them deleted: a withdrawal begins, or pods are evicted.
fn takes_away(action: &Action) -> bool {
    let ends_lease = |it: &Taint| {
        it.key == taint::VNODE_DELETING || (it.key == taint::OUT_OF_TIME_WINDOWS && it.effect == NO_EXECUTE)
    };
    match action {
        Action::PatchVnode(changes) => changes.taints.iter().flatten().any(ends_lease),
        action => matches!(action, Action::DeletePod { .. } | Action::DeleteVnode { .. }),
    }
}

/// Whether amounts are written with the action, or after it.
fn precedes_amounts(action: &Action) -> bool {
    matches!(action, Action::HoldPolicy { .. } | Action::PatchVnode(_) | Action::UpdateVnode { .. })
}

/// Whatever somebody refuses, no more is offered than others leave (BU-906).
async fn lower_amounts(runtime: &NodeRuntime, vnode: &str) {
    let snapshot = runtime.store.snapshot(vnode);
    let (Some(pnode), Some(there)) = (&snapshot.pnode, &snapshot.vnode) else { return };
    let left = available(&base(pnode), &snapshot.usage.others);
    let shown = Shown { lowered: lowered(there, &left), ..Shown::default() };
    let Some(lowers) = Action::show(there, shown) else { return };
    match one(runtime, vnode, &snapshot, lowers, &mut None).await {
        Ok(_) => {
            runtime.store.counters.status.fetch_add(1, Ordering::Relaxed);
        }
        Err(Stop::Error(error)) => {
            tracing::warn!(vnode, error = error.chain(), "amounts not lowered");
        }
        Err(Stop::Later(_)) => {}
    }
}

/// One action.
async fn one(
    runtime: &NodeRuntime,
    vnode: &str,
    snapshot: &Snapshot,
    action: Action,
    version: &mut Option<String>,
) -> Result<Done, Stop> {
    let computing = &runtime.computing;
    match action {
        Action::HoldPolicy { policy } => {
            let Some(worker) = &runtime.worker else { return Ok(Done::After(SOFT_RETRY)) };
            if worker.policies.hold(&worker.client, &policy).await? == Hold::Gone {
                return Err(Stop::Later(Outcome::Stale));
            }
        }
        Action::CreateVnode { name, body, written } => {
            create(runtime, snapshot, &name, &body).await?;
            runtime.store.set_written(&name, written);
        }
        Action::PatchVnode(mut changes) => {
            if let Some(version) = version.as_ref() {
                changes.resource_version.clone_from(version);
            }
            let path = format!("{}?fieldManager={}", paths::node(&changes.name), manager::SYNCER);
            let answer = merge_patch_as(computing, &path, &changes.patch()).await?;
            *version = Some(saw(runtime, answer));
            if let Some(terms) = changes.terms {
                runtime.store.set_terms(&changes.name, terms);
            }
        }
        Action::UpdateVnode { name, mut patch, written } => {
            if let Some(version) = version.as_ref() {
                patch["metadata"]["resourceVersion"] = version.as_str().into();
            }
            let path = format!("{}?fieldManager={}", paths::node_status(&name), manager::SYNCER);
            match merge_patch_as(computing, &path, &patch).await {
                Ok(answer) => {
                    *version = Some(saw(runtime, answer));
                    runtime.store.set_written(&name, written);
                }
                // Whatever is wrong with the metadata, no more is offered than others leave.
                Err(refused @ ApplyError::Rejected { .. }) => {
                    let written = status_alone(&mut patch, written, snapshot.written.as_ref());
                    saw(runtime, merge_patch_as(computing, &path, &patch).await?);
                    runtime.store.set_written(&name, written);
                    return Err(refused.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
        Action::PatchStatus { name, uid, resource_version, conditions, addresses, lowered, written } => {
            let version_now = version.clone().unwrap_or(resource_version);
            let change = json!({
                "metadata": {"uid": uid, "resourceVersion": version_now},
                "status": status_patch(&conditions, addresses.as_deref(), &lowered),
            });
            let path = format!("{}?fieldManager={}", paths::node_status(&name), manager::SYNCER);
            let answer = merge_patch_as(computing, &path, &change).await?;
            *version = Some(saw(runtime, answer));
            if let Some(written) = written {
                runtime.store.set_written(&name, written);
            }
        }
        Action::LabelWorkerNode { node, policy } => {
            if policy.is_some()
                && let Some(wait) = label_waits(&runtime.store, &node)
            {
                return Ok(Done::After(wait));
            }
            if let Some(wait) = set_label(runtime, &node, snapshot.pnode.as_deref(), policy.as_deref()).await
            {
                return Ok(Done::After(wait));
            }
        }
        Action::DeletePod { key, uid, why } => {
            let options = DeleteOptions { uid: Some(uid.clone()), grace_seconds: None };
            let path = paths::pod(&key.namespace, &key.name);
            let Some(pod) = delete_answered(computing, &path, &options).await? else {
                return Ok(Done::Already);
            };
            runtime.pods.saw(&pod);
            if why == PodDeletion::Reclaimed {
                let message = format!("the lease of node {vnode} ended");
                runtime.events.publish(Event {
                    regarding: Regarding::pod(&key.namespace, &key.name, &uid),
                    severity: Severity::Warning,
                    reason: "LeaseReclaimed",
                    message,
                });
            }
        }
        Action::DeleteVnode { name, uid } => {
            let options = DeleteOptions { uid: Some(uid.clone()), grace_seconds: None };
            match delete_answered(computing, &paths::node(&name), &options).await? {
                Some(answer) => {
                    if let Ok(node) = serde_json::from_value(answer) {
                        saw(runtime, node);
                    }
                }
                None => runtime.store.lost_vnode(&name, &uid, u64::MAX),
            }
        }
        Action::ReleaseVnode { name, uid } => release(runtime, &name, &uid).await?,
        Action::Event(event) => publish(runtime, snapshot, vnode, event),
    }
    Ok(Done::Now)
}

/// How long the label of a node is put off; `None`: it is written now.
fn label_waits(store: &NodeStore, node: &str) -> Option<Duration> {
    let ahead = store.queue.len();
    let waited = store.label_waits_since(node, ahead >= MANY)?.elapsed();
    let each = LABEL_EACH.saturating_mul(u32::try_from(ahead).unwrap_or(u32::MAX));
    let left = LABEL_LATEST.checked_sub(waited).filter(|left| !left.is_zero());
    if left.is_none() {
        store.label_waits_since(node, false);
    }
    left.map(|left| left.min(LABEL_LATER.saturating_add(each)))
}

/// What counts the action once it is done.
fn counter<'c>(counters: &'c NodeCounters, action: &Action) -> Option<&'c AtomicU64> {
    Some(match action {
        Action::CreateVnode { .. } => &counters.created,
        Action::PatchVnode(_) | Action::ReleaseVnode { .. } => &counters.patched,
        Action::UpdateVnode { .. } => &counters.updated,
        Action::PatchStatus { .. } => &counters.status,
        Action::DeleteVnode { .. } => &counters.deleted,
        Action::DeletePod { why: PodDeletion::Reclaimed, .. } => &counters.reclaimed_pods,
        Action::DeletePod { why: PodDeletion::Drained, .. } => &counters.drained_pods,
        Action::HoldPolicy { .. } | Action::LabelWorkerNode { .. } | Action::Event(_) => return None,
    })
}

/// Feeds an answer into the store; returns its version.
fn saw(runtime: &NodeRuntime, answer: NodeView) -> String {
    let version = answer.resource_version().to_owned();
    runtime.store.saw_vnode(answer);
    version
}

/// Reads a vnode of which nobody said what became of the last write, or which its watch shows no more. Planned from what was
/// known before the write, the next plan could pass over the policy that the write named (BU section 13); one that only
/// lost its labels is still ours, whatever is decided about it.
pub(super) async fn settle(runtime: &NodeRuntime, vnode: &str) -> Outcome {
    let known = runtime.store.vnode(vnode).map(|known| known.uid);
    match get_json(&runtime.computing, &paths::node(vnode)).await {
        Ok(live) => {
            let live = live.and_then(|live| serde_json::from_value(live).ok());
            runtime.store.settle_vnode(vnode, known.as_deref(), live);
            Outcome::Stale
        }
        Err(error) => error.log(vnode, "read it"),
    }
}

/// The snapshot, with the record of what we wrote made anew from what we own if somebody broke it (BU section 7). The
/// next write puts it right.
pub(super) async fn mended<'a>(
    runtime: &NodeRuntime,
    snapshot: &'a Snapshot,
) -> Result<Cow<'a, Snapshot>, Outcome> {
    let broken = |vnode: &&Arc<NodeView>| {
        vnode.annotation(annotation::EXPECTED_METADATA).is_some_and(ExpectedMetadata::is_broken)
    };
    let Some(vnode) = snapshot.vnode.as_ref().filter(broken) else { return Ok(Cow::Borrowed(snapshot)) };
    let live = match get_json(&runtime.computing, &paths::node(vnode.name())).await {
        Ok(Some(live)) => live,
        Ok(None) => {
            runtime.store.lost_vnode(vnode.name(), vnode.uid(), u64::MAX);
            return Err(Outcome::Stale);
        }
        Err(error) => {
            tracing::warn!(vnode = vnode.name(), error = error.chain(), "vnode not read");
            return Err(error.outcome());
        }
    };
    let mut vnode = NodeView::clone(vnode);
    let owned = ExpectedMetadata::owned(&live).encode();
    vnode.annotations = vnode.annotations.with(annotation::EXPECTED_METADATA, &owned);
    Ok(Cow::Owned(Snapshot { vnode: Some(Arc::new(vnode)), ..snapshot.clone() }))
}

/// One POST. A node of that name that is ours is adopted, another one is never touched.
async fn create(runtime: &NodeRuntime, snapshot: &Snapshot, name: &str, body: &Value) -> Result<(), Stop> {
    let path = format!("{}?fieldManager={}", paths::nodes(), manager::SYNCER);
    match create_as(&runtime.computing, &path, body).await {
        Ok(answer) => {
            saw(runtime, answer);
            Ok(())
        }
        Err(ApplyError::AlreadyExists { .. }) => {
            let live = get_json(&runtime.computing, &paths::node(name)).await?;
            let Some(live) = live.and_then(|live| serde_json::from_value::<NodeView>(live).ok()) else {
                return Err(Stop::Later(Outcome::Stale));
            };
            if is_ours(runtime, snapshot, &live) {
                runtime.store.saw_vnode(live);
                // Without any of its marks the store does not take it for a vnode.
                if runtime.store.vnode(name).is_some() {
                    return Err(Stop::Later(Outcome::Stale));
                }
            }
            let binding = &runtime.store.identity().binding;
            runtime.events.publish(Event {
                regarding: Regarding::binding(binding, &runtime.binding_uid),
                severity: Severity::Warning,
                reason: "VirtualNodeConflict",
                message: format!("a node named {name} exists that is not of this binding"),
            });
            Err(Stop::Later(Outcome::Retry))
        }
        Err(error) => Err(error.into()),
    }
}

/// Labels of ours, or the worker node's name and UID (BU section 4).
fn is_ours(runtime: &NodeRuntime, snapshot: &Snapshot, live: &NodeView) -> bool {
    let labelled = live.label(label::MANAGED_BY) == Some(label::MANAGED_BY_VALUE)
        && live.label(label::CLUSTER_BINDING)
            == Some(fit_label_value(&runtime.store.identity().binding).as_str());
    let same_node = snapshot.pnode.as_ref().is_some_and(|pnode| {
        live.annotation_or_label(annotation::PHYSICAL_NODE_NAME) == Some(pnode.name())
            && live.annotation_or_label(annotation::PHYSICAL_NODE_UID) == Some(pnode.uid())
    });
    labelled || same_node
}

/// Whether the role allows to label worker nodes. Admission refuses a single node with the same answer as a missing right
/// refuses all; while nobody can say which it is, it is taken for the former.
async fn may_label(worker: &Client) -> bool {
    let right = Right { verb: "patch", resource: "nodes", subresource: "", namespace: "" };
    is_permitted(worker, &right).await.unwrap_or(true)
}

/// Sets or removes `policy-applied` of the worker node as it was `judged`: another binding may have labelled it since.
/// It is information for people: a failure delays nothing, and where the role does not allow it, the feature is off.
/// Returns when to try again.
async fn set_label(
    runtime: &NodeRuntime,
    node: &str,
    judged: Option<&NodeView>,
    policy: Option<&str>,
) -> Option<Duration> {
    let Some(worker) = &runtime.worker else { return Some(SOFT_RETRY) };
    if worker.labels_off.load(Ordering::Relaxed) {
        return None;
    }
    let identity = runtime.store.identity();
    match label_worker_node(&worker.client, &identity.cluster_id, node, judged, policy).await {
        Ok(answer) => {
            if let Some(node) = answer {
                runtime.store.saw_worker_node(node);
            }
            None
        }
        Err(ApplyError::Conflict { .. }) => Some(LABEL_ANEW),
        Err(error @ ApplyError::Forbidden { .. }) if !may_label(&worker.client).await => {
            if !worker.labels_off.swap(true, Ordering::Relaxed) {
                let text = error.chain();
                tracing::warn!(error = text, "worker nodes are not labelled from now on");
                runtime.events.publish(Event {
                    regarding: Regarding::binding(&identity.binding, &runtime.binding_uid),
                    severity: Severity::Warning,
                    reason: "FeatureDisabled",
                    message: format!("worker nodes do not get the label {}: {text}", label::POLICY_APPLIED),
                });
            }
            None
        }
        Err(error) => {
            tracing::warn!(node, error = error.chain(), "label of the worker node not written");
            Some(SOFT_RETRY)
        }
    }
}

/// The only write on worker nodes; a node that is no longer as it was `judged` is left alone. Returns the node, or nothing
/// if there is none.
async fn label_worker_node(
    worker: &Client,
    cluster_id: &str,
    node: &str,
    judged: Option<&NodeView>,
    policy: Option<&str>,
) -> Result<Option<NodeView>, ApplyError> {
    let path = format!("{}?fieldManager={}", paths::node(node), syncer_manager(cluster_id));
    let mut change = json!({"metadata": {"labels": {label::POLICY_APPLIED: policy}}});
    if let Some(judged) = judged {
        change["metadata"]["uid"] = judged.uid().into();
        change["metadata"]["resourceVersion"] = judged.resource_version().into();
    }
    match merge_patch_as(worker, &path, &change).await {
        Ok(answer) => Ok(Some(answer)),
        Err(ApplyError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The finalizer goes only when the API server itself says that no pod is left.
async fn release(runtime: &NodeRuntime, name: &str, uid: &str) -> Result<(), Stop> {
    if pods_left(runtime, name).await? {
        return Err(Stop::Later(Outcome::After(SOFT_RETRY)));
    }
    let live = get_json(&runtime.computing, &paths::node(name)).await?;
    let live = live.and_then(|live| serde_json::from_value::<NodeView>(live).ok());
    let Some(live) = live.filter(|live| live.uid() == uid) else {
        runtime.store.lost_vnode(name, uid, u64::MAX);
        return Ok(());
    };
    if !live.terminating() {
        return Err(Stop::Later(Outcome::Stale));
    }
    let kept: Vec<&String> =
        live.metadata.finalizers.iter().filter(|name| *name != finalizer::VNODE).collect();
    let change =
        json!({"metadata": {"uid": uid, "resourceVersion": live.resource_version(), "finalizers": kept}});
    let path = format!("{}?fieldManager={}", paths::node(name), manager::SYNCER_FINALIZER);
    match merge_patch_as(&runtime.computing, &path, &change).await {
        // Nobody else keeps it.
        Ok(_) if kept.is_empty() => {}
        Ok(answer) => {
            saw(runtime, answer);
            return Ok(());
        }
        Err(ApplyError::NotFound { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    runtime.store.lost_vnode(name, uid, u64::MAX);
    Ok(())
}

/// Whether the API server knows a pod on the vnode that blocks its removal (BU-901(f)).
async fn pods_left(runtime: &NodeRuntime, vnode: &str) -> Result<bool, ApplyError> {
    let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{vnode}");
    any_listed(&runtime.computing, &path, PAGE, |pod| blocks(pod, &runtime.system_namespace)).await
}

fn blocks(pod: &Value, system_namespace: &str) -> bool {
    let text = |path: &str| pod.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let owned_by_daemonset = pod
        .pointer("/metadata/ownerReferences")
        .and_then(Value::as_array)
        .is_some_and(|owners| owners.iter().any(|owner| owner["kind"] == "DaemonSet"));
    let place = text("/metadata/namespace");
    !matches!(text("/status/phase"), "Succeeded" | "Failed")
        && !owned_by_daemonset
        && place != system_namespace
        && !namespace::NEVER_MAPPED.contains(&place)
}

fn publish(runtime: &NodeRuntime, snapshot: &Snapshot, vnode: &str, event: VnodeEvent) {
    let uid = snapshot.vnode.as_ref().map(|vnode| vnode.uid().to_owned()).unwrap_or_default();
    let severity = if event.warning { Severity::Warning } else { Severity::Normal };
    runtime.events.publish(Event {
        regarding: Regarding::node(vnode, &uid),
        severity,
        reason: event.reason,
        message: event.message,
    });
}

/// Removes our label from every worker node that still carries the name of one of our policies (BU section 14).
/// Returns how many could not be written.
pub async fn remove_labels(
    worker: &Client,
    store: &super::store::NodeStore,
    ours: &(dyn Fn(&str) -> bool + Sync),
) -> usize {
    let mut failed = 0;
    for node in store.labelled_nodes(ours) {
        // As it was judged: the label that another binding has set meanwhile is that one's.
        let unlabelled =
            label_worker_node(worker, &store.identity().cluster_id, node.name(), Some(&node), None).await;
        if let Err(error) = unlabelled {
            tracing::warn!(node = node.name(), error = error.chain(), "label of the worker node not removed");
            failed += 1;
        }
    }
    failed
}

#[cfg(test)]
mod tests;
