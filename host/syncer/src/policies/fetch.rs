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
mod tests {
    use std::path::{Path, PathBuf};

    use kubeocean_engine::{
        Enforcement, EntryCounters, EntryState, EntryStatus, FetchedModule, LoadError, PolicyStatus,
    };
    use kubeocean_registry::{Bundle, ClientConfig, Digest, Labels, package};
    use kubeocean_runtime::{health::Health, sink::Sink};
    use serde_json::{Value, json};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::watch as channel,
        task::JoinHandle,
        time::timeout,
    };

    use super::*;
    use crate::policies::{modules::ModulePlaces, view::PolicyView};

    /// More than any of these tests takes.
    const LIMIT: Duration = Duration::from_mins(1);

    /// A registry that sends a byte of a manifest every few seconds, for ever.
    struct Trickling {
        address: String,
        /// How often it was asked.
        asked: channel::Receiver<usize>,
    }

    async fn trickling() -> Trickling {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (count, asked) = channel::channel(0);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                count.send_modify(|asked| *asked += 1);
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
        Trickling { address, asked }
    }

    /// A registry with one artifact. Its address.
    async fn registry(manifest: channel::Receiver<Vec<u8>>, module: Arc<[u8]>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (manifest, module) = (manifest.clone(), Arc::clone(&module));
                tokio::spawn(async move {
                    let mut asked = [0; 4096];
                    let length = stream.read(&mut asked).await.unwrap_or(0);
                    let of_manifest = String::from_utf8_lossy(&asked[..length]).contains("/manifests/");
                    let body = if of_manifest { manifest.borrow().clone() } else { module.to_vec() };
                    let length = body.len();
                    let head =
                        format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
                    let _ = stream.write_all(&[head.as_bytes(), &body].concat()).await;
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

    fn identity() -> Identity {
        Identity { binding: "b".into(), cluster_id: "c1".into(), computing_uid: "computing".into() }
    }

    /// A policy whose entries `e0`, `e1`, ... have these modules.
    fn policy(version: i64, modules: &[Value]) -> PolicyView {
        let entries: Vec<_> = modules
            .iter()
            .enumerate()
            .map(|(i, module)| json!({"name": format!("e{i}"), "module": module}))
            .collect();
        let policy = json!({
            "metadata": {"name": "p", "uid": "u", "resourceVersion": version.to_string(), "generation": version},
            "spec": {"cluster": "b", "policies": entries},
        });
        serde_json::from_value(policy).unwrap()
    }

    fn store(modules: &[Value]) -> Arc<PolicyStore> {
        let places = ModulePlaces { files: true, ..ModulePlaces::new("lease-area") };
        let store = PolicyStore::new(identity(), places);
        Sink::<PolicyView>::reset(&*store, vec![policy(1, modules)]);
        store
    }

    /// A module of a registry as a policy names it.
    fn named(key: &OciKey) -> Value {
        let mut module = json!({"oci": {"image": key.image.to_string()}});
        if let Some(digest) = key.digest {
            module["digest"] = digest.to_string().into();
        }
        module
    }

    fn tag(host: &str, name: &str) -> OciKey {
        let image = format!("{host}/policies/{name}:1").parse().unwrap();
        OciKey { image, pull_secret: None, digest: None }
    }

    /// The same pinned to the module of [`bundle`].
    fn pinned(host: &str, name: &str) -> OciKey {
        OciKey { digest: Some(Digest::of(&bundle("").module)), ..tag(host, name) }
    }

    /// A module whose labels say that it has this name.
    fn bundle(title: &str) -> Bundle {
        let module = b"\0asm\x0d\0\x01\0";
        let packed = package(module, &Labels { title: title.into(), ..Labels::default() });
        Bundle {
            manifest: packed.manifest,
            module: Arc::from(&module[..]),
            signatures: Vec::new(),
            incomplete: None,
        }
    }

    /// Of one test; removed in the end.
    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("kubeocean-fetch-{name}-{}", std::process::id()));
            // One may be left from another process.
            let _ = std::fs::remove_dir_all(&path);
            Self(path)
        }

        fn files(&self) -> Vec<PathBuf> {
            let files = std::fs::read_dir(&self.0).into_iter().flatten();
            files.map(|file| file.unwrap().path()).collect()
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn settings(insecure_hosts: &[&str], cache: &Path) -> PolicySources {
        let insecure_hosts = insecure_hosts.iter().map(|host| (*host).to_owned()).collect();
        PolicySources {
            registries: ClientConfig { insecure_hosts, authorities: None },
            cache_folders: vec![cache.to_owned()],
            ..PolicySources::default()
        }
    }

    fn sources(settings: &PolicySources) -> Sources {
        Sources::new(client(), settings, 1 << 20)
    }

    /// What an earlier process left on disk.
    async fn keep(settings: &PolicySources, keys: &[&OciKey]) {
        let earlier = sources(settings).for_binding(&identity());
        for key in keys {
            earlier.registries.keep(key, bundle("")).await;
        }
    }

    struct Running {
        task: JoinHandle<()>,
        cancel: CancellationToken,
    }

    impl Running {
        fn start(settings: &PolicySources, store: &Arc<PolicyStore>) -> Self {
            let cancel = CancellationToken::new();
            let heart = Arc::new(Health::default()).begin("policy modules");
            let task = tokio::spawn(run(sources(settings), Arc::clone(store), heart, cancel.clone()));
            Self { task, cancel }
        }

        async fn end(self) {
            self.cancel.cancel();
            self.task.await.unwrap();
        }
    }

    /// Waits for the module of an entry.
    async fn module(store: &PolicyStore, entry: &str, fits: impl Fn(&FetchedModule) -> bool) {
        loop {
            let there = match store.engine_list().first().and_then(|policy| policy.modules.get(entry)) {
                Some(ModuleFetch::Ready(module)) => fits(module),
                _ => false,
            };
            if there {
                return;
            }
            store.engine_input.notified().await;
        }
    }

    /// Ten minutes may pass before a pull is given up; the process is alive all the while, and other modules load.
    #[tokio::test(start_paused = true)]
    async fn slow_registries_hold_up_nobody_else() {
        let slow = [trickling().await.address, trickling().await.address];
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

    /// A vnode would close although its module is there (PO-704).
    #[tokio::test(start_paused = true)]
    async fn what_the_disk_has_waits_for_no_registry() {
        let slow = trickling().await.address;
        let folder = Folder::new("disk");
        let settings = settings(&[&slow], &folder.0);
        let [tag_there, pinned_there] = [tag(&slow, "y"), pinned(&slow, "z")];
        keep(&settings, &[&tag_there, &pinned_there]).await;
        // Others are in the registry's queue before them.
        let others = ["a", "b", "c"].map(|name| named(&tag(&slow, name)));
        let store = store(&[&others[..], &[named(&tag_there), named(&pinned_there)]].concat());
        let running = Running::start(&settings, &store);
        let started = tokio::time::Instant::now();
        timeout(PATIENCE, module(&store, "e4", |_| true)).await.expect("what is pinned needs no registry");
        timeout(2 * PATIENCE, module(&store, "e3", |_| true)).await.expect("the registry had its time");
        assert!(started.elapsed() >= PATIENCE, "a tag is looked up first");
        running.end().await;
    }

    /// What was not used for longest goes first, and a module that runs is not read again.
    #[tokio::test(start_paused = true)]
    async fn what_runs_counts_as_used_on_disk() {
        let folder = Folder::new("used");
        let settings = settings(&[], &folder.0);
        let key = pinned("127.0.0.1:9", "p");
        keep(&settings, &[&key]).await;
        let store = store(&[named(&key)]);
        let running = Running::start(&settings, &store);
        timeout(LIMIT, module(&store, "e0", |_| true)).await.unwrap();
        let old = std::time::SystemTime::now() - Duration::from_hours(24);
        for path in folder.files() {
            let file = std::fs::File::options().append(true).open(path).unwrap();
            file.set_modified(old + Duration::from_secs(1)).unwrap();
        }
        let are_used = || {
            let used = |path: &PathBuf| {
                let modified = path.metadata().and_then(|meta| meta.modified()).unwrap();
                modified > old + Duration::from_hours(1)
            };
            let files = folder.files();
            files.len() == 2 && files.iter().all(used)
        };
        assert!(!are_used());
        let marked = async {
            while !are_used() {
                tokio::time::sleep(Duration::from_mins(1)).await;
            }
        };
        timeout(2 * MARK_USED, marked).await.expect("it is marked again and again");
        running.end().await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_pull_that_nobody_wants_any_more_gives_its_turn_to_others() {
        let mut slow = trickling().await;
        let folder = Folder::new("turns");
        let settings = settings(&[&slow.address], &folder.0);
        let modules = ["a", "b", "c"].map(|name| named(&tag(&slow.address, name)));
        let store = store(&modules[..PER_REGISTRY]);
        let running = Running::start(&settings, &store);
        slow.asked.wait_for(|asked| *asked == PER_REGISTRY).await.unwrap();
        Sink::<PolicyView>::reset(&*store, vec![policy(2, &modules[PER_REGISTRY..])]);
        // A pull is given up after ten minutes.
        let next = slow.asked.wait_for(|asked| *asked > PER_REGISTRY);
        timeout(Duration::from_mins(5), next).await.expect("a turn").unwrap();
        running.end().await;
    }

    /// What the engine says of the only entry.
    fn engine_says(failure: Option<LoadError>) -> Vec<PolicyStatus> {
        let entry = EntryStatus {
            name: "e0".into(),
            state: if failure.is_some() { EntryState::Invalid } else { EntryState::Active },
            module: None,
            version: None,
            digest: None,
            desired_digest: None,
            decisions: Vec::new(),
            enforcement: Enforcement::Enforce,
            failure,
            last_error: None,
            audit: None,
            counters: EntryCounters::default(),
        };
        vec![PolicyStatus {
            name: "p".into(),
            uid: "u".into(),
            generation: 1,
            valid: Ok(()),
            zero_limits: Vec::new(),
            active: true,
            next_change: None,
            zone: "UTC".into(),
            entries: vec![entry],
            pinned: true,
            stale: false,
        }]
    }

    /// A digest is that of the module, so whoever pushed it may push other labels under it (PO-1202).
    #[tokio::test]
    async fn labels_that_were_mended_are_read_again() {
        let (manifest, served) = channel::channel(bundle("wrong").manifest);
        let host = registry(served, bundle("").module).await;
        let folder = Folder::new("labels");
        let settings = settings(&[&host], &folder.0);
        let key = pinned(&host, "p");
        let store = store(&[named(&key)]);
        let running = Running::start(&settings, &store);
        let called = |name: &'static str| {
            let fits = move |module: &FetchedModule| module.claims.name.as_deref() == Some(name);
            timeout(LIMIT, module(&store, "e0", fits))
        };
        called("wrong").await.unwrap();
        manifest.send_replace(bundle("right").manifest);
        let refused = LoadError::new(LoadCode::DescribeFailed, "the artifact claims another name");
        store.set_engine_status(engine_says(Some(refused)));
        called("right").await.expect("the disk has the old labels, the registry the new ones");
        let kept = sources(&settings).for_binding(&identity()).registries.at_hand(&key).await;
        let Some(ModuleFetch::Ready(kept)) = kept else { panic!("{kept:?}") };
        assert_eq!(kept.claims.name.as_deref(), Some("right"), "also after a restart");
        store.set_engine_status(engine_says(None));
        assert!(store.mislabelled().is_empty(), "what runs is asked for no more");
        running.end().await;
    }
}
