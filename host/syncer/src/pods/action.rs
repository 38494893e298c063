//! The writes and live reads a pod plan may ask for.
//!
//! An action is one request, or few that belong together, carries its preconditions, and is idempotent. The same value
//! feeds tests, logs and dry runs.

use std::fmt;

use jiff::Timestamp;
use kubeocean_api::name::ObjectKey;
use serde::Serialize;

use super::{
    admission::Denial,
    metadata::MetadataChange,
    ownership::{Owned, as_text},
    status::StatusFields,
};

/// One step, in the order of the plan.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum PodAction {
    /// Read the vpod, to be sure that it does not exist before its ppod is deleted.
    ConfirmVpodGone,
    /// Read the ppod, to be sure that it does not exist before its vpod is failed or removed.
    ConfirmPpodGone,
    /// Read the ppod's status again.
    ReadPpod {
        /// The ppod.
        #[serde(serialize_with = "as_text")]
        ppod: ObjectKey,
    },
    /// Read the ppod, to be sure that it still waits for a node before its vpod is given up.
    ConfirmUnscheduled {
        /// The ppod.
        ppod: Owned,
    },
    /// Record on the vpod where its ppod will be (TD-501), before the ppod exists (TD-503).
    WriteMapping {
        /// UID of the vpod.
        uid: Box<str>,
        /// Version the decision was made on.
        resource_version: Box<str>,
        /// The ppod to be.
        #[serde(serialize_with = "as_text")]
        ppod: ObjectKey,
        /// Whether a ppod UID that nobody recorded is removed.
        clear_uid: bool,
    },
    /// Create the copies of what the vpod refers to, then the ppod (TD-505).
    CreatePpod {
        /// UID of the vpod.
        uid: Box<str>,
        /// Worker node the vnode stands for.
        worker_node: Box<str>,
    },
    /// Make a ppod follow its vpod (TD-801, TD-802), stamping it if it has no stamp yet.
    PatchPpod {
        /// The ppod.
        ppod: Owned,
        /// Labels and annotations.
        change: MetadataChange,
        /// `spec.activeDeadlineSeconds`, when it differs.
        #[serde(skip_serializing_if = "Option::is_none")]
        active_deadline_seconds: Option<i64>,
    },
    /// Start debug containers in the ppod that the vpod has got (TD-803).
    AddEphemeralContainers {
        /// The ppod.
        ppod: Owned,
        /// Names of the containers.
        names: Vec<Box<str>>,
    },
    /// Bring images, tolerations and resources that changed down to the ppod (TD-808).
    FollowSpec {
        /// UID of the vpod.
        uid: Box<str>,
        /// The ppod.
        ppod: Owned,
        /// What was brought down last.
        expected: Box<str>,
    },
    /// Write what the ppod reports to the vpod (BU-1502).
    PatchVpod {
        /// UID of the vpod.
        uid: Box<str>,
        /// Version the difference was computed against.
        resource_version: Box<str>,
        /// Status fields.
        status: StatusFields,
        /// Labels and annotations.
        change: MetadataChange,
    },
    /// End a vpod whose ppod is lost or given up (TD-804, TD-805).
    FailVpod {
        /// UID of the vpod.
        uid: Box<str>,
        /// For the status and the event.
        message: String,
        /// Reason of the event, if there is one.
        event: Option<&'static str>,
    },
    /// Delete a ppod.
    DeletePpod {
        /// The ppod.
        ppod: Owned,
        /// Grace period; `None` leaves the ppod's own.
        #[serde(skip_serializing_if = "Option::is_none")]
        grace_seconds: Option<i64>,
        /// For logs.
        why: DeleteReason,
    },
    /// Delete the token Secrets of a ppod that is gone (TD-901). No request when there are none.
    ReleaseTokens {
        /// UID of the vpod.
        uid: Box<str>,
    },
    /// Complete the deletion of a vpod: the Syncer is its kubelet (TD-902).
    FinishVpod {
        /// UID of the vpod.
        uid: Box<str>,
    },
    /// Tell users what is in the way.
    Refuse(Refusal),
    /// Tell users that policies do not admit the pod, or that they do now.
    TellAdmission(Option<Denial>),
}

impl PodAction {
    /// Whether the actions behind it in a plan do not need it.
    pub(super) fn stands_alone(&self) -> bool {
        matches!(self, Self::PatchPpod { .. } | Self::AddEphemeralContainers { .. } | Self::FollowSpec { .. })
    }
}

/// Why a ppod is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum DeleteReason {
    /// Its vpod is being deleted.
    VpodDeleting,
    /// Its vpod does not exist any more.
    VpodGone,
    /// It was made for an earlier vpod of this name.
    Stale,
    /// It is not where the copy of its vpod belongs.
    Misplaced,
    /// The worker's scheduler found no place in time.
    Unschedulable,
    /// Its vpod has ended.
    VpodEnded,
}

/// Why there is no ppod yet, in the terms of condition `WorkerPodCreated` (API-809).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Reason of the condition.
    pub reason: RefusalReason,
    /// What is wrong and what would help, for the pod's owner, who may not see the worker cluster.
    pub message: String,
    /// The particulars, for the log of the Syncer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub particulars: Option<String>,
}

impl Refusal {
    /// A refusal of which there is no more to say.
    pub(super) fn new(reason: RefusalReason, message: impl fmt::Display) -> Self {
        Self { reason, message: message.to_string(), particulars: None }
    }

    /// The same, with what only the log shows.
    pub(super) fn particulars(self, particulars: impl Into<String>) -> Self {
        Self { particulars: Some(particulars.into()), ..self }
    }
}

/// Reasons of condition `WorkerPodCreated=False`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum RefusalReason {
    /// The worker's API server refused the ppod.
    Rejected,
    /// The pod uses a feature that is not mapped.
    NotSupported,
    /// Something the pod refers to is missing.
    DependencyMissing,
    /// Another owner has an object of the name.
    NameConflict,
}

impl RefusalReason {
    /// As the condition shows it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Rejected => "Rejected",
            Self::NotSupported => "NotSupported",
            Self::DependencyMissing => "DependencyMissing",
            Self::NameConflict => "NameConflict",
        }
    }
}

/// When a key is looked at again without an event.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub enum Wake {
    /// An event will come.
    #[default]
    OnEvent,
    /// At this time at the latest.
    At(Timestamp),
    /// After a growing delay: something outside of any watch must change.
    Backoff,
}

/// What to do for one pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PodPlan {
    /// Steps in execution order. Every prefix leaves a state from which the next plan goes on.
    pub actions: Vec<PodAction>,
    /// When to come back if there are no steps.
    pub wake: Wake,
    /// Whether the vpod shows the ppod's status as it is now, so that the latter may be dropped.
    pub mirrored: bool,
}

impl fmt::Display for PodAction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ConfirmVpodGone => f.write_str("confirm that the vpod is gone"),
            Self::ConfirmPpodGone => f.write_str("confirm that the ppod is gone"),
            Self::ReadPpod { ppod } => write!(f, "read ppod {ppod}"),
            Self::ConfirmUnscheduled { ppod } => write!(f, "confirm that ppod {} has no node", ppod.key()),
            Self::WriteMapping { ppod, .. } => write!(f, "map to ppod {ppod}"),
            Self::CreatePpod { worker_node, .. } => write!(f, "create the ppod on worker node {worker_node}"),
            Self::PatchPpod { ppod, .. } => write!(f, "update ppod {}", ppod.key()),
            Self::AddEphemeralContainers { ppod, names } => {
                write!(f, "start debug containers {} in ppod {}", names.join(", "), ppod.key())
            }
            Self::FollowSpec { ppod, .. } => write!(f, "change the spec of ppod {}", ppod.key()),
            Self::PatchVpod { status, .. } => {
                write!(f, "report {}", status.keys().map(String::as_str).collect::<Vec<_>>().join(", "))
            }
            // The message may quote the worker's scheduler.
            Self::FailVpod { .. } => f.write_str("fail the vpod"),
            Self::DeletePpod { ppod, why, .. } => write!(f, "delete ppod {}: {why:?}", ppod.key()),
            Self::ReleaseTokens { .. } => f.write_str("delete the token Secrets"),
            Self::FinishVpod { .. } => f.write_str("finish the vpod's deletion"),
            Self::TellAdmission(None) => f.write_str("tell that the pod is admitted"),
            Self::TellAdmission(Some(denial)) => write!(f, "deny: {}", denial.code),
            Self::Refuse(refusal) => write!(f, "refuse: {}", refusal.reason.as_str()),
        }
    }
}
