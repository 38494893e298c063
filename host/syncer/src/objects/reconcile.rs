//! What the queue of objects does with one key: keep the copy while pods use it, release it when nobody has for a while.
//!
//! Called for every event of either side and when the references of pods change. A copy whose place is taken by somebody
//! else is tried again with a growing delay, since nothing tells when that object goes, and its users are told.

use std::{sync::Arc, time::Duration};

use futures::future::BoxFuture;
use jiff::SignedDuration;

use super::{
    apply::Clusters,
    index::ObjectStore,
    kind::ObjectRef,
    plan::{Purpose, Verdict},
};
use kubeocean_runtime::{
    events::{Event, EventRecorder, Regarding, Severity},
    health::Health,
    queue::Outcome,
};

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
    /// How long an object that no pod refers to keeps its copy; `None` is for ever.
    pub idle: Option<Duration>,
}

impl ObjectSync {
    /// One look at one object.
    async fn reconcile(&self, object: &ObjectRef) -> Outcome {
        let store = &self.store;
        let used = !store.is_releasing_all() && store.pods.uses(object);
        let purpose = if used {
            store.is_used(object);
            Purpose::Keep
        } else {
            store.not_missing(object);
            if !store.is_known(object) {
                store.forget_if_empty(object);
                return Outcome::Done;
            }
            if !store.is_releasing_all() && store.is_intact(object) {
                let Some(idle) = self.idle else { return Outcome::Done };
                let now = store.clock.now();
                let unused = now.duration_since(store.idle_since(object, now));
                let rest = SignedDuration::try_from(idle).unwrap_or(SignedDuration::MAX) - unused;
                if let Ok(rest) = Duration::try_from(rest)
                    && !rest.is_zero()
                {
                    return Outcome::After(rest);
                }
            }
            Purpose::Release
        };
        match store.converge(&self.clusters, object, purpose).await {
            Ok(Verdict::Foreign { owner }) => {
                tracing::warn!(%object, owner, "somebody else has the name of the copy");
                self.tell_users(object);
                Outcome::Retry
            }
            Ok(verdict) => {
                if verdict == Verdict::Missing && used {
                    store.is_missing(object, None);
                }
                store.forget_if_empty(object);
                Outcome::Done
            }
            Err(error) => {
                tracing::debug!(%object, error = error.chain(), "object not converged");
                error.outcome()
            }
        }
    }

    /// Whose object is in the way, is for those who run the worker cluster.
    fn tell_users(&self, object: &ObjectRef) {
        for pod in self.store.pods.users(object, TOLD) {
            self.events.publish(Event {
                regarding: Regarding::pod(&pod.key.namespace, &pod.key.name, &pod.uid),
                severity: Severity::Warning,
                reason: "NameConflict",
                message: format!(
                    "changes of {} {:?} do not reach the pod: the name of its copy is taken in the worker cluster; the \
                     object must be removed there",
                    object.kind, object.key.name
                ),
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
