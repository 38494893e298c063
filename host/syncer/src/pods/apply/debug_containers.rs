//! Containers that `kubectl debug` added to a vpod are started in its ppod.

use kubeocean_api::name::ObjectKey;
use kubeocean_runtime::{error::ApplyError, events::Severity, request};

use super::{
    super::{
        create::{CreateError, rejection},
        features::Feature,
        ownership::Owned,
        snapshot::VnodeState,
        view::Vpod,
        wording::cut,
    },
    PodSync, Step, read_pod,
};

impl PodSync {
    pub(super) async fn add_debug_containers(
        &self,
        key: &ObjectKey,
        ppod: &Owned,
        names: &[Box<str>],
    ) -> Result<Step, ApplyError> {
        if self.features.is_off(Feature::DebugContainers) {
            self.tell_no_debug_containers(key);
            return Ok(Step::Refused);
        }
        let whole = read_pod(&self.clusters.computing, key).await?;
        let Some((whole, vpod)) = whole.and_then(|whole| Vpod::from_json(&whole).map(|vpod| (whole, vpod)))
        else {
            return Ok(Step::Next);
        };
        let added = match self.debug_containers(&vpod, &whole, names).await {
            Ok(containers) => self.append_debug_containers(ppod, containers).await,
            Err(CreateError::Apply(error)) => Err(error),
            Err(CreateError::Refused(refusal)) => {
                let message = format!("debug containers cannot be started: {}", refusal.message);
                self.publish(key, &vpod.uid, Severity::Warning, "FailedCreatePod", cut(&message));
                return Ok(Step::Refused);
            }
            Err(CreateError::Occupied(_) | CreateError::NoPriorityClass) => return Ok(Step::Replan),
        };
        match added {
            Ok(Some(ppod)) => {
                self.store.feed_ppod(ppod);
                Ok(Step::Next)
            }
            Ok(None) => Ok(Step::Next),
            Err(ApplyError::Forbidden { .. }) if !self.may_add_debug_containers().await? => {
                self.features.turn_off(Feature::DebugContainers);
                self.tell_no_debug_containers(key);
                Ok(Step::Refused)
            }
            Err(error @ (ApplyError::Rejected { .. } | ApplyError::Forbidden { .. })) => {
                tracing::warn!(vpod = %key, error = error.chain(), "debug containers not started");
                let message = rejection("a debug container", &error).message;
                self.publish(key, &vpod.uid, Severity::Warning, "FailedCreatePod", message);
                Ok(Step::Refused)
            }
            Err(error) => Err(error),
        }
    }

    /// A refusal may also be admission's, of this pod alone.
    async fn may_add_debug_containers(&self) -> Result<bool, ApplyError> {
        let right = request::Right {
            verb: "patch",
            resource: "pods",
            subresource: "ephemeralcontainers",
            namespace: &self.clusters.scope.mount_namespace,
        };
        request::is_permitted(&self.clusters.worker, &right).await
    }

    /// Once per pod: the same news is not told again while it is fresh.
    fn tell_no_debug_containers(&self, key: &ObjectKey) {
        let Some(vpod) = self.store.snapshot(key, self.clock.now(), |_| VnodeState::Missing).vpod else {
            return;
        };
        let message = Feature::DebugContainers.to_string();
        self.publish(key, &vpod.uid, Severity::Warning, "FeatureDisabled", message);
    }
}
