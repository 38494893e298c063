//! A set of keys that has one member as a rule.

use std::slice;

use kubeocean_api::name::ObjectKey;

/// The copies of one vpod, sorted. There are thousands of such sets, and a `BTreeSet` takes 370 bytes for one key.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct FewKeys(Box<[ObjectKey]>);

impl FewKeys {
    pub(super) fn insert(&mut self, key: ObjectKey) {
        if let Err(at) = self.0.binary_search(&key) {
            let mut keys = std::mem::take(&mut self.0).into_vec();
            keys.reserve_exact(1);
            keys.insert(at, key);
            self.0 = keys.into();
        }
    }

    pub(super) fn remove(&mut self, key: &ObjectKey) {
        if let Ok(at) = self.0.binary_search(key) {
            let mut keys = std::mem::take(&mut self.0).into_vec();
            keys.remove(at);
            self.0 = keys.into();
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'a> IntoIterator for &'a FewKeys {
    type Item = &'a ObjectKey;
    type IntoIter = slice::Iter<'a, ObjectKey>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_is_a_set(steps in prop::collection::vec((any::<bool>(), 0..4_u8), 0..30)) {
            let (mut few, mut set) = (FewKeys::default(), BTreeSet::new());
            for (add, name) in steps {
                let key = ObjectKey::new("ns", name.to_string());
                if add {
                    few.insert(key.clone());
                    set.insert(key);
                } else {
                    few.remove(&key);
                    set.remove(&key);
                }
                prop_assert!(few.into_iter().eq(&set));
                prop_assert_eq!(few.is_empty(), set.is_empty());
            }
        }
    }
}
