//! The two watches of pods and the tasks that work on them (TD section 19).

use std::sync::Arc;

use kube::{Api, runtime::watcher};
use kubeocean_api::keys::label;
use tokio_util::sync::CancellationToken;

use super::{
    apply::PodSync,
    view::{PpodObject, VpodObject},
};
use kubeocean_runtime::{
    queue::drive,
    watch::{WatchHealth, WatchSpec, watch_into},
};

/// Health of the two watches.
#[derive(Debug, Default)]
pub struct PodHealth {
    /// Scheduled pods of the computing cluster.
    pub vpods: Arc<WatchHealth>,
    /// Our pods in the mount namespace.
    pub ppods: Arc<WatchHealth>,
}

impl PodHealth {
    /// Waits for both first lists. Before that nothing is known to be absent.
    pub async fn synced(&self) {
        self.vpods.synced().await;
        self.ppods.synced().await;
    }
}

/// Feeds the store until `cancel`.
pub async fn watch_pods(sync: Arc<PodSync>, health: Arc<PodHealth>, cancel: CancellationToken) {
    let vpods = WatchSpec::<VpodObject> {
        name: "vpods",
        api: Api::all(sync.clusters.computing.clone()),
        config: watcher::Config::default().fields("spec.nodeName!="),
    };
    let ppods = WatchSpec::<PpodObject> {
        name: "ppods",
        api: Api::namespaced(sync.clusters.worker.clone(), &sync.clusters.scope.mount_namespace),
        config: watcher::Config::default().labels(&format!(
            "{}={}",
            label::MANAGED_BY,
            label::MANAGED_BY_VALUE
        )),
    };
    tokio::join!(
        watch_into(vpods, Arc::clone(&sync.store), Arc::clone(&health.vpods), cancel.clone()),
        watch_into(ppods, Arc::clone(&sync.store), Arc::clone(&health.ppods), cancel),
    );
}

/// Works on the queue until `cancel`. Start it when the first lists of both clusters are complete.
pub async fn run_pods(sync: Arc<PodSync>, workers: usize, cancel: CancellationToken) {
    let queue = Arc::clone(sync.store.queue());
    let heart = sync.health.begin("pods");
    drive(queue, workers, cancel, heart, move |key| {
        let sync = Arc::clone(&sync);
        async move { sync.reconcile(key).await }
    })
    .await;
}
