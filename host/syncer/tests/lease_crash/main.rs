//! A Syncer that dies after each of its writes: whatever it had just written, the next one brings both clusters to where
//! an uninterrupted one brings them, at every stage of the life of a lease (BU section 18).
//!
//! The writes of one uninterrupted run are listed; then one run for each of them stops dead right after it. All runs live
//! side by side on the two control planes of this binary, each with a binding, a worker node and a policy of its own.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
#![allow(clippy::similar_names, reason = "vpod and ppod are the words for the two sides")]

mod door;
mod picture;
mod scenario;
mod syncer;

use std::collections::BTreeSet;

use futures::{StreamExt, stream};

use scenario::Scenario;

/// Runs at a time.
const SIDE_BY_SIDE: usize = 12;

/// Every kind of write a lease and its pods need; each must have been the last of some Syncer.
const KINDS: [&str; 16] = [
    "computing PATCH clusterbindings",
    "computing PATCH clusterbindings/status",
    "computing POST nodes",
    "computing PATCH nodes",
    "computing PATCH nodes/status",
    "computing DELETE nodes",
    "computing POST leases",
    "computing PATCH pods/status",
    "computing DELETE pods",
    "worker PATCH nodes",
    "worker PATCH resourceleasingpolicies",
    "worker PATCH resourceleasingpolicies/status",
    "worker POST configmaps",
    "worker DELETE configmaps",
    "worker POST pods",
    "worker DELETE pods",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_syncer_may_die_after_any_write() {
    let whole = Scenario::new("whole").await.run(None, None).await;
    let runs = whole.writes.iter().enumerate().map(|(number, last)| {
        let pictures = &whole.pictures;
        async move {
            let run =
                Scenario::new(&format!("life-{number}")).await.run(Some(last.clone()), Some(pictures)).await;
            run.died.then_some(last.0.as_str())
        }
    });
    let last: Vec<Option<&str>> = stream::iter(runs).buffer_unordered(SIDE_BY_SIDE).collect().await;
    let died: BTreeSet<&str> = last.iter().flatten().copied().collect();
    let missing: Vec<&str> = KINDS.into_iter().filter(|kind| !died.contains(kind)).collect();
    assert!(missing.is_empty(), "no Syncer died after {missing:?}; they died after {died:?}");
}
