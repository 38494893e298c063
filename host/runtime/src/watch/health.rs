//! What is known of one watch: whether its first list came, and since when it fails.
//!
//! The watch library says nothing when a watch is established again, and a watch in a quiet cluster delivers nothing: a
//! single failure proves nothing a minute later. A watch that goes on failing is therefore begun anew, with a list, and
//! the end of a list is the proof that it works.

use std::time::Duration;

use kube::runtime::watcher;
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use crate::{probe::UNREACHABLE_AFTER, sink::Denial};

/// A watch that fails for so long is begun anew with a list.
const ANEW_AFTER: Duration = Duration::from_secs(30);
/// After so long without a failure the next one is another one: longer than the longest pause between two attempts.
const QUIET: Duration = Duration::from_secs(75);

/// Why a watch delivers nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchFailure {
    /// The server refuses.
    Denied(Denial),
    /// The server does not know the kind (404).
    NotServed,
    /// Anything else; the log has it.
    Broken,
    /// It did not fail; its first list is outstanding.
    NoList,
}

impl WatchFailure {
    pub(super) fn of(error: &watcher::Error) -> Self {
        let code = match error {
            watcher::Error::InitialListFailed(kube::Error::Api(status))
            | watcher::Error::WatchStartFailed(kube::Error::Api(status))
            | watcher::Error::WatchFailed(kube::Error::Api(status))
            | watcher::Error::WatchError(status) => status.code,
            _ => return Self::Broken,
        };
        match code {
            401 => Self::Denied(Denial::Unauthorized),
            403 => Self::Denied(Denial::Forbidden),
            404 => Self::NotServed,
            _ => Self::Broken,
        }
    }
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The stream tries again by itself.
    GoOn,
    /// Begin with a list.
    Anew,
}

/// See the module documentation. It does not tell whether the server can be reached: a silently cut connection is no
/// failure. That is what [`crate::probe`] is for.
#[derive(Debug)]
pub struct WatchHealth {
    synced: watch::Sender<bool>,
    forbidden: watch::Sender<bool>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    began: Option<Instant>,
    trouble: Option<Trouble>,
}

#[derive(Clone, Copy, Debug)]
struct Trouble {
    since: Instant,
    last: Instant,
    failure: WatchFailure,
    /// The stream was begun anew: nothing but a list ends the trouble.
    anew: bool,
}

impl Default for WatchHealth {
    fn default() -> Self {
        Self {
            synced: watch::Sender::new(false),
            forbidden: watch::Sender::new(false),
            state: Mutex::default(),
        }
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

    /// Waits for the first complete list, or for the answer that the role does not allow one.
    pub async fn answered(&self) {
        let mut forbidden = self.forbidden.subscribe();
        tokio::select! {
            () = self.synced() => {}
            _ = forbidden.wait_for(|forbidden| *forbidden) => {}
        }
    }

    /// Why the watch has been of no use for [`UNREACHABLE_AFTER`], if it has.
    pub fn complaint(&self) -> Option<WatchFailure> {
        let state = self.state.lock();
        let long = |since: Instant| since.elapsed() >= UNREACHABLE_AFTER;
        let listed = self.is_synced();
        match state.trouble {
            Some(trouble) if trouble.anew && long(trouble.since) => Some(trouble.failure),
            Some(trouble) if !listed && state.began.is_some_and(long) => Some(trouble.failure),
            None if !listed && state.began.is_some_and(long) => Some(WatchFailure::NoList),
            _ => None,
        }
    }

    /// Whether it failed a while ago and nothing has come since.
    pub(super) fn is_troubled(&self) -> bool {
        self.state.lock().trouble.is_some_and(|trouble| trouble.anew || trouble.last.elapsed() < QUIET)
    }

    /// The stream was begun for the first time.
    pub(super) fn begun(&self) {
        self.state.lock().began = Some(Instant::now());
    }

    /// A complete list arrived.
    pub(super) fn listed(&self) {
        self.works();
        self.synced.send_replace(true);
    }

    /// Something arrived.
    pub(super) fn works(&self) {
        self.state.lock().trouble = None;
    }

    /// The stream failed.
    pub(super) fn failed(&self, failure: WatchFailure) -> Next {
        let now = Instant::now();
        if failure == WatchFailure::Denied(Denial::Forbidden) {
            self.forbidden.send_replace(true);
        }
        let mut state = self.state.lock();
        let before = state.trouble.filter(|before| before.anew || now.duration_since(before.last) < QUIET);
        let since = before.map_or(now, |before| before.since);
        let was_anew = before.is_some_and(|before| before.anew);
        // Before the first list the stream asks for nothing but a list.
        let anew = was_anew || self.is_synced() && now.duration_since(since) >= ANEW_AFTER;
        state.trouble = Some(Trouble { since, last: now, failure, anew });
        if anew && !was_anew { Next::Anew } else { Next::GoOn }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORBIDDEN: WatchFailure = WatchFailure::Denied(Denial::Forbidden);

    async fn pass(seconds: u64) {
        tokio::time::advance(Duration::from_secs(seconds)).await;
    }

    #[test]
    fn a_refusal_is_told_from_a_failure() {
        let error = |code| {
            let status = kube::core::Status { code, ..kube::core::Status::default() };
            watcher::Error::InitialListFailed(kube::Error::Api(Box::new(status)))
        };
        assert_eq!(WatchFailure::of(&error(403)), FORBIDDEN);
        assert_eq!(WatchFailure::of(&error(401)), WatchFailure::Denied(Denial::Unauthorized));
        assert_eq!(WatchFailure::of(&error(404)), WatchFailure::NotServed);
        assert_eq!(WatchFailure::of(&error(500)), WatchFailure::Broken);
        assert_eq!(WatchFailure::of(&watcher::Error::NoResourceVersion), WatchFailure::Broken);
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_list_that_does_not_come_is_missed_after_a_minute() {
        let watch = WatchHealth::default();
        pass(100).await;
        assert_eq!(watch.complaint(), None, "nobody asked");
        watch.begun();
        pass(59).await;
        assert_eq!(watch.complaint(), None);
        pass(1).await;
        assert_eq!(watch.complaint(), Some(WatchFailure::NoList));
        assert_eq!(watch.failed(FORBIDDEN), Next::GoOn);
        assert_eq!(watch.complaint(), Some(FORBIDDEN));
        watch.listed();
        assert_eq!(watch.complaint(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_goes_on_failing_begins_anew_and_is_told_of_until_a_list_comes() {
        let watch = WatchHealth::default();
        watch.begun();
        watch.listed();
        assert_eq!(watch.failed(WatchFailure::Broken), Next::GoOn);
        pass(20).await;
        assert_eq!(watch.failed(FORBIDDEN), Next::GoOn);
        pass(20).await;
        assert_eq!(watch.failed(FORBIDDEN), Next::Anew);
        assert_eq!(watch.failed(FORBIDDEN), Next::GoOn, "once");
        assert_eq!(watch.complaint(), None);
        pass(20).await;
        assert_eq!(watch.complaint(), Some(FORBIDDEN));
        pass(600).await;
        assert_eq!(watch.complaint(), Some(FORBIDDEN), "a list that hangs is none");
        watch.listed();
        assert_eq!(watch.complaint(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_right_is_an_answer_and_a_failure_is_none() {
        let watch = WatchHealth::default();
        watch.failed(WatchFailure::Broken);
        let waited = tokio::time::timeout(Duration::from_secs(9), watch.answered()).await;
        assert!(waited.is_err(), "it may come yet");
        watch.failed(FORBIDDEN);
        watch.answered().await;
        assert!(!watch.is_synced());
    }

    #[tokio::test(start_paused = true)]
    async fn failures_far_apart_are_none() {
        let watch = WatchHealth::default();
        watch.begun();
        watch.listed();
        for _ in 0..10 {
            assert_eq!(watch.failed(WatchFailure::Broken), Next::GoOn);
            pass(80).await;
            assert_eq!(watch.complaint(), None);
        }
        watch.failed(WatchFailure::Broken);
        pass(40).await;
        watch.works();
        assert_eq!(watch.failed(WatchFailure::Broken), Next::GoOn, "an event came between");
    }
}
