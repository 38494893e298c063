//! The engine with real modules: the built-in ones, and hand-made ones that misbehave in one way each.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests")]
#![allow(clippy::wildcard_imports, reason = "the support module is the prelude of these tests")]

mod architectures;
mod builtins;
mod frozen;
mod fuel;
mod fuzz;
mod guest_log;
mod hostile;
mod legacy_table;
mod on_error;
mod pinning;
mod place;
mod property;
mod quarantine;
mod shape;
mod support;
mod swap;
mod week;
