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
use kubeocean_runtime::request::paths;

use door::Trouble;
use scenario::Scenario;

/// Runs at a time.
const SIDE_BY_SIDE: usize = 16;

/// Every kind of write a lease and its pods need, but for a namespace that only the first Syncer of a cluster makes; each
/// must have been the last of some Syncer.
const KINDS: [&str; 25] = [
    "computing APPLY clusterbindings/status",
    "computing APPLY nodes/status",
    "computing DELETE csinodes",
    "computing DELETE nodes",
    "computing DELETE pods",
    "computing PATCH clusterbindings",
    "computing PATCH configmaps",
    "computing PATCH csinodes",
    "computing PATCH nodes",
    "computing PATCH nodes/status",
    "computing PATCH pods/status",
    "computing PATCH secrets",
    "computing POST csinodes",
    "computing POST leases",
    "computing POST nodes",
    "computing POST pods",
    "worker DELETE configmaps",
    "worker DELETE pods",
    "worker DELETE secrets",
    "worker PATCH nodes",
    "worker PATCH resourceleasingpolicies",
    "worker PATCH resourceleasingpolicies/status",
    "worker POST configmaps",
    "worker POST pods",
    "worker POST secrets",
];

#[tokio::test(flavor = "multi_thread")]
async fn a_syncer_may_die_after_any_write() {
    let whole = Scenario::new("whole").await.run(Trouble::None, None).await;
    let runs = whole.writes.iter().enumerate().map(|(number, last)| {
        let pictures = &whole.pictures;
        async move {
            let (trouble, scenario) =
                (Trouble::DeathAfter(last.clone()), Scenario::new(&format!("life-{number}")).await);
            let run = scenario.run(trouble, Some(pictures)).await;
            run.died.then_some(last.0.as_str())
        }
    });
    let last: Vec<Option<&str>> = stream::iter(runs).buffer_unordered(SIDE_BY_SIDE).collect().await;
    let died: BTreeSet<&str> = last.iter().flatten().copied().collect();
    let missing: Vec<&str> = KINDS.into_iter().filter(|kind| !died.contains(kind)).collect();
    assert!(missing.is_empty(), "no Syncer died after {missing:?}; they died after {died:?}");
}

/// Each kind of write is done once without an answer: the same end, and a vnode whose policy the write named is read before
/// anything else is decided about it.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_an_answer_is_looked_up() {
    let whole = Scenario::new("answered").await.run(Trouble::None, None).await;
    let scenario = Scenario::new("unanswered").await;
    let vnode = format!("GET {}", paths::node(&scenario.vnode));
    let run = scenario.run(Trouble::FirstAnswersLost, Some(&whole.pictures)).await;
    for lost in ["lost computing POST nodes", "lost computing APPLY nodes/status"] {
        let rest: Vec<&String> = run.told.iter().skip_while(|told| *told != lost).collect();
        assert!(!rest.is_empty(), "{lost}: {:?}", run.told);
        assert!(rest.contains(&&vnode), "after {lost} the vnode is read: {rest:?}");
    }
}
