//! Answers of the computing cluster, remembered for a while (PX-411, PX-416).
//!
//! Bounded; one question is asked once at a time, whoever asks; failures to ask are told to all who waited and forgotten.

use std::{
    collections::HashMap,
    hash::Hash,
    time::{Duration, Instant},
};

use futures::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;

/// What asking gives: an answer and how long it holds, or why there is none.
pub(crate) type Asked<V> = Result<(V, Duration), String>;

/// A cache of answers.
pub(crate) struct Cache<K, V: Clone> {
    max: usize,
    entries: Mutex<HashMap<K, Entry<V>>>,
}

struct Entry<V: Clone> {
    /// Tells entries of one key apart.
    number: u64,
    flight: Shared<BoxFuture<'static, Asked<V>>>,
    /// `None` while the question is under way.
    until: Option<Instant>,
}

/// Where an answer came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// Remembered, or asked by somebody else at the same moment.
    Cache,
    /// Asked for this call.
    Fresh,
}

impl<K: Hash + Eq + Clone, V: Clone + Send + Sync + 'static> Cache<K, V> {
    /// A cache of at most `max` answers.
    pub(crate) fn new(max: usize) -> Self {
        Self { max, entries: Mutex::default() }
    }

    /// The answer for `key`: a remembered one, or that of `ask`.
    pub(crate) async fn get<F>(&self, key: &K, ask: impl FnOnce() -> F) -> Result<(V, Source), String>
    where
        F: Future<Output = Asked<V>> + Send + 'static,
    {
        let now = Instant::now();
        let (number, flight, source) = {
            let mut entries = self.entries.lock();
            match entries.get(key) {
                Some(entry) if entry.until.is_none_or(|until| now < until) => {
                    (entry.number, entry.flight.clone(), Source::Cache)
                }
                old => {
                    let number = old.map_or(0, |entry| entry.number + 1);
                    entries.remove(key);
                    make_room(&mut entries, self.max, now);
                    let flight = ask().boxed().shared();
                    entries.insert(key.clone(), Entry { number, flight: flight.clone(), until: None });
                    (number, flight, Source::Fresh)
                }
            }
        };
        let asked = flight.await;
        let mut entries = self.entries.lock();
        let mine = entries.get_mut(key).filter(|entry| entry.number == number && entry.until.is_none());
        match asked {
            Ok((value, holds)) => {
                if let Some(entry) = mine {
                    entry.until = Some(Instant::now() + holds);
                }
                Ok((value, source))
            }
            Err(error) => {
                if mine.is_some() {
                    entries.remove(key);
                }
                Err(error)
            }
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
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };
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

    #[tokio::test]
    async fn a_caller_that_goes_away_does_not_take_the_answer_with_it() {
        let cache = Cache::new(8);
        let go = Arc::new(Notify::new());
        let waiting = Arc::clone(&go);
        let first = cache.get(&"k", move || async move {
            waiting.notified().await;
            Ok((1, LONG))
        });
        assert!(first.now_or_never().is_none());
        go.notify_one();
        assert_eq!(cache.get(&"k", || async { Ok((2, LONG)) }).await, Ok((1, Source::Cache)));
    }

    #[tokio::test]
    async fn the_bound_holds() {
        let cache = Cache::new(4);
        for key in 0..100 {
            assert!(cache.get(&key, || async { Ok(((), LONG)) }).await.is_ok());
        }
        assert_eq!(cache.entries.lock().len(), 4);
    }
}
