//! Renews Leases by the lightest possible request.
//!
//! Runs from the moment of leadership and needs neither a worker nor a policy: as long as a Syncer leads, vnodes that
//! were Ready stay Ready.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kube::Client;
use kubeocean_api::keys::{manager, namespace};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use super::wheel::{DURATION_SECONDS, Wheel};
use crate::nodes::store::{LeaseTarget, NodeStore};
use kubeocean_runtime::{
    clock::Clock,
    error::ApplyError,
    health::{Heartbeat, PULSE},
    queue::backoff,
    request::{create_only, merge_patch_only, paths},
    tasks::Workers,
};

/// Requests at a time.
const IN_FLIGHT: usize = 16;
/// Wait after a failed renewal; doubled after each further one, until the vnode's next turn is sooner.
const RETRY: Duration = Duration::from_secs(1);
/// Changes of the set of vnodes are taken together.
const GATHER: Duration = Duration::from_millis(50);

/// Renews the Leases of a binding's vnodes.
pub struct LeaseKeeper {
    computing: Client,
    store: Arc<NodeStore>,
    clock: Arc<dyn Clock>,
    /// Uid of the vnode whose Lease was last seen to be right, by name: then only the time is patched.
    known: Mutex<HashMap<Arc<str>, String>>,
    failures: Failures,
}

/// Renewals that failed in a row, by vnode.
#[derive(Debug, Default)]
struct Failures(Mutex<HashMap<Arc<str>, u32>>);

impl Failures {
    /// One more; says how long to wait.
    fn count(&self, vnode: &Arc<str>) -> Duration {
        let mut all = self.0.lock();
        let failures = all.entry(Arc::clone(vnode)).or_default();
        *failures += 1;
        backoff(RETRY, *failures, vnode)
    }

    fn reset(&self, vnode: &str) {
        self.0.lock().remove(vnode);
    }
}

impl std::fmt::Debug for LeaseKeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaseKeeper").field("store", &self.store).finish_non_exhaustive()
    }
}

/// Whether vnodes changed since they were taken.
#[derive(Debug, Default)]
struct Changes {
    pending: AtomicBool,
    told: Notify,
}

impl Changes {
    fn tell(&self) {
        self.pending.store(true, Ordering::Release);
        self.told.notify_one();
    }
}

impl LeaseKeeper {
    /// A keeper for the vnodes of `store`.
    pub fn new(computing: Client, store: Arc<NodeStore>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { computing, store, clock, known: Mutex::default(), failures: Failures::default() })
    }

    /// Runs until cancelled. Leases and vnodes stay as they are then. `heart` is told that it comes by.
    pub async fn run(self: Arc<Self>, heart: Heartbeat, cancel: CancellationToken) {
        let changes = Arc::new(Changes::default());
        {
            let changes = Arc::clone(&changes);
            self.store.on_vnode_change(move |_| changes.tell());
        }
        let start = Instant::now();
        let wheel = Arc::new(Mutex::new(Wheel::default()));
        let mut workers = Workers::new(IN_FLIGHT);
        let mut pulse = tokio::time::interval(PULSE);
        // A relist tells every vnode; the set is taken once, also while there is always a renewal due.
        let mut gathered = Some(Instant::now());
        loop {
            heart.beat();
            if gathered.is_none() && changes.pending.load(Ordering::Acquire) {
                gathered = Some(Instant::now() + GATHER);
            }
            if gathered.is_some_and(|at| at <= Instant::now()) {
                gathered = None;
                changes.pending.store(false, Ordering::Release);
                let targets = self.store.lease_targets(self.clock.now());
                self.forget(&targets);
                wheel.lock().set_targets(targets, start.elapsed());
            }
            let due = wheel.lock().take(start.elapsed());
            if let Some((target, late)) = due {
                tokio::select! {
                    () = cancel.cancelled() => break,
                    () = workers.free() => {}
                }
                let (keeper, wheel) = (Arc::clone(&self), Arc::clone(&wheel));
                workers.start(async move {
                    let result = keeper.renew(&target).await;
                    let now = start.elapsed();
                    match result {
                        Ok(()) => {
                            if late {
                                keeper.store.counters.late_leases.fetch_add(1, Ordering::Relaxed);
                            }
                            keeper.failures.reset(&target.vnode);
                            wheel.lock().renewed(&target.vnode, now);
                        }
                        Err(error) => {
                            tracing::warn!(
                                vnode = &*target.vnode,
                                error = error.chain(),
                                "Lease not renewed"
                            );
                            let pause = keeper.failures.count(&target.vnode);
                            wheel.lock().retry(&target.vnode, now + pause);
                        }
                    }
                });
                continue;
            }
            let next = wheel.lock().next_due().map(|due| start + due);
            let next = next.into_iter().chain(gathered).min();
            tokio::select! {
                () = cancel.cancelled() => break,
                () = workers.attend() => {}
                _ = pulse.tick() => {}
                () = changes.told.notified() => {}
                () = sleep_until(next) => {}
            }
        }
        workers.finish().await;
    }

    fn forget(&self, targets: &[LeaseTarget]) {
        let there: HashMap<&str, &str> =
            targets.iter().map(|target| (&*target.vnode, target.uid.as_str())).collect();
        self.known.lock().retain(|vnode, uid| there.get(&**vnode) == Some(&uid.as_str()));
        self.failures.0.lock().retain(|vnode, _| there.contains_key(&**vnode));
    }

    async fn renew(&self, target: &LeaseTarget) -> Result<(), ApplyError> {
        let vnode = &*target.vnode;
        let path =
            format!("{}?fieldManager={}", paths::lease(namespace::NODE_LEASE, vnode), manager::SYNCER_LEASE);
        let right = self.known.lock().get(vnode) == Some(&target.uid);
        let now = self.clock.now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        // A vnode that was just made has no Lease, as a rule.
        if right || !target.young || !self.create(target, &now).await? {
            // The first renewal of a vnode also sets holder and owner right: a Lease may be left from one of that name.
            let change = if right { json!({"spec": {"renewTime": now}}) } else { whole(target, &now) };
            match merge_patch_only(&self.computing, &path, &change).await {
                Ok(()) => {}
                Err(gone @ ApplyError::NotFound { .. }) => {
                    if !self.create(target, &now).await? {
                        return Err(gone);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.known.lock().insert(Arc::clone(&target.vnode), target.uid.clone());
        Ok(())
    }

    /// False: there is one.
    async fn create(&self, target: &LeaseTarget, now: &str) -> Result<bool, ApplyError> {
        let mut lease = whole(target, now);
        lease["apiVersion"] = "coordination.k8s.io/v1".into();
        lease["kind"] = "Lease".into();
        lease["metadata"]["name"] = (*target.vnode).into();
        lease["metadata"]["namespace"] = namespace::NODE_LEASE.into();
        let path = format!("{}?fieldManager={}", paths::leases(namespace::NODE_LEASE), manager::SYNCER_LEASE);
        match create_only(&self.computing, &path, &lease).await {
            Ok(()) => Ok(true),
            Err(ApplyError::AlreadyExists { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Everything we say in a Lease.
fn whole(target: &LeaseTarget, now: &str) -> Value {
    json!({
        "metadata": {"ownerReferences": [{
            "apiVersion": "v1", "kind": "Node", "name": &*target.vnode, "uid": target.uid,
        }]},
        "spec": {
            "holderIdentity": &*target.vnode,
            "leaseDurationSeconds": DURATION_SECONDS,
            "renewTime": now,
        },
    })
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use kube::Config;
    use kubeocean_runtime::{client::client, clock::SystemClock, health::Health};

    use super::*;
    use crate::nodes::{index::Identity, vnode::BindingView};

    /// A keeper whose API server is out of reach: nobody listens on the discard port of this machine.
    fn keeper() -> (Arc<LeaseKeeper>, Arc<Health>) {
        let nowhere = client(Config::new("http://127.0.0.1:9".parse().unwrap()), None).unwrap();
        let identity =
            Identity { binding: "dc-east".into(), cluster_id: "cls-a".into(), computing_uid: "c-1".into() };
        let store = NodeStore::new(identity, BindingView::default(), Arc::default());
        (LeaseKeeper::new(nowhere, store, Arc::new(SystemClock)), Arc::default())
    }

    #[tokio::test(start_paused = true)]
    async fn a_keeper_without_leases_comes_by() {
        let (keeper, health) = keeper();
        let running = tokio::spawn(keeper.run(health.begin("leases"), CancellationToken::new()));
        tokio::time::sleep(Duration::from_mins(20)).await;
        health.progress();
        assert!(health.is_alive());
        running.abort();
    }

    /// In real time: with a clock that waits for idle tasks, one that is never idle would have all the time it wants.
    #[tokio::test]
    async fn a_refused_renewal_is_not_asked_for_again_at_once() {
        let (keeper, health) = keeper();
        let vnode = json!({
            "metadata": {"name": "vnode-cls-a-n1", "uid": "u", "resourceVersion": "1"},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        });
        keeper.store.saw_vnode(serde_json::from_value(vnode).unwrap());
        let begun = Instant::now();
        let running = tokio::spawn(Arc::clone(&keeper).run(health.begin("leases"), CancellationToken::new()));
        let failures = || keeper.failures.0.lock().get("vnode-cls-a-n1").copied().unwrap_or_default();
        while failures() < 3 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(begun.elapsed() > Duration::from_secs(2), "after {:?}", begun.elapsed());
        running.abort();
    }

    #[test]
    fn a_lease_that_is_refused_again_and_again_is_asked_for_less_and_less_often() {
        let failures = Failures::default();
        let (a, b): (Arc<str>, Arc<str>) = ("vnode-cls-a-n1".into(), "vnode-cls-a-n2".into());
        let pauses: Vec<Duration> = (0..4).map(|_| failures.count(&a)).collect();
        let about = |pause: Duration, seconds: u64| {
            let plain = Duration::from_secs(seconds);
            pause <= plain && pause >= plain.mul_f64(0.9)
        };
        assert!(pauses.iter().zip([1, 2, 4, 8]).all(|(pause, seconds)| about(*pause, seconds)), "{pauses:?}");
        assert!(about(failures.count(&b), 1), "each for itself");
        failures.reset(&a);
        assert!(about(failures.count(&a), 1));
    }
}
