//! The last guest answers with everything needed to ask again (PO-1007).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::answer::{Answer, EntryVerdict, Reason, Reclaim};
use crate::entry::evaluate::Instant;
use crate::entry::running::Running;
use crate::entry::slot::Slot;
use crate::frame::{RowKey, readable};
use crate::place::record::{PlaceRecord, PlaceRecorder};
use crate::wasm::bindings::types::{Now, OffsetChange};

/// Answers kept of each kind of decision.
pub(crate) const KEPT: usize = 1000;

/// One guest answer about one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// `<policy>/<entry>`.
    pub entry: String,
    /// Digest of the module.
    pub digest: String,
    /// Its settings, canonical JSON.
    pub settings: String,
    /// Worker nodes that got this answer: those of the same row share it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub nodes: Vec<String>,
    /// When it was asked, unix seconds.
    pub at: i64,
    /// Offset of the zone then.
    pub utc_offset_seconds: i32,
    /// The zone's next change of its offset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_offset: Option<RecordedOffset>,
    /// Declared facts, by name; `null` = absent.
    pub facts: BTreeMap<String, serde_json::Value>,
    /// Verdict.
    pub verdict: EntryVerdict,
    /// Reclaim.
    pub reclaim: Reclaim,
    /// Caps in base units.
    pub caps: BTreeMap<String, i64>,
    /// First unix second at which the answer may change.
    pub valid_until: Option<i64>,
    /// Why.
    pub reason: Option<Reason>,
}

/// A change of a zone's offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RecordedOffset {
    /// When, unix seconds.
    pub at: i64,
    /// The offset from then on.
    pub utc_offset_seconds: i32,
}

impl From<OffsetChange> for RecordedOffset {
    fn from(change: OffsetChange) -> Self {
        Self { at: change.at, utc_offset_seconds: change.utc_offset_seconds }
    }
}

impl From<RecordedOffset> for OffsetChange {
    fn from(change: RecordedOffset) -> Self {
        Self { at: change.at, utc_offset_seconds: change.utc_offset_seconds }
    }
}

/// A decision of either kind. One about a place has a `stage`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Recorded {
    /// What of a node is leased.
    Lease(Record),
    /// Where a pod may go.
    Place(PlaceRecord),
}

impl Recorded {
    /// Reads one line.
    pub fn from_json(line: &str) -> Result<Self, serde_json::Error> {
        let value: serde_json::Value = serde_json::from_str(line)?;
        if value.get("stage").is_some() {
            PlaceRecord::deserialize(value).map(Self::Place)
        } else {
            Record::deserialize(value).map(Self::Lease)
        }
    }

    /// When it was asked, unix seconds.
    pub const fn at(&self) -> i64 {
        match self {
            Self::Lease(record) => record.at,
            Self::Place(record) => record.at,
        }
    }
}

#[derive(Debug)]
struct Kept {
    entry: Arc<str>,
    running: Arc<Running>,
    nodes: Vec<String>,
    now: Now,
    key: RowKey,
    answer: Arc<Answer>,
}

/// Ring of the last answers of one host.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    ring: Mutex<VecDeque<Kept>>,
    pub(crate) place: PlaceRecorder,
}

impl Recorder {
    pub(crate) fn record(
        &self,
        slot: &Slot,
        running: &Arc<Running>,
        now: &Instant,
        (key, nodes): (&RowKey, Vec<String>),
        answer: &Arc<Answer>,
    ) {
        let kept = Kept {
            entry: Arc::clone(&slot.label),
            running: Arc::clone(running),
            nodes,
            now: now.civil,
            key: Arc::clone(key),
            answer: Arc::clone(answer),
        };
        let mut ring = self.ring.lock();
        if ring.len() >= KEPT {
            ring.pop_front();
        }
        ring.push_back(kept);
    }

    /// A node gets an answer that was given about another one of the same row.
    pub(crate) fn shares(&self, running: &Arc<Running>, key: &[u8], node: &str) {
        let mut ring = self.ring.lock();
        let given =
            ring.iter_mut().rev().find(|kept| Arc::ptr_eq(&kept.running, running) && *kept.key == *key);
        if let Some(kept) = given.filter(|kept| !kept.nodes.iter().any(|known| known == node)) {
            kept.nodes.push(node.to_owned());
        }
    }

    /// Oldest first.
    pub(crate) fn snapshot(&self) -> Vec<Record> {
        self.ring.lock().iter().map(Kept::readable).collect()
    }

    /// What was decided about a worker node or vnode, or about all; oldest first.
    pub(crate) fn decisions(&self, node: Option<&str>) -> Vec<Recorded> {
        let about = |name: &String| node.is_none_or(|node| node == name);
        let mut found: Vec<Recorded> = {
            let ring = self.ring.lock();
            let kept = ring.iter().filter(|kept| node.is_none() || kept.nodes.iter().any(about));
            kept.map(|kept| {
                let mut record = kept.readable();
                record.nodes.retain(about);
                Recorded::Lease(record)
            })
            .collect()
        };
        found.extend(self.place.snapshot(node).into_iter().map(Recorded::Place));
        found.sort_by_key(Recorded::at);
        found
    }
}

impl Kept {
    fn readable(&self) -> Record {
        Record {
            entry: self.entry.to_string(),
            digest: self.running.digest.to_string(),
            settings: self.running.settings.to_string(),
            nodes: self.nodes.clone(),
            at: self.now.unix_seconds,
            utc_offset_seconds: self.now.utc_offset_seconds,
            next_offset: self.now.next_offset.map(RecordedOffset::from),
            facts: readable(&self.running.needs, &self.key),
            verdict: self.answer.verdict,
            reclaim: self.answer.reclaim,
            caps: self.answer.caps().map(|(name, cap)| (name.to_string(), cap)).collect(),
            valid_until: self.answer.valid_until,
            reason: self.answer.reason.as_deref().cloned(),
        }
    }
}
