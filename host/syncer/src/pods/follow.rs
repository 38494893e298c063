//! Brings changes of a running vpod's spec down to its ppod (TD-808): resources through the subresource `resize`, then
//! images and tolerations together with the note of what was brought down. Part of the apply stage.
//!
//! Crash-safe by order: the note is written last, and everything before it is the same when done twice.

use kubeocean_api::{keys::annotation, name::ObjectKey};
use kubeocean_runtime::{
    error::ApplyError,
    events::Severity,
    request::{Right, is_permitted, paths, strategic_patch},
};
use serde_json::{Value, json};

use super::{
    apply::{PodSync, Step, managed_ppod, read_pod},
    create::rejection,
    features::Feature,
    in_place::{Mutable, resize_patch, spec_patch},
    ownership::Owned,
    view::Vpod,
};

/// Event reason of a change that does not reach the ppod, of the pod itself or of what it uses.
pub(crate) const FAILED_UPDATE: &str = "FailedUpdatePod";

impl PodSync {
    /// One look at what changed. `expected` is what was brought down last.
    pub(super) async fn follow_spec(
        &self,
        key: &ObjectKey,
        uid: &str,
        ppod: &Owned,
        expected: &Mutable,
    ) -> Result<Step, ApplyError> {
        let Some(vpod) = read_pod(&self.clusters.computing, key).await? else {
            self.store.vpod_gone(key, uid);
            return Ok(Step::Replan);
        };
        if vpod["metadata"]["uid"] != *uid {
            if let Some(vpod) = Vpod::from_json(&vpod) {
                self.store.saw_vpod(vpod);
            }
            return Ok(Step::Replan);
        }
        let place = ppod.key();
        let live = read_pod(&self.clusters.worker, place).await?;
        let Some(live) = live.filter(|live| live["metadata"]["uid"] == *ppod.uid()) else {
            self.store.ppod_gone(place, ppod.uid());
            return Ok(Step::Replan);
        };
        let wanted = Mutable::of(&vpod["spec"]);
        let mut noted = expected.clone();
        let mut version = live["metadata"]["resourceVersion"].clone();
        let mut refused = false;
        if wanted.resources != expected.resources {
            match self.resize(key, uid, ppod, expected, &vpod, &live).await? {
                Resized::Gone => return Ok(Step::Replan),
                Resized::Done(now) => {
                    version = now;
                    noted.take_resources(&wanted);
                }
                Resized::Refused => refused = true,
            }
        }
        let mut patch = json!({"metadata": {"uid": ppod.uid(), "resourceVersion": version}});
        if wanted.spec != expected.spec {
            patch["spec"] = spec_patch(&vpod["spec"], &live["spec"], expected).into();
            noted.take_spec(&wanted);
        }
        if noted != *expected {
            patch["metadata"]["annotations"] = json!({annotation::EXPECTED_SPEC: noted.encode()});
            let path = paths::pod(&place.namespace, &place.name);
            match strategic_patch(&self.clusters.worker, &path, &patch).await {
                Ok(answer) => {
                    tracing::info!(vpod = %key, ppod = %place, "ppod follows the spec of its vpod");
                    self.saw(&answer);
                }
                Err(error @ (ApplyError::Rejected { .. } | ApplyError::Forbidden { .. })) => {
                    self.tell_refused(key, uid, "the change of the pod", &error);
                    refused = true;
                }
                Err(error) => return Err(error),
            }
        }
        // The planner compares with the view, which may be older than what was read.
        if let Some(vpod) = Vpod::from_json(&vpod) {
            self.store.saw_vpod(vpod);
        }
        Ok(if refused { Step::Refused } else { Step::Next })
    }

    async fn resize(
        &self,
        key: &ObjectKey,
        uid: &str,
        ppod: &Owned,
        expected: &Mutable,
        vpod: &Value,
        live: &Value,
    ) -> Result<Resized, ApplyError> {
        let change = resize_patch(&vpod["spec"], &live["spec"], expected);
        let version = &live["metadata"]["resourceVersion"];
        if change.is_empty() {
            return Ok(Resized::Done(version.clone()));
        }
        if self.features.is_off(Feature::Resize) {
            self.tell_no_resize(key, uid);
            return Ok(Resized::Refused);
        }
        let place = ppod.key();
        let patch = json!({"metadata": {"uid": ppod.uid(), "resourceVersion": version}, "spec": change});
        let path = paths::pod_resize(&place.namespace, &place.name);
        match strategic_patch(&self.clusters.worker, &path, &patch).await {
            Ok(answer) => {
                self.saw(&answer);
                Ok(Resized::Done(answer["metadata"]["resourceVersion"].clone()))
            }
            // The pod is gone, or the API server is one of before 1.33, which has no such subresource.
            Err(ApplyError::NotFound { .. }) => {
                let live = read_pod(&self.clusters.worker, place).await?;
                if live.is_none_or(|live| live["metadata"]["uid"] != *ppod.uid()) {
                    self.store.ppod_gone(place, ppod.uid());
                    return Ok(Resized::Gone);
                }
                self.features.turn_off(Feature::Resize);
                self.tell_no_resize(key, uid);
                Ok(Resized::Refused)
            }
            Err(ApplyError::Forbidden { .. }) if !self.may_resize().await? => {
                self.features.turn_off(Feature::Resize);
                self.tell_no_resize(key, uid);
                Ok(Resized::Refused)
            }
            Err(error @ (ApplyError::Rejected { .. } | ApplyError::Forbidden { .. })) => {
                self.tell_refused(key, uid, "the change of resources", &error);
                Ok(Resized::Refused)
            }
            Err(error) => Err(error),
        }
    }

    /// A refusal may also be admission's, of this pod alone.
    async fn may_resize(&self) -> Result<bool, ApplyError> {
        let namespace = &self.clusters.scope.mount_namespace;
        let right = Right { verb: "patch", resource: "pods", subresource: "resize", namespace };
        is_permitted(&self.clusters.worker, &right).await
    }

    fn saw(&self, answer: &Value) {
        if let Some(ppod) = managed_ppod(answer) {
            self.store.saw_ppod(ppod);
        }
    }

    fn tell_no_resize(&self, key: &ObjectKey, uid: &str) {
        self.publish(key, uid, Severity::Warning, "FeatureDisabled", Feature::Resize.to_string());
    }

    fn tell_refused(&self, key: &ObjectKey, uid: &str, what: &str, error: &ApplyError) {
        tracing::warn!(vpod = %key, error = error.chain(), "ppod does not follow the spec of its vpod");
        self.publish(key, uid, Severity::Warning, FAILED_UPDATE, rejection(what, error).message);
    }
}

/// What became of a change of resources.
enum Resized {
    /// Accepted, or there already; the ppod's version now.
    Done(Value),
    /// Not now.
    Refused,
    /// There is no such ppod any more.
    Gone,
}
