//! Reads one object in both clusters, performs its plan, and answers the pods that ask for copies.

use std::collections::BTreeSet;

use futures::{
    StreamExt, TryStreamExt,
    future::{BoxFuture, try_join_all},
    stream,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kubeocean_api::{
    keys::{self, label},
    name::ObjectKey,
};
use serde_json::{Map, Value, json};

use super::{
    index::{ObjectStore, Refused, Side, Usage},
    kind::{ObjectKind, ObjectRef, copies_path},
    kinds::{Around, Change, Needs, Neighbour, Reach},
    ownership::{OwnedCopy, Ownership, has_to_look, ownership},
    plan::{Action, Purpose, Scope, Snapshot, Verdict, Wanted, choose_place, plan_object},
    pod_security,
    view::{Original, Revision, WorkerCopy, original_of},
};
use crate::pods::references::{Need, References};
use kubeocean_runtime::{
    error::ApplyError,
    request::{
        DeleteOptions, Deletion, PAGE, create_json, delete_json, delete_unchanged, get_json, list_metadata,
        merge_patch,
    },
};

/// Rounds of reading and writing one object before the queue takes over; each conflict with another writer, and each
/// replacement of a stale copy, costs one.
const ROUNDS: usize = 4;
/// Objects released at the same time when a binding is deleted.
const RELEASES_AT_ONCE: usize = 16;
/// Names shown of what is left.
const EXAMPLES: usize = 10;

/// The two clusters and for whom copies are made.
#[derive(Clone)]
pub struct Clusters {
    /// Client of the computing cluster.
    pub computing: Client,
    /// Client of the worker cluster.
    pub worker: Client,
    /// Names, stamps and places.
    pub scope: Scope,
}

impl std::fmt::Debug for Clusters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clusters").field("scope", &self.scope).finish_non_exhaustive()
    }
}

/// Why a pod cannot be created yet, or at all.
#[derive(Debug, thiserror::Error)]
pub enum EnsureError {
    /// A required object does not exist. The pod is woken when it appears.
    #[error("{kind} {name:?} does not exist")]
    Missing {
        /// Kind.
        kind: ObjectKind,
        /// Name in the pod's namespace.
        name: String,
    },
    /// A claim is not bound, or its volume is bound to another one. The pod is woken when that changes.
    #[error("{kind} {name:?} is not bound yet")]
    Unbound {
        /// Kind.
        kind: ObjectKind,
        /// Name in the pod's namespace.
        name: String,
    },
    /// A former copy is being deleted. The pod is woken when it is gone.
    #[error("the former copy of {kind} {name:?} is still being deleted in the worker cluster")]
    Replacing {
        /// Kind.
        kind: ObjectKind,
        /// Name in the pod's namespace.
        name: String,
    },
    /// The name of the copy is taken. By whom is for the log: the pod's owner may not see the worker cluster.
    #[error(
        "the name of the copy of {kind} {name:?} is taken in the worker cluster; the object must be removed there"
    )]
    Foreign {
        /// Kind.
        kind: ObjectKind,
        /// Name in the pod's namespace.
        name: String,
        /// By whom.
        owner: String,
    },
    /// A volume is a path of whatever node its pod is on.
    #[error(
        "{kind} {name:?} is of a node's own files (hostPath, local), which the Pod Security level {level:?} of the worker \
         cluster does not permit; use other storage, or ask whoever runs the worker cluster"
    )]
    NodeFiles {
        /// Kind.
        kind: ObjectKind,
        /// Its name.
        name: String,
        /// The level.
        level: String,
    },
    /// A request failed.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

/// What of this binding is left in the two clusters.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leftovers {
    /// How many objects.
    pub total: usize,
    /// The first of them, for a condition's message.
    pub examples: Vec<String>,
}

impl Leftovers {
    fn add(&mut self, what: String) {
        self.total += 1;
        if self.examples.len() < EXAMPLES {
            self.examples.push(what);
        }
    }
}

impl ObjectStore {
    /// Makes sure that every object `pod` refers to has an up-to-date copy, and one that the worker lets pods use. Objects that
    /// are in order cost no request, but for files of nodes (TD-605).
    pub async fn ensure(
        &self,
        clusters: &Clusters,
        references: &References,
        pod: &ObjectKey,
    ) -> Result<(), EnsureError> {
        for (kind, name, need) in references.objects() {
            let object = ObjectRef::new(kind, &pod.namespace, name);
            if self.is_ready(&object) {
                continue;
            }
            let Settled { verdict, object } = self.keep_for(clusters, &object, pod, need).await?;
            let (kind, name) = (object.kind, object.key.name.to_string());
            match verdict {
                Verdict::Ready | Verdict::Released => {}
                Verdict::Missing | Verdict::Unbound if need == Need::Optional => {}
                Verdict::Missing => return Err(EnsureError::Missing { kind, name }),
                Verdict::Unbound => return Err(EnsureError::Unbound { kind, name }),
                Verdict::Replacing => return Err(EnsureError::Replacing { kind, name }),
                Verdict::Foreign { owner } => return Err(EnsureError::Foreign { kind, name, owner }),
                Verdict::NodeFiles { level } => return Err(EnsureError::NodeFiles { kind, name, level }),
            }
        }
        // The copy may be older than the level, which Pod Security does not enforce on what is behind claims.
        let objects = references.objects().map(|(kind, name, _)| ObjectRef::new(kind, &pod.namespace, name));
        if let Some(ObjectRef { kind, key }) = self.node_files_behind(objects)
            && let Some(level) = pod_security::closed_by(clusters).await?
        {
            return Err(EnsureError::NodeFiles { kind, name: key.name.to_string(), level });
        }
        Ok(())
    }

    /// Converges and, where that has to wait, registers the pod. It looks again after registering, because the event it
    /// waits for may have come in between.
    async fn keep_for(
        &self,
        clusters: &Clusters,
        object: &ObjectRef,
        pod: &ObjectKey,
        need: Need,
    ) -> Result<Settled, ApplyError> {
        let settled = self.converge(clusters, object, Purpose::Keep).await?;
        match settled.verdict {
            Verdict::Missing | Verdict::Unbound => {
                self.is_missing(&settled.object, (need == Need::Required).then_some(pod));
            }
            Verdict::Replacing => self.wait_for_replacement(&settled.object, pod),
            Verdict::Ready | Verdict::Released | Verdict::Foreign { .. } | Verdict::NodeFiles { .. } => {
                return Ok(settled);
            }
        }
        self.converge(clusters, object, Purpose::Keep).await
    }

    /// Reads the object in both clusters and performs its plan, as often as others interfere. What it needs is converged
    /// before; the answer is about the object that stands in the way, if one does.
    pub(super) fn converge<'a>(
        &'a self,
        clusters: &'a Clusters,
        object: &'a ObjectRef,
        purpose: Purpose,
    ) -> BoxFuture<'a, Result<Settled, ApplyError>> {
        Box::pin(async move {
            // Claims lock volumes and volumes Secrets, never the other way.
            let lock = self.lock_of(object);
            let _guard = lock.lock().await;
            match purpose {
                Purpose::Keep if self.is_ready(object) => return Ok(Settled::of(object, Verdict::Ready)),
                // A pod may have come while we waited for the lock.
                Purpose::Release if !self.is_releasing_all() && self.usage(object) != Usage::Unused => {
                    return Ok(Settled::of(object, Verdict::Ready));
                }
                Purpose::Keep => {}
                Purpose::Release => self.unconverge(object),
            }
            let mut read_copy = self.has_copy(object);
            let mut round = 0;
            loop {
                round += 1;
                match self.round(clusters, object, purpose, read_copy).await {
                    Ok(Round::Settled(settled)) => return Ok(settled),
                    Ok(Round::CopyGone) if round < ROUNDS => read_copy = false,
                    Ok(Round::CopyGone) => return Ok(Settled::of(object, Verdict::Replacing)),
                    Err(
                        ApplyError::AlreadyExists { .. }
                        | ApplyError::Conflict { .. }
                        | ApplyError::NotFound { .. },
                    ) if round < ROUNDS => {
                        read_copy = true;
                    }
                    Err(error) => return Err(error),
                }
            }
        })
    }

    async fn round(
        &self,
        clusters: &Clusters,
        object: &ObjectRef,
        purpose: Purpose,
        read_copy: bool,
    ) -> Result<Round, ApplyError> {
        let path = object.path();
        let (original_json, mut found) =
            tokio::try_join!(get_json(&clusters.computing, &path), read_places(clusters, object, read_copy))?;
        let mut original = original_json.as_ref().map(|json| Original::of(object.kind, json));
        if let Some(original) = &mut original {
            original.marks_are_new = self.marks_are_new(object, &clusters.scope, original);
        }
        // Of several places all were read.
        let unread = !read_copy && found.len() == 1;
        if unread && purpose == Purpose::Keep && has_to_look(&clusters.scope, original.as_ref()) {
            found = read_places(clusters, object, true).await?;
        }
        let copies: Vec<_> = found
            .iter()
            .map(|(place, json)| (place.clone(), json.as_ref().map(|it| WorkerCopy::of(object.kind, it))))
            .collect();
        let chosen = choose_place(&clusters.scope, object, original.as_ref(), &copies);
        let (place, copy) = &copies[chosen];
        let mut original_version = original_json.as_ref().map(Revision::of_json);
        let mut copy_version = found[chosen].1.as_ref().map(Revision::of_json);

        let keep = original_json.as_ref().zip(original.as_ref());
        let keep = keep.filter(|(_, original)| purpose == Purpose::Keep && !original.deleting);
        let is_foreign = copy.as_ref().is_some_and(|copy| {
            let owner = ownership(&clusters.scope, object, original.as_ref(), place, copy);
            matches!(owner, Ownership::Foreign { .. })
        });
        let (mut ready, mut neighbour) = (Ready::Unbound, None);
        if let Some((json, _)) = keep.filter(|_| !is_foreign) {
            let of_a_node = object.kind.mapped().is_of_a_node(json);
            self.stands_for_node_files(object, of_a_node);
            // As with pods: what there is when the level is raised stays.
            if copy.is_none()
                && of_a_node
                && let Some(level) = pod_security::closed_by(clusters).await?
            {
                return Ok(Round::Settled(Settled::of(object, Verdict::NodeFiles { level })));
            }
            neighbour = read_neighbour(clusters, object, json).await?;
            let needs = object.kind.mapped().needs(object, json, neighbour.as_ref());
            ready = self.prepare(clusters, object, needs, copy.is_some()).await?;
        }
        let place_of = |object: &ObjectRef| self.place_of(object);
        let around = Around { scope: &clusters.scope, neighbour: neighbour.as_ref(), place_of: &place_of };
        let wanted = match (ready, keep) {
            (Ready::Blocked(settled), _) if settled.verdict == Verdict::Replacing && copy.is_some() => {
                Wanted::Renewed
            }
            (Ready::Blocked(settled), _) => return Ok(Round::Settled(settled)),
            (Ready::Yes, Some((json, _))) => Wanted::Content(object.kind.mapped().wanted(json, &around)),
            (Ready::Yes | Ready::Unbound, _) => Wanted::Unbound,
        };
        let snapshot = Snapshot {
            object,
            purpose,
            original: original.as_ref(),
            copy: copy.as_ref(),
            place,
            wanted: &wanted,
            around: &around,
            used_by_volume: self.is_needed_by_others(object),
        };
        let plan = plan_object(&clusters.scope, &snapshot);
        for action in &plan.actions {
            let done = perform(clusters, &snapshot, action).await?;
            tracing::info!(%object, %action, "object");
            match done {
                Done::Original(version) => original_version = Some(version),
                Done::Copy(version) => copy_version = Some(version),
                Done::Refused(refused) => self.growth_refused(object, refused),
                Done::Deletion(Deletion::Gone) => {
                    if let Some(version) = &copy_version {
                        self.vanished(object, Side::Copy, Some(&version.uid));
                    }
                    copy_version = None;
                }
                Done::Deletion(Deletion::Started) => {}
            }
        }
        if plan.verdict == Verdict::Replacing && copy_version.is_none() {
            return Ok(Round::CopyGone);
        }
        match (&plan.verdict, original_version, copy_version) {
            (Verdict::Ready, Some(original), Some(copy)) => self.converged(object, place, original, copy),
            (_, None, _) => self.vanished(object, Side::Original, None),
            _ => {}
        }
        Ok(Round::Settled(Settled::of(object, plan.verdict)))
    }

    /// Converges what an object needs.
    async fn prepare(
        &self,
        clusters: &Clusters,
        object: &ObjectRef,
        needs: Needs,
        has_copy: bool,
    ) -> Result<Ready, ApplyError> {
        let needs = match needs {
            Needs::Objects(needs) => needs,
            Needs::Unbound => {
                self.needs(object, &[]);
                return Ok(Ready::Unbound);
            }
        };
        self.needs(object, &needs);
        for needed in &needs {
            if !has_copy {
                // A volume remembers the claim it was bound to, also when that is made anew.
                self.unconverge(needed);
            }
            let settled = self.converge(clusters, needed, Purpose::Keep).await?;
            if settled.verdict != Verdict::Ready {
                return Ok(Ready::Blocked(settled));
            }
        }
        Ok(Ready::Yes)
    }

    /// Releases everything of this binding in both clusters and says what is left (TD-1301). Called when all vnodes are
    /// gone, again and again until nothing is left.
    pub async fn release_all(&self, clusters: &Clusters) -> Result<Leftovers, ApplyError> {
        self.start_releasing_all();
        let mut objects: BTreeSet<ObjectRef> = self.all().into_iter().collect();
        objects.extend(listed(clusters).await?);
        stream::iter(&objects)
            .for_each_concurrent(RELEASES_AT_ONCE, |object| async move {
                if let Err(error) = self.converge(clusters, object, Purpose::Release).await {
                    tracing::warn!(%object, error = error.chain(), "object not released");
                }
            })
            .await;
        for owner in self.tokens.owners() {
            self.tokens.release(clusters, &owner).await?;
        }
        let mut left = Leftovers::default();
        for object in listed(clusters).await? {
            left.add(object.to_string());
        }
        Ok(left)
    }
}

/// What holds, and of which object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Settled {
    /// What holds.
    pub verdict: Verdict,
    /// Of the object itself, or of one it needs.
    pub object: ObjectRef,
}

impl Settled {
    fn of(object: &ObjectRef, verdict: Verdict) -> Self {
        Self { verdict, object: object.clone() }
    }
}

enum Round {
    Settled(Settled),
    /// A copy that was in the way is gone: the next round creates ours.
    CopyGone,
}

/// Whether what an object needs has its copies.
enum Ready {
    Yes,
    /// Nothing is known of what it will need.
    Unbound,
    Blocked(Settled),
}

enum Done {
    Original(Revision),
    Copy(Revision),
    Deletion(Deletion),
    Refused(Refused),
}

/// What stands in the worker cluster where the copy may be. A single place that is known to be empty is not read.
async fn read_places(
    clusters: &Clusters,
    object: &ObjectRef,
    read_copy: bool,
) -> Result<Vec<(String, Option<Value>)>, ApplyError> {
    let places = object.kind.mapped().places(object, &clusters.scope);
    let several = places.len() > 1;
    try_join_all(places.into_iter().map(async |place| {
        let path = object.copy_path(&clusters.scope, &place);
        let found = if read_copy || several { get_json(&clusters.worker, &path).await? } else { None };
        Ok((place, found))
    }))
    .await
}

async fn read_neighbour(
    clusters: &Clusters,
    object: &ObjectRef,
    original: &Value,
) -> Result<Option<Value>, ApplyError> {
    match object.kind.mapped().neighbour(original) {
        None => Ok(None),
        Some(Neighbour::Original(neighbour)) => get_json(&clusters.computing, &neighbour.path()).await,
        Some(Neighbour::Copy(neighbour)) => {
            let path = neighbour.copy_path(&clusters.scope, &neighbour.copy_name());
            get_json(&clusters.worker, &path).await
        }
    }
}

async fn perform(clusters: &Clusters, snapshot: &Snapshot<'_>, action: &Action) -> Result<Done, ApplyError> {
    let (scope, object) = (&clusters.scope, snapshot.object);
    let at = |copy: &OwnedCopy| object.copy_path(scope, copy.place());
    match action {
        Action::ClaimOriginal { patch } | Action::ReleaseOriginal { patch } => {
            let manager = keys::syncer_manager(&scope.cluster_id);
            let path = format!("{}?fieldManager={manager}", object.path());
            let stored = merge_patch(&clusters.computing, &path, patch).await?;
            Ok(Done::Original(Revision::of_json(&stored)))
        }
        Action::CreateCopy { metadata } => {
            let mut manifest = Map::from_iter([
                ("apiVersion".to_owned(), "v1".into()),
                ("kind".to_owned(), object.kind.as_str().into()),
                ("metadata".to_owned(), metadata.clone()),
            ]);
            if let Wanted::Content(content) = snapshot.wanted {
                manifest.extend(content.manifest());
            }
            let path = copies_path(object.kind, scope);
            let stored = create_json(&clusters.worker, &path, &manifest.into()).await?;
            Ok(Done::Copy(Revision::of_json(&stored)))
        }
        Action::UpdateCopy { copy, metadata } => {
            let mut patch = Map::from_iter([("metadata".to_owned(), metadata.clone())]);
            if let Some(Change::Patch(content)) = snapshot.change() {
                patch.extend(content);
            }
            let stored = merge_patch(&clusters.worker, &at(copy), &patch.into()).await?;
            Ok(Done::Copy(Revision::of_json(&stored)))
        }
        Action::GrowCopy { copy } => {
            let mut patch = Map::from_iter([("metadata".to_owned(), json!({"uid": copy.uid()}))]);
            if let Some(Change::Grow(content)) = snapshot.change() {
                patch.extend(content);
            }
            match merge_patch(&clusters.worker, &at(copy), &patch.into()).await {
                Ok(stored) => Ok(Done::Copy(Revision::of_json(&stored))),
                Err(error @ (ApplyError::Forbidden { .. } | ApplyError::Rejected { .. })) => {
                    tracing::warn!(%object, error = error.chain(), "the worker does not give it more room");
                    let uid = snapshot.original.map(|original| original.uid.clone()).unwrap_or_default();
                    Ok(Done::Refused(Refused { uid, reason: error.reason() }))
                }
                Err(error) => Err(error),
            }
        }
        Action::LeaveCopy { copy, patch } => {
            let stored = merge_patch(&clusters.worker, &at(copy), patch).await?;
            Ok(Done::Copy(Revision::of_json(&stored)))
        }
        Action::DeleteCopy { copy, version } => {
            let deletion = if let Some(version) = version {
                delete_unchanged(&clusters.worker, &at(copy), copy.uid(), version).await?
            } else {
                let options = DeleteOptions { uid: Some(copy.uid().to_owned()), grace_seconds: None };
                delete_json(&clusters.worker, &at(copy), &options).await?
            };
            Ok(Done::Deletion(deletion))
        }
    }
}

/// Live lists of what carries this binding's label in either cluster.
async fn listed(clusters: &Clusters) -> Result<BTreeSet<ObjectRef>, ApplyError> {
    let scope = &clusters.scope;
    let selector = format!("labelSelector={}=true", keys::synced_by(&scope.cluster_id));
    let mut found = BTreeSet::new();
    for kind in ObjectKind::ALL {
        let plural = kind.plural();
        let originals = format!("/api/v1/{plural}?{selector}");
        let copies = format!(
            "{}?{selector},{}={}",
            copies_path(kind, scope),
            label::MANAGED_BY,
            label::MANAGED_BY_VALUE
        );
        let (originals, copies) = tokio::try_join!(
            list_metadata(&clusters.computing, &originals, PAGE),
            list_metadata(&clusters.worker, &copies, PAGE)
        )?;
        let copies = match kind.mapped().reach() {
            Reach::Namespace => copies,
            Reach::Cluster => serving(clusters, kind, copies).await?,
        };
        found.extend(originals.iter().map(|original| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            ObjectRef::new(kind, &text(&original.namespace), &text(&original.name))
        }));
        found.extend(copies.iter().filter_map(|copy| original_of(kind, scope, copy)));
    }
    Ok(found)
}

/// Those of these copies that serve our mount namespace. Anybody who may make volumes can put our marks on one.
async fn serving(
    clusters: &Clusters,
    kind: ObjectKind,
    copies: Vec<ObjectMeta>,
) -> Result<Vec<ObjectMeta>, ApplyError> {
    let scope = &clusters.scope;
    let read = |meta: ObjectMeta| async move {
        let path = format!("{}/{}", copies_path(kind, scope), meta.name.as_deref().unwrap_or_default());
        let copy = get_json(&clusters.worker, &path).await?.map(|json| WorkerCopy::of(kind, &json));
        let serves = copy.is_some_and(|copy| !kind.mapped().is_elsewhere(&copy, scope));
        Ok(serves.then_some(meta))
    };
    let read: Vec<_> = stream::iter(copies).map(read).buffered(RELEASES_AT_ONCE).try_collect().await?;
    Ok(read.into_iter().flatten().collect())
}
