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
    /// The server refuses to tell (401, 403); it is asked again.
    fn denied(&self) {}
}
