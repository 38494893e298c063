//! Asks a module again what it was asked when a record was made (PO-1007).
//!
//! In: a record, and the module with its settings. Out: the answer now, to be compared with the recorded one. It runs in a
//! fresh instance, alone: what it was asked together with must not matter.

use jiff::Timestamp;

use crate::civil::civil_recorded;
use crate::frame::recorded;
use crate::module::{CallFailed, Module, RowAnswer};
use crate::record::Record;

/// Why a record cannot be asked again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayError {
    /// The module reads something that was not recorded, or the record is not one.
    #[error("{0}")]
    Record(String),
    /// The module gives no answer.
    #[error(transparent)]
    Call(#[from] CallFailed),
}

impl Record {
    /// The answer that was recorded.
    pub fn answer(&self) -> RowAnswer {
        RowAnswer {
            verdict: self.verdict,
            reclaim: self.reclaim,
            caps: self.caps.clone(),
            valid_until: self.valid_until,
            reason: self.reason.clone(),
        }
    }
}

impl Module {
    /// The answer to what was asked when the record was made.
    pub fn replay(&self, record: &Record) -> Result<RowAnswer, ReplayError> {
        let running = self.running();
        let key = recorded(&running.needs, &record.facts, record.utc_offset_seconds)
            .map_err(ReplayError::Record)?;
        let at = Timestamp::from_second(record.at)
            .map_err(|_| ReplayError::Record(format!("{} is no time", record.at)))?;
        let now = civil_recorded(at, record.utc_offset_seconds, record.next_offset.map(Into::into));
        let answers = running.run(now, &[key]).map_err(CallFailed::from)?;
        let answer = answers.first().ok_or_else(|| ReplayError::Record("no row was answered".to_owned()))?;
        Ok(RowAnswer::from(&**answer))
    }
}
