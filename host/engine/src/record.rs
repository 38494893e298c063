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
use crate::node_set::{Names, NodeSet};
use crate::place::record::{PlaceRecord, PlaceRecorder};
use crate::wasm::bindings::types::{Now, OffsetChange};

/// Answers kept of each kind of decision.
pub(crate) const KEPT: usize = 1000;
/// Bytes of rows kept of each kind of decision. A module may ask for long annotations, and people write them anew all the time.
pub(crate) const KEPT_BYTES: usize = 4 << 20;

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
    nodes: NodeSet,
    now: Now,
    key: RowKey,
    answer: Arc<Answer>,
}

#[derive(Debug, Default)]
struct Ring {
    kept: VecDeque<Kept>,
    names: Names,
    /// Of the rows.
    bytes: usize,
}

/// Ring of the last answers of one host.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    ring: Mutex<Ring>,
    pub(crate) place: PlaceRecorder,
}

impl Recorder {
    pub(crate) fn record<'n>(
        &self,
        slot: &Slot,
        running: &Arc<Running>,
        now: &Instant,
        (key, nodes): (&RowKey, impl Iterator<Item = &'n str>),
        answer: &Arc<Answer>,
    ) {
        let mut ring = self.ring.lock();
        let Ring { kept, names, bytes } = &mut *ring;
        *bytes += key.len();
        while kept.len() >= KEPT || *bytes > KEPT_BYTES {
            let Some(oldest) = kept.pop_front() else { break };
            *bytes -= oldest.key.len();
        }
        let mut set = NodeSet::default();
        nodes.for_each(|node| names.insert(node, &mut set));
        kept.push_back(Kept {
            entry: Arc::clone(&slot.label),
            running: Arc::clone(running),
            nodes: set,
            now: now.civil,
            key: Arc::clone(key),
            answer: Arc::clone(answer),
        });
        if names.are_many() {
            names.forget(kept.iter_mut().map(|kept| &mut kept.nodes));
        }
    }

    /// A node gets an answer that was given about another one of the same row.
    pub(crate) fn shares(&self, running: &Arc<Running>, key: &[u8], node: &str) {
        let mut ring = self.ring.lock();
        let Ring { kept, names, .. } = &mut *ring;
        let mut latest = kept.iter_mut().rev();
        if let Some(kept) = latest.find(|kept| Arc::ptr_eq(&kept.running, running) && *kept.key == *key) {
            names.insert(node, &mut kept.nodes);
        }
    }

    /// Oldest first.
    pub(crate) fn snapshot(&self) -> Vec<Record> {
        let ring = self.ring.lock();
        ring.kept.iter().map(|kept| kept.readable(ring.nodes_of(kept))).collect()
    }

    /// What was decided about a worker node or vnode, or about all; oldest first.
    pub(crate) fn decisions(&self, node: Option<&str>) -> Vec<Recorded> {
        let mut found: Vec<Recorded> = {
            let ring = self.ring.lock();
            let is_about = |kept: &&Kept| node.is_none_or(|node| ring.names.is_in(node, &kept.nodes));
            let nodes = |kept| node.map_or_else(|| ring.nodes_of(kept), |node| vec![node.to_owned()]);
            let kept = ring.kept.iter().filter(is_about);
            kept.map(|kept| Recorded::Lease(kept.readable(nodes(kept)))).collect()
        };
        found.extend(self.place.snapshot(node).into_iter().map(Recorded::Place));
        found.sort_by_key(Recorded::at);
        found
    }
}

impl Ring {
    fn nodes_of(&self, kept: &Kept) -> Vec<String> {
        self.names.of(&kept.nodes).map(ToString::to_string).collect()
    }
}

impl Kept {
    /// `nodes`: those that the reader asks about.
    fn readable(&self, nodes: Vec<String>) -> Record {
        Record {
            entry: self.entry.to_string(),
            digest: self.running.digest.to_string(),
            settings: self.running.settings.to_string(),
            nodes,
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
