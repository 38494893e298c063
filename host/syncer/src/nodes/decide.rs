//! Takes dirty vnodes in batches, asks the policy engine about them, plans each and has the plan performed.
//!
//! The only loop over nodes. Time enters as wake-ups of the queue: the end of a decision, of a grace period, of a
//! postponed write. Nothing is polled; once in ten minutes everything is decided again, which bounds a broken promise
//! of a module (PO-1004) and costs a memo lookup per node.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::Client;
use kubeocean_engine::PolicyHost;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    action::Action,
    apply,
    decision::{Decision, Verdict},
    index::{Decided, Snapshot, VnodeName},
    plan::{Knowledge, NodeInput, plan_node},
    snapshot::{available, base, facts},
    store::{NodeStore, Readiness, Surroundings},
    view::NodeView,
    vnode::Settings,
    withdraw::PodOnVnode,
};
use crate::policies::store::PolicyStore;
use kubeocean_api::keys::{annotation, label};
use kubeocean_runtime::{clock::Clock, events::EventRecorder, queue::Outcome};

/// Nodes of one engine call (policy spec section 8).
const BATCH: usize = kubeocean_engine::LEASE_ROWS;
/// Batches that are decided at a time: one that waits for a slow module does not hold up the next.
const BATCHES: usize = 4;
/// How long a batch waits for company.
const LINGER: Duration = Duration::from_millis(5);
/// Everything is decided again after this time (PO-1004).
const REFRESH: Duration = Duration::from_mins(10);

/// The pods of a vnode, from whoever keeps them.
pub trait PodsOnVnode: Send + Sync + 'static {
    /// All pods bound to `vnode`.
    fn on_vnode(&self, vnode: &str) -> Vec<PodOnVnode>;
}

/// The worker cluster as this concern needs it.
#[derive(Clone)]
pub struct WorkerSide {
    /// Client of the worker cluster.
    pub client: Client,
    /// Its policies.
    pub policies: Arc<PolicyStore>,
    /// What decides by them.
    pub host: Arc<PolicyHost>,
}

impl std::fmt::Debug for WorkerSide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkerSide").field("policies", &self.policies).finish_non_exhaustive()
    }
}

/// What the loop works with.
pub struct NodeRuntime {
    /// State.
    pub store: Arc<NodeStore>,
    /// Client of the computing cluster.
    pub computing: Client,
    /// `None` while no worker is connected: then only reachability is shown.
    pub worker: Option<WorkerSide>,
    /// Vpods by vnode.
    pub pods: Arc<dyn PodsOnVnode>,
    /// Events of the computing cluster.
    pub events: EventRecorder,
    /// UID of the binding, for events on it.
    pub binding_uid: String,
    /// Namespace of the components; its pods are never mapped.
    pub system_namespace: String,
    /// Clock.
    pub clock: Arc<dyn Clock>,
    /// Settings.
    pub settings: Settings,
    /// Writes at a time.
    pub workers: usize,
    /// End.
    pub cancel: CancellationToken,
}

impl std::fmt::Debug for NodeRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeRuntime").field("store", &self.store).finish_non_exhaustive()
    }
}

/// One key of a batch with what is known about it.
struct Work {
    key: VnodeName,
    snapshot: Snapshot,
    decision: Option<Decision>,
}

/// Runs until cancelled, then waits for what is being written.
pub async fn run(runtime: Arc<NodeRuntime>) {
    let slots = Arc::new(Semaphore::new(runtime.workers.max(1)));
    let batches = Arc::new(Semaphore::new(BATCHES));
    let tracker = TaskTracker::new();
    let mut refresh = tokio::time::interval(REFRESH);
    refresh.tick().await;
    loop {
        let batch = tokio::select! {
            () = runtime.cancel.cancelled() => break,
            _ = refresh.tick() => {
                runtime.store.wake_all();
                continue;
            }
            batch = runtime.store.queue.next_batch(BATCH, LINGER) => batch,
        };
        let Ok(turn) = Arc::clone(&batches).acquire_owned().await else { return };
        let (runtime, slots, works) = (Arc::clone(&runtime), Arc::clone(&slots), tracker.clone());
        tracker.spawn(async move {
            work_off(&runtime, slots, works, batch).await;
            drop(turn);
        });
    }
    tracker.close();
    tracker.wait().await;
}

/// Decides a batch and starts what follows for each node as soon as it is decided.
async fn work_off(
    runtime: &Arc<NodeRuntime>,
    slots: Arc<Semaphore>,
    tracker: TaskTracker,
    batch: Vec<VnodeName>,
) {
    let surroundings = Arc::new(runtime.store.surroundings());
    let (decided, mut works) = mpsc::unbounded_channel();
    let performing = async {
        while let Some(work) = works.recv().await {
            let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
            let (runtime, surroundings) = (Arc::clone(runtime), Arc::clone(&surroundings));
            tracker.spawn(async move {
                let outcome = reconcile(&runtime, &surroundings, &work).await;
                runtime.store.queue.done(&work.key, outcome);
                drop(slot);
            });
        }
    };
    tokio::join!(decide(runtime, &surroundings, batch, decided), performing);
}

/// Snapshots of a batch, and the engine's answers where there is something to ask, each as soon as it is there. The
/// channel holds at most the batch.
async fn decide(
    runtime: &NodeRuntime,
    surroundings: &Surroundings,
    batch: Vec<VnodeName>,
    decided: mpsc::UnboundedSender<Work>,
) {
    let pass_on = |work: Work| {
        if decided.send(work).is_err() {
            tracing::error!("a decided node has nobody who writes it");
        }
    };
    let worker = runtime.worker.as_ref().filter(|_| surroundings.readiness == Readiness::Ready);
    let (mut waiting, mut rows) = (Vec::new(), Vec::new());
    for key in batch {
        let work = Work { snapshot: runtime.store.snapshot(&key), key, decision: None };
        let pnode = work.snapshot.pnode.as_ref().filter(|pnode| is_candidate(pnode, surroundings));
        match pnode.filter(|_| worker.is_some()) {
            Some(pnode) => {
                let vnode = work.snapshot.vnode.as_deref();
                rows.push(Arc::new(facts(pnode, &work.key, vnode, &work.snapshot.usage)));
                waiting.push(Some(work));
            }
            None => pass_on(work),
        }
    }
    let Some(worker) = worker.filter(|_| !rows.is_empty()) else { return };
    let (host, now) = (Arc::clone(&worker.host), runtime.clock.now());
    let (tell, mut answers) = mpsc::unbounded_channel::<(usize, Decision)>();
    let asking = tokio::task::spawn_blocking(move || {
        // The receiver waits below for as long as the engine works.
        host.decide_each(now, &rows, |index, decision| drop(tell.send((index, decision))));
    });
    while let Some((index, decision)) = answers.recv().await {
        if let Some(work) = waiting.get_mut(index).and_then(Option::take) {
            pass_on(Work { decision: Some(decision), ..work });
        }
    }
    if let Err(error) = asking.await {
        tracing::error!(%error, "the policy engine did not answer");
    }
    // Without an answer nothing is planned; the key is tried again.
    waiting.into_iter().flatten().for_each(pass_on);
}

/// Only such nodes are asked about; all others are withdrawn, whatever a policy says.
fn is_candidate(pnode: &NodeView, surroundings: &Surroundings) -> bool {
    !pnode.terminating() && !pnode.excluded() && !surroundings.binding.deleting
}

async fn reconcile(runtime: &NodeRuntime, surroundings: &Surroundings, work: &Work) -> Outcome {
    let now = runtime.clock.now();
    let snapshot = &work.snapshot;
    let candidate = snapshot.pnode.as_ref().is_some_and(|pnode| is_candidate(pnode, surroundings));
    let knowledge = match (surroundings.readiness, &work.decision) {
        (Readiness::Listing, _) => Knowledge::Nothing,
        (Readiness::Ready, Some(decision)) => Knowledge::Decided(decision),
        (Readiness::Ready, None) if candidate => return Outcome::Retry,
        (Readiness::LoadingPolicies | Readiness::Ready, _) => Knowledge::NodeOnly,
    };
    let policies = runtime.worker.as_ref().map(|worker| &worker.policies);
    let governed_by = work.decision.as_ref().and_then(|decision| decision.governed_by.as_deref());
    let policy = governed_by.and_then(|name| policies?.governing(name));
    if governed_by.is_some() && policy.is_none() {
        // The policy went while the engine decided; its removal is about to be decided as well.
        return Outcome::Stale;
    }
    let port = match runtime.store.port(&work.key) {
        Ok(port) => port,
        Err(error) => {
            tracing::error!(vnode = &*work.key, %error, "no port");
            return Outcome::Retry;
        }
    };
    let origin = snapshot.pnode.as_deref().map(base).unwrap_or_default();
    let left = available(&origin, &snapshot.usage.others);
    let label = snapshot.pnode.as_ref().and_then(|pnode| pnode.label(label::POLICY_APPLIED));
    let label_owner = label.and_then(|label| Some(policies?.label_owner(label))).unwrap_or_default();
    let pods = if snapshot.vnode.is_some() { runtime.pods.on_vnode(&work.key) } else { Vec::new() };
    let plan = plan_node(&NodeInput {
        now,
        binding: &surroundings.binding,
        settings: &runtime.settings,
        vnode_name: &work.key,
        pnode: snapshot.pnode.as_deref(),
        vnode: snapshot.vnode.as_deref(),
        knowledge,
        available: &left,
        policy: policy.as_ref(),
        label_owner,
        port,
        proxier: &surroundings.proxier,
        unreachable: surroundings.unreachable,
        written: snapshot.written.as_ref(),
        pods: &pods,
    });
    if surroundings.readiness == Readiness::Ready {
        remember(runtime, work, plan.leased_by.as_ref(), origin);
    }
    if let (None, Some(vnode), Some(worker)) = (&snapshot.pnode, &snapshot.vnode, &runtime.worker) {
        let node = vnode.annotation_or_label(annotation::PHYSICAL_NODE_NAME).unwrap_or_default();
        worker.host.forget_node(node);
    }
    let creates = plan.actions.iter().any(|action| matches!(action, Action::CreateVnode { .. }));
    if snapshot.vnode.is_none() && !creates {
        runtime.store.release_port(&work.key);
    }
    if !plan.actions.is_empty() {
        tracing::debug!(vnode = &*work.key, %plan, "writing");
    }
    let performed = apply::perform(runtime, &work.key, snapshot, plan.actions).await;
    match performed {
        Err(outcome) => outcome,
        Ok(retry) => soonest(retry, plan.next_wake.map(|at| until(at, runtime.clock.now()))),
    }
}

/// What a policy's status says about this node.
fn remember(
    runtime: &NodeRuntime,
    work: &Work,
    leased_by: Option<&String>,
    origin: super::snapshot::Amounts,
) {
    let decided = work.decision.as_ref().filter(|decision| decision.selected).map(|decision| Decided {
        governed_by: decision.governed_by.clone(),
        shadowed: decision.shadowed.clone(),
        failed: decision.verdict == Verdict::Held || (decision.withheld && !decision.announce),
        withheld: decision.withheld,
        leased_by: leased_by.cloned(),
        origin,
        granted: decision.amounts.clone(),
    });
    runtime.store.set_decided(&work.key, decided);
}

fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
}

fn soonest(a: Option<Duration>, b: Option<Duration>) -> Outcome {
    [a, b].into_iter().flatten().min().map_or(Outcome::Done, Outcome::After)
}

/// How long policies may keep a fresh leader from deciding (PO-704).
const POLICIES_WAIT: Duration = Duration::from_secs(30);

/// Opens the store step by step: nothing before `lists` (the first lists of both clusters, and the engine's first list
/// of policies), then conditions and addresses, then everything once the modules are loaded, or after 30 s. `loaded`
/// counts the engine's changes.
pub async fn open_gate(
    store: Arc<NodeStore>,
    lists: impl Future<Output = ()>,
    worker: WorkerSide,
    mut loaded: watch::Receiver<u64>,
    cancel: CancellationToken,
) {
    tokio::select! {
        () = cancel.cancelled() => return,
        () = lists => {}
    }
    store.set_readiness(Readiness::LoadingPolicies);
    let all_loaded = loaded.wait_for(|_| worker.host.ready());
    tokio::select! {
        () = cancel.cancelled() => return,
        _ = tokio::time::timeout(POLICIES_WAIT, all_loaded) => {}
    }
    store.set_readiness(Readiness::Ready);
    worker.policies.wake_all();
}
