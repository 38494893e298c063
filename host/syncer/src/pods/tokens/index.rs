//! Which token Secrets exist in the mount namespace, whose they are and when they are renewed. Metadata only.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kubeocean_api::{
    keys::{annotation, label},
    name::ObjectKey,
};
use parking_lot::Mutex;

use super::plan::{TokenOwner, renew_found_at};
use crate::objects::{Pods, Scope};
use kubeocean_runtime::{
    clock::{Clock, parse_rfc3339},
    queue::Queue,
};

/// A token Secret that this binding owns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenSecret {
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) owner: TokenOwner,
    pub(crate) expires: Option<Timestamp>,
}

impl TokenSecret {
    /// The Secret's metadata, if it is a token Secret of ours: stamped with this binding, or unstamped by the original
    /// and of a vpod that this binding runs (TD-1103).
    pub(crate) fn of(meta: &ObjectMeta, scope: &Scope, pods: &Pods) -> Option<Self> {
        let label = |key: &str| meta.labels.as_ref().and_then(|labels| labels.get(key)).map(String::as_str);
        let annotation = |key: &str| meta.annotations.as_ref()?.get(key).cloned();
        if label(label::SERVICE_ACCOUNT_TOKEN) != Some("true") {
            return None;
        }
        let owner = TokenOwner {
            key: ObjectKey::new(
                annotation(annotation::VIRTUAL_POD_NAMESPACE)?,
                annotation(annotation::VIRTUAL_POD_NAME)?,
            ),
            uid: annotation(annotation::VIRTUAL_POD_UID)?,
        };
        let ours = match (annotation(annotation::COMPUTING_CLUSTER_UID), label(label::CLUSTER_BINDING)) {
            (None, None) => pods.runs(&owner.key, &owner.uid),
            (uid, binding) => {
                uid.as_deref() == Some(scope.computing_uid.as_str())
                    && binding == Some(scope.binding.as_str())
            }
        };
        ours.then(|| Self {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            owner,
            expires: annotation(annotation::TOKEN_EXPIRATION).as_deref().and_then(parse_rfc3339),
        })
    }
}

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

#[derive(Debug, Default)]
struct State {
    held: BTreeMap<String, Held>,
    by_owner: BTreeMap<TokenOwner, BTreeSet<String>>,
    /// Owners that lost a Secret they need.
    lost: BTreeSet<TokenOwner>,
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
        Self { pods, queue: Queue::new("tokens"), clock, state: Mutex::default() }
    }

    /// A Secret was seen in the mount namespace.
    pub(crate) fn seen(&self, secret: TokenSecret) {
        let owner = secret.owner.clone();
        if self
            .state
            .lock()
            .put(secret, |secret| renew_found_at(&secret.name, self.clock.now(), secret.expires))
        {
            self.queue.add(owner);
        }
    }

    /// The ppod of this vpod is gone: what it mounted is looked at (TD-1201).
    pub(crate) fn copy_gone(&self, owner: &TokenOwner) {
        if self.state.lock().by_owner.contains_key(owner) {
            self.queue.add(owner.clone());
        }
    }

    /// A Secret vanished from the mount namespace.
    pub(crate) fn vanished(&self, name: &str) {
        let owner = {
            let mut state = self.state.lock();
            let owner = state.remove(name);
            state.lost.extend(owner.clone());
            owner
        };
        if let Some(owner) = owner {
            self.queue.add(owner);
        }
    }

    /// The complete list of token Secrets; what is not in it has vanished.
    pub(crate) fn reset(&self, all: Vec<TokenSecret>) {
        let present: BTreeSet<String> = all.iter().map(|secret| secret.name.clone()).collect();
        let gone: Vec<String> = {
            let state = self.state.lock();
            state.held.keys().filter(|name| !present.contains(*name)).cloned().collect()
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
        let owner = secret.owner.clone();
        {
            let mut state = self.state.lock();
            state.put(secret, |_| renew_at);
            state.lost.remove(&owner);
        }
        // The queue holds the timer.
        self.queue.add(owner);
    }

    /// A Secret was removed by us, or found to be gone.
    pub(super) fn forget(&self, name: &str) {
        self.state.lock().remove(name);
    }

    /// How long the first of the held tokens is still good for.
    pub(crate) fn first_ends_in(&self) -> Option<SignedDuration> {
        let first = self.state.lock().held.values().filter_map(|held| held.secret.expires).min();
        first.map(|expires| expires.duration_since(self.clock.now()))
    }

    /// The Secrets of a vpod.
    pub(crate) fn of_owner(&self, owner: &TokenOwner) -> Vec<TokenSecret> {
        let state = self.state.lock();
        let names = state.by_owner.get(owner).into_iter().flatten();
        names.filter_map(|name| Some(state.held.get(name)?.secret.clone())).collect()
    }

    /// A held Secret and whether its tokens are still fresh.
    pub(super) fn held(&self, name: &str) -> Option<(TokenSecret, bool)> {
        let now = self.clock.now();
        self.state.lock().held.get(name).map(|held| (held.secret.clone(), held.renew_at > now))
    }

    /// What has to be done for a vpod.
    pub(super) fn look(&self, owner: &TokenOwner) -> Look {
        let state = self.state.lock();
        if state.lost.contains(owner) {
            return Look::Now;
        }
        let names = state.by_owner.get(owner).into_iter().flatten();
        match names.filter_map(|name| state.held.get(name)).map(|held| held.renew_at).min() {
            None => Look::Nothing,
            Some(at) if at <= self.clock.now() => Look::Now,
            Some(at) => Look::Due(at),
        }
    }

    /// The vpod needs no tokens any more.
    pub(super) fn ended(&self, owner: &TokenOwner) {
        self.state.lock().lost.remove(owner);
    }

    /// Every vpod that has a token Secret, for a sweep.
    pub(crate) fn owners(&self) -> Vec<TokenOwner> {
        self.state.lock().by_owner.keys().cloned().collect()
    }
}

impl State {
    /// Whether something is new. A Secret that is known with the same end keeps its time of renewal.
    fn put(&mut self, secret: TokenSecret, renew_at: impl FnOnce(&TokenSecret) -> Timestamp) -> bool {
        if self.held.get(&secret.name).is_some_and(|held| held.secret == secret) {
            return false;
        }
        self.remove(&secret.name);
        let renew_at = renew_at(&secret);
        self.by_owner.entry(secret.owner.clone()).or_default().insert(secret.name.clone());
        self.held.insert(secret.name.clone(), Held { secret, renew_at });
        true
    }

    fn remove(&mut self, name: &str) -> Option<TokenOwner> {
        let owner = self.held.remove(name)?.secret.owner;
        if let Some(names) = self.by_owner.get_mut(&owner) {
            names.remove(name);
            if names.is_empty() {
                self.by_owner.remove(&owner);
            }
        }
        Some(owner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug)]
    struct At(Timestamp);
    impl Clock for At {
        fn now(&self) -> Timestamp {
            self.0
        }
    }

    fn secret(name: &str, pod: &str, expires: &str) -> TokenSecret {
        TokenSecret {
            name: name.to_owned(),
            uid: format!("uid-{name}"),
            owner: TokenOwner { key: ObjectKey::new("team-a", pod), uid: "u".to_owned() },
            expires: Some(expires.parse().unwrap()),
        }
    }

    #[test]
    fn a_secret_that_vanishes_is_lost_and_one_that_was_removed_is_not() {
        let store = TokenStore::new(Pods::default(), Arc::new(At("2026-01-01T00:00:00Z".parse().unwrap())));
        let (web, db) =
            (secret("a", "web", "2026-01-01T01:00:00Z"), secret("b", "db", "2026-01-01T01:00:00Z"));
        store.reset(vec![web.clone(), db.clone()]);
        assert!(matches!(store.look(&web.owner), Look::Due(_)));
        store.forget("b");
        store.vanished("b");
        assert_eq!(store.look(&db.owner), Look::Nothing);
        store.reset(vec![]);
        assert_eq!(store.look(&web.owner), Look::Now);
        store.written(web.clone(), "2026-01-01T00:40:00Z".parse().unwrap());
        assert_eq!(store.look(&web.owner), Look::Due("2026-01-01T00:40:00Z".parse().unwrap()));
        store.seen(web.clone());
        assert_eq!(
            store.look(&web.owner),
            Look::Due("2026-01-01T00:40:00Z".parse().unwrap()),
            "our own write comes back through the watch and keeps its time"
        );
    }

    #[test]
    fn the_end_of_a_ppod_brings_its_tokens_up_and_no_others() {
        let store = TokenStore::new(Pods::default(), Arc::new(At("2026-01-01T00:00:00Z".parse().unwrap())));
        let web = secret("a", "web", "2026-01-01T01:00:00Z");
        store.copy_gone(&web.owner);
        assert!(store.queue.is_empty(), "it has none");
        store.state.lock().put(web.clone(), |_| "2026-01-01T00:40:00Z".parse().unwrap());
        store.copy_gone(&web.owner);
        assert_eq!(store.queue.len(), 1);
    }

    #[test]
    fn a_secret_about_to_end_is_due_at_once() {
        let store = TokenStore::new(Pods::default(), Arc::new(At("2026-01-01T00:59:00Z".parse().unwrap())));
        let web = secret("a", "web", "2026-01-01T01:00:00Z");
        store.seen(web.clone());
        assert_eq!(store.look(&web.owner), Look::Now);
    }

    #[test]
    fn foreign_stamps_are_not_ours() {
        let scope = Scope {
            binding: "east".to_owned(),
            cluster_id: "e".to_owned(),
            computing_uid: "cc".to_owned(),
            mount_namespace: "mount".to_owned(),
        };
        let meta = |uid: Option<&str>, binding: Option<&str>| {
            let mut annotations = BTreeMap::from([
                (annotation::VIRTUAL_POD_NAMESPACE.to_owned(), "team-a".to_owned()),
                (annotation::VIRTUAL_POD_NAME.to_owned(), "web".to_owned()),
                (annotation::VIRTUAL_POD_UID.to_owned(), "u".to_owned()),
            ]);
            annotations.extend(uid.map(|uid| (annotation::COMPUTING_CLUSTER_UID.to_owned(), uid.to_owned())));
            let mut labels = BTreeMap::from([(label::SERVICE_ACCOUNT_TOKEN.to_owned(), "true".to_owned())]);
            labels.extend(binding.map(|binding| (label::CLUSTER_BINDING.to_owned(), binding.to_owned())));
            ObjectMeta { labels: Some(labels), annotations: Some(annotations), ..ObjectMeta::default() }
        };
        let ours = |uid, binding| TokenSecret::of(&meta(uid, binding), &scope, &Pods::default()).is_some();
        assert!(ours(Some("cc"), Some("east")));
        assert!(ours(None, None), "the original's, of a pod that may run here");
        assert!(!ours(Some("other"), Some("east")));
        assert!(!ours(Some("cc"), Some("west")));
    }
}
