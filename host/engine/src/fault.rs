//! What goes wrong while guest code runs (PO-801), told apart by type as far as wasmtime has types for it.

use serde::{Deserialize, Serialize};

/// Kind of a fault. A fault destroys the instance and counts towards quarantine (PO-802).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum FaultKind {
    /// The guest executed a trap: panic, stack overflow, bad memory access.
    Trap,
    /// The guest ran longer than `timeoutMilliseconds`.
    Timeout,
    /// The guest wanted more memory or table space than allowed.
    Memory,
    /// The guest returned more data than a call may.
    Output,
    /// The guest returned something the interface forbids (PO-205).
    Invalid,
}

impl FaultKind {
    /// All kinds, in the order of [`crate::EntryCounters::faults`].
    pub const ALL: [Self; 5] = [Self::Trap, Self::Timeout, Self::Memory, Self::Output, Self::Invalid];

    /// The name used in `lastError`, conditions and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trap => "Trap",
            Self::Timeout => "Timeout",
            Self::Memory => "Memory",
            Self::Output => "Output",
            Self::Invalid => "Invalid",
        }
    }
}

impl std::fmt::Display for FaultKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One fault with its text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}: {message}")]
pub struct Fault {
    /// What kind.
    pub kind: FaultKind,
    /// One bounded line for people.
    pub message: String,
}

/// Why a call gave no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CallError {
    /// The instance is gone.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The module itself said `Err` (PO-206). One bounded line: made by [`Self::policy`] only.
    #[error("Err: {0}")]
    Policy(String),
}

/// Bytes of an error text that is kept.
const MESSAGE_BYTES: usize = 512;

impl CallError {
    /// The module's own `Err`. A text may have a megabyte and anything in it, and it is told for each node.
    #[expect(clippy::needless_pass_by_value, reason = "whoever maps an error hands it over")]
    pub(crate) fn policy(text: String) -> Self {
        Self::Policy(crate::text::printable(&text, MESSAGE_BYTES))
    }
}

impl Fault {
    pub(crate) fn new(kind: FaultKind, message: &str) -> Self {
        Self { kind, message: crate::text::printable(message, MESSAGE_BYTES) }
    }

    pub(crate) fn invalid(message: &str) -> Self {
        Self::new(FaultKind::Invalid, message)
    }

    /// Classifies a failed call. `memory_exceeded`: the store's limiter refused a growth.
    pub(crate) fn of_call(
        error: &wasmtime::Error,
        memory_exceeded: bool,
        panic_text: Option<String>,
    ) -> Self {
        if memory_exceeded {
            return Self::new(FaultKind::Memory, &error.root_cause().to_string());
        }
        if let Some(trap) = error.downcast_ref::<wasmtime::Trap>() {
            if *trap == wasmtime::Trap::Interrupt {
                return Self::new(FaultKind::Timeout, "the call took longer than its time limit");
            }
            return Self::new(FaultKind::Trap, &panic_text.unwrap_or_else(|| trap.to_string()));
        }
        let root = error.root_cause().to_string();
        // wasmtime keeps the type of this one error to itself, so its text is all there is to tell it by.
        let kind =
            if root.contains("fuel allocated for hostcalls") { FaultKind::Output } else { FaultKind::Trap };
        Self::new(kind, &root)
    }
}
