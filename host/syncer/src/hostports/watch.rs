//! The watch of port reservations, and the loop over the queue.

use std::sync::Arc;

use kube::{Api, runtime::watcher::Config};
use kubeocean_api::{
    keys::{label, namespace},
    name::fit_label_value,
};
use kubeocean_runtime::{
    queue::drive,
    sink::Sink,
    watch::{WatchHealth, WatchSpec, watch_into},
};
use tokio_util::sync::CancellationToken;

use super::{apply::HostPortSync, index::HostPortStore, view::FakePod};

impl Sink<FakePod> for HostPortStore {
    fn apply(&self, fake: FakePod) {
        self.saw(fake);
    }
    fn delete(&self, fake: FakePod) {
        self.lost(&fake);
    }
    fn reset(&self, all: Vec<FakePod>) {
        self.listed(all);
    }
}

/// Keeps reservations until `cancel`. Nothing is written before the first list of reservations and `gate`, the first lists
/// of vnodes, worker nodes and worker pods, are complete: before that, no port seems to be held.
pub async fn run(
    sync: Arc<HostPortSync>,
    gate: impl Future<Output = ()> + Send,
    workers: usize,
    cancel: CancellationToken,
) {
    let listed = Arc::new(WatchHealth::default());
    let binding = fit_label_value(&sync.store.nodes().identity().binding);
    let spec = WatchSpec {
        name: "port reservations",
        api: Api::namespaced(sync.computing.clone(), namespace::FAKE),
        config: Config::default().labels(&format!(
            "{}=true,{}={binding}",
            label::HOSTPORT_FAKE_POD,
            label::CLUSTER_BINDING
        )),
    };
    let first = Arc::clone(&listed);
    let work = async {
        let ready = async {
            first.synced().await;
            gate.await;
            sync.adopt_all().await;
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = ready => sync.store.wake_all(),
        }
        let sync = Arc::clone(&sync);
        let heart = sync.health.begin("host ports");
        drive(Arc::clone(&sync.store.queue), workers, cancel.clone(), heart, move |vnode| {
            let sync = Arc::clone(&sync);
            async move { sync.reconcile(&vnode).await }
        })
        .await;
    };
    tokio::join!(watch_into(spec, Arc::clone(&sync.store), listed, cancel.clone()), work);
}
