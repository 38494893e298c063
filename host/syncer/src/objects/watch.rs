//! The streams that feed the index, and the tasks that work on it. All object streams are metadata only.

use std::{collections::BTreeMap, fmt::Debug, marker::PhantomData, sync::Arc, time::Duration};

use k8s_openapi::{
    NamespaceResourceScope,
    api::core::v1::{ConfigMap, Secret},
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{Api, Client, Resource, runtime::watcher};
use kubeocean_api::keys::{self, label};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::{
    apply::Clusters,
    index::{ObjectStore, Side},
    kind::{ObjectKind, ObjectRef},
    plan::Scope,
    reconcile::{ObjectSync, reconcile_with},
    view::{MetadataOf, Revision, original_of},
};
use crate::pods::{
    service_environment::{ServiceHealth, watch_services},
    tokens::{TokenSecret, sweep},
};
use kubeocean_runtime::{
    queue::drive,
    sink::Sink,
    watch::{WatchHealth, WatchSpec, watch_into},
};

/// How often token Secrets are compared with the running pods, for what events did not tell (TD-1201).
const SWEEP_EVERY: Duration = Duration::from_mins(30);

/// Health of the streams that must have delivered a complete list before anything is released, or missed.
#[derive(Debug, Clone, Default)]
pub struct ObjectHealth {
    /// Labelled ConfigMaps of the computing cluster.
    pub config_maps: Arc<WatchHealth>,
    /// Labelled Secrets of the computing cluster.
    pub secrets: Arc<WatchHealth>,
    /// Copies of ConfigMaps.
    pub config_map_copies: Arc<WatchHealth>,
    /// Copies of Secrets, and token Secrets.
    pub secret_copies: Arc<WatchHealth>,
    /// The Services whose addresses pods are given.
    pub services: ServiceHealth,
}

impl ObjectHealth {
    /// Waits until all lists are complete.
    pub async fn synced(&self) {
        let lists = [&self.config_maps, &self.secrets, &self.config_map_copies, &self.secret_copies];
        for health in lists.into_iter().chain(self.services.lists()) {
            health.synced().await;
        }
    }
}

/// Labelled originals of one kind.
struct OriginalSink<K> {
    store: Arc<ObjectStore>,
    kind: ObjectKind,
    of: PhantomData<fn() -> K>,
}

fn named(kind: ObjectKind, meta: &ObjectMeta) -> ObjectRef {
    ObjectRef::new(
        kind,
        meta.namespace.as_deref().unwrap_or_default(),
        meta.name.as_deref().unwrap_or_default(),
    )
}

impl<K: 'static> Sink<MetadataOf<K>> for OriginalSink<K> {
    fn apply(&self, object: MetadataOf<K>) {
        self.store.seen(
            &named(self.kind, &object.metadata),
            Side::Original,
            Revision::of_meta(&object.metadata),
        );
    }
    fn delete(&self, object: MetadataOf<K>) {
        self.store.vanished(
            &named(self.kind, &object.metadata),
            Side::Original,
            object.metadata.uid.as_deref(),
        );
    }
    fn reset(&self, all: Vec<MetadataOf<K>>) {
        let all = all
            .iter()
            .map(|object| (named(self.kind, &object.metadata), Revision::of_meta(&object.metadata)));
        self.store.reset(self.kind, Side::Original, all.collect());
    }
}

/// Managed objects of one kind in the mount namespace.
struct CopySink<K> {
    store: Arc<ObjectStore>,
    scope: Scope,
    kind: ObjectKind,
    of: PhantomData<fn() -> K>,
}

impl<K> CopySink<K> {
    fn token(&self, meta: &ObjectMeta) -> Option<TokenSecret> {
        match self.kind {
            ObjectKind::ConfigMap => None,
            ObjectKind::Secret => TokenSecret::of(meta, &self.scope, &self.store.pods),
        }
    }
}

impl<K: 'static> Sink<MetadataOf<K>> for CopySink<K> {
    fn apply(&self, object: MetadataOf<K>) {
        let meta = &object.metadata;
        if let Some(secret) = self.token(meta) {
            self.store.tokens.seen(secret);
        } else if let Some(original) = original_of(self.kind, meta) {
            self.store.seen(&original, Side::Copy, Revision::of_meta(meta));
        }
    }
    fn delete(&self, object: MetadataOf<K>) {
        let meta = &object.metadata;
        if let Some(secret) = self.token(meta) {
            self.store.tokens.vanished(&secret.name);
        } else if let Some(original) = original_of(self.kind, meta) {
            self.store.vanished(&original, Side::Copy, meta.uid.as_deref());
        }
    }
    fn reset(&self, all: Vec<MetadataOf<K>>) {
        let (mut tokens, mut copies) = (Vec::new(), Vec::new());
        for object in &all {
            if let Some(secret) = self.token(&object.metadata) {
                tokens.push(secret);
            } else if let Some(original) = original_of(self.kind, &object.metadata) {
                copies.push((original, Revision::of_meta(&object.metadata)));
            }
        }
        self.store.reset(self.kind, Side::Copy, copies);
        if self.kind == ObjectKind::Secret {
            self.store.tokens.reset(tokens);
        }
    }
}

/// Objects of a namespace in which something is missing.
struct MissingSink<K> {
    store: Arc<ObjectStore>,
    kind: ObjectKind,
    of: PhantomData<fn() -> K>,
}

impl<K: 'static> Sink<MetadataOf<K>> for MissingSink<K> {
    fn apply(&self, object: MetadataOf<K>) {
        // One that is being deleted is as good as missing; its successor is another event.
        if object.metadata.deletion_timestamp.is_none() {
            self.store.appeared(&named(self.kind, &object.metadata));
        }
    }
    fn delete(&self, _: MetadataOf<K>) {}
    fn reset(&self, all: Vec<MetadataOf<K>>) {
        for object in all {
            self.apply(object);
        }
    }
}

/// A kind that is watched as metadata.
trait Watched: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + 'static {
    const KIND: ObjectKind;
}
impl Watched for ConfigMap {
    const KIND: ObjectKind = ObjectKind::ConfigMap;
}
impl Watched for Secret {
    const KIND: ObjectKind = ObjectKind::Secret;
}

async fn watch_originals<K: Watched>(
    clusters: Arc<Clusters>,
    store: Arc<ObjectStore>,
    health: Arc<WatchHealth>,
    cancel: CancellationToken,
) {
    let spec = WatchSpec::<MetadataOf<K>> {
        name: "objects of the computing cluster",
        api: Api::all(clusters.computing.clone()),
        config: watcher::Config::default()
            .labels(&format!("{}=true", keys::synced_by(&clusters.scope.cluster_id))),
    };
    let sink = OriginalSink::<K> { store, kind: K::KIND, of: PhantomData };
    watch_into(spec, Arc::new(sink), health, cancel).await;
}

async fn watch_copies<K: Watched>(
    clusters: Arc<Clusters>,
    store: Arc<ObjectStore>,
    health: Arc<WatchHealth>,
    cancel: CancellationToken,
) {
    let spec = WatchSpec::<MetadataOf<K>> {
        name: "copies in the worker cluster",
        api: Api::namespaced(clusters.worker.clone(), &clusters.scope.mount_namespace),
        config: watcher::Config::default().labels(&format!(
            "{}={}",
            label::MANAGED_BY,
            label::MANAGED_BY_VALUE
        )),
    };
    let sink = CopySink::<K> { store, scope: clusters.scope.clone(), kind: K::KIND, of: PhantomData };
    watch_into(spec, Arc::new(sink), health, cancel).await;
}

async fn watch_namespace<K: Watched>(
    client: Client,
    namespace: Arc<str>,
    store: Arc<ObjectStore>,
    cancel: CancellationToken,
) {
    let spec = WatchSpec::<MetadataOf<K>> {
        name: "missing objects",
        api: Api::namespaced(client, &namespace),
        config: watcher::Config::default(),
    };
    let sink = MissingSink::<K> { store, kind: K::KIND, of: PhantomData };
    watch_into(spec, Arc::new(sink), Arc::default(), cancel).await;
}

/// Runs one stream per kind and namespace in which something is missing, and no other.
async fn watch_missing(client: Client, store: Arc<ObjectStore>, cancel: CancellationToken) {
    let mut running: BTreeMap<(ObjectKind, Arc<str>), CancellationToken> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let wanted = store.missing_places();
        running.retain(|place, stop| {
            let keep = wanted.contains(place);
            if !keep {
                stop.cancel();
            }
            keep
        });
        for place in wanted {
            running.entry(place.clone()).or_insert_with(|| {
                let (kind, namespace) = place;
                let stop = cancel.child_token();
                let (client, store, token) = (client.clone(), Arc::clone(&store), stop.clone());
                match kind {
                    ObjectKind::ConfigMap => {
                        tasks.spawn(watch_namespace::<ConfigMap>(client, namespace, store, token))
                    }
                    ObjectKind::Secret => {
                        tasks.spawn(watch_namespace::<Secret>(client, namespace, store, token))
                    }
                };
                stop
            });
        }
        tokio::select! {
            () = cancel.cancelled() => break,
            () = store.missing_changed.notified() => {}
            Some(_) = tasks.join_next() => {}
        }
    }
    while tasks.join_next().await.is_some() {}
}

/// Everything that runs for the objects of one binding, until `cancel`. Work begins when `gate` is open, that is when
/// the initial lists of both clusters, of objects and of pods, are complete: before that, absence proves nothing.
pub async fn run_objects(
    sync: Arc<ObjectSync>,
    health: ObjectHealth,
    gate: impl Future<Output = ()> + Send,
    workers: usize,
    cancel: CancellationToken,
) {
    let (clusters, store) = (Arc::clone(&sync.clusters), Arc::clone(&sync.store));
    let work = async {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = async { health.synced().await; gate.await } => {}
        }
        let heart = sync.health.begin("objects");
        let objects = drive(
            Arc::clone(&store.queue),
            workers,
            cancel.clone(),
            heart,
            reconcile_with(Arc::clone(&sync)),
        );
        let tokens = {
            let (tokens, clusters) = (Arc::clone(&store.tokens), Arc::clone(&clusters));
            let heart = sync.health.begin("tokens");
            drive(Arc::clone(&tokens.queue), workers, cancel.clone(), heart, move |owner| {
                let (tokens, clusters) = (Arc::clone(&tokens), Arc::clone(&clusters));
                async move { tokens.reconcile(&clusters, &owner).await }
            })
        };
        let sweeps = async {
            let mut ticks = tokio::time::interval(SWEEP_EVERY);
            loop {
                tokio::select! {
                    () = cancel.cancelled() => return,
                    _ = ticks.tick() => sweep(&store.tokens),
                }
            }
        };
        tokio::join!(objects, tokens, sweeps);
    };
    let clusters = || Arc::clone(&clusters);
    let shared = || Arc::clone(&store);
    let computing = clusters().computing.clone();
    tokio::join!(
        watch_originals::<ConfigMap>(clusters(), shared(), Arc::clone(&health.config_maps), cancel.clone()),
        watch_originals::<Secret>(clusters(), shared(), Arc::clone(&health.secrets), cancel.clone()),
        watch_copies::<ConfigMap>(
            clusters(),
            shared(),
            Arc::clone(&health.config_map_copies),
            cancel.clone()
        ),
        watch_copies::<Secret>(clusters(), shared(), Arc::clone(&health.secret_copies), cancel.clone()),
        watch_services(
            computing.clone(),
            Arc::clone(&store.services),
            health.services.clone(),
            cancel.clone(),
        ),
        watch_missing(computing, shared(), cancel.clone()),
        work,
    );
}
