//! A desk's answer in the words of the policy server.

use std::{sync::Arc, time::Instant};

use kubeocean_api::place::{Answer, Fit, Question, Row};
use kubeocean_engine::Fit as EngineFit;

use crate::placement::{
    desk::{PlaceDesk, PlaceRow},
    facts_of_pod,
};

/// What the policies say; it takes a while, at most until `deadline`. `None`: this Syncer does not know yet.
pub fn answer(desk: &PlaceDesk, question: &Question, deadline: Instant) -> Option<Answer> {
    let pod = Arc::new(facts_of_pod(&question.pod));
    let said = desk.place(question.stage, &pod, &question.nodes, deadline)?;
    Some(Answer { on_error: said.on_error, rows: said.rows.into_iter().map(Row::from).collect() })
}

impl From<PlaceRow> for Row {
    fn from(row: PlaceRow) -> Self {
        let PlaceRow { node, placement } = row;
        let (fit, seconds) = match placement.fit {
            EngineFit::Accept => (Fit::Accept, None),
            EngineFit::Reject => (Fit::Reject, None),
            EngineFit::Later(seconds) => (Fit::Later, Some(seconds)),
        };
        let (code, message, entry) = placement.reason.map_or_else(Default::default, |said| {
            (said.reason.code.clone(), said.reason.message.clone(), said.entry.to_string())
        });
        Self { node, fit, seconds, score: placement.score, code, message, entry }
    }
}
