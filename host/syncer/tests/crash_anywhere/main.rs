//! A Syncer that dies after each of its writes: whatever it had just written, the next one brings both clusters to where
//! an uninterrupted one brings them, at every stage of the life of a lease (BU section 18) and of pods (TD section 16).
//!
//! See [`life`] for how. In the story of pods only writes for their sake count: those about the lease have their own.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
#![allow(clippy::similar_names, reason = "vpod and ppod are the words for the two sides")]

mod door;
mod lease;
mod life;
mod pods;
mod syncer;

use door::Trouble;
use kubeocean_runtime::request::paths;
use lease::scenario::Lease;
use life::run;
use pods::scenario::Pods;

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
    life::die_after_each("lease", Lease::new, &KINDS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_syncer_may_die_after_any_write_for_pods() {
    life::die_after_each("pods", Pods::new, &pods::scenario::KINDS).await;
}

/// Each kind of write is done once without an answer: the same end, and a vnode whose policy the write named is read before
/// anything else is decided about it.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_an_answer_is_looked_up() {
    let whole = run(&Lease::new("answered".to_owned()).await, Trouble::None, None).await;
    let scenario = Lease::new("unanswered".to_owned()).await;
    let vnode = paths::node(&scenario.vnode);
    let run = run(&scenario, Trouble::FirstAnswersLost, Some(&whole.pictures)).await;
    for lost in ["lost computing POST nodes", "lost computing APPLY nodes/status"] {
        let mut after = run.told.iter().skip_while(|told| *told != lost);
        assert!(after.next().is_some(), "{lost}: {:?}", run.told);
        let make = format!("POST {}", paths::nodes());
        let next = after.find(|told| **told == make || told.contains(&vnode));
        assert_eq!(
            next,
            Some(&format!("GET {vnode}")),
            "after {lost} the vnode is read before it is written"
        );
    }
}
