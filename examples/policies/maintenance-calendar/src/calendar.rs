//! Windows that begin when a cron expression fires and last some minutes, on the local clock.
//!
//! In: a minute of the local clock since 1970. Out: which window is open, and when that changes. Pure.

use crate::cron::{Cron, DAY};

/// How far ahead a change is looked for, in minutes: then somebody has to ask again.
pub const HORIZON: i64 = 8 * DAY;

/// When a window begins, and for how many minutes it is open.
#[derive(Clone, Copy, Debug)]
pub struct Window<'c> {
    pub begins: &'c Cron,
    pub minutes: i64,
}

impl Window<'_> {
    /// When the window ends that is open at `minute`, if one is.
    pub fn open_at(self, minute: i64) -> Option<i64> {
        let begun = self.begins.last(minute - self.minutes + 1, minute)?;
        Some(begun + self.minutes)
    }
}

/// The first minute after `minute` from which on none of `windows` is open, at most [`HORIZON`] ahead. Windows that overlap
/// or touch are one.
pub fn closes_after<'c>(windows: impl Iterator<Item = Window<'c>> + Clone, minute: i64) -> i64 {
    let until = minute + HORIZON;
    let mut end = minute;
    while let Some(later) = windows.clone().filter_map(|window| window.open_at(end)).max() {
        end = later;
        if end >= until {
            return until;
        }
    }
    end
}

/// The first minute after `minute` at which one of `windows` begins, at most [`HORIZON`] ahead.
pub fn opens_after<'c>(windows: impl Iterator<Item = Window<'c>>, minute: i64) -> i64 {
    let until = minute + HORIZON;
    windows.filter_map(|window| window.begins.next(minute, until)).min().unwrap_or(until)
}
