//! Interning of reasons. In: code and message of each row; out: an index per row and the list of distinct reasons.
//! Used by both evaluators. Invariant: never more reasons than rows, and never more than the host accepts (PO-205).

use std::borrow::Cow;

use crate::bindings::types as wire;

/// Distinct reasons that are searched before a new one is just appended: bounds the cost of a row.
const SEARCHED: usize = 64;

/// A code and its text, not yet interned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ReasonText {
    pub(crate) code: Cow<'static, str>,
    pub(crate) message: Cow<'static, str>,
}

impl ReasonText {
    pub(crate) fn new(code: impl Into<Cow<'static, str>>, message: impl Into<Cow<'static, str>>) -> Self {
        Self { code: code.into(), message: message.into() }
    }
}

impl ReasonText {
    fn is(&self, other: &Self) -> bool {
        is_same(&self.code, &other.code) && is_same(&self.message, &other.message)
    }
}

/// Most reasons are texts of the module, of which there is one: where it lies says more than its bytes, and sooner.
fn is_same(one: &str, other: &str) -> bool {
    std::ptr::eq(one, other) || one == other
}

/// The reasons of one call.
#[derive(Debug, Default)]
pub(crate) struct Reasons {
    list: Vec<ReasonText>,
}

impl Reasons {
    pub(crate) fn intern(&mut self, reason: ReasonText) -> u32 {
        let known = self.list.iter().take(SEARCHED).position(|known| known.is(&reason));
        let index = known.unwrap_or_else(|| {
            self.list.push(reason);
            self.list.len() - 1
        });
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    pub(crate) fn into_list(self) -> Vec<wire::Reason> {
        let reasons = self.list.into_iter();
        reasons
            .map(|ReasonText { code, message }| wire::Reason {
                code: code.into_owned(),
                message: message.into_owned(),
            })
            .collect()
    }
}
