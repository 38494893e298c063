//! A recount of the sums of requests, once an hour (BU section 21). They are kept incrementally; a difference is a defect
//! of [`super::index`], which is counted, told and mended.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::store::NodeStore;

/// Time between two recounts; in debug builds soon enough for tests to see a defect.
const EVERY: Duration =
    if cfg!(debug_assertions) { Duration::from_secs(10) } else { Duration::from_hours(1) };

/// Recounts until cancelled.
pub async fn run(store: Arc<NodeStore>, cancel: CancellationToken) {
    let mut ticks = tokio::time::interval(EVERY);
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
