//! The moment of a test. In: local time and zone; out: the civil time record the host would make. Used by the harness.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned};

use crate::bindings::types as wire;

/// A moment in a time zone.
#[derive(Clone, Debug)]
pub struct Moment {
    zoned: Zoned,
}

impl Default for Moment {
    fn default() -> Self {
        Self::new("2026-01-05T12:00", "UTC")
    }
}

impl Moment {
    /// `local_time` as `2026-03-07T23:30`, with or without seconds; `zone` is an IANA name.
    ///
    /// # Panics
    ///
    /// When one of the two cannot be parsed.
    pub fn new(local_time: &str, zone: &str) -> Self {
        let local: DateTime = local_time.parse().expect("a local time such as 2026-03-07T23:30");
        let zone = TimeZone::get(zone).expect("an IANA zone such as Europe/Rome");
        Self { zoned: local.to_zoned(zone).expect("a time in the range of the calendar") }
    }

    /// An instant (unix seconds): of a local time that occurs twice, this is the way to name the second.
    ///
    /// # Panics
    ///
    /// When it is outside the calendar, or the zone cannot be parsed.
    pub fn at_instant(unix_seconds: i64, zone: &str) -> Self {
        let zone = TimeZone::get(zone).expect("an IANA zone such as Europe/Rome");
        let instant = Timestamp::from_second(unix_seconds).expect("an instant in the range of the calendar");
        Self { zoned: instant.to_zoned(zone) }
    }

    /// Seconds since 1970-01-01T00:00:00Z.
    pub fn unix_seconds(&self) -> i64 {
        self.zoned.timestamp().as_second()
    }

    /// The local time of `unix_seconds` in this zone, as `2026-03-08T07:00` (seconds only if there are any).
    ///
    /// # Panics
    ///
    /// When the instant is outside the calendar.
    pub fn local(&self, unix_seconds: i64) -> String {
        let instant = Timestamp::from_second(unix_seconds).expect("an instant in the range of the calendar");
        let zoned = instant.to_zoned(self.zoned.time_zone().clone());
        let format = if zoned.second() == 0 { "%Y-%m-%dT%H:%M" } else { "%Y-%m-%dT%H:%M:%S" };
        zoned.strftime(format).to_string()
    }

    pub(crate) fn now(&self) -> wire::Now {
        let zoned = &self.zoned;
        let next =
            zoned.time_zone().following(zoned.timestamp()).find(|next| next.offset() != zoned.offset());
        wire::Now {
            unix_seconds: self.unix_seconds(),
            utc_offset_seconds: zoned.offset().seconds(),
            next_offset: next.map(|next| wire::OffsetChange {
                at: next.timestamp().as_second(),
                utc_offset_seconds: next.offset().seconds(),
            }),
            year: i32::from(zoned.year()),
            month: zoned.month().unsigned_abs(),
            day: zoned.day().unsigned_abs(),
            weekday: zoned.weekday().to_monday_one_offset().unsigned_abs(),
            minute_of_day: u16::from(zoned.hour().unsigned_abs()) * 60
                + u16::from(zoned.minute().unsigned_abs()),
        }
    }
}
