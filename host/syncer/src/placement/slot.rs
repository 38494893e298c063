//! Where others of the process find the desk of a binding while this process leads it.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use super::desk::PlaceDesk;

/// See the module documentation. All clones are one place.
#[derive(Clone, Debug, Default)]
pub struct DeskSlot(Arc<Mutex<Weak<PlaceDesk>>>);

impl DeskSlot {
    /// The desk of the binding object that is served now; it is found for as long as it lives.
    pub(crate) fn set(&self, desk: &Arc<PlaceDesk>) {
        *self.0.lock() = Arc::downgrade(desk);
    }

    /// The desk; `None` while nobody decides here.
    pub fn get(&self) -> Option<Arc<PlaceDesk>> {
        self.0.lock().upgrade()
    }
}
