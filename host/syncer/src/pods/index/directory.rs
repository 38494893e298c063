//! Which objects pods refer to, for those who look after the objects.

use kubeocean_api::name::ObjectKey;

use super::{super::vpod_identity::VpodIdentity, PodStore, state::owner_of};
use crate::objects::{ObjectRef, PodDirectory};

impl PodDirectory for PodStore {
    fn uses(&self, object: &ObjectRef) -> bool {
        let scope = self.scope();
        self.index.lock().users(&scope, object).next().is_some()
    }

    fn users(&self, object: &ObjectRef, limit: usize) -> Vec<VpodIdentity> {
        let scope = self.scope();
        let index = self.index.lock();
        index
            .users(&scope, object)
            .map(|vpod| VpodIdentity { key: vpod.key.clone(), uid: vpod.uid.to_string() })
            .take(limit)
            .collect()
    }

    fn runs(&self, pod: &ObjectKey, uid: &str) -> bool {
        let index = self.index.lock();
        index
            .vpods
            .get(pod)
            .is_some_and(|entry| *entry.vpod.uid == *uid && !entry.vpod.status.phase.is_terminal())
    }

    fn has_copy(&self, pod: &VpodIdentity) -> bool {
        let index = self.index.lock();
        let copies = index.by_back_reference.get(&pod.key).into_iter().flatten();
        copies.filter_map(|copy| index.ppods.get(copy)).any(|ppod| owner_of(ppod).as_ref() == Some(pod))
    }

    fn wake(&self, pods: Vec<ObjectKey>) {
        self.queue.add_all(pods);
    }
}
