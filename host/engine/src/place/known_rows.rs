//! Rows of vnodes that schedulers asked about before. They ask pod after pod about mostly the same vnodes, in any order,
//! and facts about a vnode are one shared value until something changes: the same value is the same row.
//!
//! In: candidates. Out: their rows, if they are known. Callers: [`super::needs::PlaceRows`], `evaluate`. Invariant: a row is
//! taken again only if projecting it would read the same facts, policy and offset. Facts are known by their address, which
//! a weak reference keeps from being used again.

use std::sync::{Arc, Weak};

use hashbrown::HashTable;

use crate::facts::{NodeFacts, PolicyFacts};

/// Bytes of all rows. A module may ask for long annotations of thousands of vnodes.
const KEPT_BYTES: usize = 4 << 20;
/// So many rows are never too many.
const FEW: usize = 64;

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct KnownRows {
    policy: Weak<PolicyFacts>,
    utc_offset: i32,
    places: HashTable<Place>,
    bytes: Vec<u8>,
    /// Rows at which facts that nobody has any more are looked for: twice as many as were left the last time.
    sweep_at: usize,
}

/// Where the row of some facts is.
#[derive(Debug)]
struct Place {
    facts: Weak<NodeFacts>,
    start: usize,
    end: usize,
}

impl Place {
    fn address(&self) -> usize {
        self.facts.as_ptr().addr()
    }

    fn hash(address: usize) -> u64 {
        // Allocations are aligned, and tables look at the lowest and the highest bits.
        u64::try_from(address >> 4).unwrap_or(0).wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

impl KnownRows {
    /// Prepares for a question: forgets what was projected from something else, and from time to time facts that nobody has
    /// any more.
    pub(crate) fn begin(&mut self, policy: &Arc<PolicyFacts>, utc_offset: i32) {
        if self.policy.as_ptr() != Arc::as_ptr(policy) || self.utc_offset != utc_offset {
            *self = Self { policy: Arc::downgrade(policy), utc_offset, ..Self::default() };
        } else if self.places.len() > FEW.max(self.sweep_at) {
            self.forget_dead();
            self.sweep_at = 2 * self.places.len();
        }
    }

    /// The row of these facts.
    pub(crate) fn row(&self, facts: &Arc<NodeFacts>) -> Option<&[u8]> {
        let address = Arc::as_ptr(facts).addr();
        let place = self.places.find(Place::hash(address), |place| place.address() == address)?;
        self.bytes.get(place.start..place.end)
    }

    /// Keeps the row of facts that have none yet.
    pub(crate) fn keep(&mut self, facts: &Arc<NodeFacts>, row: &[u8]) {
        if self.bytes.len() + row.len() > KEPT_BYTES {
            self.places.clear();
            self.bytes = Vec::new();
        }
        if row.len() > KEPT_BYTES {
            return;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(row);
        let place = Place { facts: Arc::downgrade(facts), start, end: self.bytes.len() };
        self.places.insert_unique(Place::hash(place.address()), place, |place| Place::hash(place.address()));
    }

    /// Rows that are known.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    fn forget_dead(&mut self) {
        let old = std::mem::take(&mut self.bytes);
        let bytes = &mut self.bytes;
        self.places.retain(|place| {
            let alive = place.facts.strong_count() > 0;
            if alive {
                let start = bytes.len();
                bytes.extend_from_slice(old.get(place.start..place.end).unwrap_or_default());
                (place.start, place.end) = (start, bytes.len());
            }
            alive
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::facts::TextFact;
    use crate::frame::Needs;
    use crate::place::facts::{PodFacts, PodText, node_number};
    use crate::place::needs::{PlaceNeeds, PlaceRows};

    fn needs() -> PlaceNeeds {
        PlaceNeeds {
            pod_texts: vec![PodText::Name],
            node: Needs {
                texts: vec![TextFact::NodeName],
                numbers: vec![node_number("available/cpu").unwrap()],
                ..Needs::default()
            },
            ..PlaceNeeds::default()
        }
    }

    fn node(name: usize, cpu: i64) -> Arc<NodeFacts> {
        Arc::new(NodeFacts {
            node_name: format!("node-{name}"),
            allocatable: [("cpu".to_owned(), cpu)].into(),
            ..NodeFacts::default()
        })
    }

    fn pod(name: &str) -> PodFacts {
        PodFacts { name: name.to_owned(), ..PodFacts::default() }
    }

    fn ask(known: &mut KnownRows, policy: &Arc<PolicyFacts>, nodes: &[Arc<NodeFacts>]) -> PlaceRows {
        known.begin(policy, 0);
        PlaceRows::knowing(&needs(), policy, &pod("p"), nodes, 0, known)
    }

    #[test]
    fn in_any_order_only_what_changed_is_new() {
        let policy = Arc::new(PolicyFacts::default());
        let mut nodes: Vec<_> = (0..1000).map(|name| node(name, 1)).collect();
        let mut known = KnownRows::default();
        ask(&mut known, &policy, &nodes);
        assert_eq!(known.len(), 1000);
        nodes.sort_by_key(|node| node.node_name.chars().rev().collect::<String>());
        ask(&mut known, &policy, &nodes[..700]);
        ask(&mut known, &policy, &nodes);
        assert_eq!(known.len(), 1000, "nothing was new");
        nodes[10] = node(5000, 2);
        let rows = ask(&mut known, &policy, &nodes);
        assert_eq!(known.len(), 1001);
        assert_eq!(known.row(&nodes[10]), Some(rows.node(10)));
    }

    #[test]
    fn facts_that_are_nobodys_go() {
        let policy = Arc::new(PolicyFacts::default());
        let mut known = KnownRows::default();
        let stays = node(0, 0);
        for amount in 0..1000 {
            ask(&mut known, &policy, &[Arc::clone(&stays), node(1, amount)]);
        }
        assert!(known.len() <= FEW + 2, "{}", known.len());
        assert!(known.row(&stays).is_some());
        assert!(known.bytes.len() <= (FEW + 2) * 64, "{}", known.bytes.len());
    }

    #[test]
    fn rows_hold_for_one_policy_and_one_offset() {
        let policy = Arc::new(PolicyFacts::default());
        let nodes = [node(0, 1)];
        let mut known = KnownRows::default();
        ask(&mut known, &policy, &nodes);
        known.begin(&policy, 0);
        assert!(known.row(&nodes[0]).is_some());
        known.begin(&policy, 3600);
        assert!(known.row(&nodes[0]).is_none());
        known.keep(&nodes[0], b"row");
        known.begin(&Arc::new(PolicyFacts::default()), 3600);
        assert!(known.row(&nodes[0]).is_none());
    }

    #[test]
    fn rows_are_bounded_in_bytes() {
        let policy = Arc::new(PolicyFacts::default());
        let mut known = KnownRows::default();
        known.begin(&policy, 0);
        let nodes: Vec<_> = (0..3).map(|name| node(name, 1)).collect();
        for node in &nodes[..2] {
            known.keep(node, &vec![0; KEPT_BYTES / 2 + 1]);
        }
        assert_eq!((known.len(), known.row(&nodes[0])), (1, None));
        known.keep(&nodes[2], &vec![0; KEPT_BYTES + 1]);
        assert_eq!((known.len(), known.bytes.len()), (0, 0));
    }

    proptest! {
        /// Whoever was asked about before, the rows of a question are those that nobody knew.
        #[test]
        fn rows_are_the_same_known_or_not(
            questions in prop::collection::vec(prop::collection::vec(0_usize..40, 0..60), 1..6),
        ) {
            let policy = Arc::new(PolicyFacts::default());
            // The values of 20 to 39 are those of 0 to 19, with other amounts.
            let all: Vec<_> = (0..40).map(|n| node(n % 20, i64::from(n >= 20))).collect();
            let mut known = KnownRows::default();
            for (number, places) in questions.iter().enumerate() {
                let nodes: Vec<_> = places.iter().map(|place| Arc::clone(&all[*place])).collect();
                let pod = pod(&format!("pod-{number}"));
                known.begin(&policy, 0);
                let again = PlaceRows::knowing(&needs(), &policy, &pod, &nodes, 0, &mut known);
                let fresh =
                    PlaceRows::project(&needs(), &policy, &pod, nodes.iter().map(AsRef::as_ref), 0);
                prop_assert_eq!(fresh.len(), again.len());
                for row in 0..fresh.len() {
                    prop_assert_eq!(fresh.key(row), again.key(row));
                }
            }
        }
    }
}
