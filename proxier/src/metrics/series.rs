//! A metric of many label sets that can be forgotten: the library's own can only be asked for one it is told.

use std::{collections::HashSet, fmt::Debug, hash::Hash};

use parking_lot::Mutex;
use prometheus_client::metrics::family::Family;

/// Labels that say whose a series is.
pub(super) trait OfBinding {
    /// Name of the binding; empty if there is none.
    fn binding(&self) -> &str;
}

/// A [`Family`] that knows what is in it.
#[derive(Debug)]
pub(super) struct Series<L, M> {
    family: Family<L, M>,
    known: Mutex<HashSet<L>>,
}

impl<L, M> Series<L, M>
where
    L: OfBinding + Clone + Debug + Hash + Eq,
    M: Clone,
{
    /// None yet; `new` makes one.
    pub(super) fn of(new: fn() -> M) -> Self {
        Self { family: Family::new_with_constructor(new), known: Mutex::default() }
    }

    /// What is registered.
    pub(super) fn family(&self) -> Family<L, M> {
        self.family.clone()
    }

    /// The series of these labels.
    pub(super) fn get(&self, labels: L) -> M {
        let mut known = self.known.lock();
        let metric = self.family.get_or_create_owned(&labels);
        known.insert(labels);
        metric
    }

    /// Drops all series of a binding.
    pub(super) fn forget(&self, binding: &str) {
        self.known.lock().retain(|labels| {
            let stays = labels.binding() != binding;
            if !stays {
                self.family.remove(labels);
            }
            stays
        });
    }
}
