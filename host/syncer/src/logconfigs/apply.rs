//! Performs the plans of LogConfigs, and tells their owners what is not possible. Decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kube::Client;
use kubeocean_api::keys::{self, label};
use kubeocean_runtime::{
    error::{ApplyError, Verb},
    events::{Event, EventRecorder, Regarding, Severity},
    health::Health,
    queue::Outcome,
    request::{DeleteOptions, create_json, delete_json, get_json, merge_patch},
};
use serde::Deserialize;
use serde_json::Value;

use super::{
    index::{LogConfigStore, Side, original_of},
    plan::{Action, Snapshot, is_held, owned, plan},
    view::{LogConfig, all, path},
};
use crate::{objects::Clusters, pods::features::Features};

/// What the mapping of LogConfigs works with.
#[derive(Debug)]
pub struct LogConfigSync {
    /// Both clusters.
    pub clusters: Arc<Clusters>,
    /// The LogConfigs.
    pub store: Arc<LogConfigStore>,
    /// Events in the computing cluster.
    pub events: EventRecorder,
    /// What the roles allow.
    pub features: Arc<Features>,
    /// Is told that the loop comes by.
    pub health: Arc<Health>,
}

impl LogConfigSync {
    /// One look at the LogConfig of this name.
    pub(super) async fn reconcile(&self, name: &str) -> Outcome {
        let _turn = self.store.turn.lock().await;
        if self.store.is_releasing() {
            return Outcome::Done;
        }
        let (plan, original) = self.store.plan(&self.clusters.scope, name);
        if let Some(original) = &original {
            for what in plan.tell {
                self.tell(original, &what);
            }
        }
        let mut held = original;
        for action in plan.actions {
            match perform(&self.clusters, &action).await {
                Ok(Done::Original(config)) => {
                    held = Some(config.clone());
                    self.store.seen(Side::Original, config);
                }
                Ok(Done::Copy(copy)) => {
                    if let Some(original) = &held {
                        self.store.settled(&copy, original);
                    }
                    self.store.seen(Side::Copy, copy);
                }
                Ok(Done::Deleted) => {}
                Err(ApplyError::AlreadyExists { .. }) => {
                    if let Action::Create { name, .. } = &action {
                        self.store.is_taken(name);
                    }
                    return Outcome::Stale;
                }
                Err(error @ (ApplyError::Forbidden { .. } | ApplyError::Rejected { .. })) => {
                    tracing::warn!(logconfig = name, error = error.chain(), "LogConfig not copied");
                    if let Some(original) = &held {
                        self.tell(original, &format!("it was not accepted: {}", error.reason()));
                    }
                    return Outcome::Retry;
                }
                Err(error) => return error.log(name, "LogConfig"),
            }
        }
        if plan.blocked { Outcome::Retry } else { Outcome::Done }
    }

    fn tell(&self, original: &LogConfig, what: &str) {
        self.events.publish(Event {
            regarding: Regarding::log_config(original.name(), original.uid()),
            severity: Severity::Warning,
            reason: "LogConfigNotMapped",
            message: format!("logs of pods on leased nodes: {what}"),
        });
    }
}

enum Done {
    Original(LogConfig),
    Copy(LogConfig),
    Deleted,
}

async fn perform(clusters: &Clusters, action: &Action) -> Result<Done, ApplyError> {
    let (here, there) = (&clusters.computing, &clusters.worker);
    match action {
        Action::Hold { name, patch } | Action::LetGo { name, patch } => {
            let manager = keys::syncer_manager(&clusters.scope.cluster_id);
            let at = format!("{}?fieldManager={manager}", path(name));
            decoded(merge_patch(here, &at, patch).await).map(Done::Original)
        }
        Action::Create { manifest, .. } => {
            decoded(create_json(there, &all(), manifest).await).map(Done::Copy)
        }
        Action::Update { copy, patch } => {
            decoded(merge_patch(there, &path(copy.name()), patch).await).map(Done::Copy)
        }
        Action::Delete { copy } => {
            let options = DeleteOptions { uid: Some(copy.uid().to_owned()), grace_seconds: None };
            delete_json(there, &path(copy.name()), &options).await.map(|_| Done::Deleted)
        }
    }
}

fn decoded(answer: Result<Value, ApplyError>) -> Result<LogConfig, ApplyError> {
    let answer = answer?;
    let failed = |error| ApplyError::from_kube(Verb::Get, all(), kube::Error::SerdeError(error));
    LogConfig::deserialize(&answer).map_err(failed)
}

/// Those of one cluster; none where the kind is not served, or not ours to see.
async fn listed(client: &Client, selector: &str) -> Result<BTreeMap<String, LogConfig>, ApplyError> {
    let list = match get_json(client, &format!("{}?labelSelector={selector}", all())).await {
        Err(ApplyError::Forbidden { .. }) => None,
        answer => answer?,
    };
    let items = list.as_ref().and_then(|list| list["items"].as_array()).into_iter().flatten();
    let configs = items.filter_map(|item| LogConfig::deserialize(item).ok());
    Ok(configs.map(|config| (config.name().to_owned(), config)).collect())
}

/// Removes all copies, lets all originals go, and says how many objects are left (TD section 13). From then on nothing is
/// copied. It looks at what is there, not at whether mapping is on: the original Kubeocean may have left it.
pub async fn release_all(clusters: &Clusters, store: &LogConfigStore) -> Result<usize, ApplyError> {
    let _turn = store.turn.lock().await;
    store.start_releasing();
    release(clusters).await
}

/// The same for the time being: mapping is off, and what may come back later must not hold up anybody's deletion.
pub(super) async fn release(clusters: &Clusters) -> Result<usize, ApplyError> {
    let scope = &clusters.scope;
    let managed = format!(
        "{}={},{}=true",
        label::MANAGED_BY,
        label::MANAGED_BY_VALUE,
        keys::synced_by(&scope.cluster_id)
    );
    let (originals, copies) =
        tokio::try_join!(listed(&clusters.computing, ""), listed(&clusters.worker, &managed))?;
    let is_of = |copy: &&LogConfig, name: &str| original_of(Side::Copy, copy) == Some(name);
    let mut left = 0;
    let names = copies.values().filter_map(|copy| original_of(Side::Copy, copy));
    let names: BTreeSet<&str> = originals.keys().map(String::as_str).chain(names).collect();
    for name in names {
        let original = originals.get(name);
        let copies: Vec<&LogConfig> = copies.values().filter(|copy| is_of(copy, name)).collect();
        left += copies.iter().filter(|copy| owned(scope, copy, original).is_some()).count();
        left += usize::from(original.is_some_and(|original| is_held(scope, original)));
        let snapshot = Snapshot { original, releasing: true, copies, taken: [].into(), settled: [].into() };
        for action in plan(scope, &snapshot).actions {
            match perform(clusters, &action).await {
                Ok(_) | Err(ApplyError::NotFound { .. }) => {}
                Err(error) => tracing::warn!(logconfig = name, error = error.chain(), "not released"),
            }
        }
    }
    Ok(left)
}
