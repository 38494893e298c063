//! A ResourceLeasingPolicy as it is watched.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kubeocean_api::{
    ResourceLeasingPolicy, ResourceLeasingPolicySpec, ResourceLeasingPolicyStatus,
    keys::{annotation, finalizer},
};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use kubeocean_runtime::{meta::trimmed_meta, metadata_readers, partial_resource};

/// A policy. One that cannot be decoded does not stop the watch (API-1102): it stands for an invalid one.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct PolicyView {
    /// Without managedFields.
    #[serde(deserialize_with = "trimmed_meta")]
    pub metadata: ObjectMeta,
    /// What is leased.
    #[serde(default)]
    pub spec: SpecView,
    /// What we said last; garbage reads as nothing.
    #[serde(default, deserialize_with = "tolerant_status")]
    pub status: ResourceLeasingPolicyStatus,
}

partial_resource!(PolicyView, ResourceLeasingPolicy);
metadata_readers!(PolicyView: name, uid);

/// A spec, or why it cannot be read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpecView {
    /// The spec. When it cannot be read: cluster and selector where they can, and a grace period that makes the engine
    /// treat the policy as invalid, so that it governs, holds and evicts nothing (PO-526).
    pub spec: ResourceLeasingPolicySpec,
    /// Why the spec cannot be read.
    pub unreadable: Option<String>,
}

impl<'de> Deserialize<'de> for SpecView {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Ok(match serde_json::from_value(value.clone()) {
            Ok(spec) => Self { spec, unreadable: None },
            Err(error) => {
                let spec = ResourceLeasingPolicySpec {
                    cluster: value.get("cluster").and_then(Value::as_str).unwrap_or_default().to_owned(),
                    node_selector: value
                        .get("nodeSelector")
                        .and_then(|selector| serde_json::from_value(selector.clone()).ok()),
                    graceful_reclaim_period_seconds: -1,
                    ..ResourceLeasingPolicySpec::default()
                };
                Self { spec, unreadable: Some(error.to_string()) }
            }
        })
    }
}

fn tolerant_status<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<ResourceLeasingPolicyStatus, D::Error> {
    let value = Value::deserialize(deserializer)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

impl PolicyView {
    /// `metadata.generation`.
    pub fn generation(&self) -> i64 {
        self.metadata.generation.unwrap_or_default()
    }

    /// Creation in unix seconds.
    pub fn created_unix(&self) -> i64 {
        self.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
    }

    /// Being deleted.
    pub fn deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Our finalizer, or one of the original, is on it.
    pub fn has_finalizer(&self) -> bool {
        self.metadata.finalizers.iter().flatten().any(|name| name == finalizer::POLICY)
    }

    /// UID of the computing cluster that holds the policy (TD-1104).
    pub fn holder(&self) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(annotation::COMPUTING_CLUSTER_UID).map(String::as_str)
    }

    /// The binding that holds the policy.
    pub fn held_for(&self) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(annotation::CLUSTER_BINDING).map(String::as_str)
    }

    /// Another computing cluster holds the policy.
    pub fn taken(&self, computing_uid: &str) -> bool {
        self.holder().is_some_and(|holder| holder != computing_uid)
    }

    /// Value of a vnode's annotation `policy-details`: `name(res=quantity/percent%,...)`.
    pub fn details(&self) -> String {
        let limits: Vec<String> = self
            .spec
            .spec
            .resource_limits
            .iter()
            .map(|limit| {
                let quantity =
                    limit.quantity.as_ref().map(|quantity| quantity.0.as_str()).unwrap_or_default();
                let percent = limit.percent.map(|percent| format!("{percent}%")).unwrap_or_default();
                format!("{}={quantity}/{percent}", limit.resource)
            })
            .collect();
        if limits.is_empty() {
            self.name().to_owned()
        } else {
            format!("{}({})", self.name(), limits.join(","))
        }
    }
}

/// Unix seconds as an instant.
pub(crate) fn instant(unix: i64) -> Option<Timestamp> {
    Timestamp::from_second(unix).ok()
}
