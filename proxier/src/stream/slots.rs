//! How many streams are open, of the process, of each namespace and of each pod (PX-1306), and what each was (PX-1308, PX-1309).

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

/// Part of all streams that pods of one namespace may have.
const NAMESPACE_PART: usize = 4;

/// The open streams.
#[derive(Debug)]
pub(crate) struct Slots {
    max: usize,
    max_per_namespace: usize,
    max_per_pod: usize,
    counts: Mutex<Counts>,
    open: watch::Sender<usize>,
    metrics: Arc<ProxierMetrics>,
}

#[derive(Debug, Default)]
struct Counts {
    by_namespace: HashMap<String, usize>,
    by_pod: HashMap<String, usize>,
}

/// Which limit is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    Process,
    Namespace,
    Pod,
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
        Self {
            max,
            // One tenant's streams leave room for those of others, and a pod can always have its own.
            max_per_namespace: (max / NAMESPACE_PART).max(max_per_pod),
            max_per_pod,
            counts: Mutex::default(),
            open: watch::Sender::new(0),
            metrics,
        }
    }

    /// Opens a stream, unless a limit is reached.
    pub(crate) fn open(self: &Arc<Self>, facts: StreamFacts) -> Result<Slot, Limit> {
        let mut counts = self.counts.lock();
        if *self.open.borrow() >= self.max {
            return Err(Limit::Process);
        }
        let of = |counts: &HashMap<String, usize>, key: &str| counts.get(key).copied().unwrap_or_default();
        if of(&counts.by_pod, &facts.uid) >= self.max_per_pod {
            return Err(Limit::Pod);
        }
        if of(&counts.by_namespace, &facts.namespace) >= self.max_per_namespace {
            return Err(Limit::Namespace);
        }
        *counts.by_pod.entry(facts.uid.clone()).or_default() += 1;
        *counts.by_namespace.entry(facts.namespace.clone()).or_default() += 1;
        self.open.send_modify(|open| *open += 1);
        drop(counts);
        let service = self.metrics.stream_began(&facts.binding, facts.kind);
        Ok(Slot {
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
            let mut counts = self.slots.counts.lock();
            less(&mut counts.by_pod, &self.facts.uid);
            less(&mut counts.by_namespace, &self.facts.namespace);
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

fn less(counts: &mut HashMap<String, usize>, key: &str) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
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
        assert!(first.is_ok() && second.is_ok());
        assert_eq!(slots.open(facts("a")).unwrap_err(), Limit::Pod);
        let other = slots.open(StreamFacts { namespace: "other".to_owned(), ..facts("b") });
        assert!(other.is_ok());
        assert_eq!(slots.open(facts("c")).unwrap_err(), Limit::Process);
        drop(first);
        assert!(slots.open(facts("a")).is_ok());
        drop((second, other));
        slots.none_open().await;
        let counts = slots.counts.lock();
        assert!(
            counts.by_pod.is_empty() && counts.by_namespace.is_empty(),
            "nothing is kept of what is gone"
        );
    }

    #[test]
    fn one_namespace_leaves_room_for_others() {
        let slots = Arc::new(Slots::new(16, 2, Arc::new(ProxierMetrics::new())));
        let open: Vec<_> = ["a", "a", "b", "b"].map(|pod| slots.open(facts(pod)).unwrap()).into();
        assert_eq!(slots.open(facts("c")).unwrap_err(), Limit::Namespace);
        assert!(slots.open(StreamFacts { namespace: "other".to_owned(), ..facts("d") }).is_ok());
        drop(open);
        assert!(slots.open(facts("c")).is_ok());
    }
}
