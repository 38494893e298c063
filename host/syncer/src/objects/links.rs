//! Which objects are copied for the sake of others: the volume of a claim, the Secrets of a volume.
//!
//! Metadata does not tell; it is known once the object was read. Until then anything it could need counts as needed, so
//! that a Syncer that has just started takes nothing away.

use std::collections::{BTreeMap, BTreeSet};

use super::kind::{ObjectKind, ObjectRef};

/// What needs what.
#[derive(Debug, Default)]
pub(super) struct Links {
    needs: BTreeMap<ObjectRef, BTreeSet<ObjectRef>>,
    needed_by: BTreeMap<ObjectRef, BTreeSet<ObjectRef>>,
    /// Seen, but not read yet.
    unread: BTreeSet<ObjectRef>,
}

impl Links {
    /// An object that is copied exists.
    pub(super) fn saw(&mut self, object: &ObjectRef) {
        let has_needs = ObjectKind::ALL.iter().any(|kind| kind.mapped().dependent() == Some(object.kind));
        if has_needs && !self.needs.contains_key(object) {
            self.unread.insert(object.clone());
        }
    }

    /// An object was read. Returns what it needs now and did not need before, and the reverse.
    pub(super) fn set(
        &mut self,
        object: &ObjectRef,
        needs: BTreeSet<ObjectRef>,
    ) -> (BTreeSet<ObjectRef>, BTreeSet<ObjectRef>) {
        self.unread.remove(object);
        let before = self.needs.get(object).cloned().unwrap_or_default();
        let added: BTreeSet<ObjectRef> = needs.difference(&before).cloned().collect();
        let removed: BTreeSet<ObjectRef> = before.difference(&needs).cloned().collect();
        for needed in &added {
            self.needed_by.entry(needed.clone()).or_default().insert(object.clone());
        }
        for freed in &removed {
            self.unlink(freed, object);
        }
        self.needs.insert(object.clone(), needs);
        (added, removed)
    }

    /// Nothing is left of an object. Returns what it needed.
    pub(super) fn forget(&mut self, object: &ObjectRef) -> BTreeSet<ObjectRef> {
        self.unread.remove(object);
        let freed = self.needs.remove(object).unwrap_or_default();
        for needed in &freed {
            self.unlink(needed, object);
        }
        freed
    }

    /// The objects that need this one.
    pub(super) fn dependents(&self, object: &ObjectRef) -> impl Iterator<Item = &ObjectRef> {
        self.needed_by.get(object).into_iter().flatten()
    }

    /// The objects and all that need them, directly or through others.
    pub(super) fn all_above(&self, objects: Vec<ObjectRef>) -> Vec<ObjectRef> {
        let mut all = objects;
        let mut next = 0;
        while let Some(object) = all.get(next) {
            let dependents: Vec<ObjectRef> = self.dependents(object).cloned().collect();
            all.extend(dependents);
            next += 1;
        }
        all
    }

    /// What may turn out to be above `above` as well: objects that were not read yet, and all above those. Whoever may need
    /// one object of a kind may need any of it, so each kind is gone through once, however many objects wait to be read.
    pub(super) fn all_that_may_be_above(&self, above: &[ObjectRef]) -> Vec<ObjectRef> {
        let dependents_of = |objects: &[ObjectRef]| -> BTreeSet<ObjectKind> {
            objects.iter().filter_map(|object| object.kind.mapped().dependent()).collect()
        };
        let mut all = Vec::new();
        let (mut kinds, mut done) = (dependents_of(above), BTreeSet::new());
        while let Some(kind) = kinds.pop_first() {
            if done.insert(kind) {
                let unread = self.unread.iter().filter(|object| object.kind == kind);
                let found = self.all_above(unread.cloned().collect());
                kinds.append(&mut dependents_of(&found));
                all.extend(found);
            }
        }
        all
    }

    /// The object and everything that is copied because of it.
    pub(super) fn all_behind(&self, object: ObjectRef) -> Vec<ObjectRef> {
        let mut all = vec![object];
        let mut next = 0;
        while let Some(object) = all.get(next) {
            let needs: Vec<ObjectRef> = self.needs.get(object).into_iter().flatten().cloned().collect();
            all.extend(needs);
            next += 1;
        }
        all
    }

    fn unlink(&mut self, needed: &ObjectRef, object: &ObjectRef) {
        if let Some(dependents) = self.needed_by.get_mut(needed) {
            dependents.remove(object);
            if dependents.is_empty() {
                self.needed_by.remove(needed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_behind_an_object_is_found_and_freed() {
        let claim = ObjectRef::new(ObjectKind::PersistentVolumeClaim, "team", "data");
        let volume = ObjectRef::volume("pv");
        let keys = ObjectRef::new(ObjectKind::Secret, "vault", "keys");
        let mut links = Links::default();
        links.saw(&claim);
        links.saw(&keys);
        let may_need =
            |links: &Links, object: &ObjectRef| links.all_that_may_be_above(std::slice::from_ref(object));
        assert_eq!(may_need(&links, &volume), std::slice::from_ref(&claim));
        assert_eq!(may_need(&links, &keys), [], "no volume is waiting to be read");

        links.set(&claim, BTreeSet::from([volume.clone()]));
        let (added, removed) = links.set(&volume, BTreeSet::from([keys.clone()]));
        assert_eq!((added, removed), (BTreeSet::from([keys.clone()]), BTreeSet::new()));
        assert_eq!(may_need(&links, &volume), []);
        assert_eq!(links.all_behind(claim.clone()), [claim.clone(), volume.clone(), keys.clone()]);
        assert_eq!(links.all_above(vec![keys.clone()]), [keys.clone(), volume.clone(), claim.clone()]);
        assert_eq!(links.dependents(&keys).collect::<Vec<_>>(), [&volume]);

        links.saw(&claim);
        assert_eq!(may_need(&links, &volume), [], "it was read already");
        assert_eq!(links.forget(&volume), BTreeSet::from([keys.clone()]));
        assert_eq!(links.dependents(&keys).count(), 0);
    }
}
