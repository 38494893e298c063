//! Keeps the modules of policies current: one read per change of a ConfigMap or pull secret, of which each is watched
//! alone (PO-707), and one read per attempt of what cannot be watched (PO-705).
//!
//! Invariant: what is slow holds up nothing but itself. A registry may take ten minutes for a module; neither other sources,
//! nor modules the disk has, nor the loop, whose beat says that the process is alive, wait for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, runtime::watcher::Config};
use kubeocean_engine::{LoadCode, ModuleFetch};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::{
    dev_file::read_dev_file,
    modules::{ConfigMapKey, Fetched, ModuleKey, OciKey, SecretKey, failed, from_config_map},
    oci::{MARK_USED, Registries},
    store::PolicyStore,
};
use crate::{config::PolicySources, nodes::index::Identity};
use kubeocean_runtime::{
    error::ApplyError,
    health::Heartbeat,
    meta::trimmed_meta,
    partial_resource,
    queue::{Outcome, Queue, drive},
    request::{get_json, paths},
    sink::Sink,
    tasks::Workers,
    watch::{WatchHealth, WatchSpec, watch_into},
};

/// Reads from the worker cluster and the development folder at a time, which all end within seconds.
const NEAR: usize = 2;
/// Reads of modules that are on disk at a time.
const DISK: usize = 2;
/// Pulls from one registry at a time.
const PER_REGISTRY: usize = 2;
/// Pulls at a time, each of which holds a module in memory.
const PULLS: usize = 16;
/// How long a tag is looked up before what it led to earlier decides in the meantime. Less than a Syncer that starts waits
/// for its modules (PO-704).
const PATIENCE: Duration = Duration::from_secs(10);

/// A ConfigMap without its data.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct ConfigMapHead {
    /// Only used to notice changes.
    #[serde(deserialize_with = "trimmed_meta")]
    pub metadata: ObjectMeta,
}

partial_resource!(ConfigMapHead, k8s_openapi::api::core::v1::ConfigMap);

/// A Secret without its data.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct SecretHead {
    /// Only used to notice changes.
    #[serde(deserialize_with = "trimmed_meta")]
    pub metadata: ObjectMeta,
}

partial_resource!(SecretHead, k8s_openapi::api::core::v1::Secret);

/// Any change of the object means one fetch.
struct Changed {
    key: ModuleKey,
    queue: Arc<Queue<ModuleKey>>,
}

impl<K> Sink<K> for Changed {
    fn apply(&self, _: K) {
        self.queue.add(self.key.clone());
    }
    fn delete(&self, _: K) {
        self.queue.add(self.key.clone());
    }
    fn reset(&self, _: Vec<K>) {
        self.queue.add(self.key.clone());
    }
}

/// Everything modules are read from.
pub struct Sources {
    worker: Client,
    registries: Registries,
    settings: PolicySources,
    max_module_bytes: usize,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("settings", &self.settings).finish_non_exhaustive()
    }
}

impl Sources {
    /// Nothing is opened before the first module needs it.
    pub fn new(worker: Client, settings: &PolicySources, max_module_bytes: usize) -> Self {
        let registries = Registries::new(worker.clone(), settings.clone(), max_module_bytes);
        Self { worker, registries, settings: settings.clone(), max_module_bytes }
    }

    /// The same for the policies of one binding.
    fn for_binding(self, identity: &Identity) -> Self {
        Self { registries: self.registries.for_binding(identity), ..self }
    }

    /// What is there for `key` now, and whether and when asking again may give something else.
    pub async fn read(&self, key: &ModuleKey) -> (Fetched, Outcome) {
        let (module, outcome) = match key {
            ModuleKey::ConfigMap(key) => self.read_config_map(key).await,
            ModuleKey::Oci(key) => return self.registries.read(key).await,
            ModuleKey::File(path) => {
                read_dev_file(self.settings.dev_folder.clone(), path, self.max_module_bytes).await
            }
        };
        (module.into(), outcome)
    }

    async fn read_config_map(&self, key: &ConfigMapKey) -> (ModuleFetch, Outcome) {
        let path = paths::core("configmaps", &key.namespace, &key.name);
        match get_json(&self.worker, &path).await {
            Ok(config_map) => (from_config_map(config_map.as_ref(), key), Outcome::Done),
            Err(error @ ApplyError::Forbidden { .. }) => {
                (failed(LoadCode::FetchForbidden, error.chain()), Outcome::Retry)
            }
            Err(error) => (failed(LoadCode::FetchFailed, error.chain()), Outcome::Retry),
        }
    }
}

/// Who may read at the same time.
#[derive(Debug)]
struct Turns {
    near: Arc<Semaphore>,
    disk: Semaphore,
    pulls: Arc<Semaphore>,
    registries: Mutex<BTreeMap<String, Arc<Semaphore>>>,
}

/// A turn. It ends when it is dropped.
type Turn = Vec<OwnedSemaphorePermit>;

impl Default for Turns {
    fn default() -> Self {
        let of = |at_a_time| Arc::new(Semaphore::new(at_a_time));
        Self { near: of(NEAR), disk: Semaphore::new(DISK), pulls: of(PULLS), registries: Mutex::default() }
    }
}

impl Turns {
    /// Waits for a turn to read `key`.
    async fn take(&self, key: &ModuleKey) -> Turn {
        // First the narrow gate, so that a registry's queue takes nothing from others.
        let gates = match key {
            ModuleKey::Oci(oci) => vec![self.registry(oci.image.registry()), Arc::clone(&self.pulls)],
            ModuleKey::ConfigMap(_) | ModuleKey::File(_) => vec![Arc::clone(&self.near)],
        };
        let mut turn = Turn::new();
        for gate in gates {
            // Fails only when a gate is closed, which none is.
            turn.extend(gate.acquire_owned().await.ok());
        }
        turn
    }

    fn registry(&self, host: &str) -> Arc<Semaphore> {
        let mut registries = self.registries.lock();
        registries.retain(|_, gate| Arc::strong_count(gate) > 1);
        let gate =
            registries.entry(host.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(PER_REGISTRY)));
        Arc::clone(gate)
    }
}

/// What fetching a module takes.
#[derive(Debug)]
struct Fetching {
    sources: Sources,
    store: Arc<PolicyStore>,
    turns: Turns,
    /// What is wanted, each with that which ends the work on it.
    followed: Mutex<BTreeMap<ModuleKey, CancellationToken>>,
}

/// Keeps the modules of `store` current until cancelled.
pub async fn run(sources: Sources, store: Arc<PolicyStore>, heart: Heartbeat, cancel: CancellationToken) {
    let sources = sources.for_binding(store.identity());
    let fetching = Arc::new(Fetching {
        sources,
        store: Arc::clone(&store),
        turns: Turns::default(),
        followed: Mutex::default(),
    });
    let queue: Arc<Queue<ModuleKey>> = Queue::new("policy modules");
    let mut workers = Workers::new(usize::MAX);
    let driving = {
        let fetching = Arc::clone(&fetching);
        // Each key waits for its turn by itself, and there are no more keys than modules.
        drive(Arc::clone(&queue), usize::MAX, cancel.clone(), heart, move |key| {
            let fetching = Arc::clone(&fetching);
            async move { fetching.fetch(&key).await }
        })
    };
    workers.start(driving);
    let mut mislabelled = BTreeSet::new();
    loop {
        for (key, stop) in fetching.follow(&cancel) {
            watch(&fetching.sources.worker, &key, &queue, &mut workers, &stop);
            // The watch may be forbidden; the fetch says so.
            queue.add(key);
        }
        store.forget_modules();
        let now = store.mislabelled();
        queue.add_all(now.difference(&mislabelled).cloned());
        mislabelled = now;
        tokio::select! {
            () = cancel.cancelled() => break,
            () = workers.attend() => {}
            () = store.wanted_modules.notified() => {}
        }
    }
    workers.finish().await;
}

impl Fetching {
    /// Ends the work on what nobody wants any more; returns what is new.
    fn follow(&self, cancel: &CancellationToken) -> Vec<(ModuleKey, CancellationToken)> {
        let wanted = self.store.wanted();
        let mut followed = self.followed.lock();
        followed.retain(|key, stop| {
            let keep = wanted.contains_key(key);
            if !keep {
                stop.cancel();
            }
            keep
        });
        let new = wanted.into_keys().filter(|key| !followed.contains_key(key));
        let new: Vec<_> = new.map(|key| (key, cancel.child_token())).collect();
        followed.extend(new.iter().cloned());
        new
    }

    /// Gives the turn of what nobody wants any more to others.
    async fn fetch(&self, key: &ModuleKey) -> Outcome {
        let stop = self.followed.lock().get(key).cloned();
        let Some(stop) = stop else { return Outcome::Done };
        tokio::select! {
            () = stop.cancelled() => Outcome::Done,
            outcome = self.renew(key) => outcome,
        }
    }

    async fn renew(&self, key: &ModuleKey) -> Outcome {
        let ModuleKey::Oci(oci) = key else { return self.read(key).await };
        if self.store.has_pinned(key) {
            if self.store.is_mislabelled(key) {
                return self.read_labels(key, oci).await;
            }
            let _turn = self.turns.disk.acquire().await;
            self.sources.registries.mark_used(oci).await;
            return Outcome::After(MARK_USED);
        }
        if oci.digest.is_some() {
            if self.take_from_disk(key, oci).await {
                return Outcome::After(MARK_USED);
            }
            return self.read(key).await;
        }
        let mut read = Box::pin(self.read(key));
        tokio::select! {
            outcome = &mut read => return outcome,
            () = tokio::time::sleep(PATIENCE) => {}
        }
        if self.store.lacks(key) {
            // Both go on: what one waits for the other may hold.
            tokio::select! {
                outcome = &mut read => return outcome,
                _ = self.take_from_disk(key, oci) => {}
            }
        }
        read.await
    }

    /// Waits for no registry. Whether the disk has the module.
    async fn take_from_disk(&self, key: &ModuleKey, oci: &OciKey) -> bool {
        let _turn = self.turns.disk.acquire().await;
        let Some(module) = self.sources.registries.at_hand(oci).await else { return false };
        self.store.fetched(key, module);
        true
    }

    async fn read(&self, key: &ModuleKey) -> Outcome {
        let _turn = self.turns.take(key).await;
        let (fetched, outcome) = self.sources.read(key).await;
        self.store.fetched(key, fetched);
        outcome
    }

    /// A pinned module is what it was, but its labels may have been mended (PO-1202). A failure takes nothing away.
    async fn read_labels(&self, key: &ModuleKey, oci: &OciKey) -> Outcome {
        let _turn = self.turns.take(key).await;
        if let Some(module) = self.sources.registries.read_anew(oci).await {
            self.store.fetched(key, module);
        }
        Outcome::Retry
    }
}

/// Watches the one object of the worker cluster that a module depends on, if there is one.
fn watch(
    worker: &Client,
    key: &ModuleKey,
    queue: &Arc<Queue<ModuleKey>>,
    workers: &mut Workers,
    stop: &CancellationToken,
) {
    let sink = Arc::new(Changed { key: key.clone(), queue: Arc::clone(queue) });
    let only = |name: &str| Config::default().fields(&format!("metadata.name={name}"));
    match key {
        ModuleKey::ConfigMap(ConfigMapKey { namespace, name, .. }) => {
            let api = Api::<ConfigMapHead>::namespaced(worker.clone(), namespace);
            let spec = WatchSpec { name: "policy module", api, config: only(name) };
            workers.start(watch_into(spec, sink, Arc::new(WatchHealth::default()), stop.clone()));
        }
        ModuleKey::Oci(oci) => {
            let Some(SecretKey { namespace, name }) = &oci.pull_secret else { return };
            let api = Api::<SecretHead>::namespaced(worker.clone(), namespace);
            let spec = WatchSpec { name: "policy pull secret", api, config: only(name) };
            workers.start(watch_into(spec, sink, Arc::new(WatchHealth::default()), stop.clone()));
        }
        ModuleKey::File(_) => {}
    }
}

#[cfg(test)]
mod tests;
