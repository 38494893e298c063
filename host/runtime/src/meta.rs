//! Partial Kubernetes types: a watch decodes only the fields that are used.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kubeocean_api::keys::annotation::LAST_APPLIED;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

use crate::packed::PackedTexts;

/// Implements `kube::Resource` for a partial struct that has a field `metadata: ObjectMeta`. Kind, group, version,
/// plural and scope are those of the complete type.
///
/// ```ignore
/// #[derive(Clone, Debug, serde::Deserialize)]
/// pub struct WorkerNode {
///     #[serde(deserialize_with = "trimmed_meta")]
///     pub metadata: ObjectMeta,
///     pub spec: NodeSpec,
/// }
/// partial_resource!(WorkerNode, k8s_openapi::api::core::v1::Node);
/// ```
#[macro_export]
macro_rules! partial_resource {
    ($partial:ty, $whole:ty) => {
        impl kube::Resource for $partial {
            type DynamicType = ();
            type Scope = <$whole as kube::Resource>::Scope;

            fn kind((): &()) -> std::borrow::Cow<'_, str> {
                <$whole as kube::Resource>::kind(&())
            }
            fn group((): &()) -> std::borrow::Cow<'_, str> {
                <$whole as kube::Resource>::group(&())
            }
            fn version((): &()) -> std::borrow::Cow<'_, str> {
                <$whole as kube::Resource>::version(&())
            }
            fn plural((): &()) -> std::borrow::Cow<'_, str> {
                <$whole as kube::Resource>::plural(&())
            }
            fn meta(&self) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &self.metadata
            }
            fn meta_mut(&mut self) -> &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

/// Implements readers of the `metadata` of a partial struct, those that are named: `name`, `uid` and `resource_version`
/// give an empty text where there is none, `label` and `annotation` give one by its key.
///
/// ```ignore
/// metadata_readers!(WorkerNode: name, uid, label);
/// ```
#[macro_export]
macro_rules! metadata_readers {
    (@name) => {
        /// `metadata.name`.
        pub fn name(&self) -> &str {
            self.metadata.name.as_deref().unwrap_or_default()
        }
    };
    (@uid) => {
        /// `metadata.uid`.
        pub fn uid(&self) -> &str {
            self.metadata.uid.as_deref().unwrap_or_default()
        }
    };
    (@resource_version) => {
        /// `metadata.resourceVersion`.
        pub fn resource_version(&self) -> &str {
            self.metadata.resource_version.as_deref().unwrap_or_default()
        }
    };
    (@label) => {
        /// A label.
        pub fn label(&self, key: &str) -> Option<&str> {
            self.metadata.labels.as_ref()?.get(key).map(String::as_str)
        }
    };
    (@annotation) => {
        /// An annotation.
        pub fn annotation(&self, key: &str) -> Option<&str> {
            self.metadata.annotations.as_ref()?.get(key).map(String::as_str)
        }
    };
    ($partial:ty: $($reader:ident),+) => {
        impl $partial {
            $($crate::metadata_readers!(@$reader);)+
        }
    };
}

/// Decodes object metadata without `managedFields` and without kubectl's copy of the manifest, which together are
/// most of an object's bytes. For `#[serde(deserialize_with = "...")]`.
pub fn trimmed_meta<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Wire {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        generation: Option<i64>,
        creation_timestamp: Option<Time>,
        deletion_timestamp: Option<Time>,
        deletion_grace_period_seconds: Option<i64>,
        labels: Option<BTreeMap<String, String>>,
        annotations: Option<BTreeMap<String, String>>,
        finalizers: Option<Vec<String>>,
        owner_references: Option<Vec<OwnerReference>>,
    }
    let mut wire = Wire::deserialize(deserializer)?;
    if let Some(annotations) = &mut wire.annotations {
        annotations.remove(LAST_APPLIED);
    }
    Ok(ObjectMeta {
        name: wire.name,
        namespace: wire.namespace,
        uid: wire.uid,
        resource_version: wire.resource_version,
        generation: wire.generation,
        creation_timestamp: wire.creation_timestamp,
        deletion_timestamp: wire.deletion_timestamp,
        deletion_grace_period_seconds: wire.deletion_grace_period_seconds,
        labels: wire.labels,
        annotations: wire.annotations,
        finalizers: wire.finalizers,
        owner_references: wire.owner_references,
        ..ObjectMeta::default()
    })
}

/// Object metadata as [`trimmed_meta`] decodes it, packed: for kinds of which thousands are decoded a minute.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PackedMeta {
    /// Name.
    pub name: String,
    /// Namespace; empty for a kind that has none.
    pub namespace: String,
    /// UID.
    pub uid: String,
    /// Version of this copy.
    pub resource_version: String,
    /// When it was created.
    pub creation_timestamp: Option<Time>,
    /// Set while it is deleted.
    pub deletion_timestamp: Option<Time>,
    /// How long its containers may take to end.
    pub deletion_grace_period_seconds: Option<i64>,
    /// All labels.
    #[serde(deserialize_with = "absent_is_empty")]
    pub labels: PackedTexts,
    /// All annotations but kubectl's copy of the manifest.
    #[serde(deserialize_with = "without_last_applied")]
    pub annotations: PackedTexts,
    /// What keeps it after its deletion.
    pub finalizers: Option<Vec<String>>,
    /// Owners.
    pub owner_references: Option<Vec<OwnerReference>>,
}

impl PackedMeta {
    /// Who it is: all that a watch needs.
    pub fn identity(&self) -> ObjectMeta {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        ObjectMeta {
            name: some(&self.name),
            namespace: some(&self.namespace),
            uid: some(&self.uid),
            resource_version: some(&self.resource_version),
            ..ObjectMeta::default()
        }
    }
}

fn absent_is_empty<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PackedTexts, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn without_last_applied<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PackedTexts, D::Error> {
    let annotations = absent_is_empty(deserializer)?;
    Ok(if annotations.contains_key(LAST_APPLIED) { annotations.without(LAST_APPLIED) } else { annotations })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn managed_fields_and_the_applied_manifest_are_not_kept() {
        #[derive(Deserialize)]
        struct Partial {
            #[serde(deserialize_with = "trimmed_meta")]
            metadata: ObjectMeta,
        }
        let partial: Partial = serde_json::from_value(serde_json::json!({"metadata": {
            "name": "a", "uid": "u", "resourceVersion": "7",
            "annotations": {LAST_APPLIED: "{}", "kept": "yes"},
            "managedFields": [{"manager": "x", "operation": "Update", "fieldsV1": {"f:metadata": {}}}],
        }}))
        .unwrap();
        assert_eq!(partial.metadata.managed_fields, None);
        let annotations = partial.metadata.annotations.unwrap();
        assert_eq!(annotations.keys().collect::<Vec<_>>(), ["kept"]);
        assert_eq!(partial.metadata.resource_version.as_deref(), Some("7"));
    }
}
