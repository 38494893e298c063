//! The last answers about places, with everything needed to ask again (PO-1007).
//!
//! Kept as the rows of whole questions, so that a question about thousands of vnodes costs one copy; made readable when
//! somebody reads them. Invariant: bounded in answers and in bytes, whatever annotations people write on pods and nodes.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::civil::civil_recorded;
use crate::entry::evaluate::Instant;
use crate::entry::running::Running;
use crate::entry::slot::Slot;
use crate::facts::NodeFacts;
use crate::frame::{readable, readable_cells, recorded, recorded_cells};
use crate::module::{CallFailed, Module};
use crate::place::answer::{PlaceAnswer, Stage};
use crate::place::evaluate::{Question, run};
use crate::place::module::PlaceRowAnswer;
use crate::place::needs::PlaceRows;
use crate::record::{KEPT, KEPT_BYTES, RecordedOffset};
use crate::replay::ReplayError;
use crate::wasm::bindings::types::Now;

/// One guest answer about one pod and one vnode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PlaceRecord {
    /// `<policy>/<entry>`.
    pub entry: String,
    /// Digest of the module.
    pub digest: String,
    /// Its settings, canonical JSON.
    pub settings: String,
    /// Who asked.
    pub stage: Stage,
    /// `<namespace>/<name>` of the pod.
    pub pod: String,
    /// The vnode.
    pub vnode: String,
    /// When it was asked, unix seconds.
    pub at: i64,
    /// Offset of the zone then.
    pub utc_offset_seconds: i32,
    /// The zone's next change of its offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_offset: Option<RecordedOffset>,
    /// Declared facts about the pod, by name; `null` = absent.
    pub pod_facts: BTreeMap<String, serde_json::Value>,
    /// Declared facts about the vnode.
    pub facts: BTreeMap<String, serde_json::Value>,
    /// What was answered.
    #[serde(flatten)]
    pub answer: PlaceRowAnswer,
}

#[derive(Debug)]
struct Kept {
    entry: Arc<str>,
    running: Arc<Running>,
    stage: Stage,
    /// `<namespace>/<name>`.
    pod: String,
    nodes: Names,
    now: Now,
    rows: PlaceRows,
    answers: Vec<Arc<PlaceAnswer>>,
    /// Rows before this one are too old to be told.
    first: usize,
}

/// The names of nodes and of their vnodes, in turn.
#[derive(Debug, Default)]
struct Names {
    text: String,
    ends: Vec<usize>,
}

impl Names {
    fn push(&mut self, node: &NodeFacts) {
        for name in [&node.node_name, &node.vnode_name] {
            self.text.push_str(name);
            self.ends.push(self.text.len());
        }
    }

    /// Node and vnode.
    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        let name = |place: usize| {
            let start = place.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
            self.ends.get(place).and_then(|end| self.text.get(start..*end)).unwrap_or_default()
        };
        (0..self.ends.len() / 2).map(move |pair| (name(2 * pair), name(2 * pair + 1)))
    }
}

/// Ring of the last answers of one host.
#[derive(Debug, Default)]
pub(crate) struct PlaceRecorder {
    ring: Mutex<Ring>,
}

#[derive(Debug, Default)]
struct Ring {
    questions: VecDeque<Kept>,
    answers: usize,
    bytes: usize,
}

impl PlaceRecorder {
    pub(crate) fn record(
        &self,
        slot: &Slot,
        running: &Arc<Running>,
        now: &Instant,
        question: &Question,
        rows: &PlaceRows,
        answers: &[Arc<PlaceAnswer>],
    ) {
        let last: Vec<usize> = (rows.len().saturating_sub(KEPT)..rows.len()).collect();
        let mut nodes = Names::default();
        for row in &last {
            let node = rows.candidate(*row).and_then(|candidate| question.nodes.get(candidate));
            nodes.push(node.map_or(&NodeFacts::default(), AsRef::as_ref));
        }
        let kept = Kept {
            entry: Arc::clone(&slot.label),
            running: Arc::clone(running),
            stage: question.stage,
            pod: format!("{}/{}", question.pod.namespace, question.pod.name),
            nodes,
            now: now.civil,
            answers: last.iter().filter_map(|row| answers.get(*row).cloned()).collect(),
            rows: rows.only(last.iter().copied()),
            first: 0,
        };
        self.ring.lock().push(kept);
    }

    /// What was answered about a worker node or vnode, or about all; oldest first.
    pub(crate) fn snapshot(&self, node: Option<&str>) -> Vec<PlaceRecord> {
        let ring = self.ring.lock();
        ring.questions.iter().flat_map(|kept| kept.readable(node)).collect()
    }
}

impl Ring {
    fn push(&mut self, kept: Kept) {
        self.answers += kept.answers.len();
        self.bytes += kept.bytes();
        self.questions.push_back(kept);
        while self.answers > KEPT || self.bytes > KEPT_BYTES {
            let over = self.answers.saturating_sub(KEPT);
            let Some(oldest) = self.questions.front_mut() else { break };
            let told = oldest.answers.len() - oldest.first;
            if told <= over || self.bytes > KEPT_BYTES {
                self.bytes -= oldest.bytes();
                self.answers -= told;
                self.questions.pop_front();
            } else {
                oldest.first += over;
                self.answers -= over;
            }
        }
    }
}

impl Kept {
    fn bytes(&self) -> usize {
        self.rows.bytes() + self.nodes.text.len()
    }

    fn readable<'k>(&'k self, node: Option<&'k str>) -> impl Iterator<Item = PlaceRecord> + 'k {
        let needs = &self.running.place_needs;
        let about =
            move |(name, vnode): (&str, &str)| node.is_none_or(|wanted| wanted == name || wanted == vnode);
        let rows = self.nodes.pairs().zip(&self.answers).enumerate().skip(self.first);
        rows.filter(move |(_, (names, _))| about(*names)).map(move |(row, ((_, vnode), answer))| {
            PlaceRecord {
                entry: self.entry.to_string(),
                digest: self.running.digest.to_string(),
                settings: self.running.settings.to_string(),
                stage: self.stage,
                pod: self.pod.clone(),
                vnode: vnode.to_owned(),
                at: self.now.unix_seconds,
                utc_offset_seconds: self.now.utc_offset_seconds,
                next_offset: self.now.next_offset.map(RecordedOffset::from),
                pod_facts: readable_cells(&needs.pod_names, needs.pod_texts.len(), self.rows.pod()),
                facts: readable(&needs.node, self.rows.node(row)),
                answer: PlaceRowAnswer::from(&**answer),
            }
        })
    }
}

impl Module {
    /// The answer to what was asked when the record was made, in a fresh instance, alone.
    pub fn replay_place(&self, record: &PlaceRecord) -> Result<PlaceRowAnswer, ReplayError> {
        if !self.running.place {
            return Err(ReplayError::Record("the module does not export place".to_owned()));
        }
        let needs = &self.running.place_needs;
        let pod = recorded_cells(&needs.pod_names, needs.pod_texts.len(), &record.pod_facts);
        let node = recorded(&needs.node, &record.facts, record.utc_offset_seconds);
        let rows = PlaceRows::recorded(
            pod.map_err(ReplayError::Record)?,
            node.map_err(ReplayError::Record)?.to_vec(),
        );
        let at = Timestamp::from_second(record.at)
            .map_err(|_| ReplayError::Record(format!("{} is no time", record.at)))?;
        let now = civil_recorded(at, record.utc_offset_seconds, record.next_offset.map(Into::into));
        let answers = run(&self.running, record.stage, now, &rows).map_err(CallFailed::from)?;
        let answer = answers.first().ok_or_else(|| ReplayError::Record("no row was answered".to_owned()))?;
        Ok(PlaceRowAnswer::from(&**answer))
    }
}
