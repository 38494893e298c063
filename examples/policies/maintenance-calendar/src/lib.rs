//! Maintenance that comes again and again: windows that begin when a cron expression fires.

mod cron;

use std::borrow::Cow;

use kubeocean_policy_sdk::prelude::*;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::Deserializer;

use cron::{Cron, DAY};

/// How far ahead a change is looked for, in minutes: then the policy is asked again.
const HORIZON: i64 = 31 * DAY;

/// Closes nodes in maintenance windows that cron expressions name.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MaintenanceCalendar {
    /// The windows
    #[schemars(length(min = 1, max = 32))]
    windows: Vec<Window>,
    /// What happens to pods that are there when a window begins; by default they stay
    #[serde(default)]
    reclaim: ReclaimSettings,
}

/// A window on the clock of the policy's time zone.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Window {
    /// What it is called, for people
    #[schemars(length(min = 1, max = 100))]
    name: String,
    /// When it begins: minute, hour, day of the month, month, day of the week, such as "0 2 * * SUN"
    cron: Expression,
    /// How long it lasts on the clock, in minutes, at most a week
    #[schemars(range(min = 1, max = 10_080))]
    minutes: u16,
}

/// A cron expression of the settings.
struct Expression(Cron);

impl<'de> Deserialize<'de> for Expression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        Cron::parse(&text)
            .map(Self)
            .map_err(|error| serde::de::Error::custom(format_args!("{text:?}: {error}")))
    }
}

impl JsonSchema for Expression {
    fn schema_name() -> Cow<'static, str> {
        "Cron".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "maxLength": 200})
    }
}

impl Window {
    fn length(&self) -> i64 {
        i64::from(self.minutes)
    }

    /// When the window ends that is open at `minute`, if one is.
    fn open_at(&self, minute: i64) -> Option<i64> {
        let begun = self.cron.0.last(minute - self.length() + 1, minute)?;
        Some(begun + self.length())
    }
}

impl MaintenanceCalendar {
    /// The window that is open at a minute of the local clock.
    fn open_at(&self, minute: i64) -> Option<&Window> {
        self.windows.iter().find(|window| window.open_at(minute).is_some())
    }

    /// The first minute after `minute` from which on no window is open, at most [`HORIZON`] ahead.
    fn closes_after(&self, minute: i64) -> i64 {
        let until = minute + HORIZON;
        let mut end = minute;
        // Windows that overlap or touch are one.
        while let Some(later) = self.windows.iter().filter_map(|window| window.open_at(end)).max() {
            end = later;
            if end >= until {
                return until;
            }
        }
        end
    }

    /// The first minute after `minute` at which a window opens, at most [`HORIZON`] ahead.
    fn opens_after(&self, minute: i64) -> i64 {
        let until = minute + HORIZON;
        self.windows.iter().filter_map(|window| window.cron.0.next(minute, until)).min().unwrap_or(until)
    }
}

impl LeasePolicy for MaintenanceCalendar {
    fn validate(&self) -> Result<(), String> {
        self.reclaim.resolve().map(drop)
    }

    fn needs(&self) -> Needs {
        Needs::new()
    }

    fn lease(&self, now: &Now, _node: Node<'_>) -> Lease {
        // The test is on the local clock, so a time that is skipped or comes twice needs no rule.
        let minute = (now.unix_seconds() + i64::from(now.utc_offset_seconds())).div_euclid(60);
        let until = |then: i64| now.after(u32::try_from(then - minute).unwrap_or(1));
        match self.open_at(minute) {
            Some(window) => Lease::withhold("Maintenance", format!("{} is under way", window.name))
                .reclaim(self.reclaim.resolve().unwrap_or_default())
                .until(until(self.closes_after(minute))),
            None => Lease::offer().until(until(self.opens_after(minute))),
        }
    }
}

export_policy!(MaintenanceCalendar: lease);

#[cfg(test)]
mod tests;
