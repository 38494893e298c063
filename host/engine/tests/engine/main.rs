//! The engine with real modules: the built-in ones, and hand-made ones that misbehave in one way each.

mod builtins;
mod guest;
mod hostile;
mod legacy_table;
mod on_error;
mod property;
mod support;
mod swap;
