//! Events on users' objects: never blocking, never repeated, off for a kind whose events the role forbids (API-810). What
//! admission refuses, such as a quota of one namespace, is dropped and turns nothing off.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use kube::Client;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    clock::{Clock, rfc3339},
    error::ApplyError,
    rate::{Bucket, RequestRate},
    request::{Right, create_only, is_permitted, paths},
};

/// Events waiting to be sent; more are dropped, because an event is news, not state.
const QUEUE: usize = 1024;
/// The same news about an object is told again after this time.
const REPEAT_AFTER: Duration = Duration::from_mins(10);
/// Entries of the memory that suppresses repetition.
const REMEMBERED: usize = 4096;
/// News that nobody need act on give way to the work they are about: that many at once, and so many a second. When a
/// policy changes, each of its nodes has some, in the moment in which all of them are written.
const NEWS_AT_ONCE: u32 = 8;
const NEWS_A_SECOND: f64 = 16.0;
/// Longest message in bytes the API server takes.
const MESSAGE_MAX_BYTES: usize = 1024;

/// The object an event is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Regarding {
    /// For example `v1`.
    pub api_version: &'static str,
    /// For example `Pod`.
    pub kind: &'static str,
    /// Empty for cluster-scoped objects, whose events go to `default`.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// UID; may be empty.
    pub uid: String,
}

impl Regarding {
    fn cluster_scoped(api_version: &'static str, kind: &'static str, name: &str, uid: &str) -> Self {
        Self { api_version, kind, namespace: String::new(), name: name.to_owned(), uid: uid.to_owned() }
    }

    /// The namespace of its events.
    fn home(&self) -> &str {
        if self.namespace.is_empty() { "default" } else { &self.namespace }
    }

    /// A ClusterBinding.
    pub fn binding(name: &str, uid: &str) -> Self {
        Self::cluster_scoped(OURS, "ClusterBinding", name, uid)
    }

    /// A ResourceLeasingPolicy.
    pub fn policy(name: &str, uid: &str) -> Self {
        Self::cluster_scoped(OURS, "ResourceLeasingPolicy", name, uid)
    }

    /// A Node.
    pub fn node(name: &str, uid: &str) -> Self {
        Self::cluster_scoped("v1", "Node", name, uid)
    }

    /// A LogConfig.
    pub fn log_config(name: &str, uid: &str) -> Self {
        Self::cluster_scoped("cls.cloud.tencent.com/v1", "LogConfig", name, uid)
    }

    /// A PersistentVolumeClaim.
    pub fn claim(namespace: &str, name: &str, uid: &str) -> Self {
        let kind = "PersistentVolumeClaim";
        Self { namespace: namespace.to_owned(), ..Self::cluster_scoped("v1", kind, name, uid) }
    }

    /// A Pod.
    pub fn pod(namespace: &str, name: &str, uid: &str) -> Self {
        Self { namespace: namespace.to_owned(), ..Self::cluster_scoped("v1", "Pod", name, uid) }
    }
}

/// Version of our own kinds.
const OURS: &str = "cloud.tencent.com/v1beta1";

/// Whether somebody should look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// News.
    Normal,
    /// Trouble.
    Warning,
}

/// Something worth telling the owner of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// What it is about.
    pub regarding: Regarding,
    /// How serious it is.
    pub severity: Severity,
    /// UpperCamelCase, from API-810 or PO-1503.
    pub reason: &'static str,
    /// For humans.
    pub message: String,
}

/// Sends events to one cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventRecorder {
    warnings: mpsc::Sender<Event>,
    news: mpsc::Sender<Event>,
    seen: Arc<Mutex<HashMap<u64, Instant>>>,
}

impl EventRecorder {
    /// A recorder and the task that sends; `component` is for example `kubeocean-syncer-<binding>`.
    pub fn new(
        client: Client,
        component: String,
        clock: Arc<dyn Clock>,
        cancel: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send) {
        let (warnings, next_warnings) = mpsc::channel(QUEUE);
        let (news, next_news) = mpsc::channel(QUEUE);
        let recorder = Self { warnings, news, seen: Arc::default() };
        let waiting = Waiting::new(next_warnings, next_news);
        (recorder, send_all(client, component, clock, waiting, cancel))
    }

    /// Queues an event unless the same was told within ten minutes.
    pub fn publish(&self, event: Event) {
        use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
        let news = BuildHasherDefault::<DefaultHasher>::default().hash_one((
            &event.regarding,
            event.reason,
            &event.message,
        ));
        {
            let mut seen = self.seen.lock();
            if seen.get(&news).is_some_and(|at| at.elapsed() < REPEAT_AFTER) {
                return;
            }
            if seen.len() >= REMEMBERED {
                seen.retain(|_, at| at.elapsed() < REPEAT_AFTER);
                if seen.len() >= REMEMBERED {
                    seen.clear();
                }
            }
            seen.insert(news, Instant::now());
        }
        let sender = match event.severity {
            Severity::Normal => &self.news,
            Severity::Warning => &self.warnings,
        };
        if sender.try_send(event).is_err() {
            tracing::debug!("event dropped, too many are waiting");
        }
    }
}

/// Events on their way. Trouble goes first and at once.
struct Waiting {
    warnings: mpsc::Receiver<Event>,
    news: mpsc::Receiver<Event>,
    pace: Bucket,
    /// When the next news may go.
    free: tokio::time::Instant,
}

impl Waiting {
    fn new(warnings: mpsc::Receiver<Event>, news: mpsc::Receiver<Event>) -> Self {
        let now = tokio::time::Instant::now();
        let pace = Bucket::new(RequestRate::new(NEWS_A_SECOND, NEWS_AT_ONCE), now);
        Self { warnings, news, pace, free: now }
    }

    /// The next event to send; `None` when there will be none. Nothing is lost if the caller stops waiting.
    async fn next(&mut self) -> Option<Event> {
        let Self { warnings, news, pace, free } = self;
        let paced = async {
            tokio::time::sleep_until(*free).await;
            news.recv().await
        };
        tokio::select! {
            biased;
            Some(event) = warnings.recv() => Some(event),
            event = paced => {
                let now = tokio::time::Instant::now();
                *free = now + pace.take(now);
                event
            }
        }
    }
}

async fn send_all(
    client: Client,
    component: String,
    clock: Arc<dyn Clock>,
    mut waiting: Waiting,
    cancel: CancellationToken,
) {
    let mut forbidden: HashSet<&'static str> = HashSet::new();
    let mut number: u64 = 0;
    loop {
        let event = tokio::select! {
            () = cancel.cancelled() => return,
            event = waiting.next() => event,
        };
        let Some(event) = event else { return };
        if forbidden.contains(event.regarding.kind) {
            continue;
        }
        number += 1;
        match send(&client, &component, clock.as_ref(), number, &event).await {
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(error = error.chain(), "event not sent");
                if is_out_of_bounds(&client, &event.regarding, &error).await {
                    tracing::info!(
                        kind = event.regarding.kind,
                        "events are not permitted for this kind, turned off"
                    );
                    forbidden.insert(event.regarding.kind);
                }
            }
        }
    }
}

/// Whether an event was refused for want of the right. Admission refuses single events, and those of single namespaces.
async fn is_out_of_bounds(client: &Client, about: &Regarding, error: &ApplyError) -> bool {
    if !matches!(error, ApplyError::Forbidden { .. }) {
        return false;
    }
    let right = Right { verb: "create", resource: "events", subresource: "", namespace: about.home() };
    match is_permitted(client, &right).await {
        Ok(permitted) => !permitted,
        Err(error) => {
            tracing::debug!(error = error.chain(), "the right to make events is not known");
            false
        }
    }
}

async fn send(
    client: &Client,
    component: &str,
    clock: &dyn Clock,
    number: u64,
    event: &Event,
) -> Result<(), ApplyError> {
    let now = clock.now();
    let about = &event.regarding;
    let namespace = about.home();
    let severity = match event.severity {
        Severity::Normal => "Normal",
        Severity::Warning => "Warning",
    };
    // The name must be unique; the object's name may be as long as a name can be.
    let prefix: String = about.name.chars().take(200).collect();
    let name = format!("{}.{:x}{number:x}", prefix.trim_end_matches(['.', '-']), now.as_nanosecond());
    let at = rfc3339(now);
    let object = json!({
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": namespace},
        "involvedObject": {
            "apiVersion": about.api_version, "kind": about.kind, "name": about.name, "namespace": about.namespace,
            "uid": about.uid,
        },
        "type": severity,
        "reason": event.reason,
        "message": cut(&event.message, MESSAGE_MAX_BYTES),
        "source": {"component": component},
        "reportingComponent": component,
        "reportingInstance": component,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    });
    create_only(client, &paths::events(namespace), &object).await
}

/// `text` cut to `max` bytes on a character boundary.
pub fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(severity: Severity, message: String) -> Event {
        Event { regarding: Regarding::node("vnode-a-1", ""), severity, reason: "LeaseChanged", message }
    }

    #[tokio::test(start_paused = true)]
    async fn trouble_goes_before_news_and_news_at_a_pace() {
        let (warnings, next_warnings) = mpsc::channel(QUEUE);
        let (news, next_news) = mpsc::channel(QUEUE);
        let mut waiting = Waiting::new(next_warnings, next_news);
        let began = tokio::time::Instant::now();
        for number in 0..40 {
            news.try_send(event(Severity::Normal, number.to_string())).expect("a place");
        }
        for _ in 0..NEWS_AT_ONCE {
            waiting.next().await.expect("an event");
        }
        assert_eq!(began.elapsed(), Duration::ZERO, "a few need not wait");
        warnings.try_send(event(Severity::Warning, "trouble".to_owned())).expect("a place");
        assert_eq!(waiting.next().await.map(|event| event.message).as_deref(), Some("trouble"));
        for number in NEWS_AT_ONCE..40 {
            assert_eq!(waiting.next().await.map(|event| event.message), Some(number.to_string()));
        }
        let took = began.elapsed();
        assert!((1_900..=2_100).contains(&took.as_millis()), "32 more at 16 a second took {took:?}");
        drop((warnings, news));
        assert_eq!(waiting.next().await, None);
    }
}
