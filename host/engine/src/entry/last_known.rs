//! The last good answer of an entry per node, and what stands for an answer that did not come (PO-803).
//!
//! It survives a change of module or settings, because the node it speaks about is still the same.

use std::collections::HashMap;
use std::sync::Arc;

use crate::answer::{Answer, EntryVerdict, Reclaim};
use crate::facts::Published;
use crate::legacy::OnError;

/// Seconds after which a standing answer is called stale (PO-804).
const STALE_SECONDS: i64 = 3600;

#[derive(Debug)]
struct Known {
    answer: Arc<Answer>,
    at: i64,
    standing: bool,
}

/// Last good answers of one entry.
#[derive(Debug, Default)]
pub(crate) struct LastKnown {
    nodes: HashMap<String, Known, ahash::RandomState>,
    /// How many of them stand for a new answer.
    standing: usize,
}

impl LastKnown {
    /// A good answer for a node.
    pub(crate) fn learn(&mut self, node: &str, answer: &Arc<Answer>, now: i64) {
        if let Some(known) = self.nodes.get_mut(node) {
            if !Arc::ptr_eq(&known.answer, answer) {
                known.answer = Arc::clone(answer);
            }
            known.at = now;
            if std::mem::take(&mut known.standing) {
                self.standing -= 1;
            }
        } else {
            let known = Known { answer: Arc::clone(answer), at: now, standing: false };
            self.nodes.insert(node.to_owned(), known);
        }
    }

    /// The last good answer.
    pub(crate) fn last(&self, node: &str) -> Option<Arc<Answer>> {
        self.nodes.get(node).map(|known| Arc::clone(&known.answer))
    }

    /// Whether this very answer is the last one.
    pub(crate) fn is_last(&self, node: &str, answer: &Arc<Answer>) -> bool {
        self.nodes.get(node).is_some_and(|known| Arc::ptr_eq(&known.answer, answer))
    }

    /// The last good answer stands, because no new one came.
    pub(crate) fn stand(&mut self, node: &str) {
        if let Some(known) = self.nodes.get_mut(node)
            && !std::mem::replace(&mut known.standing, true)
        {
            self.standing += 1;
        }
    }

    /// Some answer stands.
    pub(crate) fn stands(&self) -> bool {
        self.standing > 0
    }

    /// The entry has no say about this node now: nothing stands for its answer.
    pub(crate) fn rest(&mut self, node: &str) {
        if self.standing > 0
            && let Some(known) = self.nodes.get_mut(node)
            && std::mem::take(&mut known.standing)
        {
            self.standing -= 1;
        }
    }

    /// Keeps what is known about these nodes only.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.nodes.retain(|node, known| {
            let kept = keep(node);
            if !kept && known.standing {
                self.standing -= 1;
            }
            kept
        });
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// An answer older than an hour stands for a new one somewhere.
    pub(crate) fn is_stale(&self, now: i64) -> bool {
        self.standing > 0 && self.nodes.values().any(|known| known.standing && now - known.at > STALE_SECONDS)
    }
}

/// What takes the place of an entry's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StandIn {
    /// The entry is left out.
    Skip,
    /// Its last good answer.
    Last(Arc<Answer>),
    /// What the vnode publishes, as it is.
    Published,
    /// Withheld without reclaim, amounts as published; without a vnode none is made. A countdown the entry started
    /// before continues: the reclaim of its last good answer if that withheld, `None` when it never gave one.
    Deny(Option<Reclaim>),
}

/// Chooses by `onError`; pure.
pub(crate) fn stand_in(
    on_error: OnError,
    last: Option<Arc<Answer>>,
    published: Option<&Published>,
    now: i64,
) -> StandIn {
    let holds = |until: Option<i64>| until.is_none_or(|until| now < until);
    let deny = StandIn::Deny(last.as_ref().map(|answer| match answer.verdict {
        EntryVerdict::Withhold => answer.reclaim,
        EntryVerdict::Offer | EntryVerdict::NotApplicable => Reclaim::Keep,
    }));
    match (on_error, last, published) {
        (OnError::Ignore, _, _) => StandIn::Skip,
        (OnError::LastKnown, Some(answer), _) if holds(answer.valid_until) => StandIn::Last(answer),
        (OnError::LastKnown, None, Some(published)) if holds(published.valid_until) => StandIn::Published,
        (OnError::LastKnown | OnError::Deny, _, _) => deny,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(valid_until: Option<i64>) -> Arc<Answer> {
        Arc::new(Answer {
            verdict: EntryVerdict::Offer,
            reclaim: Reclaim::Keep,
            valid_until,
            reason: None,
            caps: Box::from([]),
            cap_names: Arc::from([]),
        })
    }

    #[test]
    fn last_known_stands_until_it_expires_and_then_denies() {
        let published = Published { valid_until: Some(50), ..Published::default() };
        let choose = |on_error, last, published, now| stand_in(on_error, last, published, now);
        assert_eq!(choose(OnError::Ignore, None, Some(&published), 0), StandIn::Skip);
        let (never, offered) = (StandIn::Deny(None), StandIn::Deny(Some(Reclaim::Keep)));
        assert_eq!(choose(OnError::Deny, Some(answer(None)), Some(&published), 0), offered);
        assert!(matches!(choose(OnError::LastKnown, Some(answer(Some(10))), None, 9), StandIn::Last(_)));
        assert_eq!(choose(OnError::LastKnown, Some(answer(Some(10))), Some(&published), 10), offered);
        assert_eq!(choose(OnError::LastKnown, None, Some(&published), 49), StandIn::Published);
        assert_eq!(choose(OnError::LastKnown, None, Some(&published), 50), never);
        assert_eq!(choose(OnError::LastKnown, None, None, 0), never);
    }

    #[test]
    fn an_answer_is_stale_only_while_it_stands() {
        let mut known = LastKnown::default();
        known.learn("a", &answer(None), 0);
        assert!(!known.is_stale(9999));
        known.stand("a");
        assert!(!known.is_stale(3600));
        assert!(known.is_stale(3601));
        known.learn("a", &answer(None), 4000);
        assert!(!known.is_stale(9999));
        known.stand("a");
        assert!(known.is_stale(9999));
        known.rest("a");
        assert!(!known.is_stale(9999), "it has no say about the node any more");
        assert!(known.last("a").is_some(), "and would stand again");
        known.stand("a");
        known.retain(|node| node != "a");
        assert_eq!((known.len(), known.stands()), (0, false));
        assert!(known.last("a").is_none());
    }
}
