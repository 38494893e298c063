//! What the worker cluster says about a ppod appears on its vpod (TD-1704 ff.), so that `kubectl describe pod` answers
//! why it does not run.
//!
//! ```text
//! worker events --watch--> index by ppod --UID--> snapshot --> plan --> apply --> one event object per kind of news
//! ```
//!
//! "Why does this event stand there?" is answered by [`plan::plan`]; what of its words is changed by [`crate::pods::names`]; which
//! events are the same news by [`shape`]. Nothing is remembered outside of the two clusters: the name of an event on a
//! vpod follows from its content, so that a Syncer that starts again writes the same once more, which changes nothing.

pub mod apply;
pub mod index;
pub mod plan;
pub mod shape;
#[cfg(test)]
mod tests;
pub mod view;
pub mod watch;
