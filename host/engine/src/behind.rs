//! Loads in the background, one at a time for each host (PO-704, PO-906).
//!
//! A process serves the bindings of many workers with few loader threads and one compiler at a time. However many modules
//! one worker's owner makes us compile, and however long each takes, those of another wait for one of them at most.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::assemble::Inner;
use crate::entry::slot::{Loaded, Slot};
use crate::facts::NodeFacts;
use crate::load::error::{LoadCode, LoadError};
use crate::load::prepare::LoadInput;

/// A load that is due.
pub(crate) struct Due {
    pub(crate) slot: Arc<Slot>,
    pub(crate) generation: u64,
    pub(crate) input: LoadInput,
}

/// What a host has to load in the background.
#[derive(Default)]
pub(crate) struct Behind {
    due: VecDeque<Due>,
    /// One of them is being loaded, or waits for a thread.
    busy: bool,
}

impl Inner {
    /// Queues loads; their results change decisions.
    pub(crate) fn load_behind(self: &Arc<Self>, due: impl IntoIterator<Item = Due>) {
        let mut behind = self.behind.lock();
        behind.due.extend(due);
        if !behind.due.is_empty() && !behind.busy {
            behind.busy = true;
            self.take_turn();
        }
    }

    /// One more attempt after a while.
    pub(crate) fn load_later(self: &Arc<Self>, wait: Duration, due: Due) {
        self.on_a_loader(wait, move |host| host.load_behind([due]));
    }

    /// Goes to the end of the line for a loader thread.
    fn take_turn(self: &Arc<Self>) {
        self.on_a_loader(Duration::ZERO, Self::load_next);
    }

    /// A host that is gone loads nothing more.
    fn on_a_loader(self: &Arc<Self>, wait: Duration, job: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let host: Weak<Self> = Arc::downgrade(self);
        self.engine.inner.loads.submit_later(wait, move || {
            if let Some(host) = host.upgrade() {
                job(&host);
            }
        });
    }

    fn load_next(self: &Arc<Self>) {
        let next = self.behind.lock().due.pop_front();
        let news = next.is_some_and(|due| self.load_and_tell(due));
        let mut behind = self.behind.lock();
        behind.busy = !behind.due.is_empty();
        if behind.busy {
            self.take_turn();
        }
        drop(behind);
        if news {
            (self.changed)();
        }
    }

    /// Whether decisions change with it.
    fn load_and_tell(self: &Arc<Self>, due: Due) -> bool {
        if !due.slot.wants(due.generation) {
            return false;
        }
        match self.load(&due) {
            Loaded::Outdated => return false,
            Loaded::Taken => {}
            Loaded::Again(wait) => self.load_later(wait, due),
        }
        true
    }

    /// One load.
    pub(crate) fn load(&self, due: &Due) -> Loaded {
        let started = crate::clock::stopwatch();
        let loader = self.engine.loader();
        let samples: Vec<Arc<NodeFacts>> = self.samples.lock().iter().cloned().collect();
        let load = || loader.load(&due.input, &samples);
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(load))
            .unwrap_or_else(|_| Err(LoadError::new(LoadCode::CompileFailed, "loading failed in the host")));
        let entry = &*due.slot.label;
        match &result {
            Ok(running) => {
                tracing::info!(entry, digest = %running.digest, took = ?started.elapsed(), "policy entry loaded");
            }
            Err(error) => tracing::warn!(entry, %error, "policy entry did not load"),
        }
        due.slot.loaded(due.generation, result, crate::clock::now())
    }
}
