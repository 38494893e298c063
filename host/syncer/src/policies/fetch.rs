//! Keeps the modules of policies current: one read per change of a ConfigMap or pull secret, of which each is watched
//! alone (PO-707), and one read per attempt of what cannot be watched (PO-705).

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, runtime::watcher::Config};
use kubeocean_engine::{LoadCode, ModuleFetch};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{
    dev_file::read_dev_file,
    modules::{ConfigMapKey, ModuleKey, SecretKey, failed, from_config_map},
    oci::Registries,
    store::PolicyStore,
};
use crate::config::PolicySources;
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

/// Fetches at a time.
const WORKERS: usize = 2;

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

    /// What is there for `key` now, and whether and when asking again may give something else.
    pub async fn read(&self, key: &ModuleKey) -> (ModuleFetch, Outcome) {
        match key {
            ModuleKey::ConfigMap(key) => self.read_config_map(key).await,
            ModuleKey::Oci(key) => self.registries.read(key).await,
            ModuleKey::File(path) => {
                read_dev_file(self.settings.dev_folder.clone(), path, self.max_module_bytes).await
            }
        }
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

/// Keeps the modules of `store` current until cancelled.
pub async fn run(sources: Sources, store: Arc<PolicyStore>, heart: Heartbeat, cancel: CancellationToken) {
    let sources = Arc::new(sources);
    let queue: Arc<Queue<ModuleKey>> = Queue::new("policy modules");
    let mut workers = Workers::new(usize::MAX);
    let fetching = {
        let (sources, store) = (Arc::clone(&sources), Arc::clone(&store));
        drive(Arc::clone(&queue), WORKERS, cancel.clone(), heart, move |key| {
            fetch(Arc::clone(&sources), Arc::clone(&store), key)
        })
    };
    workers.start(fetching);
    let mut followed: BTreeMap<ModuleKey, CancellationToken> = BTreeMap::new();
    loop {
        let wanted = store.wanted();
        followed.retain(|key, stop| {
            let keep = wanted.contains_key(key);
            if !keep {
                stop.cancel();
            }
            keep
        });
        for key in wanted.into_keys().filter(|key| !followed.contains_key(key)).collect::<Vec<_>>() {
            let stop = cancel.child_token();
            watch(&sources.worker, &key, &queue, &mut workers, &stop);
            // The watch may be forbidden; the fetch says so.
            queue.add(key.clone());
            followed.insert(key, stop);
        }
        store.forget_modules();
        tokio::select! {
            () = cancel.cancelled() => break,
            () = workers.attend() => {}
            () = store.wanted_modules.notified() => {}
        }
    }
    workers.finish().await;
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

async fn fetch(sources: Arc<Sources>, store: Arc<PolicyStore>, key: ModuleKey) -> Outcome {
    if !store.wanted().contains_key(&key) || store.has_pinned(&key) {
        return Outcome::Done;
    }
    let (fetched, outcome) = sources.read(&key).await;
    store.fetched(&key, fetched);
    outcome
}
