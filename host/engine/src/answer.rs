//! Answers of an entry about one row, and the check that a module's output is one (PO-204, PO-205).
//!
//! In: raw output of a `lease` call. Out: one shared [`Answer`] per row, or a fault `Invalid`.
//! Invariant: whatever a module returns, an `Answer` is well formed.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::entry::answers::{CapNames, Common, Remembered};
use crate::entry::packed::{Reader, put_number};
use crate::fault::Fault;
use crate::wasm::bindings::lease_abi;

/// Bytes of a reason's message.
const MESSAGE_BYTES: usize = 256;
/// Characters of a reason's code.
const CODE_CHARS: usize = 63;
/// Reasons a call may return whatever its number of rows.
pub(crate) const FREE_REASONS: usize = 64;

/// What happens to pods that already run on a node when it is withheld, weakest first (PO-601).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reclaim {
    /// They stay.
    #[default]
    Keep,
    /// They are evicted after so many seconds (1..=2147483647 from legacy fields; a module may say more).
    Graceful(u32),
    /// They are evicted at once.
    Force,
}

impl Reclaim {
    /// The stricter of two: Force, then Graceful with the smaller period, then Keep.
    #[must_use]
    pub fn stricter(self, other: Self) -> Self {
        match (self, other) {
            (Self::Force, _) | (_, Self::Force) => Self::Force,
            (Self::Graceful(a), Self::Graceful(b)) => Self::Graceful(a.min(b)),
            (Self::Graceful(n), Self::Keep) | (Self::Keep, Self::Graceful(n)) => Self::Graceful(n),
            (Self::Keep, Self::Keep) => Self::Keep,
        }
    }
}

/// Verdict of one entry about one row (PO-105).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EntryVerdict {
    /// Nothing against it.
    Offer,
    /// Keep the vnode, lease nothing new.
    Withhold,
    /// This policy does not govern the node.
    NotApplicable,
}

/// Why, in a module's words.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Reason {
    /// UpperCamelCase, at most 63 characters.
    pub code: String,
    /// One line, at most 256 bytes.
    pub message: String,
}

/// A checked answer about one row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) verdict: EntryVerdict,
    pub(crate) reclaim: Reclaim,
    /// First unix second at which the answer may change by itself.
    pub(crate) valid_until: Option<i64>,
    pub(crate) reason: Option<Arc<Reason>>,
    /// One per resource of `cap_names`, `-1` = no cap; empty = none at all.
    pub(crate) caps: Caps,
    pub(crate) cap_names: CapNames,
}

/// Caps that are kept inside an answer.
const FEW: usize = 4;

/// The caps of an answer. Most policies cap a resource or two, so that these need no memory of their own.
#[derive(Clone, Debug)]
pub(crate) enum Caps {
    Few([i64; FEW], usize),
    Many(Box<[i64]>),
}

impl Default for Caps {
    fn default() -> Self {
        Self::Few([0; FEW], 0)
    }
}

impl From<&[i64]> for Caps {
    fn from(caps: &[i64]) -> Self {
        let mut few = [0; FEW];
        match few.get_mut(..caps.len()) {
            Some(places) => places.copy_from_slice(caps),
            None => return Self::Many(caps.into()),
        }
        Self::Few(few, caps.len())
    }
}

impl std::ops::Deref for Caps {
    type Target = [i64];

    fn deref(&self) -> &[i64] {
        match self {
            Self::Few(caps, count) => caps.get(..*count).unwrap_or_default(),
            Self::Many(caps) => caps,
        }
    }
}

impl PartialEq for Caps {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Caps {}

impl Answer {
    /// Resource and amount of every cap.
    pub(crate) fn caps(&self) -> impl Iterator<Item = (&Arc<str>, i64)> {
        self.cap_names
            .iter()
            .zip(self.caps.iter())
            .filter(|(_, cap)| **cap >= 0)
            .map(|(name, cap)| (name, *cap))
    }

    /// Equal in everything the promise of `valid-until` covers (PO-1006).
    pub(crate) fn same_decision(&self, other: &Self) -> bool {
        self.verdict == other.verdict
            && self.reclaim == other.reclaim
            && self.caps == other.caps
            && self.reason == other.reason
    }
}

/// Own bits: two of the verdict, two of the reclaim, one that there are caps. Own numbers: the grace period, then one more
/// than each cap.
impl Remembered for Answer {
    fn common(&self) -> Common<&Arc<Reason>, &CapNames> {
        Common {
            valid_until: self.valid_until,
            reason: self.reason.as_ref(),
            cap_names: Some(&self.cap_names),
        }
    }

    fn write(&self, numbers: &mut Vec<u8>) -> u8 {
        let verdict = match self.verdict {
            EntryVerdict::Offer => 0,
            EntryVerdict::Withhold => 1,
            EntryVerdict::NotApplicable => 2,
        };
        let reclaim = match self.reclaim {
            Reclaim::Keep => 0,
            Reclaim::Force => 1,
            Reclaim::Graceful(seconds) => {
                put_number(seconds.into(), numbers);
                2
            }
        };
        for cap in self.caps.iter() {
            put_number(cap.wrapping_add(1).cast_unsigned(), numbers);
        }
        verdict | reclaim << 2 | u8::from(!self.caps.is_empty()) << 4
    }

    fn read(common: Common<Arc<Reason>, CapNames>, own: u8, numbers: &mut Reader<'_>) -> Self {
        let verdict = match own & 3 {
            0 => EntryVerdict::Offer,
            1 => EntryVerdict::Withhold,
            _ => EntryVerdict::NotApplicable,
        };
        let reclaim = match own >> 2 & 3 {
            0 => Reclaim::Keep,
            1 => Reclaim::Force,
            _ => Reclaim::Graceful(u32::try_from(numbers.number()).unwrap_or(u32::MAX)),
        };
        let cap_names = common.cap_names.unwrap_or_default();
        let mut cap = || numbers.number().cast_signed().wrapping_sub(1);
        let caps = match own >> 4 & 1 {
            0 => Caps::default(),
            _ if cap_names.len() <= FEW => {
                let mut few = [0; FEW];
                few.iter_mut().take(cap_names.len()).for_each(|place| *place = cap());
                Caps::Few(few, cap_names.len())
            }
            _ => Caps::Many(cap_names.iter().map(|_| cap()).collect()),
        };
        Self { verdict, reclaim, valid_until: common.valid_until, reason: common.reason, caps, cap_names }
    }
}

/// Turns a call's output into answers, or says why it is invalid.
pub(crate) fn check_output(
    output: &lease_abi::LeaseOutput,
    rows: usize,
    now_unix: i64,
    cap_names: &Arc<[Arc<str>]>,
) -> Result<Vec<Arc<Answer>>, Fault> {
    if output.rows.len() != rows {
        return Err(Fault::invalid(&format!("{} rows answered, {rows} asked", output.rows.len())));
    }
    let width = cap_names.len();
    if !output.caps.is_empty() && output.caps.len() != rows * width {
        return Err(Fault::invalid(&format!(
            "{} caps for {rows} rows of {width} resources",
            output.caps.len()
        )));
    }
    if output.reasons.len() > rows.max(FREE_REASONS) {
        return Err(Fault::invalid(&format!("{} reasons for {rows} rows", output.reasons.len())));
    }
    if let Some(cap) = output.caps.iter().find(|cap| **cap < -1) {
        return Err(Fault::invalid(&format!("cap {cap} is below -1")));
    }
    let reasons: Vec<Arc<Reason>> = output
        .reasons
        .iter()
        .map(|reason| check_reason(&reason.code, &reason.message))
        .collect::<Result<_, _>>()?;
    let mut answers: Vec<Arc<Answer>> = Vec::with_capacity(rows);
    for (index, row) in output.rows.iter().enumerate() {
        let caps =
            if output.caps.is_empty() { &[][..] } else { &output.caps[index * width..(index + 1) * width] };
        let answer = check_row(row, caps, &reasons, now_unix, cap_names)?;
        // Neighbours often get the same answer; sharing it keeps a memo line small.
        match answers.last() {
            Some(last) if **last == answer => answers.push(Arc::clone(last)),
            _ => answers.push(Arc::new(answer)),
        }
    }
    Ok(answers)
}

fn check_row(
    row: &lease_abi::LeaseRow,
    caps: &[i64],
    reasons: &[Arc<Reason>],
    now_unix: i64,
    cap_names: &Arc<[Arc<str>]>,
) -> Result<Answer, Fault> {
    let verdict = match row.verdict {
        lease_abi::Verdict::Offer => EntryVerdict::Offer,
        lease_abi::Verdict::Withhold => EntryVerdict::Withhold,
        lease_abi::Verdict::NotApplicable => EntryVerdict::NotApplicable,
    };
    let reclaim = match row.reclaim {
        lease_abi::Reclaim::Keep => Reclaim::Keep,
        lease_abi::Reclaim::Graceful(0) => return Err(Fault::invalid("reclaim graceful(0)")),
        lease_abi::Reclaim::Graceful(seconds) => Reclaim::Graceful(seconds),
        lease_abi::Reclaim::Force => Reclaim::Force,
    };
    if let Some(until) = row.valid_until.filter(|until| *until <= now_unix) {
        return Err(Fault::invalid(&format!("valid-until {until} is not after now, {now_unix}")));
    }
    let reason = match row.reason {
        None if verdict == EntryVerdict::Offer => None,
        None => return Err(Fault::invalid("a row that does not offer has no reason")),
        Some(index) => {
            let found = usize::try_from(index).ok().and_then(|index| reasons.get(index));
            Some(Arc::clone(found.ok_or_else(|| Fault::invalid(&format!("there is no reason {index}")))?))
        }
    };
    Ok(Answer {
        verdict,
        reclaim,
        valid_until: row.valid_until,
        reason,
        caps: caps.into(),
        cap_names: Arc::clone(cap_names),
    })
}

pub(crate) fn check_reason(code: &str, message: &str) -> Result<Arc<Reason>, Fault> {
    let shaped = code.len() <= CODE_CHARS
        && code.starts_with(|c: char| c.is_ascii_uppercase())
        && code.chars().all(|c| c.is_ascii_alphanumeric());
    if !shaped {
        return Err(Fault::invalid(&format!("reason code {:?}", crate::text::printable(code, 80))));
    }
    Ok(Arc::new(Reason { code: code.to_owned(), message: crate::text::printable(message, MESSAGE_BYTES) }))
}

#[cfg(test)]
mod tests;
