//! The built-in policies a second time, as plain Rust without the SDK.
//!
//! In: settings as JSON and the facts of one node; out: the answer. Used by property tests (built-in = twin) and as the
//! "native" baseline of the engine's benches. Written from the specification and deliberately in another way than the
//! modules: time windows are decided minute by minute, quantities by long arithmetic on the text. Settings are expected
//! to be valid.

mod amount;
mod cpu_percentage;
mod node_labels;
mod time_windows;

pub use cpu_percentage::{CpuPercentageTwin, cpu_percentage};
pub use node_labels::{NodeLabelsTwin, node_labels};
pub use time_windows::{Clock, TimeVerdict, TimeWindowsTwin, time_windows};
