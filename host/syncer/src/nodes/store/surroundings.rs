//! What is the same for all vnodes of a binding at one moment, and how much may be decided yet.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use tokio::time::Instant;

use super::NodeStore;
use crate::nodes::{decide::POLICIES_WAIT, index::VnodeName, loss::WorkerLoss, vnode::BindingView};

/// How much may be decided yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    /// The first lists are not complete.
    #[default]
    Listing,
    /// The lists are complete: nodes are decided, each as soon as its policies are loaded (PO-704).
    Ready,
}

/// What is the same for all vnodes at one moment.
#[derive(Clone, Debug)]
pub struct Surroundings {
    /// The binding.
    pub binding: BindingView,
    /// How much may be decided.
    pub readiness: Readiness,
    /// How long a node may still wait for its policies to load; `None` when that time is over.
    pub loading_left: Option<Duration>,
    /// Addresses of ready Proxiers.
    pub proxier: Vec<IpAddr>,
    /// Why the worker has been out of reach for 60 s, if it has.
    pub loss: Option<WorkerLoss>,
}

impl NodeStore {
    /// The binding changed.
    pub fn set_binding(&self, binding: BindingView) {
        let changed = {
            let mut state = self.state.lock();
            let changed = state.binding != binding;
            state.binding = binding;
            changed
        };
        if changed {
            self.wake_all();
        }
    }

    /// More, or after a lost session less, may be decided.
    pub fn set_readiness(&self, readiness: Readiness) {
        let (changed, settled) = {
            let mut state = self.state.lock();
            let changed = std::mem::replace(&mut state.readiness, readiness) != readiness;
            if changed && readiness == Readiness::Ready {
                state.loading_until = Some(Instant::now() + POLICIES_WAIT);
                state.undecided = state.index.keys();
            }
            (changed, readiness == Readiness::Ready && state.undecided.is_empty())
        };
        if changed {
            self.settled.send_replace(settled);
            self.wake_all();
            self.tell_facts(None);
        }
    }

    /// A decision about the vnode's node was made, and no longer waits for policies to load.
    pub(in crate::nodes) fn was_decided(&self, vnode: &VnodeName) {
        let mut state = self.state.lock();
        if state.undecided.remove(vnode) && state.undecided.is_empty() {
            drop(state);
            self.settled.send_replace(true);
        }
    }

    /// Waits until every node that was there when the gate was opened has been decided.
    pub(crate) async fn settled(&self) {
        // The sender lives in `self`, so the wait can only end with a value.
        let _ = self.settled.subscribe().wait_for(|settled| *settled).await;
    }

    /// Waiting for nodes that cannot be decided is over.
    pub(in crate::nodes) fn settle(&self) {
        self.state.lock().undecided.clear();
        self.settled.send_replace(true);
    }

    /// Whether the numbers of policies are complete. Before that they prove nothing.
    pub fn is_settled(&self) -> bool {
        *self.settled.borrow()
    }

    /// How much may be decided.
    pub fn readiness(&self) -> Readiness {
        self.state.lock().readiness
    }

    /// The ready Proxiers.
    pub fn set_proxier(&self, addresses: impl IntoIterator<Item = IpAddr>) {
        let sorted: Vec<IpAddr> = addresses.into_iter().collect::<BTreeSet<_>>().into_iter().collect();
        let mut state = self.state.lock();
        if state.proxier == sorted {
            return;
        }
        state.proxier = sorted;
        drop(state);
        self.wake_all();
    }

    /// Why the worker has been out of reach for 60 s, if it has. Says whether that is news.
    pub fn set_loss(&self, loss: Option<WorkerLoss>) -> bool {
        let changed = std::mem::replace(&mut self.state.lock().loss, loss) != loss;
        if changed {
            self.wake_all();
        }
        changed
    }

    /// What is the same for all vnodes.
    pub fn surroundings(&self) -> Surroundings {
        let state = self.state.lock();
        Surroundings {
            binding: state.binding.clone(),
            readiness: state.readiness,
            loading_left: state
                .loading_until
                .map(|until| until.saturating_duration_since(Instant::now()))
                .filter(|left| !left.is_zero()),
            proxier: state.proxier.clone(),
            loss: state.loss,
        }
    }
}
