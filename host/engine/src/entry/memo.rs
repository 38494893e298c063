//! Answers by row (PO-1001): an unchanged row costs a lookup and no guest call.
//!
//! The key is the projected row with the zone offset, compared in full. The memo belongs to one running version,
//! so a change of module or settings starts an empty one. There is a line per entry and row, so lines are kept as bytes
//! (section 16: at most 64 beside the row).

use std::sync::Arc;

use super::answers::{Answers, Remembered};

/// Seconds after which a row is asked again although its answer promised to hold (PO-1004).
pub(crate) const REFRESH_SECONDS: i64 = 600;
/// Shortest refresh after broken promises (PO-1006).
const MIN_REFRESH_SECONDS: i64 = 60;
/// Lines kept whatever the number of nodes.
const MIN_LINES: usize = 512;

/// What a lookup found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Lookup<A> {
    /// Still holds; asked again at this unix second whatever it promised.
    Hit(Arc<A>, i64),
    /// Was asked too long ago, but promised to hold still: the new answer must be the same.
    Promised(Arc<A>),
    /// May have changed.
    Expired,
    /// Never asked.
    Miss,
}

/// Lines of one running version.
#[derive(Debug)]
pub(crate) struct Memo<A> {
    lines: Answers<A>,
    refresh_seconds: i64,
}

impl<A> Default for Memo<A> {
    fn default() -> Self {
        Self { lines: Answers::default(), refresh_seconds: REFRESH_SECONDS }
    }
}

impl<A: Remembered> Memo<A> {
    pub(crate) fn look_up(&self, key: &[u8], now: i64) -> Lookup<A> {
        let Some(line) = self.lines.get(key) else { return Lookup::Miss };
        let promised = line.at <= now && line.valid_until().is_none_or(|until| now < until);
        let refresh_at = line.at.saturating_add(self.refresh_seconds);
        match (promised, now < refresh_at) {
            (true, true) => Lookup::Hit(Arc::new(line.answer()), refresh_at),
            (true, false) => Lookup::Promised(Arc::new(line.answer())),
            (false, _) => Lookup::Expired,
        }
    }

    /// Remembers an answer given at `now`. `nodes` is how many nodes the entry decides; twice as many lines are kept.
    pub(crate) fn store(&mut self, key: &[u8], answer: &A, now: i64, nodes: usize) {
        if self.lines.len() >= (2 * nodes).max(MIN_LINES) && self.lines.get(key).is_none() {
            self.make_room(now);
        }
        self.lines.put(key, now, answer, &[]);
    }

    /// Tells the answers about a row that is asked again then from others: a few bytes in place of the row.
    pub(crate) fn asked(&self, key: &[u8], refresh_at: i64) -> u32 {
        self.lines.digest(key, refresh_at)
    }

    /// Drops what no longer holds; if everything does, the older half.
    fn make_room(&mut self, now: i64) {
        let before = self.lines.len();
        let refresh = self.refresh_seconds;
        self.lines.retain(|_, at, valid_until| {
            at <= now && now < at.saturating_add(refresh) && valid_until.is_none_or(|until| now < until)
        });
        if self.lines.len() > before / 2 {
            let mut ages: Vec<i64> = self.lines.times().collect();
            ages.sort_unstable();
            let median = ages.get(ages.len() / 2).copied().unwrap_or(now);
            self.lines.retain(|_, at, _| at > median);
        }
    }

    /// A promise was broken: rows are asked twice as often from now on.
    pub(crate) fn distrust(&mut self) {
        self.refresh_seconds = (self.refresh_seconds / 2).max(MIN_REFRESH_SECONDS);
    }

    pub(crate) fn refresh_seconds(&self) -> i64 {
        self.refresh_seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::{Answer, Caps, EntryVerdict, Reclaim};

    fn answer(valid_until: Option<i64>) -> Answer {
        Answer {
            verdict: EntryVerdict::Offer,
            reclaim: Reclaim::Keep,
            valid_until,
            reason: None,
            caps: Caps::default(),
            cap_names: Arc::from([]),
        }
    }

    #[test]
    fn a_line_holds_until_its_promise_or_the_refresh() {
        let mut memo = Memo::default();
        memo.store(b"a", &answer(Some(150)), 100, 1);
        memo.store(b"b", &answer(None), 100, 1);
        assert_eq!(memo.look_up(b"a", 149), Lookup::Hit(Arc::new(answer(Some(150))), 700));
        assert_eq!(memo.look_up(b"a", 150), Lookup::Expired);
        assert_eq!(memo.look_up(b"a", 99), Lookup::Expired, "the clock stepped back");
        assert!(matches!(memo.look_up(b"b", 699), Lookup::Hit(_, 700)));
        assert_eq!(memo.look_up(b"b", 700), Lookup::Promised(Arc::new(answer(None))));
        assert_eq!(memo.look_up(b"c", 100), Lookup::Miss);
        memo.distrust();
        assert!(matches!(memo.look_up(b"b", 399), Lookup::Hit(_, 400)));
        assert!(matches!(memo.look_up(b"b", 400), Lookup::Promised(_)));
        (0..9).for_each(|_| memo.distrust());
        assert_eq!(memo.refresh_seconds(), MIN_REFRESH_SECONDS);
    }

    #[test]
    fn the_number_of_lines_is_bounded() {
        let mut memo = Memo::default();
        for i in 0..5000_i64 {
            memo.store(&i.to_le_bytes(), &answer(None), i, 1);
            assert!(memo.lines.len() <= MIN_LINES);
        }
    }

    /// Of lines that may change some go, of lines that all hold the older half.
    #[test]
    fn room_is_made_by_what_no_longer_holds_and_else_by_age() {
        let fill = |until: fn(i64) -> Option<i64>| {
            let mut memo = Memo::default();
            for i in 0..512_i64 {
                memo.store(&i.to_le_bytes(), &answer(until(i)), 100 + i / 128, 1);
            }
            memo.store(b"new", &answer(None), 200, 1);
            let kept: Vec<i64> = (0..512)
                .filter(|i: &i64| !matches!(memo.look_up(&i.to_le_bytes(), 120), Lookup::Miss))
                .collect();
            assert!(matches!(memo.look_up(b"new", 200), Lookup::Hit(..)));
            kept
        };
        let brief = fill(|i| (i < 300).then_some(150));
        assert_eq!((brief.len(), brief.first()), (212, Some(&300)));
        let old = fill(|_| None);
        assert_eq!((old.len(), old.first()), (128, Some(&384)), "those of the median go too");
    }
}
