//! Which token Secrets exist in the mount namespace, whose they are and when they are renewed. Metadata only.
//!
//! Secrets without a stamp are kept apart until their vpod tells whose they are, which is known when all lists are complete.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use super::{
    by_owner::{ByOwner, Owned},
    plan::{TokenOwner, not_before, renew_found_at},
    secret::{Found, TokenSecret, Unstamped},
};
use crate::objects::Pods;
use kubeocean_runtime::{
    clock::Clock,
    queue::{Queue, flow_of},
};

#[derive(Debug)]
struct Held {
    secret: TokenSecret,
    renew_at: Timestamp,
}

/// The token Secrets of this binding and the queue of vpods whose tokens need a look.
#[derive(Debug)]
pub struct TokenStore {
    pub(super) pods: Pods,
    pub(crate) queue: Arc<Queue<TokenOwner>>,
    pub(super) clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

impl Owned for Held {
    fn name(&self) -> &str {
        self.secret.name()
    }
    fn owner(&self) -> &TokenOwner {
        self.secret.owner()
    }
}

impl Owned for Unstamped {
    fn name(&self) -> &str {
        self.name()
    }
    fn owner(&self) -> &TokenOwner {
        self.owner()
    }
}

#[derive(Debug, Default)]
struct State {
    held: ByOwner<Held>,
    /// Those without a stamp.
    undecided: ByOwner<Unstamped>,
    /// Secrets that vanished, by name, and whose they were.
    lost: BTreeMap<String, TokenOwner>,
}

/// What a look at one vpod's tokens finds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look {
    /// Nothing is held and nothing is missing.
    Nothing,
    /// The earliest renewal lies ahead.
    Due(Timestamp),
    /// Something is due or missing.
    Now,
}

impl TokenStore {
    /// An empty store.
    pub fn new(pods: Pods, clock: Arc<dyn Clock>) -> Self {
        Self {
            pods,
            queue: Queue::with_flows("tokens", |owner: &TokenOwner| flow_of(&owner.key.namespace)),
            clock,
            state: Mutex::default(),
        }
    }

    /// A Secret was seen in the mount namespace.
    pub(crate) fn seen(&self, found: Found) {
        let owner = found.owner().clone();
        let news = {
            let state = &mut *self.state.lock();
            match found {
                Found::Ours(secret) => {
                    state.undecided.remove(secret.name());
                    self.put(state, secret)
                }
                Found::Unstamped(unstamped) if state.holds(&unstamped) => false,
                Found::Unstamped(unstamped) => {
                    state.undecided.insert(unstamped);
                    true
                }
            }
        };
        if news {
            self.queue.add(owner);
        }
    }

    fn put(&self, state: &mut State, secret: TokenSecret) -> bool {
        let now = self.clock.now();
        // Somebody has just renewed it, most likely we ourselves, and its end is by another clock.
        let at_once = if state.held.get(secret.name()).is_some() { not_before(now) } else { now };
        state.put(secret, |secret| renew_found_at(secret.name(), now, secret.expires()).max(at_once))
    }

    /// The Secrets without a stamp that name this vpod.
    pub(super) fn unstamped_of(&self, owner: &TokenOwner) -> Vec<Unstamped> {
        self.state.lock().undecided.of(owner).cloned().collect()
    }

    /// The vpod is ours, and so are the Secrets that name it.
    pub(super) fn adopt(&self, owner: &TokenOwner) {
        let state = &mut *self.state.lock();
        for unstamped in state.undecided.take(owner) {
            self.put(state, unstamped.adopt());
        }
    }

    /// The vpod is another binding's, and so are the Secrets that name it.
    pub(super) fn disown(&self, owner: &TokenOwner) {
        self.state.lock().undecided.take(owner);
    }

    /// A Secret could not be removed.
    pub(super) fn is_still_there(&self, secret: TokenSecret) {
        let owner = secret.owner().clone();
        self.put(&mut self.state.lock(), secret);
        self.queue.add(owner);
    }

    /// The ppod of this vpod is gone: what it mounted is looked at (TD-1201).
    pub(crate) fn copy_gone(&self, owner: &TokenOwner) {
        let state = self.state.lock();
        if state.held.has(owner) || state.undecided.has(owner) {
            self.queue.add(owner.clone());
        }
    }

    /// A Secret vanished from the mount namespace.
    pub(crate) fn vanished(&self, name: &str) {
        let owner = {
            let mut state = self.state.lock();
            state.undecided.remove(name);
            let owner = state.held.remove(name).map(|held| held.owner().clone());
            state.lost.extend(owner.clone().map(|owner| (name.to_owned(), owner)));
            owner
        };
        if let Some(owner) = owner {
            self.queue.add(owner);
        }
    }

    /// The complete list of token Secrets; what is not in it has vanished.
    pub(crate) fn reset(&self, all: Vec<Found>) {
        let present: BTreeSet<String> = all.iter().map(|found| found.name().to_owned()).collect();
        let gone: Vec<String> = {
            let state = self.state.lock();
            let known = state.held.names().chain(state.undecided.names());
            known.filter(|name| !present.contains(*name)).cloned().collect()
        };
        for secret in all {
            self.seen(secret);
        }
        for name in &gone {
            self.vanished(name);
        }
    }

    /// A Secret was written by us.
    pub(super) fn written(&self, secret: TokenSecret, renew_at: Timestamp) {
        let owner = secret.owner().clone();
        {
            let mut state = self.state.lock();
            // Its event may have come before the answer, and does not tell how long the tokens are good for.
            state.held.remove(secret.name());
            state.put(secret, |_| renew_at);
        }
        // The queue holds the timer.
        self.queue.add(owner);
    }

    /// A Secret was removed by us, or found to be gone.
    pub(super) fn forget(&self, name: &str) {
        self.state.lock().held.remove(name);
    }

    /// How long the first of the held tokens is still good for.
    pub(crate) fn first_ends_in(&self) -> Option<SignedDuration> {
        let first = self.state.lock().held.values().filter_map(|held| held.secret.expires()).min();
        first.map(|expires| expires.duration_since(self.clock.now()))
    }

    /// The Secrets of a vpod.
    pub(crate) fn of_owner(&self, owner: &TokenOwner) -> Vec<TokenSecret> {
        let state = self.state.lock();
        state.held.of(owner).map(|held| held.secret.clone()).collect()
    }

    /// A held Secret and whether its tokens are still fresh.
    pub(super) fn held(&self, name: &str) -> Option<(TokenSecret, bool)> {
        let now = self.clock.now();
        self.state.lock().held.get(name).map(|held| (held.secret.clone(), held.renew_at > now))
    }

    /// What has to be done for a vpod.
    pub(super) fn look(&self, owner: &TokenOwner) -> Look {
        let state = self.state.lock();
        if state.lost.values().any(|of| of == owner) {
            return Look::Now;
        }
        match state.held.of(owner).map(|held| held.renew_at).min() {
            None => Look::Nothing,
            Some(at) if at <= self.clock.now() => Look::Now,
            Some(at) => Look::Due(at),
        }
    }

    /// When the first of these Secrets of a vpod is renewed.
    pub(super) fn next_renewal(&self, owner: &TokenOwner, needed: &[&str]) -> Option<Timestamp> {
        let state = self.state.lock();
        let held = state.held.of(owner).filter(|held| needed.contains(&held.name()));
        held.map(|held| held.renew_at).min()
    }

    /// Of the Secrets that a vpod lost only these are still missed. One may have vanished since it was looked at.
    pub(super) fn misses_only(&self, owner: &TokenOwner, needed: &[&str]) {
        self.state.lock().lost.retain(|name, of| of != owner || needed.contains(&name.as_str()));
    }

    /// Every vpod that has a token Secret of this binding.
    pub(crate) fn owners(&self) -> Vec<TokenOwner> {
        self.state.lock().held.owners().cloned().collect()
    }

    /// Every vpod that a token Secret names, for a sweep.
    pub(super) fn named(&self) -> Vec<TokenOwner> {
        let state = self.state.lock();
        state.held.owners().chain(state.undecided.owners()).cloned().collect()
    }
}

impl State {
    /// Whether something is new. A Secret that is known with the same end keeps its time of renewal.
    fn put(&mut self, secret: TokenSecret, renew_at: impl FnOnce(&TokenSecret) -> Timestamp) -> bool {
        if self.held.get(secret.name()).is_some_and(|held| held.secret == secret) {
            return false;
        }
        let renew_at = renew_at(&secret);
        self.lost.remove(secret.name());
        self.held.insert(Held { secret, renew_at });
        true
    }

    /// Whether this very Secret was found to be ours before.
    fn holds(&self, unstamped: &Unstamped) -> bool {
        self.held.get(unstamped.name()).is_some_and(|held| unstamped.is(&held.secret))
    }
}

#[cfg(test)]
mod tests;
