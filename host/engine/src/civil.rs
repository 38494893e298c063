//! Time as a module sees it: an instant in the policy's zone with the next change of the offset.

use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};

use crate::wasm::bindings::types::{Now, OffsetChange};

/// Transitions looked at to find the next change of offset. Zones list some that change only the abbreviation.
const LOOK_AHEAD: usize = 16;

/// Civil time of `at` in `zone`; pure.
pub(crate) fn civil_now(at: Timestamp, zone: &TimeZone) -> Now {
    let local = at.to_zoned(zone.clone());
    let offset = local.offset();
    let next_offset =
        zone.following(at).take(LOOK_AHEAD).find(|change| change.offset() != offset).map(|change| {
            OffsetChange { at: change.timestamp().as_second(), utc_offset_seconds: change.offset().seconds() }
        });
    // jiff guarantees the ranges: month 1..=12, day 1..=31, hour 0..=23, minute 0..=59.
    let small = |n: i8| u8::try_from(n).unwrap_or(0);
    Now {
        unix_seconds: at.as_second(),
        utc_offset_seconds: offset.seconds(),
        next_offset,
        year: i32::from(local.year()),
        month: small(local.month()),
        day: small(local.day()),
        weekday: small(local.weekday().to_monday_one_offset()),
        minute_of_day: u16::from(small(local.hour())) * 60 + u16::from(small(local.minute())),
    }
}

/// Civil time of an instant of which the offset and its next change are known, but not the zone; pure.
pub(crate) fn civil_recorded(
    at: Timestamp,
    utc_offset_seconds: i32,
    next_offset: Option<OffsetChange>,
) -> Now {
    let offset = Offset::from_seconds(utc_offset_seconds).unwrap_or(Offset::UTC);
    Now { next_offset, ..civil_now(at, &TimeZone::fixed(offset)) }
}

/// Name of a zone, or where it has none, as a copied `/etc/localtime`, its offset at that time.
pub fn zone_name(zone: &TimeZone, at: Timestamp) -> String {
    zone.iana_name().map_or_else(|| format!("UTC{}", zone.to_offset(at)), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str, zone: &str) -> Now {
        civil_now(text.parse().unwrap(), &TimeZone::get(zone).unwrap())
    }

    #[test]
    fn a_zone_with_daylight_saving_names_its_next_change() {
        let now = at("2026-03-28T23:30:00Z", "Europe/Rome");
        assert_eq!((now.year, now.month, now.day, now.weekday, now.minute_of_day), (2026, 3, 29, 7, 30));
        assert_eq!(now.utc_offset_seconds, 3600);
        let next = now.next_offset.unwrap();
        assert_eq!(next.at, "2026-03-29T01:00:00Z".parse::<Timestamp>().unwrap().as_second());
        assert_eq!(next.utc_offset_seconds, 7200);
    }

    #[test]
    fn what_was_recorded_is_the_same_time() {
        for zone in ["Europe/Rome", "Asia/Kolkata", "Australia/Lord_Howe", "America/New_York", "UTC"] {
            for hour in 0..24 * 365 / 5 {
                let text = Timestamp::from_second(1_767_225_600 + 5 * 3600 * hour).unwrap();
                let now = civil_now(text, &TimeZone::get(zone).unwrap());
                let again = civil_recorded(text, now.utc_offset_seconds, now.next_offset);
                assert_eq!(format!("{again:?}"), format!("{now:?}"), "{zone} {text}");
            }
        }
    }

    #[test]
    fn a_zone_without_a_name_is_told_by_its_offset() {
        let at = Timestamp::UNIX_EPOCH;
        assert_eq!(zone_name(&TimeZone::get("Europe/Rome").unwrap(), at), "Europe/Rome");
        assert_eq!(zone_name(&TimeZone::fixed(jiff::tz::offset(-3)), at), "UTC-03");
    }

    #[test]
    fn a_zone_without_changes_has_none() {
        assert!(at("2026-03-28T23:30:00Z", "Asia/Shanghai").next_offset.is_none());
        assert!(at("2026-03-28T23:30:00Z", "UTC").next_offset.is_none());
    }
}
