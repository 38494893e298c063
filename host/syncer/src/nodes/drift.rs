//! A recount of the sums of requests, once an hour (BU section 21). They are kept incrementally; a difference is a defect
//! of [`super::index`], which is counted, told and mended.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::store::NodeStore;

/// Time between two recounts.
const EVERY: Duration = Duration::from_hours(1);
/// The same in debug builds: soon enough for tests of the whole to see a defect.
const EVERY_DEBUG: Duration = Duration::from_secs(10);

/// Recounts until cancelled.
pub async fn run(store: Arc<NodeStore>, cancel: CancellationToken) {
    let every = if cfg!(debug_assertions) { EVERY_DEBUG } else { EVERY };
    recount_each(every, &store, &cancel).await;
}

async fn recount_each(every: Duration, store: &NodeStore, cancel: &CancellationToken) {
    let mut ticks = tokio::time::interval(every);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = ticks.tick() => {}
        }
        let wrong = store.recount();
        if wrong > 0 {
            tracing::error!(nodes = wrong, "the sums of requests were wrong and have been counted anew");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, sync::atomic::Ordering};

    use serde_json::json;
    use tokio::{task::yield_now, time::advance};

    use super::*;
    use crate::nodes::{
        index::{Identity, Index},
        view::WorkerPod,
        vnode::BindingView,
    };

    const NODE: &str = "n1";
    const VNODE: &str = "vnode-cls-a-n1";

    fn store() -> Arc<NodeStore> {
        let identity =
            Identity { binding: "dc-east".into(), cluster_id: "cls-a".into(), computing_uid: "c-1".into() };
        let store = NodeStore::new(identity, BindingView::default(), Arc::default());
        let pod: WorkerPod = serde_json::from_value(json!({
            "metadata": {"uid": "u", "name": "foreign", "namespace": "x"},
            "spec": {"nodeName": NODE, "containers": [{"name": "c", "resources": {"requests": {"cpu": "100m"}}}]},
            "status": {"phase": "Running"},
        }))
        .unwrap();
        let node = serde_json::from_value(json!({"metadata": {"name": NODE, "uid": NODE}})).unwrap();
        silently(&store, |index| {
            index.set_pnode(node);
            index.set_pod(pod);
        });
        store
    }

    /// Changes the sums, and no vnode waits for a decision because of it.
    fn silently(store: &NodeStore, change: impl FnOnce(&mut Index)) {
        store.change(|index| {
            change(index);
            BTreeSet::new()
        });
    }

    /// As a release runs, over two hours, the second of which begins with a defect.
    #[tokio::test(start_paused = true)]
    async fn wrong_sums_are_mended_and_counted_within_an_hour() {
        let store = store();
        let cancel = CancellationToken::new();
        let _stop = cancel.clone().drop_guard();
        let recounted = Arc::clone(&store);
        tokio::spawn(async move { recount_each(EVERY, &recounted, &cancel).await });
        let pass = async |time: Duration| {
            advance(time).await;
            yield_now().await;
        };
        let told = || {
            let cpu = store.snapshot(VNODE).usage.others["cpu"];
            (cpu, store.counters.usage_drift.load(Ordering::Relaxed), store.queue.len())
        };
        yield_now().await;
        pass(EVERY).await;
        assert_eq!(told(), (100, 0, 0), "nothing was wrong");

        silently(&store, |index| index.miscount(NODE));
        pass(EVERY / 2).await;
        assert_eq!(told(), (700, 0, 0), "not counted yet");
        pass(EVERY / 2).await;
        assert_eq!(told(), (100, 1, 1), "mended, counted, and the vnode is to be decided anew");
        pass(EVERY).await;
        assert_eq!(told(), (100, 1, 1), "once");
    }
}
