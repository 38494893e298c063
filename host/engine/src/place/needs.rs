//! What a place evaluator reads, and the rows it is given.
//!
//! One pod row and many node rows, projected like those of a lease: what is remembered of a question is exactly what
//! the guest saw (PO-1003).

use std::sync::Arc;

use crate::facts::{NodeFacts, PolicyFacts, TextFact, UnknownFact};
use crate::frame::{FrameBuffers, MAX_FACTS, Needs, distinct, project, put_text};
use crate::place::facts::{PodFacts, PodNumber, PodText, node_number};
use crate::place::known_rows::KnownRows;
use crate::wasm::bindings::place_abi;

/// See the module documentation. Names are resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PlaceNeeds {
    pub(crate) pod_texts: Vec<PodText>,
    pub(crate) pod_numbers: Vec<PodNumber>,
    pub(crate) node: Needs,
    /// Names about the pod as the module gave them, for `inspect`.
    pub(crate) pod_names: Vec<String>,
}

impl PlaceNeeds {
    /// Checks and resolves what `needs()` of a place evaluator returned.
    pub(crate) fn of_place(said: &place_abi::Needs) -> Result<Self, UnknownFact> {
        if !said.caps.is_empty() {
            return Err(UnknownFact("a place evaluator cannot cap a resource".to_owned()));
        }
        let lists = [
            ("texts", &said.texts),
            ("numbers", &said.numbers),
            ("pod-texts", &said.pod_texts),
            ("pod-numbers", &said.pod_numbers),
        ];
        for (list, names) in lists {
            distinct(list, names, MAX_FACTS)?;
        }
        Ok(Self {
            pod_texts: said.pod_texts.iter().map(|n| PodText::parse(n)).collect::<Result<_, _>>()?,
            pod_numbers: said.pod_numbers.iter().map(|n| PodNumber::parse(n)).collect::<Result<_, _>>()?,
            node: Needs {
                texts: said.texts.iter().map(|n| TextFact::parse(n)).collect::<Result<_, _>>()?,
                numbers: said.numbers.iter().map(|n| node_number(n)).collect::<Result<_, _>>()?,
                caps: Arc::default(),
                names: said.texts.iter().chain(&said.numbers).cloned().collect(),
            },
            pod_names: said.pod_texts.iter().chain(&said.pod_numbers).cloned().collect(),
        })
    }
}

/// The rows of one question as one entry sees them.
#[derive(Clone, Debug, Default)]
pub(crate) struct PlaceRows {
    pod: Vec<u8>,
    nodes: Vec<u8>,
    /// Where each node row ends.
    ends: Vec<usize>,
    /// Which candidate each node row is about.
    of: Vec<usize>,
}

impl PlaceRows {
    pub(crate) fn project<'n>(
        needs: &PlaceNeeds,
        facts: &PolicyFacts,
        pod: &PodFacts,
        nodes: impl Iterator<Item = &'n NodeFacts>,
        utc_offset: i32,
    ) -> Self {
        let mut rows = Self::of_pod(needs, pod, nodes.size_hint().0);
        for node in nodes {
            rows.push_node(needs, facts, node, utc_offset);
        }
        rows
    }

    /// The same; rows that are known are not projected, and the others are known afterwards.
    pub(crate) fn knowing(
        needs: &PlaceNeeds,
        facts: &PolicyFacts,
        pod: &PodFacts,
        nodes: &[Arc<NodeFacts>],
        utc_offset: i32,
        known: &mut KnownRows,
    ) -> Self {
        let mut rows = Self::of_pod(needs, pod, nodes.len());
        for node in nodes {
            if let Some(row) = known.row(node) {
                rows.nodes.extend_from_slice(row);
                rows.end_row();
            } else {
                rows.push_node(needs, facts, node, utc_offset);
                known.keep(node, rows.node(rows.len() - 1));
            }
        }
        rows
    }

    fn of_pod(needs: &PlaceNeeds, pod: &PodFacts, nodes: usize) -> Self {
        let mut rows =
            Self { ends: Vec::with_capacity(nodes), of: Vec::with_capacity(nodes), ..Self::default() };
        for fact in &needs.pod_texts {
            put_text(fact.read(pod), &mut rows.pod);
        }
        for fact in &needs.pod_numbers {
            rows.pod.extend_from_slice(&fact.read(pod).to_le_bytes());
        }
        rows
    }

    fn push_node(&mut self, needs: &PlaceNeeds, facts: &PolicyFacts, node: &NodeFacts, utc_offset: i32) {
        project(&needs.node, node, facts, &|r| node.available(r), utc_offset, &mut self.nodes);
        self.end_row();
    }

    fn end_row(&mut self) {
        self.of.push(self.ends.len());
        self.ends.push(self.nodes.len());
    }

    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }

    fn start(&self, row: usize) -> usize {
        row.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0)
    }

    /// The row of one node.
    pub(crate) fn node(&self, row: usize) -> &[u8] {
        self.ends.get(row).and_then(|end| self.nodes.get(self.start(row)..*end)).unwrap_or_default()
    }

    /// The pod's row and one node's: what an answer depends on.
    pub(crate) fn key(&self, row: usize) -> Vec<u8> {
        [&self.pod, self.node(row)].concat()
    }

    /// Only these rows, in this order.
    pub(crate) fn only(&self, rows: impl Iterator<Item = usize>) -> Self {
        let mut picked = Self { pod: self.pod.clone(), ..Self::default() };
        for row in rows {
            picked.nodes.extend_from_slice(self.node(row));
            picked.ends.push(picked.nodes.len());
            picked.of.extend(self.of.get(row));
        }
        picked
    }

    /// One row of cells as recorded.
    pub(crate) fn recorded(pod: Vec<u8>, node: Vec<u8>) -> Self {
        Self { pod, ends: vec![node.len()], nodes: node, of: vec![0] }
    }

    /// Size of all rows.
    pub(crate) fn bytes(&self) -> usize {
        self.pod.len() + self.nodes.len()
    }

    /// Which candidate a row is about.
    pub(crate) fn candidate(&self, row: usize) -> Option<usize> {
        self.of.get(row).copied()
    }

    /// The row of the pod.
    pub(crate) fn pod(&self) -> &[u8] {
        &self.pod
    }

    pub(crate) fn pod_frame(&self, needs: &PlaceNeeds) -> FrameBuffers<'_> {
        FrameBuffers::of_rows(
            needs.pod_texts.len(),
            needs.pod_numbers.len(),
            std::iter::once(self.pod.as_slice()),
        )
    }

    pub(crate) fn node_frame(&self, needs: &PlaceNeeds) -> FrameBuffers<'_> {
        let rows = (0..self.len()).map(|row| self.node(row));
        FrameBuffers::of_rows(needs.node.texts.len(), needs.node.numbers.len(), rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(pod_texts: &[&str], numbers: &[&str], caps: &[&str]) -> place_abi::Needs {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        place_abi::Needs {
            texts: vec!["label/pool".to_owned()],
            numbers: owned(numbers),
            pod_texts: owned(pod_texts),
            pod_numbers: vec!["request/cpu".to_owned()],
            caps: owned(caps),
        }
    }

    #[test]
    fn caps_and_duplicates_are_refused() {
        assert!(PlaceNeeds::of_place(&said(&["pod.name"], &["available/cpu"], &[])).is_ok());
        assert!(PlaceNeeds::of_place(&said(&[], &[], &["cpu"])).is_err());
        assert!(PlaceNeeds::of_place(&said(&["pod.name", "pod.name"], &[], &[])).is_err());
        assert!(PlaceNeeds::of_place(&said(&[], &["leased/cpu"], &[])).is_err());
    }

    #[test]
    fn rows_are_kept_apart_and_picked_in_any_order() {
        let needs = PlaceNeeds::of_place(&said(&["pod.namespace"], &["available/cpu"], &[])).unwrap();
        let pod = PodFacts { namespace: "ns".into(), ..PodFacts::default() };
        let node = |pool: &str, cpu| NodeFacts {
            labels: [("pool".to_owned(), pool.to_owned())].into(),
            allocatable: [("cpu".to_owned(), cpu)].into(),
            ..NodeFacts::default()
        };
        let nodes = [node("a", 1), node("bb", 2), node("", 3)];
        let rows = PlaceRows::project(&needs, &PolicyFacts::default(), &pod, nodes.iter(), 0);
        let frame = rows.node_frame(&needs);
        assert_eq!((frame.frame().rows, frame.frame().numbers), (3, &[1, 2, 3][..]));
        assert_eq!(frame.frame().strings, ["a", "bb", ""]);
        let picked = rows.only([2, 0].into_iter());
        let frame = picked.node_frame(&needs);
        assert_eq!((frame.frame().strings, frame.frame().numbers), (&["", "a"][..], &[3, 1][..]));
        assert_eq!(picked.key(1), rows.key(0));
        assert_ne!(rows.key(0), rows.key(1));
        let pod = rows.pod_frame(&needs);
        assert_eq!((pod.frame().strings, pod.frame().numbers), (&["ns"][..], &[0][..]));
    }
}
