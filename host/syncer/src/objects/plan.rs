//! What has to be written so that an object of the computing cluster has the copy its pods need, or none (TD-1004 to
//! TD-1012 and *Do better* of TD section 10). Pure.
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
    kind::ObjectRef,
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
        /// Merge patch of the metadata, with preconditions.
        metadata: Value,
    },
    /// Removes the copy.
    DeleteCopy {
        /// Only the copy with this UID.
        uid: String,
    },
    /// Takes our name off a copy that other bindings use.
    LeaveCopy {
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
    /// The copy is being deleted; its end is the moment to look again.
    Replacing,
    /// An object of that name belongs to somebody else.
    Foreign {
        /// Whom, as far as it says.
        owner: String,
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

/// One object in both clusters, read live.
#[derive(Debug, Clone)]
pub struct Snapshot<'a> {
    /// Which object.
    pub object: &'a ObjectRef,
    /// Whether pods need it.
    pub purpose: Purpose,
    /// The vobj.
    pub original: Option<&'a Original>,
    /// What is in the worker cluster under the name of the copy.
    pub copy: Option<&'a WorkerCopy>,
}

/// Whose copy it is (TD-1103).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ownership {
    /// Of this vobj.
    Ours,
    /// Of a former vobj of that name.
    Stale,
    /// Of somebody else.
    Foreign { owner: String },
}

/// Plans one object.
pub fn plan_object(scope: &Scope, snapshot: &Snapshot<'_>) -> Plan {
    match (snapshot.purpose, snapshot.original) {
        (Purpose::Keep, Some(original)) if !original.deleting => keep(scope, snapshot, original),
        (Purpose::Keep, _) => release(scope, snapshot, Verdict::Missing),
        (Purpose::Release, _) => release(scope, snapshot, Verdict::Released),
    }
}

fn keep(scope: &Scope, snapshot: &Snapshot<'_>, original: &Original) -> Plan {
    let claim = || claim(scope, snapshot.object, original).map(|patch| Action::ClaimOriginal { patch });
    let Some(copy) = snapshot.copy else {
        let metadata = copy_metadata(scope, snapshot.object, original, None);
        let actions = claim().into_iter().chain([Action::CreateCopy { metadata }]).collect();
        return Plan { actions, verdict: Verdict::Ready };
    };
    match ownership(scope, snapshot.object, Some(original), copy) {
        Ownership::Foreign { owner } => Plan { actions: vec![], verdict: Verdict::Foreign { owner } },
        Ownership::Ours | Ownership::Stale if copy.deleting => {
            Plan { actions: claim().into_iter().collect(), verdict: Verdict::Replacing }
        }
        Ownership::Ours if copy.can_become(original) => {
            let update = update(scope, snapshot.object, original, copy);
            Plan { actions: claim().into_iter().chain(update).collect(), verdict: Verdict::Ready }
        }
        Ownership::Ours | Ownership::Stale => {
            let delete = Action::DeleteCopy { uid: copy.uid.clone() };
            Plan { actions: claim().into_iter().chain([delete]).collect(), verdict: Verdict::Replacing }
        }
    }
}

fn release(scope: &Scope, snapshot: &Snapshot<'_>, verdict: Verdict) -> Plan {
    let mut actions = Vec::new();
    if let Some(copy) = snapshot.copy.filter(|copy| !copy.deleting) {
        let held = snapshot.original.is_some_and(|original| is_held(scope, original));
        // Without a stamp and without a vobj that we hold, nothing proves that the copy is ours.
        let provable = held || copy.stamp() == Some(scope.computing_uid.as_str());
        match ownership(scope, snapshot.object, snapshot.original, copy) {
            Ownership::Foreign { .. } => {}
            Ownership::Ours | Ownership::Stale if !provable => {}
            Ownership::Ours | Ownership::Stale => {
                let mine = keys::synced_by(&scope.cluster_id);
                let users: Vec<&str> = copy.users().collect();
                if users.iter().all(|user| *user == mine) {
                    actions.push(Action::DeleteCopy { uid: copy.uid.clone() });
                } else if users.contains(&mine.as_str()) {
                    // With the version as precondition: two bindings that leave at the same time must not both see
                    // the other one's label, or nobody would take the copy along.
                    let patch = json!({"metadata": {
                        "uid": copy.uid, "resourceVersion": copy.resource_version, "labels": {mine: null},
                    }});
                    actions.push(Action::LeaveCopy { patch });
                }
            }
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

/// Whose copy it is. `original` is compared by UID; without it only names and stamps count.
pub(super) fn ownership(
    scope: &Scope,
    object: &ObjectRef,
    original: Option<&Original>,
    copy: &WorkerCopy,
) -> Ownership {
    let annotation = |key: &str| copy.annotations.get(key).map(String::as_str);
    let stamp = copy.stamp();
    if stamp.is_some_and(|stamp| stamp != scope.computing_uid) {
        return Ownership::Foreign { owner: "another computing cluster".to_owned() };
    }
    let managed = copy.labels.get(label::MANAGED_BY).is_some_and(|value| value == label::MANAGED_BY_VALUE);
    // A stamped copy that lost its label is still ours; an unstamped object without the label never was.
    if !managed && stamp.is_none() {
        return Ownership::Foreign { owner: "the worker cluster".to_owned() };
    }
    let (name, namespace) = (annotation(annotation::VIRTUAL_NAME), annotation(annotation::VIRTUAL_NAMESPACE));
    if name != Some(&*object.key.name) || namespace != Some(&*object.key.namespace) {
        let owner = format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default());
        return Ownership::Foreign { owner };
    }
    match (annotation(annotation::VIRTUAL_UID), original) {
        (Some(uid), Some(original)) if uid != original.uid => Ownership::Stale,
        // The original writes no UID: adopted, because the names match.
        _ => Ownership::Ours,
    }
}

/// Whether the vobj carries anything of this binding.
pub(super) fn is_held(scope: &Scope, original: &Original) -> bool {
    original.finalizers.contains(&keys::object_finalizer(&scope.cluster_id))
        || original.labels.contains_key(&keys::synced_by(&scope.cluster_id))
        || original.annotations.contains_key(&keys::deleting(&scope.cluster_id))
}

fn claim(scope: &Scope, object: &ObjectRef, original: &Original) -> Option<Value> {
    let own_finalizer = keys::object_finalizer(&scope.cluster_id);
    let synced_by = keys::synced_by(&scope.cluster_id);
    let labels = [(label::MANAGED_BY, label::MANAGED_BY_VALUE), (synced_by.as_str(), "true")];
    let copy_name = object.copy_name();
    let mut annotations = vec![(annotation::PHYSICAL_NAME, copy_name.as_str())];
    // Bindings with different mount namespaces share this annotation. It is only a hint for readers of the original's
    // format, so whoever holds the object first writes it; otherwise two Syncers would overwrite each other for ever.
    let others =
        original.finalizers.iter().any(|f| f.starts_with(finalizer::OBJECT_PREFIX) && *f != own_finalizer);
    if !others || !original.annotations.contains_key(annotation::PHYSICAL_NAMESPACE) {
        annotations.push((annotation::PHYSICAL_NAMESPACE, scope.mount_namespace.as_str()));
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
fn copy_labels(scope: &Scope, original: &Original, copy: Option<&WorkerCopy>) -> BTreeMap<String, String> {
    let mut labels = travelling(&original.labels);
    // On a shared copy it tells who made it.
    let maker = copy.and_then(|copy| copy.labels.get(label::CLUSTER_BINDING)).unwrap_or(&scope.binding);
    labels.insert(label::CLUSTER_BINDING.to_owned(), maker.clone());
    labels.insert(label::MANAGED_BY.to_owned(), label::MANAGED_BY_VALUE.to_owned());
    labels.insert(keys::synced_by(&scope.cluster_id), "true".to_owned());
    labels
}

fn copy_annotations(scope: &Scope, object: &ObjectRef, original: &Original) -> BTreeMap<String, String> {
    let mut annotations = travelling(&original.annotations);
    let own = [
        (annotation::VIRTUAL_NAME, &*object.key.name),
        (annotation::VIRTUAL_NAMESPACE, &*object.key.namespace),
        (annotation::VIRTUAL_UID, original.uid.as_str()),
        (annotation::COMPUTING_CLUSTER_UID, scope.computing_uid.as_str()),
    ];
    annotations.extend(own.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    annotations
}

fn copy_metadata(scope: &Scope, object: &ObjectRef, original: &Original, copy: Option<&WorkerCopy>) -> Value {
    json!({
        "name": object.copy_name(),
        "namespace": scope.mount_namespace,
        "labels": copy_labels(scope, original, copy),
        "annotations": copy_annotations(scope, object, original),
    })
}

/// `None` if the copy is up to date. Labels that others put on the copy are no reason to write; when there is one, keys
/// that left the vobj leave the copy too.
fn update(scope: &Scope, object: &ObjectRef, original: &Original, copy: &WorkerCopy) -> Option<Action> {
    let labels = copy_labels(scope, original, Some(copy));
    let annotations = copy_annotations(scope, object, original);
    let differs = |wanted: &BTreeMap<String, String>, have: &BTreeMap<String, String>| {
        wanted.iter().any(|(key, value)| have.get(key) != Some(value))
    };
    let current = copy.content == original.content
        && !differs(&labels, &copy.labels)
        && !differs(&annotations, &copy.annotations)
        && !copy.annotations.contains_key(annotation::LAST_APPLIED);
    if current {
        return None;
    }
    let mut metadata = Map::new();
    put(&mut metadata, "labels", difference(&labels, &copy.labels));
    put(&mut metadata, "annotations", difference(&annotations, &copy.annotations));
    metadata.insert("uid".to_owned(), copy.uid.as_str().into());
    metadata.insert("resourceVersion".to_owned(), copy.resource_version.as_str().into());
    Some(Action::UpdateCopy { metadata: metadata.into() })
}

fn travelling(entries: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let travels = |key: &str| !keys::is_internal(key) && key != annotation::LAST_APPLIED;
    entries.iter().filter(|(key, _)| travels(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Merge patch from `have` to `wanted` that leaves other bookkeeping alone.
fn difference(wanted: &BTreeMap<String, String>, have: &BTreeMap<String, String>) -> Map<String, Value> {
    let set = wanted.iter().filter(|(key, value)| have.get(*key) != Some(value));
    let gone = have.keys().filter(|key| !wanted.contains_key(*key) && !keys::is_internal(key));
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

impl WorkerCopy {
    /// Whether an update can make it the copy of `original`: neither its type nor immutable content can be changed.
    fn can_become(&self, original: &Original) -> bool {
        let content: &Content = &self.content;
        content.same_type(&original.content) && (!self.immutable || *content == original.content)
    }

    /// UID of the computing cluster it belongs to; `None` on copies of the original.
    fn stamp(&self) -> Option<&str> {
        self.annotations.get(annotation::COMPUTING_CLUSTER_UID).map(String::as_str)
    }

    /// Labels of the bindings that use it.
    fn users(&self) -> impl Iterator<Item = &str> {
        self.labels.keys().map(String::as_str).filter(|key| key.starts_with(label::SYNCED_BY_PREFIX))
    }
}
