//! Instants that people write. In: `2026-03-07T12:00:00Z`; out: unix seconds. Used in settings and for annotations.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer};

/// An instant in UTC, `2026-03-07T12:00:00Z` in settings and annotations.
///
/// Only this one form of RFC 3339 is taken: what else might be meant is not guessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(i64);

/// A text that is not an [`Instant`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseInstantError(String);

impl fmt::Display for ParseInstantError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no time such as 2026-03-07T12:00:00Z", self.0)
    }
}

impl std::error::Error for ParseInstantError {}

impl Instant {
    /// Seconds since 1970-01-01T00:00:00Z.
    pub fn unix_seconds(self) -> i64 {
        self.0
    }
}

fn parse(text: &str) -> Option<i64> {
    let form = b"0000-00-00T00:00:00Z";
    let fits = text.len() == form.len()
        && text.bytes().zip(form).all(|(is, of)| if *of == b'0' { is.is_ascii_digit() } else { is == *of });
    if !fits {
        return None;
    }
    let number = |from: usize, to: usize| text.get(from..to)?.parse::<i64>().ok();
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = [31, if leap { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let of_month = usize::try_from(month - 1).ok().and_then(|index| days.get(index))?;
    if !(1..=*of_month).contains(&day) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    // Days since 1970 in years that begin in March, so that a leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * month + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    Some(days * 86_400 + hour * 3600 + minute * 60 + second)
}

impl FromStr for Instant {
    type Err = ParseInstantError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map(Self).ok_or_else(|| ParseInstantError(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for Instant {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Instant {
    fn schema_name() -> Cow<'static, str> {
        "Instant".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z$",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_are_unix_seconds() {
        for (text, seconds) in [
            ("1970-01-01T00:00:00Z", 0),
            ("1969-12-31T23:59:59Z", -1),
            ("2000-02-29T00:00:01Z", 951_782_401),
            ("2026-03-07T12:00:00Z", 1_772_884_800),
        ] {
            assert_eq!(text.parse(), Ok(Instant(seconds)));
        }
    }

    #[test]
    fn every_day_of_the_calendar_is_the_one_after_the_day_before() {
        let mut day: jiff::civil::Date = "1999-12-31".parse().unwrap();
        let mut last = parse("1999-12-31T00:00:00Z").unwrap();
        while day.year() < 2405 {
            day = day.tomorrow().unwrap();
            let next = parse(&format!("{day}T00:00:00Z")).unwrap();
            assert_eq!(next, last + 86_400, "{day}");
            last = next;
        }
    }

    #[test]
    fn what_else_might_be_meant_is_refused() {
        for text in [
            "tomorrow",
            "2026-02-29T12:00:00Z",
            "2100-02-29T00:00:00Z",
            "2026-03-07T24:00:00Z",
            "2026-03-07T12:00:00+01:00",
            "",
        ] {
            assert_eq!(text.parse::<Instant>(), Err(ParseInstantError(text.to_owned())));
        }
        let settings = serde_json::from_str::<Instant>("\"tomorrow\"").unwrap_err();
        assert!(settings.to_string().contains("no time such as 2026-03-07T12:00:00Z"), "{settings}");
    }
}
