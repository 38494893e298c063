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

/// The reasons of one call.
#[derive(Debug, Default)]
pub(crate) struct Reasons {
    list: Vec<wire::Reason>,
}

impl Reasons {
    pub(crate) fn intern(&mut self, reason: &ReasonText) -> u32 {
        let known =
            self.list.iter().take(SEARCHED).position(|known| {
                known.code == reason.code.as_ref() && known.message == reason.message.as_ref()
            });
        let index = known.unwrap_or_else(|| {
            self.list.push(wire::Reason {
                code: reason.code.clone().into_owned(),
                message: reason.message.clone().into_owned(),
            });
            self.list.len() - 1
        });
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    pub(crate) fn into_list(self) -> Vec<wire::Reason> {
        self.list
    }
}
