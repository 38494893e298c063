use rstest::rstest;

use super::{Now, Phase};
use crate::harness::Moment;
use crate::schedule::{Days, Window};

fn now(local: &str, zone: &str) -> (Now, Moment) {
    let moment = Moment::new(local, zone);
    (Now::new(moment.now()), moment)
}

/// Inside or not, and the local time of the change.
fn shown(phase: Phase, moment: &Moment) -> (bool, Option<String>) {
    (phase.inside, phase.changes_at.map(|instant| moment.local(instant)))
}

#[rstest]
#[case::before("2026-01-05T08:59:30", 540, 1020, false, "2026-01-05T09:00")]
#[case::first_second("2026-01-05T09:00", 540, 1020, true, "2026-01-05T17:00")]
#[case::end_is_outside("2026-01-05T17:00", 540, 1020, false, "2026-01-06T09:00")]
#[case::evening("2026-01-05T22:00", 1320, 420, true, "2026-01-06T07:00")]
#[case::early_morning("2026-01-05T06:59:59", 1320, 420, true, "2026-01-05T07:00")]
#[case::until_midnight("2026-01-05T23:59", 1080, 1440, true, "2026-01-06T00:00")]
fn daily(#[case] at: &str, #[case] start: u16, #[case] end: u16, #[case] inside: bool, #[case] change: &str) {
    let (now, moment) = now(at, "Asia/Shanghai");
    assert_eq!(shown(now.daily(start, end), &moment), (inside, Some(change.to_owned())));
}

#[rstest]
#[case(0, 1440)]
#[case(0, 0)]
#[case(420, 420)]
fn a_day_long_window_never_changes(#[case] start: u16, #[case] end: u16) {
    let (now, _) = now("2026-01-05T08:00", "UTC");
    assert_eq!(now.daily(start, end), Phase { inside: true, changes_at: None });
    assert_eq!(now.promise(), None);
}

// Rome: 2026-03-29 02:00 -> 03:00, 2026-10-25 03:00 -> 02:00.
#[rstest]
#[case::start_is_skipped("2026-03-29T01:59", 150, 240, false, "2026-03-29T03:00")]
#[case::after_the_skip("2026-03-29T03:00", 150, 240, true, "2026-03-29T04:00")]
#[case::asked_again_at_the_change("2026-03-28T23:00", 480, 540, false, "2026-03-29T03:00")]
#[case::end_before_the_change("2026-10-25T01:30", 60, 120, true, "2026-10-25T02:00")]
fn daily_over_a_change_of_offset(
    #[case] at: &str,
    #[case] start: u16,
    #[case] end: u16,
    #[case] inside: bool,
    #[case] change: &str,
) {
    let (now, moment) = now(at, "Europe/Rome");
    assert_eq!(shown(now.daily(start, end), &moment), (inside, Some(change.to_owned())));
}

#[test]
fn weekly_windows_merge() {
    let windows = [
        Window::new(Days::WEEKDAYS, "18:00", "00:00").unwrap(),
        Window::new(Days::WEEKDAYS, "00:00", "08:00").unwrap(),
        Window { days: Days::WEEKEND, start_minute: 0, end_minute: 1440 },
    ];
    for (at, inside, change) in [
        ("2026-01-05T12:00", false, "2026-01-05T18:00"),
        ("2026-01-05T19:00", true, "2026-01-06T08:00"),
        ("2026-01-09T18:00", true, "2026-01-12T08:00"),
        ("2026-01-11T23:59", true, "2026-01-12T08:00"),
    ] {
        let (now, moment) = now(at, "UTC");
        assert_eq!(shown(now.weekly(&windows), &moment), (inside, Some(change.to_owned())), "{at}");
    }
}

#[test]
fn fields_are_the_local_ones_and_promise_one_minute() {
    let (now, moment) = now("2026-03-07T23:30:20", "Asia/Shanghai");
    assert_eq!(now.promise(), None);
    assert_eq!((now.year(), now.month(), now.day(), now.weekday()), (2026, 3, 7, 6));
    assert_eq!((now.hour(), now.minute_of_day(), now.utc_offset_seconds()), (23, 1410, 28_800));
    assert_eq!(now.unix_seconds(), moment.unix_seconds());
    assert_eq!(now.promise().map(|instant| moment.local(instant)), Some("2026-03-07T23:31".to_owned()));
}

#[test]
fn the_earliest_change_is_promised() {
    let (now, moment) = now("2026-03-07T12:00", "UTC");
    now.daily(13 * 60, 14 * 60);
    now.daily(11 * 60, 18 * 60);
    assert_eq!(now.promise().map(|instant| moment.local(instant)), Some("2026-03-07T13:00".to_owned()));
    now.start_row();
    assert_eq!(now.promise(), None);
}

#[rstest]
#[case::next_minute("2026-03-28T23:59:20", 1, "2026-03-29T00:00")]
#[case::hours("2026-03-28T22:10", 110, "2026-03-29T00:00")]
#[case::not_past_a_change_of_the_offset("2026-03-29T01:00", 600, "2026-03-29T03:00")]
fn a_distance_on_the_local_clock_is_an_instant(#[case] at: &str, #[case] minutes: u32, #[case] then: &str) {
    let (now, moment) = now(at, "Europe/Rome");
    let instant = now.after(minutes);
    assert_eq!(moment.local(instant), then);
    assert_eq!(now.promise(), Some(instant), "what was asked for is promised no longer");
}
