//! Secrets to be found by their name and by the vpod they name.

use std::collections::{BTreeMap, BTreeSet};

use super::plan::TokenOwner;

/// What has a name, and names a vpod.
pub(super) trait Owned {
    fn name(&self) -> &str;
    fn owner(&self) -> &TokenOwner;
}

/// See the module documentation. Invariant: an owner is listed as long as it has something.
#[derive(Debug)]
pub(super) struct ByOwner<T> {
    by_name: BTreeMap<String, T>,
    names: BTreeMap<TokenOwner, BTreeSet<String>>,
}

impl<T> Default for ByOwner<T> {
    fn default() -> Self {
        Self { by_name: BTreeMap::new(), names: BTreeMap::new() }
    }
}

impl<T: Owned> ByOwner<T> {
    /// Takes the place of what had the name.
    pub(super) fn insert(&mut self, one: T) {
        let name = one.name().to_owned();
        self.remove(&name);
        self.names.entry(one.owner().clone()).or_default().insert(name.clone());
        self.by_name.insert(name, one);
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<T> {
        let one = self.by_name.remove(name)?;
        if let Some(names) = self.names.get_mut(one.owner()) {
            names.remove(name);
            if names.is_empty() {
                self.names.remove(one.owner());
            }
        }
        Some(one)
    }

    /// Removes all of an owner.
    pub(super) fn take(&mut self, owner: &TokenOwner) -> Vec<T> {
        let names = self.names.remove(owner).unwrap_or_default();
        names.iter().filter_map(|name| self.by_name.remove(name)).collect()
    }

    pub(super) fn get(&self, name: &str) -> Option<&T> {
        self.by_name.get(name)
    }

    /// Those of an owner, by name.
    pub(super) fn of(&self, owner: &TokenOwner) -> impl Iterator<Item = &T> {
        self.names.get(owner).into_iter().flatten().filter_map(|name| self.by_name.get(name))
    }

    pub(super) fn has(&self, owner: &TokenOwner) -> bool {
        self.names.contains_key(owner)
    }

    pub(super) fn owners(&self) -> impl Iterator<Item = &TokenOwner> {
        self.names.keys()
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.by_name.keys()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &T> {
        self.by_name.values()
    }
}
