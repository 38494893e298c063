//! At which version objects left a watch, so that the late answer of a write does not bring one back.
//!
//! In: DELETED events and answers. Out: whether a version of an object is older than its end. An object that only lost
//! the label a watch selects by returns with a newer version. Callers: stores that are fed by a watch and by answers.
//! Memory is bounded: an answer is late by the time of one request.

use std::collections::{HashMap, VecDeque};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// How many are remembered: more than can leave while a request is under way.
const REMEMBERED: usize = 8_192;

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Tombstones {
    left: HashMap<Box<str>, u64>,
    order: VecDeque<Box<str>>,
}

impl Tombstones {
    /// The object of this UID left at this version. A watch may tell late that it left earlier.
    pub(crate) fn add(&mut self, uid: &str, at: u64) {
        if let Some(left) = self.left.get_mut(uid) {
            *left = at.max(*left);
            return;
        }
        self.left.insert(uid.into(), at);
        self.order.push_back(uid.into());
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.left.remove(&oldest);
        }
    }

    /// Whether this version tells something new: it is younger than what is known of the object, and the object has not
    /// left since.
    pub(crate) fn admit<T: Versioned>(&self, known: Option<&T>, seen: &T) -> bool {
        known.is_none_or(|known| is_younger(seen, known)) && !self.cover(seen)
    }

    /// Whether this is a version from before the object left. Its deletion has a version of its own; the version without
    /// the label has that of the event, and is there.
    fn cover(&self, object: &impl Versioned) -> bool {
        self.left.get(object.uid()).is_some_and(|left| object.version() < *left)
    }
}

/// Whether a version tells something that another one does not: it is a later one, or of another object. Versions that
/// cannot be compared are taken as they come.
pub(crate) fn is_younger<T: Versioned>(seen: &T, known: &T) -> bool {
    let comparable = known.uid() == seen.uid() && seen.version() > 0;
    !comparable || seen.version() > known.version()
}

/// Metadata that tells which object it is of, and which state.
pub(crate) trait Versioned {
    /// Empty: unknown.
    fn uid(&self) -> &str;
    /// Resource versions of one kind grow; what cannot be compared counts as oldest.
    fn version(&self) -> u64;
}

impl Versioned for ObjectMeta {
    fn uid(&self) -> &str {
        self.uid.as_deref().unwrap_or_default()
    }
    fn version(&self) -> u64 {
        parsed_version(self.resource_version.as_deref().unwrap_or_default())
    }
}

/// See [`Versioned::version`].
pub(crate) fn parsed_version(resource_version: &str) -> u64 {
    resource_version.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(uid: &str, version: u64) -> ObjectMeta {
        ObjectMeta {
            uid: Some(uid.to_owned()),
            resource_version: Some(version.to_string()),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn only_what_is_older_than_the_end_is_covered() {
        let mut graves = Tombstones::default();
        graves.add("a", 7);
        assert!(graves.cover(&object("a", 6)));
        assert!(!graves.cover(&object("a", 7)), "it only lost a label");
        assert!(!graves.cover(&object("a", 8)), "and has it again");
        assert!(!graves.cover(&object("b", 1)));
    }

    /// It lost a label, got it back, went, and the watch tells the first of that last.
    #[test]
    fn what_is_gone_is_not_brought_back_by_late_news() {
        let mut graves = Tombstones::default();
        graves.add("a", u64::MAX);
        graves.add("a", 7);
        assert!(graves.cover(&object("a", 8)));
    }

    #[test]
    fn only_a_younger_version_is_news() {
        let graves = Tombstones::default();
        let known = object("a", 7);
        assert!(!graves.admit(Some(&known), &object("a", 6)));
        assert!(!graves.admit(Some(&known), &object("a", 7)), "our own write comes back");
        assert!(graves.admit(Some(&known), &object("a", 8)));
        assert!(graves.admit(Some(&known), &object("b", 1)), "another one has its name");
        assert!(graves.admit(None, &object("a", 1)));
        assert!(graves.admit(Some(&object("a", 0)), &object("a", 0)));
    }

    #[test]
    fn memory_is_bounded() {
        let mut graves = Tombstones::default();
        for uid in 0..=REMEMBERED {
            graves.add(&uid.to_string(), 1);
        }
        assert_eq!((graves.left.len(), graves.order.len()), (REMEMBERED, REMEMBERED));
        assert!(!graves.cover(&object("0", 1)));
    }
}
