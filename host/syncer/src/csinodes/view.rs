//! A CSINode of either cluster, without what is not used.

use k8s_openapi::{
    api::storage::v1::{CSINode, CSINodeDriver, CSINodeSpec},
    apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference},
};
use kubeocean_api::keys::{annotation, label};
use kubeocean_runtime::{meta::trimmed_meta, metadata_readers, partial_resource};
use serde::Deserialize;

use crate::nodes::view::Texts;

/// An original of the worker cluster, or a copy.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct CsiNode {
    /// Without managedFields and kubectl's last-applied copy.
    #[serde(deserialize_with = "trimmed_meta")]
    pub metadata: ObjectMeta,
    /// Drivers.
    #[serde(default)]
    pub spec: CSINodeSpec,
}

partial_resource!(CsiNode, CSINode);
metadata_readers!(CsiNode: name, uid, resource_version, label, annotation);

impl CsiNode {
    /// A deletion is under way.
    pub fn deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Labels.
    pub fn labels(&self) -> Texts {
        self.metadata.labels.clone().unwrap_or_default()
    }

    /// Annotations but for the time of the last write, which says nothing about the content.
    pub fn annotations(&self) -> Texts {
        let mut annotations = self.metadata.annotations.clone().unwrap_or_default();
        annotations.remove(annotation::LAST_SYNC_TIME);
        annotations
    }

    /// Owners.
    pub fn owners(&self) -> &[OwnerReference] {
        self.metadata.owner_references.as_deref().unwrap_or_default()
    }

    /// Label `managed-by`.
    pub fn is_managed(&self) -> bool {
        self.label(label::MANAGED_BY) == Some(label::MANAGED_BY_VALUE)
    }

    /// The driver of this name.
    pub fn driver(&self, name: &str) -> Option<&CSINodeDriver> {
        self.spec.drivers.iter().find(|driver| driver.name == name)
    }
}
