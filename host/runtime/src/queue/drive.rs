//! The loop that works on a queue.

use std::{fmt::Debug, future::Future, hash::Hash, sync::Arc};

use tokio_util::sync::CancellationToken;

use super::{Outcome, Queue};
use crate::{
    health::{Heartbeat, PULSE},
    tasks::Workers,
};

/// Works on a queue with up to `workers` keys at a time until `cancel`, then waits for the running ones. A panic in a
/// reconcile is a panic of this future: its key would otherwise count as running for ever. While all workers are busy
/// and none gets done, or all that one flow may have, the heart stands still.
pub async fn drive<K, F, Fut>(
    queue: Arc<Queue<K>>,
    workers: usize,
    cancel: CancellationToken,
    heart: Heartbeat,
    reconcile: F,
) where
    K: Clone + Eq + Hash + Ord + Debug + Send + Sync + 'static,
    F: Fn(K) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    queue.share_out(workers);
    let mut workers = Workers::new(workers);
    let mut pulse = tokio::time::interval(PULSE);
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            () = workers.free() => {
                if !queue.is_stuck() {
                    heart.beat();
                }
            }
        }
        let key = tokio::select! {
            () = cancel.cancelled() => break,
            () = workers.attend() => continue,
            _ = pulse.tick() => continue,
            key = queue.next() => key,
        };
        let work = reconcile(key.clone());
        let queue = Arc::clone(&queue);
        workers.start(async move {
            let outcome = work.await;
            queue.done(&key, outcome);
        });
    }
    workers.finish().await;
}
