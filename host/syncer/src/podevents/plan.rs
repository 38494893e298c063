//! Which events a vpod gets, as a pure function of what the worker says about its ppod.
//!
//! Called by the loop in [`super::apply`], one pod at a time. Invariants: an event is written only when it says more than
//! what was written last, so that a plan applied and made again is empty; a pod whose budget is spent gets the sum of what
//! was said meanwhile, later; nothing that is older than [`NEWS_FOR`] is told, so that a start repeats no history.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use kubeocean_api::name::{ObjectKey, phys_name};
use kubeocean_runtime::events::Severity;
use serde::Serialize;

use super::view::{News, Seen};
use crate::{
    config::{PodEvents, StatusMessages},
    pods::{names::Names, wording::cut},
};

/// Events a pod may cause at once.
pub const BURST: i64 = 10;
/// After that, one in this time.
pub const INTERVAL: SignedDuration = SignedDuration::from_secs(30);
/// What happened longer ago is no news.
pub const NEWS_FOR: SignedDuration = SignedDuration::from_mins(10);
/// How long an event waits for its ppod to be known: the answer to its creation may come after it.
pub const WAIT_FOR_POD: Duration = Duration::from_secs(10);
/// How often it looks meanwhile.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Instead of a message that tenants must not see (`--pod-status-messages`).
const WITHHELD: &str = "the worker cluster does not show its messages";

/// How much a pod may still cause: the moment up to which its share is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget(Timestamp);

impl Default for Budget {
    fn default() -> Self {
        Self(Timestamp::UNIX_EPOCH)
    }
}

impl Budget {
    /// What is left after one more event, or when there may be one.
    fn take(self, now: Timestamp) -> Result<Self, Timestamp> {
        let spent = self.0.max(now);
        let reserve = INTERVAL * i32::try_from(BURST - 1).unwrap_or(i32::MAX);
        let allowed = spent.saturating_sub(reserve).unwrap_or(Timestamp::MIN);
        if allowed > now {
            return Err(allowed);
        }
        Ok(Self(spent.saturating_add(INTERVAL).unwrap_or(Timestamp::MAX)))
    }
}

/// One kind of news about a pod.
#[derive(Clone, Debug)]
pub struct Story {
    /// Identifies it among the pod's.
    pub id: StoryId,
    /// The words, of its latest occurrence.
    pub news: News,
    /// All occurrences together.
    pub seen: Seen,
    /// What was written last.
    pub told: Option<Seen>,
}

/// Severity, reason and shape of the message: what makes it one kind of news.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoryId(pub(super) Box<str>);

/// Whose copy the pod is that the events are about.
#[derive(Clone, Debug)]
pub enum About {
    /// No ppod of this UID is known (yet).
    Unknown,
    /// Somebody else's pod, or one whose vpod is gone.
    Foreign,
    /// A ppod of ours.
    Copy {
        /// The vpod.
        vpod: ObjectKey,
        /// Its UID.
        uid: String,
        /// Its node.
        vnode: String,
        /// Whether somebody deletes it.
        ending: bool,
        /// What the worker's names are called.
        names: Names,
    },
}

/// Everything one plan is made from.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Now.
    pub now: Timestamp,
    /// Which events a vpod gets (`--pod-events`).
    pub wanted: PodEvents,
    /// Whether the worker's words may be shown.
    pub messages: StatusMessages,
    /// The pod.
    pub about: About,
    /// When the first of its events came.
    pub since: Timestamp,
    /// Its news.
    pub stories: Vec<Story>,
    /// Its share.
    pub budget: Budget,
}

/// One event object of a vpod, as it shall be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Reflection {
    /// Name of the event: of the same news always the same.
    pub name: String,
    /// The vpod.
    #[serde(serialize_with = "crate::pods::ownership::as_text")]
    pub vpod: ObjectKey,
    /// Its UID.
    pub uid: String,
    /// `Normal` or `Warning`.
    pub severity: &'static str,
    /// As the worker gave it.
    pub reason: String,
    /// In the words of the computing cluster.
    pub message: String,
    /// Part of the pod.
    pub field_path: String,
    /// Who said it.
    pub component: String,
    /// The vnode, if it was said on a node.
    pub host: String,
    /// How often.
    pub count: i64,
    /// When first.
    pub first: Timestamp,
    /// When last.
    pub last: Timestamp,
    /// Whether it was written before.
    pub known: bool,
}

/// An event to write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The news it tells.
    pub story: StoryId,
    /// The event.
    pub reflection: Reflection,
    /// What is left of the pod's share after it.
    pub budget: Budget,
}

/// What to do about one pod's events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What to write, one after the other.
    pub write: Vec<Write>,
    /// When to look again.
    pub wake: Option<Timestamp>,
    /// Whether the pod's events concern nobody here.
    pub forget: bool,
}

/// See the module documentation.
pub fn plan(snapshot: &Snapshot) -> Plan {
    let (vpod, uid, vnode, ending, names) = match &snapshot.about {
        About::Foreign => return Plan { forget: true, ..Plan::default() },
        About::Unknown => {
            let until = snapshot.since.saturating_add(WAIT_FOR_POD).unwrap_or(Timestamp::MAX);
            return if snapshot.now < until {
                Plan { wake: snapshot.now.saturating_add(LOOK_AGAIN).ok(), ..Plan::default() }
            } else {
                Plan { forget: true, ..Plan::default() }
            };
        }
        About::Copy { vpod, uid, vnode, ending, names } => (vpod, uid, vnode, *ending, names),
    };
    let mut plan = Plan::default();
    let mut budget = snapshot.budget;
    let silent = ending && snapshot.wanted == PodEvents::Warning;
    let mut news: Vec<&Story> = snapshot
        .stories
        .iter()
        .filter(|story| !(silent && story.news.is_of_an_end()) && is_news(story, snapshot.now))
        .collect();
    news.sort_by_key(|story| story.seen.last);
    for story in news {
        match budget.take(snapshot.now) {
            Ok(left) => budget = left,
            Err(at) => {
                plan.wake = Some(at);
                break;
            }
        }
        let News { severity, reason, message, field_path, component, on_node } = &story.news;
        let message = match snapshot.messages {
            StatusMessages::Full => cut(&names.translate(message)),
            StatusMessages::ReasonOnly => WITHHELD.to_owned(),
        };
        let reflection = Reflection {
            name: phys_name(&vpod.name, &format!("{uid}/{}", story.id.0)),
            vpod: vpod.clone(),
            uid: uid.clone(),
            severity: match severity {
                Severity::Normal => "Normal",
                Severity::Warning => "Warning",
            },
            reason: reason.to_string(),
            message,
            field_path: field_path.to_string(),
            component: component.to_string(),
            host: if *on_node { vnode.clone() } else { String::new() },
            count: story.seen.count,
            first: story.seen.first,
            last: story.seen.last,
            known: story.told.is_some(),
        };
        plan.write.push(Write { story: story.id.clone(), reflection, budget });
    }
    plan
}

fn is_news(story: &Story, now: Timestamp) -> bool {
    let fresh = now.duration_since(story.seen.last) < NEWS_FOR;
    let more = story.told.is_none_or(|told| story.seen.last > told.last || story.seen.count > told.count);
    fresh && more
}
