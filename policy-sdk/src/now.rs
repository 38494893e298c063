//! Civil time in the policy's zone. In: the host's `now`; out: fields, and periods with the instant of their next
//! change. Given to every row. Invariant: what a policy read of the time is recorded, so an answer without its own
//! `until` still promises nothing it cannot keep (PO-304).

use std::cell::Cell;

use crate::bindings::types as wire;
use crate::schedule::{Schedule, Window};

/// Minutes of a day.
const DAY: u32 = 24 * 60;

/// The moment of the decision, in the time zone of the `ResourceLeasingPolicy`.
///
/// A policy that reads a field directly and sets no [`crate::Lease::until`] is asked again at the start of the next
/// minute; [`Now::daily`], [`Now::weekly`] and [`Now::during`] know the exact instant, [`Now::after`] helps where they do
/// not fit.
#[derive(Debug)]
pub struct Now {
    civil: wire::Now,
    /// Earliest instant at which something that was read may differ.
    promise: Cell<Option<i64>>,
}

/// Whether a moment is inside a period, and until when that holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase {
    /// The moment is inside.
    pub inside: bool,
    /// First instant (unix seconds) at which `inside` may change; `None` = never. Not after the next change of the
    /// zone's offset, because local times move then.
    pub changes_at: Option<i64>,
}

/// The earlier of two instants, where `None` is never.
fn earlier(a: Option<i64>, b: Option<i64>) -> Option<i64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (one, None) | (None, one) => one,
    }
}

impl Now {
    pub(crate) fn new(civil: wire::Now) -> Self {
        Self { civil, promise: Cell::new(None) }
    }

    /// Forgets what the previous row read.
    pub(crate) fn start_row(&self) {
        self.promise.set(None);
    }

    /// Earliest instant at which what this row read may differ.
    pub(crate) fn promise(&self) -> Option<i64> {
        self.promise.get()
    }

    fn note(&self, instant: Option<i64>) {
        self.promise.set(earlier(self.promise.get(), instant));
    }

    /// Seconds since the local minute began.
    fn second(&self) -> i64 {
        (self.civil.unix_seconds + i64::from(self.civil.utc_offset_seconds)).rem_euclid(60)
    }

    /// Notes that the policy looked at the clock itself.
    fn read(&self) -> &wire::Now {
        self.note(Some(self.civil.unix_seconds + 60 - self.second()));
        &self.civil
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    pub fn unix_seconds(&self) -> i64 {
        self.read().unix_seconds
    }

    /// Local time minus UTC, seconds.
    pub fn utc_offset_seconds(&self) -> i32 {
        self.read().utc_offset_seconds
    }

    /// Local year.
    pub fn year(&self) -> i32 {
        self.read().year
    }

    /// Local month, 1 to 12.
    pub fn month(&self) -> u8 {
        self.read().month
    }

    /// Local day of the month, 1 to 31.
    pub fn day(&self) -> u8 {
        self.read().day
    }

    /// Local day of the week, 1 = Monday to 7 = Sunday.
    pub fn weekday(&self) -> u8 {
        self.read().weekday
    }

    /// Local hour, 0 to 23.
    pub fn hour(&self) -> u16 {
        self.read().minute_of_day / 60
    }

    /// Minutes since local midnight, 0 to 1439.
    pub fn minute_of_day(&self) -> u16 {
        self.read().minute_of_day
    }

    /// Every day from `start_minute` (included) to `end_minute` (excluded), minutes since midnight. An end before the
    /// start is on the next day; equal ones mean the whole day.
    pub fn daily(&self, start_minute: u16, end_minute: u16) -> Phase {
        let (start, end) = (u32::from(start_minute) % DAY, u32::from(end_minute) % DAY);
        if start == end {
            return Phase { inside: true, changes_at: None };
        }
        let minute = u32::from(self.civil.minute_of_day);
        let since_start = (minute + DAY - start) % DAY;
        let length = (end + DAY - start) % DAY;
        let inside = since_start < length;
        self.phase(inside, Some(if inside { length - since_start } else { DAY - since_start }))
    }

    /// Inside any of `windows`, week after week. Builds a [`Schedule`] each time; a policy with many windows builds it
    /// once from its settings and uses [`Now::during`].
    pub fn weekly(&self, windows: &[Window]) -> Phase {
        self.during(&Schedule::new(windows))
    }

    /// Inside `schedule`.
    pub fn during(&self, schedule: &Schedule) -> Phase {
        let weekday = u32::from(self.civil.weekday.clamp(1, 7)) - 1;
        let (inside, change) = schedule.at(weekday * DAY + u32::from(self.civil.minute_of_day));
        self.phase(inside, change)
    }

    /// The instant (unix seconds) at which the local clock has gone on by `minutes`: 1 is the start of the next minute.
    /// Not after the next change of the zone's offset, at which the clock jumps and the policy is asked again.
    pub fn after(&self, minutes: u32) -> i64 {
        let now = self.civil.unix_seconds;
        let local = now - self.second() + i64::from(minutes.max(1)) * 60;
        let at = match self.civil.next_offset {
            Some(change) if change.at > now => local.min(change.at),
            _ => local,
        };
        self.note(Some(at));
        at
    }

    fn phase(&self, inside: bool, minutes: Option<u32>) -> Phase {
        Phase { inside, changes_at: minutes.map(|minutes| self.after(minutes)) }
    }
}

#[cfg(test)]
mod tests;
