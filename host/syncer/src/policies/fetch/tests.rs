//! Modules of all sources, got by the loop that runs in the Syncer.

use std::path::{Path, PathBuf};

use kubeocean_engine::{EntryState, EntryStatus, FetchedModule, LoadError, PolicyStatus};
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
use crate::policies::{
    modules::ModulePlaces,
    tests::{bare_entry, engine},
    view::PolicyView,
};

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
    let state = if failure.is_some() { EntryState::Invalid } else { EntryState::Active };
    let entry = EntryStatus { failure, ..bare_entry("e0", state) };
    vec![PolicyStatus { generation: 1, entries: vec![entry], ..engine(true) }]
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
