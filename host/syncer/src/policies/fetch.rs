//! Reads modules from ConfigMaps: one GET per change, with a watch of the single object to notice it (PO-707).

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, runtime::watcher::Config};
use kubeocean_engine::{LoadCode, ModuleFetch};
use serde::Deserialize;
use tokio_util::sync::CancellationToken;

use super::{
    modules::{ModuleKey, from_config_map},
    store::PolicyStore,
};
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

/// Any change of the ConfigMap means one fetch.
struct Changed {
    key: ModuleKey,
    queue: Arc<Queue<ModuleKey>>,
}

impl Sink<ConfigMapHead> for Changed {
    fn apply(&self, _: ConfigMapHead) {
        self.queue.add(self.key.clone());
    }
    fn delete(&self, _: ConfigMapHead) {
        self.queue.add(self.key.clone());
    }
    fn reset(&self, _: Vec<ConfigMapHead>) {
        self.queue.add(self.key.clone());
    }
}

/// Keeps the modules of `store` current until cancelled.
pub async fn run(worker: Client, store: Arc<PolicyStore>, heart: Heartbeat, cancel: CancellationToken) {
    let queue: Arc<Queue<ModuleKey>> = Queue::new("policy modules");
    let mut workers = Workers::new(usize::MAX);
    let fetching = {
        let (worker, store) = (worker.clone(), Arc::clone(&store));
        drive(Arc::clone(&queue), WORKERS, cancel.clone(), heart, move |key| {
            fetch(worker.clone(), Arc::clone(&store), key)
        })
    };
    workers.start(fetching);
    let mut watched: BTreeMap<ModuleKey, CancellationToken> = BTreeMap::new();
    loop {
        let wanted = store.wanted();
        watched.retain(|key, stop| {
            let keep = wanted.contains_key(key);
            if !keep {
                stop.cancel();
            }
            keep
        });
        for key in wanted.into_keys().filter(|key| !watched.contains_key(key)).collect::<Vec<_>>() {
            let stop = cancel.child_token();
            workers.start(watch_into(
                WatchSpec {
                    name: "policy module",
                    api: Api::<ConfigMapHead>::namespaced(worker.clone(), &key.namespace),
                    config: Config::default().fields(&format!("metadata.name={}", key.name)),
                },
                Arc::new(Changed { key: key.clone(), queue: Arc::clone(&queue) }),
                Arc::new(WatchHealth::default()),
                stop.clone(),
            ));
            // The watch may be forbidden; the fetch says so.
            queue.add(key.clone());
            watched.insert(key, stop);
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

async fn fetch(worker: Client, store: Arc<PolicyStore>, key: ModuleKey) -> Outcome {
    if !store.wanted().contains_key(&key) {
        return Outcome::Done;
    }
    let (fetched, outcome) = read(&worker, &key).await;
    store.fetched(&key, fetched);
    outcome
}

/// What the worker cluster holds under `key` now, and whether asking again may give more.
pub async fn read(worker: &Client, key: &ModuleKey) -> (ModuleFetch, Outcome) {
    let path = paths::core("configmaps", &key.namespace, &key.name);
    match get_json(worker, &path).await {
        Ok(config_map) => (from_config_map(config_map.as_ref(), key), Outcome::Done),
        Err(error @ ApplyError::Forbidden { .. }) => {
            (failed(LoadCode::FetchForbidden, &error), Outcome::Retry)
        }
        Err(error) => (failed(LoadCode::FetchFailed, &error), Outcome::Retry),
    }
}

fn failed(code: LoadCode, error: &ApplyError) -> ModuleFetch {
    ModuleFetch::Failed { code, message: error.chain() }
}
