//! Loads, checks, runs and composes policy modules: WebAssembly components that decide what of a node is leased
//! and which pods may go there.
//!
//! ```text
//! PolicySpec ─► from_legacy / entries ─► load (fetch .. trial) ─► Running ─┐
//! NodeFacts ──► project ─► memo ─► guest (fresh instance) ─► Answer ───────┴─► compose ─► NodeDecision
//! ```
//!
//! In: policies, module bytes, node facts and an instant. Out: decisions and status. Callers: the Syncer, the CLI,
//! benches. The engine knows no Kubernetes client and no async runtime: calls block, guest code runs on a few
//! threads of its own. Invariants: a module sees only facts it declared; the same facts give the same answer; no
//! module can take the process, another entry or a pod with it.

mod answer;
mod assemble;
mod behind;
mod civil;
mod clock;
mod compose;
mod config;
mod cost;
mod decide;
mod engine;
mod entry;
mod facts;
mod fault;
mod finish;
mod frame;
mod host;
mod inspect;
mod legacy;
mod load;
mod module;
mod node_set;
mod numbers;
mod pipeline;
mod place;
mod pool;
mod producers;
mod record;
mod replay;
mod status;
mod text;
mod wasm;

pub use answer::{EntryVerdict, Reason, Reclaim};
pub use civil::zone_name;
pub use compose::{DecisionReason, NodeDecision, Standing, Step, Verdict};
pub use config::{
    CompileMode, DEFAULT_MAX_MODULE_BYTES, EngineConfig, EngineError, LEASE_ROWS, MAX_ENTRIES,
    MAX_EVALUATORS, MAX_MODULE_BYTES, PLACE_ROWS,
};
pub use cost::UnitCost;
pub use decide::Explanation;
pub use engine::Engine;
pub use entry::counters::{DURATION_BUCKETS_US, EntryCounters};
pub use entry::slot::EntryState;
pub use facts::{BindingFacts, NodeFacts, Published};
pub use fault::{Fault, FaultKind};
pub use finish::finished_component;
pub use host::{FetchedModule, ModuleClaims, ModuleFetch, OnChange, PolicyHost, PolicySpec};
pub use inspect::ModuleOutline;
pub use legacy::{
    BINDING_SELECTOR, Decision, Enforcement, EntrySpec, LEGACY_NODE_SELECTOR, LEGACY_RESOURCE_LIMITS,
    LEGACY_TIME_WINDOWS, ModuleSource, OnError, from_binding_selector, from_entry, from_legacy,
};
pub use load::builtin::{BUILTINS, builtin};
pub use load::cache::module_digest;
pub use load::child::compile_child_main;
pub use load::error::{LoadCode, LoadError};
pub use load::settings::accepted_settings;
pub use module::{CallFailed, Frame, Module, ModuleDescription, ModuleLimits, OpenModule, RowAnswer, Rows};
pub use numbers::{COMPILE_BUCKETS_MS, EngineNumbers};
pub use place::answer::{Fit, Stage};
pub use place::compose::{PlaceReason, Placement};
pub use place::counters::PlaceCounters;
pub use place::explain::PlaceStep;
pub use place::facts::PodFacts;
pub use place::host::{PlaceNode, PlaceRequest};
pub use place::module::{OpenPlace, PlaceRowAnswer};
pub use place::record::PlaceRecord;
pub use record::{Record, Recorded, RecordedOffset};
pub use replay::ReplayError;
pub use status::{EntryMetrics, EntryStatus, PolicyStatus};
