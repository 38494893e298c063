//! Whether pods use an object, by themselves or through others that need it, and which pods do.

use super::{ObjectRef, ObjectStore};
use crate::pods::vpod_identity::VpodIdentity;

/// Whether pods use an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::objects) enum Usage {
    /// They do not.
    Unused,
    /// Another object that is used may need it, but was not read since the Syncer started.
    Unknown,
    /// They do.
    Used,
}

impl ObjectStore {
    /// Whether pods use the object, by themselves or through others that need it.
    pub(in crate::objects) fn usage(&self, object: &ObjectRef) -> Usage {
        if self.pods.uses(object) {
            return Usage::Used;
        }
        // Both of one moment: an object that is read between two would be in neither.
        let (known, possible) = {
            let state = self.state.lock();
            let known = state.links.all_above(vec![object.clone()]);
            let possible = state.links.all_that_may_be_above(&known);
            (known, possible)
        };
        if known.iter().any(|it| self.pods.uses(it)) {
            Usage::Used
        } else if possible.iter().any(|it| self.pods.uses(it)) {
            Usage::Unknown
        } else {
            Usage::Unused
        }
    }

    /// The vpods that use the object, by themselves or through others, at most `limit`.
    pub(in crate::objects) fn users(&self, object: &ObjectRef, limit: usize) -> Vec<VpodIdentity> {
        let mut users = self.pods.users(object, limit);
        let dependents: Vec<ObjectRef> = self.state.lock().links.dependents(object).cloned().collect();
        for dependent in dependents {
            users.extend(self.users(&dependent, limit - users.len()));
        }
        users
    }
}
