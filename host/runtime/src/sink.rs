//! Where a watch stream ends: a synchronous index with one writer.

/// Receives the objects of one watch, in order, from one task.
///
/// Implementations update their index and mark what became dirty; they never await and make no request.
pub trait Sink<T>: Send + Sync + 'static {
    /// An object was added or changed.
    fn apply(&self, object: T);
    /// An object was deleted; `object` is its last state.
    fn delete(&self, object: T);
    /// The complete list after the stream was (re)started. What is missing from it has vanished.
    fn reset(&self, all: Vec<T>);
    /// The server refuses to tell; it is asked again.
    fn denied(&self, _: Denial) {}
}

/// Why a server tells nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial {
    /// It does not accept the credentials (401).
    Unauthorized,
    /// The role does not allow it (403).
    Forbidden,
}
