//! The work queue: each key at most once, each key serially, delayed and retried keys in one place.
//!
//! There is one queue per concern. Its length is bounded by the number of live objects, because keys are
//! deduplicated. Retries back off exponentially with jitter; a success resets them. While an API server fails, pauses stay
//! short: that says nothing about the key, and when the server is back nobody tells. In a queue with flows they take turns,
//! and each has a share of the workers: requests that are under way together wait for each other in the API server, so a
//! flow that may have them all slows down the others although it is not their turn. Whoever works on a key for long waits for
//! something else, a server that is far or asked to wait, and leaves its place in the share to the next key (`share`).

mod drive;
mod pauses;
mod ready;
mod share;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::Debug,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

pub(crate) use self::pauses::spread;
pub use self::{drive::drive, pauses::backoff};
use self::{
    ready::Ready,
    share::{Running, Share},
};
use crate::durations::{DurationNumbers, Durations};

/// What became of one reconcile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Converged; the next event brings the key back.
    Done,
    /// Converged; look again after this time.
    After(Duration),
    /// Failed; look again after the key's backoff.
    Retry,
    /// The API server failed; look again after the key's backoff, which stays within seconds.
    Unanswered,
    /// The object changed since it was read; look again soon, and less soon each time this happens again.
    Stale,
}

/// A deduplicating queue of keys.
#[derive(Debug)]
pub struct Queue<K> {
    name: &'static str,
    has_flows: bool,
    state: Mutex<State<K>>,
    wake: Notify,
    /// From the moment a key is ready until it is worked on.
    waits: Durations,
}

/// What is told of a queue.
#[derive(Debug, Clone, PartialEq)]
pub struct QueueNumbers {
    /// Which one.
    pub name: &'static str,
    /// Keys ready or running.
    pub depth: usize,
    /// How long keys were ready before they were worked on.
    pub waits: DurationNumbers,
}

#[derive(Debug)]
struct State<K> {
    ready: Ready<K>,
    /// The flow of a key.
    flow: fn(&K) -> u64,
    queued: HashSet<K>,
    /// With the moment when work on them began.
    running: HashMap<K, Instant>,
    /// Those of each flow.
    running_of: HashMap<u64, Running>,
    share: Share,
    /// Added while running: run again right after.
    dirty: HashSet<K>,
    delayed: BTreeSet<(Instant, K)>,
    due: HashMap<K, Instant>,
    failures: BTreeMap<K, Failures>,
    /// Times a key was outdated in a row.
    stales: BTreeMap<K, u32>,
}

/// Failures of a key in a row, all of them by the same fault.
#[derive(Debug, Default, Clone, Copy)]
struct Failures {
    times: u32,
    /// The API server's, not the key's.
    unanswered: bool,
}

impl Failures {
    /// One more. How long a server was away says nothing about a key to which it says no when it is back, such as one whose
    /// rules of access are not loaded yet.
    fn add(&mut self, unanswered: bool) {
        let before = if self.unanswered == unanswered { self.times } else { 0 };
        *self = Self { times: before.saturating_add(1), unanswered };
    }
}

impl<K> State<K> {
    fn new(flow: fn(&K) -> u64) -> Self {
        Self {
            ready: Ready::default(),
            flow,
            queued: HashSet::new(),
            running: HashMap::new(),
            running_of: HashMap::new(),
            share: Share::ALL,
            dirty: HashSet::new(),
            delayed: BTreeSet::new(),
            due: HashMap::new(),
            failures: BTreeMap::new(),
            stales: BTreeMap::new(),
        }
    }
}

impl<K: Clone + Eq + Hash + Ord + Debug + Send + 'static> Queue<K> {
    /// An empty queue whose keys come in the order in which they were added; `name` appears in logs.
    pub fn new(name: &'static str) -> Arc<Self> {
        Self::make(name, false, |_| 0)
    }

    /// An empty queue in which the flows take turns, see [`flow_of`], and none has more than a share of the workers of
    /// [`drive()`].
    pub fn with_flows(name: &'static str, flow: fn(&K) -> u64) -> Arc<Self> {
        Self::make(name, true, flow)
    }

    fn make(name: &'static str, has_flows: bool, flow: fn(&K) -> u64) -> Arc<Self> {
        let state = Mutex::new(State::new(flow));
        Arc::new(Self { name, has_flows, state, wake: Notify::new(), waits: Durations::default() })
    }

    /// What each flow may have of so many workers.
    fn share_out(&self, workers: usize) {
        if self.has_flows {
            self.state.lock().share = Share::of(workers);
        }
    }

    /// Whether a flow has all it may have, and nothing of that gets done.
    fn is_stuck(&self) -> bool {
        let state = self.state.lock();
        state.running_of.values().any(|flow| flow.is_stuck(state.share))
    }

    /// What is told of it.
    pub fn numbers(&self) -> QueueNumbers {
        QueueNumbers { name: self.name, depth: self.len(), waits: self.waits.numbers() }
    }

    /// Adds a key; nothing happens if it waits already. A key that is being worked on runs once more afterwards.
    pub fn add(&self, key: K) {
        self.state.lock().push(key);
        self.wake.notify_one();
    }

    /// Adds several keys.
    pub fn add_all(&self, keys: impl IntoIterator<Item = K>) {
        let mut state = self.state.lock();
        for key in keys {
            state.push(key);
        }
        drop(state);
        self.wake.notify_one();
    }

    /// Adds a key after a delay; of several delays the earliest wins.
    pub fn add_after(&self, key: K, delay: Duration) {
        let at = Instant::now() + delay;
        self.state.lock().delay(key, at);
        self.wake.notify_one();
    }

    /// Number of keys ready or running.
    pub fn len(&self) -> usize {
        let state = self.state.lock();
        state.queued.len() + state.running.len()
    }

    /// Whether nothing is ready or running; delayed keys do not count.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next key; it stays claimed until [`Self::done`].
    pub async fn next(&self) -> K {
        loop {
            let due = {
                let mut state = self.state.lock();
                let now = Instant::now();
                state.promote(now);
                if let Some((key, since)) = state.take(now) {
                    self.waits.observe(since.elapsed());
                    if !state.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.next_change()
            };
            match due {
                Some(at) => {
                    tokio::select! {
                        () = self.wake.notified() => {}
                        () = tokio::time::sleep_until(at) => {}
                    }
                }
                None => self.wake.notified().await,
            }
        }
    }

    /// Up to `max` keys: the next one and what else becomes ready within `linger`. A caller that stops waiting leaves
    /// the keys in the queue.
    pub async fn next_batch(&self, max: usize, linger: Duration) -> Vec<K> {
        let mut claimed = Claimed { queue: self, keys: vec![self.next().await] };
        let deadline = Instant::now() + linger;
        while claimed.keys.len() < max {
            match tokio::time::timeout_at(deadline, self.next()).await {
                Ok(key) => claimed.keys.push(key),
                Err(_) => break,
            }
        }
        std::mem::take(&mut claimed.keys)
    }

    /// Ends the work on a key.
    pub fn done(&self, key: &K, outcome: Outcome) {
        let mut state = self.state.lock();
        state.release(key);
        match outcome {
            Outcome::Done | Outcome::After(_) => {
                state.failures.remove(key);
                state.stales.remove(key);
            }
            Outcome::Stale => *state.stales.entry(key.clone()).or_insert(0) += 1,
            Outcome::Retry | Outcome::Unanswered => {
                state.failures.entry(key.clone()).or_default().add(outcome == Outcome::Unanswered);
            }
        }
        if state.dirty.remove(key) {
            state.push(key.clone());
        } else {
            let failed = state.failures.get(key).map_or(1, |failures| failures.times);
            let outdated = state.stales.get(key).copied().unwrap_or(1);
            let delay = match outcome {
                Outcome::Done => None,
                Outcome::After(delay) => Some(delay),
                Outcome::Stale => Some(pauses::outdated(outdated, key)),
                Outcome::Retry => Some(pauses::failed(failed, key)),
                Outcome::Unanswered => Some(pauses::unanswered(failed, key)),
            };
            if let Some(delay) = delay {
                if matches!(outcome, Outcome::Retry | Outcome::Unanswered) {
                    tracing::debug!(queue = self.name, ?key, ?delay, "retry");
                }
                state.delay(key.clone(), Instant::now() + delay);
            }
        }
        drop(state);
        self.wake.notify_one();
    }
}

impl<K: Clone + Eq + Hash + Ord> State<K> {
    fn push(&mut self, key: K) {
        if self.running.contains_key(&key) {
            self.dirty.insert(key);
        } else if self.queued.insert(key.clone()) {
            self.ready.push((self.flow)(&key), key);
        }
    }

    fn delay(&mut self, key: K, at: Instant) {
        match self.due.get(&key) {
            Some(earlier) if *earlier <= at => return,
            Some(later) => {
                let later = *later;
                self.delayed.remove(&(later, key.clone()));
            }
            None => {}
        }
        self.due.insert(key.clone(), at);
        self.delayed.insert((at, key));
    }

    fn promote(&mut self, now: Instant) {
        while let Some((at, _)) = self.delayed.first()
            && *at <= now
            && let Some((_, key)) = self.delayed.pop_first()
        {
            self.due.remove(&key);
            self.push(key);
        }
    }

    fn take(&mut self, now: Instant) -> Option<(K, Instant)> {
        let (running_of, share) = (&self.running_of, self.share);
        let has_its_share =
            |flow| running_of.get(&flow).is_some_and(|running| running.has_its_share(share, now));
        self.ready.wake_unless(has_its_share);
        let (key, since) = self.ready.pop(has_its_share)?;
        self.queued.remove(&key);
        self.running_of.entry((self.flow)(&key)).or_insert_with(|| Running::new(now)).begin(now);
        self.running.insert(key.clone(), now);
        Some((key, since))
    }

    /// When a key may be taken although nothing happens until then: its delay is over, or its flow no longer has its share.
    fn next_change(&self) -> Option<Instant> {
        let due = self.delayed.first().map(|(at, _)| *at);
        let flows = self.ready.resting().filter_map(|flow| self.running_of.get(&flow)?.frees(self.share));
        due.into_iter().chain(flows).min()
    }

    /// Nobody works on the key any more.
    fn release(&mut self, key: &K) {
        let Some(begun) = self.running.remove(key) else { return };
        let flow = (self.flow)(key);
        if let Some(running) = self.running_of.get_mut(&flow)
            && running.end(begun)
        {
            self.running_of.remove(&flow);
        }
    }
}

/// Keys taken out of a queue for a batch that is not complete. Dropped with keys, it gives them back.
struct Claimed<'a, K: Clone + Eq + Hash + Ord + Debug + Send + 'static> {
    queue: &'a Queue<K>,
    keys: Vec<K>,
}

impl<K: Clone + Eq + Hash + Ord + Debug + Send + 'static> Drop for Claimed<'_, K> {
    fn drop(&mut self) {
        if self.keys.is_empty() {
            return;
        }
        let mut state = self.queue.state.lock();
        for key in self.keys.drain(..) {
            state.release(&key);
            state.dirty.remove(&key);
            state.push(key);
        }
        drop(state);
        self.queue.wake.notify_one();
    }
}

/// The flow of all keys with this property, such as their namespace. Two that share a flow by chance share its turns.
pub fn flow_of<P: Hash + ?Sized>(property: &P) -> u64 {
    hash(property)
}

/// The same in each process.
fn hash<T: Hash + ?Sized>(value: &T) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(value)
}

#[cfg(test)]
mod tests;
