//! The watch of worker events about pods, and the loop over the queue.

use std::sync::Arc;

use kube::{Api, runtime::watcher::Config};
use kubeocean_runtime::{
    queue::drive,
    sink::{Denial, Refusals, Sink},
    watch::{WatchSpec, watch_into},
};
use tokio_util::sync::CancellationToken;

use super::{apply::PodEventSync, index::EventStore, view::EventObject};
use crate::{config::PodEvents, pods::features::Feature};

/// Pods whose events are written at a time.
const WORKERS: usize = 4;

/// The worker's events. A role without the right to watch them turns reflection off (API-810).
struct Said {
    sync: Arc<PodEventSync>,
    refusals: Refusals,
    off: CancellationToken,
}

impl Sink<EventObject> for Said {
    fn apply(&self, event: EventObject) {
        self.store().saw(event.view);
    }
    fn delete(&self, event: EventObject) {
        self.store().lost(&event.view.name);
    }
    fn reset(&self, all: Vec<EventObject>) {
        self.refusals.ended();
        self.store().listed(all.into_iter().map(|event| event.view).collect());
    }
    fn denied(&self, why: Denial) {
        if why == Denial::Forbidden && self.refusals.last() {
            self.sync.features.turn_off(Feature::PodEvents);
            self.off.cancel();
        }
    }
}

impl Said {
    fn store(&self) -> &EventStore {
        &self.sync.store
    }
}

/// Reflects events until `cancel`. Begins after `gate`, the first lists of pods and vnodes: before that every pod seems to
/// be somebody else's.
pub async fn run(sync: Arc<PodEventSync>, gate: impl Future<Output = ()> + Send, cancel: CancellationToken) {
    tokio::select! {
        () = cancel.cancelled() => return,
        () = gate => {}
    }
    // What every pod causes is not sent at all. A selector cannot name all that is wanted, so the store chooses among the
    // rest.
    let fields = match sync.store.wanted() {
        PodEvents::Warning => {
            "involvedObject.kind=Pod,reason!=Scheduled,reason!=Pulling,reason!=Pulled,reason!=Created,reason!=Started"
        }
        PodEvents::All => "involvedObject.kind=Pod",
    };
    let spec = WatchSpec {
        name: "pod events",
        api: Api::namespaced(sync.clusters.worker.clone(), &sync.clusters.scope.mount_namespace),
        config: Config::default().fields(fields),
    };
    let off = cancel.child_token();
    let said = Arc::new(Said { sync: Arc::clone(&sync), refusals: Refusals::default(), off: off.clone() });
    let heart = sync.health.begin("pod events");
    let queue = Arc::clone(sync.store.queue());
    let work = drive(queue, WORKERS, cancel, heart, move |pod| {
        let sync = Arc::clone(&sync);
        async move { sync.reconcile(&pod).await }
    });
    tokio::join!(watch_into(spec, said, Arc::default(), off), work);
}
