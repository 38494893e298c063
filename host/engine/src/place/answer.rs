//! Answers of an entry about one candidate, and the check that a module's output is one (PO-204, PO-205).

use std::sync::Arc;

pub use kubeocean_api::place::Stage;
use serde::{Deserialize, Serialize};

use crate::answer::{FREE_REASONS, Reason, check_reason};
use crate::entry::answers::{CapNames, Common, Remembered};
use crate::entry::packed::{Reader, put_number};
use crate::fault::Fault;
use crate::wasm::bindings::place_abi;

/// Whether a pod may go to a vnode, weakest first (PO-604).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// It may.
    #[default]
    Accept,
    /// Not now; ask again after so many seconds, at least 1.
    Later(u32),
    /// It may not.
    Reject,
}

impl std::fmt::Display for Fit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Later(seconds) => write!(f, "later {seconds} s"),
            Self::Reject => f.write_str("reject"),
        }
    }
}

/// A checked answer about one candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PlaceAnswer {
    pub(crate) fit: Fit,
    /// 0..=100; `None`: no opinion.
    pub(crate) score: Option<u8>,
    pub(crate) reason: Option<Arc<Reason>>,
    /// First unix second at which `later` has passed.
    pub(crate) valid_until: Option<i64>,
}

/// Own bits: two of the fit, one that there is a score. Own numbers: the seconds of `later`, the score.
impl Remembered for PlaceAnswer {
    fn common(&self) -> Common<&Arc<Reason>, &CapNames> {
        Common { valid_until: self.valid_until, reason: self.reason.as_ref(), cap_names: None }
    }

    fn write(&self, numbers: &mut Vec<u8>) -> u8 {
        let fit = match self.fit {
            Fit::Accept => 0,
            Fit::Reject => 1,
            Fit::Later(seconds) => {
                put_number(seconds.into(), numbers);
                2
            }
        };
        numbers.extend(self.score);
        fit | u8::from(self.score.is_some()) << 2
    }

    fn read(common: Common<Arc<Reason>, CapNames>, own: u8, numbers: &mut Reader<'_>) -> Self {
        let fit = match own & 3 {
            0 => Fit::Accept,
            1 => Fit::Reject,
            _ => Fit::Later(u32::try_from(numbers.number()).unwrap_or(u32::MAX)),
        };
        let score = (own >> 2 & 1 == 1).then(|| numbers.byte());
        Self { fit, score, reason: common.reason, valid_until: common.valid_until }
    }
}

/// Turns a call's output into answers, or says why it is invalid.
pub(crate) fn check_output(
    output: &place_abi::PlaceOutput,
    rows: usize,
    now_unix: i64,
) -> Result<Vec<Arc<PlaceAnswer>>, Fault> {
    if output.rows.len() != rows {
        return Err(Fault::invalid(&format!("{} rows answered, {rows} asked", output.rows.len())));
    }
    if output.reasons.len() > rows.max(FREE_REASONS) {
        return Err(Fault::invalid(&format!("{} reasons for {rows} rows", output.reasons.len())));
    }
    let reasons: Vec<Arc<Reason>> = output
        .reasons
        .iter()
        .map(|reason| check_reason(&reason.code, &reason.message))
        .collect::<Result<_, _>>()?;
    let mut answers: Vec<Arc<PlaceAnswer>> = Vec::with_capacity(rows);
    let mut given = Given::default();
    for row in &output.rows {
        answers.push(given.share(check_row(row, &reasons, now_unix)?));
    }
    Ok(answers)
}

/// The last answer with each score. Of thousands of candidates many get the same one, which then is one allocation.
struct Given([Option<Arc<PlaceAnswer>>; 128]);

impl Default for Given {
    fn default() -> Self {
        Self([const { None }; 128])
    }
}

impl Given {
    fn share(&mut self, answer: PlaceAnswer) -> Arc<PlaceAnswer> {
        // Scores end at 100.
        let Some(place) = self.0.get_mut(usize::from(answer.score.unwrap_or(127))) else {
            return Arc::new(answer);
        };
        match place {
            Some(last) if **last == answer => Arc::clone(last),
            _ => Arc::clone(place.insert(Arc::new(answer))),
        }
    }
}

fn check_row(
    row: &place_abi::PlaceRow,
    reasons: &[Arc<Reason>],
    now_unix: i64,
) -> Result<PlaceAnswer, Fault> {
    let fit = match row.fit {
        place_abi::Fit::Accept => Fit::Accept,
        place_abi::Fit::Reject => Fit::Reject,
        place_abi::Fit::Later(0) => return Err(Fault::invalid("later(0)")),
        place_abi::Fit::Later(seconds) => Fit::Later(seconds),
    };
    if let Some(score) = row.score.filter(|score| *score > 100) {
        return Err(Fault::invalid(&format!("score {score} is above 100")));
    }
    let reason = match row.reason {
        None if fit == Fit::Accept => None,
        None => return Err(Fault::invalid("a row that does not accept has no reason")),
        Some(index) => {
            let found = usize::try_from(index).ok().and_then(|index| reasons.get(index));
            Some(Arc::clone(found.ok_or_else(|| Fault::invalid(&format!("there is no reason {index}")))?))
        }
    };
    let valid_until = match fit {
        Fit::Later(seconds) => Some(now_unix.saturating_add(i64::from(seconds))),
        Fit::Accept | Fit::Reject => None,
    };
    Ok(PlaceAnswer { fit, score: row.score, reason, valid_until })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(fit: place_abi::Fit, score: Option<u8>, reason: Option<u32>) -> Result<PlaceAnswer, String> {
        let output = place_abi::PlaceOutput {
            rows: vec![place_abi::PlaceRow { fit, score, reason }],
            reasons: vec![place_abi::Reason { code: "Full".to_owned(), message: "a\nb".to_owned() }],
        };
        check_output(&output, 1, 1000)
            .map(|answers| PlaceAnswer::clone(&answers[0]))
            .map_err(|fault| fault.message)
    }

    #[test]
    fn what_the_interface_forbids_is_invalid() {
        use place_abi::Fit as Said;
        assert_eq!(check(Said::Accept, Some(100), None).unwrap().score, Some(100));
        assert_eq!(check(Said::Accept, Some(101), None).unwrap_err(), "score 101 is above 100");
        assert_eq!(check(Said::Reject, None, None).unwrap_err(), "a row that does not accept has no reason");
        assert_eq!(check(Said::Reject, None, Some(1)).unwrap_err(), "there is no reason 1");
        assert_eq!(check(Said::Later(0), None, Some(0)).unwrap_err(), "later(0)");
        let later = check(Said::Later(5), None, Some(0)).unwrap();
        assert_eq!((later.fit, later.valid_until), (Fit::Later(5), Some(1005)));
        assert_eq!(later.reason.unwrap().message, "a b", "one line");
    }

    #[test]
    fn equal_answers_are_one_and_others_are_not() {
        let row = |score| place_abi::PlaceRow { fit: place_abi::Fit::Accept, score, reason: None };
        let scores = [Some(0), Some(100), None, Some(0), None];
        let output = place_abi::PlaceOutput { rows: scores.map(row).into(), reasons: vec![] };
        let answers = check_output(&output, scores.len(), 0).unwrap();
        assert!(answers.iter().map(|answer| answer.score).eq(scores));
        assert!(Arc::ptr_eq(&answers[0], &answers[3]) && Arc::ptr_eq(&answers[2], &answers[4]));
        let mut given = Given::default();
        let later = |seconds| {
            let reason = Some(check_reason("Full", "").unwrap());
            PlaceAnswer {
                fit: Fit::Later(seconds),
                score: None,
                reason,
                valid_until: Some(i64::from(seconds)),
            }
        };
        assert_eq!(
            [later(1), later(2), later(1)].map(|answer| given.share(answer).fit),
            [1, 2, 1].map(Fit::Later)
        );
    }

    #[test]
    fn a_wrong_number_of_rows_or_reasons_is_invalid() {
        let reason = place_abi::Reason { code: "Full".to_owned(), message: String::new() };
        let output = place_abi::PlaceOutput { rows: vec![], reasons: vec![reason; 65] };
        assert!(check_output(&output, 0, 0).is_err());
        assert!(check_output(&place_abi::PlaceOutput { rows: vec![], reasons: vec![] }, 1, 0).is_err());
    }
}
