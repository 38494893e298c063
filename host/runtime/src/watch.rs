//! Runs one watch stream into a [`Sink`], for as long as its session lives.

mod health;

use std::{fmt::Debug, future::ready, sync::Arc, time::Duration};

use futures::{Stream, TryStreamExt};
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        utils::{Backoff, ResetTimerBackoff},
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::{
    error::chain,
    queue::{backoff, spread},
    sink::Sink,
};
use health::Next;
pub use health::{WatchFailure, WatchHealth};

/// How long a single watch call lives before it is renewed without a relist; the watch library gives a silently cut
/// connection up a few seconds later.
const WATCH_TIMEOUT_SECONDS: u32 = 240;

/// Everything is listed again after this time, less up to a tenth (BU section 21).
const RELIST: Duration = Duration::from_hours(10);

/// First pause after a failure.
const PAUSE_FIRST: Duration = Duration::from_millis(800);
/// Longest pause between two attempts: so much later than a server we are back at the latest.
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// Without a failure for so long the pauses begin anew. A watch of a quiet cluster says nothing when it works again.
const CALM: Duration = Duration::from_mins(2);

/// Growing pauses of one watch.
#[derive(Debug)]
struct Pauses {
    name: &'static str,
    failures: u32,
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.failures = self.failures.saturating_add(1);
        let pause = backoff(PAUSE_FIRST, self.failures, &self.name);
        Some(pause.min(spread(PAUSE_MAX, &self.name)))
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// What to watch.
#[derive(Debug)]
pub struct WatchSpec<T> {
    /// Name in logs, for example `worker nodes`.
    pub name: &'static str,
    /// Kind and scope.
    pub api: Api<T>,
    /// Selectors.
    pub config: watcher::Config,
}

/// Feeds `sink` from the stream until `cancel`. Errors are retried with backoff for ever; the watch library keeps the
/// last resource version, so a short interruption costs no relist. A long one does (see [`WatchHealth`]), and so do
/// `RELIST` hours: what a server failed to tell is not missed for longer.
pub async fn watch_into<T, S>(
    spec: WatchSpec<T>,
    sink: Arc<S>,
    health: Arc<WatchHealth>,
    cancel: CancellationToken,
) where
    T: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    S: Sink<T>,
{
    let WatchSpec { name, api, config } = spec;
    let relist = spread(RELIST, &(name, &config.label_selector, &config.field_selector));
    let config = config.timeout(WATCH_TIMEOUT_SECONDS);
    let begin = || {
        // The beginning of a list is no success: it would reset the backoff of lists that fail.
        let events = watcher::watcher(api.clone(), config.clone());
        let pauses = ResetTimerBackoff::new(Pauses { name, failures: 0 }, CALM);
        events.try_filter(|event| ready(!matches!(event, Event::Init))).backoff(pauses)
    };
    follow(name, begin, relist, &*sink, &health, &cancel).await;
}

/// Follows streams that `begin` makes, each of which begins with a list.
async fn follow<T, S, W>(
    name: &'static str,
    mut begin: impl FnMut() -> W,
    relist: Duration,
    sink: &S,
    health: &WatchHealth,
    cancel: &CancellationToken,
) where
    T: Debug,
    S: Sink<T>,
    W: Stream<Item = watcher::Result<Event<T>>>,
{
    health.begun();
    let mut stream = std::pin::pin!(begin());
    let mut listed: Vec<T> = Vec::new();
    let mut relist_at = Instant::now() + relist;
    loop {
        let event = tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep_until(relist_at) => {
                tracing::debug!(watch = name, "listing again");
                listed = Vec::new();
                stream.set(begin());
                relist_at = Instant::now() + relist;
                continue;
            }
            event = stream.try_next() => event,
        };
        match event {
            Ok(Some(event)) => take(event, name, sink, health, &mut listed),
            Ok(None) => return,
            Err(error) => {
                let failure = WatchFailure::of(&error);
                // While a server is down all its watches fail every few seconds.
                if health.is_troubled() {
                    tracing::debug!(watch = name, error = chain(&error), "watch still interrupted");
                } else {
                    tracing::warn!(watch = name, error = chain(&error), "watch interrupted, retrying");
                }
                listed = Vec::new();
                if let WatchFailure::Denied(why) = failure {
                    sink.denied(why);
                }
                if health.failed(failure) == Next::Anew {
                    tracing::warn!(
                        watch = name,
                        error = chain(&error),
                        "watch goes on failing, listing anew"
                    );
                    stream.set(begin());
                }
            }
        }
    }
}

fn take<T: Debug, S: Sink<T>>(
    event: Event<T>,
    name: &str,
    sink: &S,
    health: &WatchHealth,
    listed: &mut Vec<T>,
) {
    match event {
        // It proves nothing: it is said before the list is asked for.
        Event::Init => *listed = Vec::new(),
        Event::Apply(object) => {
            health.works();
            sink.apply(object);
        }
        Event::Delete(object) => {
            health.works();
            sink.delete(object);
        }
        Event::InitApply(object) => listed.push(object),
        Event::InitDone => {
            tracing::debug!(watch = name, objects = listed.len(), "list complete");
            sink.reset(std::mem::take(listed));
            health.listed();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt;
    use parking_lot::Mutex;

    #[derive(Debug, Default)]
    struct Lists(Mutex<Vec<Vec<u8>>>);

    impl Sink<u8> for Lists {
        fn apply(&self, _: u8) {}
        fn delete(&self, _: u8) {}
        fn reset(&self, all: Vec<u8>) {
            self.0.lock().push(all);
        }
    }

    #[test]
    fn the_beginning_of_a_list_is_no_success() {
        let (sink, health, mut listed) = (Lists::default(), WatchHealth::default(), vec![9]);
        let mut then = |event| take(event, "test", &sink, &health, &mut listed);
        then(Event::Init);
        assert!(!health.is_synced() && sink.0.lock().is_empty());
        then(Event::InitApply(1));
        then(Event::InitDone);
        assert!(health.is_synced());
        assert_eq!(*sink.0.lock(), [vec![1]]);
    }

    fn events(all: &[Option<Event<u8>>]) -> impl Stream<Item = watcher::Result<Event<u8>>> + use<> {
        let all: Vec<watcher::Result<Event<u8>>> =
            all.iter().cloned().map(|event| event.ok_or(watcher::Error::NoResourceVersion)).collect();
        futures::stream::iter(all).chain(futures::stream::pending())
    }

    fn list(object: u8) -> [Option<Event<u8>>; 3] {
        [Some(Event::Init), Some(Event::InitApply(object)), Some(Event::InitDone)]
    }

    /// Follows streams that are made one after the other; returns what the sink got within some time.
    async fn followed(within: Duration, mut streams: Vec<Vec<Option<Event<u8>>>>) -> Vec<Vec<u8>> {
        let (sink, health, cancel) = (Lists::default(), WatchHealth::default(), CancellationToken::new());
        streams.reverse();
        let begin = || events(&streams.pop().unwrap_or_default());
        let following = follow("test", begin, RELIST, &sink, &health, &cancel);
        assert!(tokio::time::timeout(within, following).await.is_err(), "it never ends by itself");
        sink.0.into_inner()
    }

    #[tokio::test(start_paused = true)]
    async fn everything_is_listed_again_after_ten_hours() {
        let lists = || vec![list(1).to_vec(), list(2).to_vec()];
        assert_eq!(followed(Duration::from_hours(9), lists()).await, [vec![1]]);
        assert_eq!(followed(Duration::from_hours(11), lists()).await, [vec![1], vec![2]]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_failed_half_way_is_forgotten() {
        let half = [Some(Event::Init), Some(Event::InitApply(9)), None];
        let stream = half.into_iter().chain(list(1)).collect();
        assert_eq!(followed(Duration::from_secs(1), vec![stream]).await, [vec![1]]);
    }

    #[test]
    fn a_watch_is_back_seconds_after_its_server() {
        let mut pauses = Pauses { name: "test", failures: 0 };
        let first: Vec<Duration> = pauses.by_ref().take(50).collect();
        assert!(first[0] <= PAUSE_FIRST && first[1] > first[0], "{first:?}");
        assert!(first.iter().all(|pause| *pause <= PAUSE_MAX) && first[49] > PAUSE_MAX / 2, "{first:?}");
        pauses.reset();
        assert_eq!(pauses.next(), Some(first[0]));
    }

    #[test]
    fn watches_are_not_listed_again_at_the_same_time() {
        let pauses: std::collections::BTreeSet<Duration> =
            ["worker nodes", "worker pods", "policies"].iter().map(|name| spread(RELIST, name)).collect();
        assert!(
            pauses.len() > 1 && pauses.iter().all(|pause| *pause > Duration::from_hours(8)),
            "{pauses:?}"
        );
    }
}
