//! The immutable picture all decisions of one moment use: policies in order, their entries, their zones.
//!
//! In: policy specs. Out: [`Pipelines`], swapped as a whole. Invariant: policies are ordered by creation time, then
//! name (PO-541), entries by PO-542.

use std::sync::Arc;

use jiff::tz::TimeZone;

use crate::entry::slot::Slot;
use crate::facts::PolicyFacts;
use crate::legacy::{Decision, EntrySpec, OnError};

/// What an entry is beside an ordinary one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Ordinary,
    /// Decides which nodes a policy covers, for "shadowed" (API, *Do better* of section 2).
    Selector,
    /// Says whether the policy is active now (PO-544).
    TimeWindows,
}

/// One entry with the options that apply at once.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) spec: EntrySpec,
    pub(crate) role: Role,
    pub(crate) slot: Arc<Slot>,
}

impl Entry {
    pub(crate) fn on_error(&self) -> OnError {
        self.spec.on_error
    }

    /// It runs code from elsewhere that has not shown lately that it answers about this in time.
    pub(crate) fn may_take_long(&self, decision: Decision, now: i64) -> bool {
        self.slot.running().is_some_and(|running| {
            let unproven = match decision {
                Decision::Lease => running.lease && !running.lease_health.lock().is_proven(now),
                Decision::Place => running.place && !running.place_health.lock().is_proven(now),
            };
            unproven && !running.digest.is_builtin()
        })
    }
}

/// One policy.
#[derive(Clone, Debug)]
pub(crate) struct Policy {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) generation: i64,
    pub(crate) facts: Arc<PolicyFacts>,
    pub(crate) zone: TimeZone,
    /// Message of PO-526 when the legacy fields are invalid.
    pub(crate) invalid: Option<String>,
    pub(crate) zero_limits: Vec<String>,
    /// Every entry names the bytes it runs by digest (PO-706).
    pub(crate) pinned: bool,
    pub(crate) enforce: Vec<Entry>,
    pub(crate) audit: Vec<Entry>,
    /// Items of `spec.policies` in their order, for status.
    pub(crate) listed: Vec<Entry>,
}

impl Policy {
    /// Its nodes are decided apart from those of other policies.
    pub(crate) fn may_take_long(&self, now: i64) -> bool {
        self.enforce.iter().chain(&self.audit).any(|entry| entry.may_take_long(Decision::Lease, now))
    }
}

/// All policies of a binding.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pipelines {
    pub(crate) binding_selector: Option<Entry>,
    pub(crate) policies: Vec<Arc<Policy>>,
}
