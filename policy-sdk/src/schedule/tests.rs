use proptest::prelude::*;
use rstest::rstest;

use super::{DAY, Days, Schedule, WEEK, Window, parse_minute};

#[rstest]
#[case("00:00", Some(0))]
#[case("09:05", Some(545))]
#[case("23:59", Some(1439))]
#[case("24:00", None)]
#[case("12:60", None)]
#[case("9:00", None)]
#[case("09-00", None)]
#[case("0９:00", None)]
#[case("", None)]
fn times(#[case] text: &str, #[case] minute: Option<u16>) {
    assert_eq!(parse_minute(text).ok(), minute);
}

#[test]
fn day_names_in_any_case() {
    let days = Days::NONE.with_name("MONDAY").and_then(|days| days.with_name("sunday"));
    assert_eq!(days, Some(Days::NONE.with(1).with(7)));
    assert_eq!(Days::NONE.with_name("Mon"), None);
    assert_eq!((1..=5).fold(Days::NONE, Days::with), Days::WEEKDAYS);
    assert!(Days::WEEKEND.contains(6) && !Days::WEEKEND.contains(5) && !Days::ALL.contains(8));
}

#[test]
fn a_window_over_the_end_of_the_week_wraps() {
    let sunday_night = [Window { days: Days::NONE.with(7), start_minute: 1080, end_minute: 480 }];
    assert_eq!(Schedule::new(&sunday_night).spans, [(0, 480), (6 * DAY + 1080, WEEK)]);
}

#[test]
fn full_and_empty_schedules_never_change() {
    let all = Schedule::new(&[Window { days: Days::ALL, start_minute: 481, end_minute: 481 }]);
    assert!(all.is_always());
    assert_eq!(all.at(0), (true, None));
    let none = Schedule::new(&[Window { days: Days::NONE, start_minute: 0, end_minute: 60 }]);
    assert!(none.is_never());
    assert_eq!(none.at(0), (false, None));
}

fn window() -> impl Strategy<Value = Window> {
    (0u8..128, 0u16..DAY, 0u16..=DAY).prop_map(|(days, start_minute, end_minute)| Window {
        days: Days(days),
        start_minute,
        end_minute,
    })
}

/// The definition, minute by minute.
fn covers(window: Window, minute: u16) -> bool {
    let (day, time) = (minute / DAY, minute % DAY);
    let listed = |day: u16| window.days.0 & (1 << (day % 7)) != 0;
    if window.end_minute > window.start_minute {
        return listed(day) && (window.start_minute..window.end_minute).contains(&time);
    }
    listed(day) && time >= window.start_minute || listed(day + 6) && time < window.end_minute
}

proptest! {
    #[test]
    fn equals_the_definition_at_every_minute(windows in prop::collection::vec(window(), 0..4), minute in 0..WEEK) {
        let inside = |minute: u16| windows.iter().any(|window| covers(*window, minute % WEEK));
        let schedule = Schedule::new(&windows);
        let change = (1..=WEEK).find(|ahead| inside(minute + ahead) != inside(minute));
        prop_assert_eq!(schedule.at(minute.into()), (inside(minute), change.map(u32::from)));
        prop_assert!(schedule.spans.windows(2).all(|pair| pair[0].1 < pair[1].0));
    }
}
