//! Whose copy an object of the worker cluster is (TD-1103), and the proof without which no such object is written.
//!
//! In: our stamp, the vobj, and what is found under the name of its copy. Out: an [`Ownership`]. Invariant: an [`OwnedCopy`] can
//! only be made here, and every write to an existing object of the worker cluster takes one.

use jiff::SignedDuration;
use kubeocean_api::keys::{self, annotation, label};
use serde::Serialize;

use super::{
    kind::ObjectRef,
    kinds::Reach,
    plan::Scope,
    view::{Original, WorkerCopy},
};

/// The clocks of two clusters may differ by this much.
const CLOCKS_APART: SignedDuration = SignedDuration::from_mins(10);

/// Proof that a copy is ours.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OwnedCopy {
    place: String,
    uid: String,
}

impl OwnedCopy {
    /// Its name in the worker cluster.
    pub(super) fn place(&self) -> &str {
        &self.place
    }
    /// Its UID; a precondition of every write.
    pub fn uid(&self) -> &str {
        &self.uid
    }
}

/// Result of the check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Ownership {
    /// Of this vobj.
    Ours(OwnedCopy),
    /// Of a former vobj of that name.
    Stale(OwnedCopy),
    /// Of somebody else. Never written.
    Foreign { owner: String },
}

/// Says whose copy the object `copy` at `place` is. `original` is compared by UID; without it only names and stamps count.
pub(super) fn ownership(
    scope: &Scope,
    object: &ObjectRef,
    original: Option<&Original>,
    place: &str,
    copy: &WorkerCopy,
) -> Ownership {
    let annotation = |key: &str| copy.annotations.get(key).map(String::as_str);
    let foreign = |owner: &str| Ownership::Foreign { owner: owner.to_owned() };
    let stamp = annotation(annotation::COMPUTING_CLUSTER_UID);
    if stamp.is_some_and(|stamp| stamp != scope.computing_uid) {
        return foreign("another computing cluster");
    }
    let managed = copy.labels.get(label::MANAGED_BY).is_some_and(|value| value == label::MANAGED_BY_VALUE);
    // A stamped copy that lost its label is still ours; an unstamped object without the label never was.
    if !managed && stamp.is_none() {
        return foreign("the worker cluster");
    }
    let (name, namespace) = (annotation(annotation::VIRTUAL_NAME), annotation(annotation::VIRTUAL_NAMESPACE));
    // Of an object without namespace the original leaves the annotation empty or out.
    let namespace = namespace.or_else(|| (object.kind.mapped().reach() == Reach::Cluster).then_some(""));
    if name != Some(&*object.key.name) || namespace != Some(&*object.key.namespace) {
        return foreign(&format!("{}/{}", namespace.unwrap_or_default(), name.unwrap_or_default()));
    }
    if stamp.is_none() && !original.is_some_and(|original| is_adoptable(scope, object, original, copy)) {
        return foreign("an earlier Kubeocean, which did not make it for this object");
    }
    let owned = OwnedCopy { place: place.to_owned(), uid: copy.uid.clone() };
    match (annotation(annotation::VIRTUAL_UID), original) {
        (Some(uid), Some(original)) if uid != original.uid => Ownership::Stale(owned),
        _ => Ownership::Ours(owned),
    }
}

/// Whether an unstamped copy can only have been made for this vobj. The original Kubeocean writes neither stamp nor UID, but
/// marks the vobj before it makes the copy: of another computing cluster's copy that happens to have the name, the vobj here
/// has no marks, or none but ours of just now. A tenant may forge them, so the copy must also be younger than the vobj, and
/// of the same storage.
fn is_adoptable(scope: &Scope, object: &ObjectRef, original: &Original, copy: &WorkerCopy) -> bool {
    let older = original.created.zip(copy.created);
    let older = older.is_some_and(|(original, copy)| original.duration_since(copy) > CLOCKS_APART);
    let marked = is_held(scope, original) && !original.marks_are_new;
    !older && marked && object.kind.mapped().is_of(&original.bearing, &copy.content, scope)
}

/// Whether the vobj carries anything of this binding.
pub(super) fn is_held(scope: &Scope, original: &Original) -> bool {
    original.finalizers.contains(&keys::object_finalizer(&scope.cluster_id))
        || original.labels.contains_key(&keys::synced_by(&scope.cluster_id))
        || original.annotations.contains_key(&keys::deleting(&scope.cluster_id))
}

/// Whether the place of the copy is read although nothing is known to be there. Without a vobj to copy no write tells that
/// somebody else has the place. Without marks of ours the write would tell too late: they come first, and would then be the
/// proof that an unstamped copy is ours.
pub(super) fn has_to_look(scope: &Scope, original: Option<&Original>) -> bool {
    original.is_none_or(|original| original.deleting || !is_held(scope, original))
}

/// What the looks at one vobj since its copy was last in order, with writes of ours between them, tell of its marks.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// UID of the vobj that had none.
    missed: Option<String>,
}

impl Marks {
    /// Whether those that it has now came after an earlier look.
    pub(super) fn are_new(&mut self, scope: &Scope, original: &Original) -> bool {
        if is_held(scope, original) {
            return self.missed.as_ref() == Some(&original.uid);
        }
        self.missed = Some(original.uid.clone());
        false
    }
}

impl WorkerCopy {
    /// Labels of the bindings that use it.
    pub(super) fn users(&self) -> impl Iterator<Item = &str> {
        self.labels.keys().map(String::as_str).filter(|key| key.starts_with(label::SYNCED_BY_PREFIX))
    }
}
