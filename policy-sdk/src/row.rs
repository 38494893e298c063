//! One row of a frame as a policy sees it. In: the frame of a call; out: borrowed texts and numbers. Built per row by
//! the evaluator. Invariant: an accessor borrows from the frame and allocates nothing (PO-303).

use crate::bindings::types as wire;
use crate::columns::{Columns, Family};
use crate::needs::{Needs, NumberColumn, TextColumn};

/// The wire value of an absent number.
const ABSENT: i64 = i64::MIN;

/// A frame together with the names of its columns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table<'a> {
    texts: &'a Columns,
    numbers: &'a Columns,
    frame: &'a wire::Frame,
}

impl<'a> Table<'a> {
    pub(crate) fn of_nodes(needs: &'a Needs, frame: &'a wire::Frame) -> Result<Self, String> {
        Self::new(&needs.texts, &needs.numbers, frame)
    }

    pub(crate) fn of_pods(needs: &'a Needs, frame: &'a wire::Frame) -> Result<Self, String> {
        Self::new(&needs.pod_texts, &needs.pod_numbers, frame)
    }

    /// A frame whose cells do not fit its rows is refused: every later index is then in range.
    fn new(texts: &'a Columns, numbers: &'a Columns, frame: &'a wire::Frame) -> Result<Self, String> {
        let rows = frame.rows as usize;
        if frame.texts.len() != rows * texts.len() || frame.numbers.len() != rows * numbers.len() {
            return Err("the frame does not match needs()".to_owned());
        }
        Ok(Self { texts, numbers, frame })
    }

    pub(crate) fn rows(&self) -> usize {
        self.frame.rows as usize
    }

    #[inline]
    fn text_at(&self, row: usize, column: usize) -> Option<&'a str> {
        let cell = *self.frame.texts.get(row * self.texts.len() + column)? as usize;
        self.frame.strings.get(cell.checked_sub(1)?).map(String::as_str)
    }

    #[inline]
    fn number_at(&self, row: usize, column: usize) -> Option<i64> {
        let cell = *self.frame.numbers.get(row * self.numbers.len() + column)?;
        (cell != ABSENT).then_some(cell)
    }

    fn text(&self, row: usize, family: Family, key: &str) -> Option<&'a str> {
        self.text_at(row, self.texts.require(family, key))
    }

    fn number(&self, row: usize, family: Family, key: &str) -> Option<i64> {
        self.number_at(row, self.numbers.require(family, key))
    }
}

/// The node (or, for placement, the candidate vnode) a policy is asked about.
///
/// Every accessor traps when the fact is not declared in `needs()`.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    table: &'a Table<'a>,
    row: usize,
}

impl<'a> Node<'a> {
    pub(crate) fn new(table: &'a Table<'a>, row: usize) -> Self {
        Self { table, row }
    }

    /// Value of label `key`; `None` when the label is not set.
    pub fn label(&self, key: &str) -> Option<&'a str> {
        self.table.text(self.row, Family::Label, key)
    }

    /// Value of annotation `key`; `None` when it is not set.
    pub fn annotation(&self, key: &str) -> Option<&'a str> {
        self.table.text(self.row, Family::Annotation, key)
    }

    /// Taints with `key` as `value:Effect`, several joined with `,`; `None` when there is none.
    pub fn taint(&self, key: &str) -> Option<&'a str> {
        self.table.text(self.row, Family::Taint, key)
    }

    /// Any text fact by its full name, such as `node.name`.
    pub fn text(&self, fact: &str) -> Option<&'a str> {
        self.table.text_at(self.row, self.table.texts.require_fact(fact))
    }

    /// Allocatable amount, base units; 0 for a resource the node does not have.
    pub fn allocatable(&self, resource: &str) -> i64 {
        self.table.number(self.row, Family::Allocatable, resource).unwrap_or(0)
    }

    /// Available amount, base units (millicores for `cpu`, else whole units); 0 for a resource the node does not have.
    pub fn available(&self, resource: &str) -> i64 {
        self.table.number(self.row, Family::Available, resource).unwrap_or(0)
    }

    /// What earlier policies left, base units.
    pub fn proposed(&self, resource: &str) -> i64 {
        self.table.number(self.row, Family::Proposed, resource).unwrap_or(0)
    }

    /// Requests of others, base units.
    pub fn used(&self, resource: &str) -> i64 {
        self.table.number(self.row, Family::Used, resource).unwrap_or(0)
    }

    /// Requests of Kubeocean's pods, base units.
    pub fn leased(&self, resource: &str) -> i64 {
        self.table.number(self.row, Family::Leased, resource).unwrap_or(0)
    }

    /// Measured usage, base units; `None` without metrics.
    pub fn usage(&self, resource: &str) -> Option<i64> {
        self.table.number(self.row, Family::Usage, resource)
    }

    /// Any number fact by its full name, such as `node.created`.
    pub fn number(&self, fact: &str) -> Option<i64> {
        self.table.number_at(self.row, self.table.numbers.require_fact(fact))
    }

    /// A text fact by the column [`Needs::add_text`] answered.
    #[inline]
    pub fn text_at(&self, column: TextColumn) -> Option<&'a str> {
        self.table.text_at(self.row, column.0)
    }

    /// A number fact by the column [`Needs::add_number`] answered.
    #[inline]
    pub fn number_at(&self, column: NumberColumn) -> Option<i64> {
        self.table.number_at(self.row, column.0)
    }
}

/// The pod that looks for a place.
///
/// Every accessor traps when the fact is not declared in `needs()`.
#[derive(Clone, Copy, Debug)]
pub struct Pod<'a> {
    table: &'a Table<'a>,
}

impl<'a> Pod<'a> {
    pub(crate) fn new(table: &'a Table<'a>) -> Self {
        Self { table }
    }

    /// Value of label `key`; `None` when the label is not set.
    pub fn label(&self, key: &str) -> Option<&'a str> {
        self.table.text(0, Family::Label, key)
    }

    /// Value of annotation `key`; `None` when it is not set.
    pub fn annotation(&self, key: &str) -> Option<&'a str> {
        self.table.text(0, Family::Annotation, key)
    }

    /// Any text fact by its full name, such as `pod.namespace`.
    pub fn text(&self, fact: &str) -> Option<&'a str> {
        self.table.text_at(0, self.table.texts.require_fact(fact))
    }

    /// Requested amount, base units; 0 without a request.
    pub fn request(&self, resource: &str) -> i64 {
        self.table.number(0, Family::Request, resource).unwrap_or(0)
    }

    /// Limit, base units; `None` without one.
    pub fn limit(&self, resource: &str) -> Option<i64> {
        self.table.number(0, Family::Limit, resource)
    }

    /// Any number fact by its full name, such as `pod.priority`.
    pub fn number(&self, fact: &str) -> Option<i64> {
        self.table.number_at(0, self.table.numbers.require_fact(fact))
    }
}
