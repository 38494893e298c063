//! Messages for the operator. In: level and text; out: the host's log, or standard error in native tests. Called by
//! policies and by the panic hook. Invariant: logging never influences an answer.

use crate::bindings::host;

/// Severity of a log line. The host shows `Warn` and above by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Every detail.
    Trace,
    /// Why something was decided.
    Debug,
    /// What happened.
    Info,
    /// Settings that work but are probably not meant so.
    Warn,
    /// The policy cannot do its work.
    Error,
}

/// Writes one line to the host's log: at most 32 lines per call and 512 bytes per line, the rest is dropped.
pub fn log(level: Level, message: &str) {
    let wire = match level {
        Level::Trace => host::Level::Trace,
        Level::Debug => host::Level::Debug,
        Level::Info => host::Level::Info,
        Level::Warn => host::Level::Warn,
        Level::Error => host::Level::Error,
    };
    write(wire, message);
}

#[cfg(target_arch = "wasm32")]
fn write(level: host::Level, message: &str) {
    host::log(level, message);
}

#[cfg(not(target_arch = "wasm32"))]
fn write(level: host::Level, message: &str) {
    eprintln!("policy log {level:?}: {message}");
}

/// Sends the text of a panic to the host before the panic becomes a trap (PO-304).
#[cfg(target_arch = "wasm32")]
pub(crate) fn report_panics() {
    std::panic::set_hook(Box::new(|panic| log(Level::Error, &panic.to_string())));
}

/// Natively the test runner reports panics.
#[cfg(not(target_arch = "wasm32"))]
pub(crate) fn report_panics() {}
