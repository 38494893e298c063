//! Weekly windows as merged spans of the week. In: windows; out: inside or not, and the distance to the next change.
//! Built once per evaluator, asked once per row. Invariant: spans are sorted, disjoint and not adjacent, so the end of
//! a span is a real change.

use std::fmt;

/// Minutes of a day.
const DAY: u16 = 24 * 60;
/// Minutes of a week.
const WEEK: u16 = 7 * DAY;

/// A set of days of the week.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Days(u8);

/// English names, Monday first.
const NAMES: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

impl Days {
    /// No day.
    pub const NONE: Self = Self(0);
    /// Monday to Sunday.
    pub const ALL: Self = Self(0b0111_1111);
    /// Monday to Friday.
    pub const WEEKDAYS: Self = Self(0b0001_1111);
    /// Saturday and Sunday.
    pub const WEEKEND: Self = Self(0b0110_0000);

    /// This set and the day called `name` (full English name, any letter case); `None` for another word.
    pub fn with_name(self, name: &str) -> Option<Self> {
        let day = NAMES.iter().position(|known| known.eq_ignore_ascii_case(name))?;
        Some(Self(self.0 | 1 << day))
    }

    /// This set and `weekday`, 1 = Monday to 7 = Sunday; other numbers change nothing.
    #[must_use]
    pub fn with(self, weekday: u8) -> Self {
        if (1..=7).contains(&weekday) { Self(self.0 | 1 << (weekday - 1)) } else { self }
    }

    /// Contains `weekday`, 1 = Monday to 7 = Sunday.
    pub fn contains(self, weekday: u8) -> bool {
        (1..=7).contains(&weekday) && self.0 & 1 << (weekday - 1) != 0
    }

    /// The days as offsets from Monday.
    fn offsets(self) -> impl Iterator<Item = u16> {
        (0..7u16).filter(move |day| self.0 & (1 << day) != 0)
    }
}

/// A window of local time, repeated on the given days.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Days on which the window starts.
    pub days: Days,
    /// First minute, since midnight, 0 to 1439.
    pub start_minute: u16,
    /// First minute that is no longer inside, 0 to 1440. Not after `start_minute` means: on the next day.
    pub end_minute: u16,
}

impl Window {
    /// The window from `start` to `end`, written `HH:MM`.
    pub fn new(days: Days, start: &str, end: &str) -> Result<Self, ParseTimeError> {
        Ok(Self { days, start_minute: parse_minute(start)?, end_minute: parse_minute(end)? })
    }
}

/// A text that is not a time of the form `HH:MM`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseTimeError(String);

impl fmt::Display for ParseTimeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is not a time of the form HH:MM from 00:00 to 23:59", format_args!("{:?}", self.0))
    }
}

impl std::error::Error for ParseTimeError {}

/// Minutes since midnight of `HH:MM`, zero-padded, `00:00` to `23:59` (API-401).
pub fn parse_minute(text: &str) -> Result<u16, ParseTimeError> {
    let digit = |byte: u8| byte.is_ascii_digit().then(|| u16::from(byte - b'0'));
    let parsed = match text.as_bytes() {
        &[h1, h2, b':', m1, m2] => (|| {
            let (hour, minute) = (digit(h1)? * 10 + digit(h2)?, digit(m1)? * 10 + digit(m2)?);
            (hour < 24 && minute < 60).then_some(hour * 60 + minute)
        })(),
        _ => None,
    };
    parsed.ok_or_else(|| ParseTimeError(text.to_owned()))
}

/// Weekly windows, merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// `[start, end)` in minutes since Monday 00:00, sorted, disjoint, not adjacent.
    spans: Vec<(u16, u16)>,
}

impl Schedule {
    /// Merges `windows`; no windows give a schedule that is never active.
    pub fn new(windows: &[Window]) -> Self {
        let mut parts = Vec::with_capacity(windows.len() * 7);
        for window in windows {
            let start = window.start_minute.min(DAY - 1);
            let end = window.end_minute.min(DAY);
            let length = if end > start { end - start } else { end + DAY - start };
            for day in window.days.offsets() {
                let from = day * DAY + start;
                let to = from + length;
                parts.push((from, to.min(WEEK)));
                if to > WEEK {
                    parts.push((0, to - WEEK));
                }
            }
        }
        parts.sort_unstable();
        let mut spans: Vec<(u16, u16)> = Vec::with_capacity(parts.len());
        for (from, to) in parts {
            match spans.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => spans.push((from, to)),
            }
        }
        Self { spans }
    }

    /// Active every minute of the week.
    pub fn is_always(&self) -> bool {
        self.spans == [(0, WEEK)]
    }

    /// Active at no minute of the week.
    pub fn is_never(&self) -> bool {
        self.spans.is_empty()
    }

    /// At `minute` of the week: active or not, and the minutes until that changes (`None` = never; at most a week).
    pub(crate) fn at(&self, minute: u32) -> (bool, Option<u32>) {
        if self.is_always() || self.is_never() {
            return (self.is_always(), None);
        }
        let week = u32::from(WEEK);
        let minute = minute % week;
        let next = self.spans.partition_point(|span| u32::from(span.1) <= minute);
        let first = self.spans.first().copied().unwrap_or_default();
        match self.spans.get(next) {
            Some(&(start, end)) if u32::from(start) <= minute => {
                // The end of the week is a change only if the next week does not begin inside.
                let runs_on = end == WEEK && first.0 == 0;
                let end = u32::from(end) + if runs_on { u32::from(first.1) } else { 0 };
                (true, Some(end - minute))
            }
            Some(&(start, _)) => (false, Some(u32::from(start) - minute)),
            None => (false, Some(week + u32::from(first.0) - minute)),
        }
    }
}

#[cfg(test)]
mod tests;
