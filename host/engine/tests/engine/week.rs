//! A week of windows in a blink (BU-801 to BU-804, BU-808): the built-in module is asked at the instants it names itself
//! and nowhere else, and what it said until then must be right in every minute of the week, on both days on which a zone
//! changes its clock. The oracle looks at the wall clock minute by minute.
//!
//! `KUBEOCEAN_SIM_SEED` replays one set of windows, `KUBEOCEAN_SIM_SEEDS` widens the sweep.

use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use kubeocean_engine::Reclaim;
use kubeocean_policy_twins::{Clock, TimeWindowsTwin};
use rstest::rstest;
use serde_json::{Value, json};

use crate::legacy_table::{DAYS, Numbers};
use crate::support::*;

const SETS: u64 = 32;
const MINUTES: usize = 7 * 24 * 60;

/// What the clocks of a zone show in each minute of a week.
struct Week {
    zone: &'static str,
    from: Timestamp,
    clocks: Vec<Clock>,
    /// Minutes before which the clock was changed.
    changes: Vec<usize>,
}

impl Week {
    fn new(zone: &'static str, from: &str) -> Self {
        let (from, rules) = (at(from), TimeZone::get(zone).unwrap());
        let local = |minute: usize| {
            let ahead = SignedDuration::from_mins(i64::try_from(minute).unwrap());
            (from + ahead).to_zoned(rules.clone())
        };
        let clock = |minute: usize| {
            let local = local(minute);
            Clock {
                weekday: u8::try_from(local.weekday().to_monday_one_offset()).unwrap(),
                minute_of_day: u16::try_from(local.hour()).unwrap() * 60
                    + u16::try_from(local.minute()).unwrap(),
            }
        };
        let changed = |minute: &usize| local(*minute).offset() != local(*minute - 1).offset();
        Self {
            zone,
            from,
            clocks: (0..MINUTES).map(clock).collect(),
            changes: (1..MINUTES).filter(changed).collect(),
        }
    }

    fn at(&self, minute: usize) -> Timestamp {
        self.from + SignedDuration::from_mins(i64::try_from(minute).unwrap())
    }

    /// Goes from one promise to the next. Returns how many there were.
    fn check(&self, host: &Host, is_open: impl Fn(Clock) -> bool, context: &str) -> usize {
        let open: Vec<bool> = self.clocks.iter().map(|clock| is_open(*clock)).collect();
        let (mut minute, mut asked) = (0, 0);
        while minute < MINUTES {
            let decision = host.one(self.at(minute), node("a"));
            asked += 1;
            let until = decision.valid_until.map_or(MINUTES, |until| {
                let ahead = until - self.from.as_second();
                assert_eq!(ahead % 60, 0, "{context}: a change within a minute: {until}");
                usize::try_from(ahead / 60).unwrap().min(MINUTES)
            });
            assert!(until > minute, "{context}: minute {minute} is promised until {until}");
            let wrong = (minute..until).find(|now| open[*now] == decision.withheld);
            if let Some(wrong) = wrong {
                let local = self.at(wrong).to_zoned(TimeZone::get(self.zone).unwrap());
                panic!(
                    "{context}: at {local} open is {}, promised in minute {minute} until {until}",
                    open[wrong]
                );
            }
            let flips = until == MINUTES || open[until] != open[until - 1];
            assert!(flips || self.changes.contains(&until), "{context}: asked for nothing in minute {until}");
            minute = until;
        }
        asked
    }
}

/// Times that meet edges of days, of idioms and of the hours that zones skip or repeat.
fn time(numbers: &mut Numbers) -> String {
    const EDGES: [&str; 14] = [
        "00:00", "00:01", "00:30", "00:59", "01:00", "01:30", "01:59", "02:00", "02:30", "03:00", "08:00",
        "08:01", "23:00", "23:59",
    ];
    if numbers.next(2) == 0 {
        return numbers.pick(&EDGES).to_owned();
    }
    format!("{:02}:{:02}", numbers.next(24), numbers.next(60))
}

fn windows(numbers: &mut Numbers) -> Value {
    let windows: Vec<Value> = (0..numbers.next(5))
        .map(|_| {
            let start = time(numbers);
            let end = if numbers.next(6) == 0 { start.clone() } else { time(numbers) };
            let days: Vec<&str> = (0..numbers.next(4)).map(|_| numbers.pick(&DAYS)).collect();
            json!({"start": start, "end": end, "days": days})
        })
        .collect();
    windows.into()
}

/// BU-802 and BU-803 in their plainest form.
fn is_open(windows: &Value, clock: Clock) -> bool {
    let now = format!("{:02}:{:02}", clock.minute_of_day / 60, clock.minute_of_day % 60);
    let windows = windows.as_array().unwrap();
    let inside = |window: &Value| {
        let (start, end) = (window["start"].as_str().unwrap(), window["end"].as_str().unwrap());
        let days = window["days"].as_array().map(Vec::as_slice).unwrap_or_default();
        let today = days.is_empty() || days.iter().any(|day| day == DAYS[usize::from(clock.weekday) - 1]);
        let hours = if end < start { *now >= *start || *now <= *end } else { *now >= *start && *now <= *end };
        today && hours
    };
    windows.is_empty() || windows.iter().any(inside)
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Weeks, by the Monday they begin with, and how often a clock is changed in them.
#[rstest]
#[case::berlin_into_summer("Europe/Berlin", "2026-03-23T00:00:00Z", 1)]
#[case::berlin_out_of_it("Europe/Berlin", "2026-10-19T00:00:00Z", 1)]
#[case::new_york_into_summer("America/New_York", "2026-03-02T05:00:00Z", 1)]
#[case::new_york_out_of_it("America/New_York", "2026-10-26T00:00:00Z", 1)]
#[case::half_an_hour_forward("Australia/Lord_Howe", "2026-09-28T00:00:00Z", 1)]
#[case::half_an_hour_back("Australia/Lord_Howe", "2026-03-30T00:00:00Z", 1)]
#[case::a_midnight_that_is_skipped("Africa/Cairo", "2026-04-20T00:00:00Z", 1)]
#[case::a_midnight_that_returns("Africa/Cairo", "2026-10-26T00:00:00Z", 1)]
#[case::half_an_hour_off("Asia/Kolkata", "2026-03-23T00:00:00Z", 0)]
#[case::plain("UTC", "2026-03-02T00:00:00Z", 0)]
fn every_minute_of_a_week_is_as_promised(
    #[case] zone: &'static str,
    #[case] from: &str,
    #[case] changes: usize,
) {
    let week = Week::new(zone, from);
    assert_eq!(week.changes.len(), changes, "{zone}");
    let seeds = match setting("KUBEOCEAN_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..setting("KUBEOCEAN_SIM_SEEDS").unwrap_or(SETS),
    };
    let mut promises = 0;
    for seed in seeds {
        let windows = windows(&mut Numbers(seed));
        let context = format!("KUBEOCEAN_SIM_SEED={seed} {zone} {windows}");
        let legacy = host(vec![policy(json!({"timeZone": zone, "timeWindows": windows}))]);
        promises += week.check(&legacy, |clock| is_open(&windows, clock), &context);
        let settings = json!({"windows": windows});
        let module = policy(json!({"timeZone": zone})).builtin("w", "time-windows", settings.clone());
        let twin = TimeWindowsTwin::new(&settings);
        week.check(&host(vec![module]), |clock| twin.offers_at(clock), &context);
    }
    assert!(promises > 0);
}

#[rstest]
#[case::around_the_clock(json!([{"start": "08:01", "end": "08:00"}]), 1)]
#[case::whole_days(json!([{"start": "00:00", "end": "23:59"}]), 1)]
#[case::without_windows(json!([]), 1)]
#[case::the_published_example(json!([
    {"start": "18:00", "end": "08:00", "days": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]},
    {"start": "00:00", "end": "23:59", "days": ["Saturday", "Sunday"]}
]), 11)]
#[case::a_night_of_one_day(json!([{"start": "22:00", "end": "06:00", "days": ["Monday"]}]), 4)]
fn idioms_ask_no_more_often_than_they_change(#[case] windows: Value, #[case] asked: usize) {
    let week = Week::new("Asia/Kolkata", "2026-03-01T18:30:00Z");
    let spec = json!({
        "timeZone": "Asia/Kolkata", "timeWindows": windows,
        "forceReclaim": true, "gracefulReclaimPeriodSeconds": 90,
    });
    let host = host(vec![policy(spec)]);
    assert_eq!(week.check(&host, |clock| is_open(&windows, clock), "idiom"), asked);
    assert_eq!(host.one(week.at(0), node("a")).reclaim, Reclaim::Graceful(90));
}
