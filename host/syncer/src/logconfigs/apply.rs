//! Performs the plans of LogConfigs, and tells their owners what is not possible. Decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kube::Client;
use kubeocean_api::keys::{self, label};
use kubeocean_runtime::{
    binding::Binding,
    error::{ApplyError, Verb},
    events::{Event, EventRecorder, Regarding, Severity},
    health::Health,
    queue::Outcome,
    request::{DeleteOptions, create_json, delete_json, get_json, merge_patch},
};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::watch;

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
    /// The binding, which may go.
    pub binding: watch::Receiver<Arc<Binding>>,
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
        let (plan, original) = self.store.plan(&self.clusters.scope, name, self.binding.borrow().deleting);
        if let Some(original) = &original {
            for what in plan.tell {
                self.tell(original, &what);
            }
        }
        let mut held = original;
        let mut refused = Refused::default();
        for action in plan.actions {
            if refused.precludes(&action) {
                continue;
            }
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
                    refused.hold |= matches!(action, Action::Hold { .. });
                    refused.reasons.insert(error.reason());
                }
                Err(error) => return error.log(name, "LogConfig"),
            }
        }
        if let Some(original) = &held {
            for reason in &refused.reasons {
                self.tell(original, &format!("it was not accepted: {reason}"));
            }
        }
        if plan.blocked || !refused.reasons.is_empty() { Outcome::Retry } else { Outcome::Done }
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

/// What was refused of a plan: one copy that a cluster does not accept holds up no other.
#[derive(Debug, Default)]
struct Refused {
    reasons: BTreeSet<String>,
    hold: bool,
}

impl Refused {
    /// Nothing is made of an original that could vanish meanwhile, and none is let go of which a copy is left.
    fn precludes(&self, action: &Action) -> bool {
        match action {
            Action::Create { .. } | Action::Update { .. } => self.hold,
            Action::LetGo { .. } => !self.reasons.is_empty(),
            Action::Hold { .. } | Action::Delete { .. } => false,
        }
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

type ByName = BTreeMap<String, LogConfig>;

/// Those of one cluster; none where the kind is not served, `None` where they are not ours to see.
async fn listed(client: &Client, selector: &str) -> Result<Option<ByName>, ApplyError> {
    let list = match get_json(client, &format!("{}?labelSelector={selector}", all())).await {
        Err(ApplyError::Forbidden { .. }) => return Ok(None),
        answer => answer?,
    };
    let items = list.as_ref().and_then(|list| list["items"].as_array()).into_iter().flatten();
    let configs = items.filter_map(|item| LogConfig::deserialize(item).ok());
    Ok(Some(configs.map(|config| (config.name().to_owned(), config)).collect()))
}

/// What there was to release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// So many objects.
    Objects(usize),
    /// One cluster has objects of ours, and whether the other has their counterparts may not be seen: nothing was done.
    Unseen(Side),
}

/// Removes all copies, lets all originals go, and says what is left (TD section 13). From then on nothing is copied. It looks
/// at what is there, not at whether mapping is on: the original Kubeocean may have left it.
pub async fn release_all(clusters: &Clusters, store: &LogConfigStore) -> Result<Left, ApplyError> {
    let _turn = store.turn.lock().await;
    store.start_releasing();
    let scope = &clusters.scope;
    match both(clusters).await? {
        (Some(originals), Some(copies)) => {
            Ok(Left::Objects(release_these(clusters, originals, copies).await))
        }
        // Without the right from the beginning there is nothing of ours.
        (Some(originals), None) if originals.values().any(|original| is_held(scope, original)) => {
            Ok(Left::Unseen(Side::Copy))
        }
        (None, Some(copies)) if copies.values().any(|copy| owned(scope, copy, None).is_some()) => {
            Ok(Left::Unseen(Side::Original))
        }
        (Some(_) | None, None) | (None, Some(_)) => Ok(Left::Objects(0)),
    }
}

/// The same for the time being: mapping is off, and what may come back later must not hold up anybody's deletion. What is not
/// ours to see is left where it is.
pub(super) async fn release(clusters: &Clusters) -> Result<(), ApplyError> {
    let (originals, copies) = both(clusters).await?;
    release_these(clusters, originals.unwrap_or_default(), copies.unwrap_or_default()).await;
    Ok(())
}

async fn both(clusters: &Clusters) -> Result<(Option<ByName>, Option<ByName>), ApplyError> {
    let scope = &clusters.scope;
    let managed = format!(
        "{}={},{}=true",
        label::MANAGED_BY,
        label::MANAGED_BY_VALUE,
        keys::synced_by(&scope.cluster_id)
    );
    tokio::try_join!(listed(&clusters.computing, ""), listed(&clusters.worker, &managed))
}

async fn release_these(clusters: &Clusters, originals: ByName, copies: ByName) -> usize {
    let scope = &clusters.scope;
    let is_of = |copy: &&LogConfig, name: &str| original_of(Side::Copy, copy) == Some(name);
    let mut left = 0;
    let names = copies.values().filter_map(|copy| original_of(Side::Copy, copy));
    let names: BTreeSet<&str> = originals.keys().map(String::as_str).chain(names).collect();
    for name in names {
        let original = originals.get(name);
        let copies: Vec<&LogConfig> = copies.values().filter(|copy| is_of(copy, name)).collect();
        left += copies.iter().filter(|copy| owned(scope, copy, original).is_some()).count();
        left += usize::from(original.is_some_and(|original| is_held(scope, original)));
        let snapshot = Snapshot {
            original,
            releasing: true,
            closing: true,
            copies,
            taken: [].into(),
            settled: [].into(),
        };
        for action in plan(scope, &snapshot).actions {
            match perform(clusters, &action).await {
                Ok(_) | Err(ApplyError::NotFound { .. }) => {}
                Err(error) => tracing::warn!(logconfig = name, error = error.chain(), "not released"),
            }
        }
    }
    left
}
