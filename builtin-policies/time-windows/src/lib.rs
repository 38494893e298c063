//! Built-in policy `time-windows`: nodes are leased inside weekly windows only.
//!
//! In: settings and the time in the policy's zone, no facts; out: offer or withhold with the instant of the next
//! change. Runs as an ordinary module; `spec.timeWindows` of a `ResourceLeasingPolicy` is translated to its settings.
//! Invariant: the windows are merged once, so a boundary that changes nothing wakes nobody (PO-524).

mod settings;

use kubeocean_policy_sdk::parse_plain_settings;
use kubeocean_policy_sdk::prelude::*;

pub use settings::{Day, EndMinute, Overnight, Settings, Time, TimeWindow};

/// Leases inside weekly time windows, in the zone of the policy.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(try_from = "Settings")]
#[schemars(with = "Settings")]
pub struct TimeWindows {
    /// `None` without windows: always offered.
    schedule: Option<Schedule>,
    reclaim: Reclaim,
}

/// Windows one policy may have.
const MAX_WINDOWS: usize = 64;

impl TryFrom<Settings> for TimeWindows {
    type Error = String;

    fn try_from(settings: Settings) -> Result<Self, String> {
        let count = settings.windows.len();
        if count > MAX_WINDOWS {
            return Err(format!("settings.windows: has {count} items, at most {MAX_WINDOWS} are allowed"));
        }
        let reclaim = settings.reclaim.map(ReclaimSettings::resolve).transpose()?.unwrap_or_default();
        if settings.windows.is_empty() {
            return Ok(Self { schedule: None, reclaim });
        }
        let windows: Vec<Window> = settings
            .windows
            .iter()
            .flat_map(|window| expand(window, settings.overnight, settings.end_minute))
            .collect();
        Ok(Self { schedule: Some(Schedule::new(&windows)), reclaim })
    }
}

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// The spans of one written window (PO-522). An end before the start, and with an excluded end also an equal one, runs
/// over midnight: into the next day, or, with `sameDay`, as the two halves of the listed day itself.
fn expand(window: &TimeWindow, overnight: Overnight, end_minute: EndMinute) -> impl Iterator<Item = Window> {
    let days = window.day_set();
    let (start, end) = (window.start.minute(), window.end.minute());
    let (past_midnight, end) = match end_minute {
        EndMinute::Inclusive => (end < start, end + 1),
        EndMinute::Exclusive => (end <= start, end),
    };
    let span = |start_minute, end_minute| Window { days, start_minute, end_minute };
    let (first, second) = match overnight {
        Overnight::SameDay if past_midnight => (span(start, DAY), (end > 0).then(|| span(0, end))),
        // A span that ends where it starts is read as a whole day, which is what it then is.
        Overnight::SameDay | Overnight::StartDay => (span(start, end), None),
    };
    [Some(first), second].into_iter().flatten()
}

impl LeasePolicy for TimeWindows {
    fn parse_settings(settings: &str) -> Result<Self, String> {
        parse_plain_settings::<Settings>(settings)?.try_into()
    }

    fn needs(&self) -> Needs {
        Needs::new()
    }

    fn lease(&self, now: &Now, _node: Node<'_>) -> Lease {
        let phase = match &self.schedule {
            Some(schedule) => now.during(schedule),
            None => Phase { inside: true, changes_at: None },
        };
        let answer = if phase.inside {
            Lease::offer()
        } else {
            Lease::withhold("OutsideTimeWindow", "nodes are leased inside the time windows only")
        };
        answer.until(phase.changes_at).reclaim(self.reclaim)
    }
}

export_policy!(TimeWindows: lease, schema = include_str!("../settings.schema.json"));

#[cfg(test)]
mod tests;
