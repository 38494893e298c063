//! What one flow may have of the workers.
//!
//! In: how many workers there are, and when work on the keys of a flow began. Out: whether the flow may have another one, and
//! when it may if nothing happens. Pure. Invariant: a flow never has more than [`Share::most`] workers.

use std::time::Duration;

use tokio::time::Instant;

/// Part of the workers that one flow may have at a time. Few requests at a time keep an API server that is near as busy as
/// many do, and what others ask waits behind fewer.
const PART: usize = 50;
/// Workers that a flow may have however few there are.
const LEAST: usize = 2;
/// After this time a key waits for something else than its turn at a server that is near and busy: for the way to one that is
/// far, or because a server said when it may be asked again. Then it is no reason why the next one should not begin.
const LONG: Duration = Duration::from_millis(250);
/// Part of the workers that one flow may have together with those that wait for long. More would let a flow that waits have
/// them all.
const MOST_PART: usize = 8;
/// The same however few workers there are.
const MOST_LEAST: usize = 4;
/// All that works for a flow hangs if none of it gets done in this time: requests end sooner.
const FLOW_LIMIT: Duration = Duration::from_mins(5);

/// See the module documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Share {
    /// Keys that have not been worked on for long.
    at_a_time: usize,
    /// All keys.
    most: usize,
}

impl Share {
    /// No flow is held back.
    pub(super) const ALL: Self = Self { at_a_time: usize::MAX, most: usize::MAX };

    /// What a flow may have of so many workers.
    pub(super) fn of(workers: usize) -> Self {
        Self { at_a_time: (workers / PART).max(LEAST), most: (workers / MOST_PART).max(MOST_LEAST) }
    }
}

/// What of one flow is worked on.
#[derive(Debug)]
pub(super) struct Running {
    /// When work on each key began, in this order.
    begun: Vec<Instant>,
    /// When work on a key began or ended last.
    moved: Instant,
}

impl Running {
    pub(super) fn new(now: Instant) -> Self {
        Self { begun: Vec::new(), moved: now }
    }

    /// Work on another key begins.
    pub(super) fn begin(&mut self, now: Instant) {
        self.begun.push(now);
        self.moved = now;
    }

    /// Work on a key that began then has ended; whether it was the last one.
    pub(super) fn end(&mut self, begun: Instant) -> bool {
        if let Some(place) = self.begun.iter().position(|at| *at == begun) {
            self.begun.remove(place);
        }
        self.moved = Instant::now();
        self.begun.is_empty()
    }

    /// Whether no other key of the flow may begin now.
    pub(super) fn has_its_share(&self, share: Share, now: Instant) -> bool {
        let recent = self.begun.iter().rev().take_while(|at| now.duration_since(**at) < LONG).count();
        recent >= share.at_a_time || self.begun.len() >= share.most
    }

    /// When a flow that has its share may have another key although none of it ends; `None`: not until one does.
    pub(super) fn frees(&self, share: Share) -> Option<Instant> {
        if self.begun.len() >= share.most {
            return None;
        }
        self.begun.iter().rev().nth(share.at_a_time.checked_sub(1)?).map(|at| *at + LONG)
    }

    /// Whether the flow has all it may have, and nothing of that gets done.
    pub(super) fn is_stuck(&self, share: Share) -> bool {
        self.begun.len() >= share.most && self.moved.elapsed() >= FLOW_LIMIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARE: Share = Share { at_a_time: 2, most: 4 };

    #[test]
    fn a_share_is_a_fiftieth_and_two_at_least() {
        assert_eq!(Share::of(100), Share { at_a_time: 2, most: 12 });
        assert_eq!(Share::of(200), Share { at_a_time: 4, most: 25 });
        assert_eq!(Share::of(3), Share { at_a_time: 2, most: 4 });
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_works_for_long_leaves_its_place_to_the_next() {
        let begin = Instant::now();
        let at = |milliseconds| begin + Duration::from_millis(milliseconds);
        let mut running = Running::new(begin);
        running.begin(at(0));
        assert!(!running.has_its_share(SHARE, at(0)));
        running.begin(at(100));
        assert!(running.has_its_share(SHARE, at(249)));
        assert_eq!(running.frees(SHARE), Some(at(250)));
        assert!(!running.has_its_share(SHARE, at(250)));
        running.begin(at(250));
        assert_eq!(running.frees(SHARE), Some(at(350)), "the one before");
        running.begin(at(350));
        assert!(running.has_its_share(SHARE, at(100_000)), "it has the most");
        assert_eq!(running.frees(SHARE), None);
        assert!(!running.end(at(100)));
        assert!(!running.has_its_share(SHARE, at(601)));
        assert!(!running.end(at(0)) && !running.end(at(350)) && running.end(at(250)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flow_is_stuck_if_all_it_may_have_stands_still() {
        let mut running = Running::new(Instant::now());
        for _ in 0..3 {
            running.begin(Instant::now());
        }
        tokio::time::advance(FLOW_LIMIT).await;
        assert!(!running.is_stuck(SHARE), "there could be another one");
        running.begin(Instant::now());
        assert!(!running.is_stuck(SHARE), "one has just begun");
        tokio::time::advance(FLOW_LIMIT).await;
        assert!(running.is_stuck(SHARE));
    }
}
