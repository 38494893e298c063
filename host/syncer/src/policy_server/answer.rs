//! A desk's answer in the words of the policy server. Pure.

use kubeocean_api::place::{Answer, Fit, Row};
use kubeocean_engine::Fit as EngineFit;

use crate::placement::desk::{PlaceAnswer, PlaceRow};

/// The body that says it.
pub fn answer(answer: PlaceAnswer) -> Answer {
    Answer { on_error: answer.on_error, rows: answer.rows.into_iter().map(row).collect() }
}

fn row(row: PlaceRow) -> Row {
    let PlaceRow { node, placement } = row;
    let (fit, seconds) = match placement.fit {
        EngineFit::Accept => (Fit::Accept, None),
        EngineFit::Reject => (Fit::Reject, None),
        EngineFit::Later(seconds) => (Fit::Later, Some(seconds)),
    };
    let (code, message, entry) = placement.reason.map_or_else(Default::default, |said| {
        (said.reason.code.clone(), said.reason.message.clone(), said.entry.to_string())
    });
    Row { node, fit, seconds, score: placement.score, code, message, entry }
}
