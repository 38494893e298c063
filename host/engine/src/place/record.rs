//! The last answers about places, with everything needed to ask again (PO-1007).
//!
//! Kept as the rows of whole questions, so that a question about thousands of vnodes costs one copy; made readable when
//! somebody reads them.

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
use crate::place::facts::PodFacts;
use crate::place::module::PlaceRowAnswer;
use crate::place::needs::PlaceRows;
use crate::record::{KEPT, RecordedOffset};
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
    pod: Arc<PodFacts>,
    nodes: Vec<Arc<NodeFacts>>,
    now: Now,
    rows: PlaceRows,
    answers: Vec<Arc<PlaceAnswer>>,
    /// Rows before this one are too old to be told.
    first: usize,
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
        let node = |row: &usize| question.nodes.get(rows.candidate(*row)?).cloned();
        let kept = Kept {
            entry: Arc::clone(&slot.label),
            running: Arc::clone(running),
            stage: question.stage,
            pod: Arc::clone(&question.pod),
            nodes: last.iter().filter_map(node).collect(),
            now: now.civil,
            answers: last.iter().filter_map(|row| answers.get(*row).cloned()).collect(),
            rows: rows.only(last.iter().copied()),
            first: 0,
        };
        let mut ring = self.ring.lock();
        ring.answers += kept.answers.len();
        ring.questions.push_back(kept);
        while ring.answers > KEPT {
            let over = ring.answers - KEPT;
            let Some(oldest) = ring.questions.front_mut() else { break };
            let told = oldest.answers.len() - oldest.first;
            if told <= over {
                ring.questions.pop_front();
                ring.answers -= told;
            } else {
                oldest.first += over;
                ring.answers -= over;
            }
        }
    }

    /// What was answered about a worker node or vnode, or about all; oldest first.
    pub(crate) fn snapshot(&self, node: Option<&str>) -> Vec<PlaceRecord> {
        let ring = self.ring.lock();
        ring.questions.iter().flat_map(|kept| kept.readable(node)).collect()
    }
}

impl Kept {
    fn readable<'k>(&'k self, node: Option<&'k str>) -> impl Iterator<Item = PlaceRecord> + 'k {
        let needs = &self.running.place_needs;
        let about = move |facts: &NodeFacts| {
            node.is_none_or(|node| node == facts.node_name || node == facts.vnode_name)
        };
        let rows = self.nodes.iter().zip(&self.answers).enumerate().skip(self.first);
        rows.filter(move |(_, (node, _))| about(node)).map(move |(row, (node, answer))| PlaceRecord {
            entry: self.entry.to_string(),
            digest: self.running.digest.to_string(),
            settings: self.running.settings.to_string(),
            stage: self.stage,
            pod: format!("{}/{}", self.pod.namespace, self.pod.name),
            vnode: node.vnode_name.clone(),
            at: self.now.unix_seconds,
            utc_offset_seconds: self.now.utc_offset_seconds,
            next_offset: self.now.next_offset.map(RecordedOffset::from),
            pod_facts: readable_cells(&needs.pod_names, needs.pod_texts.len(), self.rows.pod()),
            facts: readable(&needs.node, self.rows.node(row)),
            answer: PlaceRowAnswer::from(&**answer),
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
