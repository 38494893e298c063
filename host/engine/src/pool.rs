//! The few threads that run guest code, behind a bounded queue (PO-902).
//!
//! Plain threads with a large stack, because guests may use 512 KiB of it. A full queue makes lease callers wait.

use std::collections::VecDeque;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::config::{EngineError, THREAD_STACK_BYTES};

type Job = Box<dyn FnOnce() + Send>;

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    /// Jobs that are not due yet, in the order in which they came: there are a handful.
    later: Vec<(Instant, Job)>,
    closed: bool,
}

impl Queue {
    /// Queues what is due by now; how long until the next one is.
    fn make_due(&mut self, now: Instant) -> Option<Duration> {
        for (_, job) in self.later.extract_if(.., |(at, _)| *at <= now) {
            self.jobs.push_back(job);
        }
        self.later.iter().map(|(at, _)| at.saturating_duration_since(now)).min()
    }
}

struct Shared {
    queue: Mutex<Queue>,
    added: Condvar,
    taken: Condvar,
    capacity: usize,
}

/// See the module documentation. Dropping it finishes queued jobs, forgets those not due yet, and joins the threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Pool {
    pub(crate) fn start(name: &str, threads: usize, capacity: usize) -> Result<Self, EngineError> {
        let shared = Arc::new(Shared {
            queue: Mutex::default(),
            added: Condvar::new(),
            taken: Condvar::new(),
            capacity,
        });
        let mut pool = Self { shared, threads: Vec::new() };
        for index in 0..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let thread = std::thread::Builder::new()
                .name(format!("{name}-{index}"))
                .stack_size(THREAD_STACK_BYTES)
                .spawn(move || work(&shared))
                .map_err(EngineError::Thread)?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Queues a job; waits while the queue is full.
    pub(crate) fn submit(&self, job: impl FnOnce() + Send + 'static) {
        let mut queue = self.shared.queue.lock();
        while queue.jobs.len() >= self.shared.capacity {
            self.shared.taken.wait(&mut queue);
        }
        queue.jobs.push_back(Box::new(job));
        drop(queue);
        self.shared.added.notify_one();
    }

    /// Queues a job, unless the queue is full.
    pub(crate) fn try_submit(&self, job: impl FnOnce() + Send + 'static) -> bool {
        let mut queue = self.shared.queue.lock();
        if queue.jobs.len() >= self.shared.capacity {
            return false;
        }
        queue.jobs.push_back(Box::new(job));
        drop(queue);
        self.shared.added.notify_one();
        true
    }

    /// Queues a job after a while, which may be none, without a bound: the caller has one such job per thing it waits for.
    pub(crate) fn submit_later(&self, wait: Duration, job: impl FnOnce() + Send + 'static) {
        self.shared.queue.lock().later.push((crate::clock::stopwatch() + wait, Box::new(job)));
        self.shared.added.notify_one();
    }

    /// Runs all jobs and returns their results in order; `None` for one that panicked.
    pub(crate) fn run_all<T: Send + 'static>(
        &self,
        jobs: Vec<Box<dyn FnOnce() -> T + Send>>,
    ) -> Vec<Option<T>> {
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut results: Vec<Option<T>> = jobs.iter().map(|_| None).collect();
        for (index, job) in jobs.into_iter().enumerate() {
            let sender = sender.clone();
            self.submit(move || {
                let result = job();
                // The receiver waits below for as long as a sender lives.
                let _ = sender.send((index, result));
            });
        }
        drop(sender);
        for (index, result) in receiver {
            if let Some(place) = results.get_mut(index) {
                *place = Some(result);
            }
        }
        results
    }

    /// Jobs that wait for a thread.
    pub(crate) fn depth(&self) -> usize {
        self.shared.queue.lock().jobs.len()
    }
}

fn work(shared: &Shared) {
    loop {
        let mut queue = shared.queue.lock();
        let job = loop {
            let next = queue.make_due(crate::clock::stopwatch());
            if let Some(job) = queue.jobs.pop_front() {
                break job;
            }
            if queue.closed {
                return;
            }
            match next {
                Some(wait) => {
                    shared.added.wait_for(&mut queue, wait);
                }
                None => shared.added.wait(&mut queue),
            }
        };
        drop(queue);
        shared.taken.notify_one();
        // A job that panics must not cost the pool a thread; its caller sees the missing result.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)).is_err() {
            tracing::error!("a policy work unit panicked in the host");
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.queue.lock().closed = true;
        self.shared.added.notify_all();
        let own = std::thread::current().id();
        for thread in self.threads.drain(..) {
            // The last handle of an engine may die on one of its own threads.
            if thread.thread().id() != own {
                // Panics were caught in `work`.
                let _ = thread.join();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_in_order_and_a_panic_is_a_missing_result() {
        let pool = Pool::start("test", 2, 1).unwrap();
        let jobs: Vec<Box<dyn FnOnce() -> usize + Send>> = (0..10_usize)
            .map(|i| Box::new(move || if i == 3 { panic!("on purpose") } else { i }) as _)
            .collect();
        let results = pool.run_all(jobs);
        assert_eq!(results[3], None);
        assert_eq!(results.iter().flatten().copied().collect::<Vec<_>>(), [0, 1, 2, 4, 5, 6, 7, 8, 9]);
        assert_eq!(pool.depth(), 0);
    }

    #[test]
    fn a_full_queue_refuses_who_does_not_wait() {
        let pool = Pool::start("test", 1, 1).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        let job = |name: &'static str| {
            let sender = sender.clone();
            move || sender.send(name).unwrap()
        };
        let (begun, begins) = std::sync::mpsc::channel();
        let (release, held) = std::sync::mpsc::channel::<()>();
        pool.submit(move || {
            begun.send(()).unwrap();
            held.recv().unwrap();
        });
        begins.recv().unwrap();
        assert!(pool.try_submit(job("queued")), "the only thread is busy, and one job may wait");
        assert!(!pool.try_submit(job("refused")));
        assert_eq!(pool.depth(), 1);
        release.send(()).unwrap();
        assert_eq!(receiver.recv().unwrap(), "queued");
        assert!(pool.try_submit(job("again")), "there is room again");
        drop(pool);
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), ["again"]);
    }

    #[test]
    fn a_later_job_runs_when_it_is_due_and_dies_with_the_pool() {
        let pool = Pool::start("test", 1, 1).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        for (wait, name) in [(Duration::from_hours(1), "never"), (Duration::from_millis(1), "soon")] {
            let sender = sender.clone();
            pool.submit_later(wait, move || sender.send(name).unwrap());
        }
        drop(sender);
        assert_eq!(receiver.recv().unwrap(), "soon");
        drop(pool);
        assert!(receiver.recv().is_err());
    }
}
