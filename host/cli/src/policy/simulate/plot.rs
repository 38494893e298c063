//! What was offered over time, drawn with characters.
//!
//! Pure.

use jiff::{Timestamp, tz::TimeZone};
use kubeocean_api::resource::{CPU, EPHEMERAL_STORAGE, HUGEPAGES_PREFIX, MEMORY};

use super::sums::Period;
use crate::output::{Tone, paint};

/// Characters of the longest bar.
const WIDTH: usize = 20;
/// Rows beyond which times are put together.
const ROWS: usize = 60;
/// Lengths of time that rows are put together to, in seconds.
const BUCKETS: [i64; 6] = [3600, 2 * 3600, 4 * 3600, 12 * 3600, 24 * 3600, 7 * 24 * 3600];

/// An amount in the unit people count in: cores, GiB, pieces.
pub(crate) fn units(resource: &str, base: i64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let base = base as f64;
    match resource {
        CPU => base / 1000.0,
        _ if bytes(resource) => base / f64::from(1 << 30),
        _ => base,
    }
}

fn bytes(resource: &str) -> bool {
    resource == MEMORY || resource == EPHEMERAL_STORAGE || resource.starts_with(HUGEPAGES_PREFIX)
}

/// `cpu`, `gpu` or `memory GiB`, as the unit of hours.
pub(crate) fn short(resource: &str) -> String {
    let name = resource.rsplit('/').next().unwrap_or(resource);
    if bytes(resource) { format!("{name}-GiB") } else { name.to_owned() }
}

pub(crate) fn hours(seconds: i64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a span of time is far below 2^52 seconds")]
    let seconds = seconds as f64;
    seconds / 3600.0
}

/// A number for people: `11 934`, `5.9`.
pub(crate) fn number(value: f64) -> String {
    let text = if value.abs() < 100.0 { format!("{value:.1}") } else { format!("{value:.0}") };
    let text = text.strip_suffix(".0").unwrap_or(&text);
    let (whole, rest) = text.split_once('.').map_or((text, ""), |(whole, rest)| (whole, rest));
    let digits: Vec<char> = whole.chars().collect();
    let mut out = String::new();
    for (index, digit) in digits.iter().enumerate() {
        let left = digits.len() - index;
        if index > 0 && left.is_multiple_of(3) && digits.get(index - 1).is_some_and(char::is_ascii_digit) {
            out.push(' ');
        }
        out.push(*digit);
    }
    if rest.is_empty() { out } else { format!("{out}.{rest}") }
}

/// One resource in one time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub(crate) from: i64,
    pub(crate) until: i64,
    /// Mean, in units of [`units`].
    pub(crate) offered: f64,
}

/// Times in which the resource was offered in one amount, cut at midnight; put together where there are too many.
pub(crate) fn rows(periods: &[Period], resource: &str, zone: &TimeZone) -> Vec<Row> {
    let mut rows: Vec<Row> = Vec::new();
    for period in periods {
        let offered = units(resource, period.offered.get(resource).copied().unwrap_or(0));
        let mut from = period.from;
        while from < period.until {
            let until = midnight_after(from, zone).min(period.until);
            let at_midnight = midnight_after(from - 1, zone) == from;
            match rows.last_mut() {
                Some(last) if !at_midnight && same(last.offered, offered) => last.until = until,
                _ => rows.push(Row { from, until, offered }),
            }
            from = until;
        }
    }
    let mut buckets = BUCKETS.iter();
    while rows.len() > ROWS
        && let Some(length) = buckets.next()
    {
        rows = together(&rows, *length, zone);
    }
    rows
}

fn same(a: f64, b: f64) -> bool {
    (a - b).abs() < f64::EPSILON
}

/// Means over equal lengths of time that begin at a midnight.
fn together(rows: &[Row], length: i64, zone: &TimeZone) -> Vec<Row> {
    let Some(first) = rows.first() else { return Vec::new() };
    let anchor = midnight_before(first.from, zone);
    let mut out: Vec<(Row, f64)> = Vec::new();
    for row in rows {
        let mut from = row.from;
        while from < row.until {
            let end = anchor + ((from - anchor).div_euclid(length) + 1) * length;
            let until = end.min(row.until);
            let weight = hours(until - from);
            match out
                .last_mut()
                .filter(|(last, _)| last.until == from && (from - anchor).rem_euclid(length) != 0)
            {
                Some((last, weights)) => {
                    last.offered = last.offered.mul_add(*weights, row.offered * weight) / (*weights + weight);
                    *weights += weight;
                    last.until = until;
                }
                None => out.push((Row { from, until, offered: row.offered }, weight)),
            }
            from = until;
        }
    }
    out.into_iter().map(|(row, _)| row).collect()
}

fn midnight_before(unix: i64, zone: &TimeZone) -> i64 {
    let local = Timestamp::from_second(unix).map(|at| at.to_zoned(zone.clone()));
    local.and_then(|local| local.start_of_day()).map_or(unix, |day| day.timestamp().as_second())
}

fn midnight_after(unix: i64, zone: &TimeZone) -> i64 {
    let local = Timestamp::from_second(unix).map(|at| at.to_zoned(zone.clone()));
    let next = local.and_then(|local| local.tomorrow()).and_then(|day| day.start_of_day());
    next.map_or(i64::MAX, |day| day.timestamp().as_second())
}

/// The whole drawing of one resource.
pub(crate) fn draw(periods: &[Period], resource: &str, nodes: usize, zone: &TimeZone) -> String {
    let rows = rows(periods, resource, zone);
    let most = rows.iter().map(|row| row.offered).fold(0.0, f64::max);
    let title = format!("{} offered ({nodes} nodes)", name_with_unit(resource));
    let labels: Vec<String> = rows.iter().map(|row| label(row, zone)).collect();
    let width = labels.iter().chain([&title]).map(|label| label.chars().count()).max().unwrap_or(0);
    let scale = format!("0{:>half$}{:>half$}", number(most / 2.0), number(most), half = WIDTH / 2);
    let mut out = format!("{title:<width$}  {scale}\n");
    for (row, label) in rows.iter().zip(labels) {
        let bar = "#".repeat(length(row.offered, most));
        let blank = " ".repeat(WIDTH - bar.len());
        out.extend([format!(
            "{label:<width$}  {}{blank}  {}\n",
            paint(Tone::Bar, &bar),
            number(row.offered)
        )]);
    }
    out
}

pub(crate) fn name_with_unit(resource: &str) -> String {
    if bytes(resource) { format!("{resource} (GiB)") } else { resource.to_owned() }
}

/// Characters of a bar; something is never shown as nothing.
fn length(value: f64, most: f64) -> usize {
    #[expect(clippy::cast_precision_loss, reason = "a small constant")]
    let width = WIDTH as f64;
    if value <= 0.0 || most <= 0.0 {
        return 0;
    }
    let wanted = (value / most * width).round().max(1.0);
    (1..=WIDTH)
        .rev()
        .find(|length| {
            #[expect(clippy::cast_precision_loss, reason = "a small number")]
            let length = *length as f64;
            length <= wanted
        })
        .unwrap_or(1)
}

/// `Sat 03-07 00:00-07:00`.
fn label(row: &Row, zone: &TimeZone) -> String {
    let at = |unix: i64| Timestamp::from_second(unix).unwrap_or(Timestamp::MAX).to_zoned(zone.clone());
    let (from, until) = (at(row.from), at(row.until));
    let begin = from.strftime("%a %m-%d %H:%M");
    let at_midnight = midnight_after(row.until - 1, zone) == row.until;
    if at_midnight && at(row.until - 1).date() == from.date() {
        format!("{begin}-24:00")
    } else if until.date() == from.date() {
        format!("{begin}-{}", until.strftime("%H:%M"))
    } else {
        format!("{begin} - {}", until.strftime("%a %m-%d %H:%M"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3600;

    fn shanghai() -> TimeZone {
        TimeZone::get("Asia/Shanghai").unwrap()
    }

    /// Saturday, 2026-03-07, midnight in Shanghai.
    fn midnight() -> i64 {
        "2026-03-06T16:00:00Z".parse::<Timestamp>().unwrap().as_second()
    }

    fn period(from: i64, until: i64, gpus: i64) -> Period {
        let offered = [("nvidia.com/gpu".to_owned(), gpus)].into();
        let at = |hours: i64| midnight() + hours * HOUR;
        Period { from: at(from), until: at(until), offered, available: super::super::sums::Amounts::new() }
    }

    #[test]
    fn the_example_of_the_specification() {
        let periods = [period(0, 7, 191), period(7, 22, 0), period(22, 31, 172), period(31, 46, 0)];
        insta::assert_snapshot!(draw(&periods, "nvidia.com/gpu", 64, &shanghai()), @r"
        nvidia.com/gpu offered (64 nodes)  0      95.5       191
        Sat 03-07 00:00-07:00              ####################  191
        Sat 03-07 07:00-22:00                                    0
        Sat 03-07 22:00-24:00              ##################    172
        Sun 03-08 00:00-07:00              ##################    172
        Sun 03-08 07:00-22:00                                    0
        ");
    }

    #[test]
    fn many_changes_are_put_together() {
        let periods: Vec<Period> = (0..24 * 7).map(|hour| period(hour, hour + 1, hour % 2)).collect();
        let rows = rows(&periods, "nvidia.com/gpu", &shanghai());
        assert_eq!(rows.len(), 42);
        assert!(
            rows.iter().all(|row| row.until - row.from == 4 * HOUR && same(row.offered, 0.5)),
            "{rows:?}"
        );
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(
            [11_934.0, 5.9, 16.0, 0.0, 1_234_567.8, 191.4].map(number),
            ["11 934", "5.9", "16", "0", "1 234 568", "191"]
        );
        assert_eq!(
            (units("cpu", 5900), units("memory", 3 << 30), units("nvidia.com/gpu", 3)),
            (5.9, 3.0, 3.0)
        );
        assert_eq!((short("nvidia.com/gpu").as_str(), short("memory").as_str()), ("gpu", "memory-GiB"));
    }
}
