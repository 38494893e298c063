//! `host.log`, the only function a module may call. Rate limited and escaped; never influences a result.

use std::sync::Arc;

use super::bindings::host::{Host, Level};
use crate::text::printable;

/// Lines a call may log; the rest is dropped and counted.
const LINES_PER_CALL: u32 = 32;
/// Bytes of one line.
const LINE_BYTES: usize = 512;

/// Log state of one store.
#[derive(Debug)]
pub(crate) struct GuestLog {
    entry: Arc<str>,
    lines: u32,
    dropped: u64,
    last: Option<String>,
}

impl GuestLog {
    pub(crate) fn new(entry: Arc<str>) -> Self {
        Self { entry, lines: 0, dropped: 0, last: None }
    }

    /// A new call begins: it may log [`LINES_PER_CALL`] lines again.
    pub(crate) fn start_call(&mut self) {
        self.lines = 0;
        self.last = None;
    }

    /// Lines dropped since the store was made.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Last error line of this call: the panic text of a guest that then trapped.
    pub(crate) fn last_error(&mut self) -> Option<String> {
        self.last.take()
    }
}

impl Host for GuestLog {
    fn log(&mut self, level: Level, message: String) {
        if self.lines >= LINES_PER_CALL {
            self.dropped += 1;
            return;
        }
        self.lines += 1;
        let text = printable(&message, LINE_BYTES);
        let entry = &*self.entry;
        match level {
            Level::Trace => {
                tracing::trace!(target: "kubeocean::policy", entry, policy.message = %text, "guest");
            }
            Level::Debug => {
                tracing::debug!(target: "kubeocean::policy", entry, policy.message = %text, "guest");
            }
            Level::Info => {
                tracing::info!(target: "kubeocean::policy", entry, policy.message = %text, "guest");
            }
            Level::Warn => {
                tracing::warn!(target: "kubeocean::policy", entry, policy.message = %text, "guest");
            }
            Level::Error => {
                tracing::error!(target: "kubeocean::policy", entry, policy.message = %text, "guest");
                self.last = Some(text);
            }
        }
    }
}
