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
    /// Each flow once.
    turns: VecDeque<u64>,
}

impl<K> Default for Ready<K> {
    fn default() -> Self {
        Self { flows: HashMap::new(), turns: VecDeque::new() }
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

    /// The first key of the flow whose turn it is, and since when it is ready.
    pub(super) fn pop(&mut self) -> Option<(K, Instant)> {
        let flow = self.turns.pop_front()?;
        let keys = self.flows.get_mut(&flow)?;
        let first = keys.pop_front();
        if keys.is_empty() {
            self.flows.remove(&flow);
        } else {
            self.turns.push_back(flow);
        }
        first
    }

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
        assert_eq!(ready.pop().map(|(key, _)| key), Some(0));
        ready.push(2, 2000);
        ready.push(3, 3000);
        ready.push(2, 2001);
        let order: Vec<_> = std::iter::from_fn(|| ready.pop()).map(|(key, _)| key).collect();
        assert_eq!(order[..6], [1, 2000, 3000, 2, 2001, 3]);
        assert!(order[6..].is_sorted() && order.len() == 1002);
        assert!(ready.is_empty() && ready.flows.is_empty());
    }
}
