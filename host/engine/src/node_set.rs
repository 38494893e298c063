//! Sets of nodes that take a bit a node: a thousand records, each about thousands of nodes, stay small.
//!
//! Invariant: the numbers in a set belong to the [`Names`] it was filled with.

use std::collections::HashMap;
use std::sync::Arc;

/// Fewer names than this are not worth looking through.
const FEW: usize = 1024;

/// The numbers of names, in the order in which they came.
#[derive(Debug)]
pub(crate) struct Names {
    numbers: HashMap<Arc<str>, usize, ahash::RandomState>,
    in_order: Vec<Arc<str>>,
    /// From so many on they are looked through for those that no set has any more.
    limit: usize,
}

impl Default for Names {
    fn default() -> Self {
        Self { numbers: HashMap::default(), in_order: Vec::new(), limit: FEW }
    }
}

/// Numbers of names.
#[derive(Debug, Default)]
pub(crate) struct NodeSet(Vec<u64>);

impl Names {
    /// Puts a name into a set.
    pub(crate) fn insert(&mut self, name: &str, set: &mut NodeSet) {
        let number = self.numbers.get(name).copied().unwrap_or_else(|| {
            let (name, number): (Arc<str>, usize) = (name.into(), self.in_order.len());
            self.in_order.push(Arc::clone(&name));
            self.numbers.insert(name, number);
            number
        });
        set.insert(number);
    }

    /// Whether a set has this name.
    pub(crate) fn is_in(&self, name: &str, set: &NodeSet) -> bool {
        self.numbers.get(name).is_some_and(|number| set.has(*number))
    }

    /// The names in a set, in the order in which they were first seen.
    pub(crate) fn of<'n>(&'n self, set: &'n NodeSet) -> impl Iterator<Item = &'n Arc<str>> {
        set.numbers().filter_map(|number| self.in_order.get(number))
    }

    /// Whether it is time to [`forget`](Self::forget): nodes come and go.
    pub(crate) fn are_many(&self) -> bool {
        self.in_order.len() >= self.limit
    }

    /// Forgets the names that are in none of these sets, which must be all there are.
    pub(crate) fn forget<'s>(&mut self, sets: impl Iterator<Item = &'s mut NodeSet>) {
        let before = std::mem::take(self);
        for set in sets {
            let numbered = std::mem::take(set);
            for name in before.of(&numbered) {
                self.insert(name, set);
            }
        }
        self.limit = (2 * self.in_order.len()).max(FEW);
    }
}

impl NodeSet {
    fn insert(&mut self, number: usize) {
        let word = number / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        if let Some(bits) = self.0.get_mut(word) {
            *bits |= 1 << (number % 64);
        }
    }

    fn has(&self, number: usize) -> bool {
        self.0.get(number / 64).is_some_and(|bits| bits >> (number % 64) & 1 == 1)
    }

    fn numbers(&self) -> impl Iterator<Item = usize> {
        (0..64 * self.0.len()).filter(|number| self.has(*number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(names: &Names, set: &NodeSet) -> Vec<String> {
        names.of(set).map(ToString::to_string).collect()
    }

    #[test]
    fn a_set_has_what_was_put_in_once() {
        let (mut names, mut all, mut even) = (Names::default(), NodeSet::default(), NodeSet::default());
        for number in 0..200 {
            names.insert(&format!("n{number}"), &mut all);
            if number % 2 == 0 {
                names.insert(&format!("n{number}"), &mut even);
                names.insert(&format!("n{number}"), &mut even);
            }
        }
        assert!(names.is_in("n198", &even) && !names.is_in("n199", &even) && names.is_in("n199", &all));
        assert!(!names.is_in("other", &all));
        assert_eq!(named(&names, &all), (0..200).map(|number| format!("n{number}")).collect::<Vec<_>>());
        assert_eq!(named(&names, &even).len(), 100);
    }

    #[test]
    fn nodes_that_come_and_go_leave_nothing_behind() {
        let (mut names, mut stays) = (Names::default(), NodeSet::default());
        names.insert("stays", &mut stays);
        for round in 0..100 {
            let mut set = NodeSet::default();
            for number in 0..100 {
                names.insert(&format!("n{round}-{number}"), &mut set);
            }
            if names.are_many() {
                names.forget([&mut stays, &mut set].into_iter());
                assert_eq!((names.in_order.len(), named(&names, &set).len()), (101, 100));
            }
            assert_eq!(named(&names, &stays), ["stays"]);
        }
        assert!(names.in_order.len() < FEW + 100, "{}", names.in_order.len());
    }
}
