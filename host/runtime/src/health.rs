//! What the probes tell: alive while every loop makes progress, ready as MC section 7 says. Neither depends on the
//! worker cluster.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

/// Every loop must come by at least this often.
const PROGRESS_LIMIT: Duration = Duration::from_mins(5);
/// How often it shall come by when it has nothing to do.
pub const PULSE: Duration = Duration::from_secs(30);
/// The API server of the computing cluster must have answered within this time.
const ANSWER_LIMIT: Duration = Duration::from_mins(1);

/// Health of one process, shared by its tasks.
#[derive(Debug)]
pub struct Health {
    started: Instant,
    ready: AtomicBool,
    /// Milliseconds after the start.
    progress: AtomicU64,
    /// Milliseconds after the start, plus one; 0 before the first answer.
    answer: AtomicU64,
    loops: Mutex<Loops>,
}

/// The loops that are to come by.
#[derive(Debug, Default)]
struct Loops {
    next: u64,
    beats: HashMap<u64, (&'static str, Instant)>,
}

/// A loop that is to come by. Dropped with the loop that holds it, after which nobody waits for it.
#[derive(Debug)]
pub struct Heartbeat {
    health: Arc<Health>,
    number: u64,
}

impl Heartbeat {
    /// The loop came by.
    pub fn beat(&self) {
        if let Some((_, last)) = self.health.loops.lock().beats.get_mut(&self.number) {
            *last = Instant::now();
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.health.loops.lock().beats.remove(&self.number);
    }
}

impl Default for Health {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            ready: AtomicBool::new(false),
            progress: AtomicU64::new(0),
            answer: AtomicU64::new(0),
            loops: Mutex::default(),
        }
    }
}

impl Health {
    /// Readiness: a standby that can read the Lease, or a leader whose computing-side lists are complete.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }

    /// Whether the process is ready: it said so, is alive, and the computing cluster answered within a minute.
    pub fn is_ready(&self) -> bool {
        let answer = self.answer.load(Ordering::Relaxed);
        let answered = answer > 0 && self.now().saturating_sub(answer - 1) < millis(ANSWER_LIMIT);
        self.ready.load(Ordering::Relaxed) && answered && self.is_alive()
    }

    /// The API server of the computing cluster answered.
    pub fn answered(&self) {
        self.answer.store(self.now() + 1, Ordering::Relaxed);
    }

    /// Called by the main loop each time it comes by.
    pub fn progress(&self) {
        self.progress.store(self.now(), Ordering::Relaxed);
    }

    /// One more loop that is to come by from now on.
    pub fn begin(self: &Arc<Self>, name: &'static str) -> Heartbeat {
        let mut loops = self.loops.lock();
        let number = loops.next;
        loops.next += 1;
        loops.beats.insert(number, (name, Instant::now()));
        Heartbeat { health: Arc::clone(self), number }
    }

    /// Whether the main loop and all others came by in the last five minutes.
    pub fn is_alive(&self) -> bool {
        let main = self.now().saturating_sub(self.progress.load(Ordering::Relaxed)) < millis(PROGRESS_LIMIT);
        main && self.stuck().is_none()
    }

    /// A loop that did not come by.
    fn stuck(&self) -> Option<&'static str> {
        let loops = self.loops.lock();
        let stuck = loops.beats.values().find(|(_, last)| last.elapsed() >= PROGRESS_LIMIT);
        stuck.map(|(name, _)| {
            tracing::error!(name, "a loop makes no progress");
            *name
        })
    }

    fn now(&self) -> u64 {
        millis(self.started.elapsed())
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_process_is_ready_while_the_computing_cluster_answers() {
        let health = Health::default();
        health.set_ready(true);
        assert!(!health.is_ready(), "there was no answer yet");
        health.answered();
        assert!(health.is_ready());
        tokio::time::advance(Duration::from_mins(1)).await;
        assert!(!health.is_ready() && health.is_alive());
        health.answered();
        assert!(health.is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn one_loop_that_stands_still_is_enough() {
        let health = Arc::new(Health::default());
        let (busy, stuck) = (health.begin("busy"), health.begin("stuck"));
        for _ in 0..5 {
            assert!(health.is_alive());
            tokio::time::advance(Duration::from_mins(1)).await;
            health.progress();
            busy.beat();
        }
        assert!(!health.is_alive());
        drop(stuck);
        assert!(health.is_alive(), "a loop that ended is not waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_process_without_progress_is_dead() {
        let health = Health::default();
        tokio::time::advance(Duration::from_secs(299)).await;
        assert!(health.is_alive());
        health.progress();
        tokio::time::advance(Duration::from_secs(299)).await;
        assert!(health.is_alive());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!health.is_alive());
    }
}
