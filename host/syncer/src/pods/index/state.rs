//! What is known of all pods of a binding, and how one version of a pod changes it. No lock, no queue: the store around
//! it has both, and tells who is concerned.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::Arc,
};

use ahash::RandomState;
use jiff::Timestamp;
use kubeocean_api::{keys::annotation, name::ObjectKey};
use tokio::time::Instant;

use super::few_keys::FewKeys;
use crate::{
    objects::ObjectRef,
    pods::{
        ownership::{self, Claim, Ownership, Stamp},
        plan::is_creatable,
        snapshot::{Absence, LostPpod, PodScope},
        view::{BackReference, Ppod, PpodStatus, Vpod},
        vpod_identity::VpodIdentity,
        vpod_spec::KnownSpecs,
    },
};

/// How many UIDs of deleted pods are remembered, per cluster: more than can be deleted while a request is under way.
const REMEMBERED_UIDS: usize = 8_192;

pub(super) type Map<K, V> = HashMap<K, V, RandomState>;
#[derive(Default)]
pub(super) struct Index {
    pub(super) vpods: Map<ObjectKey, VpodEntry>,
    /// Vnodes of this binding. A name does not tell: that of another binding may begin like ours.
    pub(super) our_vnodes: HashSet<Arc<str>, RandomState>,
    pub(super) by_vnode: Map<Arc<str>, BTreeSet<ObjectKey>>,
    pub(super) by_object: Map<ObjectRef, BTreeSet<ObjectKey>>,
    pub(super) ppods: Map<ObjectKey, Arc<Ppod>>,
    /// Since when ppods without a node have been seen.
    pub(super) unscheduled: Map<ObjectKey, Instant>,
    pub(super) by_back_reference: Map<ObjectKey, FewKeys>,
    /// Vpods that were refused a ppod, by the place it would have.
    pub(super) refused: Map<ObjectKey, ObjectKey>,
    /// Vpods that policies do not admit.
    pub(super) denied: HashSet<ObjectKey, RandomState>,
    /// Vpods about which policies are being asked, and whether something changed meanwhile.
    pub(super) asking: Map<ObjectKey, bool>,
    pub(super) gone_vpods: RecentUids,
    /// Vpods that somebody deleted by force, as long as a ppod names them.
    pub(super) forced_vpods: HashSet<Box<str>, RandomState>,
    pub(super) gone_ppods: RecentUids,
}

pub(super) struct VpodEntry {
    pub(super) vpod: Arc<Vpod>,
    pub(super) absence: Absence,
    pub(super) mirrored: Option<u64>,
    pub(super) status_written: Option<Timestamp>,
    /// When it was first seen here.
    pub(super) since: Instant,
    /// The place of the ppod it was refused.
    pub(super) refused: Option<ObjectKey>,
}

/// Where a version of a ppod comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A watch, or the answer of a write.
    Event,
    /// A read for the sake of its status: taken even if nothing has changed.
    Read,
}

/// How sure it is that a ppod does not exist any more.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Proof {
    /// It was being deleted, the API server said so, or another pod has its name.
    Certain,
    /// The watch shows it no more.
    NotShown,
}

/// What became of a version of a vpod.
pub(super) enum Put {
    /// It was known, or older than what is known.
    Old,
    /// It was taken.
    News {
        /// Whether it refers to other objects than before.
        references_changed: bool,
        /// The vpod of another UID that had its name.
        replaced: Option<Arc<Vpod>>,
    },
}

/// The latest UIDs that were deleted, in bounded memory.
#[derive(Default)]
pub(super) struct RecentUids {
    known: HashSet<Box<str>, RandomState>,
    order: VecDeque<Box<str>>,
}

impl RecentUids {
    pub(super) fn insert(&mut self, uid: &str) {
        if !uid.is_empty() && self.known.insert(uid.into()) {
            self.order.push_back(uid.into());
            if self.order.len() > REMEMBERED_UIDS
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
        }
    }

    pub(super) fn contains(&self, uid: &str) -> bool {
        self.known.contains(uid)
    }
}

impl Index {
    /// The ppods of this binding: copies of vpods we have, and stamped ones of vpods that are gone.
    pub(super) fn own_ppods(&self, stamp: &Stamp) -> impl Iterator<Item = &Arc<Ppod>> {
        self.ppods.values().filter(|ppod| {
            let Some(reference) = ppod.back_reference() else { return false };
            let uid = self.vpods.get(&reference.key).map(|entry| &*entry.vpod.uid);
            let claim = Claim { key: &reference.key, uid };
            !matches!(ownership::check(ppod, stamp, claim), Ownership::Foreign(_))
        })
    }

    /// The vpods whose ppods may mount the object, now or later.
    pub(super) fn users<'a>(
        &'a self,
        scope: &'a PodScope,
        object: &ObjectRef,
    ) -> impl Iterator<Item = &'a Arc<Vpod>> {
        let keys = self.by_object.get(object).into_iter().flatten();
        keys.filter_map(|key| self.vpods.get(key))
            .map(|entry| &entry.vpod)
            .filter(|vpod| self.needs_objects(scope, vpod))
    }

    /// Whether a vpod runs here or is going to: one that has ended, is never mapped or is on somebody else's vnode needs
    /// nothing unless its ppod lives on.
    pub(super) fn needs_objects(&self, scope: &PodScope, vpod: &Vpod) -> bool {
        let wanted = self.our_vnodes.contains(&vpod.node)
            && !vpod.status.phase.is_terminal()
            && is_creatable(scope, vpod)
            && vpod.spec.references.is_mapped();
        let lives = |copy: &ObjectKey| self.ppods.get(copy).is_some_and(|it| !it.status.phase.is_terminal());
        wanted || self.by_back_reference.get(&vpod.key).into_iter().flatten().any(lives)
    }

    pub(super) fn put_vpod(&mut self, mut vpod: Vpod) -> Put {
        // Whatever names a pod or vnode shares one name.
        let known = self.vpods.get_key_value(&vpod.key);
        if let Some((key, _)) = known {
            vpod.key = key.clone();
        }
        if let Some(node) = self.our_vnodes.get(&vpod.node) {
            vpod.node = Arc::clone(node);
        }
        let key = vpod.key.clone();
        let mut replaced = None;
        let kept = match known.map(|(_, entry)| entry) {
            Some(old) if old.vpod.uid == vpod.uid => {
                if !is_newer(&vpod.resource_version, &old.vpod.resource_version) {
                    return Put::Old;
                }
                self.vpods.remove(&key)
            }
            // A late event of a predecessor; versions of one kind are ordered across objects, too.
            Some(old) if !is_newer(&vpod.resource_version, &old.vpod.resource_version) => return Put::Old,
            Some(old) => {
                let uid = old.vpod.uid.clone();
                self.gone_vpods.insert(&uid);
                replaced = self.remove_vpod(&key, &uid);
                None
            }
            None => None,
        };
        if let Some(old) = &kept {
            self.unlink(&old.vpod);
        }
        let references_changed =
            kept.as_ref().is_none_or(|old| old.vpod.spec.references != vpod.spec.references);
        let vpod = Arc::new(vpod);
        self.by_vnode.entry(vpod.node.clone()).or_default().insert(key.clone());
        for object in objects(&vpod) {
            self.by_object.entry(object).or_default().insert(key.clone());
        }
        let entry = match kept {
            Some(old) => VpodEntry { vpod, ..old },
            None => VpodEntry {
                vpod,
                absence: Absence::Unproven,
                mirrored: None,
                status_written: None,
                since: Instant::now(),
                refused: None,
            },
        };
        self.vpods.insert(key, entry);
        Put::News { references_changed, replaced }
    }

    pub(super) fn remove_vpod(&mut self, key: &ObjectKey, uid: &str) -> Option<Arc<Vpod>> {
        if self.vpods.get(key).is_none_or(|entry| *entry.vpod.uid != *uid) {
            return None;
        }
        let entry = self.vpods.remove(key)?;
        self.denied.remove(key);
        if let Some(place) = &entry.refused {
            self.refused.remove(place);
        }
        self.unlink(&entry.vpod);
        KnownSpecs::of_process().forget(uid);
        Some(entry.vpod)
    }

    /// A vpod was deleted by force. That concerns its ppod only; without one nothing is remembered.
    pub(super) fn deleted_by_force(&mut self, key: &ObjectKey, uid: &str) {
        if self.is_named(key, uid) {
            self.forced_vpods.insert(uid.into());
        }
    }

    /// Whether a ppod says it is the copy of this vpod.
    fn is_named(&self, vpod: &ObjectKey, uid: &str) -> bool {
        let copies = self.by_back_reference.get(vpod).into_iter().flatten();
        let mut named = copies.filter_map(|copy| self.ppods.get(copy)?.back_reference());
        named.any(|reference| *reference.uid == *uid)
    }

    /// A ppod names this vpod no more.
    fn named_no_more(&mut self, vpod: &ObjectKey, uid: &str) {
        if self.forced_vpods.contains(uid) && !self.is_named(vpod, uid) {
            self.forced_vpods.remove(uid);
        }
    }

    pub(super) fn unlink(&mut self, vpod: &Vpod) {
        remove_from(&mut self.by_vnode, &vpod.node, &vpod.key);
        for object in objects(vpod) {
            remove_from(&mut self.by_object, &object, &vpod.key);
        }
    }

    /// Takes a version of a ppod; returns the vpod to look at, if it was news.
    pub(super) fn put_ppod(&mut self, mut ppod: Ppod, origin: Origin) -> Option<ObjectKey> {
        let known = self.ppods.get_key_value(&ppod.key);
        if let Some((key, _)) = known {
            ppod.key = key.clone();
        }
        let key = ppod.key.clone();
        let mut news_of_status = true;
        if let Some((_, old)) = known {
            if old.uid == ppod.uid {
                ppod.uid = Arc::clone(&old.uid);
                let reread = origin == Origin::Read && ppod.resource_version == old.resource_version;
                if !is_newer(&ppod.resource_version, &old.resource_version) && !reread {
                    return None;
                }
                news_of_status = old.status.hash != ppod.status.hash || reread;
                if !news_of_status {
                    ppod.status.fields.clone_from(&old.status.fields);
                }
            } else if !is_newer(&ppod.resource_version, &old.resource_version) {
                return None;
            } else {
                let uid = old.uid.clone();
                self.gone_ppods.insert(&uid);
                self.remove_ppod(&key, &uid, None, Proof::Certain);
            }
        }
        let old_reference = self.ppods.get(&key).and_then(|old| old.back_reference());
        let reference = ppod.back_reference();
        let former_reference = old_reference.filter(|old| Some(old) != reference.as_ref());
        if let Some(old) = &former_reference {
            self.unlink_copy(&old.key, &key);
        }
        if let Some(BackReference { key: vpod, uid }) = &reference {
            let vpod = self.vpods.get_key_value(vpod).map_or(vpod, |(known, _)| known).clone();
            self.by_back_reference.entry(vpod.clone()).or_default().insert(key.clone());
            if let Some(entry) = self.vpods.get_mut(&vpod) {
                entry.absence = Absence::Unproven;
                if *entry.vpod.uid == **uid
                    && let Some(place) = entry.refused.take()
                {
                    self.refused.remove(&place);
                }
                if news_of_status {
                    entry.mirrored = None;
                }
            }
        }
        if ppod.scheduled {
            self.unscheduled.remove(&key);
        } else {
            self.unscheduled.entry(key.clone()).or_insert_with(Instant::now);
        }
        self.ppods.insert(key, Arc::new(ppod));
        if let Some(old) = former_reference {
            self.named_no_more(&old.key, &old.uid);
        }
        reference.map(|reference| reference.key)
    }

    /// A ppod is gone, for sure or as far as a watch shows. `last` is its last status, if the event told it.
    pub(super) fn remove_ppod(
        &mut self,
        key: &ObjectKey,
        uid: &str,
        last: Option<PpodStatus>,
        proof: Proof,
    ) -> Option<ObjectKey> {
        if self.ppods.get(key).is_some_and(|ppod| *ppod.uid != *uid) {
            return None;
        }
        let ppod = self.ppods.get(key)?.clone();
        let vpod = self.forget_ppod(key)?;
        if let Some(entry) = self.vpods.get_mut(&vpod) {
            entry.mirrored = None;
            entry.absence = Absence::Witnessed(Arc::new(LostPpod {
                uid: uid.into(),
                virtual_uid: ppod.annotation(annotation::VIRTUAL_POD_UID).unwrap_or_default().into(),
                certain: proof == Proof::Certain,
                status: last.unwrap_or_else(|| ppod.status.clone()),
            }));
        }
        Some(vpod)
    }

    /// A ppod is not shown any more, for whatever reason.
    fn forget_ppod(&mut self, key: &ObjectKey) -> Option<ObjectKey> {
        let ppod = self.ppods.remove(key)?;
        self.unscheduled.remove(key);
        let BackReference { key: vpod, uid } = ppod.back_reference()?;
        self.unlink_copy(&vpod, key);
        self.named_no_more(&vpod, &uid);
        Some(vpod)
    }

    fn unlink_copy(&mut self, vpod: &ObjectKey, copy: &ObjectKey) {
        if let Some(copies) = self.by_back_reference.get_mut(vpod) {
            copies.remove(copy);
            if copies.is_empty() {
                self.by_back_reference.remove(vpod);
            }
        }
    }
}

/// The vpod a ppod says it is the copy of.
pub(super) fn owner_of(ppod: &Ppod) -> Option<VpodIdentity> {
    let BackReference { key, uid } = ppod.back_reference()?;
    Some(VpodIdentity { key, uid: uid.into() })
}

pub(super) fn objects(vpod: &Vpod) -> Vec<ObjectRef> {
    vpod.spec
        .references
        .objects()
        .map(|(kind, name, _)| ObjectRef::new(kind, &vpod.key.namespace, name))
        .collect()
}

pub(super) fn remove_from<K: std::hash::Hash + Eq>(
    map: &mut Map<K, BTreeSet<ObjectKey>>,
    at: &K,
    key: &ObjectKey,
) {
    if let Some(set) = map.get_mut(at) {
        set.remove(key);
        if set.is_empty() {
            map.remove(at);
        }
    }
}

/// Resource versions of one object are ordered numbers; anything else counts as newer, so that nothing is missed.
pub(super) fn is_newer(new: &str, old: &str) -> bool {
    match (new.parse::<u64>(), old.parse::<u64>()) {
        (Ok(new), Ok(old)) => new > old,
        _ => new != old,
    }
}
