//! From the kubeconfig Secret to a session with the worker, and again when the Secret changes.
//!
//! While there is no worker, vnodes are only told that it cannot be reached.

use std::sync::{Arc, atomic::Ordering};

use crate::{
    bindings::{deletion, worker_identity},
    leader::Leader,
    nodes::{decide::run as run_nodes, loss::WorkerLoss, store::Readiness},
    session,
};
use kubeocean_api::binding::SecretRef;
use kubeocean_runtime::{
    binding::{
        Binding,
        connection::{ConnectError, ConnectOptions, connected},
        watch::{SecretState, follow_secret},
    },
    events::{Event, Regarding, Severity},
    tasks::{TaskEnded, Tasks},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How often it is looked whether the worker has been out of reach for too long.
const LOOK: std::time::Duration = std::time::Duration::from_secs(2);

/// Runs one connection after the other until `cancel`.
pub(crate) async fn run(leader: Leader, cancel: CancellationToken) -> Result<(), TaskEnded> {
    let mut binding = leader.binding.clone();
    while !cancel.is_cancelled() {
        let reference = binding.borrow_and_update().spec.secret_ref.clone();
        let over = cancel.child_token();
        let mut tasks = Tasks::new(over.clone());
        let (secrets, following) = follow_secret(
            &leader.computing,
            &leader.config.kubeconfig_rules,
            &reference.namespace,
            &reference.name,
            over.clone(),
        );
        tasks.spawn("kubeconfig secret", following);
        let connection = Connection { leader: leader.clone(), binding: binding.clone(), reference };
        tasks.spawn_owner("connection", async move {
            let result = connection.run(secrets, &over).await;
            over.cancel();
            result
        });
        tasks.join().await?;
    }
    Ok(())
}

struct Connection {
    leader: Leader,
    binding: watch::Receiver<Arc<Binding>>,
    reference: SecretRef,
}

impl Connection {
    /// Connects, and runs a session until the Secret or the reference to it changes.
    async fn run(
        mut self,
        mut secrets: watch::Receiver<SecretState>,
        cancel: &CancellationToken,
    ) -> Result<(), TaskEnded> {
        let secret = format!("{}/{}", self.reference.namespace, self.reference.name);
        let leader = self.leader.clone();
        leader.stores.nodes.set_readiness(Readiness::Listing);
        let waiting = cancel.child_token();
        let connecting = async {
            let options = ConnectOptions {
                allow_unsafe: leader.config.kubeconfig_rules.allow_unsafe,
                rate: leader.config.worker_rate,
            };
            let connect = connected(&secret, &mut secrets, options, cancel, |error| tell(&leader, error));
            let worker = tokio::select! {
                worker = connect => worker,
                () = self.moved() => None,
            };
            let worker = match worker {
                Some(worker) => tokio::select! {
                    () = worker_identity::recognized(&leader, &worker) => Some(worker.clone()),
                    _ = secrets.changed() => None,
                    () = self.moved() => None,
                    () = cancel.cancelled() => None,
                },
                None => None,
            };
            waiting.cancel();
            worker
        };
        let (worker, ()) = tokio::join!(connecting, without_worker(&leader, &waiting));
        let Some(worker) = worker else { return Ok(()) };
        let over = cancel.child_token();
        let work = session::run(&leader, worker, over.clone());
        tokio::pin!(work);
        tokio::select! {
            result = &mut work => return result,
            _ = secrets.changed() => tracing::info!(secret, "kubeconfig changed, reconnecting"),
            () = self.moved() => tracing::info!(secret, "secretRef changed, reconnecting"),
        }
        over.cancel();
        work.await
    }

    /// The binding names another Secret.
    async fn moved(&mut self) {
        let used = &self.reference;
        if self.binding.wait_for(|binding| binding.spec.secret_ref != *used).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

fn tell(leader: &Leader, error: &ConnectError) {
    let binding = leader.binding.borrow().clone();
    tracing::warn!(binding = binding.name, %error, "no connection to the worker cluster, retrying");
    leader.events.publish(Event {
        regarding: Regarding::binding(&binding.name, &binding.uid),
        severity: Severity::Warning,
        reason: "WorkerConnectionFailed",
        message: error.to_string(),
    });
}

/// While no worker is connected vnodes only get their reachability condition and taint.
async fn without_worker(leader: &Leader, cancel: &CancellationToken) {
    let nodes = run_nodes(Arc::new(leader.node_runtime(None, cancel.clone())));
    let looking = async {
        let mut ticks = tokio::time::interval(LOOK);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                _ = ticks.tick() => {
                    let loss = if leader.stores.other_worker.load(Ordering::Relaxed) {
                        Some(WorkerLoss::OtherCluster)
                    } else {
                        WorkerLoss::judge(leader.stores.worker.is_lost(), [])
                    };
                    leader.stores.nodes.set_loss(loss);
                    deletion::wait_for_worker(leader);
                }
            }
        }
    };
    tokio::join!(nodes, looking);
}
