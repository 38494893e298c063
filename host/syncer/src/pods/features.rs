//! What the worker's role may lack without harm to anything else (TD-107).
//!
//! A feature that needs such a right is turned off when the worker refuses it, for as long as the connection lives, and
//! that is told once, on the binding (API-810).

use std::{collections::BTreeSet, fmt};

use parking_lot::Mutex;

use kubeocean_runtime::events::{Event, EventRecorder, Regarding, Severity};

/// Something that works only with an optional right.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Feature {
    /// Debug containers in running ppods.
    DebugContainers,
    /// Making the default PriorityClass.
    DefaultPriorityClass,
    /// LogConfigs of the computing cluster in the worker cluster.
    LogConfigs,
    /// Measured usage of the worker's nodes.
    MeasuredUsage,
    /// Events of the worker cluster on vpods.
    PodEvents,
    /// Changed resources of running ppods.
    Resize,
}

impl Feature {
    /// What is not done any more, and the right it needs.
    fn consequence(self) -> &'static str {
        match self {
            Self::DebugContainers => {
                "debug containers are not started: the worker cluster does not permit to patch pods/ephemeralcontainers"
            }
            Self::DefaultPriorityClass => {
                "the default PriorityClass is not made: the worker cluster does not permit to create priorityclasses; \
                 make it there, or name one in podPriorityClassName"
            }
            Self::LogConfigs => {
                "LogConfigs are not mapped: list and watch of logconfigs is not permitted, in this or in the worker cluster"
            }
            Self::MeasuredUsage => {
                "policies that read what is used of nodes get no measurement: the worker cluster does not permit to list nodes \
                 of metrics.k8s.io"
            }
            Self::Resize => {
                "changed resources of running pods do not reach their containers: the worker cluster does not serve, or does \
                 not permit to patch, pods/resize"
            }
            Self::PodEvents => {
                "what the worker cluster says about pods is not shown on them: list and watch of events there, or create and \
                 patch of events here, is not permitted"
            }
        }
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.consequence())
    }
}

/// The features of one connection.
#[derive(Debug)]
pub struct Features {
    binding: Regarding,
    events: EventRecorder,
    off: Mutex<BTreeSet<Feature>>,
}

impl Features {
    /// All of them on; what is turned off is told on `binding`.
    pub fn new(binding: Regarding, events: EventRecorder) -> Self {
        Self { binding, events, off: Mutex::default() }
    }

    /// Whether it was refused before.
    pub fn is_off(&self, feature: Feature) -> bool {
        self.off.lock().contains(&feature)
    }

    /// The worker does not permit it. Says whether that is news.
    pub fn turn_off(&self, feature: Feature) -> bool {
        let news = self.off.lock().insert(feature);
        if news {
            tracing::warn!(%feature, "feature turned off");
            self.events.publish(Event {
                regarding: self.binding.clone(),
                severity: Severity::Warning,
                reason: "FeatureDisabled",
                message: feature.to_string(),
            });
        }
        news
    }
}
