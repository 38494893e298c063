//! What the worker says about pods, by the pod's UID; the watch writes, the loop reads.
//!
//! Synchronous; no lock is held across an await. Bounded: by the events of the mount namespace, which live an hour, by
//! `ALL_STORIES` kinds of news per pod, and what concerns nobody here is forgotten.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use ahash::RandomState;
use jiff::Timestamp;
use kubeocean_api::name::ObjectKey;
use kubeocean_runtime::{clock::Clock, queue::Queue};
use parking_lot::Mutex;

use crate::config::PodEvents;

use super::{
    plan::{Budget, Story, StoryId},
    shape::shape,
    view::{News, Seen, WorkerEvent},
};

/// Kinds of news per pod that are told apart by their words. A probe may say something else each time; what comes then is
/// told apart by its reason, so that a volume that does not mount is heard of all the same.
const STORIES: usize = 16;
/// Kinds of news per pod in all.
const ALL_STORIES: usize = 32;

/// UID of a ppod.
pub type PodUid = Arc<str>;

type Map<K, V> = HashMap<K, V, RandomState>;

/// See the module documentation.
#[derive(Debug)]
pub struct EventStore {
    state: Mutex<State>,
    queue: Arc<Queue<PodUid>>,
    clock: Arc<dyn Clock>,
    /// Whose events are not reflected: our own.
    component: String,
    wanted: PodEvents,
}

#[derive(Debug, Default)]
struct State {
    pods: Map<PodUid, PodNews>,
    /// Which news an event object tells.
    by_event: Map<Box<str>, (PodUid, StoryId)>,
}

#[derive(Debug)]
struct PodNews {
    key: ObjectKey,
    since: Timestamp,
    budget: Budget,
    stories: BTreeMap<StoryId, Kept>,
}

#[derive(Debug)]
struct Kept {
    /// Of the latest occurrence, in whatever order they come: a list has an order of its own.
    news: News,
    latest: (Timestamp, Box<str>),
    by_event: BTreeMap<Box<str>, Seen>,
    /// Occurrences that event objects told which have expired since.
    expired: i64,
    told: Option<Seen>,
}

impl Kept {
    fn seen(&self) -> Option<Seen> {
        let all = self.by_event.values().copied();
        let sum = all.reduce(|a, b| Seen {
            count: a.count.saturating_add(b.count),
            first: a.first.min(b.first),
            last: a.last.max(b.last),
        })?;
        Some(Seen { count: sum.count.saturating_add(self.expired), ..sum })
    }
}

/// One pod's news.
#[derive(Clone, Debug)]
pub struct PodStories {
    /// The ppod.
    pub key: ObjectKey,
    /// When the first of its events came.
    pub since: Timestamp,
    /// Its share.
    pub budget: Budget,
    /// Its news.
    pub stories: Vec<Story>,
}

impl EventStore {
    /// Nothing known yet; `component` is how the Syncer signs its own events.
    pub fn new(component: String, wanted: PodEvents, clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), queue: Queue::new("pod events"), clock, component, wanted })
    }

    /// Which events vpods get.
    pub fn wanted(&self) -> PodEvents {
        self.wanted
    }

    /// Pods whose events need a look.
    pub fn queue(&self) -> &Arc<Queue<PodUid>> {
        &self.queue
    }

    /// All about one pod.
    pub fn stories(&self, pod: &str) -> Option<PodStories> {
        let state = self.state.lock();
        let news = state.pods.get(pod)?;
        let stories = news.stories.iter().filter_map(|(id, kept)| {
            let seen = kept.seen()?;
            Some(Story { id: id.clone(), news: kept.news.clone(), seen, told: kept.told })
        });
        Some(PodStories {
            key: news.key.clone(),
            since: news.since,
            budget: news.budget,
            stories: stories.collect(),
        })
    }

    /// An event was seen.
    pub(super) fn saw(&self, event: WorkerEvent) {
        let News { component, .. } = &event.news;
        if event.pod_uid.is_empty() || **component == *self.component || !event.news.is_wanted(self.wanted) {
            return;
        }
        let pod = self.state.lock().put(event, self.clock.now());
        self.queue.add_all(pod);
    }

    /// An event object expired.
    pub(super) fn lost(&self, event: &str) {
        self.state.lock().remove(event);
    }

    /// The complete list.
    pub(super) fn listed(&self, all: Vec<WorkerEvent>) {
        let names: HashSet<Box<str>, RandomState> = all.iter().map(|event| event.name.clone()).collect();
        let gone: Vec<Box<str>> = {
            let state = self.state.lock();
            state.by_event.keys().filter(|event| !names.contains(*event)).cloned().collect()
        };
        for event in &gone {
            self.lost(event);
        }
        for event in all {
            self.saw(event);
        }
    }

    /// Something was written, and `budget` is left of the pod's share.
    pub(super) fn told(&self, pod: &str, story: &StoryId, seen: Seen, budget: Budget) {
        let mut state = self.state.lock();
        let Some(news) = state.pods.get_mut(pod) else { return };
        news.budget = budget;
        if let Some(kept) = news.stories.get_mut(story) {
            kept.told = Some(seen);
        }
    }

    /// A pod's events concern nobody here.
    pub(super) fn forget(&self, pod: &str) {
        let mut state = self.state.lock();
        if let Some(news) = state.pods.remove(pod) {
            for event in news.stories.into_values().flat_map(|kept| kept.by_event.into_keys()) {
                state.by_event.remove(&event);
            }
        }
    }
}

impl PodNews {
    /// Where news belong; `None` if there is no room.
    fn place_for(&self, news: &News) -> Option<StoryId> {
        let known = |id: &StoryId| self.stories.contains_key(id);
        let id = story_id(news);
        if known(&id) || self.stories.len() < STORIES {
            return Some(id);
        }
        let by_reason = story_by_reason(news);
        (known(&by_reason) || self.stories.len() < ALL_STORIES).then_some(by_reason)
    }
}

impl State {
    /// Takes an event; returns the pod to look at, if it was news.
    fn put(&mut self, event: WorkerEvent, now: Timestamp) -> Option<PodUid> {
        let WorkerEvent { name, pod, pod_uid, news, seen } = event;
        let pod_uid: PodUid = pod_uid.into();
        let id = self.pods.get(&pod_uid).map_or_else(|| Some(story_id(&news)), |pod| pod.place_for(&news))?;
        let place = (Arc::clone(&pod_uid), id.clone());
        if self.by_event.get(&name).is_some_and(|old| *old != place) {
            self.remove(&name);
        }
        let of_pod = self.pods.entry(Arc::clone(&pod_uid)).or_insert_with(|| PodNews {
            key: pod,
            since: now,
            budget: Budget::default(),
            stories: BTreeMap::new(),
        });
        let kept = of_pod.stories.entry(id).or_insert_with(|| Kept {
            news: news.clone(),
            latest: (seen.last, name.clone()),
            by_event: BTreeMap::new(),
            expired: 0,
            told: None,
        });
        if kept.by_event.get(&name) == Some(&seen) {
            return None;
        }
        let occurrence = (seen.last, name.clone());
        if occurrence >= kept.latest {
            kept.latest = occurrence;
            kept.news = news;
        }
        kept.by_event.insert(name.clone(), seen);
        self.by_event.insert(name, place);
        Some(pod_uid)
    }

    fn remove(&mut self, event: &str) {
        let Some((pod, id)) = self.by_event.remove(event) else { return };
        let Some(of_pod) = self.pods.get_mut(&pod) else { return };
        if let Some(kept) = of_pod.stories.get_mut(&id) {
            if let Some(seen) = kept.by_event.remove(event) {
                kept.expired = kept.expired.saturating_add(seen.count);
            }
            if kept.by_event.is_empty() {
                of_pod.stories.remove(&id);
            }
        }
        if of_pod.stories.is_empty() {
            self.pods.remove(&pod);
        }
    }
}

/// One for all words that come with a reason.
fn story_by_reason(news: &News) -> StoryId {
    let News { severity, reason, field_path, .. } = news;
    StoryId(format!("{severity:?}/{reason}/{field_path}").into())
}

fn story_id(news: &News) -> StoryId {
    let News { severity, reason, message, field_path, .. } = news;
    StoryId(format!("{severity:?}/{reason}/{field_path}/{}", shape(message)).into())
}
