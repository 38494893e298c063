//! Reads one object in both clusters, performs its plan, and answers the pods that ask for copies.

use std::collections::BTreeSet;

use futures::{StreamExt, stream};
use kube::Client;
use kubeocean_api::{
    keys::{self, label},
    name::ObjectKey,
};
use serde_json::Map;

use super::{
    index::{ObjectStore, Side},
    kind::{ObjectKind, ObjectRef},
    plan::{Action, Purpose, Scope, Snapshot, Verdict, plan_object},
    view::{Original, Revision, WorkerCopy, original_of},
};
use crate::pods::references::{Need, References};
use kubeocean_runtime::{
    error::ApplyError,
    request::{
        DeleteOptions, Deletion, PAGE, create_json, delete_json, get_json, list_metadata, merge_patch, paths,
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
    /// Makes sure that every object `pod` refers to has an up-to-date copy. Objects that are in order cost no request.
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
            let name = || name.to_owned();
            match self.keep_for(clusters, &object, pod, need).await? {
                Verdict::Ready | Verdict::Released => {}
                Verdict::Missing if need == Need::Optional => {}
                Verdict::Missing => return Err(EnsureError::Missing { kind, name: name() }),
                Verdict::Replacing => return Err(EnsureError::Replacing { kind, name: name() }),
                Verdict::Foreign { owner } => return Err(EnsureError::Foreign { kind, name: name(), owner }),
            }
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
    ) -> Result<Verdict, ApplyError> {
        match self.converge(clusters, object, Purpose::Keep).await? {
            Verdict::Missing => self.is_missing(object, (need == Need::Required).then_some(pod)),
            Verdict::Replacing => self.wait_for_replacement(object, pod),
            settled @ (Verdict::Ready | Verdict::Released | Verdict::Foreign { .. }) => return Ok(settled),
        }
        self.converge(clusters, object, Purpose::Keep).await
    }

    /// Reads the object in both clusters and performs its plan, as often as others interfere.
    pub(super) async fn converge(
        &self,
        clusters: &Clusters,
        object: &ObjectRef,
        purpose: Purpose,
    ) -> Result<Verdict, ApplyError> {
        let lock = self.lock_of(object);
        let _guard = lock.lock().await;
        match purpose {
            Purpose::Keep if self.is_ready(object) => return Ok(Verdict::Ready),
            // A pod may have come while we waited for the lock.
            Purpose::Release if !self.is_releasing_all() && self.pods.uses(object) => {
                return Ok(Verdict::Ready);
            }
            Purpose::Keep => {}
            Purpose::Release => self.unconverge(object),
        }
        let mut read_copy = self.has_copy(object);
        let mut round = 0;
        loop {
            round += 1;
            match self.round(clusters, object, purpose, read_copy).await {
                Ok(Round::Settled(verdict)) => return Ok(verdict),
                Ok(Round::CopyGone) if round < ROUNDS => read_copy = false,
                Ok(Round::CopyGone) => return Ok(Verdict::Replacing),
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
    }

    async fn round(
        &self,
        clusters: &Clusters,
        object: &ObjectRef,
        purpose: Purpose,
        read_copy: bool,
    ) -> Result<Round, ApplyError> {
        let (original, copy) = (original_path(object), copy_path(&clusters.scope, object));
        let (original, copy) = tokio::try_join!(get_json(&clusters.computing, &original), async {
            if read_copy { get_json(&clusters.worker, &copy).await } else { Ok(None) }
        })?;
        let original = original.map(|json| (Revision::of_json(&json), Original::of(object.kind, &json)));
        let copy = copy.map(|json| (Revision::of_json(&json), WorkerCopy::of(object.kind, &json)));
        let snapshot = Snapshot {
            object,
            purpose,
            original: original.as_ref().map(|(_, original)| original),
            copy: copy.as_ref().map(|(_, copy)| copy),
        };
        let plan = plan_object(&clusters.scope, &snapshot);
        let mut original_version = original.as_ref().map(|(version, _)| version.clone());
        let mut copy_version = copy.as_ref().map(|(version, _)| version.clone());
        for action in &plan.actions {
            tracing::info!(%object, %action, "object");
            match perform(clusters, &snapshot, action).await? {
                Done::Original(version) => original_version = Some(version),
                Done::Copy(version) => copy_version = Some(version),
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
            (Verdict::Ready, Some(original), Some(copy)) => self.converged(object, original, copy),
            (_, None, _) => self.vanished(object, Side::Original, None),
            _ => {}
        }
        Ok(Round::Settled(plan.verdict))
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

enum Round {
    Settled(Verdict),
    /// A copy that was in the way is gone: the next round creates ours.
    CopyGone,
}

enum Done {
    Original(Revision),
    Copy(Revision),
    Deletion(Deletion),
}

fn original_path(object: &ObjectRef) -> String {
    paths::core(object.kind.plural(), &object.key.namespace, &object.key.name)
}

fn copy_path(scope: &Scope, object: &ObjectRef) -> String {
    paths::core(object.kind.plural(), &scope.mount_namespace, &object.copy_name())
}

async fn perform(clusters: &Clusters, snapshot: &Snapshot<'_>, action: &Action) -> Result<Done, ApplyError> {
    let (scope, object) = (&clusters.scope, snapshot.object);
    let content = snapshot.original.map(|original| &original.content);
    match action {
        Action::ClaimOriginal { patch } | Action::ReleaseOriginal { patch } => {
            let manager = keys::syncer_manager(&scope.cluster_id);
            let path = format!("{}?fieldManager={manager}", original_path(object));
            let stored = merge_patch(&clusters.computing, &path, patch).await?;
            Ok(Done::Original(Revision::of_json(&stored)))
        }
        Action::CreateCopy { metadata } => {
            let mut manifest = Map::from_iter([
                ("apiVersion".to_owned(), "v1".into()),
                ("kind".to_owned(), object.kind.as_str().into()),
                ("metadata".to_owned(), metadata.clone()),
            ]);
            manifest.extend(content.map(super::content::Content::manifest).unwrap_or_default());
            let path = paths::core_all(object.kind.plural(), &scope.mount_namespace);
            let stored = create_json(&clusters.worker, &path, &manifest.into()).await?;
            Ok(Done::Copy(Revision::of_json(&stored)))
        }
        Action::UpdateCopy { metadata } => {
            let mut patch = Map::from_iter([("metadata".to_owned(), metadata.clone())]);
            if let (Some(content), Some(copy)) = (content, snapshot.copy) {
                patch.extend(content.patch(&copy.content));
            }
            let stored = merge_patch(&clusters.worker, &copy_path(scope, object), &patch.into()).await?;
            Ok(Done::Copy(Revision::of_json(&stored)))
        }
        Action::LeaveCopy { patch } => {
            let stored = merge_patch(&clusters.worker, &copy_path(scope, object), patch).await?;
            Ok(Done::Copy(Revision::of_json(&stored)))
        }
        Action::DeleteCopy { uid } => {
            let options = DeleteOptions { uid: Some(uid.clone()), grace_seconds: None };
            Ok(Done::Deletion(delete_json(&clusters.worker, &copy_path(scope, object), &options).await?))
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
            paths::core_all(plural, &scope.mount_namespace),
            label::MANAGED_BY,
            label::MANAGED_BY_VALUE
        );
        let (originals, copies) = tokio::try_join!(
            list_metadata(&clusters.computing, &originals, PAGE),
            list_metadata(&clusters.worker, &copies, PAGE)
        )?;
        found.extend(originals.iter().map(|original| {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            ObjectRef::new(kind, &text(&original.namespace), &text(&original.name))
        }));
        found.extend(copies.iter().filter_map(|copy| original_of(kind, copy)));
    }
    Ok(found)
}
