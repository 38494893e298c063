//! Differences as people read them.
//!
//! Pure.

use jiff::{Timestamp, tz::TimeZone};

use super::{NodeReport, RecordReport};
use crate::{
    output::columns,
    policy::simulate::plot::{number, short},
};

/// Differences that are printed.
const SHOWN: usize = 50;

pub(super) fn nodes(report: &NodeReport) -> String {
    let rows: Vec<Vec<String>> = report
        .differences
        .iter()
        .take(SHOWN)
        .map(|one| {
            let span = format!("{} - {}", time(one.from, &report.zone), time(one.until, &report.zone));
            vec![one.node.clone(), span, one.what.clone()]
        })
        .collect();
    let mut out = columns(&rows);
    out.push_str(&more(report.differences.len()));
    out.extend([format!(
        "{} of {} nodes differ, in {} spans of time\n",
        report.nodes_that_differ,
        report.nodes,
        report.differences.len()
    )]);
    let resources: std::collections::BTreeSet<&String> =
        report.old.hours.keys().chain(report.new.hours.keys()).collect();
    for resource in resources {
        let hours = |of: &super::Totals| of.hours.get(resource).copied().unwrap_or(0.0);
        let (old, new) = (hours(&report.old), hours(&report.new));
        if (old - new).abs() > 1e-6 {
            out.extend([format!("leased {} -> {} {}-hours\n", number(old), number(new), short(resource))]);
        }
    }
    let pair = |name: &str, old: i64, new: i64| {
        if old == new { String::new() } else { format!("{name} {old} -> {new}\n") }
    };
    let count = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
    out.push_str(&pair("node changes", count(report.old.node_changes), count(report.new.node_changes)));
    out.push_str(&pair("pods reclaimed", report.old.pods_reclaimed, report.new.pods_reclaimed));
    out + &pair("undecided", count(report.old.undecided), count(report.new.undecided))
}

pub(super) fn records(report: &RecordReport) -> String {
    let rows: Vec<Vec<String>> = report
        .differences
        .iter()
        .take(SHOWN)
        .map(|one| vec![format!("line {}", one.line), one.entry.clone(), one.what.clone()])
        .collect();
    format!(
        "{}{}{} of {} records differ; {} records are of other modules\n",
        columns(&rows),
        more(report.differences.len()),
        report.differences.len(),
        report.compared,
        report.others
    )
}

fn more(all: usize) -> String {
    if all > SHOWN { format!("... and {} more; -o json tells all\n", all - SHOWN) } else { String::new() }
}

fn time(unix: i64, zone: &TimeZone) -> String {
    let at = Timestamp::from_second(unix).unwrap_or(Timestamp::MAX);
    at.to_zoned(zone.clone()).strftime("%a %m-%d %H:%M").to_string()
}
