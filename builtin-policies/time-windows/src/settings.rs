//! Settings of `time-windows` as an owner writes them. In: JSON; out: checked windows and reclaim. Read once per
//! evaluator.

use std::borrow::Cow;

use kubeocean_policy_sdk::parse_minute;
use kubeocean_policy_sdk::prelude::*;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserializer, de};

/// When nodes are leased. Without windows: always.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// Nodes are leased inside any of them
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub windows: Vec<TimeWindow>,
    /// To which day the part after midnight of a window belongs
    #[serde(default)]
    pub overnight: Overnight,
    /// Whether the minute named by end is still inside
    #[serde(default)]
    pub end_minute: EndMinute,
    /// What happens to pods on a node that is no longer leased; default: they stay
    #[serde(default)]
    pub reclaim: Option<ReclaimSettings>,
}

/// One window of local time.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct TimeWindow {
    /// First minute, HH:MM
    pub start: Time,
    /// Last minute, HH:MM; before start means past midnight
    pub end: Time,
    /// English names, any case; default: every day
    #[serde(default)]
    pub days: Vec<Day>,
}

impl TimeWindow {
    /// The days of the window; none written means every day (API-401).
    pub(crate) fn day_set(&self) -> Days {
        if self.days.is_empty() {
            return Days::ALL;
        }
        self.days.iter().fold(Days::NONE, |days, day| days.with(day.0))
    }
}

/// To which day the part after midnight belongs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Overnight {
    /// To the day after the listed one: the window goes on
    #[default]
    StartDay,
    /// To the listed day: both its morning and its evening are inside
    SameDay,
}

/// Whether the minute named by `end` is inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum EndMinute {
    /// No
    #[default]
    Exclusive,
    /// Yes
    Inclusive,
}

/// A time of day, `HH:MM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Time(u16);

impl Time {
    /// Minutes since midnight.
    pub fn minute(self) -> u16 {
        self.0
    }
}

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_minute(&text).map(Self).map_err(de::Error::custom)
    }
}

impl JsonSchema for Time {
    fn schema_name() -> Cow<'static, str> {
        "Time".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "pattern": "^([01][0-9]|2[0-3]):[0-5][0-9]$"})
    }
}

/// A day of the week, 1 = Monday to 7 = Sunday.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Day(u8);

impl<'de> Deserialize<'de> for Day {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let day = Days::NONE.with_name(&name).and_then(|days| (1..=7).find(|day| days.contains(*day)));
        day.map(Self).ok_or_else(|| de::Error::custom(format_args!("{name:?} is not an English day name")))
    }
}

impl JsonSchema for Day {
    fn schema_name() -> Cow<'static, str> {
        "Day".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // No inline flag for letter case in JSON Schema's dialect, so each letter is a class.
        json_schema!({
            "type": "string",
            "pattern": "^([Mm][Oo][Nn]|[Tt][Uu][Ee][Ss]|[Ww][Ee][Dd][Nn][Ee][Ss]|[Tt][Hh][Uu][Rr][Ss]|[Ff][Rr][Ii]|[Ss][Aa][Tt][Uu][Rr]|[Ss][Uu][Nn])[Dd][Aa][Yy]$",
        })
    }
}
