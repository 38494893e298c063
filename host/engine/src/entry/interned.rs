//! What many remembered answers have in common, each kept once under a number: reasons, and the names of what is capped.
//!
//! Invariant: a number means the same for as long as some answer uses it; who knows the answers says which are used.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::Arc;

/// So many are kept before anybody asks whether they are still used.
const KEPT: usize = 64;

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct Interned<T: ?Sized> {
    numbers: HashMap<Arc<T>, u32, ahash::RandomState>,
    by_number: Vec<Option<Arc<T>>>,
    unused: Vec<u32>,
    /// With more than these it is time to look which are used.
    plenty: usize,
}

impl<T: ?Sized + Hash + Eq> Default for Interned<T> {
    fn default() -> Self {
        Self { numbers: HashMap::default(), by_number: Vec::new(), unused: Vec::new(), plenty: KEPT }
    }
}

impl<T: ?Sized + Hash + Eq> Interned<T> {
    /// The number of a thing, a new one if need be.
    pub(crate) fn number(&mut self, thing: &Arc<T>) -> u32 {
        if let Some(number) = self.numbers.get(&**thing) {
            return *number;
        }
        let number = self.unused.pop().unwrap_or_else(|| {
            self.by_number.push(None);
            // Each costs more bytes than there are of memory before the numbers end.
            u32::try_from(self.by_number.len() - 1).unwrap_or(u32::MAX)
        });
        if let Some(place) = self.place(number) {
            *place = Some(Arc::clone(thing));
        }
        self.numbers.insert(Arc::clone(thing), number);
        number
    }

    pub(crate) fn get(&self, number: u32) -> Option<&Arc<T>> {
        self.by_number.get(usize::try_from(number).ok()?)?.as_ref()
    }

    /// So many have come that some may no longer be used.
    pub(crate) fn are_plenty(&self) -> bool {
        self.numbers.len() > self.plenty
    }

    /// Forgets all but those, and is patient until there are twice as many.
    pub(crate) fn keep(&mut self, used: &BTreeSet<u32>) {
        self.numbers.retain(|_, number| used.contains(number));
        self.unused.clear();
        for (number, place) in (0..).zip(&mut self.by_number) {
            if !used.contains(&number) {
                *place = None;
                self.unused.push(number);
            }
        }
        self.plenty = (2 * self.numbers.len()).max(KEPT);
    }

    fn place(&mut self, number: u32) -> Option<&mut Option<Arc<T>>> {
        self.by_number.get_mut(usize::try_from(number).ok()?)
    }

    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.numbers.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_stay_and_those_of_forgotten_things_are_given_again() {
        let mut words: Interned<str> = Interned::default();
        let number = |words: &mut Interned<str>, word: usize| words.number(&Arc::from(word.to_string()));
        let first = number(&mut words, 0);
        assert_eq!(number(&mut words, 0), first);
        for word in 1..=KEPT {
            assert!(!words.are_plenty());
            number(&mut words, word);
        }
        assert!(words.are_plenty());
        let used = BTreeSet::from([first, words.numbers["7"]]);
        words.keep(&used);
        assert_eq!((words.len(), words.are_plenty()), (2, false));
        assert_eq!((words.numbers.get("7"), words.numbers.get("8")), (used.last(), None));
        for word in 100..100 + KEPT {
            assert!(!used.contains(&number(&mut words, word)));
        }
        assert_eq!(words.by_number.len(), KEPT + 2);
        assert_eq!(words.get(first).map(AsRef::as_ref), Some("0"));
    }
}
