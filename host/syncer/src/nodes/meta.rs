//! What is kept of a node's metadata, beside its labels and annotations.
//!
//! Those are packed and belong to the node itself ([`super::view::NodeView`]); here they are not even absent, so that nobody
//! reads none where there are some.

use jiff::Timestamp;
use kubeocean_runtime::meta::PackedMeta;

use crate::tombstones::{Versioned, parsed_version};

/// Who a node is, and in which state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeMeta {
    /// `metadata.name`.
    pub name: Box<str>,
    /// `metadata.uid`.
    pub uid: Box<str>,
    /// `metadata.resourceVersion`.
    pub resource_version: Box<str>,
    /// `metadata.creationTimestamp`.
    pub created: Option<Timestamp>,
    /// There is a `metadata.deletionTimestamp`.
    pub deleting: bool,
    /// `metadata.finalizers`.
    pub finalizers: Box<[String]>,
}

impl From<PackedMeta> for NodeMeta {
    fn from(metadata: PackedMeta) -> Self {
        Self {
            name: metadata.name.into(),
            uid: metadata.uid.into(),
            resource_version: metadata.resource_version.into(),
            created: metadata.creation_timestamp.map(|time| time.0),
            deleting: metadata.deletion_timestamp.is_some(),
            finalizers: metadata.finalizers.unwrap_or_default().into(),
        }
    }
}

impl Versioned for NodeMeta {
    fn uid(&self) -> &str {
        &self.uid
    }
    fn version(&self) -> u64 {
        parsed_version(&self.resource_version)
    }
}

#[cfg(test)]
mod tests {
    use std::mem::size_of;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    /// Thousands of nodes stay in memory.
    #[test]
    fn it_is_a_fraction_of_whole_metadata() {
        let (ours, whole) = (size_of::<NodeMeta>(), size_of::<ObjectMeta>());
        assert!(ours <= 96 && 3 * ours <= whole, "{ours} bytes of {whole}");
    }
}
