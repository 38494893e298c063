//! What a case expects beside what was decided, member by member.
//!
//! Pure.

use std::{collections::BTreeMap, fmt};

use jiff::tz::TimeZone;
use kubeocean_api::{
    quantity::Rounding,
    resource::{from_base_units, to_base_units},
};
use kubeocean_engine::{Explanation, Fit, NodeDecision, Placement, Reclaim, Step};
use serde::Serialize;
use serde_json::Value;

use super::{
    case::{Expect, ExpectAnswer, ExpectDecision, ExpectPlace, FitWord},
    fixture::Written,
};
use crate::policy::moment::{instant, local};

/// A member that is not as expected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Mismatch {
    pub(super) field: String,
    pub(super) expected: String,
    pub(super) got: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: expected {}, got {}", self.field, self.expected, self.got)
    }
}

/// What was decided.
#[derive(Debug)]
pub(super) struct Got {
    decision: NodeDecision,
    /// By entry; of the last policy that was asked.
    steps: BTreeMap<String, Step>,
    /// Of the case's pod, if it has one.
    placement: Option<Placement>,
    zone: TimeZone,
}

impl Got {
    pub(super) fn new(explanation: Explanation, placement: Option<Placement>, zone: TimeZone) -> Self {
        let steps = explanation.policies.into_iter().flat_map(|(_, steps)| steps);
        Self {
            decision: explanation.decision,
            steps: steps.map(|step| (step.entry.clone(), step)).collect(),
            placement,
            zone,
        }
    }
}

/// All members that differ. `Err`: the expectation makes no sense; begins with its member.
pub(super) fn compare(expect: &Expect, got: &Got, entry: &str) -> Result<Vec<Mismatch>, String> {
    let mut found = Found { zone: &got.zone, mismatches: Vec::new() };
    let own = expect.answer();
    if own != ExpectAnswer::default() {
        let step = got.steps.get(entry).ok_or("verdict, caps, validUntil, reason, reclaim and error are of a file that tests one module; of a policy expect decision and entries")?;
        found.answer("", &own, step)?;
    }
    for (name, answer) in &expect.entries {
        let known = got.steps.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let step =
            got.steps.get(name).ok_or_else(|| format!("entries.{name}: was not asked, but {known}"))?;
        found.answer(&format!("entries.{name}."), answer, step)?;
    }
    if let Some(decision) = &expect.decision {
        found.decision(decision, &got.decision)?;
    }
    if let Some(place) = &expect.place {
        let placement = got.placement.as_ref().ok_or("place: the case has no pod")?;
        found.place(place, placement);
    }
    Ok(found.mismatches)
}

struct Found<'z> {
    zone: &'z TimeZone,
    mismatches: Vec<Mismatch>,
}

impl Found<'_> {
    fn same(&mut self, field: String, expected: Option<String>, got: String) {
        if let Some(expected) = expected.filter(|expected| *expected != got) {
            self.mismatches.push(Mismatch { field, expected, got });
        }
    }

    fn answer(&mut self, prefix: &str, expect: &ExpectAnswer, step: &Step) -> Result<(), String> {
        let field = |name: &str| format!("{prefix}{name}");
        match (&expect.error, &step.error) {
            (Some(expected), Some(error)) if error.contains(expected) => {}
            (None, None) => {}
            (expected, error) => {
                let expected = expected.clone().unwrap_or_else(|| "an answer".to_owned());
                let got = error.clone().unwrap_or_else(|| "an answer".to_owned());
                self.mismatches.push(Mismatch { field: field("error"), expected, got });
            }
        }
        if step.error.is_some() {
            // The other members of a step without an answer say nothing.
            return Ok(());
        }
        self.same(
            field("verdict"),
            expect.verdict.map(|verdict| word(&verdict)),
            step.verdict.map(|v| word(&v)).unwrap_or_default(),
        );
        for (resource, expected) in expect.caps.iter().flatten() {
            let name = field(&format!("caps.{resource}"));
            let expected = match expected {
                Some(quantity) => amount(&name, resource, quantity)?,
                None => "no cap".to_owned(),
            };
            let got = step.caps.get(resource);
            let got =
                got.map_or_else(|| "no cap".to_owned(), |cap| from_base_units(resource, *cap).to_string());
            self.same(name, Some(expected), got);
        }
        self.until(&field("validUntil"), expect.valid_until.as_ref(), step.valid_until)?;
        let reason = step.reason.as_ref().map(|reason| (reason.code.as_str(), reason.message.as_str()));
        self.reason(field("reason"), expect.reason.as_ref(), reason);
        self.same(field("reclaim"), expect.reclaim.map(shown), shown(step.reclaim));
        Ok(())
    }

    fn decision(&mut self, expect: &ExpectDecision, got: &NodeDecision) -> Result<(), String> {
        let field = |name: &str| format!("decision.{name}");
        self.same(field("verdict"), expect.verdict.map(|verdict| word(&verdict)), word(&got.verdict));
        self.same(field("withheld"), expect.withheld.map(|flag| flag.to_string()), got.withheld.to_string());
        for (resource, quantity) in &expect.amounts {
            let name = field(&format!("amounts.{resource}"));
            let expected = amount(&name, resource, quantity)?;
            let got = got.amounts.get(resource).copied().unwrap_or(0);
            self.same(name, Some(expected), from_base_units(resource, got).to_string());
        }
        for (resource, entry) in &expect.limited_by {
            let got = got.limited_by.get(resource).cloned().unwrap_or_else(|| "nobody".to_owned());
            self.same(field(&format!("limitedBy.{resource}")), Some(entry.clone()), got);
        }
        self.same(field("reclaim"), expect.reclaim.map(shown), shown(got.reclaim));
        self.until(&field("validUntil"), expect.valid_until.as_ref(), got.valid_until)?;
        let reason = got.reason.as_ref().map(|reason| (reason.code.as_str(), reason.message.as_str()));
        self.reason(field("reason"), expect.reason.as_ref(), reason);
        let governed = |name: Option<&str>| name.unwrap_or("no policy").to_owned();
        let expected = expect.governed_by.as_ref().map(|name| governed(name.as_str()));
        self.same(field("governedBy"), expected, governed(got.governed_by.as_deref()));
        self.same(
            field("mayCreate"),
            expect.may_create.map(|flag| flag.to_string()),
            got.may_create.to_string(),
        );
        Ok(())
    }

    fn place(&mut self, expect: &ExpectPlace, got: &Placement) {
        let field = |name: &str| format!("place.{name}");
        let (fit, seconds) = match got.fit {
            Fit::Accept => (FitWord::Accept, None),
            Fit::Later(seconds) => (FitWord::Later, Some(seconds)),
            Fit::Reject => (FitWord::Reject, None),
        };
        self.same(field("fit"), expect.fit.map(|fit| word(&fit)), word(&fit));
        let shown = seconds.map_or_else(|| "none".to_owned(), |seconds| seconds.to_string());
        self.same(field("seconds"), expect.seconds.map(|seconds| seconds.to_string()), shown);
        self.same(field("score"), expect.score.map(|score| score.to_string()), got.score.to_string());
        let reason = got.reason.as_ref().map(|why| (why.reason.code.as_str(), why.reason.message.as_str()));
        self.reason(field("reason"), expect.reason.as_ref(), reason);
        let entry = got
            .reason
            .as_ref()
            .map_or("nobody", |why| why.entry.rsplit_once('/').map_or(&*why.entry, |(_, entry)| entry));
        self.same(field("entry"), expect.entry.clone(), entry.to_owned());
    }

    fn until(&mut self, field: &str, expected: Option<&Value>, got: Option<i64>) -> Result<(), String> {
        let shown =
            |until: Option<i64>| until.map_or_else(|| "for ever".to_owned(), |until| local(until, self.zone));
        let expected = match expected {
            None => return Ok(()),
            Some(Value::Null) => None,
            Some(Value::String(text)) => {
                Some(instant(text, self.zone).map_err(|why| format!("{field}: {why}"))?.as_second())
            }
            Some(other) => return Err(format!("{field}: {other} is no time")),
        };
        let (expected, got) = (shown(expected), shown(got));
        self.same(field.to_owned(), Some(expected), got);
        Ok(())
    }

    fn reason(&mut self, field: String, expected: Option<&Value>, got: Option<(&str, &str)>) {
        let Some(expected) = expected else { return };
        let Some(expected) = expected.as_str() else {
            return self.same(field, Some("no reason".to_owned()), full_or(got));
        };
        let got = match got {
            Some((code, _)) if !expected.contains(": ") => code.to_owned(),
            other => full_or(other),
        };
        self.same(field, Some(expected.to_owned()), got);
    }
}

fn full_or(reason: Option<(&str, &str)>) -> String {
    reason.map_or_else(|| "no reason".to_owned(), |(code, message)| format!("{code}: {message}"))
}

fn amount(field: &str, resource: &str, quantity: &Written) -> Result<String, String> {
    let base = to_base_units(resource, &quantity.0, Rounding::Down)
        .map_err(|_| format!("{field}: {:?} is no quantity", quantity.0))?;
    Ok(from_base_units(resource, base).to_string())
}

/// The name of a value without members, as files write it.
fn word(value: &impl Serialize) -> String {
    serde_json::to_value(value).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
}

fn shown(reclaim: Reclaim) -> String {
    match reclaim {
        Reclaim::Keep => "keep".to_owned(),
        Reclaim::Graceful(seconds) => format!("graceful {seconds} s"),
        Reclaim::Force => "force".to_owned(),
    }
}
