//! Which pods wait for what becomes of which object, to be found from either side: an object wakes its pods, and a pod that is
//! gone waits for nothing.

use std::collections::{BTreeMap, BTreeSet};

use kubeocean_api::name::ObjectKey;

use super::kind::ObjectRef;

/// Pods that wait for objects.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    by_object: BTreeMap<ObjectRef, BTreeSet<ObjectKey>>,
    by_pod: BTreeMap<ObjectKey, BTreeSet<ObjectRef>>,
}

impl Waiting {
    pub(super) fn add(&mut self, object: &ObjectRef, pod: &ObjectKey) {
        self.by_object.entry(object.clone()).or_default().insert(pod.clone());
        self.by_pod.entry(pod.clone()).or_default().insert(object.clone());
    }

    /// Whether somebody waits for the object.
    pub(super) fn has(&self, object: &ObjectRef) -> bool {
        self.by_object.contains_key(object)
    }

    /// The pods that waited for the object, which do so no more.
    pub(super) fn take(&mut self, object: &ObjectRef) -> Vec<ObjectKey> {
        let pods = self.by_object.remove(object).unwrap_or_default();
        for pod in &pods {
            remove(&mut self.by_pod, pod, object);
        }
        pods.into_iter().collect()
    }

    /// A pod is gone. Returns what it waited for.
    pub(super) fn pod_gone(&mut self, pod: &ObjectKey) -> BTreeSet<ObjectRef> {
        let objects = self.by_pod.remove(pod).unwrap_or_default();
        for object in &objects {
            remove(&mut self.by_object, object, pod);
        }
        objects
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.by_object.is_empty() && self.by_pod.is_empty()
    }
}

fn remove<K: Ord, V: Ord>(sets: &mut BTreeMap<K, BTreeSet<V>>, at: &K, value: &V) {
    if let Some(set) = sets.get_mut(at) {
        set.remove(value);
        if set.is_empty() {
            sets.remove(at);
        }
    }
}
