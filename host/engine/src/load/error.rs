//! Why an entry does not run, by the step that failed (PO-703).

use serde::{Deserialize, Serialize};

use crate::fault::{CallError, FaultKind};

/// Step at which loading failed. The names are part of the interface: they appear in `lastError`, conditions,
/// events and metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LoadCode {
    /// No such built-in, ConfigMap, key, file or manifest.
    ModuleNotFound,
    /// The source could not be read; retried by whoever fetches.
    FetchFailed,
    /// The source may not be read.
    FetchForbidden,
    /// The module is over the size limit.
    TooLarge,
    /// The bytes are not the ones the policy names, or it names none where it must (PO-706).
    DigestMismatch,
    /// No valid signature where one is required.
    SignatureRejected,
    /// The bytes are no component and cannot be made one.
    NotAPolicy,
    /// Imports or exports do not fit the interface.
    WrongWorld,
    /// Validation or translation to machine code failed.
    CompileFailed,
    /// `describe` failed.
    DescribeFailed,
    /// The settings schema is no acceptable schema.
    SchemaInvalid,
    /// The settings do not fit the schema or a limit.
    SettingsInvalid,
    /// `create` refused the settings.
    SettingsRejected,
    /// `needs` names a fact this host does not have.
    UnknownFact,
    /// The trial call failed.
    TrialFailed,
    /// Two trial calls disagreed.
    NotPure,
    /// More entries than a process or a policy may have.
    TooManyPolicies,
}

impl LoadCode {
    /// The exact name.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ModuleNotFound => "ModuleNotFound",
            Self::FetchFailed => "FetchFailed",
            Self::FetchForbidden => "FetchForbidden",
            Self::TooLarge => "TooLarge",
            Self::DigestMismatch => "DigestMismatch",
            Self::SignatureRejected => "SignatureRejected",
            Self::NotAPolicy => "NotAPolicy",
            Self::WrongWorld => "WrongWorld",
            Self::CompileFailed => "CompileFailed",
            Self::DescribeFailed => "DescribeFailed",
            Self::SchemaInvalid => "SchemaInvalid",
            Self::SettingsInvalid => "SettingsInvalid",
            Self::SettingsRejected => "SettingsRejected",
            Self::UnknownFact => "UnknownFact",
            Self::TrialFailed => "TrialFailed",
            Self::NotPure => "NotPure",
            Self::TooManyPolicies => "TooManyPolicies",
        }
    }

    /// A step of fetching, which whoever fetches goes on trying (PO-705).
    pub const fn is_fetch(self) -> bool {
        matches!(self, Self::ModuleNotFound | Self::FetchFailed | Self::FetchForbidden)
    }
}

impl std::fmt::Display for LoadCode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Bytes of `lastError` (PO-711).
const MESSAGE_BYTES: usize = 960;

/// A failed load step with one bounded line for people.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct LoadError {
    /// The step.
    pub code: LoadCode,
    /// What was wrong.
    pub message: String,
    /// It may pass by itself and is tried again, so the entry stays `Loading` (PO-1502): a fetch, or a machine that was
    /// too busy. Every other failure is final for these bytes and settings.
    pub passing: bool,
}

impl LoadError {
    /// An error of `code`; the message is cut and made one line.
    pub fn new(code: LoadCode, message: &str) -> Self {
        Self { code, message: crate::text::printable(message, MESSAGE_BYTES), passing: code.is_fetch() }
    }

    /// The same, but the machine and not the module may be the cause.
    pub(crate) fn passing(self) -> Self {
        Self { passing: true, ..self }
    }

    /// The same, but nobody tries again.
    pub(crate) fn lasting(self) -> Self {
        Self { passing: false, ..self }
    }

    /// A guest failed in this step. On a machine without time every guest may run into its time limit.
    pub(crate) fn of_guest(code: LoadCode, error: &CallError) -> Self {
        let failed = Self::new(code, &error.to_string());
        match error {
            CallError::Fault(fault) if fault.kind == FaultKind::Timeout => failed.passing(),
            CallError::Fault(_) | CallError::Policy(_) => failed,
        }
    }
}
