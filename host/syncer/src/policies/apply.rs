//! Tells the engine about policies, and writes finalizers and status on them.

use std::{sync::Arc, time::Duration};

use kube::{Api, Client, runtime::watcher::Config};
use kubeocean_engine::{PolicyHost, PolicyStatus};
use serde_json::{Value, json};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::{
    finalizer::{self, FinalizerChange},
    news::news,
    status::plan_status,
    store::PolicyStore,
    view::{PolicyView, instant},
};
use crate::{
    nodes::store::{NodeStore, Readiness},
    placement::desk::PlaceDesk,
};
use kubeocean_api::keys::manager;
use kubeocean_runtime::{
    clock::Clock,
    error::ApplyError,
    events::{Event, EventRecorder, Regarding, Severity},
    health::Health,
    queue::{Outcome, drive},
    request::{merge_patch, paths},
    watch::{WatchHealth, WatchSpec, watch_into},
};

/// Shortest time between two status writes of a policy that change no state (PO-1502).
const STATUS_PERIOD: Duration = Duration::from_secs(30);
/// How often the engine is asked for news that it does not announce: counters, staleness.
const LOOK: Duration = Duration::from_mins(1);

/// Real nodes the engine gets for trial calls with each list of policies (PO-703).
const TRIAL_NODES: usize = 3;

/// What the tasks of this concern work with.
#[derive(Clone)]
pub struct PolicyRuntime {
    /// State.
    pub store: Arc<PolicyStore>,
    /// Nodes.
    pub nodes: Arc<NodeStore>,
    /// Where placement is decided.
    pub place: Arc<PlaceDesk>,
    /// The engine's side.
    pub host: Arc<PolicyHost>,
    /// Counts what changed in the engine: its `changed` callback and [`feed_engine`] add one.
    pub loaded: Arc<watch::Sender<u64>>,
    /// Client of the worker cluster.
    pub worker: Client,
    /// Events of the worker cluster.
    pub events: EventRecorder,
    /// Clock.
    pub clock: Arc<dyn Clock>,
    /// Is told that the loops come by.
    pub health: Arc<Health>,
    /// End.
    pub cancel: CancellationToken,
}

impl std::fmt::Debug for PolicyRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicyRuntime").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Watches all policies of the worker cluster until cancelled.
pub async fn watch_policies(
    worker: Client,
    store: Arc<PolicyStore>,
    health: Arc<WatchHealth>,
    cancel: CancellationToken,
) {
    let spec = WatchSpec { name: "policies", api: Api::<PolicyView>::all(worker), config: Config::default() };
    watch_into(spec, store, health, cancel).await;
}

/// Keeps the engine's list current, until cancelled. `first` is told when the engine has its first list, which is made
/// once `listed` has seen all policies.
pub async fn feed_engine(runtime: PolicyRuntime, listed: Arc<WatchHealth>, first: Arc<Notify>) {
    tokio::select! {
        () = runtime.cancel.cancelled() => return,
        () = listed.synced() => {}
    }
    loop {
        let changes = runtime.store.changes();
        let (host, list) = (Arc::clone(&runtime.host), runtime.store.engine_list());
        let some = runtime.nodes.some_facts(TRIAL_NODES);
        let feeding = tokio::task::spawn_blocking(move || {
            host.remember_nodes(&some);
            host.set_policies(list);
        });
        match feeding.await {
            Ok(()) => runtime.store.engine_took(changes),
            Err(error) => tracing::error!(%error, "the policy engine did not take the policies"),
        }
        first.notify_one();
        runtime.loaded.send_modify(|changes| *changes += 1);
        tokio::select! {
            () = runtime.cancel.cancelled() => return,
            () = runtime.store.engine_input.notified() => {}
        }
    }
}

/// Follows the engine's changes until cancelled: nodes are decided again, statuses are looked at.
pub async fn follow_engine(runtime: PolicyRuntime) {
    let mut news = runtime.loaded.subscribe();
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            () = runtime.cancel.cancelled() => return,
            changed = news.changed() => match changed {
                Ok(()) => {
                    runtime.nodes.leased_pods_matter(runtime.host.reads_leased());
                    runtime.nodes.wake_all();
                    runtime.place.policies_changed();
                }
                Err(_) => return,
            },
            _ = look.tick() => forget_lost_nodes(&runtime),
        }
        refresh(&runtime).await;
    }
}

/// Nodes that went without a vnode, or while nobody decided, leave no other trace.
fn forget_lost_nodes(runtime: &PolicyRuntime) {
    if runtime.nodes.readiness() == Readiness::Ready {
        let names = runtime.nodes.worker_node_names();
        runtime.host.retain_nodes(&names.iter().map(String::as_str).collect());
    }
}

/// Asks the engine about its policies and tells what is new.
async fn refresh(runtime: &PolicyRuntime) {
    let (host, now) = (Arc::clone(&runtime.host), runtime.clock.now());
    let Ok(statuses) = tokio::task::spawn_blocking(move || host.status(now)).await else { return };
    for (before, status) in runtime.store.set_engine_status(statuses) {
        if before.as_ref().is_none_or(|before| before.zone != status.zone) {
            tracing::info!(policy = status.name, zone = status.zone, "time zone of the policy's windows");
        }
        let Some(policy) = runtime.store.get(&status.name) else { continue };
        if policy.uid() != status.uid {
            continue;
        }
        for item in news(before.as_ref(), &status, &policy.status) {
            runtime.events.publish(Event {
                regarding: reference(&policy),
                severity: if item.warning { Severity::Warning } else { Severity::Normal },
                reason: item.reason,
                message: item.message,
            });
        }
    }
}

fn reference(policy: &PolicyView) -> Regarding {
    Regarding::policy(policy.name(), policy.uid())
}

/// Writes finalizers and status until cancelled.
pub async fn run(runtime: PolicyRuntime) {
    let queue = Arc::clone(&runtime.store.queue);
    let cancel = runtime.cancel.clone();
    let heart = runtime.health.begin("policies");
    drive(queue, 4, cancel, heart, move |name| {
        let runtime = runtime.clone();
        async move {
            match reconcile(&runtime, &name).await {
                Ok(outcome) => outcome,
                Err(error) => {
                    if error.outcome() != Outcome::Stale {
                        tracing::warn!(policy = &*name, error = error.chain(), "policy not written");
                    }
                    error.outcome()
                }
            }
        }
    })
    .await;
}

async fn reconcile(runtime: &PolicyRuntime, name: &str) -> Result<Outcome, ApplyError> {
    // Before the first round of decisions nobody knows what policies lease; all are looked at after it.
    if !runtime.nodes.is_settled() {
        return Ok(Outcome::Done);
    }
    release_if_unused(runtime, name).await?;
    let Some(policy) = runtime.store.get(name) else { return Ok(Outcome::Done) };
    let Some(engine) = runtime.store.engine_status(name).filter(|engine| speaks_of(engine, &policy)) else {
        // The engine's next word about this policy wakes it again.
        return Ok(Outcome::Done);
    };
    let now = runtime.clock.now();
    let due = engine.next_change.and_then(instant).map(|at| Duration::try_from(at.duration_since(now)));
    let at_edge = due.map(|wait| wait.unwrap_or(Duration::ZERO));
    if at_edge == Some(Duration::ZERO) {
        refresh(runtime).await;
        return Ok(Outcome::Stale);
    }
    let next = at_edge.map_or(Outcome::Done, Outcome::After);
    let Some(change) = plan_status(&policy, &engine, &runtime.nodes.policy_usage(name), now) else {
        return Ok(next);
    };
    let last = runtime.store.status_written(name).map(|at| Duration::try_from(now.duration_since(at)));
    if let (false, Some(Ok(since))) = (change.urgent, last)
        && since < STATUS_PERIOD
    {
        let wait = STATUS_PERIOD.saturating_sub(since);
        return Ok(Outcome::After(at_edge.map_or(wait, |edge| edge.min(wait))));
    }
    // The conditions are replaced as a list, so nobody else's may get lost between reading and writing.
    let body = json!({
        "metadata": {"uid": policy.metadata.uid, "resourceVersion": policy.metadata.resource_version},
        "status": whole(&change.status),
    });
    let path = format!("{}?fieldManager={}", paths::policy_status(name), manager::SYNCER);
    match merge_patch(&runtime.worker, &path, &body).await {
        Ok(answer) => saw(&runtime.store, answer),
        Err(ApplyError::NotFound { .. }) => return Ok(Outcome::Done),
        Err(error) => return Err(error),
    }
    runtime.store.set_status_written(name, now);
    Ok(next)
}

/// The engine speaks of the spec this object has, and not of an earlier one or of an object deleted since.
pub(super) fn speaks_of(engine: &PolicyStatus, policy: &PolicyView) -> bool {
    engine.generation == policy.generation() && engine.uid == policy.uid()
}

/// The status as a merge patch that also removes what it no longer says.
fn whole(status: &kubeocean_api::ResourceLeasingPolicyStatus) -> Value {
    let mut value = json!(status);
    for optional in ["activeTimeWindow", "policies"] {
        if value.get(optional).is_none() {
            value[optional] = Value::Null;
        }
    }
    value
}

fn saw(store: &PolicyStore, answer: Value) {
    if let Ok(policy) = serde_json::from_value::<PolicyView>(answer) {
        store.saw(policy);
    }
}

async fn release_if_unused(runtime: &PolicyRuntime, name: &str) -> Result<(), ApplyError> {
    let _turn = runtime.store.finalizers.lock().await;
    let Some(policy) = runtime.store.get(name) else { return Ok(()) };
    let built = runtime.nodes.policy_usage(name).built;
    let ours = runtime.store.was_ours(&policy);
    let uid = &runtime.store.identity().computing_uid;
    write(&runtime.worker, &runtime.store, name, finalizer::release(&policy, uid, ours, built))
        .await
        .map(drop)
}

async fn write(
    worker: &Client,
    store: &PolicyStore,
    name: &str,
    change: Option<FinalizerChange>,
) -> Result<Hold, ApplyError> {
    let Some(FinalizerChange::Hold(body) | FinalizerChange::Release(body)) = change else {
        return Ok(Hold::There);
    };
    let path = format!("{}?fieldManager={}", paths::policy(name), manager::SYNCER);
    match merge_patch(worker, &path, &body).await {
        Ok(answer) => {
            saw(store, answer);
            Ok(Hold::There)
        }
        Err(ApplyError::NotFound { .. }) => Ok(Hold::Gone),
        Err(error) => Err(error),
    }
}

/// What became of a policy that was to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// It is there, with the finalizer where that is ours to set.
    There,
    /// It is gone, or going: nothing can be built from it.
    Gone,
}

impl PolicyStore {
    /// Puts the finalizer on a policy before a vnode is built from it.
    pub async fn hold(&self, worker: &Client, name: &str) -> Result<Hold, ApplyError> {
        let _turn = self.finalizers.lock().await;
        let Some(policy) = self.get(name).filter(|policy| !policy.deleting()) else { return Ok(Hold::Gone) };
        let change = finalizer::hold(&policy, self.identity());
        write(worker, self, name, change).await
    }

    /// Takes the finalizer off every policy of this binding, whatever uses it (BU section 14). Returns how many could
    /// not be written.
    pub async fn release_all(&self, worker: &Client) -> usize {
        let _turn = self.finalizers.lock().await;
        let mut failed = 0;
        for name in self.names() {
            let Some(policy) = self.get(&name) else { continue };
            let ours = self.was_ours(&policy);
            let change = finalizer::release(&policy, &self.identity().computing_uid, ours, 0);
            if let Err(error) = write(worker, self, &name, change).await {
                tracing::warn!(policy = name, error = error.chain(), "finalizer not removed");
                failed += 1;
            }
        }
        failed
    }
}
