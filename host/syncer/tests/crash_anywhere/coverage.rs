//! After which writes of a story a Syncer has died.
//!
//! In: the writes of an uninterrupted run, by kind and number. Out: a panic, or a line that says how many. A run in which
//! the write in question did not come says nothing about crashes: it is made again. A few may be missing in the end: of two
//! states in a row a Syncer may see one only, and write once, so that the number of writes depends on how fast the clusters
//! are. The first of each kind may never.

use std::collections::BTreeSet;

use futures::{StreamExt, stream};

use crate::{
    door::{Trouble, Write},
    life::{Story, Turn, run, whole},
};

/// Runs in which a Syncer may die after one write.
const TRIES: usize = 3;
/// At most so many of all writes may be missing.
const MISSING_ONE_IN: usize = 10;

/// See the module documentation.
pub(crate) async fn die_after_each<S: Story>() {
    let whole = whole::<S>().await;
    let made: BTreeSet<&str> = whole.writes.iter().map(|(kind, _)| kind.as_str()).collect();
    assert_eq!(made, S::KINDS.iter().copied().collect(), "kinds of writes of an uninterrupted run");

    let _turn = Turn::of::<S>().await;
    let tried = |(kind, number): &&Write| *number == 1 || !S::REPEATED.contains(&kind.as_str());
    let tried: Vec<&Write> = whole.writes.iter().filter(tried).collect();
    let runs = tried.iter().enumerate().map(|(number, &last)| async move {
        let missing = dies_after::<S>(number, last).await.err();
        (last, missing)
    });
    let ends: Vec<(&Write, Option<usize>)> =
        stream::iter(runs).buffer_unordered(S::SIDE_BY_SIDE).collect().await;
    let mut survived = Vec::new();
    for ((kind, number), fewer) in &ends {
        let Some(fewer) = fewer else { continue };
        assert!(
            *number > 1,
            "no Syncer died after the first {kind}: {TRIES} runs made at least {fewer} of them"
        );
        survived.push(format!("{kind} {number}, of {fewer} in a run"));
    }
    let died = ends.len() - survived.len();
    println!("{}: Syncers died after {died} of {} writes; {survived:?} did not come", S::NAME, tried.len());
    assert!(MISSING_ONE_IN * survived.len() <= tried.len(), "runs that differ so much prove little");
}

/// One run, or some, until a Syncer has died after this write. Otherwise the smallest number of such writes that a run made.
async fn dies_after<S: Story>(number: usize, last: &Write) -> Result<(), usize> {
    let expected = Some(&whole::<S>().await.pictures);
    let mut fewest = usize::MAX;
    for attempt in 0..TRIES {
        let story = S::new(format!("{}-{number}{}", S::NAME, "x".repeat(attempt))).await;
        let run = run(&story, Trouble::DeathAfter(last.clone()), expected).await;
        if run.died {
            return Ok(());
        }
        let count = run.count(&last.0);
        assert!(count < last.1, "{} made write {} of {}, and its Syncer lived", story.name, last.1, last.0);
        fewest = fewest.min(count);
    }
    Err(fewest)
}
