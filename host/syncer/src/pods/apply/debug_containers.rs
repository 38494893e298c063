//! Containers that `kubectl debug` added to a vpod are started in its ppod.

use kubeocean_api::name::ObjectKey;
use kubeocean_runtime::{error::ApplyError, events::Severity, request};
use serde_json::Value;

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

/// What became of debug containers.
enum Added {
    /// They are there, or their ppod is not.
    All,
    /// What was planned from has changed.
    Replan,
    /// None was added, for this reason.
    Refused(String),
    /// Nobody gives us the right.
    NotPermitted,
}

impl PodSync {
    /// All at once, or else one by one: a container that cannot be started holds up no other.
    pub(super) async fn add_debug_containers(
        &self,
        key: &ObjectKey,
        uid: &str,
        ppod: &Owned,
        names: &[Box<str>],
    ) -> Result<Step, ApplyError> {
        if self.features.is_off(Feature::DebugContainers) {
            return Ok(self.no_debug_containers(key));
        }
        let Some(whole) = read_pod(&self.clusters.computing, key).await? else {
            self.store.vpod_gone(key, uid);
            return Ok(Step::Replan);
        };
        let Some(vpod) = Vpod::from_json(&whole) else { return Ok(Step::Refused) };
        // Another pod of this name has nothing to do with this copy.
        if *vpod.uid != *uid {
            self.store.saw_vpod(vpod);
            return Ok(Step::Replan);
        }
        if names.len() > 1 {
            match self.try_debug_containers(ppod, &vpod, &whole, names).await? {
                Added::All => return Ok(Step::Next),
                Added::Replan => return Ok(Step::Replan),
                Added::Refused(_) => {}
                Added::NotPermitted => return Ok(self.no_debug_containers(key)),
            }
        }
        let mut refused = false;
        for name in names {
            match self.try_debug_containers(ppod, &vpod, &whole, std::slice::from_ref(name)).await? {
                Added::All => {}
                Added::Replan => return Ok(Step::Replan),
                Added::Refused(why) => {
                    refused = true;
                    let message = format!("the debug container {name:?} cannot be started: {why}");
                    self.publish(key, &vpod.uid, Severity::Warning, "FailedCreatePod", cut(&message));
                }
                Added::NotPermitted => return Ok(self.no_debug_containers(key)),
            }
        }
        Ok(if refused { Step::Refused } else { Step::Next })
    }

    async fn try_debug_containers(
        &self,
        ppod: &Owned,
        vpod: &Vpod,
        whole: &Value,
        names: &[Box<str>],
    ) -> Result<Added, ApplyError> {
        let containers = match self.debug_containers(vpod, whole, names).await {
            Ok(containers) => containers,
            Err(CreateError::Apply(error)) => return Err(error),
            Err(CreateError::Refused(refusal)) => return Ok(Added::Refused(refusal.message)),
            Err(CreateError::Occupied(_) | CreateError::NoPriorityClass) => return Ok(Added::Replan),
        };
        match self.append_debug_containers(ppod, containers).await {
            Ok(ppod) => {
                if let Some(ppod) = ppod {
                    self.store.saw_ppod(ppod);
                }
                Ok(Added::All)
            }
            Err(ApplyError::Forbidden { .. }) if !self.may_add_debug_containers().await? => {
                self.features.turn_off(Feature::DebugContainers);
                Ok(Added::NotPermitted)
            }
            Err(error @ (ApplyError::Rejected { .. } | ApplyError::Forbidden { .. })) => {
                tracing::warn!(vpod = %vpod.key, error = error.chain(), "debug containers not started");
                Ok(Added::Refused(rejection("it", &error).message))
            }
            Err(error) => Err(error),
        }
    }

    fn no_debug_containers(&self, key: &ObjectKey) -> Step {
        self.tell_no_debug_containers(key);
        Step::Refused
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
