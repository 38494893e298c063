//! Answers by key, each as a few bytes: what the memo and the last answers of an entry are made of.
//!
//! An answer is its first byte (what it has, and five bits of its own), the instant until which it holds, the numbers of
//! its reason and of the names of its caps, its own numbers, and bytes of the caller. In: answers. Out: equal ones. Invariant: what is kept for
//! all answers together is kept no longer than some answer uses it.

use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::sync::Arc;

use super::interned::Interned;
use super::packed::{Line, Packed, Reader, put_number};
use crate::answer::Reason;

/// An answer that may be given again.
pub(crate) trait Remembered: Sized {
    /// What it has in common with answers of the other kind.
    fn common(&self) -> Common<&Arc<Reason>, &CapNames>;
    /// Appends its own numbers, and returns five bits.
    fn write(&self, numbers: &mut Vec<u8>) -> u8;
    /// What was written. `own` has five bits.
    fn read(common: Common<Arc<Reason>, CapNames>, own: u8, numbers: &mut Reader<'_>) -> Self;
}

/// Names of the resources an evaluator may cap.
pub(crate) type CapNames = Arc<[Arc<str>]>;

/// What answers of all kinds may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Common<R, N> {
    /// First unix second at which it may be another one.
    pub(crate) valid_until: Option<i64>,
    pub(crate) reason: Option<R>,
    pub(crate) cap_names: Option<N>,
}

/// First byte: bits of the kind of answer.
const OWN_BITS: u32 = 5;
const OWN: u8 = (1 << OWN_BITS) - 1;
const VALID_UNTIL: u8 = 1 << OWN_BITS;
const REASON: u8 = 2 << OWN_BITS;
const CAP_NAMES: u8 = 4 << OWN_BITS;

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Answers<A> {
    lines: Packed,
    reasons: Interned<Reason>,
    cap_names: Interned<[Arc<str>]>,
    of: PhantomData<fn() -> A>,
    /// Reused from answer to answer.
    scratch: Vec<u8>,
}

impl<A> Default for Answers<A> {
    fn default() -> Self {
        Self {
            lines: Packed::default(),
            reasons: Interned::default(),
            cap_names: Interned::default(),
            of: PhantomData,
            scratch: Vec::new(),
        }
    }
}

/// One answer and when it was given.
#[derive(Debug)]
pub(crate) struct Kept<'a, A> {
    pub(crate) at: i64,
    value: &'a [u8],
    answers: &'a Answers<A>,
}

impl<A: Remembered> Kept<'_, A> {
    pub(crate) fn valid_until(&self) -> Option<i64> {
        head(self.value).1.valid_until
    }

    /// The caller's bytes, if there are as many.
    pub(crate) fn tail<const N: usize>(&self) -> Option<&[u8; N]> {
        self.value.last_chunk()
    }

    pub(crate) fn answer(&self) -> A {
        let (own, numbers, mut reader) = head(self.value);
        let common = Common {
            valid_until: numbers.valid_until,
            reason: numbers.reason.and_then(|number| self.answers.reasons.get(number)).cloned(),
            cap_names: numbers.cap_names.and_then(|number| self.answers.cap_names.get(number)).cloned(),
        };
        A::read(common, own, &mut reader)
    }
}

impl<A: Remembered> Answers<A> {
    pub(crate) fn len(&self) -> usize {
        self.lines.len()
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Kept<'_, A>> {
        self.lines.get(key).map(|line| Kept { at: line.at, value: line.value, answers: self })
    }

    /// Remembers an answer given at that unix second, and some bytes of the caller, in place of what was remembered for
    /// its key.
    pub(crate) fn put(&mut self, key: &[u8], at: i64, answer: &A, tail: &[u8]) {
        let common = answer.common();
        let mut value = std::mem::take(&mut self.scratch);
        value.clear();
        value.push(0);
        let mut flags = 0;
        if let Some(until) = common.valid_until {
            flags |= VALID_UNTIL;
            value.extend_from_slice(&until.to_le_bytes());
        }
        if let Some(reason) = common.reason {
            flags |= REASON;
            put_number(self.reasons.number(reason).into(), &mut value);
        }
        if let Some(names) = common.cap_names {
            flags |= CAP_NAMES;
            put_number(self.cap_names.number(names).into(), &mut value);
        }
        flags |= answer.write(&mut value) & OWN;
        if let Some(first) = value.first_mut() {
            *first = flags;
        }
        value.extend_from_slice(tail);
        self.lines.put(Line { key, at, value: &value });
        self.scratch = value;
        self.forget_unused();
    }

    /// A number for a key and something else: equal ones have the same, different ones hardly ever.
    pub(crate) fn digest(&self, key: &[u8], of: i64) -> u32 {
        let [_, _, _, _, low @ ..] = self.lines.hash(&(key, of)).to_be_bytes();
        u32::from_be_bytes(low)
    }

    /// Drops all answers but those.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(&[u8], i64, Option<i64>) -> bool) {
        self.lines.retain(|line| keep(line.key, line.at, head(line.value).1.valid_until));
    }

    /// When each answer was given.
    pub(crate) fn times(&self) -> impl Iterator<Item = i64> {
        self.lines.lines().map(|line| line.at)
    }

    fn forget_unused(&mut self) {
        if !self.reasons.are_plenty() && !self.cap_names.are_plenty() {
            return;
        }
        let (mut reasons, mut cap_names) = (BTreeSet::new(), BTreeSet::new());
        for line in self.lines.lines() {
            let (_, numbers, _) = head(line.value);
            reasons.extend(numbers.reason);
            cap_names.extend(numbers.cap_names);
        }
        self.reasons.keep(&reasons);
        self.cap_names.keep(&cap_names);
    }

    #[cfg(test)]
    pub(crate) fn reasons(&self) -> usize {
        self.reasons.len()
    }
}

/// Own bits, what is common, and where the own numbers begin.
fn head(value: &[u8]) -> (u8, Common<u32, u32>, Reader<'_>) {
    let mut reader = Reader { rest: value };
    let flags = reader.byte();
    let number = |reader: &mut Reader<'_>| u32::try_from(reader.number()).unwrap_or(u32::MAX);
    let common = Common {
        valid_until: (flags & VALID_UNTIL != 0).then(|| reader.instant()),
        reason: (flags & REASON != 0).then(|| number(&mut reader)),
        cap_names: (flags & CAP_NAMES != 0).then(|| number(&mut reader)),
    };
    (flags & OWN, common, reader)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::answer::{Answer, EntryVerdict, Reclaim};
    use crate::place::answer::{Fit, PlaceAnswer};

    fn reasons() -> impl Strategy<Value = Option<Arc<Reason>>> {
        let reason = |(code, message): (String, String)| Arc::new(Reason { code, message });
        prop::option::of(("[A-Z][a-z]{0,3}", ".{0,5}").prop_map(reason))
    }

    fn answers() -> impl Strategy<Value = Answer> {
        let verdict = prop::sample::select(
            &[EntryVerdict::Offer, EntryVerdict::Withhold, EntryVerdict::NotApplicable][..],
        );
        let reclaim =
            prop_oneof![Just(Reclaim::Keep), Just(Reclaim::Force), any::<u32>().prop_map(Reclaim::Graceful)];
        let cap = prop_oneof![Just(-1), Just(i64::MAX), 0..i64::MAX, 0..1000_i64];
        let caps = prop::collection::vec(cap, 0..8);
        (verdict, reclaim, any::<Option<i64>>(), reasons(), caps, any::<bool>()).prop_map(
            |(verdict, reclaim, valid_until, reason, caps, capped)| Answer {
                verdict,
                reclaim,
                valid_until,
                reason,
                cap_names: caps.iter().enumerate().map(|(i, _)| Arc::from(format!("r{i}"))).collect(),
                caps: if capped { caps[..].into() } else { [][..].into() },
            },
        )
    }

    fn place_answers() -> impl Strategy<Value = PlaceAnswer> {
        let fit = prop_oneof![Just(Fit::Accept), Just(Fit::Reject), any::<u32>().prop_map(Fit::Later)];
        (fit, any::<Option<u8>>(), reasons(), any::<Option<i64>>())
            .prop_map(|(fit, score, reason, valid_until)| PlaceAnswer { fit, score, reason, valid_until })
    }

    fn check<A: Remembered + Clone + PartialEq + std::fmt::Debug>(given: &[(u8, A)]) {
        let mut answers = Answers::default();
        let mut last = std::collections::BTreeMap::new();
        for (at, (key, answer)) in (0..).zip(given) {
            answers.put(&[*key], at, answer, &at.to_le_bytes());
            last.insert(*key, (at, answer));
            let kept = answers.get(&[*key]).unwrap();
            assert_eq!((kept.at, kept.valid_until()), (at, answer.common().valid_until));
        }
        assert_eq!(answers.len(), last.len());
        for (key, (at, answer)) in &last {
            let kept = answers.get(&[*key]).unwrap();
            assert_eq!((kept.at, &kept.answer()), (*at, *answer));
            assert_eq!(kept.tail(), Some(&at.to_le_bytes()));
        }
    }

    proptest! {
        #[test]
        fn what_is_remembered_of_a_lease_is_what_was_answered(
            given in prop::collection::vec((0_u8..5, answers()), 1..20)
        ) {
            check(&given);
        }

        #[test]
        fn what_is_remembered_of_a_place_is_what_was_answered(
            given in prop::collection::vec((0_u8..5, place_answers()), 1..20)
        ) {
            check(&given);
        }
    }

    /// A module may say another reason every time.
    #[test]
    fn reasons_nobody_uses_any_more_are_forgotten() {
        let mut answers = Answers::default();
        for i in 0..1000_i64 {
            let reason = Reason { code: "Now".to_owned(), message: format!("it is {i}") };
            let answer = PlaceAnswer {
                fit: Fit::Reject,
                score: None,
                reason: Some(Arc::new(reason)),
                valid_until: None,
            };
            let key = [u8::try_from(i % 100).unwrap()];
            answers.put(&key, i, &answer, &[]);
            assert_eq!(answers.get(&key).unwrap().answer(), answer);
            assert!(answers.reasons() <= 201, "{}", answers.reasons());
        }
        for i in 900..1000_i64 {
            let kept = answers.get(&[u8::try_from(i % 100).unwrap()]).unwrap().answer();
            assert_eq!(kept.reason.unwrap().message, format!("it is {i}"));
        }
    }
}
