//! What every concern of the Syncer shares: trimmed watches, the work queue, single requests with preconditions,
//! events, the clock. No decision about any object is made here.

pub mod clock;
pub mod error;
pub mod events;
pub mod meta;
pub mod queue;
pub mod request;
pub mod sink;
pub mod watch;
