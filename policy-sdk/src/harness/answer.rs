//! Answers of a test, checked as the host checks them (PO-204, PO-205). In: the evaluator's tables; out: one readable
//! answer per node. Used by the harness.

use std::collections::BTreeMap;

use crate::bindings::types as wire;
use crate::evaluator::{LeaseRow, LeaseTable, PlaceRow, PlaceTable};
use crate::lease::Verdict;
use crate::needs::Needs;
use crate::place::FitKind;
use crate::reclaim::Reclaim;

use super::moment::Moment;

/// Why an answer was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReasonAnswer {
    /// UpperCamelCase code.
    pub code: String,
    /// Text for humans.
    pub message: String,
}

/// What a lease policy said about one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseAnswer {
    /// What holds for the node.
    pub verdict: Verdict,
    /// What happens to pods that are there.
    pub reclaim: Reclaim,
    /// Caps in base units, by resource; a resource without a cap is missing.
    pub caps: BTreeMap<String, i64>,
    /// First instant (unix seconds) at which the answer may change by itself.
    pub valid_until: Option<i64>,
    /// The same as local time in the zone of the test, such as `2026-03-08T07:00`.
    pub valid_until_local: Option<String>,
    /// Why.
    pub reason: Option<ReasonAnswer>,
}

impl LeaseAnswer {
    /// The cap on `resource`; `None` when it is not capped.
    pub fn cap(&self, resource: &str) -> Option<i64> {
        self.caps.get(resource).copied()
    }

    /// The code of the reason; empty without one.
    pub fn code(&self) -> &str {
        self.reason.as_ref().map_or("", |reason| reason.code.as_str())
    }
}

/// What a placement policy said about one candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceAnswer {
    /// The pod may go there now.
    pub accepted: bool,
    /// Not now, but after this many seconds.
    pub later_seconds: Option<u32>,
    /// How good the place is, 0 to 100.
    pub score: Option<u8>,
    /// Why.
    pub reason: Option<ReasonAnswer>,
}

pub(super) fn leases(needs: &Needs, table: &LeaseTable<LeaseRow>, moment: &Moment) -> Vec<LeaseAnswer> {
    let width = needs.caps.len();
    let rows = table.rows.iter().enumerate();
    rows.map(|(index, row)| {
        let valid = row.valid_until.is_none_or(|instant| instant > moment.unix_seconds());
        assert!(valid, "valid-until of row {index} is not after now");
        let cells = &table.caps[index * width..][..width];
        let caps = needs.caps.names().into_iter().zip(cells.iter().copied()).filter(|(_, cap)| *cap >= 0);
        LeaseAnswer {
            verdict: row.verdict,
            reclaim: row.reclaim,
            caps: caps.collect(),
            valid_until: row.valid_until,
            valid_until_local: row.valid_until.map(|instant| moment.local(instant)),
            reason: reason(&table.reasons, row.reason, row.verdict == Verdict::Offer),
        }
    })
    .collect()
}

pub(super) fn places(table: &PlaceTable<PlaceRow>) -> Vec<PlaceAnswer> {
    let rows = table.rows.iter();
    rows.map(|row| PlaceAnswer {
        accepted: row.kind == FitKind::Accept,
        later_seconds: match row.kind {
            FitKind::Later(seconds) => Some(seconds),
            FitKind::Accept | FitKind::Reject => None,
        },
        score: row.score,
        reason: reason(&table.reasons, row.reason, row.kind == FitKind::Accept),
    })
    .collect()
}

/// The reason of a row, which only a favourable answer may leave out.
fn reason(reasons: &[wire::Reason], index: Option<u32>, favourable: bool) -> Option<ReasonAnswer> {
    let reason = index.and_then(|index| reasons.get(index as usize));
    assert!(favourable || reason.is_some(), "an answer that refuses needs a reason");
    reason.map(|reason| {
        assert!(
            is_code(&reason.code),
            "{:?} is not an UpperCamelCase code of 1 to 63 characters",
            reason.code
        );
        ReasonAnswer { code: reason.code.clone(), message: reason.message.clone() }
    })
}

/// `^[A-Z][A-Za-z0-9]{0,62}$`
fn is_code(code: &str) -> bool {
    code.len() <= 63
        && code.starts_with(|first: char| first.is_ascii_uppercase())
        && code.bytes().all(|byte| byte.is_ascii_alphanumeric())
}
