//! The loop over rows. In: settings, then frames; out: the tables the host reads. Called by the generated exports and,
//! natively, by the harness, which therefore tests the same code. Invariant: per row nothing is allocated but what the
//! policy itself allocates.

use crate::bindings::types as wire;
use crate::columns::Family;
use crate::lease::{CapName, Lease, LeasePolicy, Until, Verdict};
use crate::log::report_panics;
use crate::needs::Needs;
use crate::now::Now;
use crate::place::{Fit, FitKind, PlacePolicy, Stage};
use crate::reasons::Reasons;
use crate::reclaim::Reclaim;
use crate::row::{Node, Pod, Table};

/// A lease policy with its settings.
#[derive(Debug)]
pub struct LeaseEvaluator<P> {
    policy: P,
    needs: Needs,
}

/// One row of a lease answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseRow {
    /// What holds for the node.
    pub verdict: Verdict,
    /// Never `Graceful(0)`.
    pub reclaim: Reclaim,
    /// Unix seconds.
    pub valid_until: Option<i64>,
    /// Index into the reasons.
    pub reason: Option<u32>,
}

/// The answer of one lease call; `R` is a row as the caller wants it.
#[derive(Debug)]
pub struct LeaseTable<R> {
    /// One per row of the frame.
    pub rows: Vec<R>,
    /// rows x caps, -1 = no cap; empty when nothing may be capped.
    pub caps: Vec<i64>,
    /// Distinct reasons.
    pub reasons: Vec<wire::Reason>,
}

/// The wire value of "no cap".
const NO_CAP: i64 = -1;

impl<P: LeasePolicy> LeaseEvaluator<P> {
    /// Parses and checks settings (PO-206: the text of an `Err` is for the owner).
    pub fn create(settings: &str) -> Result<Self, String> {
        report_panics();
        let policy = P::parse_settings(settings)?;
        policy.validate()?;
        let needs = policy.needs();
        Ok(Self { policy, needs })
    }

    /// What the evaluator reads.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// The same for the wire.
    pub fn wire_needs(&self) -> wire::Needs {
        self.needs.to_wire()
    }

    /// Decides about every row; `finish` makes of each what the caller wants, before the next is decided.
    pub fn lease<R>(
        &self,
        now: wire::Now,
        nodes: &wire::Frame,
        finish: impl Fn(LeaseRow) -> R,
    ) -> Result<LeaseTable<R>, String> {
        let table = Table::of_nodes(&self.needs, nodes)?;
        let now = Now::new(now);
        let width = self.needs.caps.len();
        let mut rows = Vec::with_capacity(table.rows());
        let mut caps = vec![NO_CAP; table.rows() * width];
        let mut reasons = Reasons::default();
        for row in 0..table.rows() {
            now.start_row();
            let answer = self.policy.lease(&now, Node::new(&table, row));
            self.write_caps(&answer, &mut caps[row * width..][..width]);
            rows.push(finish(LeaseRow {
                verdict: answer.verdict,
                reclaim: if answer.reclaim == Reclaim::Graceful(0) { Reclaim::Force } else { answer.reclaim },
                valid_until: match answer.until {
                    Until::At(instant) => instant,
                    Until::Derived => now.promise(),
                },
                reason: answer.reason.map(|reason| reasons.intern(reason)),
            }));
        }
        Ok(LeaseTable { rows, caps, reasons: reasons.into_list() })
    }

    fn write_caps(&self, answer: &Lease, cells: &mut [i64]) {
        // Not a `for` loop: each step would ask again in which of the two lists it is.
        answer.caps().for_each(|(key, amount)| {
            let column = match key {
                CapName::Column(column) => column.0,
                CapName::Name(name) => cap_column(&self.needs, name),
            };
            let cell = &mut cells[column];
            *cell = if *cell == NO_CAP { amount } else { (*cell).min(amount) };
        });
    }
}

/// Capping what `needs()` does not name is a mistake of the policy, as reading it is (PO-303).
#[expect(
    clippy::panic,
    reason = "PO-303: an undeclared cap traps; check and the trial call find it before use"
)]
fn cap_column(needs: &Needs, resource: &str) -> usize {
    match needs.caps.find(Family::Other, resource) {
        Some(column) => column,
        None => panic!("cap \"{resource}\" is not declared in needs()"),
    }
}

/// A placement policy with its settings.
#[derive(Debug)]
pub struct PlaceEvaluator<P> {
    policy: P,
    needs: Needs,
}

/// One row of a placement answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PlaceRow {
    pub(crate) kind: FitKind,
    pub(crate) score: Option<u8>,
    pub(crate) reason: Option<u32>,
}

/// The answer of one placement call; `R` is a row as the caller wants it.
#[derive(Debug)]
pub(crate) struct PlaceTable<R> {
    pub(crate) rows: Vec<R>,
    pub(crate) reasons: Vec<wire::Reason>,
}

impl<P: PlacePolicy> PlaceEvaluator<P> {
    /// Parses and checks settings (PO-206: the text of an `Err` is for the owner).
    pub fn create(settings: &str) -> Result<Self, String> {
        report_panics();
        let policy = P::parse_settings(settings)?;
        policy.validate()?;
        let needs = policy.needs();
        Ok(Self { policy, needs })
    }

    /// What the evaluator reads.
    pub fn needs(&self) -> &Needs {
        &self.needs
    }

    /// The same for the wire.
    pub fn wire_needs(&self) -> wire::Needs {
        self.needs.to_wire()
    }

    pub(crate) fn place<R>(
        &self,
        stage: Stage,
        now: wire::Now,
        pod: &wire::Frame,
        nodes: &wire::Frame,
        finish: impl Fn(PlaceRow) -> R,
    ) -> Result<PlaceTable<R>, String> {
        let pods = Table::of_pods(&self.needs, pod)?;
        if pods.rows() != 1 {
            return Err("the pod frame must have one row".to_owned());
        }
        let table = Table::of_nodes(&self.needs, nodes)?;
        let now = Now::new(now);
        let mut rows = Vec::with_capacity(table.rows());
        let mut reasons = Reasons::default();
        for row in 0..table.rows() {
            let Fit { kind, score, reason } =
                self.policy.place(stage, &now, Pod::new(&pods), Node::new(&table, row));
            let reason = reason.map(|reason| reasons.intern(reason));
            rows.push(finish(PlaceRow { kind, score, reason }));
        }
        Ok(PlaceTable { rows, reasons: reasons.into_list() })
    }
}
