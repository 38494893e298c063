//! Cron expressions on the local clock. In: `30 2 * * SUN`; out: the minutes at which it fires.
//!
//! Five fields as in `crontab(5)`: minute, hour, day of the month, month, day of the week, each `*` or a list of numbers,
//! names (`JAN`, `SUN`), ranges (`1-5`) and steps (`*/15`, `8-18/2`). If both days are restricted, one that fits is enough.

/// Minutes of a day.
pub const DAY: i64 = 24 * 60;

const MONTHS: [&str; 12] =
    ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"];
const WEEKDAYS: [&str; 7] = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"];

/// A parsed expression. Fields are sets of bits, bit n for the number n.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cron {
    minutes: u64,
    hours: u64,
    days: u64,
    months: u64,
    /// 0 = Sunday.
    weekdays: u64,
    /// Both kinds of days are restricted.
    either_day: bool,
}

/// The numbers a field may have, and names for the first of them.
struct Field {
    name: &'static str,
    least: u32,
    most: u32,
    names: &'static [&'static str],
}

impl Field {
    fn number(&self, text: &str) -> Result<u32, String> {
        let named = self.names.iter().position(|name| name.eq_ignore_ascii_case(text));
        let number = match named {
            Some(index) => u32::try_from(index).ok().map(|index| index + self.least),
            None if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            None => None,
        };
        let Self { name, least, most, .. } = self;
        number
            .filter(|number| (*least..=*most).contains(number))
            .ok_or_else(|| format!("{text:?} is no {name} from {least} to {most}"))
    }

    /// `text` as a set.
    fn set(&self, text: &str) -> Result<u64, String> {
        text.split(',').try_fold(0, |set, part| Ok(set | self.part(part)?))
    }

    fn part(&self, text: &str) -> Result<u64, String> {
        let (range, step) = match text.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (text, None),
        };
        let (from, to) = match range.split_once('-') {
            _ if range == "*" => (self.least, self.most),
            Some((from, to)) => (self.number(from)?, self.number(to)?),
            // `5/15` is from 5 on, to the end.
            None => (self.number(range)?, if step.is_some() { self.most } else { self.number(range)? }),
        };
        if from > to {
            return Err(format!("{text:?}: {} {from} is after {to}", self.name));
        }
        let step = match step.map(str::parse::<usize>) {
            None => 1,
            Some(Ok(step)) if step > 0 => step,
            Some(_) => return Err(format!("{text:?} has no step")),
        };
        Ok((from..=to).step_by(step).fold(0, |set, number| set | 1 << number))
    }
}

impl Cron {
    /// Reads an expression.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let fields: Vec<&str> = text.split_ascii_whitespace().collect();
        let &[minutes, hours, days, months, weekdays] = fields.as_slice() else {
            return Err(format!("has {} fields, not 5", fields.len()));
        };
        let field = |name, least, most, names| Field { name, least, most, names };
        // Sunday is 0 and 7.
        let week = field("day of the week", 0, 7, &WEEKDAYS).set(weekdays)?;
        let cron = Self {
            minutes: field("minute", 0, 59, &[]).set(minutes)?,
            hours: field("hour", 0, 23, &[]).set(hours)?,
            days: field("day of the month", 1, 31, &[]).set(days)?,
            months: field("month", 1, 12, &MONTHS).set(months)?,
            weekdays: (week | week >> 7) & 0x7f,
            either_day: !days.starts_with('*') && !weekdays.starts_with('*'),
        };
        Ok(cron)
    }

    /// Whether it fires on a day at all, in days since 1970-01-01.
    fn on_day(&self, day: i64) -> bool {
        let (month, of_month) = month_and_day(day);
        // 1970-01-01 was a Thursday.
        let weekday = (day + 4).rem_euclid(7);
        let (by_month, by_week) = (self.days >> of_month & 1 == 1, self.weekdays >> weekday & 1 == 1);
        let day = if self.either_day { by_month || by_week } else { by_month && by_week };
        day && self.months >> month & 1 == 1
    }

    /// The last minute it fires at, not before `from` and not after `at`. Minutes are those of the local clock since 1970.
    pub fn last(&self, from: i64, at: i64) -> Option<i64> {
        let (today, minute) = (at.div_euclid(DAY), at.rem_euclid(DAY));
        let mut days = (from.div_euclid(DAY)..=today).rev().filter(|day| self.on_day(*day));
        let last = days
            .find_map(|day| Some(day * DAY + self.last_of_day(if day == today { minute } else { DAY - 1 })?));
        last.filter(|minute| *minute >= from)
    }

    /// The first minute after `at` it fires at, not after `until`.
    pub fn next(&self, at: i64, until: i64) -> Option<i64> {
        let (today, minute) = ((at + 1).div_euclid(DAY), (at + 1).rem_euclid(DAY));
        let mut days = (today..=until.div_euclid(DAY)).filter(|day| self.on_day(*day));
        let next =
            days.find_map(|day| Some(day * DAY + self.first_of_day(if day == today { minute } else { 0 })?));
        next.filter(|minute| *minute <= until)
    }

    /// The last minute of a day it fires at, not after `at`.
    fn last_of_day(&self, at: i64) -> Option<i64> {
        let (hour, minute) = (at / 60, at % 60);
        let in_this_hour = highest(self.minutes & up_to(minute)).filter(|_| self.hours >> hour & 1 == 1);
        let before = || Some(highest(self.hours & (up_to(hour) >> 1))? * 60 + highest(self.minutes)?);
        in_this_hour.map(|minute| hour * 60 + minute).or_else(before)
    }

    /// The first minute of a day it fires at, not before `at`.
    fn first_of_day(&self, at: i64) -> Option<i64> {
        let (hour, minute) = (at / 60, at % 60);
        let in_this_hour =
            lowest(self.minutes & !(up_to(minute) >> 1)).filter(|_| self.hours >> hour & 1 == 1);
        let after = || Some(lowest(self.hours & !up_to(hour))? * 60 + lowest(self.minutes)?);
        in_this_hour.map(|minute| hour * 60 + minute).or_else(after)
    }
}

/// The numbers from 0 to `number`, which is below 63.
fn up_to(number: i64) -> u64 {
    (2 << number) - 1
}

fn highest(set: u64) -> Option<i64> {
    set.checked_ilog2().map(i64::from)
}

fn lowest(set: u64) -> Option<i64> {
    (set != 0).then(|| i64::from(set.trailing_zeros()))
}

/// Month and day of the month of a day since 1970-01-01.
fn month_and_day(day: i64) -> (i64, i64) {
    // In years that begin in March, so that a leap day is the last of its year; 400 of them have 146097 days.
    let of_era = (day + 719_468).rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let from_march = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * from_march + 2) / 5 + 1;
    (if from_march < 10 { from_march + 3 } else { from_march - 9 }, of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(set: u64) -> Vec<u32> {
        (0..64).filter(|number| set >> number & 1 == 1).collect()
    }

    #[test]
    fn fields_are_lists_of_numbers_names_ranges_and_steps() {
        let cron = Cron::parse("*/20 8-12/2,23 1,15 jan-MAR 5-7").unwrap();
        assert_eq!(numbers(cron.minutes), [0, 20, 40]);
        assert_eq!(numbers(cron.hours), [8, 10, 12, 23]);
        assert_eq!(numbers(cron.days), [1, 15]);
        assert_eq!(numbers(cron.months), [1, 2, 3]);
        assert_eq!(numbers(cron.weekdays), [0, 5, 6], "7 is Sunday as well");
        assert!(cron.either_day);
        let cron = Cron::parse("5/15 0 * * sun").unwrap();
        assert_eq!((numbers(cron.minutes), numbers(cron.weekdays)), (vec![5, 20, 35, 50], vec![0]));
        assert!(!cron.either_day);
    }

    #[test]
    fn what_is_no_expression_is_refused_with_the_reason() {
        for (text, why) in [
            ("0 2 * *", "has 4 fields, not 5"),
            ("60 2 * * *", "\"60\" is no minute from 0 to 59"),
            ("0 -2 * * *", "\"\" is no hour from 0 to 23"),
            ("0 2 0 * *", "\"0\" is no day of the month from 1 to 31"),
            ("0 2 * JUM *", "\"JUM\" is no month from 1 to 12"),
            ("0 2 * * 5-1", "\"5-1\": day of the week 5 is after 1"),
            ("*/0 2 * * *", "\"*/0\" has no step"),
            ("0, 2 * * *", "\"\" is no minute from 0 to 59"),
            ("+5 2 * * *", "\"+5\" is no minute from 0 to 59"),
        ] {
            assert_eq!(Cron::parse(text).unwrap_err(), why, "{text}");
        }
    }

    #[test]
    fn the_calendar_knows_leap_days() {
        let cron = Cron::parse("0 0 29 2 *").unwrap();
        // 2024-02-29, and no other day of four years.
        assert_eq!(cron.next(19_700 * DAY, 19_700 * DAY + 1400 * DAY), Some(19_782 * DAY));
        assert_eq!(cron.next(19_782 * DAY, 19_782 * DAY + 1400 * DAY), None);
        assert_eq!(cron.last(0, 19_782 * DAY - 1), Some(18_321 * DAY), "2020-02-29");
    }

    #[test]
    fn of_two_restricted_kinds_of_days_one_that_fits_is_enough() {
        // 2026-03-13 is a Friday; the next ones are the 20th, and the 13th of April is a Monday.
        let (march_13, cron) = (20_525, Cron::parse("0 0 13 * FRI").unwrap());
        assert_eq!(cron.next(march_13 * DAY, march_13 * DAY + 8 * DAY), Some((march_13 + 7) * DAY));
        let only_month = Cron::parse("0 0 13 * *").unwrap();
        assert_eq!(only_month.next(march_13 * DAY, march_13 * DAY + 40 * DAY), Some((march_13 + 31) * DAY));
    }
}
