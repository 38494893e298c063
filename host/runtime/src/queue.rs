//! The work queue: each key at most once, each key serially, delayed and retried keys in one place.
//!
//! There is one queue per concern. Its length is bounded by the number of live objects, because keys are
//! deduplicated. Retries back off exponentially with jitter; a success resets them. While an API server fails, pauses stay
//! short: that says nothing about the key, and when the server is back nobody tells. In a queue with flows they take turns,
//! and each has a share of the workers: requests that are under way together wait for each other in the API server, so a
//! flow that may have them all slows down the others although it is not their turn.

mod ready;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    fmt::Debug,
    future::Future,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher, Hash},
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

use self::ready::Ready;
use crate::{
    durations::{DurationNumbers, Durations},
    health::{Heartbeat, PULSE},
    tasks::Workers,
};

/// First retry delay of a failed key (TD-103).
const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// Longest retry delay of a failed key (TD-103).
const BACKOFF_MAX: Duration = Duration::from_mins(5);
/// Longest retry delay of a key that failed because the API server did, or because its object goes on changing: recovery
/// takes no longer than that.
const SOON_MAX: Duration = Duration::from_secs(10);
/// First delay of a key whose object changed meanwhile: its event is under way.
const STALE_FIRST: Duration = Duration::from_millis(50);

/// Part of the workers that one flow may have.
const SHARE: usize = 12;
/// Workers that a flow may have however few there are.
const LEAST_SHARE: usize = 4;

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
    running: HashSet<K>,
    /// How many of them are of one flow.
    running_of: HashMap<u64, usize>,
    /// The most that may be.
    share: usize,
    /// Added while running: run again right after.
    dirty: HashSet<K>,
    delayed: BTreeSet<(Instant, K)>,
    due: HashMap<K, Instant>,
    failures: BTreeMap<K, u32>,
    /// Times a key was outdated in a row.
    stales: BTreeMap<K, u32>,
}

impl<K> State<K> {
    fn new(flow: fn(&K) -> u64) -> Self {
        Self {
            ready: Ready::default(),
            flow,
            queued: HashSet::new(),
            running: HashSet::new(),
            running_of: HashMap::new(),
            share: usize::MAX,
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
    /// [`drive`].
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
            self.state.lock().share = (workers / SHARE).max(LEAST_SHARE);
        }
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
                state.promote(Instant::now());
                if let Some((key, since)) = state.take() {
                    self.waits.observe(since.elapsed());
                    if !state.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
                state.delayed.first().map(|(at, _)| *at)
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
            Outcome::Retry | Outcome::Unanswered => *state.failures.entry(key.clone()).or_insert(0) += 1,
        }
        if state.dirty.remove(key) {
            state.push(key.clone());
        } else {
            let delay = match outcome {
                Outcome::Done => None,
                Outcome::After(delay) => Some(delay),
                Outcome::Stale => {
                    let delay = backoff(STALE_FIRST, times(state.stales.get(key)), key);
                    Some(delay.min(spread(SOON_MAX, key)))
                }
                Outcome::Retry => Some(backoff(BACKOFF_FIRST, times(state.failures.get(key)), key)),
                Outcome::Unanswered => {
                    let delay = backoff(BACKOFF_FIRST, times(state.failures.get(key)), key);
                    Some(delay.min(spread(SOON_MAX, key)))
                }
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
        if self.running.contains(&key) {
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

    fn take(&mut self) -> Option<(K, Instant)> {
        let (running_of, share) = (&self.running_of, self.share);
        let has_its_share = |flow| running_of.get(&flow).is_some_and(|running| *running >= share);
        let (key, since) = self.ready.pop(has_its_share)?;
        self.queued.remove(&key);
        *self.running_of.entry((self.flow)(&key)).or_insert(0) += 1;
        self.running.insert(key.clone());
        Some((key, since))
    }

    /// Nobody works on the key any more.
    fn release(&mut self, key: &K) {
        if !self.running.remove(key) {
            return;
        }
        let flow = (self.flow)(key);
        if let Some(running) = self.running_of.get_mut(&flow) {
            *running -= 1;
            if *running == 0 {
                self.running_of.remove(&flow);
            }
        }
        self.ready.wake(flow);
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

fn times(counted: Option<&u32>) -> u32 {
    counted.copied().unwrap_or(1)
}

/// `first`, twice that, four times, ... 5 min, spread by up to a tenth so that keys that failed together do not return
/// together. The spread comes from the key, so it needs no randomness.
pub fn backoff<K: Hash>(first: Duration, failures: u32, key: &K) -> Duration {
    let exponent = failures.saturating_sub(1).min(16);
    let plain = first.saturating_mul(1 << exponent).min(BACKOFF_MAX);
    spread(plain, &(key, failures))
}

/// A pause shortened by up to a tenth, which `key` decides.
pub(crate) fn spread<K: Hash>(pause: Duration, key: &K) -> Duration {
    let place = hash(key) % 100;
    pause.mul_f64(0.9 + f64::from(u32::try_from(place).unwrap_or(0)) / 1000.0)
}

/// Works on a queue with up to `workers` keys at a time until `cancel`, then waits for the running ones. A panic in a
/// reconcile is a panic of this future: its key would otherwise count as running for ever. While all workers are busy
/// and none gets done, the heart stands still.
pub async fn drive<K, F, Fut>(
    queue: Arc<Queue<K>>,
    workers: usize,
    cancel: CancellationToken,
    heart: Heartbeat,
    reconcile: F,
) where
    K: Clone + Eq + Hash + Ord + Debug + Send + Sync + 'static,
    F: Fn(K) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Outcome> + Send + 'static,
{
    queue.share_out(workers);
    let mut workers = Workers::new(workers);
    let mut pulse = tokio::time::interval(PULSE);
    loop {
        tokio::select! {
            () = cancel.cancelled() => break,
            () = workers.free() => heart.beat(),
        }
        let key = tokio::select! {
            () = cancel.cancelled() => break,
            () = workers.attend() => continue,
            _ = pulse.tick() => continue,
            key = queue.next() => key,
        };
        let work = reconcile(key.clone());
        let queue = Arc::clone(&queue);
        workers.start(async move {
            let outcome = work.await;
            queue.done(&key, outcome);
        });
    }
    workers.finish().await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::health::Health;

    #[tokio::test(start_paused = true)]
    async fn a_key_waits_once_and_never_runs_twice_at_a_time() {
        let queue = Queue::new("test");
        queue.add("a");
        queue.add("a");
        queue.add("b");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        assert_eq!(queue.next().await, "b");
        assert!(tokio::time::timeout(Duration::from_secs(1), queue.next()).await.is_err(), "a is running");
        queue.done(&"a", Outcome::Done);
        assert_eq!(queue.next().await, "a", "it was added while running");
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_flow_delays_a_key_of_another_by_one_turn() {
        let queue = Queue::with_flows("test", |(flow, _): &(&str, u32)| flow_of(flow));
        queue.add_all((0..1000).map(|key| ("full", key)));
        queue.add(("other", 0));
        assert_eq!(queue.next().await, ("full", 0));
        assert_eq!(queue.next().await, ("other", 0));
        assert_eq!(queue.next().await, ("full", 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flow_has_a_share_of_the_workers_and_leaves_the_others_free() {
        let queue = Queue::with_flows("test", |(flow, _): &(&str, u32)| flow_of(flow));
        queue.share_out(100);
        queue.add_all((0..1000).map(|key| ("full", key)));
        for key in 0..8 {
            assert_eq!(queue.next().await, ("full", key));
        }
        let soon = Duration::from_secs(1);
        assert!(tokio::time::timeout(soon, queue.next()).await.is_err(), "it has its share");
        queue.add(("other", 0));
        assert_eq!(queue.next().await, ("other", 0));
        queue.done(&("other", 0), Outcome::Done);
        assert!(tokio::time::timeout(soon, queue.next()).await.is_err(), "that was not one of its own");
        queue.done(&("full", 3), Outcome::Done);
        assert_eq!(queue.next().await, ("full", 8));
        assert_eq!(queue.len(), 1000 - 1);
        queue.share_out(3);
        let few = queue.state.lock().share;
        assert_eq!(few, 4, "no flow waits where there are few workers");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_key_waited_is_told_without_its_delay() {
        let queue = Queue::new("test");
        queue.add("a");
        queue.add_after("b", Duration::from_mins(1));
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(queue.next().await, "a");
        assert_eq!(queue.next().await, "b");
        let QueueNumbers { depth, waits, .. } = queue.numbers();
        assert_eq!((depth, waits.count), (2, 2));
        assert!((waits.sum_seconds - 3.0).abs() < 0.1, "{}", waits.sum_seconds);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_of_several_delays_wins() {
        let queue = Queue::new("test");
        let start = Instant::now();
        queue.add_after("a", Duration::from_mins(1));
        queue.add_after("a", Duration::from_secs(5));
        queue.add_after("a", Duration::from_secs(30));
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed().as_secs(), 5);
        queue.done(&"a", Outcome::Done);
        assert!(tokio::time::timeout(Duration::from_mins(2), queue.next()).await.is_err(), "nothing is left");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_and_success_resets_them() {
        let queue = Queue::new("test");
        queue.add("a");
        let mut waits = Vec::new();
        for _ in 0..4 {
            let start = Instant::now();
            queue.next().await;
            waits.push(start.elapsed().as_millis());
            queue.done(&"a", Outcome::Retry);
        }
        assert!(waits.windows(2).all(|pair| pair[1] > pair[0]), "{waits:?}");
        queue.next().await;
        queue.done(&"a", Outcome::Done);
        queue.add("a");
        queue.next().await;
        queue.done(&"a", Outcome::Retry);
        let start = Instant::now();
        queue.next().await;
        assert!(start.elapsed() <= BACKOFF_FIRST);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_comes_back_soon_after_a_server_that_failed_for_long() {
        let queue = Queue::new("test");
        queue.add("a");
        let mut longest = Duration::ZERO;
        for _ in 0..20 {
            let start = Instant::now();
            queue.next().await;
            longest = longest.max(start.elapsed());
            queue.done(&"a", Outcome::Unanswered);
        }
        assert!(longest > SOON_MAX / 2 && longest <= SOON_MAX, "{longest:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_takes_what_arrives_while_it_lingers() {
        let queue = Queue::new("test");
        queue.add_all(["a", "b"]);
        queue.add_after("c", Duration::from_millis(3));
        queue.add_after("d", Duration::from_millis(30));
        assert_eq!(queue.next_batch(10, Duration::from_millis(5)).await, ["a", "b", "c"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_that_nobody_waits_for_stays_in_the_queue() {
        let queue = Queue::new("test");
        queue.add_all(["a", "b"]);
        let gave_up =
            tokio::time::timeout(Duration::from_secs(1), queue.next_batch(10, Duration::from_secs(5))).await;
        assert!(gave_up.is_err());
        queue.add("a");
        let again = tokio::time::timeout(Duration::from_secs(1), queue.next_batch(10, Duration::ZERO)).await;
        assert_eq!(again.unwrap(), ["a", "b"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_is_outdated_again_and_again_comes_back_less_often() {
        let queue = Queue::new("test");
        queue.add("a");
        let start = Instant::now();
        for _ in 0..8 {
            queue.next().await;
            queue.done(&"a", Outcome::Stale);
        }
        assert!(start.elapsed() > Duration::from_secs(5), "{:?}", start.elapsed());
        queue.next().await;
        queue.done(&"a", Outcome::Done);
        queue.add("a");
        queue.next().await;
        queue.done(&"a", Outcome::Stale);
        let start = Instant::now();
        queue.next().await;
        assert!(start.elapsed() < 2 * STALE_FIRST);
    }

    #[tokio::test]
    async fn a_panic_in_a_reconcile_ends_the_loop() {
        let queue = Queue::new("test");
        queue.add_all(["good", "bad"]);
        let heart = Arc::new(Health::default()).begin("test");
        let driver = tokio::spawn(drive(queue, 8, CancellationToken::new(), heart, |key| async move {
            assert_ne!(key, "bad");
            Outcome::Done
        }));
        let ended = tokio::time::timeout(Duration::from_secs(30), driver).await.unwrap();
        assert!(ended.unwrap_err().is_panic());
    }

    /// BU section 1: what does no work any more is not alive, whatever else still turns.
    #[tokio::test(start_paused = true)]
    async fn a_loop_whose_workers_all_hang_is_not_alive() {
        let health = Arc::new(Health::default());
        for hangs in [false, true] {
            let queue = Queue::new("test");
            queue.add_all([1, 2, 3]);
            let cancel = CancellationToken::new();
            let reconcile = move |key| async move {
                if hangs && key < 3 {
                    std::future::pending::<()>().await;
                }
                Outcome::Done
            };
            let heart = health.begin("test");
            let driver = tokio::spawn(drive(queue, 2, cancel.clone(), heart, reconcile));
            for _ in 0..10 {
                tokio::time::sleep(Duration::from_mins(1)).await;
                health.progress();
            }
            assert_eq!(health.is_alive(), !hangs);
            driver.abort();
            assert!(driver.await.is_err());
        }
        assert!(health.is_alive(), "nobody waits for a loop that ended");
    }

    #[tokio::test]
    async fn driving_works_on_all_keys_and_ends_on_cancel() {
        let queue = Queue::new("test");
        queue.add_all(0..100);
        let cancel = CancellationToken::new();
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let heart = Arc::new(Health::default()).begin("test");
        let driver = tokio::spawn(drive(Arc::clone(&queue), 8, cancel.clone(), heart, move |key| {
            let sender = sender.clone();
            async move {
                sender.send(key).unwrap();
                Outcome::Done
            }
        }));
        let mut seen = HashSet::new();
        while seen.len() < 100 {
            seen.insert(receiver.recv().await.unwrap());
        }
        cancel.cancel();
        driver.await.unwrap();
    }
}
