//! The Syncer's share in the deletion of its binding (BU section 14, TD section 13), in this order: vnodes are drained
//! and withdrawn, what followed them goes, copies are released, our marks on worker nodes and policies are taken off,
//! then the finalizer goes.
//!
//! Each step is repeated until nothing is left and can be cut anywhere: the next leader starts at the first step that
//! is not done. Vnodes and copies that go are events; what else there is to wait for, such as somebody's finalizer on a
//! copy, is looked at less and less often. Progress is shown in the binding's condition `SyncerCleanup`.

use std::{pin::pin, time::Duration};

use futures::FutureExt;
use tokio_util::sync::CancellationToken;

use super::{finalizer, status::Cleanup, strays};
use crate::{
    csinodes, hostports,
    leader::Leader,
    logconfigs,
    nodes::{apply::remove_labels, store::Readiness},
    objects::Clusters,
};
use kubeocean_runtime::{binding::Binding, error::ApplyError, queue::backoff};

/// How soon a step that is not finished is looked at again without an event; each time without progress twice as late.
const AGAIN: Duration = Duration::from_secs(1);
/// But never later than this.
const AT_LAST: Duration = Duration::from_secs(30);
/// What a list does not show yet may be there.
const WAITING_FOR_LISTS: &str = "waiting for the lists of both clusters";
/// Vnodes and copies go in groups.
const GATHER: Duration = Duration::from_millis(500);

/// Waits for the deletion of the binding and carries out our share, once `lists` of all that we own are complete.
pub(crate) async fn run(
    leader: &Leader,
    clusters: &Clusters,
    lists: impl Future<Output = ()>,
    cancel: CancellationToken,
) {
    let mut bindings = leader.binding.clone();
    tokio::select! {
        () = cancel.cancelled() => return,
        gone = bindings.wait_for(|binding| binding.deleting) => if gone.is_err() { return },
    }
    let mut lists = pin!(lists);
    if lists.as_mut().now_or_never().is_none() {
        tell(leader, "DrainingNodes", WAITING_FOR_LISTS.to_owned());
        tokio::select! {
            () = cancel.cancelled() => return,
            () = lists => {}
        }
    }
    let mut idle = 0;
    loop {
        let binding = bindings.borrow_and_update().clone();
        idle += 1;
        match step(leader, clusters, &binding).await {
            Ok(Progress::Finished) => {
                tracing::info!(binding = binding.name, "nothing of this binding is left");
                // Whoever follows the binding ends this task when the object is gone.
                cancel.cancelled().await;
                return;
            }
            Ok(Progress::Waiting { .. }) | Err(_) if is_out_of_reach(leader) => {
                if wait_for_worker(leader) {
                    idle = 1;
                }
            }
            Ok(Progress::Waiting { reason, message }) => {
                if tell(leader, reason, message) {
                    idle = 1;
                }
            }
            Err(error) => tracing::warn!(error = error.chain(), "deletion of the binding: retrying"),
        }
        let pause = backoff(AGAIN, idle, &binding.name).min(AT_LAST);
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(pause) => continue,
            () = leader.stores.something_went.notified() => idle = 0,
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(GATHER) => {}
        }
    }
}

/// The worker has been silent for a minute.
fn is_out_of_reach(leader: &Leader) -> bool {
    leader.stores.nodes.surroundings().loss.is_some()
}

/// While there is no connection to the worker cluster, the deletion waits for one, and says so. Returns whether that is news.
pub(crate) fn wait_for_worker(leader: &Leader) -> bool {
    if !leader.binding.borrow().deleting {
        return false;
    }
    let vnodes = leader.stores.nodes.vnode_names().len();
    let message = format!("no connection to the worker cluster, {vnodes} virtual nodes left");
    tell(leader, "WorkerLeftovers", message)
}

/// Shows how far the deletion has come; says whether it is news.
fn tell(leader: &Leader, reason: &'static str, message: String) -> bool {
    let cleanup = Some(Cleanup { reason, message });
    let news = leader.cleanup.send_if_modified(|shown| {
        let news = *shown != cleanup;
        shown.clone_from(&cleanup);
        news
    });
    if let (true, Some(Cleanup { reason, message })) = (news, cleanup) {
        let binding = leader.binding.borrow().name.clone();
        tracing::info!(binding, reason, message, "deletion of the binding goes on");
    }
    news
}

enum Progress {
    Waiting { reason: &'static str, message: String },
    Finished,
}

async fn step(leader: &Leader, clusters: &Clusters, binding: &Binding) -> Result<Progress, ApplyError> {
    let stores = &leader.stores;
    let waiting = |reason, message| Ok(Progress::Waiting { reason, message });
    if stores.nodes.readiness() < Readiness::Ready {
        return waiting("DrainingNodes", WAITING_FOR_LISTS.to_owned());
    }
    let vnodes = stores.nodes.vnode_names();
    if !vnodes.is_empty() {
        let named: Vec<&str> = vnodes.iter().take(10).map(String::as_str).collect();
        return waiting(
            "DrainingNodes",
            format!("{} virtual nodes left: {}", vnodes.len(), named.join(", ")),
        );
    }
    hostports::apply::release_all(&clusters.computing, &stores.identity).await?;
    let mirrors = csinodes::apply::release_all(&clusters.computing, &stores.identity).await?;
    if mirrors > 0 {
        return waiting("ReleasingObjects", format!("{mirrors} CSINodes left"));
    }
    let ppods = stores.pods.ppod_count();
    if ppods > 0 {
        return waiting("WorkerLeftovers", format!("{ppods} pods are still ending in the worker cluster"));
    }
    let left = stores.objects.release_all(clusters).await?;
    if left.total > 0 {
        return waiting(
            "ReleasingObjects",
            format!("{} objects left: {}", left.total, left.examples.join(", ")),
        );
    }
    match logconfigs::release_all(clusters, &stores.log_configs).await? {
        logconfigs::Left::Objects(0) => {}
        logconfigs::Left::Objects(left) => {
            return waiting("ReleasingObjects", format!("{left} LogConfigs left"));
        }
        logconfigs::Left::Unseen(side) => {
            let message = format!(
                "LogConfigs are left, but those of the {side} cluster may not be listed: grant list and delete of \
                 logconfigs.cls.cloud.tencent.com there, as its chart does"
            );
            return waiting("ReleasingObjects", message);
        }
    }
    // All nodes are listed for it, therefore not before everything else is done.
    let strays = strays::label_anew(&leader.computing, &stores.nodes).await?;
    if strays > 0 {
        return waiting(
            "DrainingNodes",
            format!("{strays} virtual nodes had not been seen, or had lost their labels"),
        );
    }
    let unlabelled = {
        let policies = &stores.policies;
        remove_labels(&clusters.worker, &stores.nodes, &|value| policies.may_clean_label(value)).await
    };
    let unreleased = stores.policies.release_all(&clusters.worker).await;
    if unlabelled + unreleased > 0 {
        return waiting(
            "WorkerLeftovers",
            format!("{unlabelled} node labels and {unreleased} policy finalizers could not be removed yet"),
        );
    }
    finalizer::change(leader, &binding.name, &binding.uid, finalizer::Change::Remove).await?;
    Ok(Progress::Finished)
}
