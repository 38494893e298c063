//! What the local time means for the demo: time windows that are open or closed now, and whether it is night.

use jiff::{ToSpan, Zoned, tz::TimeZone};
use serde_json::{Value, json};

/// Hours of the policy night-gpu.
pub(crate) const NIGHT: (i8, i8) = (22, 7);

/// The local zone if it has a name, else UTC: a policy names its zone.
pub(crate) fn zone() -> (TimeZone, String) {
    let local = TimeZone::system();
    match local.iana_name().filter(|name| *name != "Etc/Unknown").map(str::to_owned) {
        Some(name) => (local, name),
        None => (TimeZone::UTC, "UTC".to_owned()),
    }
}

/// Now, in [`zone`].
pub(crate) fn now() -> Zoned {
    Zoned::now().with_time_zone(zone().0)
}

/// Whether GPUs are leased at this time.
pub(crate) fn is_night(now: &Zoned) -> bool {
    now.hour() >= NIGHT.0 || now.hour() < NIGHT.1
}

/// Nights on working days and whole weekends, where the "night" is around now: open for the next six hours at least.
pub(crate) fn open_windows(now: &Zoned) -> Value {
    let weekdays = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"];
    json!([
        {"start": hours_from(now, -1), "end": hours_from(now, 7), "days": weekdays},
        {"start": "00:00", "end": "23:59", "days": ["Saturday", "Sunday"]},
    ])
}

/// Two hours from now, for an hour: closed.
pub(crate) fn closed_windows(now: &Zoned) -> Value {
    json!([{"start": hours_from(now, 2), "end": hours_from(now, 3)}])
}

fn hours_from(now: &Zoned, hours: i64) -> String {
    // Within range: years 1 to 9999.
    let then = now.checked_add(hours.hours()).unwrap_or_else(|_| now.clone());
    format!("{:02}:{:02}", then.hour(), then.minute())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Zoned {
        text.parse().expect("a time")
    }

    #[test]
    fn windows_are_written_as_policies_want_them() {
        let late = at("2026-03-06T23:30:00[UTC]");
        assert_eq!(open_windows(&late)[0]["start"], "22:30");
        assert_eq!(open_windows(&late)[0]["end"], "06:30");
        assert_eq!(closed_windows(&late), json!([{"start": "01:30", "end": "02:30"}]));
    }

    #[test]
    fn night_wraps_around_midnight() {
        let nights: Vec<_> = ["21:59", "22:00", "00:10", "06:59", "07:00", "12:00"]
            .map(|time| is_night(&at(&format!("2026-03-06T{time}:00[UTC]"))))
            .to_vec();
        assert_eq!(nights, [false, true, true, true, false, false]);
    }
}
