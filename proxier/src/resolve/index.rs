//! The ppods of a binding by the UID of their vpods, from one trimmed watch of the mount namespace (PX-606).

use std::collections::{BTreeMap, HashMap};

use kubeocean_runtime::sink::Sink;
use parking_lot::RwLock;

use super::view::{PodView, Ppod};

/// The index; written by one watch, read by every request.
#[derive(Debug, Default)]
pub(crate) struct PpodIndex {
    inner: RwLock<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By the ppod's own UID.
    all: HashMap<String, Ppod>,
    /// UIDs of ppods by the UID of their vpod. More than one is an anomaly, which the check refuses.
    by_vpod: BTreeMap<String, Vec<String>>,
}

impl PpodIndex {
    /// The ppods that name a vpod.
    pub(crate) fn of_vpod(&self, uid: &str) -> Vec<Ppod> {
        let inner = self.inner.read();
        let uids = inner.by_vpod.get(uid).map(Vec::as_slice).unwrap_or_default();
        uids.iter().filter_map(|uid| inner.all.get(uid).cloned()).collect()
    }

    /// Forgets everything: another worker or namespace is watched from now on.
    pub(crate) fn clear(&self) {
        *self.inner.write() = Inner::default();
    }
}

impl Inner {
    fn set(&mut self, ppod: Ppod) {
        self.remove(&ppod.uid);
        if let Some(vpod) = &ppod.virtual_uid {
            self.by_vpod.entry(vpod.clone()).or_default().push(ppod.uid.clone());
        }
        self.all.insert(ppod.uid.clone(), ppod);
    }

    fn remove(&mut self, uid: &str) {
        let Some(vpod) = self.all.remove(uid).and_then(|ppod| ppod.virtual_uid) else { return };
        if let Some(uids) = self.by_vpod.get_mut(&vpod) {
            uids.retain(|other| other != uid);
            if uids.is_empty() {
                self.by_vpod.remove(&vpod);
            }
        }
    }
}

impl Sink<PodView> for PpodIndex {
    fn apply(&self, pod: PodView) {
        self.inner.write().set(Ppod::of(&pod));
    }

    fn delete(&self, pod: PodView) {
        self.inner.write().remove(pod.uid());
    }

    fn reset(&self, all: Vec<PodView>) {
        let mut fresh = Inner::default();
        for pod in all {
            fresh.set(Ppod::of(&pod));
        }
        *self.inner.write() = fresh;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, vpod: &str) -> PodView {
        serde_json::from_value(json!({"metadata": {"name": uid, "namespace": "m", "uid": uid,
            "annotations": {"kubeocean.io/virtual-pod-uid": vpod}}}))
        .unwrap()
    }

    fn names(index: &PpodIndex, vpod: &str) -> Vec<String> {
        index.of_vpod(vpod).into_iter().map(|ppod| ppod.name).collect()
    }

    #[test]
    fn follows_changes_and_relists() {
        let index = PpodIndex::default();
        index.apply(pod("a", "v1"));
        index.apply(pod("b", "v1"));
        assert_eq!(names(&index, "v1"), ["a", "b"]);
        index.apply(pod("b", "v2"));
        assert_eq!((names(&index, "v1"), names(&index, "v2")), (vec!["a".to_owned()], vec!["b".to_owned()]));
        index.delete(pod("a", "v1"));
        assert!(names(&index, "v1").is_empty());
        index.reset(vec![pod("c", "v3")]);
        assert!(names(&index, "v2").is_empty());
        assert_eq!(names(&index, "v3"), ["c"]);
        assert_eq!(index.inner.read().by_vpod.len(), 1, "nothing is kept of what is gone");
    }
}
