//! Twin of `time-windows` (PO-521, PO-522, PO-524): asks each minute of the coming days.

use serde_json::Value;

/// Local time of a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clock {
    /// 1 = Monday to 7 = Sunday.
    pub weekday: u8,
    /// Minutes since midnight.
    pub minute_of_day: u16,
}

impl Clock {
    /// Counted from Monday 00:00.
    fn minute_of_week(self) -> u32 {
        (u32::from(self.weekday) - 1) * DAY + u32::from(self.minute_of_day)
    }
}

/// What holds at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeVerdict {
    /// The node is offered.
    pub offer: bool,
    /// Local minutes from the start of the current minute until `offer` changes; `None` within eight days. With a
    /// change of the zone's offset before that, the answer holds until the change only.
    pub changes_in_minutes: Option<u32>,
}

/// Minutes of a day.
const DAY: u32 = 24 * 60;
/// How far a change is looked for (PO-524).
const SEARCH_MINUTES: u32 = 8 * DAY;

#[derive(Clone, Debug)]
struct Window {
    start: u32,
    end: u32,
    /// Lower-case names; empty = every day.
    days: Vec<String>,
}

/// Parsed settings, for benches that decide many times.
#[derive(Clone, Debug)]
pub struct TimeWindowsTwin {
    windows: Vec<Window>,
    same_day: bool,
    inclusive: bool,
}

const NAMES: [&str; 7] = ["monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"];

fn minute(text: &Value) -> u32 {
    let text = text.as_str().unwrap_or_default();
    let (hours, minutes) = text.split_once(':').unwrap_or_default();
    hours.parse::<u32>().unwrap_or(0) * 60 + minutes.parse::<u32>().unwrap_or(0)
}

impl TimeWindowsTwin {
    /// Reads valid settings.
    pub fn new(settings: &Value) -> Self {
        let windows = settings["windows"].as_array().into_iter().flatten();
        Self {
            windows: windows
                .map(|window| Window {
                    start: minute(&window["start"]),
                    end: minute(&window["end"]),
                    days: (window["days"].as_array().into_iter().flatten())
                        .filter_map(|day| day.as_str().map(str::to_lowercase))
                        .collect(),
                })
                .collect(),
            same_day: settings["overnight"] == "sameDay",
            inclusive: settings["endMinute"] == "inclusive",
        }
    }

    /// Whether nodes are offered at `minute` of the week, counted from Monday 00:00.
    fn offers(&self, minute: u32) -> bool {
        let (day, time) = ((minute / DAY) % 7, minute % DAY);
        self.windows.is_empty() || self.windows.iter().any(|window| self.covers(window, day, time))
    }

    fn covers(&self, window: &Window, day: u32, time: u32) -> bool {
        let listed = |day: u32| {
            window.days.is_empty() || window.days.iter().any(|name| name == NAMES[(day % 7) as usize])
        };
        let before_end = time < window.end || self.inclusive && time == window.end;
        let over_midnight = window.end < window.start || !self.inclusive && window.end == window.start;
        if !over_midnight {
            return listed(day) && time >= window.start && before_end;
        }
        let evening = listed(day) && time >= window.start;
        let morning = before_end && if self.same_day { listed(day) } else { listed(day + 6) };
        evening || morning
    }

    /// Whether nodes are offered at `clock`.
    pub fn offers_at(&self, clock: Clock) -> bool {
        self.offers(clock.minute_of_week())
    }

    /// The verdict at `clock`.
    pub fn verdict(&self, clock: Clock) -> TimeVerdict {
        let now = clock.minute_of_week();
        let offer = self.offers(now);
        let changes_in_minutes = (1..=SEARCH_MINUTES).find(|ahead| self.offers(now + ahead) != offer);
        TimeVerdict { offer, changes_in_minutes }
    }
}

/// The verdict of valid settings at `clock`.
pub fn time_windows(settings: &Value, clock: Clock) -> TimeVerdict {
    TimeWindowsTwin::new(settings).verdict(clock)
}
