use super::*;

const SETTINGS: &str = r#"{
    "windows": [
        {"name": "patching", "cron": "0 2 * * SUN", "minutes": 240},
        {"name": "the monthly power test", "cron": "30 22 1 * *", "minutes": 60}
    ],
    "reclaim": {"mode": "Graceful", "graceSeconds": 600}
}"#;

fn at(settings: &str, time: &str, zone: &str) -> LeaseAnswer {
    Harness::<MaintenanceCalendar>::new(settings).at(time, zone).lease()
}

fn end(answer: &LeaseAnswer) -> Option<&str> {
    answer.valid_until_local.as_deref()
}

#[test]
fn a_node_is_closed_in_a_window_and_open_outside() {
    let zone = "Asia/Shanghai";
    let before = at(SETTINGS, "2026-03-07T23:00:30", zone);
    assert_eq!((before.verdict, end(&before)), (Verdict::Offer, Some("2026-03-08T02:00")));
    let inside = at(SETTINGS, "2026-03-08T02:00", zone);
    assert_eq!((inside.verdict, inside.code()), (Verdict::Withhold, "Maintenance"));
    assert_eq!((inside.reclaim, end(&inside)), (Reclaim::Graceful(600), Some("2026-03-08T06:00")));
    assert_eq!(inside.reason.unwrap().message, "patching is under way");
    assert_eq!(at(SETTINGS, "2026-03-08T05:59:59", zone).verdict, Verdict::Withhold);
    let after = at(SETTINGS, "2026-03-08T06:00", zone);
    assert_eq!((after.verdict, end(&after)), (Verdict::Offer, Some("2026-03-15T02:00")));
    let last = at(SETTINGS, "2026-03-31T12:00", zone);
    assert_eq!(end(&last), Some("2026-04-01T22:30"), "the other window is the next");
}

#[test]
fn windows_that_overlap_or_touch_are_one() {
    let settings = r#"{"windows": [
        {"name": "a", "cron": "0 1 * * *", "minutes": 60}, {"name": "b", "cron": "0 2 * * *", "minutes": 30},
        {"name": "c", "cron": "15 2 * * *", "minutes": 60}, {"name": "d", "cron": "0 4 * * *", "minutes": 1}
    ]}"#;
    assert_eq!(end(&at(settings, "2026-03-07T01:10", "UTC")), Some("2026-03-07T03:15"));
    let always = r#"{"windows": [{"name": "a", "cron": "*/5 * * * *", "minutes": 5}]}"#;
    let answer = at(always, "2026-03-07T01:10", "UTC");
    assert_eq!(
        (answer.verdict, end(&answer)),
        (Verdict::Withhold, Some("2026-03-15T01:10")),
        "asked again then"
    );
}

#[test]
fn windows_are_on_the_local_clock() {
    // Rome skips 02:00 to 03:00 on 2026-03-29 and has 02:00 to 03:00 twice on 2026-10-25.
    let settings = r#"{"windows": [{"name": "a", "cron": "30 2 * * *", "minutes": 45}]}"#;
    let skipped = at(settings, "2026-03-29T03:00", "Europe/Rome");
    assert_eq!((skipped.verdict, end(&skipped)), (Verdict::Withhold, Some("2026-03-29T03:15")));
    let harness =
        |unix| Harness::<MaintenanceCalendar>::new(settings).at_instant(unix, "Europe/Rome").lease();
    // 02:40 in summer time, then again an hour later.
    for (unix, until) in [(1_792_888_800, 1_792_890_000), (1_792_892_400, 1_792_894_500)] {
        let answer = harness(unix);
        assert_eq!((answer.verdict, answer.valid_until), (Verdict::Withhold, Some(until)));
    }
}

#[test]
fn what_is_no_cron_expression_is_refused_with_the_reason() {
    let settings = SETTINGS.replace("0 2 * * SUN", "0 25 * * SUN");
    let refused = Harness::<MaintenanceCalendar>::new(settings).lease_all().unwrap_err();
    assert_eq!(refused, "settings: \"0 25 * * SUN\": \"25\" is no hour from 0 to 23");
}

/// Numbers that look random, the same in each run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    /// A field of a cron expression, and its numbers.
    fn field(&mut self, least: u64, most: u64) -> (String, Vec<u64>) {
        let count = most - least + 1;
        match self.roll(4) {
            0 => ("*".to_owned(), (least..=most).collect()),
            1 => {
                let step = 1 + self.roll(count);
                (format!("*/{step}"), (least..=most).step_by(usize::try_from(step).unwrap()).collect())
            }
            2 => {
                let from = least + self.roll(count);
                let to = from + self.roll(most - from + 1);
                (format!("{from}-{to}"), (from..=to).collect())
            }
            _ => {
                let two = [least + self.roll(count), least + self.roll(count)];
                (format!("{},{}", two[0], two[1]), two.to_vec())
            }
        }
    }
}

/// What a window means, minute by minute and by another calendar.
struct Oracle {
    fields: [Vec<u64>; 5],
    either_day: bool,
    minutes: u64,
}

impl Oracle {
    fn random(dice: &mut Dice) -> (String, Self) {
        let bounds = [(0, 59), (0, 23), (1, 31), (1, 12), (0, 6)];
        // Most windows are on many days, or nothing would happen in the hours that are looked at.
        let every_day = dice.roll(4) > 0;
        let fields = bounds.map(|(least, most)| match most {
            31 | 12 | 6 if every_day => ("*".to_owned(), (least..=most).collect()),
            _ => dice.field(least, most),
        });
        let text = fields.each_ref().map(|(text, _)| text.as_str()).join(" ");
        let restricted = |index: usize| !fields[index].0.starts_with('*');
        let either_day = restricted(2) && restricted(4);
        let minutes = [1, 7, 60, 90, 600, 3000][usize::try_from(dice.roll(6)).unwrap()];
        (text, Self { either_day, minutes, fields: fields.map(|(_, numbers)| numbers) })
    }

    fn fires(&self, local: jiff::civil::DateTime) -> bool {
        let number = |number: i8| u64::from(number.unsigned_abs());
        let has = |field: usize, value: u64| self.fields[field].contains(&value);
        let by_month = has(2, number(local.day()));
        let by_week = has(4, number(local.weekday().to_sunday_zero_offset()));
        let day = if self.either_day { by_month || by_week } else { by_month && by_week };
        day && has(0, number(local.minute())) && has(1, number(local.hour())) && has(3, number(local.month()))
    }

    /// For each of `count` minutes of the clock from `from` on.
    fn is_open(&self, from: jiff::civil::DateTime, count: i64) -> Vec<bool> {
        let minutes = usize::try_from(self.minutes).unwrap();
        let begin = from - jiff::SignedDuration::from_mins(self.minutes.cast_signed() - 1);
        let all = 0..count + self.minutes.cast_signed() - 1;
        let fires: Vec<bool> =
            all.map(|minute| self.fires(begin + jiff::SignedDuration::from_mins(minute))).collect();
        fires.windows(minutes).map(|lasting| lasting.contains(&true)).collect()
    }
}

#[test]
fn every_minute_is_as_an_oracle_says_and_every_end_is_the_next_change() {
    let zone = "Europe/Rome";
    let rome = jiff::tz::TimeZone::get(zone).unwrap();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    // Around both changes of the clock, a leap day, and the turn of a year.
    let days = ["2026-03-28", "2026-10-24", "2028-02-28", "2026-12-31"];
    let (mut ends, mut changes) = (0, 0);
    for round in 0..40 {
        let windows: Vec<(String, Oracle)> =
            (0..1 + dice.roll(3)).map(|_| Oracle::random(&mut dice)).collect();
        let list = windows.iter().map(|(cron, oracle)| {
            format!(r#"{{"name": "w", "cron": "{cron}", "minutes": {}}}"#, oracle.minutes)
        });
        let settings = format!(r#"{{"windows": [{}]}}"#, list.collect::<Vec<_>>().join(","));
        let start: jiff::civil::Date = days[round % days.len()].parse().unwrap();
        let start = start.at(20, 0, 0, 0).to_zoned(rome.clone()).unwrap().timestamp().as_second();
        let local = |unix: i64| jiff::Timestamp::from_second(unix).unwrap().to_zoned(rome.clone()).datetime();
        // What the clock shows in ten hours is within eleven.
        let open: Vec<Vec<bool>> =
            windows.iter().map(|(_, oracle)| oracle.is_open(local(start), 11 * 60)).collect();
        let shown = |unix: i64| local(unix).duration_since(local(start)).as_mins();
        let is_open = |minute: i64| {
            let at = usize::try_from(shown(start + minute * 60)).unwrap();
            open.iter().any(|window| window[at])
        };
        let expected: Vec<bool> = (0..600).map(is_open).collect();
        for (minute, open) in (0..600i64).zip(&expected) {
            let unix = start + minute * 60;
            let answer = Harness::<MaintenanceCalendar>::new(&settings).at_instant(unix, zone).lease();
            assert_eq!(answer.verdict == Verdict::Withhold, *open, "{settings} at {unix}");
            let until = answer.valid_until.unwrap();
            let next = expected[usize::try_from(minute).unwrap()..].iter().position(|later| later != open);
            let next = next.map(|ahead| unix + i64::try_from(ahead).unwrap() * 60);
            let clock =
                rome.following(jiff::Timestamp::from_second(unix).unwrap()).next().unwrap().timestamp();
            match next {
                // No end skips a change, and before the clock changes every end is one.
                Some(next) => assert_eq!(until, next.min(clock.as_second()), "{settings} at {unix}"),
                None => assert!(until >= (start + 36_000).min(clock.as_second()), "{settings} at {unix}"),
            }
            ends += usize::from(next.is_some());
        }
        changes += expected.windows(2).filter(|pair| pair[0] != pair[1]).count();
    }
    assert!(ends > 1000 && changes > 50, "{ends} ends, {changes} changes: the dice are loaded");
}
