//! The LogConfigs of both clusters. There are few, so they are kept whole.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use kubeocean_api::keys::annotation;
use kubeocean_runtime::queue::Queue;
use parking_lot::Mutex;

use super::{
    plan::{Plan, Snapshot, plan},
    view::LogConfig,
};
use crate::objects::Scope;

/// In which cluster a LogConfig was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// In the computing cluster.
    Original,
    /// In the worker cluster, managed by Kubeocean.
    Copy,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Original => "computing",
            Self::Copy => "worker",
        })
    }
}

/// See the module documentation.
#[derive(Debug)]
pub struct LogConfigStore {
    pub(super) queue: Arc<Queue<String>>,
    /// Whoever writes holds it: a release must not be followed by a write that was planned before it.
    pub(super) turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    originals: BTreeMap<String, LogConfig>,
    copies: BTreeMap<String, LogConfig>,
    /// Names in the worker cluster that no managed LogConfig has and that cannot be had.
    taken: BTreeSet<String>,
    /// By name of a copy: its version, and that of the original it was written for. Where the worker's schema prunes or
    /// defaults fields a copy never equals what was written.
    settled: BTreeMap<String, (String, String)>,
    releasing: bool,
}

impl State {
    fn side(&mut self, side: Side) -> &mut BTreeMap<String, LogConfig> {
        match side {
            Side::Original => &mut self.originals,
            Side::Copy => &mut self.copies,
        }
    }
}

impl Default for LogConfigStore {
    fn default() -> Self {
        Self { queue: Queue::new("logconfigs"), turn: tokio::sync::Mutex::default(), state: Mutex::default() }
    }
}

/// The name of the original.
pub(super) fn original_of(side: Side, config: &LogConfig) -> Option<&str> {
    match side {
        Side::Original => Some(config.name()),
        Side::Copy => config.annotation(annotation::VIRTUAL_NAME),
    }
}

fn version(config: &LogConfig) -> Option<u128> {
    config.resource_version().parse().ok()
}

impl LogConfigStore {
    /// Seen in a watch or as the answer of a write.
    pub(super) fn seen(&self, side: Side, config: LogConfig) {
        let key = original_of(side, &config).map(str::to_owned);
        {
            let mut state = self.state.lock();
            state.taken.remove(config.name());
            let known = state.side(side);
            let older = known.get(config.name()).is_some_and(|known| version(&config) < version(known));
            if !older {
                known.insert(config.name().to_owned(), config);
            }
        }
        self.queue.add_all(key);
    }

    /// It is gone.
    pub(super) fn gone(&self, side: Side, config: &LogConfig) {
        {
            let mut state = self.state.lock();
            state.settled.remove(config.name());
            let known = state.side(side);
            if known.get(config.name()).is_some_and(|known| known.uid() == config.uid()) {
                known.remove(config.name());
            }
        }
        self.queue.add_all(original_of(side, config).map(str::to_owned));
        if side == Side::Copy {
            // Its name may be what another one waits for.
            self.wake_all();
        }
    }

    /// The complete list of one side.
    pub(super) fn reset(&self, side: Side, all: Vec<LogConfig>) {
        {
            let mut state = self.state.lock();
            state.taken.clear();
            *state.side(side) = all.into_iter().map(|config| (config.name().to_owned(), config)).collect();
        }
        self.wake_all();
    }

    /// One of them.
    #[cfg(test)]
    pub(super) fn get(&self, side: Side, name: &str) -> Option<LogConfig> {
        self.state.lock().side(side).get(name).cloned()
    }

    /// Names of those of one side.
    #[cfg(test)]
    pub(super) fn names(&self, side: Side) -> Vec<String> {
        self.state.lock().side(side).keys().cloned().collect()
    }

    fn wake_all(&self) {
        let state = self.state.lock();
        let copies = state.copies.values().filter_map(|copy| original_of(Side::Copy, copy));
        let all: BTreeSet<String> =
            state.originals.keys().map(String::as_str).chain(copies).map(str::to_owned).collect();
        drop(state);
        self.queue.add_all(all);
    }

    /// Somebody who is not managed by Kubeocean has a name.
    pub(super) fn is_taken(&self, name: &str) {
        self.state.lock().taken.insert(name.to_owned());
    }

    /// A copy was written for a version of its original.
    pub(super) fn settled(&self, copy: &LogConfig, original: &LogConfig) {
        let versions = (copy.resource_version().to_owned(), original.resource_version().to_owned());
        self.state.lock().settled.insert(copy.name().to_owned(), versions);
    }

    /// From now on nothing is copied any more.
    pub(super) fn start_releasing(&self) {
        self.state.lock().releasing = true;
    }

    pub(super) fn is_releasing(&self) -> bool {
        self.state.lock().releasing
    }

    /// Plans the LogConfig of this name, which is returned as it is now. `closing`: see [`Snapshot::closing`].
    pub(super) fn plan(&self, scope: &Scope, name: &str, closing: bool) -> (Plan, Option<LogConfig>) {
        let state = self.state.lock();
        let original = state.originals.get(name);
        let copies: Vec<&LogConfig> =
            state.copies.values().filter(|copy| original_of(Side::Copy, copy) == Some(name)).collect();
        let is_settled = |copy: &&LogConfig| {
            let now =
                (copy.resource_version(), original.map(LogConfig::resource_version).unwrap_or_default());
            state
                .settled
                .get(copy.name())
                .is_some_and(|(copy, original)| (copy.as_str(), original.as_str()) == now)
        };
        let settled = copies.iter().copied().filter(is_settled).map(LogConfig::name).collect();
        let taken = state.copies.keys().chain(&state.taken).map(String::as_str).collect();
        let snapshot = Snapshot { original, releasing: state.releasing, closing, copies, taken, settled };
        (plan(scope, &snapshot), original.cloned())
    }
}
