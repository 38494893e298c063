//! Takes dirty vnodes in batches, asks the policy engine about them, plans each and has the plan performed.
//!
//! The only loop over nodes. Time enters as wake-ups of the queue: the end of a decision, of a grace period, of a
//! postponed write. Nothing is polled; once in ten minutes everything is decided again, which bounds a broken promise
//! of a module (PO-1004) and costs a memo lookup per node.

use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Duration,
};

use jiff::Timestamp;
use kube::Client;
use kubeocean_engine::{NodeFacts, PolicyHost};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    action::{Action, VnodeEvent},
    apply,
    decision::{Decision, Verdict},
    index::{Decided, Snapshot, VnodeName},
    pace::Pace,
    plan::{Knowledge, NodeInput, NodePlan, plan_node, plan_waiting},
    snapshot::{available, base, facts},
    store::{NodeStore, Readiness, Surroundings},
    view::NodeView,
    vnode::Settings,
    withdraw::PodOnVnode,
};
use crate::policies::store::PolicyStore;
use kubeocean_api::keys::{annotation, label};
use kubeocean_runtime::{
    clock::Clock,
    events::EventRecorder,
    health::{Health, PULSE},
    queue::Outcome,
    tasks::Workers,
};

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
    /// Takes the answer to a deletion: the pod as it is now. Before its event it must not be deleted, and counted, again.
    fn saw(&self, pod: &Value);
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
    /// Set when the role does not allow to label worker nodes: then nobody tries again (API-810).
    pub labels_off: Arc<AtomicBool>,
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
    /// How many nodes may lose their lease per minute.
    pub pace: Arc<Pace>,
    /// Is told that this loop comes by.
    pub health: Arc<Health>,
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
pub(super) struct Work {
    pub(super) key: VnodeName,
    pub(super) snapshot: Snapshot,
    pub(super) decision: Option<Decision>,
    /// The changes of policies by which it was decided.
    pub(super) policies: u64,
}

impl Work {
    /// What the engine is asked about the node; `None`: nothing, it is no candidate for a lease.
    pub(super) fn question(&self, surroundings: &Surroundings) -> Option<NodeFacts> {
        let Snapshot { pnode, vnode, usage, .. } = &self.snapshot;
        let pnode = pnode.as_ref().filter(|pnode| is_candidate(pnode, surroundings))?;
        (surroundings.readiness == Readiness::Ready).then(|| facts(pnode, &self.key, vnode.as_deref(), usage))
    }
}

/// A decided key, and what surrounded the decision.
type DecidedWork = (Arc<Surroundings>, Work);

/// Runs until cancelled, then waits for what is being written.
pub async fn run(runtime: Arc<NodeRuntime>) {
    let mut batches = Workers::new(BATCHES);
    let mut writers = Workers::new(runtime.workers);
    // Holds at most what the batches in work hold.
    let (decided, mut works) = mpsc::unbounded_channel::<DecidedWork>();
    let mut refresh = tokio::time::interval(REFRESH);
    let mut pulse = tokio::time::interval(PULSE);
    refresh.tick().await;
    loop {
        runtime.health.progress();
        let batch = tokio::select! {
            () = runtime.cancel.cancelled() => break,
            _ = refresh.tick() => {
                runtime.store.wake_all();
                continue;
            }
            // While every batch hangs in the engine the loop only waits, and says so by silence.
            _ = pulse.tick(), if !batches.is_full() => continue,
            () = batches.attend() => continue,
            () = writers.attend() => continue,
            Some((surroundings, work)) = works.recv() => {
                writers.free().await;
                let runtime = Arc::clone(&runtime);
                writers.start(async move {
                    let outcome = reconcile(&runtime, &surroundings, &work).await;
                    runtime.store.queue.done(&work.key, outcome);
                });
                continue;
            }
            batch = runtime.store.queue.next_batch(BATCH, LINGER), if !batches.is_full() => batch,
        };
        let (runtime, decided) = (Arc::clone(&runtime), decided.clone());
        batches.start(async move { decide(&runtime, batch, decided).await });
    }
    batches.finish().await;
    // Whoever comes next decides them anew.
    while let Ok((_, work)) = works.try_recv() {
        runtime.store.queue.done(&work.key, Outcome::Stale);
    }
    writers.finish().await;
}

/// Snapshots of a batch, and the engine's answers where there is something to ask, each as soon as it is there.
async fn decide(runtime: &NodeRuntime, batch: Vec<VnodeName>, decided: mpsc::UnboundedSender<DecidedWork>) {
    if let Some(worker) = &runtime.worker {
        runtime.store.asked_usage(&worker.host).await;
    }
    let surroundings = Arc::new(runtime.store.surroundings());
    let surroundings = &surroundings;
    let pass_on = |work: Work| {
        // The receiver outlives every batch.
        let _ = decided.send((Arc::clone(surroundings), work));
    };
    let worker = runtime.worker.as_ref();
    let policies = worker.map(|worker| worker.policies.known_to_engine()).unwrap_or_default();
    let (mut waiting, mut rows) = (Vec::new(), Vec::new());
    for key in batch {
        let work = Work { snapshot: runtime.store.snapshot(&key), key, decision: None, policies };
        match work.question(surroundings).filter(|_| worker.is_some()) {
            Some(question) => {
                rows.push(Arc::new(question));
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
    let snapshot = match apply::mended(runtime, &work.snapshot).await {
        Ok(snapshot) => snapshot,
        Err(outcome) => return outcome,
    };
    let considered = match consider(&runtime.desk(), surroundings, work, &snapshot, runtime.clock.now()) {
        Ok(considered) => considered,
        Err(NoPlan::Later(outcome)) => return outcome,
        Err(NoPlan::ReadFirst) => return apply::settle(runtime, &work.key).await,
    };
    let Considered { plan, wait } = considered;
    if !plan.actions.is_empty() {
        tracing::debug!(vnode = &*work.key, %plan, "writing");
    }
    let next_wake = plan.next_wake;
    let decided_by = work.decision.as_ref().map(|_| work.policies);
    match apply::perform(runtime, &work.key, &snapshot, plan.actions, decided_by).await {
        Err(outcome) => {
            // The pause before the next attempt may be longer than what is left until the lease opens or closes.
            if let Some(at) = next_wake {
                runtime.store.queue.add_after(work.key.clone(), until(at, runtime.clock.now()));
            }
            outcome
        }
        Ok(retry) => look_again([retry, wait], next_wake, runtime.clock.now()),
    }
}

/// What planning works with. Nothing of it talks to a cluster, so that a model can stand for both.
#[derive(Clone, Copy)]
pub(super) struct Desk<'a> {
    pub(super) store: &'a NodeStore,
    /// `None` while no worker is connected.
    pub(super) policies: Option<&'a PolicyStore>,
    pub(super) host: Option<&'a PolicyHost>,
    pub(super) pods: &'a dyn PodsOnVnode,
    pub(super) settings: &'a Settings,
    pub(super) pace: &'a Pace,
}

impl NodeRuntime {
    fn desk(&self) -> Desk<'_> {
        Desk {
            store: &self.store,
            policies: self.worker.as_ref().map(|worker| &*worker.policies),
            host: self.worker.as_ref().map(|worker| &*worker.host),
            pods: &*self.pods,
            settings: &self.settings,
            pace: &self.pace,
        }
    }
}

/// A plan, and how long its node may still wait for its policies to load, or for its turn to be withdrawn.
pub(super) struct Considered {
    pub(super) plan: NodePlan,
    pub(super) wait: Option<Duration>,
}

/// Why there is no plan; nothing is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoPlan {
    /// To be tried again.
    Later(Outcome),
    /// The vnode is to be read: nobody said what became of the last write that names a policy. Until then the decision it
    /// was made by stands, and with it the policy's finalizer.
    ReadFirst,
}

/// Everything between the engine's answer and the first write.
pub(super) fn consider(
    desk: &Desk<'_>,
    surroundings: &Surroundings,
    work: &Work,
    snapshot: &Snapshot,
    now: Timestamp,
) -> Result<Considered, NoPlan> {
    if desk.store.is_unsettled(&work.key) {
        return Err(NoPlan::ReadFirst);
    }
    let later = NoPlan::Later;
    let (store, policies) = (desk.store, desk.policies);
    let candidate = snapshot.pnode.as_ref().is_some_and(|pnode| is_candidate(pnode, surroundings));
    let knowledge =
        knowledge(surroundings, work.decision.as_ref(), candidate).ok_or(later(Outcome::Retry))?;
    let decided = matches!(knowledge, Knowledge::Decided(_));
    if work.decision.as_ref().is_some_and(|decision| is_over(decision, now)) {
        return Err(later(Outcome::Stale));
    }
    let loading = surroundings.loading_left.filter(|_| work.decision.is_some() && !decided);
    let governed_by = work.decision.as_ref().and_then(|decision| decision.governed_by.as_deref());
    let policy = governed_by.and_then(|name| policies?.governing(name));
    if governed_by.is_some() && policy.is_none() {
        // The policy went while the engine decided; its removal is about to be decided as well.
        return Err(later(Outcome::Stale));
    }
    // Only a lease needs a port. Before the first list of vnodes a port that one of them carries would seem to be free.
    let port = governed_by.filter(|_| decided).map(|_| store.port(&work.key)).transpose();
    let origin = snapshot.pnode.as_deref().map(base).unwrap_or_default();
    let left = available(&origin, &snapshot.usage.others);
    let label = snapshot.pnode.as_ref().and_then(|pnode| pnode.label(label::POLICY_APPLIED));
    let label_owner = label.and_then(|label| Some(policies?.label_owner(label))).unwrap_or_default();
    let pods = if snapshot.vnode.is_some() { desk.pods.on_vnode(&work.key) } else { Vec::new() };
    let input = NodeInput {
        now,
        binding: &surroundings.binding,
        settings: desk.settings,
        vnode_name: &work.key,
        pnode: snapshot.pnode.as_deref(),
        vnode: snapshot.vnode.as_deref(),
        knowledge,
        available: &left,
        policy: policy.as_ref(),
        label_owner,
        port: port.as_ref().ok().copied().flatten().unwrap_or_default(),
        proxier: &surroundings.proxier,
        loss: surroundings.loss,
        written: snapshot.written.as_ref(),
        terms: snapshot.terms,
        pods: &pods,
    };
    let mut plan = plan_node(&input);
    // What an owner corrects while an answer waits for its turn must not end a lease.
    let ends = plan.hangs_on_policies || work.decision.as_ref().is_some_and(|decision| decision.withheld);
    if ends && policies.is_some_and(|policies| policies.changes() != work.policies) {
        return Err(later(Outcome::Stale));
    }
    if plan.ends_lease
        && let Some(wait) = desk.pace.begin(&work.key, tokio::time::Instant::now())
    {
        let plan = NodePlan { actions: plan_waiting(&input), ..NodePlan::default() };
        return Ok(Considered { plan, wait: Some(wait) });
    }
    if let Some(terms) = plan.terms.filter(|terms| *terms != snapshot.terms) {
        store.set_terms(&work.key, terms);
    }
    if plan.leased_by.is_some() {
        match port {
            Err(error) => {
                tracing::error!(vnode = &*work.key, %error, "no port");
                return Err(later(Outcome::Retry));
            }
            Ok(port) => plan.actions.extend(port_conflict(store, snapshot, port.unwrap_or_default())),
        }
    }
    if surroundings.readiness == Readiness::Ready {
        remember(store, work, plan.leased_by.as_ref(), loading.is_some());
        if loading.is_none() {
            store.was_decided(&work.key);
        }
    }
    if let (None, Some(vnode), Some(host)) = (&snapshot.pnode, &snapshot.vnode, desk.host) {
        let node = vnode.annotation_or_label(annotation::PHYSICAL_NODE_NAME).unwrap_or_default();
        host.forget_node(node);
    }
    let creates = plan.actions.iter().any(|action| matches!(action, Action::CreateVnode { .. }));
    if snapshot.vnode.is_none() && !creates {
        store.release_port_of_no_vnode(&work.key);
    }
    Ok(Considered { plan, wait: loading })
}

/// Whether an answer that closes a lease has ended while it waited for its turn: an eviction could not be undone.
fn is_over(decision: &Decision, now: Timestamp) -> bool {
    decision.withheld && decision.valid_until.is_some_and(|end| end <= now.as_second())
}

/// When a node whose plan was carried out is looked at again.
pub(super) fn look_again(
    waits: [Option<Duration>; 2],
    next_wake: Option<Timestamp>,
    now: Timestamp,
) -> Outcome {
    let wake = next_wake.map(|at| until(at, now));
    waits.into_iter().chain([wake]).flatten().min().map_or(Outcome::Done, Outcome::After)
}

/// What to tell about a vnode that carries the port of another one (MC-134); the plan gives it its own.
fn port_conflict(store: &NodeStore, snapshot: &Snapshot, port: u16) -> Option<Action> {
    let (carried, holder) = store.port_conflict(snapshot.vnode.as_deref()?)?;
    let message = format!("port {carried} belongs to vnode {holder}, this one gets {port}");
    Some(Action::Event(VnodeEvent { warning: true, reason: "ProxierPortConflict", message }))
}

/// How much is known of a node; `None` when the engine should have decided and did not: what is published stands, and
/// it is asked again.
fn knowledge<'a>(
    surroundings: &Surroundings,
    decision: Option<&'a Decision>,
    candidate: bool,
) -> Option<Knowledge<'a>> {
    match (surroundings.readiness, decision) {
        (Readiness::Listing, _) => Some(Knowledge::Nothing),
        (Readiness::Ready, Some(failed)) if failed.governed_by.as_deref() == Some("") => None,
        // PO-704: nothing is written for a node whose policy may still load, as long as we may wait for it.
        (Readiness::Ready, Some(waits)) if waits.loading && surroundings.loading_left.is_some() => {
            Some(Knowledge::NodeOnly)
        }
        (Readiness::Ready, Some(decision)) => Some(Knowledge::Decided(decision)),
        (Readiness::Ready, None) => (!candidate).then_some(Knowledge::NodeOnly),
    }
}

/// What a policy's status says about this node.
fn remember(store: &NodeStore, work: &Work, leased_by: Option<&String>, loading: bool) {
    let decided = work.decision.as_ref().filter(|decision| decision.selected).map(|decision| Decided {
        governed_by: decision.governed_by.clone(),
        shadowed: decision.shadowed.clone(),
        failed: !loading && (decision.verdict == Verdict::Held || (decision.withheld && !decision.announce)),
        withheld: decision.withheld,
        leased_by: leased_by.cloned(),
    });
    store.set_decided(&work.key, decided);
}

fn until(at: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(at.duration_since(now)).unwrap_or(Duration::ZERO)
}

/// How long policies may keep the nodes of a fresh leader from being decided (PO-704).
pub(super) const POLICIES_WAIT: Duration = Duration::from_secs(30);
/// How long a fresh leader waits at most for a decision about each node before it tells about policies.
const FIRST_ROUND: Duration = Duration::from_secs(45);

/// Opens the store: nothing before `lists` (the first lists of both clusters, the engine's first list of policies, and
/// our finalizer on the binding). What is told about policies waits for the first round of decisions: before that, a
/// policy would seem to lease nothing.
pub async fn open_gate(
    store: Arc<NodeStore>,
    lists: impl Future<Output = ()>,
    policies: Arc<PolicyStore>,
    cancel: CancellationToken,
) {
    tokio::select! {
        () = cancel.cancelled() => return,
        () = lists => {}
    }
    store.set_readiness(Readiness::Ready);
    tokio::select! {
        () = cancel.cancelled() => return,
        _ = tokio::time::timeout(FIRST_ROUND, store.settled()) => {}
    }
    store.settle();
    policies.wake_all();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nodes::vnode::BindingView;

    #[test]
    fn only_an_answer_that_closes_a_lease_can_be_too_old() {
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let closed = |end: i64| Decision { withheld: true, valid_until: Some(end), ..Decision::default() };
        assert!(is_over(&closed(1_800_000_000), now));
        assert!(!is_over(&closed(1_800_000_001), now));
        assert!(!is_over(&Decision { withheld: false, ..closed(1_799_999_000) }, now));
        assert!(!is_over(&Decision { valid_until: None, ..closed(0) }, now));
    }

    fn surroundings(readiness: Readiness, waiting: bool) -> Surroundings {
        Surroundings {
            binding: BindingView::default(),
            readiness,
            loading_left: waiting.then_some(Duration::from_secs(20)),
            proxier: Vec::new(),
            loss: None,
        }
    }

    fn governed(by: &str, loading: bool) -> Decision {
        Decision { governed_by: Some(by.to_owned()), loading, ..Decision::default() }
    }

    #[test]
    fn only_nodes_whose_own_policy_loads_wait_and_only_for_a_while() {
        let (fresh, later) = (surroundings(Readiness::Ready, true), surroundings(Readiness::Ready, false));
        let (loads, loaded) = (governed("p", true), governed("q", false));
        assert_eq!(knowledge(&fresh, Some(&loads), true), Some(Knowledge::NodeOnly));
        assert_eq!(knowledge(&fresh, Some(&loaded), true), Some(Knowledge::Decided(&loaded)));
        assert_eq!(knowledge(&later, Some(&loads), true), Some(Knowledge::Decided(&loads)));
        let listing = surroundings(Readiness::Listing, true);
        assert_eq!(knowledge(&listing, Some(&loaded), true), Some(Knowledge::Nothing));
    }

    #[test]
    fn what_the_engine_failed_on_is_asked_again() {
        let ready = surroundings(Readiness::Ready, false);
        assert_eq!(knowledge(&ready, Some(&governed("", false)), true), None);
        assert_eq!(knowledge(&ready, None, true), None);
        assert_eq!(knowledge(&ready, None, false), Some(Knowledge::NodeOnly), "nobody is asked about it");
    }
}
