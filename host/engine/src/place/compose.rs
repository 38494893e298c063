//! How the answers of several entries become one about a candidate (PO-604, PO-803).
//!
//! Pure. Invariant: another entry can make a candidate worse, never better.

use std::sync::Arc;

use crate::answer::Reason;
use crate::entry::evaluate::NoAnswer;
use crate::legacy::OnError;
use crate::place::answer::{Fit, PlaceAnswer, Stage};

/// Seconds after which a pod is asked about again for which an entry had no answer (PO-803).
const RETRY_SECONDS: u32 = 30;

/// Why a pod may not go there, or may.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceReason {
    /// `<policy>/<entry>`.
    pub entry: Arc<str>,
    /// Code and text: the module's, or `ModuleFailed` or `PoliciesLoading`.
    pub reason: Arc<Reason>,
}

/// What holds for one pod on one vnode.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Whether it may go there.
    pub fit: Fit,
    /// How good a place it is, 0..=100; 0 without an opinion.
    pub score: u8,
    /// Why not; `None` when accepted.
    pub reason: Option<PlaceReason>,
}

/// One candidate on its way through the entries of a policy.
#[derive(Clone, Debug, Default)]
pub(crate) struct PlaceDraft {
    fit: Fit,
    reason: Option<PlaceReason>,
    weights: u32,
    weighted: u32,
}

impl PlaceDraft {
    /// A good answer.
    pub(crate) fn answer(&mut self, entry: &Arc<str>, weight: u8, answer: &PlaceAnswer) {
        self.worse(answer.fit, || answer.reason.clone().map(|reason| (entry, reason)));
        if let Some(score) = answer.score {
            self.weights += u32::from(weight);
            self.weighted += u32::from(weight) * u32::from(score);
        }
    }

    /// No answer; `onError` says what stands for it.
    pub(crate) fn no_answer(&mut self, entry: &Arc<str>, stage: Stage, on_error: OnError, why: &NoAnswer) {
        let fit = match (on_error, stage) {
            (OnError::Ignore, _) => return,
            // A pod has no last answer that could stand for a new one.
            (OnError::Deny | OnError::LastKnown, Stage::Schedule) => Fit::Reject,
            (OnError::Deny | OnError::LastKnown, Stage::Admit) => Fit::Later(RETRY_SECONDS),
        };
        let code = if why.loading { "PoliciesLoading" } else { "ModuleFailed" };
        self.worse(fit, || {
            Some((entry, Arc::new(Reason { code: code.to_owned(), message: why.text.to_string() })))
        });
    }

    /// What holds so far.
    pub(crate) const fn fit(&self) -> Fit {
        self.fit
    }

    fn worse<'e>(&mut self, fit: Fit, reason: impl FnOnce() -> Option<(&'e Arc<str>, Arc<Reason>)>) {
        if fit > self.fit {
            self.fit = fit;
            self.reason = reason().map(|(entry, reason)| PlaceReason { entry: Arc::clone(entry), reason });
        }
    }

    fn score(&self) -> u8 {
        let rounded = (2 * self.weighted + self.weights).checked_div(2 * self.weights).unwrap_or(0);
        u8::try_from(rounded).unwrap_or(100)
    }

    pub(crate) fn finish(self) -> Placement {
        Placement { fit: self.fit, score: self.score(), reason: self.reason }
    }

    /// What an Audit entry would change, as one line without names; `None` when nothing.
    pub(crate) fn difference(&self, weight: u8, answer: &PlaceAnswer) -> Option<String> {
        let mut with = self.clone();
        with.answer(&Arc::from(""), weight, answer);
        let code = answer.reason.as_ref().map_or("no reason", |reason| reason.code.as_str());
        if with.fit != self.fit {
            return Some(format!("{} -> {} ({code})", self.fit, with.fit));
        }
        let (before, after) = (self.score(), with.score());
        // The score of a place nobody may go to says nothing.
        (before != after && self.fit == Fit::Accept).then(|| format!("score {before} -> {after} ({code})"))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(fit: Fit, score: Option<u8>) -> PlaceAnswer {
        let reason = Arc::new(Reason { code: "Because".to_owned(), message: String::new() });
        PlaceAnswer { fit, score, reason: (fit != Fit::Accept).then_some(reason), valid_until: None }
    }

    fn compose(answers: &[(&str, u8, PlaceAnswer)]) -> Placement {
        let mut draft = PlaceDraft::default();
        for (entry, weight, answer) in answers {
            draft.answer(&Arc::from(*entry), *weight, answer);
        }
        draft.finish()
    }

    #[test]
    fn the_scores_of_the_specification() {
        let accept = |score| answer(Fit::Accept, score);
        let scored =
            compose(&[("a", 3, accept(Some(80))), ("b", 1, accept(Some(20))), ("c", 1, accept(None))]);
        assert_eq!((scored.fit, scored.score), (Fit::Accept, 65));
        assert_eq!(compose(&[("c", 1, accept(None))]).score, 0, "nobody has an opinion");
        assert_eq!(compose(&[("a", 1, accept(Some(1))), ("b", 1, accept(Some(0)))]).score, 1, "half goes up");
    }

    #[test]
    fn reject_beats_the_longest_later_which_beats_accept() {
        let later = |seconds| answer(Fit::Later(seconds), None);
        let both = compose(&[("a", 1, later(5)), ("b", 1, later(60)), ("c", 1, later(7))]);
        assert_eq!((both.fit, &*both.reason.unwrap().entry), (Fit::Later(60), "b"));
        let all =
            compose(&[("a", 1, later(u32::MAX)), ("b", 1, answer(Fit::Reject, None)), ("c", 1, later(5))]);
        assert_eq!((all.fit, &*all.reason.unwrap().entry), (Fit::Reject, "b"));
    }

    #[test]
    fn what_stands_for_a_missing_answer_depends_on_the_stage() {
        let why = NoAnswer { text: "Trap: x".into(), loading: false, pending: false, retry_at: None };
        let fit = |on_error, stage| {
            let mut draft = PlaceDraft::default();
            draft.no_answer(&Arc::from("p/e"), stage, on_error, &why);
            draft.finish().fit
        };
        for on_error in [OnError::Deny, OnError::LastKnown] {
            assert_eq!(fit(on_error, Stage::Schedule), Fit::Reject);
            assert_eq!(fit(on_error, Stage::Admit), Fit::Later(30));
        }
        assert_eq!(fit(OnError::Ignore, Stage::Schedule), Fit::Accept);
        assert_eq!(fit(OnError::Ignore, Stage::Admit), Fit::Accept);
    }

    #[test]
    fn an_audit_entry_tells_what_it_would_change() {
        let mut draft = PlaceDraft::default();
        draft.answer(&Arc::from("a"), 1, &answer(Fit::Accept, Some(50)));
        assert_eq!(draft.difference(1, &answer(Fit::Accept, None)), None);
        assert_eq!(
            draft.difference(1, &answer(Fit::Accept, Some(100))).as_deref(),
            Some("score 50 -> 75 (no reason)")
        );
        assert_eq!(
            draft.difference(1, &answer(Fit::Reject, None)).as_deref(),
            Some("accept -> reject (Because)")
        );
        draft.answer(&Arc::from("a"), 1, &answer(Fit::Reject, None));
        assert_eq!(draft.difference(1, &answer(Fit::Later(3), Some(1))), None);
    }

    proptest! {
        #[test]
        fn order_does_not_matter_and_more_entries_never_help(
            answers in prop::collection::vec((0_u32..4, prop::option::of(0_u8..=100), 1_u8..=100), 1..6),
            by in 0_usize..6,
        ) {
            let given: Vec<(&str, u8, PlaceAnswer)> = answers
                .iter()
                .map(|(fit, score, weight)| {
                    let fit = match fit { 0 | 1 => Fit::Accept, 2 => Fit::Later(9), _ => Fit::Reject };
                    ("e", *weight, answer(fit, *score))
                })
                .collect();
            let whole = compose(&given);
            let mut turned = given.clone();
            let length = turned.len();
            turned.rotate_left(by % length);
            prop_assert_eq!(&compose(&turned), &whole);
            prop_assert!(compose(&given[1..]).fit <= whole.fit);
            prop_assert!(whole.score <= 100);
        }
    }
}
