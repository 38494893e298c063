//! Labels and annotations that follow each other in both directions (TD-801).
//!
//! The ppod's annotation `expected-metadata` remembers what was last pushed down. Against it the planner sees who
//! changed a key: the vpod (push down), the ppod (push up), or both (the vpod wins). A key that exists only on the
//! ppod is never removed; one that vanished from the vpod vanishes from the ppod. Absent and empty differ.
//! Pure; called by the planner. Invariants: bookkeeping keys never travel; applying a merge and merging again gives
//! nothing.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use kubeocean_api::keys::{self, annotation};
use kubeocean_runtime::packed::PackedTexts;
use serde::{Deserialize, Serialize};

use super::view::{Ppod, Vpod};

type Texts = BTreeMap<String, String>;

/// Annotations of a worker that mean nothing elsewhere and are not reported to the vpod. Prefixes of keys.
const WORKER_ONLY_PREFIXES: [&str; 9] = [
    "node.alpha.kubernetes.io/",
    "csi.volume.kubernetes.io/",
    "volumes.kubernetes.io/controller-managed-attach-detach",
    "kubeadm.alpha.kubernetes.io/",
    "projectcalico.org/",
    "cni.projectcalico.org/",
    "flannel.alpha.coreos.com/",
    "k8s.v1.cni.cncf.io/",
    "k8s.ovn.org/",
];

/// Largest encoded `expected-metadata`. With the metadata itself it stays below the 256 KiB that an object's
/// annotations may take; above it, metadata is copied at creation and not followed afterwards.
pub const EXPECTED_MAX_BYTES: usize = 128 * 1024;

/// What was last pushed down, as annotation `expected-metadata` holds it: base64 of JSON, empty maps left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Expected {
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: Texts,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: Texts,
}

impl Expected {
    /// What of a vpod's metadata its copy carries.
    pub fn of(labels: &PackedTexts, annotations: &PackedTexts) -> Self {
        let travelling = |all: &PackedTexts| {
            all.iter()
                .filter(|(key, _)| travels_down(key))
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .collect()
        };
        Self { labels: travelling(labels), annotations: travelling(annotations) }
    }

    /// Value of the annotation; `None` when it would be too large.
    pub fn encode(&self) -> Option<String> {
        let json = serde_json::to_vec(self).expect("maps of strings are JSON");
        let encoded = STANDARD.encode(json);
        (encoded.len() <= EXPECTED_MAX_BYTES).then_some(encoded)
    }

    /// Reads the annotation; `None` when it is not what a Syncer wrote.
    pub fn decode(text: &str) -> Option<Self> {
        serde_json::from_slice(&STANDARD.decode(text).ok()?).ok()
    }
}

/// Keys to set (`Some`) or to remove (`None`).
pub type KeyChanges = BTreeMap<String, Option<String>>;

/// A change of labels and annotations.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MetadataChange {
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: KeyChanges,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: KeyChanges,
}

impl MetadataChange {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.annotations.is_empty()
    }
}

/// What to change on the ppod so that it follows the vpod.
pub fn plan_down(vpod: &Vpod, ppod: &Ppod) -> MetadataChange {
    let Some(previous) = previous(ppod) else { return MetadataChange::default() };
    let current = Expected::of(&vpod.labels, &vpod.annotations);
    let mut change = MetadataChange {
        labels: down(&previous.labels, &current.labels, &ppod.labels),
        annotations: down(&previous.annotations, &current.annotations, &ppod.annotations),
    };
    if current != previous {
        // Without the annotation the copy is not followed from now on, in either direction.
        change.annotations.insert(annotation::EXPECTED_METADATA.to_owned(), current.encode());
    }
    change
}

/// What to change on the vpod so that it shows what was changed on the ppod. `deny` are prefixes of keys that stay
/// in the worker cluster, beside the built-in ones.
pub fn plan_up(vpod: &Vpod, ppod: &Ppod, deny: &[String]) -> MetadataChange {
    let Some(previous) = previous(ppod) else { return MetadataChange::default() };
    MetadataChange {
        labels: up(&previous.labels, &vpod.labels, &ppod.labels, deny),
        annotations: up(&previous.annotations, &vpod.annotations, &ppod.annotations, deny),
    }
}

/// Whether a key of a vpod is copied to its ppod.
pub fn travels_down(key: &str) -> bool {
    !keys::is_internal(key) && key != annotation::LAST_APPLIED
}

fn travels_up(key: &str, deny: &[String]) -> bool {
    travels_down(key)
        && !WORKER_ONLY_PREFIXES.iter().any(|prefix| key.starts_with(prefix))
        && !deny.iter().any(|prefix| key.starts_with(prefix.as_str()))
}

/// A ppod without the annotation is not followed (TD-801); one with garbage is treated as if nothing had been pushed.
fn previous(ppod: &Ppod) -> Option<Expected> {
    ppod.annotations.get(annotation::EXPECTED_METADATA).map(|text| Expected::decode(text).unwrap_or_default())
}

fn down(previous: &Texts, current: &Texts, copy: &PackedTexts) -> KeyChanges {
    let mut changes = KeyChanges::new();
    let mut there = copy.ascending();
    for (key, value) in current {
        if previous.get(key) != Some(value) && there.get(key) != Some(value.as_str()) {
            changes.insert(key.clone(), Some(value.clone()));
        }
    }
    let mut there = copy.ascending();
    for key in previous.keys().filter(|key| travels_down(key)) {
        if !current.contains_key(key) && there.get(key).is_some() {
            changes.insert(key.clone(), None);
        }
    }
    changes
}

fn up(previous: &Texts, original: &PackedTexts, copy: &PackedTexts, deny: &[String]) -> KeyChanges {
    let mut original = original.ascending();
    copy.iter()
        .filter(|(key, value)| {
            let pushed = previous.get(*key).map(String::as_str);
            let edited_on_copy = pushed != Some(*value);
            let untouched_on_original = pushed == original.get(key);
            edited_on_copy && untouched_on_original && travels_up(key, deny)
        })
        .map(|(key, value)| (key.to_owned(), Some(value.to_owned())))
        .collect()
}
