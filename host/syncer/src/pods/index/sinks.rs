//! What the two watches write into the store.

use std::{collections::HashSet, sync::Arc};

use ahash::RandomState;
use kubeocean_api::name::ObjectKey;

use super::{
    PodStore,
    state::{Map, Origin, Proof},
};
use crate::pods::view::{Deletion, PpodObject, VpodObject};
use kubeocean_runtime::sink::Sink;

impl Sink<VpodObject> for PodStore {
    fn apply(&self, object: VpodObject) {
        let Some(vpod) = object.view.filter(|vpod| self.is_ours(vpod)) else { return };
        // Events of a vpod we have finished may still be under way. One with a finalizer is not gone yet.
        if !vpod.has_finalizers && self.index.lock().gone_vpods.contains(&vpod.uid) {
            return;
        }
        let key = vpod.key.clone();
        if self.put_vpod(*vpod) {
            self.queue.add(key);
        }
    }

    fn delete(&self, object: VpodObject) {
        if let Some(vpod) = object.view.filter(|vpod| self.is_ours(vpod)) {
            if vpod.deletion.is_some_and(Deletion::is_forced) {
                self.index.lock().deleted_by_force(&vpod.key, &vpod.uid);
            }
            self.remove_vpod(&vpod.key, &vpod.uid);
        }
    }

    fn reset(&self, all: Vec<VpodObject>) {
        let listed: Map<ObjectKey, Arc<str>> = all
            .iter()
            .filter_map(|object| object.view.as_ref())
            .map(|vpod| (vpod.key.clone(), vpod.uid.clone()))
            .collect();
        for object in all {
            self.apply(object);
        }
        let vanished: Vec<_> = {
            let index = self.index.lock();
            let known = index.vpods.iter().map(|(key, entry)| (key.clone(), entry.vpod.uid.clone()));
            known.filter(|(key, _)| !listed.contains_key(key)).collect()
        };
        // A list is no proof that a pod is gone, so it leaves the index without being remembered as deleted.
        for (key, uid) in vanished {
            let removed = self.index.lock().remove_vpod(&key, &uid);
            self.tell_vpod_gone(&key);
            self.queue.add(key);
            if let Some(vpod) = removed {
                self.tell_references(&vpod);
                self.tell(&vpod.node);
            }
        }
    }
}

impl Sink<PpodObject> for PodStore {
    fn apply(&self, object: PpodObject) {
        let mut index = self.index.lock();
        // Whoever sits in the place of another pod's copy may have become somebody else.
        let refused = index.refused.get(&object.view.key).cloned();
        let woken = index.put_ppod(*object.view, Origin::Event);
        drop(index);
        self.queue.add_all(woken.into_iter().chain(refused));
    }

    fn delete(&self, object: PpodObject) {
        let ppod = *object.view;
        let proof = if ppod.deletion.is_some() { Proof::Certain } else { Proof::NotShown };
        self.remove_ppod(&ppod.key, &ppod.uid, Some(ppod.status), proof);
    }

    fn reset(&self, all: Vec<PpodObject>) {
        self.worker_is_back();
        let listed: HashSet<ObjectKey, RandomState> =
            all.iter().map(|object| object.view.key.clone()).collect();
        for object in all {
            self.apply(object);
        }
        let vanished: Vec<_> = {
            let index = self.index.lock();
            index.ppods.values().filter(|ppod| !listed.contains(&ppod.key)).cloned().collect()
        };
        for ppod in vanished {
            // What was seen of it may be more than its vpod shows yet.
            self.remove_ppod(&ppod.key, &ppod.uid, None, Proof::NotShown);
        }
    }
}
