//! What a host says about its policies and entries: the material of `status`, conditions, events and metrics.

use jiff::Timestamp;
use kubeocean_api::policy::{AuditStatus, PolicyEntryStatus};

use crate::entry::counters::EntryCounters;
use crate::entry::slot::EntryState;
use crate::legacy::{Decision, Enforcement};

/// Samples of an Audit entry that are shown (PO-711).
pub(crate) const AUDIT_SAMPLES: usize = 5;

/// One policy.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyStatus {
    /// Its name.
    pub name: String,
    /// Generation of the spec this speaks about.
    pub generation: i64,
    /// Legacy fields and time zone (PO-526); the text is that of condition `Valid` after its prefix.
    pub valid: Result<(), String>,
    /// Resources with an explicit zero (PO-513).
    pub zero_limits: Vec<String>,
    /// All time-windows entries offer now (PO-544).
    pub active: bool,
    /// First unix second at which `active` may change.
    pub next_change: Option<i64>,
    /// Name of the zone in use.
    pub zone: String,
    /// One per item of `spec.policies`, in its order.
    pub entries: Vec<EntryStatus>,
    /// Every entry is pinned by a digest (PO-706).
    pub pinned: bool,
    /// An answer older than an hour stands for a new one (PO-804).
    pub stale: bool,
}

impl PolicyStatus {
    /// Enforce entries that do not run as wanted, for condition `PoliciesReady`.
    pub fn not_ready(&self) -> impl Iterator<Item = &EntryStatus> {
        self.entries
            .iter()
            .filter(|entry| entry.enforcement == Enforcement::Enforce && entry.state != EntryState::Active)
    }
}

/// One entry (PO-711).
#[derive(Clone, Debug, PartialEq)]
pub struct EntryStatus {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: EntryState,
    /// Name the running module gives itself.
    pub module: Option<String>,
    /// Version the running module gives itself.
    pub version: Option<String>,
    /// Digest of the running module.
    pub digest: Option<String>,
    /// Digest of the wanted module, when another one runs.
    pub desired_digest: Option<String>,
    /// Decisions it is used for.
    pub decisions: Vec<Decision>,
    /// Whether it counts.
    pub enforcement: Enforcement,
    /// `<code>: <text>` and when.
    pub last_error: Option<(String, Timestamp)>,
    /// Number of nodes an Audit entry would change, and some of the changes.
    pub audit: Option<(usize, Vec<String>)>,
    /// Its numbers.
    pub counters: EntryCounters,
}

impl EntryStatus {
    /// The wire form in `status.policies`.
    pub fn to_wire(&self) -> PolicyEntryStatus {
        let count = |n: u64| Some(i64::try_from(n).unwrap_or(i64::MAX));
        let enforcement = match self.enforcement {
            Enforcement::Enforce => "Enforce",
            Enforcement::Audit => "Audit",
        };
        PolicyEntryStatus {
            name: self.name.clone(),
            state: Some(self.state.as_str().to_owned()),
            module: self.module.clone(),
            version: self.version.clone(),
            digest: self.digest.clone(),
            desired_digest: self.desired_digest.clone(),
            decisions: self.decisions.iter().map(ToString::to_string).collect(),
            enforcement: Some(enforcement.to_owned()),
            evaluations: count(self.counters.evaluations()),
            errors: count(self.counters.errors),
            last_error: self.last_error.as_ref().map(|(text, _)| text.clone()),
            last_error_time: self.last_error.as_ref().map(|(_, at)| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            audit: self.audit.as_ref().map(|(nodes, sample)| AuditStatus {
                nodes_affected: i32::try_from(*nodes).unwrap_or(i32::MAX),
                sample: sample.clone(),
            }),
        }
    }
}

/// Numbers of one entry with its label `<policy>/<entry>`, for metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryMetrics {
    /// `<policy>/<entry>`.
    pub entry: String,
    /// Its state.
    pub state: EntryState,
    /// Its numbers.
    pub counters: EntryCounters,
}
