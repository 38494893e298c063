//! A Syncer that dies after each of its writes: whatever it had just written, the next one brings both clusters to where
//! an uninterrupted one brings them, at every stage of the life of a lease (BU section 18).
//!
//! The writes of one uninterrupted run are counted; then one run for each of them stops dead right after it. All runs
//! live side by side on the two control planes of this binary, each with a binding, a worker node and a policy of its own.

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
const SIDE_BY_SIDE: usize = 8;

/// Every kind of write a lease and its pods need; each must have been the last of some Syncer.
const KINDS: [&str; 19] = [
    "computing PATCH clusterbindings",
    "computing PATCH clusterbindings/status",
    "computing POST nodes",
    "computing PATCH nodes",
    "computing PATCH nodes/status",
    "computing DELETE nodes",
    "computing POST leases",
    "computing PATCH leases",
    "computing PATCH pods",
    "computing PATCH pods/status",
    "computing DELETE pods",
    "worker PATCH nodes",
    "worker PATCH resourceleasingpolicies",
    "worker PATCH resourceleasingpolicies/status",
    "worker POST pods",
    "worker PATCH pods",
    "worker DELETE pods",
    "worker POST configmaps",
    "worker DELETE configmaps",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_syncer_may_die_after_any_write() {
    let whole = Scenario::new("whole").await.run(usize::MAX, None).await;
    assert_eq!(whole.last, None);
    let runs = (1..=whole.writes).map(|write| {
        let pictures = &whole.pictures;
        async move { Scenario::new(&format!("after-{write}")).await.run(write, Some(pictures)).await.last }
    });
    let last: Vec<Option<String>> = stream::iter(runs).buffer_unordered(SIDE_BY_SIDE).collect().await;
    let died: BTreeSet<&str> = last.iter().flatten().map(String::as_str).collect();
    let missing: Vec<&str> = KINDS.into_iter().filter(|kind| !died.contains(kind)).collect();
    assert!(missing.is_empty(), "no Syncer died after {missing:?}; they died after {died:?}");
}
