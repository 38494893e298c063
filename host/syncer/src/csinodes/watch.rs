//! The two watches of CSINodes, and the loop over the queue.

use std::sync::Arc;

use kube::{Api, runtime::watcher::Config};
use kubeocean_api::{keys::label, name::fit_label_value};
use kubeocean_runtime::{
    events::{Event, Severity},
    queue::drive,
    sink::{Denial, Sink},
    watch::{WatchHealth, WatchSpec, watch_into},
};
use tokio_util::sync::CancellationToken;

use super::{apply::CsiNodeSync, index::CsiNodeStore, view::CsiNode};

/// The worker's CSINodes. A role without the right to watch them turns the mirror off (API-810).
struct Originals(Arc<CsiNodeSync>);

impl Sink<CsiNode> for Originals {
    fn apply(&self, original: CsiNode) {
        self.0.store.saw_original(original);
    }
    fn delete(&self, original: CsiNode) {
        self.0.store.lost_original(&original);
    }
    fn reset(&self, all: Vec<CsiNode>) {
        self.0.store.reset_originals(all);
    }
    fn denied(&self, why: Denial) {
        if why == Denial::Forbidden {
            self.0.events.publish(Event {
                regarding: self.0.binding.clone(),
                severity: Severity::Warning,
                reason: "FeatureDisabled",
                message:
                    "CSINodes are not mirrored: the worker cluster does not permit to list and watch csinodes"
                        .to_owned(),
            });
        }
    }
}

/// Copies of this binding.
struct Copies(Arc<CsiNodeStore>);

impl Sink<CsiNode> for Copies {
    fn apply(&self, copy: CsiNode) {
        self.0.saw_copy(copy);
    }
    fn delete(&self, copy: CsiNode) {
        self.0.lost_copy(&copy);
    }
    fn reset(&self, all: Vec<CsiNode>) {
        self.0.reset_copies(all);
    }
}

/// Mirrors CSINodes until `cancel`. Nothing is written before the first lists of both clusters and `gate`, the first list
/// of vnodes, are complete: before that, absence proves nothing.
pub async fn run(
    sync: Arc<CsiNodeSync>,
    gate: impl Future<Output = ()> + Send,
    workers: usize,
    cancel: CancellationToken,
) {
    let (in_worker, in_computing) = (Arc::new(WatchHealth::default()), Arc::new(WatchHealth::default()));
    let originals = WatchSpec {
        name: "CSINodes of the worker",
        api: Api::all(sync.worker.clone()),
        config: Config::default(),
    };
    let binding = fit_label_value(&sync.store.nodes().identity().binding);
    let copies = WatchSpec {
        name: "copies of CSINodes",
        api: Api::all(sync.computing.clone()),
        config: Config::default().labels(&format!("{}={binding}", label::CLUSTER_BINDING)),
    };
    let lists = [Arc::clone(&in_worker), Arc::clone(&in_computing)];
    let work = async {
        let ready = async {
            for list in lists {
                list.synced().await;
            }
            gate.await;
        };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = ready => sync.store.wake_all(),
        }
        let sync = Arc::clone(&sync);
        let heart = sync.health.begin("CSINodes");
        drive(Arc::clone(&sync.store.queue), workers, cancel.clone(), heart, move |vnode| {
            let sync = Arc::clone(&sync);
            async move { sync.reconcile(&vnode).await }
        })
        .await;
    };
    tokio::join!(
        watch_into(originals, Arc::new(Originals(Arc::clone(&sync))), in_worker, cancel.clone()),
        watch_into(copies, Arc::new(Copies(Arc::clone(&sync.store))), in_computing, cancel.clone()),
        work,
    );
}
