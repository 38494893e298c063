//! Performs pod plans: one request per action, answers go back into the index, and the plan is made anew until nothing
//! is left to do.
//!
//! Called by the queue, one task per vpod key at a time. Makes no decision about pods, except what an error means.
//! From creation to deletion a pod without dependencies costs five requests: mapping (whose answer is the whole vpod),
//! creation, one status, deletion of the ppod, deletion of the vpod.

mod confirm;
mod debug_containers;
mod patches;
mod report;

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use kubeocean_api::{keys::annotation, name::ObjectKey};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

pub(super) use self::confirm::{managed_ppod, read_pod};
use self::{
    confirm::is_managed,
    patches::{mapping_patch, preconditions, set_metadata},
    report::no_priority_class,
};
use super::{
    action::{PodAction, PodPlan, Wake},
    admission::Asked,
    create::{CreateError, rejection},
    deletion,
    features::Features,
    in_place::Mutable,
    index::PodStore,
    metadata::MetadataChange,
    ownership::Owned,
    plan::plan_pod,
    priority_class::{self, PriorityClasses},
    snapshot::{PodSnapshot, VnodeState},
    view::{Deletion, Ppod, Vpod},
    vpod_identity::VpodIdentity,
    workload::Workloads,
};
use crate::{
    config::PodEvents,
    metrics::SyncerMetrics,
    objects::{Clusters, ObjectStore},
    placement::desk::PlaceDesk,
};
use kubeocean_runtime::{
    clock::Clock,
    error::ApplyError,
    events::{EventRecorder, Severity},
    health::Health,
    queue::Outcome,
    request::{self, DeleteOptions, merge_patch_as, paths},
};

/// Plans made for one key before the queue takes over. A new pod needs three: create, report, converged.
const ROUNDS: usize = 6;
/// Grace period Kubernetes gives a pod that does not ask for one.
const DEFAULT_GRACE_SECONDS: i64 = 30;

/// Answers what a vpod's node is (TD-402).
pub trait VnodeDirectory: Send + Sync {
    /// The state of a vnode.
    fn vnode(&self, name: &str) -> VnodeState;
    /// Whether the worker node behind a vnode is known to be gone or not ready.
    fn node_is_dead(&self, vnode: &str) -> bool;
}

/// What the pod tasks of a connected worker share.
pub struct PodSync {
    /// Both clusters.
    pub clusters: Arc<Clusters>,
    /// The pods.
    pub store: Arc<PodStore>,
    /// Copies of what pods refer to, their tokens, and the addresses of the computing cluster.
    pub objects: Arc<ObjectStore>,
    /// The vnodes.
    pub vnodes: Arc<dyn VnodeDirectory>,
    /// Policies that have a say about where pods go; `None` asks nobody.
    pub placement: Option<Arc<PlaceDesk>>,
    /// Workloads by owner.
    pub workloads: Arc<Workloads>,
    /// The worker's PriorityClasses.
    pub priority_classes: PriorityClasses,
    /// What the worker's role allows.
    pub features: Arc<Features>,
    /// Events in the computing cluster.
    pub events: EventRecorder,
    /// Which of them.
    pub pod_events: PodEvents,
    /// Counters.
    pub metrics: Arc<SyncerMetrics>,
    /// Is told that the loop comes by.
    pub health: Arc<Health>,
    /// The time.
    pub clock: Arc<dyn Clock>,
}

/// How an action ended.
pub(super) enum Step {
    /// On to the next one.
    Next,
    /// On to the next one, but come back: this one was refused and others do not depend on it.
    Refused,
    /// What the plan was made from has changed.
    Replan,
    /// Enough for now.
    Stop(Outcome),
}

impl PodSync {
    /// Brings one vpod and its ppod to where they belong.
    pub async fn reconcile(&self, key: ObjectKey) -> Outcome {
        let mut asked = Asked::default();
        for _ in 0..ROUNDS {
            let now = self.clock.now();
            let mut snapshot = self.store.snapshot(&key, now, |vnode| self.vnodes.vnode(vnode));
            let node = snapshot.ppod.as_ref().filter(|ppod| deletion::is_overdue(ppod, now));
            let node = node.and_then(|ppod| ppod.annotation(annotation::VIRTUAL_NODE_NAME));
            snapshot.node_is_dead = node.is_some_and(|vnode| self.vnodes.node_is_dead(vnode));
            snapshot.admission = self.admission(&snapshot, &mut asked).await;
            let plan = plan_pod(&snapshot);
            if let Some(vpod) = snapshot.vpod.as_ref().filter(|_| plan.mirrored) {
                self.mark_mirrored(&snapshot, vpod.status.hashes.total());
            }
            if plan.actions.is_empty() {
                return outcome(plan.wake, now);
            }
            let wake = plan.wake;
            let end = match self.apply(&snapshot, plan).await {
                Ok(None) => continue,
                Ok(Some(outcome)) => outcome,
                Err(error) => error.log(&key.to_string(), "bring the pod to where it belongs"),
            };
            // What was refused and waits longer each time holds up nothing that is due before.
            if let Wake::At(at) = wake {
                let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
                self.store.queue().add_after(key, wait.max(Duration::from_secs(1)));
            }
            return end;
        }
        tracing::warn!(vpod = %key, rounds = ROUNDS, "pod does not settle");
        Outcome::Retry
    }

    /// Performs the actions in order; `None` asks for a new plan. What goes down to the ppod may fail for long: what comes
    /// up from it does not wait for that.
    async fn apply(&self, snapshot: &PodSnapshot, plan: PodPlan) -> Result<Option<Outcome>, ApplyError> {
        let mut whole_vpod = None;
        let mut refused = false;
        let mut failed = None;
        for action in plan.actions {
            tracing::debug!(vpod = %snapshot.key, %action, "pod");
            let alone = action.stands_alone();
            match self.step(snapshot, action, &mut whole_vpod).await {
                Ok(Step::Next) => {}
                Ok(Step::Refused) => refused = true,
                Ok(Step::Replan) => return Ok(None),
                Ok(Step::Stop(outcome)) => return Ok(Some(outcome)),
                Err(error) if alone => failed = failed.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        match failed {
            Some(error) => Err(error),
            None => Ok(refused.then_some(Outcome::Retry)),
        }
    }

    async fn step(
        &self,
        snapshot: &PodSnapshot,
        action: PodAction,
        whole_vpod: &mut Option<Value>,
    ) -> Result<Step, ApplyError> {
        match action {
            PodAction::ConfirmVpodGone => self.confirm_vpod_gone(&snapshot.key).await,
            PodAction::ConfirmPpodGone => self.confirm_ppod_gone(snapshot).await,
            PodAction::ReadPpod { ppod } => self.read_ppod(snapshot, &ppod).await,
            PodAction::ConfirmUnscheduled { ppod } => self.confirm_unscheduled(&ppod).await,
            PodAction::WriteMapping { uid, resource_version, ppod, clear_uid } => {
                let patch = mapping_patch(&uid, &resource_version, &ppod, clear_uid);
                let vpod: Value = match self.patch_status(&snapshot.key, &uid, &patch).await {
                    Ok(Some(vpod)) => vpod,
                    Ok(None) => return Ok(Step::Replan),
                    // Its annotations leave no room for ours, or admission is against them.
                    Err(error) if error.is_refusal() => {
                        self.refuse(snapshot, &rejection("the note on the pod of where its copy is", &error))
                            .await?;
                        return Ok(Step::Stop(Outcome::Retry));
                    }
                    Err(error) => return Err(error),
                };
                if let Some(vpod) = Vpod::from_json(&vpod) {
                    self.store.feed_vpod(vpod);
                }
                *whole_vpod = Some(vpod);
                Ok(Step::Next)
            }
            PodAction::CreatePpod { uid, worker_node } => {
                self.create(snapshot, &uid, &worker_node, whole_vpod.take()).await
            }
            PodAction::PatchPpod { ppod, change, active_deadline_seconds } => {
                self.patch_ppod(&ppod, &change, active_deadline_seconds).await
            }
            PodAction::AddEphemeralContainers { ppod, names } => {
                let uid = snapshot.vpod.as_ref().map(|vpod| &*vpod.uid).unwrap_or_default();
                self.add_debug_containers(&snapshot.key, uid, &ppod, &names).await
            }
            PodAction::FollowSpec { uid, ppod, expected } => {
                let Some(expected) = Mutable::decode(&expected) else { return Ok(Step::Next) };
                self.follow_spec(&snapshot.key, &uid, &ppod, &expected).await
            }
            PodAction::PatchVpod { uid, resource_version, status, change } => {
                self.report(snapshot, &uid, &resource_version, status, &change).await
            }
            PodAction::FailVpod { uid, message, event } => {
                self.fail(&snapshot.key, &uid, &message, event).await
            }
            PodAction::DeletePpod { ppod, grace_seconds, why } => {
                let step = self.delete_ppod(&ppod, grace_seconds).await?;
                tracing::info!(vpod = %snapshot.key, ppod = %ppod.key(), ?why, "ppod deleted");
                Ok(step)
            }
            PodAction::ReleaseTokens { uid } => {
                let owner = VpodIdentity { key: snapshot.key.clone(), uid: uid.into() };
                self.objects.tokens.release(&self.clusters, &owner).await?;
                Ok(Step::Next)
            }
            PodAction::FinishVpod { uid } => self.finish(snapshot, &uid).await,
            PodAction::TellAdmission(denial) => self.tell_admission(snapshot, denial.as_ref()).await,
            PodAction::Refuse(refusal) => {
                self.refuse(snapshot, &refusal).await?;
                Ok(Step::Stop(Outcome::Retry))
            }
        }
    }

    async fn create(
        &self,
        snapshot: &PodSnapshot,
        uid: &str,
        worker_node: &str,
        whole_vpod: Option<Value>,
    ) -> Result<Step, ApplyError> {
        let key = &snapshot.key;
        let whole_vpod = match whole_vpod {
            Some(vpod) => Some(vpod),
            None => read_pod(&self.clusters.computing, key).await?,
        };
        let Some(whole_vpod) = whole_vpod else {
            self.store.vpod_gone(key, uid);
            return Ok(Step::Replan);
        };
        let Some(vpod) = Vpod::from_json(&whole_vpod) else { return Ok(Step::Stop(Outcome::Done)) };
        let stale = *vpod.uid != *uid || vpod.deletion.is_some();
        self.store.saw_vpod(vpod.clone());
        if stale {
            return Ok(Step::Replan);
        }
        self.metrics.create_pod.inc();
        match self.create_ppod(&snapshot.scope, &vpod, &whole_vpod, worker_node).await {
            Ok(ppod) => {
                self.metrics.pod_created.inc();
                let waited = self.store.bound_for(key, self.clock.now());
                self.metrics.pod_creation.observe(waited.unwrap_or_default().as_secs_f64());
                tracing::info!(vpod = %key, ppod = %ppod.key, worker_node, "ppod created");
                if self.pod_events == PodEvents::All {
                    let message = "the pod was created in the worker cluster".to_owned();
                    self.publish(key, uid, Severity::Normal, "PhysicalPodCreated", message);
                }
                self.store.feed_ppod(ppod);
                Ok(Step::Next)
            }
            Err(CreateError::Occupied(ppod)) => {
                self.store.saw_ppod(*ppod);
                Ok(Step::Replan)
            }
            Err(CreateError::Refused(refusal)) => {
                self.metrics.create_pod_errors.inc();
                self.refuse(snapshot, &refusal).await?;
                Ok(Step::Stop(Outcome::Retry))
            }
            Err(CreateError::NoPriorityClass) => {
                self.metrics.create_pod_errors.inc();
                self.refuse(snapshot, &no_priority_class(&snapshot.scope.priority_class_name)).await?;
                Ok(Step::Stop(Outcome::After(priority_class::LOOK_AGAIN)))
            }
            Err(CreateError::Apply(error)) => {
                self.metrics.create_pod_errors.inc();
                let message = format!("not created yet: {}; trying again", error.reason());
                self.publish(key, uid, Severity::Warning, "FailedCreatePod", message);
                Err(error)
            }
        }
    }

    async fn patch_ppod(
        &self,
        ppod: &Owned,
        change: &MetadataChange,
        active_deadline_seconds: Option<i64>,
    ) -> Result<Step, ApplyError> {
        let mut patch = json!({"metadata": preconditions(ppod.uid(), ppod.resource_version())});
        set_metadata(&mut patch, change);
        if let Some(seconds) = active_deadline_seconds {
            patch["spec"] = json!({"activeDeadlineSeconds": seconds});
        }
        let key = ppod.key();
        match merge_patch_as(&self.clusters.worker, &paths::pod(&key.namespace, &key.name), &patch).await {
            Ok(answer) => {
                let ppod = Ppod::parse(answer);
                if is_managed(&ppod) {
                    self.store.feed_ppod(ppod);
                }
                Ok(Step::Next)
            }
            Err(ApplyError::NotFound { .. }) => {
                self.store.ppod_gone(key, ppod.uid());
                Ok(Step::Replan)
            }
            // The status must go up whether or not metadata can go down.
            Err(error @ (ApplyError::Rejected { .. } | ApplyError::Forbidden { .. })) => {
                tracing::warn!(ppod = %key, error = error.chain(), "ppod does not follow its vpod");
                Ok(Step::Refused)
            }
            Err(error) => Err(error),
        }
    }

    /// Writes to a vpod that is as it was known. The hash of its status now, or `None`: it is gone.
    async fn patch_vpod(&self, key: &ObjectKey, uid: &str, patch: &Value) -> Result<Option<u64>, ApplyError> {
        let Some(answer) = self.patch_status(key, uid, patch).await? else { return Ok(None) };
        let Some(vpod) = Vpod::parse(answer) else { return Ok(None) };
        let status = vpod.status.hashes.total();
        self.store.feed_vpod(vpod);
        Ok(Some(status))
    }

    /// Writes to a vpod through its status, where metadata is accepted too (TD-504). `None`: it is gone.
    async fn patch_status<T: DeserializeOwned>(
        &self,
        key: &ObjectKey,
        uid: &str,
        patch: &Value,
    ) -> Result<Option<T>, ApplyError> {
        let status = paths::pod_status(&key.namespace, &key.name);
        match merge_patch_as(&self.clusters.computing, &status, patch).await {
            Ok(answer) => Ok(Some(answer)),
            Err(ApplyError::NotFound { .. }) => {
                self.store.vpod_gone(key, uid);
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn delete_ppod(&self, ppod: &Owned, grace_seconds: Option<i64>) -> Result<Step, ApplyError> {
        let key = ppod.key();
        let options = DeleteOptions { uid: Some(ppod.uid().to_owned()), grace_seconds };
        let path = paths::pod(&key.namespace, &key.name);
        match request::delete_json(&self.clusters.worker, &path, &options).await? {
            request::Deletion::Gone => self.store.ppod_gone(key, ppod.uid()),
            request::Deletion::Started => {
                let deadline = after(self.clock.now(), grace_seconds.unwrap_or(DEFAULT_GRACE_SECONDS));
                self.store.ppod_deleting(key, ppod.uid(), Deletion { deadline, grace_seconds });
            }
        }
        Ok(Step::Next)
    }

    async fn finish(&self, snapshot: &PodSnapshot, uid: &str) -> Result<Step, ApplyError> {
        let key = &snapshot.key;
        let options = DeleteOptions { uid: Some(uid.to_owned()), grace_seconds: Some(0) };
        request::delete_json(&self.clusters.computing, &paths::pod(&key.namespace, &key.name), &options)
            .await?;
        if snapshot.vpod.as_ref().is_some_and(|vpod| vpod.has_finalizers) {
            self.store.vpod_finished(key, uid, self.clock.now());
        } else {
            self.store.vpod_gone(key, uid);
        }
        Ok(Step::Next)
    }
}

impl fmt::Debug for PodSync {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PodSync").field("store", &self.store).finish_non_exhaustive()
    }
}

fn outcome(wake: Wake, now: Timestamp) -> Outcome {
    match wake {
        Wake::OnEvent => Outcome::Done,
        Wake::Backoff => Outcome::Retry,
        Wake::At(at) => Outcome::After(at.duration_since(now).try_into().unwrap_or_default()),
    }
}

fn after(now: Timestamp, seconds: i64) -> Timestamp {
    now.saturating_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MAX)
}
