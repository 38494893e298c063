//! Answers of the computing cluster, remembered for a while (PX-411, PX-416).
//!
//! Bounded, as are the questions under way; one question is asked once at a time, whoever asks, and is asked to its end,
//! whoever goes away; failures to ask are told to all who waited and forgotten.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;
use tokio::sync::Semaphore;

/// Most questions under way at a time: callers nobody knows can make many.
const UNDER_WAY: usize = 32;

/// What asking gives: an answer and how long it holds, or why there is none.
pub type Asked<V> = Result<(V, Duration), String>;

/// A cache of answers.
pub struct Cache<K, V: Clone> {
    max: usize,
    entries: Arc<Mutex<Entries<K, V>>>,
    places: Arc<Semaphore>,
}

struct Entries<K, V: Clone> {
    by_key: HashMap<K, Entry<V>>,
    /// Of the next entry.
    number: u64,
}

struct Entry<V: Clone> {
    /// Tells entries of one key apart.
    number: u64,
    flight: Flight<V>,
    /// `None` while the question is under way.
    until: Option<Instant>,
}

type Flight<V> = Shared<BoxFuture<'static, Asked<V>>>;

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Remembered, or asked by somebody else at the same moment.
    Cache,
    /// Asked for this call.
    Fresh,
}

impl<K, V> Cache<K, V>
where
    K: Hash + Eq + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// A cache of at most `max` answers.
    pub fn new(max: usize) -> Self {
        Self::with_places(max, UNDER_WAY)
    }

    fn with_places(max: usize, places: usize) -> Self {
        let entries = Entries { by_key: HashMap::new(), number: 0 };
        Self { max, entries: Arc::new(Mutex::new(entries)), places: Arc::new(Semaphore::new(places)) }
    }

    /// The answer for `key`: a remembered one, or that of `ask`.
    pub async fn get<F>(&self, key: &K, ask: impl FnOnce() -> F) -> Result<(V, Source), String>
    where
        F: Future<Output = Asked<V>> + Send + 'static,
    {
        let (flight, source) = match self.known(key) {
            Some(flight) => (flight, Source::Cache),
            None => self.depart(key, ask).await?,
        };
        let (value, _) = flight.await?;
        Ok((value, source))
    }

    fn known(&self, key: &K) -> Option<Flight<V>> {
        self.entries.lock().known(key)
    }

    /// Asks, unless somebody else did while this caller waited for its turn. A caller that goes away while it waits leaves
    /// nothing; from then on the question is a task of its own, so that its answer is one of now, whoever is there to hear.
    async fn depart<F>(&self, key: &K, ask: impl FnOnce() -> F) -> Result<(Flight<V>, Source), String>
    where
        F: Future<Output = Asked<V>> + Send + 'static,
    {
        let place = Arc::clone(&self.places).acquire_owned().await.map_err(|error| error.to_string())?;
        let mut entries = self.entries.lock();
        if let Some(flight) = entries.known(key) {
            return Ok((flight, Source::Cache));
        }
        let number = entries.number;
        entries.number += 1;
        let asking = ask();
        let landing = Landing { entries: Arc::clone(&self.entries), key: key.clone(), number };
        let task = tokio::spawn(async move {
            let _place = place;
            let asked = asking.await;
            landing.land(&asked);
            asked
        });
        let flight = async move { task.await.unwrap_or_else(|error| Err(error.to_string())) };
        let flight = flight.boxed().shared();
        entries.by_key.remove(key);
        make_room(&mut entries.by_key, self.max, Instant::now());
        entries.by_key.insert(key.clone(), Entry { number, flight: flight.clone(), until: None });
        Ok((flight, Source::Fresh))
    }
}

impl<K: Hash + Eq, V: Clone> Entries<K, V> {
    fn known(&self, key: &K) -> Option<Flight<V>> {
        let entry = self.by_key.get(key)?;
        entry.until.is_none_or(|until| Instant::now() < until).then(|| entry.flight.clone())
    }
}

/// Writes down what became of a question; without an answer, also after a panic, nothing is remembered.
struct Landing<K: Hash + Eq, V: Clone> {
    entries: Arc<Mutex<Entries<K, V>>>,
    key: K,
    number: u64,
}

impl<K: Hash + Eq, V: Clone> Landing<K, V> {
    fn land(&self, asked: &Asked<V>) {
        let Ok((_, holds)) = asked else { return };
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.by_key.get_mut(&self.key).filter(|entry| entry.number == self.number) {
            entry.until = Some(Instant::now() + *holds);
        }
    }
}

impl<K: Hash + Eq, V: Clone> Drop for Landing<K, V> {
    fn drop(&mut self) {
        let mut entries = self.entries.lock();
        let unanswered = |entry: &Entry<V>| entry.number == self.number && entry.until.is_none();
        if entries.by_key.get(&self.key).is_some_and(unanswered) {
            entries.by_key.remove(&self.key);
        }
    }
}

/// Makes room for one more: what is over first, then what is over soonest, at last a question under way.
fn make_room<K: Hash + Eq + Clone, V: Clone>(entries: &mut HashMap<K, Entry<V>>, max: usize, now: Instant) {
    if entries.len() < max {
        return;
    }
    entries.retain(|_, entry| entry.until.is_none_or(|until| now < until));
    if entries.len() >= max {
        let soonest = entries.iter().min_by_key(|(_, entry)| (entry.until.is_none(), entry.until));
        if let Some(key) = soonest.map(|(key, _)| key.clone()) {
            entries.remove(&key);
        }
    }
}

impl<K, V: Clone> std::fmt::Debug for Cache<K, V> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("max", &self.max).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use tokio::sync::Notify;

    const LONG: Duration = Duration::from_mins(1);

    #[tokio::test]
    async fn an_answer_is_remembered_while_it_holds() {
        let cache = Cache::new(8);
        let ask = |value: u32, holds| move || async move { Ok((value, holds)) };
        assert_eq!(cache.get(&"k", ask(1, Duration::ZERO)).await, Ok((1, Source::Fresh)));
        assert_eq!(cache.get(&"k", ask(2, LONG)).await, Ok((2, Source::Fresh)), "the first held no time");
        assert_eq!(cache.get(&"k", ask(3, LONG)).await, Ok((2, Source::Cache)));
        assert_eq!(cache.get(&"other", ask(4, LONG)).await, Ok((4, Source::Fresh)));
    }

    #[tokio::test]
    async fn a_failure_to_ask_is_not_remembered() {
        let cache = Cache::<_, u32>::new(8);
        assert!(cache.get(&"k", || async { Err("down".to_owned()) }).await.is_err());
        assert_eq!(cache.get(&"k", || async { Ok((1, LONG)) }).await, Ok((1, Source::Fresh)));
    }

    #[tokio::test]
    async fn many_callers_ask_once() {
        let cache = Arc::new(Cache::new(8));
        let (asked, go) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
        let callers = (0..10).map(|_| {
            let (cache, asked, go) = (Arc::clone(&cache), Arc::clone(&asked), Arc::clone(&go));
            async move {
                let ask = || async move {
                    let number = asked.fetch_add(1, Ordering::SeqCst);
                    go.notified().await;
                    Ok((number, LONG))
                };
                cache.get(&"k", ask).await
            }
        });
        let release = async { go.notify_one() };
        let (answers, ()) = tokio::join!(futures::future::join_all(callers), release);
        assert!(answers.iter().all(|answer| matches!(answer, Ok((0, _)))), "{answers:?}");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }

    /// A question that waits for `go`, and says then what `answer` is.
    fn ask_when(
        go: &Arc<Notify>,
        answer: &Arc<AtomicU32>,
    ) -> impl FnOnce() -> BoxFuture<'static, Asked<u32>> + use<> {
        let (go, answer) = (Arc::clone(go), Arc::clone(answer));
        move || {
            async move {
                let told = answer.load(Ordering::SeqCst);
                go.notified().await;
                Ok((told, Duration::from_millis(50)))
            }
            .boxed()
        }
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_does_not_take_the_answer_with_it() {
        let (cache, go) = (Cache::new(8), Arc::new(Notify::new()));
        let first = cache.get(&"k", ask_when(&go, &Arc::new(AtomicU32::new(1))));
        assert!(first.now_or_never().is_none());
        go.notify_one();
        assert_eq!(cache.get(&"k", || async { Ok((2, LONG)) }).await, Ok((1, Source::Cache)));
    }

    #[tokio::test]
    async fn an_answer_is_as_old_as_its_question() {
        let (cache, go, answer) = (Cache::new(8), Arc::new(Notify::new()), Arc::new(AtomicU32::new(1)));
        let abandoned = cache.get(&"k", ask_when(&go, &answer));
        assert!(abandoned.now_or_never().is_none());
        go.notify_one();
        // Nobody is there when the answer comes, nor while it holds.
        let over = async {
            while cache.known(&"k").is_some() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let over = tokio::time::timeout(Duration::from_secs(10), over).await;
        assert!(over.is_ok(), "the answer of then waits for the next caller");
        answer.store(2, Ordering::SeqCst);
        go.notify_one();
        assert_eq!(cache.get(&"k", ask_when(&go, &answer)).await, Ok((2, Source::Fresh)));
    }

    #[tokio::test]
    async fn a_question_that_panics_is_asked_again() {
        let cache = Cache::<_, u32>::new(8);
        let panics = || async { panic!("a bug") };
        assert!(cache.get(&"k", panics).await.is_err());
        assert_eq!(cache.get(&"k", || async { Ok((1, LONG)) }).await, Ok((1, Source::Fresh)));
    }

    #[tokio::test]
    async fn few_questions_are_under_way_at_a_time() {
        let cache = Cache::with_places(8, 2);
        let (go, answer) = (Arc::new(Notify::new()), Arc::new(AtomicU32::new(1)));
        for key in ["a", "b", "c"] {
            assert!(cache.get(&key, ask_when(&go, &answer)).now_or_never().is_none());
        }
        assert_eq!(cache.entries.lock().by_key.len(), 2, "whoever left before its turn asks nothing");
        tokio::task::yield_now().await;
        go.notify_waiters();
        assert_eq!(cache.get(&"c", || async { Ok((3, LONG)) }).await, Ok((3, Source::Fresh)));
    }

    #[tokio::test]
    async fn the_bound_holds() {
        let cache = Cache::new(4);
        for key in 0..100 {
            assert!(cache.get(&key, || async { Ok(((), LONG)) }).await.is_ok());
        }
        assert_eq!(cache.entries.lock().by_key.len(), 4);
    }
}
