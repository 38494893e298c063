//! What a host says about its policies and entries: the material of `status`, conditions, events and metrics.

use jiff::Timestamp;
use kubeocean_api::policy::{AuditStatus, PolicyEntryStatus};

use crate::answer::EntryVerdict;
use crate::civil::{civil_now, zone_name};
use crate::entry::counters::EntryCounters;
use crate::entry::evaluate::Instant;
use crate::entry::nodeless::answer_without_node;
use crate::entry::slot::{EntryState, Slot};
use crate::legacy::{
    Decision, Enforcement, LEGACY_NODE_SELECTOR, LEGACY_RESOURCE_LIMITS, LEGACY_TIME_WINDOWS,
};
use crate::load::error::LoadError;
use crate::pipeline::{Entry, Policy, Role};
use crate::wasm::unit::Description;

/// Samples of an Audit entry that are shown (PO-711).
const AUDIT_SAMPLES: usize = 5;

/// One policy.
#[derive(Clone, Debug, PartialEq)]
pub struct PolicyStatus {
    /// Its name.
    pub name: String,
    /// UID of the object this speaks about.
    pub uid: String,
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
    /// Every module that does not come with the program is named by its digest (PO-706).
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
    /// Why the wanted version does not run.
    pub failure: Option<LoadError>,
    /// `<code>: <text>` of the last error of any kind, and when.
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
            errors: count(self.counters.rows_without_answer()),
            last_error: self.last_error.as_ref().map(|(text, _)| text.clone()),
            last_error_time: self
                .last_error
                .as_ref()
                .map(|(_, at)| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
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

/// Status of one policy; may call time-windows modules.
pub(crate) fn policy_status(policy: &Policy, now: Timestamp) -> PolicyStatus {
    let at = Instant { at: now, civil: civil_now(now, &policy.zone) };
    let (mut active, mut next_change) = (policy.invalid.is_none(), None);
    for entry in policy.enforce.iter().filter(|e| e.role == Role::TimeWindows && policy.invalid.is_none()) {
        let running = entry.slot.running();
        match running.and_then(|running| answer_without_node(&running, &policy.facts, &at)) {
            Some(answer) => {
                active &= answer.verdict == EntryVerdict::Offer;
                next_change = [next_change, answer.valid_until].into_iter().flatten().min();
            }
            None => active = false,
        }
    }
    let slots = || policy.enforce.iter().map(|entry| &entry.slot);
    PolicyStatus {
        name: policy.name.clone(),
        uid: policy.uid.clone(),
        generation: policy.generation,
        valid: match policy.invalid.clone().or_else(|| legacy_failure(policy)) {
            Some(error) => Err(error),
            None => Ok(()),
        },
        zero_limits: policy.zero_limits.clone(),
        active,
        next_change,
        zone: zone_name(&policy.zone, now),
        entries: policy.listed.iter().map(entry_status).collect(),
        pinned: policy.pinned,
        stale: slots().any(|slot| slot.known.lock().is_stale(at.unix())),
    }
}

/// Legacy fields a built-in module refuses although they passed validation: the user knows them by their own names.
fn legacy_failure(policy: &Policy) -> Option<String> {
    const FIELDS: [(&str, &str); 3] = [
        (LEGACY_NODE_SELECTOR, "nodeSelector"),
        (LEGACY_TIME_WINDOWS, "timeWindows"),
        (LEGACY_RESOURCE_LIMITS, "resourceLimits"),
    ];
    policy.enforce.iter().find_map(|entry| {
        let (_, field) = FIELDS.iter().find(|(name, _)| *name == entry.spec.name)?;
        let failure = entry.slot.failure().filter(|failure| !failure.passing)?;
        Some(format!("{field}: {failure}"))
    })
}

fn entry_status(entry: &Entry) -> EntryStatus {
    let slot = &entry.slot;
    let running = slot.running();
    let digest = running.as_ref().map(|running| running.digest.to_string());
    let described = |part: fn(&Description) -> &String| {
        running.as_ref().map(|running| part(&running.description).clone())
    };
    let audit = (entry.spec.enforcement == Enforcement::Audit).then(|| {
        let (lease, place) = (slot.audit.lock(), slot.place_audit.lock());
        let nodes = lease.len() + place.keys().filter(|node| !lease.contains_key(*node)).count();
        (nodes, lease.values().chain(place.values()).take(AUDIT_SAMPLES).cloned().collect())
    });
    let decisions = running.as_ref().map(|running| {
        [(running.lease, Decision::Lease), (running.place, Decision::Place)]
            .into_iter()
            .filter(|(has, _)| *has)
            .map(|(_, decision)| decision)
            .collect()
    });
    EntryStatus {
        name: entry.spec.name.clone(),
        state: slot.state(),
        module: described(|d| &d.name),
        version: described(|d| &d.version),
        desired_digest: slot.wanted_digest().filter(|wanted| digest.as_ref() != Some(wanted)),
        digest,
        decisions: decisions.unwrap_or_default(),
        enforcement: entry.spec.enforcement,
        failure: slot.failure(),
        last_error: slot.last_error(),
        audit,
        counters: counters_of(slot),
    }
}

/// Numbers of one entry.
pub(crate) fn counters_of(slot: &Slot) -> EntryCounters {
    let mut counters = slot.counters.snapshot();
    counters.load_failures = slot.load_failures();
    counters.log_dropped = slot.running().map_or(0, |running| running.dropped_lines());
    counters
}
