//! Runs one watch stream into a [`Sink`], for as long as its session lives.

use std::{fmt::Debug, sync::Arc};

use futures::TryStreamExt;
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event},
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::sink::{Denial, Sink};

/// How long a single watch call lives before it is renewed without a relist; the watch library gives a silently cut
/// connection up a few seconds later.
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

/// Whether a watch has delivered its first complete list.
///
/// It does not tell whether the server can be reached: a watch in a quiet cluster delivers nothing, and a silently cut
/// connection says nothing either. That is what [`crate::probe`] is for.
#[derive(Debug)]
pub struct WatchHealth {
    synced: watch::Sender<bool>,
}

impl Default for WatchHealth {
    fn default() -> Self {
        Self { synced: watch::Sender::new(false) }
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
            Ok(Some(event)) => take(event, name, &*sink, &health, &mut listed),
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(watch = name, error = %error, "watch interrupted, retrying");
                if let Some(why) = denial(&error) {
                    sink.denied(why);
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
        // Said before the list is asked for: it proves nothing.
        Event::Init => *listed = Vec::new(),
        Event::Apply(object) => sink.apply(object),
        Event::Delete(object) => sink.delete(object),
        Event::InitApply(object) => listed.push(object),
        Event::InitDone => {
            tracing::debug!(watch = name, objects = listed.len(), "list complete");
            sink.reset(std::mem::take(listed));
            health.synced.send_replace(true);
        }
    }
}

/// The server knows us or not, but lets us not read.
fn denial(error: &watcher::Error) -> Option<Denial> {
    let code = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.code,
        _ => return None,
    };
    match code {
        401 => Some(Denial::Unauthorized),
        403 => Some(Denial::Forbidden),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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

    #[test]
    fn a_refusal_is_told_from_a_failure() {
        let error = |code| {
            let status = kube::core::Status { code, ..kube::core::Status::default() };
            watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
        };
        assert_eq!(denial(&error(403)), Some(Denial::Forbidden));
        assert_eq!(denial(&error(401)), Some(Denial::Unauthorized));
        assert_eq!((denial(&error(500)), denial(&watcher::Error::NoResourceVersion)), (None, None));
    }
}
