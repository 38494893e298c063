//! How many instances of modules exist, and a bell for whoever only has work while there are some.
//!
//! There is one engine per process (PO-901), so the process counts. The bell costs a starting instance one load of a
//! counter unless somebody waits.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

static INSTANCES: AtomicUsize = AtomicUsize::new(0);
static WAITING: AtomicUsize = AtomicUsize::new(0);
static BELL: (Mutex<()>, Condvar) = (Mutex::new(()), Condvar::new());

/// Instances of modules that exist.
pub(crate) fn instances_in_use() -> usize {
    INSTANCES.load(Ordering::SeqCst)
}

/// One of [`instances_in_use`], as long as it lives.
#[derive(Debug)]
pub(crate) struct InUse;

impl InUse {
    pub(crate) fn new() -> Self {
        INSTANCES.fetch_add(1, Ordering::SeqCst);
        // Whoever waits has said so before it read the number for the last time.
        if WAITING.load(Ordering::SeqCst) > 0 {
            ring();
        }
        Self
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        INSTANCES.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Returns when an instance exists, or when `given_up` says so; [`ring`] makes it look again.
pub(crate) fn wait_for_an_instance(given_up: impl Fn() -> bool) {
    let (lock, bell) = &BELL;
    let mut guard = lock.lock();
    WAITING.fetch_add(1, Ordering::SeqCst);
    while instances_in_use() == 0 && !given_up() {
        bell.wait(&mut guard);
    }
    WAITING.fetch_sub(1, Ordering::SeqCst);
}

/// Whether somebody is in [`wait_for_an_instance`].
#[cfg(test)]
pub(crate) fn somebody_waits() -> bool {
    WAITING.load(Ordering::SeqCst) > 0
}

/// Wakes everybody in [`wait_for_an_instance`].
pub(crate) fn ring() {
    let (lock, bell) = &BELL;
    let _guard = lock.lock();
    bell.notify_all();
}
