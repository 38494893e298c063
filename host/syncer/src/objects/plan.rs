//! What has to be written so that an object of the computing cluster has the copy its pods need, or none (TD-1004 to
//! TD-1016 and *Do better* of TD section 10), for every copied kind alike. Pure; what differs is asked of
//! [`super::kinds`].
//!
//! The order of actions is a promise: the vobj is claimed before its copy is made, so that the finalizer exists
//! whenever a copy does, and it is released after the copy is gone. Every prefix of a plan is a state from which the
//! next plan continues. Releasing never depends on the copy being valid: a foreign copy is left alone and the vobj is
//! released all the same.

use std::{collections::BTreeMap, fmt};

use kubeocean_api::keys::{self, annotation, finalizer, label};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::{
    content::Content,
    kind::{ObjectKind, ObjectRef},
    kinds::{Around, Change, Reach},
    ownership::{OwnedCopy, Ownership, is_held, ownership},
    view::{Original, WorkerCopy},
};

/// For whom copies are made: the identity that names, stamps and locations follow from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// Name of the binding.
    pub binding: String,
    /// Its clusterID.
    pub cluster_id: String,
    /// UID of the computing cluster's namespace `kube-system`.
    pub computing_uid: String,
    /// Namespace of all copies.
    pub mount_namespace: String,
}

/// Whether pods need the copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A pod refers to the object.
    Keep,
    /// Nobody does any more, or the binding is being deleted.
    Release,
}

/// One write. Content of objects is not part of it: the apply stage takes it from the snapshot.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub enum Action {
    /// Puts finalizer, label and mapping on the vobj.
    ClaimOriginal {
        /// Merge patch with preconditions.
        patch: Value,
    },
    /// Creates the copy.
    CreateCopy {
        /// Complete metadata.
        metadata: Value,
    },
    /// Brings the copy up to date.
    UpdateCopy {
        /// Which.
        copy: OwnedCopy,
        /// Merge patch of the metadata, with preconditions.
        metadata: Value,
    },
    /// Gives a volume more room. If the worker refuses it, pods go on with what they have.
    GrowCopy {
        /// Which.
        copy: OwnedCopy,
    },
    /// Removes the copy.
    DeleteCopy {
        /// Which.
        copy: OwnedCopy,
        /// Only this version, if another one may not go.
        version: Option<String>,
    },
    /// Takes our name off a copy that other bindings use.
    LeaveCopy {
        /// Which.
        copy: OwnedCopy,
        /// Merge patch with preconditions.
        patch: Value,
    },
    /// Takes finalizer, label and, if nobody else holds it, the mapping off the vobj.
    ReleaseOriginal {
        /// Merge patch with preconditions.
        patch: Value,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ClaimOriginal { .. } => "claim the original",
            Self::CreateCopy { .. } => "create the copy",
            Self::UpdateCopy { .. } => "update the copy",
            Self::GrowCopy { .. } => "grow the copy",
            Self::DeleteCopy { .. } => "delete the copy",
            Self::LeaveCopy { .. } => "leave the copy to other bindings",
            Self::ReleaseOriginal { .. } => "release the original",
        })
    }
}

/// What holds once the actions are done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Verdict {
    /// The copy can be used.
    Ready,
    /// The vobj does not exist or is being deleted.
    Missing,
    /// The vobj is a claim or volume that is not bound yet.
    Unbound,
    /// The copy is being deleted; its end is the moment to look again.
    Replacing,
    /// An object of that name belongs to somebody else.
    Foreign {
        /// Whom, as far as it says.
        owner: String,
    },
    /// It stands for files of nodes, which the worker does not permit at this Pod Security level.
    NodeFiles {
        /// The level.
        level: String,
    },
    /// Nothing of ours is left.
    Released,
}

/// Actions in the order of execution, and what they lead to.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Empty = converged.
    pub actions: Vec<Action>,
    /// What holds afterwards.
    pub verdict: Verdict,
}

/// What a copy shall contain.
#[derive(Debug, Clone)]
pub enum Wanted {
    /// This.
    Content(Content),
    /// There is nothing to copy yet.
    Unbound,
    /// The copy holds on to another one that has to be replaced: it goes first, and both are made anew.
    Renewed,
}

/// One object in both clusters, read live.
#[derive(Debug, Clone, Copy)]
pub struct Snapshot<'a> {
    /// Which object.
    pub object: &'a ObjectRef,
    /// Whether pods need it.
    pub purpose: Purpose,
    /// The vobj.
    pub original: Option<&'a Original>,
    /// What is in the worker cluster under the name of the copy.
    pub copy: Option<&'a WorkerCopy>,
    /// That name.
    pub place: &'a str,
    /// What the copy shall contain; only asked for if there is an original to keep.
    pub wanted: &'a Wanted,
    /// What that depends on.
    pub around: &'a Around<'a>,
    /// Whether a volume needs it, rather than pods.
    pub used_by_volume: bool,
}

impl Snapshot<'_> {
    fn ownership(&self, scope: &Scope, copy: &WorkerCopy) -> Ownership {
        ownership(scope, self.object, self.original, self.place, copy)
    }

    /// How the copy becomes what it shall be; `None` if there is none, or nothing to be.
    pub(super) fn change(&self) -> Option<Change> {
        match (self.wanted, self.copy) {
            (Wanted::Content(wanted), Some(copy)) => {
                Some(self.object.kind.mapped().change(wanted, copy, self.around))
            }
            _ => None,
        }
    }
}

/// Plans one object.
pub fn plan_object(scope: &Scope, snapshot: &Snapshot<'_>) -> Plan {
    match (snapshot.purpose, snapshot.original) {
        (Purpose::Keep, Some(original)) if !original.deleting => keep(scope, snapshot, original),
        (Purpose::Keep, _) => release(scope, snapshot, absent(scope, snapshot)),
        (Purpose::Release, _) => release(scope, snapshot, Verdict::Released),
    }
}

/// There is nothing to copy. A pod for which that is good enough would find whatever has the name.
fn absent(scope: &Scope, snapshot: &Snapshot<'_>) -> Verdict {
    match snapshot.copy.map(|copy| snapshot.ownership(scope, copy)) {
        Some(Ownership::Foreign { owner }) => Verdict::Foreign { owner },
        None | Some(Ownership::Ours(_) | Ownership::Stale(_)) => Verdict::Missing,
    }
}

fn keep(scope: &Scope, snapshot: &Snapshot<'_>, original: &Original) -> Plan {
    let found = snapshot.copy.map(|copy| (copy, snapshot.ownership(scope, copy)));
    let owned = match found {
        None => None,
        Some((_, Ownership::Foreign { owner })) => {
            // It came after we looked and before we could create. Our marks would be the proof next time.
            let unclaim = original.marks_are_new.then(|| unclaim(scope, original)).flatten();
            let actions = unclaim.map(|patch| Action::ReleaseOriginal { patch }).into_iter().collect();
            return Plan { actions, verdict: Verdict::Foreign { owner } };
        }
        Some((copy, Ownership::Ours(owned))) => Some((copy, owned, true)),
        Some((copy, Ownership::Stale(owned))) => Some((copy, owned, false)),
    };
    match snapshot.wanted {
        Wanted::Content(_) => {}
        Wanted::Unbound => return Plan { actions: vec![], verdict: Verdict::Unbound },
        Wanted::Renewed => {
            let owned = owned.filter(|(copy, ..)| !copy.deleting);
            let actions = owned.map(|(_, copy, _)| Action::DeleteCopy { copy, version: None });
            return Plan { actions: actions.into_iter().collect(), verdict: Verdict::Replacing };
        }
    }
    let claim = claim(scope, snapshot, original).map(|patch| Action::ClaimOriginal { patch });
    let mut actions: Vec<Action> = claim.into_iter().collect();
    let Some((copy, owned, current)) = owned else {
        actions.push(Action::CreateCopy { metadata: copy_metadata(scope, snapshot, original) });
        return Plan { actions, verdict: Verdict::Ready };
    };
    if copy.deleting {
        return Plan { actions, verdict: Verdict::Replacing };
    }
    let change = snapshot.change().filter(|_| current).unwrap_or(Change::Replace);
    if change == Change::Replace {
        actions.push(Action::DeleteCopy { copy: owned, version: None });
        return Plan { actions, verdict: Verdict::Replacing };
    }
    let patched = matches!(change, Change::Patch(_));
    actions.extend(update(scope, snapshot, original, (copy, &owned), patched));
    if let Change::Grow(_) = change {
        actions.push(Action::GrowCopy { copy: owned });
    }
    Plan { actions, verdict: Verdict::Ready }
}

fn release(scope: &Scope, snapshot: &Snapshot<'_>, verdict: Verdict) -> Plan {
    let mut actions = Vec::new();
    if let Some(copy) = snapshot.copy.filter(|copy| !copy.deleting)
        && let Ownership::Ours(owned) | Ownership::Stale(owned) = snapshot.ownership(scope, copy)
    {
        let mine = keys::synced_by(&scope.cluster_id);
        let users: Vec<&str> = copy.users().collect();
        // With the version as precondition, both times: another binding may be about to join, and two that leave at the same
        // time must not both see the other one's label, or nobody would take the copy along.
        if users.iter().all(|user| *user == mine) {
            let version = Some(copy.resource_version.clone());
            actions.push(Action::DeleteCopy { copy: owned, version });
        } else if users.contains(&mine.as_str()) {
            let patch = json!({"metadata": {
                "uid": copy.uid, "resourceVersion": copy.resource_version, "labels": {mine: null},
            }});
            actions.push(Action::LeaveCopy { copy: owned, patch });
        }
    }
    actions.extend(
        snapshot
            .original
            .and_then(|original| unclaim(scope, original))
            .map(|patch| Action::ReleaseOriginal { patch }),
    );
    Plan { actions, verdict }
}

/// The place of the copy among those its kind allows: where one of ours is, else the last that nobody has, else the
/// first, which is then somebody's.
/// `found` is what stands at [`super::kinds::MappedKind::places`].
pub(super) fn choose_place(
    scope: &Scope,
    object: &ObjectRef,
    original: Option<&Original>,
    found: &[(String, Option<WorkerCopy>)],
) -> usize {
    let is_taken = |copy: &WorkerCopy| {
        matches!(ownership(scope, object, original, "", copy), Ownership::Foreign { .. })
            || object.kind.mapped().is_elsewhere(copy, scope)
    };
    // The copy is not moved when the better place becomes free: it may be in use.
    let ours = |(_, copy): &(String, Option<WorkerCopy>)| copy.as_ref().is_some_and(|it| !is_taken(it));
    let free = |(_, copy): &(String, Option<WorkerCopy>)| copy.is_none();
    found.iter().position(ours).or_else(|| found.iter().rposition(free)).unwrap_or_default()
}

fn claim(scope: &Scope, snapshot: &Snapshot<'_>, original: &Original) -> Option<Value> {
    let own_finalizer = keys::object_finalizer(&scope.cluster_id);
    let synced_by = keys::synced_by(&scope.cluster_id);
    let mut labels = vec![(label::MANAGED_BY, label::MANAGED_BY_VALUE), (synced_by.as_str(), "true")];
    if snapshot.used_by_volume && snapshot.object.kind == ObjectKind::Secret {
        labels.push((label::USED_BY_PV, "true"));
    }
    let copy_name = snapshot.object.copy_name();
    let copy_namespace = match snapshot.object.kind.mapped().reach() {
        Reach::Namespace => scope.mount_namespace.as_str(),
        Reach::Cluster => "",
    };
    let mut annotations = vec![(annotation::PHYSICAL_NAME, copy_name.as_str())];
    // Bindings with different mount namespaces share this annotation. It is only a hint for readers of the original's
    // format, so whoever holds the object first writes it; otherwise two Syncers would overwrite each other for ever.
    let others =
        original.finalizers.iter().any(|f| f.starts_with(finalizer::OBJECT_PREFIX) && *f != own_finalizer);
    if !others || !original.annotations.contains_key(annotation::PHYSICAL_NAMESPACE) {
        annotations.push((annotation::PHYSICAL_NAMESPACE, copy_namespace));
    }

    let mut metadata = Map::new();
    put(&mut metadata, "labels", missing(&labels, &original.labels));
    put(&mut metadata, "annotations", missing(&annotations, &original.annotations));
    if !original.finalizers.contains(&own_finalizer) {
        let finalizers: Vec<&str> =
            original.finalizers.iter().map(String::as_str).chain([own_finalizer.as_str()]).collect();
        // The list is replaced as a whole.
        metadata.insert("finalizers".to_owned(), json!(finalizers));
    }
    if !metadata.is_empty() {
        // The version in the answer counts as that of the content the copy is made from. Without the precondition it
        // could be that of content written since, which would then never be copied.
        metadata.insert("resourceVersion".to_owned(), original.resource_version.as_str().into());
    }
    with_uid(metadata, &original.uid)
}

fn unclaim(scope: &Scope, original: &Original) -> Option<Value> {
    if !is_held(scope, original) {
        return None;
    }
    let own_finalizer = keys::object_finalizer(&scope.cluster_id);
    let finalizers: Vec<&str> = original
        .finalizers
        .iter()
        .map(String::as_str)
        .filter(|f| *f != own_finalizer && !finalizer::LEGACY_UNUSED.contains(f))
        .collect();
    let last = !finalizers.iter().any(|f| f.starts_with(finalizer::OBJECT_PREFIX));

    let mut labels = vec![keys::synced_by(&scope.cluster_id)];
    let mut annotations = vec![keys::deleting(&scope.cluster_id)];
    if last {
        labels.extend([label::MANAGED_BY, label::USED_BY_PV].map(str::to_owned));
        annotations.extend([annotation::PHYSICAL_NAME, annotation::PHYSICAL_NAMESPACE].map(str::to_owned));
    }
    let mut metadata = Map::new();
    put(&mut metadata, "labels", removed(&labels, &original.labels));
    put(&mut metadata, "annotations", removed(&annotations, &original.annotations));
    if finalizers.len() != original.finalizers.len() {
        metadata.insert("finalizers".to_owned(), json!(finalizers));
        metadata.insert("resourceVersion".to_owned(), original.resource_version.as_str().into());
    }
    with_uid(metadata, &original.uid)
}

/// Wanted labels and annotations of the copy (TD-1005): those of the vobj without bookkeeping, and our own.
fn copy_labels(scope: &Scope, snapshot: &Snapshot<'_>, original: &Original) -> BTreeMap<String, String> {
    let mut labels = travelling(snapshot.object, &original.labels);
    // On a shared copy it tells who made it.
    let maker = snapshot.copy.and_then(|copy| copy.labels.get(label::CLUSTER_BINDING));
    labels.insert(label::CLUSTER_BINDING.to_owned(), maker.unwrap_or(&scope.binding).clone());
    labels.insert(label::MANAGED_BY.to_owned(), label::MANAGED_BY_VALUE.to_owned());
    labels.insert(keys::synced_by(&scope.cluster_id), "true".to_owned());
    if snapshot.used_by_volume && snapshot.object.kind == ObjectKind::Secret {
        labels.insert(label::USED_BY_PV.to_owned(), "true".to_owned());
    }
    labels
}

fn copy_annotations(scope: &Scope, object: &ObjectRef, original: &Original) -> BTreeMap<String, String> {
    let mut annotations = travelling(object, &original.annotations);
    let own = [
        (annotation::VIRTUAL_NAME, &*object.key.name),
        (annotation::VIRTUAL_NAMESPACE, &*object.key.namespace),
        (annotation::VIRTUAL_UID, original.uid.as_str()),
        (annotation::COMPUTING_CLUSTER_UID, scope.computing_uid.as_str()),
    ];
    annotations.extend(own.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    annotations
}

fn copy_metadata(scope: &Scope, snapshot: &Snapshot<'_>, original: &Original) -> Value {
    let mut metadata = json!({
        "name": snapshot.place,
        "labels": copy_labels(scope, snapshot, original),
        "annotations": copy_annotations(scope, snapshot.object, original),
    });
    if snapshot.object.kind.mapped().reach() == Reach::Namespace {
        metadata["namespace"] = scope.mount_namespace.as_str().into();
    }
    metadata
}

/// `None` if the copy is up to date. Labels that others put on the copy are no reason to write; when there is one, keys
/// that left the vobj leave the copy too.
fn update(
    scope: &Scope,
    snapshot: &Snapshot<'_>,
    original: &Original,
    (copy, owned): (&WorkerCopy, &OwnedCopy),
    patched: bool,
) -> Option<Action> {
    let labels = copy_labels(scope, snapshot, original);
    let annotations = copy_annotations(scope, snapshot.object, original);
    let differs = |wanted: &BTreeMap<String, String>, have: &BTreeMap<String, String>| {
        wanted.iter().any(|(key, value)| have.get(key) != Some(value))
    };
    let current = !patched
        && !differs(&labels, &copy.labels)
        && !differs(&annotations, &copy.annotations)
        && !copy.annotations.contains_key(annotation::LAST_APPLIED);
    if current {
        return None;
    }
    let mut metadata = Map::new();
    put(&mut metadata, "labels", difference(snapshot.object, &labels, &copy.labels));
    put(&mut metadata, "annotations", difference(snapshot.object, &annotations, &copy.annotations));
    metadata.insert("uid".to_owned(), copy.uid.as_str().into());
    metadata.insert("resourceVersion".to_owned(), copy.resource_version.as_str().into());
    Some(Action::UpdateCopy { copy: owned.clone(), metadata: metadata.into() })
}

fn travelling(object: &ObjectRef, entries: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let kind = object.kind.mapped();
    let travels = |key: &str| !keys::is_internal(key) && key != annotation::LAST_APPLIED && !kind.stays(key);
    entries.iter().filter(|(key, _)| travels(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Merge patch from `have` to `wanted` that leaves other bookkeeping alone.
fn difference(
    object: &ObjectRef,
    wanted: &BTreeMap<String, String>,
    have: &BTreeMap<String, String>,
) -> Map<String, Value> {
    let kind = object.kind.mapped();
    let set = wanted.iter().filter(|(key, value)| have.get(*key) != Some(value));
    let gone =
        have.keys().filter(|key| !wanted.contains_key(*key) && !keys::is_internal(key) && !kind.stays(key));
    set.map(|(key, value)| (key.clone(), value.as_str().into()))
        .chain(gone.map(|key| (key.clone(), Value::Null)))
        .collect()
}

fn missing(wanted: &[(&str, &str)], have: &BTreeMap<String, String>) -> Map<String, Value> {
    let wanted = wanted.iter().filter(|(key, value)| have.get(*key).map(String::as_str) != Some(value));
    wanted.map(|(key, value)| ((*key).to_owned(), (*value).into())).collect()
}

fn removed(keys: &[String], have: &BTreeMap<String, String>) -> Map<String, Value> {
    keys.iter().filter(|key| have.contains_key(*key)).map(|key| (key.clone(), Value::Null)).collect()
}

fn put(metadata: &mut Map<String, Value>, field: &str, entries: Map<String, Value>) {
    if !entries.is_empty() {
        metadata.insert(field.to_owned(), entries.into());
    }
}

/// The patch with the UID as precondition; `None` if nothing changes.
fn with_uid(mut metadata: Map<String, Value>, uid: &str) -> Option<Value> {
    if metadata.is_empty() {
        return None;
    }
    metadata.insert("uid".to_owned(), uid.into());
    Some(json!({"metadata": metadata}))
}
