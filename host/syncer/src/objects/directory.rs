//! What the objects need to know from the pods: who uses them, who still runs, and how to wake who waits.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use kubeocean_api::name::ObjectKey;

use super::kind::ObjectRef;
use crate::pods::vpod_identity::VpodIdentity;

/// Implemented by the store of pods. Methods are synchronous and cheap: they look into an index.
pub trait PodDirectory: Send + Sync {
    /// Whether a vpod that this binding runs, or is about to run, refers to the object.
    fn uses(&self, object: &ObjectRef) -> bool;
    /// The vpods that use the object in that sense, at most `limit`.
    fn users(&self, object: &ObjectRef, limit: usize) -> Vec<VpodIdentity>;
    /// Whether this binding knows a vpod of that name and UID that has not ended.
    fn runs(&self, pod: &ObjectKey, uid: &str) -> bool;
    /// The same, and on a vnode of this binding. The name of a node does not tell: that of another binding may begin alike.
    /// Whoever knows no vnodes takes it for one of ours.
    fn serves(&self, pod: &ObjectKey, uid: &str) -> bool {
        self.runs(pod, uid)
    }
    /// Whether a ppod of exactly this vpod is known in the worker cluster.
    fn has_copy(&self, pod: &VpodIdentity) -> bool;
    /// Brings vpods back to their queue.
    fn wake(&self, pods: Vec<ObjectKey>);
}

/// The directory once it is connected. Before that every object counts as used and every pod as running, so nothing is
/// ever removed for lack of knowledge.
#[derive(Clone, Default)]
pub struct Pods(Arc<OnceLock<Arc<dyn PodDirectory>>>);

impl Pods {
    /// Connects the directory; later calls change nothing.
    pub fn connect(&self, directory: Arc<dyn PodDirectory>) {
        let _ = self.0.set(directory);
    }

    /// See [`PodDirectory::uses`].
    pub fn uses(&self, object: &ObjectRef) -> bool {
        self.0.get().is_none_or(|pods| pods.uses(object))
    }

    /// See [`PodDirectory::users`].
    pub fn users(&self, object: &ObjectRef, limit: usize) -> Vec<VpodIdentity> {
        self.0.get().map(|pods| pods.users(object, limit)).unwrap_or_default()
    }

    /// See [`PodDirectory::runs`].
    pub fn runs(&self, pod: &ObjectKey, uid: &str) -> bool {
        self.0.get().is_none_or(|pods| pods.runs(pod, uid))
    }

    /// See [`PodDirectory::serves`].
    pub fn serves(&self, pod: &ObjectKey, uid: &str) -> bool {
        self.0.get().is_none_or(|pods| pods.serves(pod, uid))
    }

    /// See [`PodDirectory::has_copy`].
    pub fn has_copy(&self, pod: &VpodIdentity) -> bool {
        self.0.get().is_none_or(|pods| pods.has_copy(pod))
    }

    /// See [`PodDirectory::wake`].
    pub fn wake(&self, pods: Vec<ObjectKey>) {
        if let Some(directory) = self.0.get().filter(|_| !pods.is_empty()) {
            directory.wake(pods);
        }
    }
}

impl fmt::Debug for Pods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pods").field("connected", &self.0.get().is_some()).finish()
    }
}

/// A directory for tests of whatever wakes pods: all are used and running, and it remembers who was woken.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Woken(pub(crate) parking_lot::Mutex<Vec<ObjectKey>>);

#[cfg(test)]
impl PodDirectory for Woken {
    fn uses(&self, _: &ObjectRef) -> bool {
        true
    }
    fn users(&self, _: &ObjectRef, _: usize) -> Vec<VpodIdentity> {
        Vec::new()
    }
    fn runs(&self, _: &ObjectKey, _: &str) -> bool {
        true
    }
    fn has_copy(&self, _: &VpodIdentity) -> bool {
        true
    }
    fn wake(&self, pods: Vec<ObjectKey>) {
        self.0.lock().extend(pods);
    }
}
