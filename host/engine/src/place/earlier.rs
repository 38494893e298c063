//! The rows of the question before. A scheduler asks pod after pod about mostly the same vnodes, and facts about a vnode
//! are one shared value until something changes: the same value is the same row.
//!
//! In: the candidates of a question. Out: the row each had before, if it had one. Caller: [`super::needs::PlaceRows`].
//! Invariant: a row is taken again only if projecting it would read the same facts, policy and offset.

use std::sync::Arc;

use crate::facts::{NodeFacts, PolicyFacts};
use crate::place::evaluate::Question;
use crate::place::needs::PlaceRows;

/// Rows of more bytes are not kept: a module may ask for long annotations of thousands of vnodes.
const KEPT_BYTES: usize = 4 << 20;
/// How far candidates are looked for that are not where they were, in lengths of the list. Schedulers begin their list at
/// another place each time, which costs one of these; a vnode whose facts changed costs one too, and is found nowhere.
const LOOKS: usize = 16;

/// A question that was asked, and its rows.
#[derive(Debug)]
pub(crate) struct Earlier {
    question: Arc<Question>,
    policy: Arc<PolicyFacts>,
    utc_offset: i32,
    rows: Arc<PlaceRows>,
}

impl Earlier {
    /// `None`: too much to be kept.
    pub(crate) fn new(
        question: &Arc<Question>,
        policy: &Arc<PolicyFacts>,
        utc_offset: i32,
        rows: &Arc<PlaceRows>,
    ) -> Option<Self> {
        (rows.bytes() <= KEPT_BYTES).then(|| Self {
            question: Arc::clone(question),
            policy: Arc::clone(policy),
            utc_offset,
            rows: Arc::clone(rows),
        })
    }

    /// Looks for candidates of another question; `None` if no row can be the same.
    pub(crate) fn search(&self, policy: &Arc<PolicyFacts>, utc_offset: i32) -> Option<Search<'_>> {
        let same = Arc::ptr_eq(&self.policy, policy) && self.utc_offset == utc_offset;
        same.then(|| Search {
            nodes: &self.question.nodes,
            rows: &self.rows,
            next: 0,
            left: LOOKS * self.question.nodes.len(),
            missed: 0,
        })
    }
}

/// A walk along the earlier candidates beside those of another question.
#[derive(Debug)]
pub(crate) struct Search<'e> {
    nodes: &'e [Arc<NodeFacts>],
    rows: &'e PlaceRows,
    /// Where the next candidate is if the order is the same.
    next: usize,
    /// Candidates that may still be looked at elsewhere.
    left: usize,
    missed: usize,
}

impl<'e> Search<'e> {
    /// The row of the next candidate.
    pub(crate) fn row(&mut self, facts: &Arc<NodeFacts>) -> Option<&'e [u8]> {
        let found = if self.is_at(self.next, facts) { Some(self.next) } else { self.around(facts) };
        // Whoever is found nowhere has mostly new facts, and stands where it stood.
        self.next = found.unwrap_or(self.next) + 1;
        self.missed += usize::from(found.is_none());
        found.map(|row| self.rows.node(row))
    }

    /// Candidates that had no row.
    pub(crate) fn missed(&self) -> usize {
        self.missed
    }

    fn is_at(&self, place: usize, facts: &Arc<NodeFacts>) -> bool {
        self.nodes.get(place).is_some_and(|node| Arc::ptr_eq(node, facts))
    }

    /// Nearest first, so that one candidate more or less costs a step.
    fn around(&mut self, facts: &Arc<NodeFacts>) -> Option<usize> {
        for distance in 1..=self.nodes.len() {
            self.left = self.left.checked_sub(1)?;
            let places = [self.next.checked_sub(distance), self.next.checked_add(distance)];
            if let Some(place) = places.into_iter().flatten().find(|place| self.is_at(*place, facts)) {
                return Some(place);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use proptest::prelude::*;

    use super::*;
    use crate::facts::TextFact;
    use crate::frame::Needs;
    use crate::place::answer::Stage;
    use crate::place::facts::{PodFacts, node_number};
    use crate::place::needs::PlaceNeeds;

    fn needs() -> PlaceNeeds {
        PlaceNeeds {
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

    fn question(nodes: Vec<Arc<NodeFacts>>) -> Arc<Question> {
        let pod = Arc::new(PodFacts::default());
        Arc::new(Question { stage: Stage::Schedule, pod, nodes, deadline: Instant::now() })
    }

    fn asked(nodes: &[Arc<NodeFacts>], policy: &Arc<PolicyFacts>) -> Earlier {
        let question = question(nodes.to_vec());
        let rows = Arc::new(PlaceRows::of_question(&needs(), policy, &question, 0, None));
        Earlier::new(&question, policy, 0, &rows).unwrap()
    }

    /// How many of the candidates have a row already.
    fn known(earlier: &Earlier, policy: &Arc<PolicyFacts>, nodes: &[Arc<NodeFacts>]) -> usize {
        let mut search = earlier.search(policy, 0).unwrap();
        let known = nodes.iter().filter(|node| search.row(node).is_some()).count();
        assert_eq!(known + search.missed(), nodes.len());
        known
    }

    #[test]
    fn a_scheduler_that_begins_elsewhere_and_leaves_some_out_finds_all_rows_but_the_changed() {
        let policy = Arc::new(PolicyFacts::default());
        let mut nodes: Vec<_> = (0..1000).map(|name| node(name, 1)).collect();
        let earlier = asked(&nodes, &policy);
        assert_eq!(known(&earlier, &policy, &nodes), 1000);
        nodes.rotate_left(700);
        assert_eq!(known(&earlier, &policy, &nodes), 1000, "turned round");
        nodes[10] = node(10, 2);
        nodes.remove(20);
        nodes.insert(30, node(1000, 1));
        assert_eq!(known(&earlier, &policy, &nodes), 998, "of 1000 one is new and one has changed");
        let every_third: Vec<_> = nodes.iter().skip(40).step_by(3).cloned().collect();
        assert_eq!(known(&earlier, &policy, &every_third), every_third.len());
    }

    #[test]
    fn what_stands_nowhere_is_not_looked_for_without_end() {
        let policy = Arc::new(PolicyFacts::default());
        let nodes: Vec<_> = (0..1000).map(|name| node(name, 1)).collect();
        let earlier = asked(&nodes, &policy);
        let others: Vec<_> = (0..1000).map(|name| node(name, 2)).collect();
        let mut search = earlier.search(&policy, 0).unwrap();
        assert!(others.iter().all(|node| search.row(node).is_none()));
        assert_eq!(search.left, 0);
        assert!(search.row(&nodes[0]).is_none(), "the looks are used up");
    }

    #[test]
    fn rows_hold_for_one_policy_and_one_offset() {
        let policy = Arc::new(PolicyFacts::default());
        let earlier = asked(&[node(0, 1)], &policy);
        assert!(earlier.search(&policy, 0).is_some());
        assert!(earlier.search(&policy, 3600).is_none());
        assert!(earlier.search(&Arc::new(PolicyFacts::default()), 0).is_none());
    }

    #[test]
    fn too_much_is_not_kept() {
        let policy = Arc::new(PolicyFacts::default());
        let long = NodeFacts { node_name: "x".repeat(KEPT_BYTES), ..NodeFacts::default() };
        let question = question(vec![Arc::new(long)]);
        let rows = Arc::new(PlaceRows::of_question(&needs(), &policy, &question, 0, None));
        assert!(Earlier::new(&question, &policy, 0, &rows).is_none());
    }

    proptest! {
        /// Whatever the next question is, its rows are those that nobody had asked for before.
        #[test]
        fn rows_are_the_same_with_and_without_an_earlier_question(
            before in prop::collection::vec(0_usize..40, 0..60),
            after in prop::collection::vec(0_usize..40, 0..60),
        ) {
            let policy = Arc::new(PolicyFacts::default());
            // The values of 20 to 39 are those of 0 to 19, with other amounts.
            let all: Vec<_> = (0..40).map(|n| node(n % 20, i64::from(n >= 20))).collect();
            let pick = |places: &[usize]| places.iter().map(|place| Arc::clone(&all[*place])).collect::<Vec<_>>();
            let earlier = asked(&pick(&before), &policy);
            let question = question(pick(&after));
            let rows = |search: Option<&mut Search<'_>>| PlaceRows::of_question(&needs(), &policy, &question, 0, search);
            let (fresh, again) = (rows(None), rows(earlier.search(&policy, 0).as_mut()));
            prop_assert_eq!(fresh.len(), again.len());
            for row in 0..fresh.len() {
                prop_assert_eq!(fresh.node(row), again.node(row));
            }
        }
    }
}
