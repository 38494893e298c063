//! Which objects pods refer to, for those who look after the objects.

use kubeocean_api::name::ObjectKey;

use super::{
    super::vpod_identity::VpodIdentity,
    PodStore,
    state::{VpodEntry, owner_of},
};
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
        self.index.lock().vpods.get(pod).is_some_and(|entry| is_running(entry, uid))
    }

    fn serves(&self, pod: &ObjectKey, uid: &str) -> bool {
        let index = self.index.lock();
        let entry = index.vpods.get(pod);
        entry.is_some_and(|entry| is_running(entry, uid) && index.our_vnodes.contains(&entry.vpod.node))
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

fn is_running(entry: &VpodEntry, uid: &str) -> bool {
    *entry.vpod.uid == *uid && !entry.vpod.status.phase.is_terminal()
}

#[cfg(test)]
mod tests {
    use kubeocean_runtime::sink::Sink;
    use serde::Deserialize;
    use serde_json::json;

    use super::*;
    use crate::pods::{tests::builders::scope, view::VpodObject};

    #[test]
    fn a_pod_on_a_vnode_whose_name_only_begins_like_ours_is_not_served() {
        let store = PodStore::new("prod", scope());
        let (ours, theirs) = ("vnode-prod-node-1", "vnode-prod-eu-node-1");
        for (name, uid, vnode) in [("web", "uid-of-web", ours), ("db", "uid-of-db", theirs)] {
            let pod = json!({
                "metadata": {"namespace": "default", "name": name, "uid": uid, "resourceVersion": "10"},
                "spec": {"nodeName": vnode}, "status": {"phase": "Running"},
            });
            store.apply(VpodObject::deserialize(&pod).unwrap());
        }
        store.vnode_changed(ours, true);
        let [web, db] = ["web", "db"].map(|name| ObjectKey::new("default", name));
        assert!(store.runs(&db, "uid-of-db"), "the name does not tell");
        assert!(store.serves(&web, "uid-of-web") && !store.serves(&db, "uid-of-db"));
        assert!(!store.serves(&web, "uid-of-an-earlier-pod"));
        store.vnode_changed(theirs, true);
        assert!(store.serves(&db, "uid-of-db"), "a node of ours may be called eu-node-1");
    }
}
