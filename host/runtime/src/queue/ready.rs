//! The keys that are ready, by flow: flows take turns, the keys of one flow wait for each other.
//!
//! A flow is what must not hold up others, such as a namespace: thousands of keys in one delay a key of another by as
//! many turns as there are flows, not by thousands.

use std::collections::{HashMap, VecDeque};

use tokio::time::Instant;

#[derive(Debug)]
pub(super) struct Ready<K> {
    /// With the moment since when. None of them is empty.
    flows: HashMap<u64, VecDeque<(K, Instant)>>,
    /// Each flow once, but those that rest.
    turns: VecDeque<u64>,
    /// Flows whose turn came while they had their share, in this order. There are no more of them than workers.
    resting: Vec<u64>,
}

impl<K> Default for Ready<K> {
    fn default() -> Self {
        Self { flows: HashMap::new(), turns: VecDeque::new(), resting: Vec::new() }
    }
}

impl<K> Ready<K> {
    /// Puts a key behind the others of its flow.
    pub(super) fn push(&mut self, flow: u64, key: K) {
        let keys = self.flows.entry(flow).or_insert_with(|| {
            self.turns.push_back(flow);
            VecDeque::new()
        });
        keys.push_back((key, Instant::now()));
    }

    /// The first key of the flow whose turn it is, and since when it is ready. A flow that has its share is passed over, and
    /// rests until [`Ready::wake_unless`].
    pub(super) fn pop(&mut self, has_its_share: impl Fn(u64) -> bool) -> Option<(K, Instant)> {
        let flow = loop {
            let flow = self.turns.pop_front()?;
            if !has_its_share(flow) {
                break flow;
            }
            self.resting.push(flow);
        };
        let keys = self.flows.get_mut(&flow)?;
        let first = keys.pop_front();
        if keys.is_empty() {
            self.flows.remove(&flow);
        } else {
            self.turns.push_back(flow);
        }
        first
    }

    /// Gives flows that rest a turn, but those that still have their share.
    pub(super) fn wake_unless(&mut self, has_its_share: impl Fn(u64) -> bool) {
        let turns = &mut self.turns;
        self.resting.retain(|flow| {
            let rests = has_its_share(*flow);
            if !rests {
                turns.push_back(*flow);
            }
            rests
        });
    }

    /// Flows that rest.
    pub(super) fn resting(&self) -> impl Iterator<Item = u64> {
        self.resting.iter().copied()
    }

    /// Whether no flow has a turn.
    pub(super) fn is_empty(&self) -> bool {
        self.turns.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_flow_does_not_hold_up_a_short_one() {
        let mut ready = Ready::default();
        for key in 0..1000 {
            ready.push(1, key);
        }
        assert_eq!(ready.pop(|_| false).map(|(key, _)| key), Some(0));
        ready.push(2, 2000);
        ready.push(3, 3000);
        ready.push(2, 2001);
        let order: Vec<_> = std::iter::from_fn(|| ready.pop(|_| false)).map(|(key, _)| key).collect();
        assert_eq!(order[..6], [1, 2000, 3000, 2, 2001, 3]);
        assert!(order[6..].is_sorted() && order.len() == 1002);
        assert!(ready.is_empty() && ready.flows.is_empty());
    }

    #[test]
    fn a_flow_with_its_share_rests_until_it_is_woken() {
        let mut ready = Ready::default();
        ready.push(1, "a");
        ready.push(2, "b");
        let pop = |ready: &mut Ready<_>| ready.pop(|flow| flow == 1).map(|(key, _)| key);
        assert_eq!((pop(&mut ready), pop(&mut ready)), (Some("b"), None));
        ready.push(1, "c");
        assert!(ready.is_empty(), "it rests");
        ready.wake_unless(|flow| flow == 1);
        assert!(ready.is_empty() && ready.resting().eq([1]));
        ready.wake_unless(|_| false);
        ready.wake_unless(|_| false);
        let rest: Vec<_> = std::iter::from_fn(|| ready.pop(|_| false)).map(|(key, _)| key).collect();
        assert_eq!(rest, ["a", "c"]);
    }
}
