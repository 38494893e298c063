//! The streams that feed the index, and the tasks that work on it. All object streams are metadata only.

use std::{collections::BTreeMap, fmt::Debug, marker::PhantomData, sync::Arc, time::Duration};

use futures::future::{BoxFuture, join_all};
use k8s_openapi::{
    api::core::v1::{ConfigMap, PersistentVolume, PersistentVolumeClaim, Secret},
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
    tokens::{Found, sweep},
};
use kubeocean_runtime::{
    queue::drive,
    sink::Sink,
    watch::{WatchHealth, WatchSpec, watch_into},
};

/// How often token Secrets are compared with the running pods, for what events did not tell (TD-1201).
const SWEEP_EVERY: Duration = Duration::from_mins(30);

/// Health of the streams that must have delivered a complete list before anything is released, or missed.
#[derive(Debug, Clone)]
pub struct ObjectHealth {
    /// Labelled objects of the computing cluster, by kind.
    originals: BTreeMap<ObjectKind, Arc<WatchHealth>>,
    /// Copies, and token Secrets, by kind.
    copies: BTreeMap<ObjectKind, Arc<WatchHealth>>,
    /// The Services whose addresses pods are given.
    pub services: ServiceHealth,
}

impl Default for ObjectHealth {
    fn default() -> Self {
        let each = || ObjectKind::ALL.into_iter().map(|kind| (kind, Arc::default())).collect();
        Self { originals: each(), copies: each(), services: ServiceHealth::default() }
    }
}

impl ObjectHealth {
    /// Waits until all lists are complete. A kind that the role does not show holds up nobody: whatever is written is read
    /// before, and then the pods that need it are told which right is missing.
    pub async fn synced(&self) {
        self.listed().await;
        for health in self.services.lists() {
            health.synced().await;
        }
    }

    /// The same for all that is ours.
    pub async fn listed(&self) {
        for health in self.originals.values().chain(self.copies.values()) {
            health.answered().await;
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
    fn token(&self, meta: &ObjectMeta) -> Option<Found> {
        let may_be = self.kind == ObjectKind::Secret;
        may_be.then(|| Found::of(meta, &self.scope)).flatten()
    }
}

impl<K: 'static> Sink<MetadataOf<K>> for CopySink<K> {
    fn apply(&self, object: MetadataOf<K>) {
        let meta = &object.metadata;
        if let Some(secret) = self.token(meta) {
            self.store.tokens.seen(secret);
        } else if let Some(original) = original_of(self.kind, &self.scope, meta) {
            self.store.seen(&original, Side::Copy, Revision::of_meta(meta));
        }
    }
    fn delete(&self, object: MetadataOf<K>) {
        let meta = &object.metadata;
        if let Some(secret) = self.token(meta) {
            self.store.tokens.vanished(secret.name());
        } else if let Some(original) = original_of(self.kind, &self.scope, meta) {
            self.store.vanished(&original, Side::Copy, meta.uid.as_deref());
        }
    }
    fn reset(&self, all: Vec<MetadataOf<K>>) {
        let (mut tokens, mut copies) = (Vec::new(), Vec::new());
        for object in &all {
            if let Some(secret) = self.token(&object.metadata) {
                tokens.push(secret);
            } else if let Some(original) = original_of(self.kind, &self.scope, &object.metadata) {
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
trait Watched: Resource<DynamicType = ()> + Clone + Debug + 'static {
    const KIND: ObjectKind;
    /// The objects of a namespace, or all if the kind has none.
    fn within(client: Client, namespace: &str) -> Api<MetadataOf<Self>>;
}

macro_rules! watched_in_namespaces {
    ($($kind:ident),*) => {$(
        impl Watched for $kind {
            const KIND: ObjectKind = ObjectKind::$kind;
            fn within(client: Client, namespace: &str) -> Api<MetadataOf<Self>> {
                Api::namespaced(client, namespace)
            }
        }
    )*};
}
watched_in_namespaces!(ConfigMap, Secret, PersistentVolumeClaim);

impl Watched for PersistentVolume {
    const KIND: ObjectKind = ObjectKind::PersistentVolume;
    fn within(client: Client, _: &str) -> Api<MetadataOf<Self>> {
        Api::all(client)
    }
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
        api: K::within(clusters.worker.clone(), &clusters.scope.mount_namespace),
        config: watcher::Config::default().labels(&format!(
            "{}={}",
            label::MANAGED_BY,
            label::MANAGED_BY_VALUE
        )),
    };
    let sink = CopySink::<K> { store, scope: clusters.scope.clone(), kind: K::KIND, of: PhantomData };
    watch_into(spec, Arc::new(sink), health, cancel).await;
}

/// Both streams of a kind.
async fn watch_kind<K: Watched>(
    clusters: Arc<Clusters>,
    store: Arc<ObjectStore>,
    health: ObjectHealth,
    cancel: CancellationToken,
) {
    let of = |all: &BTreeMap<ObjectKind, Arc<WatchHealth>>| all.get(&K::KIND).cloned().unwrap_or_default();
    tokio::join!(
        watch_originals::<K>(
            Arc::clone(&clusters),
            Arc::clone(&store),
            of(&health.originals),
            cancel.clone()
        ),
        watch_copies::<K>(clusters, store, of(&health.copies), cancel),
    );
}

async fn watch_namespace<K: Watched>(
    client: Client,
    namespace: Arc<str>,
    store: Arc<ObjectStore>,
    cancel: CancellationToken,
) {
    let spec = WatchSpec::<MetadataOf<K>> {
        name: "missing objects",
        api: K::within(client, &namespace),
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
                let stream: BoxFuture<'static, ()> = match kind {
                    ObjectKind::ConfigMap => {
                        Box::pin(watch_namespace::<ConfigMap>(client, namespace, store, token))
                    }
                    ObjectKind::Secret => {
                        Box::pin(watch_namespace::<Secret>(client, namespace, store, token))
                    }
                    ObjectKind::PersistentVolumeClaim => {
                        Box::pin(watch_namespace::<PersistentVolumeClaim>(client, namespace, store, token))
                    }
                    ObjectKind::PersistentVolume => {
                        Box::pin(watch_namespace::<PersistentVolume>(client, namespace, store, token))
                    }
                };
                tasks.spawn(stream);
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
    let watch = |kind| -> BoxFuture<'static, ()> {
        let (clusters, store) = (Arc::clone(&clusters), Arc::clone(&store));
        let (health, cancel) = (health.clone(), cancel.clone());
        match kind {
            ObjectKind::ConfigMap => Box::pin(watch_kind::<ConfigMap>(clusters, store, health, cancel)),
            ObjectKind::Secret => Box::pin(watch_kind::<Secret>(clusters, store, health, cancel)),
            ObjectKind::PersistentVolumeClaim => {
                Box::pin(watch_kind::<PersistentVolumeClaim>(clusters, store, health, cancel))
            }
            ObjectKind::PersistentVolume => {
                Box::pin(watch_kind::<PersistentVolume>(clusters, store, health, cancel))
            }
        }
    };
    tokio::join!(
        join_all(ObjectKind::ALL.map(watch)),
        watch_services(
            clusters.computing.clone(),
            Arc::clone(&store.services),
            health.services.clone(),
            cancel.clone(),
        ),
        watch_missing(clusters.computing.clone(), Arc::clone(&store), cancel.clone()),
        work,
    );
}
