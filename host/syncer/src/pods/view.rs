//! The trimmed copies of pods that stay in memory.
//!
//! A vpod (computing cluster) and a ppod (its copy in the worker cluster) arrive as partial objects from a watch or
//! from the answer of a write, and become [`Vpod`] and [`Ppod`]: what the planners ask for, and nothing else. Of a
//! vpod's status only hashes per field and the conditions remain; a ppod's status is kept until it was mirrored.
//! Called by the index. Types are those that API servers keep to; what is only read, in a spec or a status, counts as
//! absent when it is malformed.

use std::{cell::LazyCell, sync::Arc};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kubeocean_api::{
    keys::{annotation, condition_type},
    name::ObjectKey,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, value::RawValue};

use super::{
    conditions::PackedConditions,
    status_hash::{self, StatusHashes},
    vpod_spec::{KnownSpecs, VpodSpec, vnode_in},
};
use crate::placement::pod_facts;
use kubeocean_engine::PodFacts;
use kubeocean_runtime::{
    meta::PackedMeta,
    packed::{PackedTexts, with_json_text},
    partial_resource, shared,
};

/// A pod of the computing cluster as a watch decodes it: the view, and the identity the watch itself needs. The whole
/// object lives only while it is decoded, so a long list never holds whole pods.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "VpodWire")]
pub struct VpodObject {
    /// Name, namespace, UID and version.
    pub metadata: ObjectMeta,
    /// The view; `None` for pods that are not on a vnode.
    pub view: Option<Box<Vpod>>,
}

/// A pod of the worker cluster as a watch decodes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "PpodWire")]
pub struct PpodObject {
    /// Name, namespace, UID and version.
    pub metadata: ObjectMeta,
    /// The view.
    pub view: Box<Ppod>,
}

partial_resource!(VpodObject, k8s_openapi::api::core::v1::Pod);
partial_resource!(PpodObject, k8s_openapi::api::core::v1::Pod);

/// A vpod on the wire. Its spec stays text until it is known whether it is to be read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct VpodWire {
    metadata: PackedMeta,
    spec: Option<Box<RawValue>>,
    status: Map<String, Value>,
}

/// A ppod on the wire.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct PpodWire {
    metadata: PackedMeta,
    spec: PpodSpec,
    status: Map<String, Value>,
}

impl From<VpodWire> for VpodObject {
    fn from(wire: VpodWire) -> Self {
        Self { metadata: wire.metadata.identity(), view: Vpod::parse(wire).map(Box::new) }
    }
}

impl From<PpodWire> for PpodObject {
    fn from(wire: PpodWire) -> Self {
        Self { metadata: wire.metadata.identity(), view: Box::new(Ppod::parse(wire)) }
    }
}

/// The part of a ppod's spec that is read.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct PpodSpec {
    #[serde(default)]
    node_name: Option<Box<str>>,
    #[serde(default)]
    active_deadline_seconds: Option<i64>,
    #[serde(default)]
    ephemeral_containers: Vec<Named>,
}

/// An element of a list of which only the name counts.
#[derive(Clone, Debug, Default, Deserialize)]
struct Named {
    #[serde(default)]
    name: Box<str>,
}

/// `status.phase`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Phase {
    /// Accepted, not all containers started.
    #[default]
    Pending,
    /// Bound and started.
    Running,
    /// All containers ended well.
    Succeeded,
    /// Ended, at least one container badly.
    Failed,
    /// The node does not answer.
    Unknown,
}

impl Phase {
    fn parse(status: &Map<String, Value>) -> Self {
        match status.get("phase").and_then(Value::as_str) {
            Some("Running") => Self::Running,
            Some("Succeeded") => Self::Succeeded,
            Some("Failed") => Self::Failed,
            Some("Unknown") => Self::Unknown,
            _ => Self::Pending,
        }
    }

    /// Whether no container will run again. A phase never leaves this state.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }

    /// As the API writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Unknown => "Unknown",
        }
    }
}

/// A deletion in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deletion {
    /// `deletionTimestamp`: when the grace period ends.
    pub deadline: Timestamp,
    /// `deletionGracePeriodSeconds`.
    pub grace_seconds: Option<i64>,
}

impl Deletion {
    /// Whether nobody waits for the containers to end.
    pub fn is_forced(self) -> bool {
        self.grace_seconds == Some(0)
    }
}

/// The first owner reference (TD-508).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// For example `ReplicaSet`.
    pub kind: Box<str>,
    /// Name of the owner.
    pub name: Box<str>,
    /// UID of the owner.
    pub uid: Box<str>,
}

/// A pod of the computing cluster.
#[derive(Clone, Debug)]
pub struct Vpod {
    /// Namespace and name.
    pub key: ObjectKey,
    /// UID.
    pub uid: Arc<str>,
    /// Version of this copy.
    pub resource_version: Box<str>,
    /// `spec.nodeName`; never changes once set, and vpods without one are not kept.
    pub node: Arc<str>,
    /// Set while it is deleted.
    pub deletion: Option<Deletion>,
    /// Whether a finalizer keeps it after its deletion.
    pub has_finalizers: bool,
    /// Labels.
    pub labels: PackedTexts,
    /// Annotations.
    pub annotations: PackedTexts,
    /// First owner.
    pub owner: Option<Owner>,
    /// Whether any owner is a DaemonSet.
    pub daemonset: bool,
    /// What is known of its spec.
    pub spec: Arc<VpodSpec>,
    /// What is known of its status.
    pub status: VpodStatus,
    /// What policies are told of it; only as long as it has shown no sign of a copy.
    pub place: Option<Arc<PodFacts>>,
}

/// What is kept of a vpod's status.
#[derive(Clone, Debug, Default)]
pub struct VpodStatus {
    /// Phase.
    pub phase: Phase,
    /// Whether anything that the Syncer reports of a copy is missing: no addresses, start time, message or container
    /// states, nor the condition that there is one. A tenant cannot write a status, so a status that is not blank proves
    /// that a ppod existed.
    pub blank: bool,
    /// `conditions`.
    pub conditions: PackedConditions,
    /// One hash per mirrored field.
    pub hashes: StatusHashes,
}

/// A pod of the worker cluster that carries our label.
#[derive(Clone, Debug)]
pub struct Ppod {
    /// Namespace and name.
    pub key: ObjectKey,
    /// UID.
    pub uid: Arc<str>,
    /// Version of this copy.
    pub resource_version: Box<str>,
    /// When it was created.
    pub created: Option<Timestamp>,
    /// Whether a scheduler or we put it on a node.
    pub scheduled: bool,
    /// Set while it is deleted.
    pub deletion: Option<Deletion>,
    /// Labels.
    pub labels: PackedTexts,
    /// Annotations.
    pub annotations: PackedTexts,
    /// `spec.activeDeadlineSeconds`.
    pub active_deadline_seconds: Option<i64>,
    /// Names of its debug containers.
    pub ephemeral_containers: Vec<Box<str>>,
    /// Its status.
    pub status: PpodStatus,
}

/// Status of a ppod.
#[derive(Clone, Debug, Default)]
pub struct PpodStatus {
    /// Phase.
    pub phase: Phase,
    /// Whether a kubelet has reported anything: the pod may have run.
    pub started: bool,
    /// Message of the worker's scheduler while it finds no place.
    pub unscheduled_message: Option<Box<str>>,
    /// Hash over the mirrored fields.
    pub hash: u64,
    /// The mirrored fields as JSON text, until they were written to the vpod.
    pub fields: Option<Arc<str>>,
}

/// Which vpod a ppod says it is the copy of. A claim, checked by [`super::ownership`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackReference {
    /// The vpod's key.
    pub key: ObjectKey,
    /// The vpod's UID; may be empty.
    pub uid: Box<str>,
}

impl Vpod {
    /// The view of a pod as the API server answers it; `None` if it is not on a vnode.
    pub fn from_json(pod: &Value) -> Option<Self> {
        Self::parse(VpodWire::deserialize(pod).ok()?)
    }

    /// The view of a decoded vpod; `None` if it is not on a vnode (TD-401).
    pub(super) fn parse(wire: VpodWire) -> Option<Self> {
        let VpodWire { metadata, spec, status } = wire;
        let text = spec.as_deref().map(RawValue::get).unwrap_or_default();
        let node = vnode_in(text)?.into();
        let whole = LazyCell::new(|| serde_json::from_str::<Value>(text).unwrap_or_default());
        let status = VpodStatus::parse(&status);
        let place = status.blank.then(|| Arc::new(pod_facts(&metadata, &whole)));
        let read = || VpodSpec::read(&metadata.name, &whole);
        let (uid, spec) = KnownSpecs::of_process().of(metadata.uid.into(), text, read);
        let owners = metadata.owner_references.unwrap_or_default();
        Some(Self {
            place,
            node,
            uid,
            spec,
            deletion: deletion(metadata.deletion_timestamp.as_ref(), metadata.deletion_grace_period_seconds),
            has_finalizers: metadata.finalizers.as_ref().is_some_and(|list| !list.is_empty()),
            labels: metadata.labels,
            annotations: metadata.annotations,
            daemonset: owners.iter().any(|owner| owner.kind == "DaemonSet"),
            owner: owners.into_iter().next().map(|owner| Owner {
                kind: owner.kind.into(),
                name: owner.name.into(),
                uid: owner.uid.into(),
            }),
            status,
            key: ObjectKey::new(shared::text(&metadata.namespace), metadata.name),
            resource_version: metadata.resource_version.into(),
        })
    }

    /// A non-empty annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        non_empty(&self.annotations, key)
    }

    /// UID of the ppod that was recorded on the vpod: a hint, since tenants can write it.
    pub fn recorded_uid(&self) -> Option<&str> {
        self.annotation(annotation::PHYSICAL_POD_UID)
    }

    /// Whether the vpod names this ppod.
    pub fn is_mapped_to(&self, ppod: &ObjectKey) -> bool {
        self.annotation(annotation::PHYSICAL_POD_NAMESPACE) == Some(&*ppod.namespace)
            && self.annotation(annotation::PHYSICAL_POD_NAME) == Some(&*ppod.name)
    }
}

/// Fields of which a vpod has none before it has a ppod.
pub(super) const REPORTED: [&str; 6] =
    ["hostIP", "podIP", "startTime", "message", "containerStatuses", "initContainerStatuses"];

impl VpodStatus {
    fn parse(status: &Map<String, Value>) -> Self {
        let phase = Phase::parse(status);
        let reported = REPORTED.iter().any(|field| is_set(status.get(*field)));
        Self {
            phase,
            blank: phase == Phase::Pending && !reported && !has_copy(status),
            conditions: PackedConditions::of(status.get("conditions")),
            hashes: status_hash::of_fields(status),
        }
    }
}

/// Whether the status says that there is a ppod that has reported nothing yet.
fn has_copy(status: &Map<String, Value>) -> bool {
    let conditions = status.get("conditions").and_then(Value::as_array);
    conditions
        .into_iter()
        .flatten()
        .any(|it| it["type"] == condition_type::WORKER_POD_CREATED && it["status"] == "True")
}

impl Ppod {
    /// The view of a pod as the API server answers it; `None` for anything else.
    pub fn from_json(pod: &Value) -> Option<Self> {
        Some(Self::parse(PpodWire::deserialize(pod).ok()?))
    }

    /// The view of a decoded ppod.
    pub(super) fn parse(wire: PpodWire) -> Self {
        let PpodWire { metadata, spec, status } = wire;
        Self {
            key: ObjectKey::new(shared::text(&metadata.namespace), metadata.name),
            uid: metadata.uid.into(),
            resource_version: metadata.resource_version.into(),
            created: metadata.creation_timestamp.map(|time| time.0),
            scheduled: spec.node_name.as_ref().is_some_and(|node| !node.is_empty()),
            deletion: deletion(metadata.deletion_timestamp.as_ref(), metadata.deletion_grace_period_seconds),
            labels: metadata.labels,
            annotations: metadata.annotations,
            active_deadline_seconds: spec.active_deadline_seconds,
            ephemeral_containers: spec.ephemeral_containers.into_iter().map(|named| named.name).collect(),
            status: PpodStatus::parse(status),
        }
    }

    /// A non-empty annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        non_empty(&self.annotations, key)
    }

    /// The vpod it names; `None` without namespace or name.
    pub fn back_reference(&self) -> Option<BackReference> {
        Some(BackReference {
            key: ObjectKey::new(
                shared::text(self.annotation(annotation::VIRTUAL_POD_NAMESPACE)?),
                self.annotation(annotation::VIRTUAL_POD_NAME)?,
            ),
            uid: self.annotation(annotation::VIRTUAL_POD_UID).unwrap_or_default().into(),
        })
    }
}

impl PpodStatus {
    fn parse(mut status: Map<String, Value>) -> Self {
        status.retain(|field, value| status_hash::FIELDS.contains(&field.as_str()) && !value.is_null());
        let unscheduled = status.get("conditions").and_then(Value::as_array).and_then(|conditions| {
            conditions
                .iter()
                .find(|condition| condition["type"] == "PodScheduled" && condition["status"] == "False")
        });
        Self {
            phase: Phase::parse(&status),
            started: ["startTime", "hostIP", "containerStatuses"]
                .iter()
                .any(|field| is_set(status.get(*field))),
            unscheduled_message: unscheduled
                .and_then(|condition| condition["message"].as_str())
                .filter(|message| !message.is_empty())
                .map(Into::into),
            hash: status_hash::of_fields(&status).total(),
            fields: Some(with_json_text(&status, |text| text.into())),
        }
    }
}

fn deletion(
    timestamp: Option<&k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
    grace_seconds: Option<i64>,
) -> Option<Deletion> {
    timestamp.map(|time| Deletion { deadline: time.0, grace_seconds })
}

fn is_set(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => !text.is_empty(),
        Some(Value::Array(list)) => !list.is_empty(),
        Some(_) => true,
    }
}

fn non_empty<'a>(metadata: &'a PackedTexts, key: &str) -> Option<&'a str> {
    metadata.get(key).filter(|value| !value.is_empty())
}
