//! A Syncer that dies after each of its writes: whatever it had just written, the next one brings both clusters to where
//! an uninterrupted one brings them, at every stage of the life of a lease (BU section 18), of pods (TD section 16), and of
//! what bindings share.
//!
//! See [`life`] for how, and [`coverage`] for what is proven. In the stories of pods and of what is shared only writes for
//! their sake count: those about the lease have their own. Together the stories make every write that the charts permit
//! ([`rights`]).

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]
#![allow(clippy::similar_names, reason = "vpod and ppod are the words for the two sides")]

mod coverage;
mod door;
mod lease;
mod life;
mod pods;
mod rights;
mod shared;
mod syncer;

use coverage::die_after_each;
use door::Trouble;
use kubeocean_runtime::request::paths;
use lease::scenario::Lease;
use life::{Story, Turn, run, whole};
use pods::scenario::Pods;
use shared::Shared;

#[tokio::test(flavor = "multi_thread")]
async fn a_syncer_may_die_after_any_write() {
    die_after_each::<Lease>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_syncer_may_die_after_any_write_for_pods() {
    die_after_each::<Pods>().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_syncer_may_die_after_any_write_of_what_is_shared() {
    die_after_each::<Shared>().await;
}

/// A right to write that no story uses is one whose writes no crash was tried after, or one too many.
#[tokio::test(flavor = "multi_thread")]
async fn the_stories_make_every_write_that_the_charts_permit() {
    let runs = [whole::<Lease>().await, whole::<Pods>().await, whole::<Shared>().await];
    rights::assert_used(runs.into_iter().flat_map(|run| run.made.iter().cloned()).collect()).await;
}

/// BU-901(g): that nobody knows of a pod on a vnode proves nothing.
#[tokio::test(flavor = "multi_thread")]
async fn the_pods_of_a_vnode_are_listed_before_its_finalizer_goes() {
    let told = &whole::<Lease>().await.told;
    let delete = format!("DELETE {}", paths::node("vnode-"));
    let deleted = told.iter().position(|it| it.starts_with(&delete)).unwrap();
    let vnode = told[deleted].rsplit('/').next().unwrap();
    let patch = format!("PATCH {}", paths::node(vnode));
    // The finalizer is the last thing that changes.
    let released = told.iter().rposition(|it| *it == patch).unwrap();
    let list = format!("GET /api/v1/pods?fieldSelector=spec.nodeName%3D{vnode}&");
    let listed = told.iter().rposition(|it| it.starts_with(&list)).unwrap();
    assert!(deleted < listed && listed < released, "{:?}", &told[deleted..]);
}

/// Each kind of write is done once without an answer: the same end, and a vnode whose policy the write named is read before
/// anything else is decided about it.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_without_an_answer_is_looked_up() {
    let whole = whole::<Lease>().await;
    let _turn = Turn::of::<Lease>().await;
    let scenario = Lease::new("unanswered".to_owned()).await;
    let vnode = paths::node(&scenario.vnode);
    let run = run(&scenario, Trouble::FirstAnswersLost, Some(&whole.pictures)).await;
    for lost in ["lost computing POST nodes", "lost computing PATCH nodes/status"] {
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
