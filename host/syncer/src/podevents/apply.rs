//! Writes events to the computing cluster and finds out what a plan needs. Decides nothing.

use std::sync::Arc;

use kubeocean_runtime::{
    clock::{Clock, rfc3339},
    error::ApplyError,
    health::Health,
    queue::Outcome,
    request::{Right, create_json, is_permitted, merge_patch, paths},
};
use serde_json::{Value, json};

use super::{
    index::{EventStore, PodStories},
    plan::{About, Reflection, Snapshot, Write, plan},
    view::Seen,
};
use crate::{
    objects::{Clusters, ObjectStore},
    pods::{
        apply::VnodeDirectory,
        features::{Feature, Features},
        index::{CopyOf, PodStore},
        names::Names,
        snapshot::VnodeState,
        vpod_identity::VpodIdentity,
    },
};

/// What reflection works with.
pub struct PodEventSync {
    /// Both clusters.
    pub clusters: Arc<Clusters>,
    /// What the worker says.
    pub store: Arc<EventStore>,
    /// The pods.
    pub pods: Arc<PodStore>,
    /// Knows the token Secrets.
    pub objects: Arc<ObjectStore>,
    /// The vnodes.
    pub vnodes: Arc<dyn VnodeDirectory>,
    /// What the roles allow.
    pub features: Arc<Features>,
    /// How the Syncer signs.
    pub component: String,
    /// Is told that the loop comes by.
    pub health: Arc<Health>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

impl std::fmt::Debug for PodEventSync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PodEventSync").field("store", &self.store).finish_non_exhaustive()
    }
}

impl PodEventSync {
    /// Brings the events of one ppod's vpod to what the worker says.
    pub(super) async fn reconcile(&self, pod: &str) -> Outcome {
        let Some(news) = self.store.stories(pod) else { return Outcome::Done };
        let now = self.clock.now();
        let snapshot = self.snapshot(pod, news);
        let plan = plan(&snapshot);
        if plan.forget {
            self.store.forget(pod);
            return Outcome::Done;
        }
        for Write { story, reflection, budget } in plan.write {
            if self.features.is_off(Feature::PodEvents) {
                return Outcome::Done;
            }
            match self.write(&reflection).await {
                Ok(()) => {
                    let Reflection { count, first, last, .. } = reflection;
                    self.store.told(pod, &story, Seen { count, first, last }, budget);
                }
                Err(error) => {
                    tracing::debug!(vpod = %reflection.vpod, error = error.chain(), "event not written");
                    return match self.may_go_on(&reflection.vpod.namespace, &error).await {
                        Ok(true) => error.outcome(),
                        Ok(false) => {
                            self.features.turn_off(Feature::PodEvents);
                            Outcome::Done
                        }
                        Err(unclear) => unclear.outcome(),
                    };
                }
            }
        }
        match plan.wake {
            Some(at) => Outcome::After(at.duration_since(now).try_into().unwrap_or_default()),
            None => Outcome::Done,
        }
    }

    /// Whether a refusal says nothing of our rights: a quota or a webhook refuses some namespaces or events.
    async fn may_go_on(&self, namespace: &str, error: &ApplyError) -> Result<bool, ApplyError> {
        let ApplyError::Forbidden { verb, .. } = error else { return Ok(true) };
        let verb = verb.to_string();
        let right = Right { verb: &verb, resource: "events", subresource: "", namespace };
        is_permitted(&self.clusters.computing, &right).await
    }

    fn snapshot(&self, pod: &str, news: PodStories) -> Snapshot {
        let PodStories { key, since, budget, stories } = news;
        let about = match self.pods.original_of(&key, pod) {
            CopyOf::Unknown => About::Unknown,
            CopyOf::Foreign => About::Foreign,
            CopyOf::Vpod { vpod, ppod } => {
                let worker_node = match self.vnodes.vnode(&vpod.node) {
                    VnodeState::Ours { worker_node, .. } => worker_node,
                    VnodeState::Missing | VnodeState::NotOurs => None,
                };
                let owner = VpodIdentity { key: vpod.key.clone(), uid: vpod.uid.to_string() };
                let tokens = self.objects.tokens.of_owner(&owner);
                let tokens = tokens.iter().map(|secret| secret.name().to_owned());
                let copies = self.objects.copies_behind(&vpod.key.namespace, &vpod.spec.references);
                About::Copy {
                    names: Names::of(&vpod, (&ppod.key, &ppod.uid), worker_node.as_deref(), copies, tokens),
                    vpod: owner.key,
                    uid: owner.uid,
                    vnode: vpod.node.to_string(),
                    ending: vpod.deletion.is_some(),
                }
            }
        };
        let messages = self.pods.scope().messages;
        let wanted = self.store.wanted();
        Snapshot { now: self.clock.now(), wanted, messages, about, since, stories, budget }
    }

    /// Creates the event, or brings the one that exists up to date. After a restart nobody knows which; the same content
    /// once more is no change.
    async fn write(&self, reflection: &Reflection) -> Result<(), ApplyError> {
        let namespace = &reflection.vpod.namespace;
        let path = paths::core("events", namespace, &reflection.name);
        if reflection.known {
            match merge_patch(&self.clusters.computing, &path, &occurrence(reflection)).await {
                Err(ApplyError::NotFound { .. }) => {}
                answer => return answer.map(drop),
            }
        }
        let event = whole(reflection, &self.component);
        match create_json(&self.clusters.computing, &paths::events(namespace), &event).await {
            Err(ApplyError::AlreadyExists { .. }) => {
                merge_patch(&self.clusters.computing, &path, &occurrence(reflection)).await.map(drop)
            }
            answer => answer.map(drop),
        }
    }
}

/// The part of an event that changes.
fn occurrence(reflection: &Reflection) -> Value {
    json!({
        "message": reflection.message,
        "count": reflection.count,
        "firstTimestamp": rfc3339(reflection.first),
        "lastTimestamp": rfc3339(reflection.last),
    })
}

fn whole(reflection: &Reflection, component: &str) -> Value {
    let Reflection { name, vpod, uid, severity, reason, field_path, component: said_by, host, .. } =
        reflection;
    let mut event = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": &*vpod.namespace},
        "involvedObject": {
            "apiVersion": "v1", "kind": "Pod", "name": &*vpod.name, "namespace": &*vpod.namespace, "uid": uid,
        },
        "type": severity,
        "reason": reason,
        "source": {"component": said_by},
        "reportingComponent": component,
        "reportingInstance": component,
    });
    if !field_path.is_empty() {
        event["involvedObject"]["fieldPath"] = field_path.as_str().into();
    }
    if !host.is_empty() {
        event["source"]["host"] = host.as_str().into();
    }
    if let (Some(event), Value::Object(changing)) = (event.as_object_mut(), occurrence(reflection)) {
        event.extend(changing);
    }
    event
}
