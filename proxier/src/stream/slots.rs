//! How many streams are open, of the process and of each pod (PX-1306), and what each was (PX-1308, PX-1309).

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::metrics::{ProxierMetrics, Service, StreamEnd};

/// The open streams.
#[derive(Debug)]
pub(crate) struct Slots {
    max: usize,
    max_per_pod: usize,
    by_pod: Mutex<HashMap<String, usize>>,
    open: watch::Sender<usize>,
    metrics: Arc<ProxierMetrics>,
}

/// What a stream is, for the line that is written at its end.
#[derive(Debug, Clone)]
pub(crate) struct StreamFacts {
    pub(crate) kind: &'static str,
    pub(crate) binding: Arc<str>,
    pub(crate) vnode: Arc<str>,
    pub(crate) user: String,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) container: String,
    /// UID of the vpod.
    pub(crate) uid: String,
}

/// One open stream. Dropping it ends it.
#[derive(Debug)]
pub(crate) struct Slot {
    slots: Arc<Slots>,
    service: Option<Service>,
    facts: StreamFacts,
    began: Instant,
    up: AtomicU64,
    down: AtomicU64,
    reason: Mutex<&'static str>,
}

impl Slots {
    pub(crate) fn new(max: usize, max_per_pod: usize, metrics: Arc<ProxierMetrics>) -> Self {
        Self { max, max_per_pod, by_pod: Mutex::default(), open: watch::Sender::new(0), metrics }
    }

    /// Opens a stream; `None` if a limit is reached.
    pub(crate) fn open(self: &Arc<Self>, facts: StreamFacts) -> Option<Slot> {
        let mut by_pod = self.by_pod.lock();
        let of_pod = by_pod.get(&facts.uid).copied().unwrap_or_default();
        let all = *self.open.borrow();
        if all >= self.max || of_pod >= self.max_per_pod {
            return None;
        }
        by_pod.insert(facts.uid.clone(), of_pod + 1);
        self.open.send_modify(|open| *open += 1);
        drop(by_pod);
        let service = self.metrics.stream_began(&facts.binding, facts.kind);
        Some(Slot {
            slots: Arc::clone(self),
            service,
            facts,
            began: Instant::now(),
            up: AtomicU64::new(0),
            down: AtomicU64::new(0),
            reason: Mutex::new("caller gone"),
        })
    }

    /// Waits until none is open.
    pub(crate) async fn none_open(&self) {
        // The sender lives in `self`, so the wait can only end with a value.
        let _ = self.open.subscribe().wait_for(|open| *open == 0).await;
    }
}

impl Slot {
    /// Counts bytes.
    pub(crate) fn count(&self, up: u64, down: u64) {
        self.up.fetch_add(up, Ordering::Relaxed);
        self.down.fetch_add(down, Ordering::Relaxed);
    }

    /// Says why it ends; without it, the caller went away.
    pub(crate) fn ends(&self, reason: &'static str) {
        *self.reason.lock() = reason;
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        {
            let mut by_pod = self.slots.by_pod.lock();
            if let Some(count) = by_pod.get_mut(&self.facts.uid) {
                *count -= 1;
                if *count == 0 {
                    by_pod.remove(&self.facts.uid);
                }
            }
            self.slots.open.send_modify(|open| *open -= 1);
        }
        let facts = &self.facts;
        let ended = StreamEnd {
            seconds: self.began.elapsed().as_secs_f64(),
            up: self.up.load(Ordering::Relaxed),
            down: self.down.load(Ordering::Relaxed),
            reason: *self.reason.lock(),
        };
        self.slots.metrics.stream_ended(self.service, &facts.binding, facts.kind, &ended);
        tracing::info!(
            route = facts.kind,
            user = facts.user,
            vnode = &*facts.vnode,
            namespace = facts.namespace,
            pod = facts.pod,
            container = facts.container,
            up = ended.up,
            down = ended.down,
            seconds = ended.seconds,
            end = ended.reason,
            "stream ended"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(uid: &str) -> StreamFacts {
        StreamFacts {
            kind: "exec",
            binding: "b".into(),
            vnode: "v".into(),
            user: "u".to_owned(),
            namespace: "ns".to_owned(),
            pod: "p".to_owned(),
            container: "c".to_owned(),
            uid: uid.to_owned(),
        }
    }

    #[tokio::test]
    async fn limits_hold_and_ended_streams_make_room() {
        let slots = Arc::new(Slots::new(3, 2, Arc::new(ProxierMetrics::new())));
        let (first, second) = (slots.open(facts("a")), slots.open(facts("a")));
        assert!(first.is_some() && second.is_some());
        assert!(slots.open(facts("a")).is_none(), "two of one pod");
        let other = slots.open(facts("b"));
        assert!(other.is_some());
        assert!(slots.open(facts("c")).is_none(), "three of all");
        drop(first);
        assert!(slots.open(facts("a")).is_some());
        drop((second, other));
        slots.none_open().await;
        assert!(slots.by_pod.lock().is_empty(), "nothing is kept of what is gone");
    }
}
