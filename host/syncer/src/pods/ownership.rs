//! Whose copy a ppod is (TD-1103), and the proof without which no ppod is written.
//!
//! In: a ppod as seen in the worker cluster, our stamp, and the vpod read from the computing cluster. Out: an
//! [`Ownership`]. Annotations on the vpod play no part: tenants can write them, nobody but a Syncer stamps ppods.
//! Invariant: an [`Owned`] can only be made here, and every write to a ppod takes one.

use std::sync::Arc;

use kubeocean_api::{
    keys::{annotation, label},
    name::ObjectKey,
};
use serde::{Serialize, Serializer};

use super::view::Ppod;

/// What this Syncer writes on every ppod it makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Name of the binding, in label `cluster-binding`.
    pub binding: Arc<str>,
    /// UID of the computing cluster's namespace `kube-system`, in annotation `computing-cluster-uid`.
    pub computing_cluster_uid: Arc<str>,
}

/// The vpod a ppod should be the copy of.
#[derive(Clone, Copy, Debug)]
pub struct Claim<'a> {
    /// Key of the vpod.
    pub key: &'a ObjectKey,
    /// UID of the vpod; `None` when there is no vpod of this key.
    pub uid: Option<&'a str>,
}

/// Proof that a ppod was made by this binding, and exactly which version of it was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Owned {
    #[serde(serialize_with = "as_text")]
    key: ObjectKey,
    uid: Arc<str>,
    #[serde(skip)]
    resource_version: Box<str>,
}

impl Owned {
    /// Namespace and name of the ppod.
    pub fn key(&self) -> &ObjectKey {
        &self.key
    }
    /// UID of the ppod; a precondition of every write.
    pub fn uid(&self) -> &str {
        &self.uid
    }
    /// Version the decision was made on.
    pub fn resource_version(&self) -> &str {
        &self.resource_version
    }
}

/// Result of the check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// Ours, and the copy of exactly this vpod.
    Ours(Owned),
    /// Without a stamp, but its UID names exactly this vpod: made by the original, to be stamped.
    Legacy(Owned),
    /// Made for an earlier vpod of this name.
    Stale(Owned),
    /// Not ours; the text says why. Never written.
    Foreign(String),
}

impl Ownership {
    /// Whether the ppod is the copy of exactly this vpod.
    pub fn current(&self) -> Option<&Owned> {
        match self {
            Self::Ours(owned) | Self::Legacy(owned) => Some(owned),
            Self::Stale(_) | Self::Foreign(_) => None,
        }
    }
}

/// Whether a pod that is not marked as managed is the stamped copy of exactly this vpod: then it has lost its label.
pub fn lost_label(ppod: &Ppod, stamp: &Stamp, claim: Claim<'_>) -> Option<Owned> {
    let mut marked = ppod.clone();
    marked.labels = marked.labels.with(label::MANAGED_BY, label::MANAGED_BY_VALUE);
    match check(&marked, stamp, claim) {
        Ownership::Ours(owned) => Some(owned),
        Ownership::Legacy(_) | Ownership::Stale(_) | Ownership::Foreign(_) => None,
    }
}

/// Says whose copy a ppod is.
pub fn check(ppod: &Ppod, stamp: &Stamp, claim: Claim<'_>) -> Ownership {
    let foreign = |why: String| Ownership::Foreign(why);
    if ppod.labels.get(label::MANAGED_BY).is_none_or(|value| value != label::MANAGED_BY_VALUE) {
        return foreign("it is not managed by Kubeocean".to_owned());
    }
    let binding = ppod.labels.get(label::CLUSTER_BINDING).filter(|value| !value.is_empty());
    let cluster = ppod.annotation(annotation::COMPUTING_CLUSTER_UID);
    if let Some(binding) = binding.filter(|binding| **binding != *stamp.binding) {
        return foreign(format!("it belongs to the ClusterBinding {binding}"));
    }
    if cluster.is_some_and(|cluster| *cluster != *stamp.computing_cluster_uid) {
        return foreign("it belongs to another computing cluster".to_owned());
    }
    let Some(reference) = ppod.back_reference() else {
        return foreign("it does not name a pod of this cluster".to_owned());
    };
    if reference.key != *claim.key {
        return foreign(format!("it is the copy of {}", reference.key));
    }
    let owned = Owned {
        key: ppod.key.clone(),
        uid: ppod.uid.clone(),
        resource_version: ppod.resource_version.clone(),
    };
    let exact = claim.uid.is_some_and(|uid| *uid == *reference.uid);
    let stamped = binding.is_some() && cluster.is_some();
    match (stamped, exact) {
        (true, true) => Ownership::Ours(owned),
        (true, false) => Ownership::Stale(owned),
        (false, true) => Ownership::Legacy(owned),
        // The original did not stamp. Without the UID of a vpod we have, it may be the copy of another cluster's pod:
        // names of vnodes and pods are no proof, two computing clusters can have the same.
        (false, false) => foreign("it carries neither our stamp nor the UID of the pod".to_owned()),
    }
}

/// Serialises anything by its text form.
pub(crate) fn as_text<T: std::fmt::Display, S: Serializer>(
    value: &T,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
