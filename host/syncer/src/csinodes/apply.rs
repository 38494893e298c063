//! Reads what is missing for a plan and performs it. Decides nothing.

use std::sync::Arc;

use kube::Client;
use kubeocean_api::{
    keys::{label, manager},
    name::{fit_label_value, vnode_name},
};
use kubeocean_runtime::{
    clock::Clock,
    error::ApplyError,
    events::{Event, EventRecorder, Regarding, Severity},
    health::Health,
    queue::Outcome,
    request::{
        DeleteOptions, Deletion, PAGE, create_json, delete_json, get_json, list_metadata, merge_patch, paths,
    },
};
use serde_json::Value;

use super::{
    index::{CsiNodeStore, Original, Snapshot},
    plan::{Action, Input, Plan, is_ours, plan},
    view::CsiNode,
};
use crate::nodes::{index::Identity, metadata::DenyList};

/// What mirroring works with.
pub struct CsiNodeSync {
    /// Of the process.
    pub health: Arc<Health>,
    /// Client of the computing cluster.
    pub computing: Client,
    /// Client of the worker cluster.
    pub worker: Client,
    /// What is known.
    pub store: Arc<CsiNodeStore>,
    /// Keys that are not copied.
    pub deny: DenyList,
    /// Events of the computing cluster.
    pub events: EventRecorder,
    /// The binding, for events on it.
    pub binding: Regarding,
    /// Clock.
    pub clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for CsiNodeSync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CsiNodeSync").field("store", &self.store).finish_non_exhaustive()
    }
}

impl CsiNodeSync {
    /// Brings the copy of one vnode's CSINode to what it shall be.
    pub(super) async fn reconcile(&self, vnode: &str) -> Outcome {
        match self.converge(vnode).await {
            Ok(outcome) => outcome,
            Err(error) => error.log(vnode, "mirror its CSINode"),
        }
    }

    async fn converge(&self, vnode: &str) -> Result<Outcome, ApplyError> {
        let mut snapshot = self.store.snapshot(vnode);
        let identity = self.store.nodes().identity();
        // An edited vnode makes nobody read another node's.
        let node = snapshot.vnode.as_ref().and_then(|vnode| vnode.worker_node.as_deref());
        let node = node.filter(|node| vnode_name(&identity.cluster_id, node) == vnode);
        if let (Original::Unread, Some(node)) = (&snapshot.original, node) {
            let found = get_json(&self.worker, &paths::csi_node(node)).await?;
            self.store.read_original(vnode, found.and_then(parse));
            snapshot = self.store.snapshot(vnode);
        }
        let Snapshot { vnode: found, original, copy } = &snapshot;
        let plan = plan(&Input {
            now: self.clock.now(),
            identity,
            deny: &self.deny,
            name: vnode,
            vnode: found.as_ref(),
            original,
            copy: copy.as_deref(),
        });
        match plan {
            Plan::NotOurVnode => {
                tracing::debug!(vnode, "the labels of the vnode are not ours, its CSINode waits");
                Ok(Outcome::Done)
            }
            Plan::Taken => Ok(self.taken(vnode)),
            Plan::Do(actions) => {
                for action in actions {
                    let text = action.to_string();
                    if let Some(outcome) = self.perform(vnode, &snapshot, action).await? {
                        return Ok(outcome);
                    }
                    tracing::info!(vnode, "{text}");
                }
                Ok(Outcome::Done)
            }
        }
    }

    /// One action. `Some` ends the plan.
    async fn perform(
        &self,
        vnode: &str,
        snapshot: &Snapshot,
        action: Action,
    ) -> Result<Option<Outcome>, ApplyError> {
        let by = format!("?fieldManager={}", manager::SYNCER);
        match action {
            Action::Create { body } => {
                match create_json(&self.computing, &format!("{}{by}", paths::csi_nodes()), &body).await {
                    Ok(stored) => self.wrote(stored),
                    Err(ApplyError::AlreadyExists { .. }) => {
                        return self.found(vnode, snapshot).await.map(Some);
                    }
                    Err(error) => return Err(error),
                }
            }
            Action::Update { patch } => {
                match merge_patch(&self.computing, &format!("{}{by}", paths::csi_node(vnode)), &patch).await {
                    Ok(stored) => self.wrote(stored),
                    // Its DELETED event is under way, or it will be made anew at once.
                    Err(ApplyError::NotFound { .. }) => return Ok(Some(self.lost(vnode, snapshot))),
                    Err(error) => return Err(error),
                }
            }
            Action::Delete { uid } => {
                let options = DeleteOptions { uid: Some(uid), grace_seconds: None };
                match delete_json(&self.computing, &paths::csi_node(vnode), &options).await? {
                    Deletion::Gone => drop(self.lost(vnode, snapshot)),
                    // Somebody's finalizer keeps it. Its end is an event.
                    Deletion::Started => return Ok(Some(Outcome::Done)),
                }
            }
        }
        Ok(None)
    }

    fn wrote(&self, stored: Value) {
        if let Some(copy) = parse(stored) {
            self.store.take_copy(copy);
        }
    }

    fn lost(&self, vnode: &str, snapshot: &Snapshot) -> Outcome {
        if let Some(copy) = &snapshot.copy {
            self.store.drop_copy(vnode, copy.uid(), u64::MAX);
        }
        Outcome::Stale
    }

    /// There is one that no watch shows: ours without its label is taken into care again, another is never touched.
    async fn found(&self, vnode: &str, snapshot: &Snapshot) -> Result<Outcome, ApplyError> {
        let Some(found) = get_json(&self.computing, &paths::csi_node(vnode)).await?.and_then(parse) else {
            return Ok(Outcome::Stale);
        };
        if !is_ours(&found, self.store.nodes().identity(), snapshot.vnode.as_ref()) {
            return Ok(self.taken(vnode));
        }
        self.store.take_copy(found);
        Ok(Outcome::Stale)
    }

    fn taken(&self, vnode: &str) -> Outcome {
        self.events.publish(Event {
            regarding: self.binding.clone(),
            severity: Severity::Warning,
            reason: "VirtualNodeConflict",
            message: format!("a CSINode named {vnode} exists that is not of this binding"),
        });
        Outcome::Retry
    }
}

fn parse(json: Value) -> Option<CsiNode> {
    serde_json::from_value(json).ok()
}

/// Deletes every copy of this binding (BU section 14). Returns how many are still there.
pub async fn release_all(computing: &Client, identity: &Identity) -> Result<usize, ApplyError> {
    let selector = format!(
        "{}={},{}={},{}={}",
        label::MANAGED_BY,
        label::MANAGED_BY_VALUE,
        label::CLUSTER_BINDING,
        fit_label_value(&identity.binding),
        label::PHYSICAL_CLUSTER_ID,
        identity.cluster_id,
    );
    let list = format!("{}?labelSelector={selector}", paths::csi_nodes());
    let mut left = 0;
    for copy in list_metadata(computing, &list, PAGE).await? {
        let options = DeleteOptions { uid: copy.uid, grace_seconds: None };
        let path = paths::csi_node(copy.name.as_deref().unwrap_or_default());
        if delete_json(computing, &path, &options).await? == Deletion::Started {
            left += 1;
        }
    }
    Ok(left)
}
