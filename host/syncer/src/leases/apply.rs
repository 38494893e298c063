//! Renews Leases by the lightest possible request.
//!
//! Runs from the moment of leadership and needs neither a worker nor a policy: as long as a Syncer leads, vnodes that
//! were Ready stay Ready.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering},
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
    request::{create_json, merge_patch, paths},
    tasks::Workers,
};

/// Requests at a time.
const IN_FLIGHT: usize = 16;
/// Wait after a failed renewal.
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
}

impl std::fmt::Debug for LeaseKeeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LeaseKeeper").field("store", &self.store).finish_non_exhaustive()
    }
}

impl LeaseKeeper {
    /// A keeper for the vnodes of `store`.
    pub fn new(computing: Client, store: Arc<NodeStore>, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { computing, store, clock, known: Mutex::default() })
    }

    /// Runs until cancelled. Leases and vnodes stay as they are then.
    pub async fn run(self: Arc<Self>, cancel: CancellationToken) {
        let changed = Arc::new(Notify::new());
        {
            let changed = Arc::clone(&changed);
            self.store.on_vnode_change(move |_| changed.notify_one());
        }
        let start = Instant::now();
        let wheel = Arc::new(Mutex::new(Wheel::default()));
        let mut workers = Workers::new(IN_FLIGHT);
        let mut stale = true;
        loop {
            if std::mem::take(&mut stale) {
                let targets = self.store.lease_targets(self.clock.now());
                self.forget(&targets);
                wheel.lock().set_targets(targets, start.elapsed());
            }
            let due = wheel.lock().take(start.elapsed());
            if let Some((target, late)) = due {
                if late {
                    self.store.counters.late_leases.fetch_add(1, Ordering::Relaxed);
                }
                tokio::select! {
                    () = cancel.cancelled() => break,
                    () = workers.free() => {}
                }
                let (keeper, wheel) = (Arc::clone(&self), Arc::clone(&wheel));
                workers.start(async move {
                    let result = keeper.renew(&target).await;
                    let now = start.elapsed();
                    match result {
                        Ok(()) => wheel.lock().renewed(&target.vnode, now),
                        Err(error) => {
                            tracing::warn!(
                                vnode = &*target.vnode,
                                error = error.chain(),
                                "Lease not renewed"
                            );
                            wheel.lock().retry(&target.vnode, now + RETRY);
                        }
                    }
                });
                continue;
            }
            let next = wheel.lock().next_due().map(|due| start + due);
            tokio::select! {
                () = cancel.cancelled() => break,
                () = workers.attend() => {}
                () = changed.notified() => {
                    // A relist tells every vnode; the set is taken once.
                    tokio::time::sleep(GATHER).await;
                    stale = true;
                }
                () = sleep_until(next) => {}
            }
        }
        workers.finish().await;
    }

    fn forget(&self, targets: &[LeaseTarget]) {
        let there: HashMap<&str, &str> =
            targets.iter().map(|target| (&*target.vnode, target.uid.as_str())).collect();
        self.known.lock().retain(|vnode, uid| there.get(&**vnode) == Some(&uid.as_str()));
    }

    async fn renew(&self, target: &LeaseTarget) -> Result<(), ApplyError> {
        let vnode = &*target.vnode;
        let path =
            format!("{}?fieldManager={}", paths::lease(namespace::NODE_LEASE, vnode), manager::SYNCER_LEASE);
        let right = self.known.lock().get(vnode) == Some(&target.uid);
        let now = self.clock.now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string();
        // The first renewal of a vnode also sets holder and owner right: a Lease may be left from one of that name.
        let change = if right { json!({"spec": {"renewTime": now}}) } else { whole(target, &now) };
        match merge_patch(&self.computing, &path, &change).await {
            Ok(_) => {}
            Err(ApplyError::NotFound { .. }) => self.create(target, &now).await?,
            Err(error) => return Err(error),
        }
        self.known.lock().insert(Arc::clone(&target.vnode), target.uid.clone());
        Ok(())
    }

    async fn create(&self, target: &LeaseTarget, now: &str) -> Result<(), ApplyError> {
        let mut lease = whole(target, now);
        lease["apiVersion"] = "coordination.k8s.io/v1".into();
        lease["kind"] = "Lease".into();
        lease["metadata"]["name"] = (*target.vnode).into();
        lease["metadata"]["namespace"] = namespace::NODE_LEASE.into();
        let path = format!("{}?fieldManager={}", paths::leases(namespace::NODE_LEASE), manager::SYNCER_LEASE);
        create_json(&self.computing, &path, &lease).await.map(drop)
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
