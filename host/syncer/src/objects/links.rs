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

    /// Objects that were not read yet and may need this one.
    pub(super) fn unread_that_may_need(&self, object: &ObjectRef) -> Vec<ObjectRef> {
        let Some(kind) = object.kind.mapped().dependent() else { return Vec::new() };
        self.unread.iter().filter(|it| it.kind == kind).cloned().collect()
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
        assert_eq!(links.unread_that_may_need(&volume), std::slice::from_ref(&claim));
        assert_eq!(links.unread_that_may_need(&keys), [], "no volume is waiting to be read");

        links.set(&claim, BTreeSet::from([volume.clone()]));
        let (added, removed) = links.set(&volume, BTreeSet::from([keys.clone()]));
        assert_eq!((added, removed), (BTreeSet::from([keys.clone()]), BTreeSet::new()));
        assert_eq!(links.unread_that_may_need(&volume), []);
        assert_eq!(links.all_behind(claim.clone()), [claim.clone(), volume.clone(), keys.clone()]);
        assert_eq!(links.dependents(&keys).collect::<Vec<_>>(), [&volume]);

        links.saw(&claim);
        assert_eq!(links.unread_that_may_need(&volume), [], "it was read already");
        assert_eq!(links.forget(&volume), BTreeSet::from([keys.clone()]));
        assert_eq!(links.dependents(&keys).count(), 0);
    }
}
