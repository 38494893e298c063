//! Performs the plan of one vnode's port reservation. Decides nothing.

use std::{sync::Arc, time::Duration};

use kube::Client;
use kubeocean_api::{
    keys::{label, manager, namespace},
    name::fit_label_value,
};
use kubeocean_runtime::{
    error::ApplyError,
    events::{Event, EventRecorder, Regarding, Severity},
    health::Health,
    queue::Outcome,
    request::{
        DeleteOptions, Deletion, PAGE, create_json, delete_json, get_json, list_metadata, merge_patch, paths,
    },
};
use serde_json::{Value, json};

use super::{
    index::{HostPortStore, Snapshot},
    plan::{Action, Input, fake_namespace, plan},
    view::FakePod,
};
use crate::nodes::index::Identity;

/// Pause before reservations of the original are looked for again after a failure.
const RETRY: Duration = Duration::from_secs(2);

/// Plans for one event: a reservation is made, and then shown as scheduled. Where others change what we write, the next
/// event comes before the next write.
const ROUNDS: usize = 2;

/// What reserving works with.
pub struct HostPortSync {
    /// Of the process.
    pub health: Arc<Health>,
    /// Client of the computing cluster.
    pub computing: Client,
    /// What is known.
    pub store: Arc<HostPortStore>,
    /// Image that reservations name.
    pub image: String,
    /// Events of the computing cluster.
    pub events: EventRecorder,
}

impl std::fmt::Debug for HostPortSync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HostPortSync").field("store", &self.store).finish_non_exhaustive()
    }
}

/// The collection of reservations, as the field manager.
fn collection() -> String {
    format!("{}?fieldManager={}", paths::pods(namespace::FAKE), manager::SYNCER)
}

impl HostPortSync {
    fn binding(&self) -> String {
        fit_label_value(&self.store.nodes().identity().binding)
    }

    /// Brings the reservation of one vnode to what it shall be.
    pub(super) async fn reconcile(&self, vnode: &str) -> Outcome {
        let binding = self.binding();
        for _ in 0..ROUNDS {
            let snapshot = self.store.snapshot(vnode);
            let actions = plan(&Input {
                binding: &binding,
                image: &self.image,
                vnode: snapshot.vnode.as_ref(),
                held: &snapshot.held,
                fakes: &snapshot.fakes,
            });
            if actions.is_empty() {
                break;
            }
            for action in actions {
                let text = action.to_string();
                if let Err(error) = self.perform(vnode, &snapshot, action).await {
                    return error.log(vnode, &text);
                }
                tracing::info!(vnode, "{text}");
            }
        }
        Outcome::Done
    }

    async fn perform(&self, vnode: &str, snapshot: &Snapshot, action: Action) -> Result<(), ApplyError> {
        let by = format!("?fieldManager={}", manager::SYNCER);
        match action {
            Action::Create { body } => {
                let stored = self.create(&body).await.inspect_err(|error| self.tell(snapshot, error))?;
                self.wrote(stored);
            }
            Action::Adopt { name, patch } => {
                let path = format!("{}{by}", paths::pod(namespace::FAKE, &name));
                self.patch(vnode, snapshot, &name, &path, &patch).await?;
            }
            Action::ShowScheduled { name, patch } => {
                let path = format!("{}{by}", paths::pod_status(namespace::FAKE, &name));
                self.patch(vnode, snapshot, &name, &path, &patch).await?;
            }
            Action::Delete { name, uid } => {
                let options = DeleteOptions { uid: Some(uid.clone()), grace_seconds: Some(0) };
                let path = paths::pod(namespace::FAKE, &name);
                if delete_json(&self.computing, &path, &options).await? == Deletion::Gone {
                    self.store.remove(vnode, &name, &uid, u64::MAX);
                }
            }
        }
        Ok(())
    }

    /// The namespace is made when the first reservation needs it.
    async fn create(&self, body: &Value) -> Result<Value, ApplyError> {
        match create_json(&self.computing, &collection(), body).await {
            Err(ApplyError::NotFound { .. }) => {}
            answer => return answer,
        }
        match create_json(&self.computing, &paths::namespaces(), &fake_namespace()).await {
            Ok(_) | Err(ApplyError::AlreadyExists { .. }) => {}
            Err(error) => return Err(error),
        }
        create_json(&self.computing, &collection(), body).await
    }

    async fn patch(
        &self,
        vnode: &str,
        snapshot: &Snapshot,
        name: &str,
        path: &str,
        patch: &Value,
    ) -> Result<(), ApplyError> {
        match merge_patch(&self.computing, path, patch).await {
            Ok(stored) => self.wrote(stored),
            Err(ApplyError::NotFound { .. }) => {
                if let Some(fake) = snapshot.fakes.iter().find(|fake| fake.name() == name) {
                    self.store.remove(vnode, name, fake.uid(), u64::MAX);
                }
            }
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn wrote(&self, stored: Value) {
        if let Ok(fake) = serde_json::from_value::<FakePod>(stored) {
            self.store.take(fake);
        }
    }

    /// What the namespace refuses (a quota, Pod Security, admission) is for its administrator to allow.
    fn tell(&self, snapshot: &Snapshot, error: &ApplyError) {
        if let Some(vnode) = snapshot.vnode.as_ref().filter(|_| error.is_refusal()) {
            self.events.publish(Event {
                regarding: Regarding::node(&vnode.name, &vnode.uid),
                severity: Severity::Warning,
                reason: "HostPortsNotReserved",
                message: format!("pods may be sent here whose host ports are taken: {}", error.chain()),
            });
        }
    }

    /// Reservations of the original name no binding. Those on our vnodes become ours: the planner keeps or removes them.
    pub(super) async fn adopt_all(&self) {
        while let Err(error) = self.adopt_unlabelled().await {
            tracing::warn!(error = error.chain(), "reservations of the original not adopted, retrying");
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn adopt_unlabelled(&self) -> Result<(), ApplyError> {
        let selector = format!("{}=true,!{}", label::HOSTPORT_FAKE_POD, label::CLUSTER_BINDING);
        let list = format!("{}?labelSelector={selector}", paths::pods(namespace::FAKE));
        let list = get_json(&self.computing, &list).await?.unwrap_or_default();
        for item in list.get("items").and_then(Value::as_array).into_iter().flatten() {
            let Ok(fake) = serde_json::from_value::<FakePod>(item.clone()) else { continue };
            if !self.store.nodes().vnode(&fake.vnode).is_some_and(|vnode| vnode.ours) {
                continue;
            }
            let labels = json!({label::CLUSTER_BINDING: self.binding()});
            let patch = json!({"metadata": {"uid": fake.uid(), "labels": labels}});
            let path = paths::pod(namespace::FAKE, fake.name());
            match merge_patch(&self.computing, &format!("{path}?fieldManager={}", manager::SYNCER), &patch)
                .await
            {
                Ok(stored) => self.wrote(stored),
                Err(ApplyError::NotFound { .. } | ApplyError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Deletes every reservation of this binding, and none of another (BU section 14).
pub async fn release_all(computing: &Client, identity: &Identity) -> Result<(), ApplyError> {
    let selector = format!(
        "{}=true,{}={}",
        label::HOSTPORT_FAKE_POD,
        label::CLUSTER_BINDING,
        fit_label_value(&identity.binding)
    );
    let list = format!("{}?labelSelector={selector}", paths::pods(namespace::FAKE));
    for fake in list_metadata(computing, &list, PAGE).await? {
        let options = DeleteOptions { uid: fake.uid, grace_seconds: Some(0) };
        let path = paths::pod(namespace::FAKE, fake.name.as_deref().unwrap_or_default());
        delete_json(computing, &path, &options).await?;
    }
    Ok(())
}
