use kubeocean_policy_sdk::prelude::*;
use kubeocean_policy_sdk::{assert_parser_follows_schema, parse_settings, settings_schema};
use kubeocean_policy_twins::{Clock, time_windows};
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::TimeWindows;

/// Decides at a local time; answers the verdict and the local time of the next change.
fn decide(settings: &Value, at: &str, zone: &str) -> (Verdict, Option<String>) {
    let answer = Harness::<TimeWindows>::new(settings).at(at, zone).lease();
    (answer.verdict, answer.valid_until_local)
}

/// Settings as the legacy fields translate to (PO-522).
fn legacy(windows: &Value) -> Value {
    json!({"windows": windows, "overnight": "sameDay", "endMinute": "inclusive"})
}

fn office() -> Value {
    legacy(&json!([{"start": "09:00", "end": "17:00"}]))
}

fn nights_and_weekends() -> Value {
    legacy(&json!([
        {"start": "18:00", "end": "08:00", "days": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]},
        {"start": "00:00", "end": "23:59", "days": ["saturday", "SUNDAY"]}
    ]))
}

// 2026-01-05 is a Monday.
#[rstest]
#[case::before(office(), "2026-01-05T08:59:59", false, Some("2026-01-05T09:00"))]
#[case::first_minute(office(), "2026-01-05T09:00", true, Some("2026-01-05T17:01"))]
#[case::last_minute_is_inside(office(), "2026-01-05T17:00:59", true, Some("2026-01-05T17:01"))]
#[case::after_the_last_minute(office(), "2026-01-05T17:01", false, Some("2026-01-06T09:00"))]
#[case::monday_morning_belongs_to_monday(
    nights_and_weekends(),
    "2026-01-05T07:59",
    true,
    Some("2026-01-05T08:01")
)]
#[case::monday_by_day(nights_and_weekends(), "2026-01-05T12:00", false, Some("2026-01-05T18:00"))]
#[case::friday_night_runs_into_monday(
    nights_and_weekends(),
    "2026-01-09T18:00",
    true,
    Some("2026-01-12T08:01")
)]
#[case::saturday_at_noon(nights_and_weekends(), "2026-01-10T12:00", true, Some("2026-01-12T08:01"))]
#[case::sunday_last_minute(nights_and_weekends(), "2026-01-11T23:59:59", true, Some("2026-01-12T08:01"))]
#[case::weekday_night_alone_is_not_saturday(
    legacy(&json!([{"start": "18:00", "end": "08:00", "days": ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday"]}])),
    "2026-01-10T03:00", false, Some("2026-01-12T00:00"))]
#[case::one_minute(legacy(&json!([{"start": "12:00", "end": "12:00"}])), "2026-01-05T12:00:30", true, Some("2026-01-05T12:01"))]
#[case::after_one_minute(legacy(&json!([{"start": "12:00", "end": "12:00"}])), "2026-01-05T12:01", false, Some("2026-01-06T12:00"))]
#[case::whole_day(legacy(&json!([{"start": "00:00", "end": "23:59"}])), "2026-01-05T23:59:59", true, None)]
#[case::around_the_clock(legacy(&json!([{"start": "08:01", "end": "08:00"}])), "2026-01-05T08:00:30", true, None)]
#[case::no_windows(json!({}), "2026-01-05T08:00", true, None)]
#[case::adjacent_windows_are_one(
    legacy(&json!([{"start": "08:00", "end": "11:59"}, {"start": "12:00", "end": "13:00"}])),
    "2026-01-05T09:00", true, Some("2026-01-05T13:01"))]
#[case::exclusive_end(json!({"windows": [{"start": "09:00", "end": "17:00"}]}), "2026-01-05T17:00", false, Some("2026-01-06T09:00"))]
#[case::exclusive_end_minute_before(json!({"windows": [{"start": "09:00", "end": "17:00"}]}), "2026-01-05T16:59:59", true, Some("2026-01-05T17:00"))]
#[case::start_day_moves_the_morning(
    json!({"windows": [{"start": "18:00", "end": "08:00", "days": ["Friday"]}]}),
    "2026-01-10T07:59", true, Some("2026-01-10T08:00"))]
#[case::start_day_has_no_morning_of_its_own(
    json!({"windows": [{"start": "18:00", "end": "08:00", "days": ["Friday"]}]}),
    "2026-01-09T07:00", false, Some("2026-01-09T18:00"))]
#[case::start_day_over_the_week_end(
    json!({"windows": [{"start": "18:00", "end": "08:00", "days": ["Sunday"]}]}),
    "2026-01-11T23:00", true, Some("2026-01-12T08:00"))]
#[case::until_midnight(json!({"windows": [{"start": "18:00", "end": "00:00"}]}), "2026-01-05T23:59", true, Some("2026-01-06T00:00"))]
#[case::same_day_until_midnight(
    json!({"windows": [{"start": "18:00", "end": "00:00", "days": ["Monday"]}], "overnight": "sameDay"}),
    "2026-01-06T00:00", false, Some("2026-01-12T18:00"))]
#[case::exclusive_equal_ends_are_a_whole_day(
    json!({"windows": [{"start": "06:00", "end": "06:00", "days": ["Monday"]}]}),
    "2026-01-06T05:59", true, Some("2026-01-06T06:00"))]
fn windows(#[case] settings: Value, #[case] at: &str, #[case] offer: bool, #[case] until: Option<&str>) {
    let verdict = if offer { Verdict::Offer } else { Verdict::Withhold };
    assert_eq!(decide(&settings, at, "Asia/Shanghai"), (verdict, until.map(str::to_owned)));
}

// Rome leaves winter time on 2026-03-29 at 02:00 (to 03:00) and returns on 2026-10-25 at 03:00 (to 02:00).
#[rstest]
#[case::never_past_the_change("2026-03-29T00:00", false, Some("2026-03-29T01:30"))]
#[case::ends_with_the_skipped_hour("2026-03-29T01:30", true, Some("2026-03-29T03:00"))]
#[case::after_the_skipped_hour("2026-03-29T03:00", false, Some("2026-03-30T01:30"))]
#[case::first_pass_of_the_repeated_hour("2026-10-25T01:30", true, Some("2026-10-25T02:30"))]
fn daylight_saving(#[case] at: &str, #[case] offer: bool, #[case] until: Option<&str>) {
    let settings = json!({"windows": [{"start": "01:30", "end": "02:30"}]});
    let verdict = if offer { Verdict::Offer } else { Verdict::Withhold };
    assert_eq!(decide(&settings, at, "Europe/Rome"), (verdict, until.map(str::to_owned)));
}

#[test]
fn the_repeated_hour_is_asked_again_at_the_change() {
    // 02:45 of the first pass: by the clock outside until tomorrow, but at 03:00 the clock returns to 02:00.
    let settings = json!({"windows": [{"start": "01:30", "end": "02:30"}]});
    let answer = Harness::<TimeWindows>::new(&settings).at("2026-10-25T02:45", "Europe/Rome").lease();
    assert_eq!((answer.verdict, answer.valid_until), (Verdict::Withhold, Some(1_792_890_000)));
    assert_eq!(answer.valid_until_local.as_deref(), Some("2026-10-25T02:00"));
}

#[rstest]
#[case::absent(json!({}), Reclaim::Keep)]
#[case::keep(json!({"reclaim": {"mode": "Keep"}}), Reclaim::Keep)]
#[case::graceful(json!({"reclaim": {"mode": "Graceful", "graceSeconds": 600}}), Reclaim::Graceful(600))]
#[case::force(json!({"reclaim": {"mode": "Force"}}), Reclaim::Force)]
fn reclaim_is_announced_and_applied(#[case] mut settings: Value, #[case] reclaim: Reclaim) {
    settings["windows"] = json!([{"start": "09:00", "end": "17:00"}]);
    let harness = Harness::<TimeWindows>::new(&settings);
    let inside = harness.clone().at("2026-01-05T12:00", "UTC").lease();
    assert_eq!((inside.verdict, inside.reclaim), (Verdict::Offer, reclaim));
    let outside = harness.at("2026-01-05T20:00", "UTC").lease();
    assert_eq!((outside.verdict, outside.reclaim), (Verdict::Withhold, reclaim));
    assert_eq!(outside.code(), "OutsideTimeWindow");
}

/// The schema check refuses with this message, and the module, which has no schema code, refuses too.
fn refused(settings: &Value, message: &str) {
    let text = settings.to_string();
    assert_eq!(parse_settings::<TimeWindows>(&text).err().as_deref(), Some(message));
    assert!(TimeWindows::parse_settings(&text).is_err());
}

#[rstest]
#[case::hour(json!({"windows": [{"start": "25:00", "end": "08:00"}]}), "settings.windows[0].start: \"25:00\" does not match ^([01][0-9]|2[0-3]):[0-5][0-9]$")]
#[case::not_padded(json!({"windows": [{"start": "08:00", "end": "9:00"}]}), "settings.windows[0].end: \"9:00\" does not match ^([01][0-9]|2[0-3]):[0-5][0-9]$")]
#[case::no_end(json!({"windows": [{"start": "08:00"}]}), "settings.windows[0].end: is required")]
#[case::grace_missing(json!({"reclaim": {"mode": "Graceful"}}), "settings.reclaim.graceSeconds: is required for mode Graceful")]
#[case::grace_zero(json!({"reclaim": {"mode": "Graceful", "graceSeconds": 0}}), "settings.reclaim.graceSeconds: 0 is less than the minimum of 1")]
#[case::mode(json!({"reclaim": {"mode": "Evict"}}), "settings.reclaim.mode: \"Evict\" is not one of \"Keep\", \"Graceful\", \"Force\"")]
fn settings_are_refused(#[case] settings: Value, #[case] message: &str) {
    refused(&settings, message);
}

#[test]
fn short_day_names_are_refused() {
    let settings = json!({"windows": [{"start": "08:00", "end": "09:00", "days": ["Mon"]}]});
    let message = parse_settings::<TimeWindows>(&settings.to_string()).err().unwrap_or_default();
    assert!(message.starts_with("settings.windows[0].days[0]: \"Mon\" does not match"), "{message}");
    assert!(Harness::<TimeWindows>::new(settings).lease_all().is_err());
}

#[test]
fn at_most_64_windows() {
    let windows = |count: usize| json!({"windows": vec![json!({"start": "08:00", "end": "09:00"}); count]});
    assert!(Harness::<TimeWindows>::new(windows(64)).lease_all().is_ok());
    let message = Harness::<TimeWindows>::new(windows(65)).lease_all().err();
    assert_eq!(message.as_deref(), Some("settings.windows: has 65 items, at most 64 are allowed"));
}

fn window() -> impl Strategy<Value = Value> {
    let time = || (0u16..24, prop_oneof![Just(0u16), Just(1), Just(30), Just(59)]);
    let names = ["Monday", "tuesday", "WEDNESDAY", "Thursday", "Friday", "Saturday", "Sunday"];
    (time(), time(), prop::sample::subsequence(names.to_vec(), 0..=7)).prop_map(|((h1, m1), (h2, m2), days)| {
        json!({"start": format!("{h1:02}:{m1:02}"), "end": format!("{h2:02}:{m2:02}"), "days": days})
    })
}

proptest! {
    #[test]
    fn equals_its_twin(
        windows in prop::collection::vec(window(), 0..4),
        same_day: bool,
        inclusive: bool,
        day in 5i8..12,
        hour in 0i8..24,
        minute in prop_oneof![Just(0i8), Just(1), Just(29), Just(30), Just(31), Just(59)],
    ) {
        let settings = json!({
            "windows": windows,
            "overnight": if same_day { "sameDay" } else { "startDay" },
            "endMinute": if inclusive { "inclusive" } else { "exclusive" },
        });
        let at = format!("2026-01-{day:02}T{hour:02}:{minute:02}");
        let harness = Harness::<TimeWindows>::new(&settings).at(&at, "UTC");
        let answer = harness.lease();
        let clock = Clock {
            weekday: u8::try_from(day - 4).unwrap(),
            minute_of_day: u16::try_from(i16::from(hour) * 60 + i16::from(minute)).unwrap(),
        };
        let twin = time_windows(&settings, clock);
        prop_assert_eq!(answer.verdict == Verdict::Offer, twin.offer);
        let until = twin.changes_in_minutes.map(|ahead| harness.moment().unix_seconds() + i64::from(ahead) * 60);
        prop_assert_eq!(answer.valid_until, until);
    }
}

#[test]
fn the_stored_schema_is_that_of_the_settings() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/settings.schema.json");
    let schema = settings_schema::<TimeWindows>();
    if std::env::var_os("KUBEOCEAN_REGENERATE").is_some() {
        std::fs::write(file, format!("{schema:#}\n")).unwrap();
    }
    let stored: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(stored, schema);
}

#[test]
fn the_module_accepts_exactly_what_the_schema_accepts() {
    let sample = json!({
        "windows": [{"start": "18:00", "end": "08:00", "days": ["Monday", "FRIDAY"]}],
        "overnight": "sameDay",
        "endMinute": "inclusive",
        "reclaim": {"mode": "Graceful", "graceSeconds": 600}
    });
    assert_parser_follows_schema::<TimeWindows>(&sample);
}
