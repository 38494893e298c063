//! Runs one watch stream into a [`Sink`], for as long as its session lives.

use std::{
    fmt::Debug,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::TryStreamExt;
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::sink::Sink;

/// How long a single watch call lives before it is renewed without a relist; also bounds how late a silently cut
/// connection is noticed.
const WATCH_TIMEOUT_SECONDS: u32 = 240;

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

/// Whether a watch has delivered its first complete list, and how long it has been broken.
#[derive(Debug)]
pub struct WatchHealth {
    synced: watch::Sender<bool>,
    broken_since: Mutex<Option<Instant>>,
}

impl Default for WatchHealth {
    fn default() -> Self {
        Self { synced: watch::Sender::new(false), broken_since: Mutex::new(None) }
    }
}

impl WatchHealth {
    /// Whether the first complete list has arrived.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Waits for the first complete list.
    pub async fn synced(&self) {
        // The sender lives in `self`, so the wait can only end with a value.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// How long every attempt has failed; `None` while the watch works.
    pub fn broken_for(&self) -> Option<Duration> {
        self.broken_since.lock().map(|since| since.elapsed())
    }

    fn works(&self) {
        *self.broken_since.lock() = None;
    }

    fn failed(&self) {
        self.broken_since.lock().get_or_insert_with(Instant::now);
    }
}

/// Feeds `sink` from the stream until `cancel`. Errors are retried with backoff for ever; the watch library keeps the
/// last resource version, so a short interruption costs no relist.
pub async fn watch_into<T, S>(
    spec: WatchSpec<T>,
    sink: Arc<S>,
    health: Arc<WatchHealth>,
    cancel: CancellationToken,
) where
    T: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    S: Sink<T>,
{
    let name = spec.name;
    let config = spec.config.timeout(WATCH_TIMEOUT_SECONDS);
    let mut stream = std::pin::pin!(watcher::watcher(spec.api, config).default_backoff());
    let mut listed: Vec<T> = Vec::new();
    loop {
        let event = tokio::select! {
            () = cancel.cancelled() => return,
            event = stream.try_next() => event,
        };
        match event {
            Ok(Some(event)) => {
                health.works();
                match event {
                    Event::Apply(object) => sink.apply(object),
                    Event::Delete(object) => sink.delete(object),
                    Event::Init => listed = Vec::new(),
                    Event::InitApply(object) => listed.push(object),
                    Event::InitDone => {
                        tracing::debug!(watch = name, objects = listed.len(), "list complete");
                        sink.reset(std::mem::take(&mut listed));
                        health.synced.send_replace(true);
                    }
                }
            }
            Ok(None) => return,
            Err(error) => {
                health.failed();
                tracing::warn!(watch = name, error = %error, "watch interrupted, retrying");
            }
        }
    }
}
