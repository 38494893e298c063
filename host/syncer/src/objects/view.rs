//! The two ways objects are seen: metadata only, in watches and indexes, and complete, for the moment of one reconcile.

use std::{borrow::Cow, collections::BTreeMap, marker::PhantomData};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kubeocean_api::keys::{self, annotation, label};
use serde::Deserialize;
use serde_json::Value;

use super::{
    content::Content,
    kind::{ObjectKind, ObjectRef},
    kinds::Reach,
    plan::Scope,
};
use kubeocean_runtime::meta::trimmed_meta;

/// Metadata of a `K`. Lists and watches of it ask the API server for metadata only, so content never travels, and
/// managed fields are not kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(bound = "")]
pub struct MetadataOf<K> {
    /// The metadata.
    #[serde(deserialize_with = "trimmed_meta")]
    pub metadata: ObjectMeta,
    #[serde(skip)]
    kind: PhantomData<fn() -> K>,
}

impl<K: Resource<DynamicType = ()>> Resource for MetadataOf<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn metadata_api() -> bool {
        true
    }
    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }
    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }
    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }
    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Which state of which object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Revision {
    /// UID.
    pub uid: String,
    /// Resource version.
    pub resource_version: String,
    /// Whether deletion has started.
    pub deleting: bool,
}

impl Revision {
    /// From decoded metadata.
    pub(super) fn of_meta(meta: &ObjectMeta) -> Self {
        Self {
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
        }
    }

    /// From an object's JSON.
    pub(super) fn of_json(object: &Value) -> Self {
        let text = |field: &str| {
            object
                .pointer("/metadata")
                .and_then(|meta| meta.get(field))
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        Self {
            uid: text("uid").to_owned(),
            resource_version: text("resourceVersion").to_owned(),
            deleting: !text("deletionTimestamp").is_empty(),
        }
    }

    /// Whether `self` is at least as new as `other`. Versions of different objects, and versions that are no numbers,
    /// count as newer: what was seen last wins.
    pub(super) fn is_current_beside(&self, other: &Self) -> bool {
        let number = |version: &Self| version.resource_version.parse::<u128>().ok();
        match (number(self), number(other)) {
            (Some(own), Some(other)) => own >= other,
            _ => true,
        }
    }
}

/// A vobj, complete.
#[derive(Debug, Clone)]
pub struct Original {
    /// UID.
    pub uid: String,
    /// Resource version.
    pub resource_version: String,
    /// Whether deletion has started.
    pub deleting: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Finalizers.
    pub finalizers: Vec<String>,
    /// When it was made, by its API server's clock.
    pub created: Option<Timestamp>,
    /// What its kind needs to tell whether an unstamped copy is of it.
    pub bearing: Content,
    /// Whether we have only just put our marks on it, so that they prove nothing of an unstamped copy (TD-1103).
    pub marks_are_new: bool,
}

impl Original {
    /// From the object's JSON.
    pub fn of(kind: ObjectKind, object: &Value) -> Self {
        let Revision { uid, resource_version, deleting } = Revision::of_json(object);
        let finalizers =
            object.pointer("/metadata/finalizers").and_then(Value::as_array).into_iter().flatten();
        Self {
            uid,
            resource_version,
            deleting,
            labels: strings(object, "/metadata/labels"),
            annotations: strings(object, "/metadata/annotations"),
            finalizers: finalizers.filter_map(Value::as_str).map(str::to_owned).collect(),
            created: created(object),
            bearing: kind.mapped().bearing(object),
            marks_are_new: false,
        }
    }
}

/// What is found in the worker cluster under the name of a copy, complete.
#[derive(Debug, Clone)]
pub struct WorkerCopy {
    /// UID.
    pub uid: String,
    /// Resource version.
    pub resource_version: String,
    /// Whether deletion has started.
    pub deleting: bool,
    /// Whether its content cannot be changed.
    pub immutable: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// When it was made, by its API server's clock.
    pub created: Option<Timestamp>,
    /// What it contains.
    pub content: Content,
}

impl WorkerCopy {
    /// From the object's JSON.
    pub fn of(kind: ObjectKind, object: &Value) -> Self {
        let Revision { uid, resource_version, deleting } = Revision::of_json(object);
        Self {
            uid,
            resource_version,
            deleting,
            immutable: object.get("immutable").and_then(Value::as_bool).unwrap_or(false),
            labels: strings(object, "/metadata/labels"),
            annotations: strings(object, "/metadata/annotations"),
            created: created(object),
            content: kind.mapped().stored(object),
        }
    }
}

/// The vobj a pobj says it is the copy of. `None` if its own name does not follow from that: then somebody copied it by
/// hand, and it is nobody's copy. Nor is it ours if it belongs to another computing cluster, or serves only others.
pub(super) fn original_of(kind: ObjectKind, scope: &Scope, meta: &ObjectMeta) -> Option<ObjectRef> {
    let annotation = |key: &str| meta.annotations.as_ref()?.get(key).map(String::as_str);
    if annotation(annotation::COMPUTING_CLUSTER_UID).is_some_and(|uid| uid != scope.computing_uid) {
        return None;
    }
    let mapped = kind.mapped();
    let in_cluster = mapped.reach() == Reach::Cluster;
    let namespace = annotation(annotation::VIRTUAL_NAMESPACE).or_else(|| in_cluster.then_some(""))?;
    let object = ObjectRef::new(kind, namespace, annotation(annotation::VIRTUAL_NAME)?);
    let places = mapped.places(&object, scope);
    let place = places.iter().position(|place| meta.name.as_ref() == Some(place))?;
    let is_shared_place = places.len() > 1 && place + 1 == places.len();
    let users = || meta.labels.iter().flatten().map(|(key, _)| key.as_str());
    let (mine, anyones) = (keys::synced_by(&scope.cluster_id), label::SYNCED_BY_PREFIX);
    let only_others = users().any(|key| key.starts_with(anyones)) && !users().any(|key| key == mine);
    (!(is_shared_place && only_others)).then_some(object)
}

fn created(object: &Value) -> Option<Timestamp> {
    object.pointer("/metadata/creationTimestamp").and_then(Value::as_str)?.parse().ok()
}

fn strings(object: &Value, pointer: &str) -> BTreeMap<String, String> {
    let entries = object.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
    entries.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}
