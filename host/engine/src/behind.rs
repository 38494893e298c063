//! Loads in the background, in turns (PO-704, PO-906).
//!
//! A process serves the bindings of many workers with few loader threads, and with one compiler for what their owners bring.
//! A host has one load under way that needs the compiler and one that does not, and then goes to the end of the line: each
//! module waits for at most one compilation of each other binding, and one that was compiled before for none.

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
    compiled: Line,
    uncompiled: Line,
}

/// Loads of one kind, in their order.
#[derive(Default)]
struct Line {
    due: VecDeque<Due>,
    /// One of them is being loaded, or waits for a thread.
    busy: bool,
}

/// Which of a host's lines a load is in, and whose thread it waits for.
#[derive(Clone, Copy)]
enum Lane {
    /// The code is at hand.
    Compiled,
    /// It takes as long as a compiler may.
    Uncompiled,
}

impl Behind {
    fn line(&mut self, lane: Lane) -> &mut Line {
        match lane {
            Lane::Compiled => &mut self.compiled,
            Lane::Uncompiled => &mut self.uncompiled,
        }
    }
}

impl Line {
    /// The next load that is still wanted.
    fn next(&mut self) -> Option<Due> {
        std::iter::from_fn(|| self.due.pop_front()).find(Due::is_wanted)
    }
}

impl Due {
    fn is_wanted(&self) -> bool {
        self.slot.wants(self.generation)
    }
}

/// A host's turn in a lane. However it ends, what is still due takes the next one.
struct Turn<'h> {
    host: &'h Arc<Inner>,
    lane: Lane,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut behind = self.host.behind.lock();
        let line = behind.line(self.lane);
        line.busy = !line.due.is_empty();
        if line.busy {
            self.host.take_turn(self.lane);
        }
    }
}

impl Inner {
    /// Queues loads; their results change decisions.
    pub(crate) fn load_behind(self: &Arc<Self>, due: impl IntoIterator<Item = Due>) {
        for due in due {
            let at_hand = self.engine.inner.cache.at_hand(due.input.digest);
            let lane = if at_hand { Lane::Compiled } else { Lane::Uncompiled };
            let mut behind = self.behind.lock();
            let line = behind.line(lane);
            line.due.retain(Due::is_wanted);
            line.due.push_back(due);
            if !std::mem::replace(&mut line.busy, true) {
                self.take_turn(lane);
            }
        }
    }

    /// One more attempt after a while.
    fn load_later(self: &Arc<Self>, wait: Duration, due: Due) {
        self.on_a_loader(Lane::Compiled, wait, move |host| host.load_behind([due]));
    }

    /// Goes to the end of the line for a thread of the lane.
    fn take_turn(self: &Arc<Self>, lane: Lane) {
        self.on_a_loader(lane, Duration::ZERO, move |host| host.load_next(lane));
    }

    /// A host that is gone loads nothing more.
    fn on_a_loader(
        self: &Arc<Self>,
        lane: Lane,
        wait: Duration,
        job: impl FnOnce(&Arc<Self>) + Send + 'static,
    ) {
        let host: Weak<Self> = Arc::downgrade(self);
        let threads = match lane {
            Lane::Compiled => &self.engine.inner.loads,
            Lane::Uncompiled => &self.engine.inner.compiles,
        };
        threads.submit_later(wait, move || {
            if let Some(host) = host.upgrade() {
                job(&host);
            }
        });
    }

    fn load_next(self: &Arc<Self>, lane: Lane) {
        let turn = Turn { host: self, lane };
        let next = self.behind.lock().line(lane).next();
        let news = next.is_some_and(|due| self.attempt(due));
        drop(turn);
        if news {
            (self.changed)();
        }
    }

    /// One load, and another one after a while where that may help. Whether decisions change with it.
    pub(crate) fn attempt(self: &Arc<Self>, due: Due) -> bool {
        match self.load(&due) {
            Loaded::Outdated => return false,
            Loaded::Taken => {}
            Loaded::Again(wait) => self.load_later(wait, due),
        }
        true
    }

    /// One load.
    fn load(&self, due: &Due) -> Loaded {
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
