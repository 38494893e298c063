//! The last good answer of an entry per node, and what stands for an answer that did not come (PO-803).
//!
//! It survives a change of module or settings, because the node it speaks about is still the same.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::answers::Answers;
use crate::answer::{Answer, EntryVerdict, Reclaim};
use crate::facts::Published;
use crate::legacy::OnError;

/// Seconds after which a standing answer is called stale (PO-804).
const STALE_SECONDS: i64 = 3600;

/// Last good answers of one entry.
#[derive(Debug, Default)]
pub(crate) struct LastKnown {
    /// By name of the node.
    nodes: Answers<Answer>,
    /// Nodes whose answer stands for a new one.
    standing: BTreeSet<Box<str>>,
}

impl LastKnown {
    /// A good answer for a node. `asked` tells it from answers about other rows and from those of other calls.
    pub(crate) fn learn(&mut self, node: &str, answer: &Answer, asked: u32, now: i64) {
        self.nodes.put(node.as_bytes(), now, answer, &asked.to_le_bytes());
        self.rest(node);
    }

    /// The last good answer.
    pub(crate) fn last(&self, node: &str) -> Option<Arc<Answer>> {
        self.nodes.get(node.as_bytes()).map(|known| Arc::new(known.answer()))
    }

    /// Whether this very answer is the last one.
    pub(crate) fn is_last(&self, node: &str, asked: u32) -> bool {
        self.nodes.get(node.as_bytes()).is_some_and(|known| known.tail() == Some(&asked.to_le_bytes()))
    }

    /// The last good answer stands, because no new one came.
    pub(crate) fn stand(&mut self, node: &str) {
        if self.nodes.get(node.as_bytes()).is_some() && !self.standing.contains(node) {
            self.standing.insert(node.into());
        }
    }

    /// Some answer stands.
    pub(crate) fn stands(&self) -> bool {
        !self.standing.is_empty()
    }

    /// The entry has no say about this node now: nothing stands for its answer.
    pub(crate) fn rest(&mut self, node: &str) {
        if self.stands() {
            self.standing.remove(node);
        }
    }

    /// Keeps what is known about these nodes only.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        // Keys are names, so they are text.
        self.nodes.retain(|node, _, _| keep(std::str::from_utf8(node).unwrap_or_default()));
        self.standing.retain(|node| keep(node));
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// An answer older than an hour stands for a new one somewhere.
    pub(crate) fn is_stale(&self, now: i64) -> bool {
        let at = |node: &str| self.nodes.get(node.as_bytes()).map(|known| known.at);
        self.standing.iter().any(|node| at(node).is_some_and(|at| now - at > STALE_SECONDS))
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
            caps: crate::answer::Caps::default(),
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
        known.learn("a", &answer(None), 7, 0);
        assert!(known.is_last("a", 7) && !known.is_last("a", 8) && !known.is_last("b", 7));
        assert!(!known.is_stale(9999));
        known.stand("a");
        assert!(!known.is_stale(3600));
        assert!(known.is_stale(3601));
        known.learn("a", &answer(None), 8, 4000);
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
