//! The standard condition of custom resource statuses, and the types and reasons used on the two kinds.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One observed aspect of an object's state, in the form every Kubernetes tool understands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// When the status last changed.
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// For humans; may be empty.
    #[schemars(length(max = 32768))]
    pub message: String,
    /// Generation of the spec this condition was computed from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub observed_generation: Option<i64>,
    /// Why, in UpperCamelCase, for programs.
    #[schemars(length(min = 1, max = 1024), regex(pattern = r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"))]
    pub reason: String,
    /// `True`, `False` or `Unknown`.
    #[schemars(extend("enum" = ["True", "False", "Unknown"]))]
    pub status: String,
    /// Which aspect, in CamelCase.
    #[serde(rename = "type")]
    #[schemars(
        length(max = 316),
        regex(
            pattern = r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])$"
        )
    )]
    pub type_: String,
}

impl Condition {
    /// Whether `other` says the same, whenever it was said. Writers skip conditions that do (API section 8).
    pub fn says_the_same_as(&self, other: &Self) -> bool {
        self.type_ == other.type_
            && self.status == other.status
            && self.reason == other.reason
            && self.message == other.message
            && self.observed_generation == other.observed_generation
    }
}

/// Condition types of a ResourceLeasingPolicy (PO-1502, API-204).
pub mod policy_type {
    /// The spec is well-formed.
    pub const VALID: &str = "Valid";
    /// Inside the time windows at this moment.
    pub const ACTIVE: &str = "Active";
    /// At least one node is leased under this policy.
    pub const APPLIED: &str = "Applied";
    /// All enforcing entries of `spec.policies` run.
    pub const POLICIES_READY: &str = "PoliciesReady";
    /// An entry answers from old results for more than an hour.
    pub const POLICIES_STALE: &str = "PoliciesStale";
    /// Every module is pinned by digest.
    pub const PINNED: &str = "Pinned";
}

/// Condition types of a ClusterBinding (API-106, API-802). The last two are the Syncer's, the others the Manager's.
pub mod binding_type {
    /// The binding leases.
    pub const READY: &str = "Ready";
    /// The worker's API answers.
    pub const CONNECTED: &str = "Connected";
    /// The Syncer of the binding runs.
    pub const SYNCER_READY: &str = "SyncerReady";
    /// The Proxier of the binding runs.
    pub const PROXIER_READY: &str = "ProxierReady";
    /// On its way to `Ready`; present only while True.
    pub const RECONCILING: &str = "Reconciling";
    /// Somebody must act; present only while True.
    pub const STALLED: &str = "Stalled";
    /// The spec can be served.
    pub const SPEC_VALID: &str = "SpecValid";
    /// The worker accepts the kubeconfig and grants what is needed.
    pub const CREDENTIALS_VALID: &str = "CredentialsValid";
    /// Deletion is in progress; present only while True.
    pub const TERMINATING: &str = "Terminating";
    /// Summary over all policies of the binding.
    pub const POLICIES_RESOLVED: &str = "PoliciesResolved";
    /// Progress of the Syncer's share in deletion.
    pub const SYNCER_CLEANUP: &str = "SyncerCleanup";
}

/// Values of a binding's `status.phase`.
pub mod phase {
    /// On its way.
    pub const PENDING: &str = "Pending";
    /// Condition `Ready` is True.
    pub const READY: &str = "Ready";
    /// Somebody must act.
    pub const FAILED: &str = "Failed";
}
