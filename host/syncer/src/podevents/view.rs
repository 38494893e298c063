//! The trimmed copy of a worker event. Both recorders of Kubernetes are read: the old one counts in `count`, the new one
//! in `series`. Called by the watch. Invariant: parsing never fails; a malformed field counts as absent.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, Time};
use kubeocean_api::name::ObjectKey;
use kubeocean_runtime::{
    events::{Severity, cut},
    meta::trimmed_meta,
    partial_resource,
};
use serde::Deserialize;

use crate::config::PodEvents;

/// Normal events that say why a pod does not run: a probe or an eviction ended a container, an image cannot be pulled yet.
const TELL_WHY: [&str; 2] = [KILLING, "BackOff"];
/// Also said of each container of a pod that somebody deletes, who knows why.
const KILLING: &str = "Killing";

/// Longest message that is kept and shown, in bytes.
const MESSAGE_MAX_BYTES: usize = 1024;

/// A worker event as the watch decodes it.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "Wire")]
pub struct EventObject {
    /// Name, namespace, UID and version.
    pub metadata: ObjectMeta,
    /// The view.
    pub view: WorkerEvent,
}

partial_resource!(EventObject, k8s_openapi::api::core::v1::Event);

/// What somebody in the worker cluster says about a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerEvent {
    /// Name of the event object in the mount namespace.
    pub name: Box<str>,
    /// The pod it is about.
    pub pod: ObjectKey,
    /// UID of that pod; events without one are about nobody.
    pub pod_uid: Box<str>,
    /// What is said.
    pub news: News,
    /// How often and when.
    pub seen: Seen,
}

/// The words of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// How serious it is.
    pub severity: Severity,
    /// For example `FailedScheduling`.
    pub reason: Box<str>,
    /// For humans.
    pub message: Box<str>,
    /// Part of the pod, for example `spec.containers{main}`; may be empty.
    pub field_path: Box<str>,
    /// Who says it, for example `kubelet`.
    pub component: Box<str>,
    /// Whether it is said on a node: then the vnode is named as its source.
    pub on_node: bool,
}

impl News {
    /// Whether a vpod gets it.
    pub(super) fn is_wanted(&self, wanted: PodEvents) -> bool {
        wanted == PodEvents::All || self.severity == Severity::Warning || TELL_WHY.contains(&&*self.reason)
    }

    /// Whether it says of a pod that is being deleted what was to be expected.
    pub(super) fn is_of_an_end(&self) -> bool {
        self.severity == Severity::Normal && *self.reason == *KILLING
    }
}

/// How often something was seen, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Times.
    pub count: i64,
    /// The first time.
    pub first: Timestamp,
    /// The last time.
    pub last: Timestamp,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Wire {
    #[serde(deserialize_with = "trimmed_meta")]
    metadata: ObjectMeta,
    involved_object: WireObject,
    reason: Option<String>,
    message: Option<String>,
    #[serde(rename = "type")]
    severity: Option<String>,
    source: WireSource,
    reporting_component: Option<String>,
    event_time: Option<MicroTime>,
    first_timestamp: Option<Time>,
    last_timestamp: Option<Time>,
    count: Option<i64>,
    series: Option<WireSeries>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireObject {
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
    field_path: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct WireSource {
    component: Option<String>,
    host: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct WireSeries {
    count: Option<i64>,
    last_observed_time: Option<MicroTime>,
}

impl From<Wire> for EventObject {
    fn from(wire: Wire) -> Self {
        let text = |field: Option<String>| -> Box<str> { field.unwrap_or_default().into() };
        let series = wire.series.unwrap_or_default();
        let created = wire.metadata.creation_timestamp.as_ref().map(|time| time.0);
        let observed = wire.event_time.map(|time| time.0);
        let first = wire.first_timestamp.map(|time| time.0).or(observed).or(created);
        let last = series.last_observed_time.map(|time| time.0);
        let last = last.or(wire.last_timestamp.map(|time| time.0)).or(observed).or(first);
        let reporter = wire.source.component.filter(|component| !component.is_empty());
        let object = wire.involved_object;
        let view = WorkerEvent {
            name: wire.metadata.name.clone().unwrap_or_default().into(),
            pod: ObjectKey::new(object.namespace.unwrap_or_default(), object.name.unwrap_or_default()),
            pod_uid: text(object.uid),
            news: News {
                severity: match wire.severity.as_deref() {
                    Some("Warning") => Severity::Warning,
                    _ => Severity::Normal,
                },
                reason: text(wire.reason),
                message: cut(wire.message.as_deref().unwrap_or_default(), MESSAGE_MAX_BYTES).into(),
                field_path: text(object.field_path),
                component: text(reporter.or(wire.reporting_component)),
                on_node: wire.source.host.is_some_and(|host| !host.is_empty()),
            },
            seen: Seen {
                count: series.count.or(wire.count).unwrap_or(1).max(1),
                first: first.unwrap_or(Timestamp::UNIX_EPOCH),
                last: last.unwrap_or(Timestamp::UNIX_EPOCH),
            },
        };
        Self { metadata: wire.metadata, view }
    }
}
