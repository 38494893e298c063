//! An explanation as people read it: one column per resource, one row per step.
//!
//! Pure.

use std::collections::BTreeMap;

use jiff::{Timestamp, tz::TimeZone};
use kubeocean_api::resource::{CPU, from_base_units};
use kubeocean_engine::{EntryVerdict, NodeDecision, Reclaim, Step, Verdict};

use super::evaluate::Report;
use crate::output::columns;

type Amounts = BTreeMap<String, i64>;

/// The whole output.
pub(super) fn text(report: &Report) -> String {
    let zone = TimeZone::get(&report.zone).unwrap_or(TimeZone::UTC);
    let governed = match &report.decision.governed_by {
        Some(policy) => format!("governed by {policy}"),
        None if !report.decision.selected => "the binding does not select it".to_owned(),
        None => "no policy governs it".to_owned(),
    };
    let vnode = report.vnode.as_ref().map(|name| format!(", vnode {name}")).unwrap_or_default();
    let at = report.at.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M").to_string();
    let mut out = format!(
        "{} (binding {}{vnode})  at {at} {}   {governed}\n",
        report.node, report.binding, report.zone
    );
    out.push_str(&columns(&rows(report, &zone)));
    for entry in &report.not_running {
        out.extend([format!("{entry}\n")]);
    }
    for note in &report.notes {
        out.extend(["note: ", note, "\n"]);
    }
    out
}

fn rows(report: &Report, zone: &TimeZone) -> Vec<Vec<String>> {
    let resources: Vec<&String> = shown(&report.facts.allocatable);
    let amounts = |name: &str, amounts: &Amounts| -> Vec<String> {
        let cell = |resource: &&String| amount(resource, amounts.get(*resource).copied().unwrap_or(0));
        std::iter::once(format!("  {name}"))
            .chain(resources.iter().map(cell))
            .chain([String::new()])
            .collect()
    };
    let mut rows = vec![
        std::iter::once(String::new())
            .chain(resources.iter().map(|resource| (*resource).clone()))
            .chain([String::new()])
            .collect(),
        amounts("allocatable", &report.facts.allocatable),
        amounts("- others", &report.facts.used),
        amounts("= available", &report.available),
    ];
    let governing = report.decision.governed_by.as_deref();
    for policy in &report.policies {
        let foreign = !policy.policy.is_empty() && Some(policy.policy.as_str()) != governing;
        for step in &policy.steps {
            let name = if foreign { format!("{}/{}", policy.policy, step.entry) } else { step.entry.clone() };
            rows.push(step_row(&name, step, &resources, report.at, zone));
        }
    }
    let decision = &report.decision;
    if governing.is_some() {
        let mut row = amounts("= lease", &decision.amounts);
        row.pop();
        row.push(verdict(decision).to_owned());
        row.push(conclusion(decision, report.at, zone));
        rows.push(row);
    } else {
        rows.push(vec!["  = no lease".to_owned(), change(decision.valid_until, report.at, zone)]);
    }
    rows
}

/// Resources worth a column: those the node has something of.
fn shown(allocatable: &Amounts) -> Vec<&String> {
    allocatable.iter().filter(|(_, amount)| **amount != 0).map(|(resource, _)| resource).collect()
}

fn step_row(name: &str, step: &Step, resources: &[&String], at: Timestamp, zone: &TimeZone) -> Vec<String> {
    let name = if step.audit { format!("  {name}  (audit)") } else { format!("  {name}") };
    let cell = |resource: &&String| {
        step.caps.get(*resource).map_or_else(|| ".".to_owned(), |cap| amount(resource, *cap))
    };
    let verdict = match step.verdict {
        Some(EntryVerdict::Offer) => "offer",
        Some(EntryVerdict::Withhold) => "withhold",
        Some(EntryVerdict::NotApplicable) => "not applicable",
        None => "no answer",
    };
    let mut why = Vec::new();
    if let Some(reason) = &step.reason {
        why.push(format!("{}: {}", reason.code, reason.message));
    }
    why.extend(step.error.clone());
    why.extend(reclaim(step.reclaim));
    if step.valid_until.is_some() {
        why.push(change(step.valid_until, at, zone));
    }
    std::iter::once(name)
        .chain(resources.iter().map(cell))
        .chain([verdict.to_owned(), why.join(", ")])
        .collect()
}

fn verdict(decision: &NodeDecision) -> &'static str {
    match decision.verdict {
        Verdict::Offer => "offer",
        Verdict::Withhold => "withhold",
        Verdict::Held if decision.withheld => "held, withheld",
        Verdict::Held => "held",
    }
}

fn conclusion(decision: &NodeDecision, at: Timestamp, zone: &TimeZone) -> String {
    let mut parts = Vec::new();
    if let Some(reason) = decision.reason.as_ref().filter(|_| decision.verdict != Verdict::Offer) {
        parts.push(format!("{}: {}", reason.code, reason.message));
    }
    if decision.withheld {
        parts.extend(reclaim(decision.reclaim));
    }
    if decision.overcommitted {
        parts.push("less than its pods already request".to_owned());
    }
    if !decision.may_create {
        parts.push("no virtual node is made".to_owned());
    }
    if !decision.shadowed.is_empty() {
        parts.push(format!("not used: {}", decision.shadowed.join(", ")));
    }
    parts.push(change(decision.valid_until, at, zone));
    parts.join(", ")
}

fn reclaim(reclaim: Reclaim) -> Option<String> {
    match reclaim {
        Reclaim::Keep => None,
        Reclaim::Graceful(seconds) => Some(format!("pods go after {seconds} s")),
        Reclaim::Force => Some("pods go at once".to_owned()),
    }
}

/// `until 22:00`, with the date when it is another day.
fn change(until: Option<i64>, at: Timestamp, zone: &TimeZone) -> String {
    let Some(until) = until.and_then(|unix| Timestamp::from_second(unix).ok()) else {
        return "no change scheduled".to_owned();
    };
    let (until, at) = (until.to_zoned(zone.clone()), at.to_zoned(zone.clone()));
    let form = match (until.date() == at.date(), until.second() == 0) {
        (true, true) => "%H:%M",
        (true, false) => "%H:%M:%S",
        (false, true) => "%Y-%m-%d %H:%M",
        (false, false) => "%Y-%m-%d %H:%M:%S",
    };
    format!("until {}", until.strftime(form))
}

/// As a quantity; cpu in cores, which people count in.
fn amount(resource: &str, base: i64) -> String {
    if resource != CPU {
        return from_base_units(resource, base).to_string();
    }
    let (cores, millis) = (base / 1000, base % 1000);
    if millis == 0 {
        cores.to_string()
    } else {
        format!("{cores}.{millis:03}").trim_end_matches('0').to_owned()
    }
}

#[cfg(test)]
mod tests;
