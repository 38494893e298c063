//! The life of pods and of what they refer to (TD section 16).

mod picture;
pub(crate) mod scenario;
