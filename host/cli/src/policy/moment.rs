//! Moments and spans as a command line and a test file name them.
//!
//! Pure.

use jiff::{Span, Timestamp, civil::DateTime, tz::TimeZone};

/// An instant such as `2026-03-07T14:02:00Z`, or a local time or day of `zone`.
pub(super) fn instant(text: &str, zone: &TimeZone) -> Result<Timestamp, String> {
    if let Ok(instant) = text.parse::<Timestamp>() {
        return Ok(instant);
    }
    let expected = "expected a time such as 2026-03-07T14:02:00Z, 2026-03-07T14:02 or 2026-03-07";
    let local: DateTime = text.parse().map_err(|_| expected.to_owned())?;
    local.to_zoned(zone.clone()).map(|zoned| zoned.timestamp()).map_err(|error| error.to_string())
}

/// A span such as `7d`, `36h` or `1w 2d`, which is longer than nothing.
pub(super) fn span(text: &str) -> Result<Span, String> {
    let wrong = || format!("{text:?} is no span of time, expected for example 7d, 36h or 90m");
    let span: Span = text.parse().map_err(|_| wrong())?;
    if span.is_positive() { Ok(span) } else { Err(wrong()) }
}

/// The end of a span that begins at `from`: days are those of the zone, also where one has 23 or 25 hours.
pub(super) fn after(from: Timestamp, span: Span, zone: &TimeZone) -> Result<Timestamp, String> {
    let end = from.to_zoned(zone.clone()).checked_add(span).map_err(|error| error.to_string())?;
    Ok(end.timestamp())
}

/// Local time of an instant, to the minute where it is whole.
pub(super) fn local(unix: i64, zone: &TimeZone) -> String {
    let Ok(at) = Timestamp::from_second(unix) else { return unix.to_string() };
    let form = if unix.rem_euclid(60) == 0 { "%Y-%m-%dT%H:%M" } else { "%Y-%m-%dT%H:%M:%S" };
    at.to_zoned(zone.clone()).strftime(form).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_without_an_offset_are_local() {
        let rome = TimeZone::get("Europe/Rome").unwrap();
        let at = |text: &str| instant(text, &rome).map(|at| at.to_string());
        assert_eq!(at("2026-03-07T14:02").as_deref(), Ok("2026-03-07T13:02:00Z"));
        assert_eq!(at("2026-03-07").as_deref(), Ok("2026-03-06T23:00:00Z"));
        assert_eq!(at("2026-03-07T14:02:00Z").as_deref(), Ok("2026-03-07T14:02:00Z"));
        assert!(at("tomorrow").unwrap_err().contains("expected a time"));
    }

    #[test]
    fn a_day_is_a_day_of_the_zone() {
        let rome = TimeZone::get("Europe/Rome").unwrap();
        let from: Timestamp = "2026-03-28T23:00:00Z".parse().unwrap();
        let day = after(from, span("1d").unwrap(), &rome).unwrap();
        assert_eq!(day.as_second() - from.as_second(), 23 * 3600, "clocks go forward");
        assert!(span("7d").is_ok() && span("36h").is_ok() && span("90m").is_ok());
        assert!(span("7").is_err() && span("-1d").is_err() && span("0s").is_err());
        assert_eq!(local(day.as_second(), &rome), "2026-03-30T00:00");
        assert_eq!(local(day.as_second() + 1, &rome), "2026-03-30T00:00:01");
    }
}
