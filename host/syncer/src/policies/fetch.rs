//! Keeps the modules of policies current: one read per change of a ConfigMap or pull secret, of which each is watched
//! alone (PO-707), and one read per attempt of what cannot be watched (PO-705).
//!
//! Invariant: what is slow holds up nothing but itself. A registry may take ten minutes for a module; neither other sources
//! nor the loop, whose beat says that the process is alive, wait for it.

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, runtime::watcher::Config};
use kubeocean_engine::{LoadCode, ModuleFetch};
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
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

/// Reads from the worker cluster and the development folder at a time, which all end within seconds.
const NEAR: usize = 2;
/// Pulls from one registry at a time.
const PER_REGISTRY: usize = 2;
/// Pulls at a time, each of which holds a module in memory.
const PULLS: usize = 16;

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

/// Who may read at the same time.
#[derive(Debug)]
struct Turns {
    near: Arc<Semaphore>,
    pulls: Arc<Semaphore>,
    registries: Mutex<BTreeMap<String, Arc<Semaphore>>>,
}

/// A turn. It ends when it is dropped.
type Turn = Vec<OwnedSemaphorePermit>;

impl Default for Turns {
    fn default() -> Self {
        let of = |at_a_time| Arc::new(Semaphore::new(at_a_time));
        Self { near: of(NEAR), pulls: of(PULLS), registries: Mutex::default() }
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

/// Keeps the modules of `store` current until cancelled.
pub async fn run(sources: Sources, store: Arc<PolicyStore>, heart: Heartbeat, cancel: CancellationToken) {
    let sources = Arc::new(sources);
    let queue: Arc<Queue<ModuleKey>> = Queue::new("policy modules");
    let mut workers = Workers::new(usize::MAX);
    let fetching = {
        let (sources, store, turns) = (Arc::clone(&sources), Arc::clone(&store), Arc::new(Turns::default()));
        // Each key waits for its turn by itself, and there are no more keys than modules.
        drive(Arc::clone(&queue), usize::MAX, cancel.clone(), heart, move |key| {
            fetch(Arc::clone(&sources), Arc::clone(&store), Arc::clone(&turns), key)
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

async fn fetch(sources: Arc<Sources>, store: Arc<PolicyStore>, turns: Arc<Turns>, key: ModuleKey) -> Outcome {
    let _turn = turns.take(&key).await;
    if !store.wanted().contains_key(&key) || store.has_pinned(&key) {
        return Outcome::Done;
    }
    let (fetched, outcome) = sources.read(&key).await;
    store.fetched(&key, fetched);
    outcome
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use kubeocean_registry::ClientConfig;
    use kubeocean_runtime::{health::Health, sink::Sink};
    use serde_json::json;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::{nodes::index::Identity, policies::modules::ModulePlaces, policies::view::PolicyView};

    /// A registry that sends a byte of a manifest every few seconds, for ever. Its address.
    async fn trickling() -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut head = [0; 4096];
                    let _ = stream.read(&mut head).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await;
                    while stream.write_all(b" ").await.is_ok() {
                        tokio::time::sleep(Duration::from_secs(5)).await;
                    }
                });
            }
        });
        address
    }

    fn client() -> Client {
        let provider = rustls::crypto::ring::default_provider();
        // Another test may have done it.
        let _ = provider.install_default();
        Client::try_from(kube::Config::new("http://127.0.0.1:9".parse().unwrap())).unwrap()
    }

    fn store(modules: &[serde_json::Value]) -> Arc<PolicyStore> {
        let identity =
            Identity { binding: "b".into(), cluster_id: "c1".into(), computing_uid: "computing".into() };
        let places = ModulePlaces { files: true, ..ModulePlaces::new("lease-area") };
        let store = PolicyStore::new(identity, places);
        let entries: Vec<_> = modules
            .iter()
            .enumerate()
            .map(|(i, module)| json!({"name": format!("e{i}"), "module": module}))
            .collect();
        let policy = json!({
            "metadata": {"name": "p", "uid": "u", "resourceVersion": "1", "generation": 1},
            "spec": {"cluster": "b", "policies": entries},
        });
        Sink::<PolicyView>::reset(&*store, vec![serde_json::from_value(policy).unwrap()]);
        store
    }

    /// Ten minutes may pass before a pull is given up; the process is alive all the while, and other modules load.
    #[tokio::test(start_paused = true)]
    async fn slow_registries_hold_up_nobody_else() {
        let slow = [trickling().await, trickling().await];
        let home = std::env::temp_dir().join(format!("kubeocean-fetch-{}", std::process::id()));
        std::fs::create_dir_all(&home).unwrap();
        std::fs::write(home.join("p.wasm"), b"\0asm").unwrap();
        let oci = |host: &str, i: usize| json!({"oci": {"image": format!("{host}/policies/p{i}:1")}});
        let mut modules: Vec<_> = slow.iter().flat_map(|host| (0..3).map(move |i| oci(host, i))).collect();
        modules.push(json!({"file": {"path": "p.wasm"}}));
        let store = store(&modules);
        let settings = PolicySources {
            registries: ClientConfig { insecure_hosts: slow.to_vec(), authorities: None },
            trust_folder: None,
            cache_folders: Vec::new(),
            dev_folder: Some(home.clone()),
        };
        let health = Arc::new(Health::default());
        let cancel = CancellationToken::new();
        let sources = Sources::new(client(), &settings, 1 << 20);
        let heart = health.begin("policy modules");
        let running = tokio::spawn(run(sources, Arc::clone(&store), heart, cancel.clone()));
        let fetched = || {
            let specs = store.engine_list();
            let modules = &specs[0].modules;
            let ready = matches!(modules.get("e6"), Some(ModuleFetch::Ready(_)));
            let failed = modules.values().filter(|fetch| matches!(fetch, ModuleFetch::Failed { .. }));
            (ready, failed.count())
        };
        for minute in 1..=9 {
            tokio::time::sleep(Duration::from_mins(1)).await;
            health.progress();
            assert!(health.is_alive(), "after {minute} minutes");
            assert_eq!(fetched(), (true, 0), "the file is there, and the registries are at it: {minute}");
        }
        tokio::time::sleep(Duration::from_mins(3)).await;
        assert_eq!(fetched(), (true, 4), "two pulls of each registry are given up");
        cancel.cancel();
        running.await.unwrap();
        std::fs::remove_dir_all(home).unwrap();
    }
}
