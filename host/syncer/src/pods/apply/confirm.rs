//! Live reads, where what the watches show proves too little: whether a pod is gone, or still nowhere scheduled.

use kube::Client;
use kubeocean_api::{keys::label, name::ObjectKey};
use kubeocean_runtime::{
    error::ApplyError,
    queue::Outcome,
    request::{get_json, paths},
};
use serde_json::Value;

use super::{
    super::{
        metadata::MetadataChange,
        ownership::{self, Owned},
        snapshot::PodSnapshot,
        view::{Ppod, Vpod},
    },
    PodSync, Step,
};

impl PodSync {
    pub(super) async fn confirm_vpod_gone(&self, key: &ObjectKey) -> Result<Step, ApplyError> {
        let live = read_pod(&self.clusters.computing, key).await?;
        self.store.confirm_vpod_gone(key, live.as_ref().and_then(uid_of));
        if let Some(vpod) = live.as_ref().and_then(Vpod::from_json) {
            self.store.saw_vpod(vpod);
        }
        Ok(Step::Replan)
    }

    pub(super) async fn confirm_ppod_gone(&self, snapshot: &PodSnapshot) -> Result<Step, ApplyError> {
        let place = snapshot.ppod_key();
        let live = read_pod(&self.clusters.worker, &place).await?;
        let Some(ppod) = live.as_ref().and_then(Ppod::from_json) else {
            self.store.confirm_ppod_gone(&snapshot.key);
            return Ok(Step::Replan);
        };
        if is_managed(&ppod) {
            self.store.saw_ppod(ppod);
            return Ok(Step::Replan);
        }
        match ownership::lost_label(&ppod, &snapshot.scope.stamp, snapshot.claim()) {
            // Somebody took the label the watch selects by; with it the copy is seen again.
            Some(owned) => {
                tracing::info!(vpod = %snapshot.key, ppod = %place, "ppod had lost its label, restored");
                let label = [(label::MANAGED_BY.to_owned(), Some(label::MANAGED_BY_VALUE.to_owned()))];
                let change = MetadataChange { labels: label.into(), ..MetadataChange::default() };
                self.patch_ppod(&owned, &change, None).await?;
            }
            None => self.store.confirm_ppod_gone(&snapshot.key),
        }
        Ok(Step::Replan)
    }

    pub(super) async fn read_ppod(
        &self,
        snapshot: &PodSnapshot,
        ppod: &ObjectKey,
    ) -> Result<Step, ApplyError> {
        let live = read_pod(&self.clusters.worker, ppod).await?;
        match (live.as_ref().and_then(managed_ppod), &snapshot.ppod) {
            (Some(live), _) => self.store.reread_ppod(live),
            (None, Some(known)) => self.store.ppod_gone(ppod, &known.uid),
            (None, None) => {}
        }
        Ok(Step::Replan)
    }

    pub(super) async fn confirm_unscheduled(&self, ppod: &Owned) -> Result<Step, ApplyError> {
        let live = read_pod(&self.clusters.worker, ppod.key()).await;
        if live.as_ref().is_err_and(|error| error.outcome() == Outcome::Unanswered) {
            // Its scheduler may not have been able to do anything either.
            self.store.unscheduled_anew(ppod.key());
        }
        let Some(live) = live? else {
            self.store.ppod_gone(ppod.key(), ppod.uid());
            return Ok(Step::Replan);
        };
        match managed_ppod(&live) {
            Some(live) if *live.uid == *ppod.uid() && !live.scheduled => Ok(Step::Next),
            Some(live) => {
                self.store.saw_ppod(live);
                Ok(Step::Replan)
            }
            // It has lost its label, and the watch will say so.
            None => Ok(Step::Stop(Outcome::Retry)),
        }
    }
}

/// A ppod that the watch would show too.
pub(in crate::pods) fn managed_ppod(pod: &Value) -> Option<Ppod> {
    Ppod::from_json(pod).filter(is_managed)
}

pub(super) fn is_managed(ppod: &Ppod) -> bool {
    ppod.labels.get(label::MANAGED_BY).is_some_and(|value| value == label::MANAGED_BY_VALUE)
}

/// Reads a pod of the worker cluster.
pub(in crate::pods) async fn read_pod(client: &Client, key: &ObjectKey) -> Result<Option<Value>, ApplyError> {
    get_json(client, &paths::pod(&key.namespace, &key.name)).await
}

pub(super) fn uid_of(object: &Value) -> Option<&str> {
    object["metadata"]["uid"].as_str()
}
