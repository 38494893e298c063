//! What the queue of objects does with one key: keep the copy while pods use it, release it when nobody has for a while.
//!
//! Called for every event of either side and when the references of pods change. A copy whose place is taken by somebody
//! else, or that the worker cluster refuses, is tried again with a growing delay, since nothing tells when that ends, and
//! its users are told.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use jiff::SignedDuration;

use super::{
    apply::{Clusters, Settled},
    index::{ObjectStore, Refused, Usage},
    kind::ObjectRef,
    kinds::Weight,
    plan::{Purpose, Verdict},
    refusal::is_of_worker,
};
use crate::pods::FAILED_UPDATE;
use kubeocean_runtime::{
    error::ApplyError,
    events::{Event, EventRecorder, Regarding, Severity},
    health::Health,
    queue::Outcome,
};

/// How soon an object is looked at again that may be needed by another one that was not read yet.
const UNREAD: Duration = Duration::from_secs(10);
/// Most pods that are told of one copy that cannot be kept.
const TOLD: usize = 20;

/// What the object tasks of a connected worker share.
#[derive(Debug)]
pub struct ObjectSync {
    /// Both clusters.
    pub clusters: Arc<Clusters>,
    /// The objects.
    pub store: Arc<ObjectStore>,
    /// Events in the computing cluster.
    pub events: EventRecorder,
    /// Is told that the loops come by.
    pub health: Arc<Health>,
    /// How long an object that no pod uses keeps its copy.
    pub idle: IdleTimes,
}

/// How long unused objects keep their copies; `None` is for ever (TD section 12).
#[derive(Debug, Clone, Copy, Default)]
pub struct IdleTimes {
    /// ConfigMaps and Secrets.
    pub objects: Option<Duration>,
    /// PersistentVolumeClaims and PersistentVolumes.
    pub volumes: Option<Duration>,
}

impl IdleTimes {
    fn of(&self, object: &ObjectRef) -> Option<Duration> {
        match object.kind.mapped().weight() {
            Weight::Object => self.objects,
            Weight::Volume => self.volumes,
        }
    }
}

impl ObjectSync {
    /// One look at one object.
    async fn reconcile(&self, object: &ObjectRef) -> Outcome {
        let store = &self.store;
        if let Some(refused) = store.take_refused_growth(object) {
            self.tell_growth_refused(object, &refused);
        }
        let usage = if store.is_releasing_all() { Usage::Unused } else { store.usage(object) };
        let purpose = match usage {
            Usage::Used => {
                store.is_used(object);
                Purpose::Keep
            }
            Usage::Unknown => return Outcome::After(UNREAD),
            Usage::Unused => {
                store.not_missing(object);
                if !store.is_known(object) {
                    store.forget_if_empty(object);
                    return Outcome::Done;
                }
                if !store.is_releasing_all()
                    && store.is_intact(object)
                    && let Some(wait) = self.rest_of_idle_time(object)
                {
                    return wait;
                }
                Purpose::Release
            }
        };
        match store.converge(&self.clusters, object, purpose).await {
            Ok(Settled { verdict: Verdict::Foreign { owner }, object }) => {
                tracing::warn!(%object, owner, "somebody else has the name of the copy");
                self.tell_taken(&object);
                Outcome::Retry
            }
            Ok(settled) => {
                let waits = matches!(settled.verdict, Verdict::Missing | Verdict::Unbound);
                if waits && usage == Usage::Used {
                    store.is_missing(&settled.object, None);
                }
                store.forget_if_empty(object);
                Outcome::Done
            }
            Err(error) => {
                if error.is_refusal() && usage == Usage::Used && is_of_worker(&error) {
                    self.tell_refused(object, &error);
                } else {
                    tracing::debug!(%object, error = error.chain(), "object not converged");
                }
                error.outcome()
            }
        }
    }

    /// How to wait until an unused object may go; `None` when it may.
    fn rest_of_idle_time(&self, object: &ObjectRef) -> Option<Outcome> {
        let Some(idle) = self.idle.of(object) else { return Some(Outcome::Done) };
        let now = self.store.clock.now();
        let unused = now.duration_since(self.store.idle_since(object, now));
        let rest = SignedDuration::try_from(idle).unwrap_or(SignedDuration::MAX) - unused;
        Duration::try_from(rest).ok().filter(|rest| !rest.is_zero()).map(Outcome::After)
    }

    /// The size of a claim in the worker cluster is for those who run that to permit.
    fn tell_growth_refused(&self, object: &ObjectRef, refused: &Refused) {
        self.events.publish(Event {
            regarding: Regarding::claim(&object.key.namespace, &object.key.name, &refused.uid),
            severity: Severity::Warning,
            reason: "VolumeNotGrown",
            message: format!(
                "pods on leased nodes go on with the size they have: the worker cluster did not accept the new one: {}; \
                 ask whoever runs it for a storage class of this name that permits expansion",
                refused.reason
            ),
        });
    }

    /// Whose object is in the way, is for those who run the worker cluster.
    fn tell_taken(&self, object: &ObjectRef) {
        let why = "the name of its copy is taken in the worker cluster; the object must be removed there";
        self.tell_users(object, "NameConflict", why);
    }

    /// The words of the worker cluster are for those who run it.
    fn tell_refused(&self, object: &ObjectRef, error: &ApplyError) {
        tracing::info!(%object, error = error.chain(), "the worker cluster refuses a copy, trying again");
        let why = format!(
            "the worker cluster does not accept them: {}; ask whoever runs it, the Syncer's log has the words of its API \
             server",
            error.reason()
        );
        self.tell_users(object, FAILED_UPDATE, &why);
    }

    /// Who has no copy yet is told when none can be made.
    fn tell_users(&self, object: &ObjectRef, reason: &'static str, why: &str) {
        let (kind, key) = (object.kind, &object.key);
        for pod in self.store.users(object, TOLD).into_iter().filter(|pod| self.store.pods.has_copy(pod)) {
            let elsewhere = !key.namespace.is_empty() && key.namespace != pod.key.namespace;
            let name = if elsewhere { key.to_string() } else { key.name.to_string() };
            self.events.publish(Event {
                regarding: Regarding::pod(&pod.key.namespace, &pod.key.name, &pod.uid),
                severity: Severity::Warning,
                reason,
                message: format!("changes of {kind} {name:?} do not reach the pod: {why}"),
            });
        }
    }
}

/// What the queue calls; see [`super::run_objects`].
pub(super) fn reconcile_with(sync: Arc<ObjectSync>) -> impl Fn(ObjectRef) -> BoxFuture<'static, Outcome> {
    move |object| {
        let sync = Arc::clone(&sync);
        Box::pin(async move { sync.reconcile(&object).await })
    }
}
