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
use crate::wasm::bindings::types::Now;

/// Answers kept.
const KEPT: usize = 1000;

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

#[derive(Debug)]
struct Kept {
    entry: Arc<str>,
    running: Arc<Running>,
    now: Now,
    key: RowKey,
    answer: Arc<Answer>,
}

/// Ring of the last answers of one host.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    ring: Mutex<VecDeque<Kept>>,
}

impl Recorder {
    pub(crate) fn record(
        &self,
        slot: &Slot,
        running: &Arc<Running>,
        now: &Instant,
        key: &RowKey,
        answer: &Arc<Answer>,
    ) {
        let kept = Kept {
            entry: Arc::clone(&slot.label),
            running: Arc::clone(running),
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

    /// Oldest first.
    pub(crate) fn snapshot(&self) -> Vec<Record> {
        self.ring.lock().iter().map(Kept::readable).collect()
    }
}

impl Kept {
    fn readable(&self) -> Record {
        Record {
            entry: self.entry.to_string(),
            digest: self.running.digest.to_string(),
            settings: self.running.settings.to_string(),
            at: self.now.unix_seconds,
            utc_offset_seconds: self.now.utc_offset_seconds,
            next_offset: self.now.next_offset.map(|change| RecordedOffset {
                at: change.at,
                utc_offset_seconds: change.utc_offset_seconds,
            }),
            facts: readable(&self.running.needs, &self.key),
            verdict: self.answer.verdict,
            reclaim: self.answer.reclaim,
            caps: self.answer.caps().map(|(name, cap)| (name.to_string(), cap)).collect(),
            valid_until: self.answer.valid_until,
            reason: self.answer.reason.as_deref().cloned(),
        }
    }
}
