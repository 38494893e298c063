//! When each Lease is due.
//!
//! Pure: time is a parameter. Each vnode has its own place in the interval, from its name, so that N vnodes cost N/10
//! writes a second without bursts. What is due within the same quarter of a second is renewed together: it costs one
//! wake-up, and requests and answers share packets. Every vnode is due at once at start, and when it becomes ready again. Of many vnodes
//! one that was just made takes its place in the interval: the node lifecycle controller waits 40 s for its first Lease,
//! and the next vnodes should not wait for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use sha2::{Digest, Sha256};

use crate::nodes::store::LeaseTarget;

/// Time between two renewals (BU-1001).
pub const INTERVAL: Duration = Duration::from_secs(10);
/// `leaseDurationSeconds` (BU-1001).
pub const DURATION_SECONDS: i32 = 40;
/// Places in the interval are so far apart.
const STEP: Duration = Duration::from_millis(250);
/// From so many vnodes on new ones are many.
const MANY: usize = 64;
/// A renewal later than this after the one before is counted as late.
pub const LATE: Duration = Duration::from_secs(20);

/// Time since the wheel started.
pub type Since = Duration;

#[derive(Clone, Debug)]
struct Place {
    uid: String,
    due: Since,
    renewed: Option<Since>,
    /// The vnode was just made when it came here.
    young: bool,
}

/// See the module documentation.
#[derive(Clone, Debug, Default)]
pub struct Wheel {
    places: BTreeMap<Arc<str>, Place>,
    schedule: BTreeSet<(Since, Arc<str>)>,
}

impl Wheel {
    /// Takes the vnodes whose Leases are renewed. New ones are due at once, of many the young ones within an interval and
    /// a third; gone ones are forgotten.
    pub fn set_targets(&mut self, targets: Vec<LeaseTarget>, now: Since) {
        let mut before = std::mem::take(&mut self.places);
        self.schedule.clear();
        let many = targets.len() >= MANY;
        for LeaseTarget { vnode, uid, young } in targets {
            let known = before.remove(&vnode).filter(|place| place.uid == uid);
            let due = if young && many { next_turn(&vnode, now) } else { now };
            let place = known.unwrap_or(Place { uid, due, renewed: None, young });
            self.schedule.insert((place.due, Arc::clone(&vnode)));
            self.places.insert(vnode, place);
        }
    }

    /// When the next Lease is due.
    pub fn next_due(&self) -> Option<Since> {
        self.schedule.first().map(|(due, _)| *due)
    }

    /// Takes the next Lease that is due; its next turn is scheduled. It is young until the first renewal if its vnode was
    /// when it came. True: the last renewal is so long ago that the
    /// turn counts as late.
    pub fn take(&mut self, now: Since) -> Option<(LeaseTarget, bool)> {
        let (due, _) = self.schedule.first()?;
        if *due > now {
            return None;
        }
        let (_, vnode) = self.schedule.pop_first()?;
        let place = self.places.get_mut(&vnode)?;
        let young = place.young && place.renewed.is_none();
        let late = place.renewed.is_some_and(|renewed| now.saturating_sub(renewed) > LATE);
        place.due = next_turn(&vnode, now);
        self.schedule.insert((place.due, Arc::clone(&vnode)));
        Some((LeaseTarget { vnode, uid: place.uid.clone(), young }, late))
    }

    /// The Lease was written.
    pub fn renewed(&mut self, vnode: &str, now: Since) {
        if let Some(place) = self.places.get_mut(vnode) {
            place.renewed = Some(now);
        }
    }

    /// The write failed: again soon, ahead of the vnode's turn.
    pub fn retry(&mut self, vnode: &str, at: Since) {
        let Some((vnode, place)) = self.places.get_key_value(vnode) else { return };
        let vnode = Arc::clone(vnode);
        let due = place.due;
        if at < due {
            self.schedule.remove(&(due, Arc::clone(&vnode)));
            self.schedule.insert((at, Arc::clone(&vnode)));
            if let Some(place) = self.places.get_mut(&vnode) {
                place.due = at;
            }
        }
    }
}

/// The vnode's place in the interval that follows `now`, at least a third of an interval away.
fn next_turn(vnode: &str, now: Since) -> Since {
    let phase = phase(vnode);
    let interval = millis(INTERVAL);
    let now = millis(now);
    let mut turn = now - now % interval + phase;
    while turn < now + interval / 3 {
        turn += interval;
    }
    Duration::from_millis(turn)
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 4)
}

/// Milliseconds into the interval, a multiple of [`STEP`]. Names of vnodes differ in their last characters only, hence a real hash.
fn phase(vnode: &str) -> u64 {
    let digest = Sha256::digest(vnode.as_bytes());
    let first: u64 = digest.iter().take(7).fold(0, |number, byte| (number << 8) | u64::from(*byte));
    let step = millis(STEP);
    first % (millis(INTERVAL) / step) * step
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(count: usize) -> Vec<LeaseTarget> {
        (0..count)
            .map(|n| LeaseTarget {
                vnode: format!("vnode-cls-a-n{n:04}").into(),
                uid: n.to_string(),
                young: false,
            })
            .collect()
    }

    const fn s(seconds: u64) -> Since {
        Duration::from_secs(seconds)
    }

    /// Renews everything that is due in steps of 10 ms; returns renewals per second.
    fn turn(wheel: &mut Wheel, from: u64, to: u64) -> Vec<usize> {
        let mut per_second = vec![0; usize::try_from(to - from).unwrap()];
        for step in from * 100..to * 100 {
            let now = Duration::from_millis(step * 10);
            while let Some((target, late)) = wheel.take(now) {
                assert!(!late, "{target:?} at {now:?}");
                wheel.renewed(&target.vnode, now);
                per_second[usize::try_from(step / 100 - from).unwrap()] += 1;
            }
        }
        per_second
    }

    #[test]
    fn all_leases_are_renewed_at_once_at_start_and_then_evenly() {
        let mut wheel = Wheel::default();
        wheel.set_targets(targets(500), s(0));
        let seconds = turn(&mut wheel, 0, 60);
        assert!(seconds[0] >= 500);
        let steady = &seconds[20..];
        let max = *steady.iter().max().unwrap();
        assert!(max < 100, "max/mean must stay below 2: {steady:?}");
        assert_eq!(steady.iter().sum::<usize>(), 500 * 4);
    }

    #[test]
    fn a_vnode_made_anew_is_due_at_once() {
        let mut wheel = Wheel::default();
        wheel.set_targets(targets(1), s(0));
        turn(&mut wheel, 0, 15);
        let again = LeaseTarget { uid: "other".into(), ..targets(1).remove(0) };
        wheel.set_targets(vec![again], s(15));
        assert_eq!(wheel.next_due(), Some(s(15)));
        wheel.set_targets(Vec::new(), s(15));
        assert_eq!(wheel.next_due(), None);
    }

    #[test]
    fn vnodes_that_were_just_made_do_not_wait_for_each_others_leases() {
        let mut wheel = Wheel::default();
        wheel.set_targets(
            targets(500).into_iter().map(|it| LeaseTarget { young: true, ..it }).collect(),
            s(0),
        );
        let seconds = turn(&mut wheel, 0, 14);
        assert!(seconds.iter().all(|renewed| *renewed < 100), "{seconds:?}");
        assert!(wheel.places.values().all(|place| place.renewed.is_some()), "far within the 40 s of a Lease");
        assert!(!wheel.take(s(20)).unwrap().0.young, "its Lease is there");
        let mut few = Wheel::default();
        few.set_targets(targets(5).into_iter().map(|it| LeaseTarget { young: true, ..it }).collect(), s(0));
        assert!(few.clone().take(s(0)).unwrap().0.young, "its Lease is not there yet");
        assert_eq!(turn(&mut few, 0, 1), [5]);
    }

    #[test]
    fn a_known_vnode_keeps_its_turn() {
        let mut wheel = Wheel::default();
        wheel.set_targets(targets(3), s(0));
        turn(&mut wheel, 0, 5);
        let due = wheel.next_due();
        wheel.set_targets(targets(3), s(5));
        assert_eq!(wheel.next_due(), due);
    }

    #[test]
    fn a_failed_renewal_comes_back_early_and_counts_as_late_after_twenty_seconds() {
        let mut wheel = Wheel::default();
        wheel.set_targets(targets(1), s(0));
        let (target, _) = wheel.take(s(0)).unwrap();
        wheel.renewed(&target.vnode, s(0));
        let mut late = false;
        for second in 1..25 {
            while let Some((target, was_late)) = wheel.take(s(second)) {
                late |= was_late;
                wheel.retry(&target.vnode, s(second + 1));
            }
        }
        assert!(late);
        assert!(wheel.next_due().unwrap() <= s(26));
    }

    /// Only turns that end in a renewal are counted, so that each gap counts once however often it was tried.
    #[test]
    fn a_gap_between_two_renewals_counts_as_late_once() {
        for (outage, expected) in [(0, 0), (10, 0), (20, 0), (21, 1), (300, 1)] {
            let mut wheel = Wheel::default();
            wheel.set_targets(targets(1), s(0));
            let (target, late) = wheel.take(s(0)).unwrap();
            assert!(!late, "the first renewal follows none");
            wheel.renewed(&target.vnode, s(0));
            let mut counted = 0;
            for second in 1..outage + 60 {
                while let Some((target, late)) = wheel.take(s(second)) {
                    if second < outage {
                        wheel.retry(&target.vnode, s(second + 1));
                    } else {
                        wheel.renewed(&target.vnode, s(second));
                        counted += usize::from(late);
                    }
                }
            }
            assert_eq!(counted, expected, "after {outage} s without a renewal");
        }
    }
}
