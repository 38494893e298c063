//! What a vpod's user is told: status, conditions and events.

use kubeocean_api::{
    keys::{annotation, condition_type},
    name::ObjectKey,
};
use kubeocean_runtime::{
    clock::rfc3339,
    error::ApplyError,
    events::{Event, Regarding, Severity},
};
use serde_json::{Value, json};

use super::{
    super::{
        action::{Refusal, RefusalReason},
        metadata::MetadataChange,
        snapshot::{PodSnapshot, VnodeState},
        status::{self, StatusFields},
        view::Vpod,
        wording::cut,
    },
    PodSync, Step,
    confirm::{read_pod, uid_of},
    patches::{preconditions, set_metadata},
};

impl PodSync {
    pub(super) async fn report(
        &self,
        snapshot: &PodSnapshot,
        uid: &str,
        resource_version: &str,
        status: StatusFields,
        change: &MetadataChange,
    ) -> Result<Step, ApplyError> {
        let now = self.clock.now();
        let mut patch = json!({"metadata": preconditions(uid, resource_version)});
        set_metadata(&mut patch, change);
        patch["metadata"]["annotations"][annotation::LAST_SYNC_TIME] = rfc3339(now).into();
        if !status.is_empty() {
            patch["status"] = Value::Object(status);
        }
        let (written, step) = match self.patch_vpod(&snapshot.key, uid, &patch).await {
            // Whatever is wrong with the metadata, users learn how their pod is.
            Err(refused) if refused.is_refusal() && !patch["status"].is_null() => {
                tracing::debug!(vpod = %snapshot.key, error = refused.chain(), "the pod is told without its metadata");
                patch["metadata"] = preconditions(uid, resource_version);
                (self.patch_vpod(&snapshot.key, uid, &patch).await?, Step::Refused)
            }
            written => (written?, Step::Next),
        };
        if let Some(written) = written {
            self.store.status_written(&snapshot.key, uid, now);
            self.mark_mirrored(snapshot, written);
        }
        Ok(step)
    }

    /// `status` is the hash of what the vpod shows with all that the ppod reported.
    pub(super) fn mark_mirrored(&self, snapshot: &PodSnapshot, status: u64) {
        if let (Some(vpod), Some(ppod)) = (&snapshot.vpod, &snapshot.ppod) {
            self.store.mirrored(&snapshot.key, &vpod.uid, status, ppod);
        }
    }

    pub(super) async fn fail(
        &self,
        key: &ObjectKey,
        uid: &str,
        message: &str,
        event: Option<&'static str>,
    ) -> Result<Step, ApplyError> {
        let live = read_pod(&self.clusters.computing, key).await?;
        let Some(live) = live.filter(|live| uid_of(live) == Some(uid)) else {
            self.store.vpod_gone(key, uid);
            return Ok(Step::Replan);
        };
        let fields = status::lost_fields(&live["status"], message, self.clock.now());
        if let Some(vpod) = Vpod::from_json(&live) {
            self.store.saw_vpod(vpod);
        }
        let Some(fields) = fields else { return Ok(Step::Next) };
        let resource_version = live["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        let patch = json!({"metadata": preconditions(uid, resource_version), "status": fields});
        if self.patch_vpod(key, uid, &patch).await?.is_some() {
            tracing::info!(vpod = %key, reason = event.unwrap_or(status::REASON_LOST), "vpod failed");
            if let Some(reason) = event {
                self.metrics.pod_created_failed.inc();
                self.publish(key, uid, Severity::Warning, reason, cut(message));
            }
        }
        Ok(Step::Next)
    }

    /// Condition and event of a pod that cannot be created (API-809). Written when it says something new.
    pub(super) async fn refuse(&self, snapshot: &PodSnapshot, refusal: &Refusal) -> Result<(), ApplyError> {
        let key = &snapshot.key;
        let present = self.store.snapshot(key, self.clock.now(), |_| VnodeState::Missing).vpod;
        let Some(vpod) = present else { return Ok(()) };
        self.store.refused(key);
        let message = cut(&refusal.message);
        let reason = refusal.reason.as_str();
        tracing::info!(vpod = %key, reason, message, particulars = refusal.particulars, "ppod not created");
        self.publish(key, &vpod.uid, Severity::Warning, "FailedCreatePod", message.clone());
        self.state(&vpod, condition_type::WORKER_POD_CREATED, "False", reason, &message).await
    }

    /// Writes a condition of a vpod when it says something new.
    pub(in crate::pods) async fn state(
        &self,
        vpod: &Vpod,
        kind: &str,
        status: &str,
        reason: &str,
        message: &str,
    ) -> Result<(), ApplyError> {
        let mut conditions = vpod.status.conditions.list();
        if status::set_condition(&mut conditions, kind, status, reason, message, self.clock.now()) {
            let patch = json!({
                "metadata": preconditions(&vpod.uid, &vpod.resource_version),
                "status": {"conditions": conditions},
            });
            self.patch_vpod(&vpod.key, &vpod.uid, &patch).await?;
        }
        Ok(())
    }

    pub(in crate::pods) fn publish(
        &self,
        key: &ObjectKey,
        uid: &str,
        severity: Severity,
        reason: &'static str,
        message: String,
    ) {
        self.events.publish(Event {
            regarding: Regarding {
                api_version: "v1",
                kind: "Pod",
                namespace: key.namespace.to_string(),
                name: key.name.to_string(),
                uid: uid.to_owned(),
            },
            severity,
            reason,
            message,
        });
    }
}

pub(super) fn no_priority_class(class: &str) -> Refusal {
    let message = "the PriorityClass that the ClusterBinding names does not exist in the worker cluster";
    Refusal::new(RefusalReason::DependencyMissing, message).particulars(class)
}
