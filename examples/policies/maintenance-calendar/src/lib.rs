//! Maintenance that comes again and again: windows that begin when a cron expression fires.

mod calendar;
mod cron;

use std::borrow::Cow;
use std::cell::Cell;

use kubeocean_policy_sdk::prelude::*;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::Deserializer;

use calendar::{Window, closes_after, opens_after};
use cron::Cron;

/// Closes nodes in maintenance windows that cron expressions name.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct MaintenanceCalendar {
    /// The windows
    #[schemars(length(min = 1, max = 32))]
    windows: Vec<WindowSettings>,
    /// What happens to pods that are there when a window begins; by default they stay
    #[serde(default)]
    reclaim: ReclaimSettings,
    /// All nodes of a call are asked about at the same moment, so this is worked out once.
    #[serde(skip)]
    known: Cell<Option<Known>>,
}

/// What holds at a minute of the local clock.
#[derive(Clone, Copy)]
struct Known {
    minute: i64,
    /// Index of a window that is open.
    open: Option<usize>,
    /// The minute at which that may change.
    until: i64,
}

/// A window on the clock of the policy's time zone.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct WindowSettings {
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

impl MaintenanceCalendar {
    fn at(&self, minute: i64) -> Known {
        if let Some(known) = self.known.get().filter(|known| known.minute == minute) {
            return known;
        }
        let windows = self.windows.iter();
        let windows = windows.map(|window| Window { begins: &window.cron.0, minutes: window.minutes.into() });
        let open = windows.clone().position(|window| window.open_at(minute).is_some());
        let until = match open {
            Some(_) => closes_after(windows, minute),
            None => opens_after(windows, minute),
        };
        let known = Known { minute, open, until };
        self.known.set(Some(known));
        known
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
        let Known { open, until, .. } = self.at(minute);
        let until = now.after(u32::try_from(until - minute).unwrap_or(1));
        match open.and_then(|index| self.windows.get(index)) {
            Some(window) => Lease::withhold("Maintenance", format!("{} is under way", window.name))
                .reclaim(self.reclaim.resolve().unwrap_or_default())
                .until(until),
            None => Lease::offer().until(until),
        }
    }
}

export_policy!(MaintenanceCalendar: lease);

#[cfg(test)]
mod tests;
