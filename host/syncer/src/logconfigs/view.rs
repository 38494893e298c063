//! A LogConfig as it is kept: metadata and its spec as JSON.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{ClusterResourceScope, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kubeocean_runtime::{meta::trimmed_meta, metadata_readers};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Path of the group and version; what it answers says whether the kind is served.
pub(super) const API: &str = "/apis/cls.cloud.tencent.com/v1";

/// A LogConfig (API-701 to API-704).
#[derive(Clone, Debug, Deserialize)]
pub(super) struct LogConfig {
    /// Metadata.
    #[serde(deserialize_with = "trimmed_meta")]
    pub(super) metadata: ObjectMeta,
    /// Spec, whatever is in it.
    #[serde(default)]
    pub(super) spec: Map<String, Value>,
}

impl kube::Resource for LogConfig {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "LogConfig".into()
    }
    fn group((): &()) -> Cow<'_, str> {
        "cls.cloud.tencent.com".into()
    }
    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        "logconfigs".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

metadata_readers!(LogConfig: name, uid, resource_version, label, annotation);

impl LogConfig {
    /// Whether deletion has started.
    pub(super) fn is_deleting(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Its labels and annotations.
    pub(super) fn marks(&self) -> [BTreeMap<String, String>; 2] {
        [&self.metadata.labels, &self.metadata.annotations].map(|marks| marks.clone().unwrap_or_default())
    }

    /// Whether this finalizer is on it.
    pub(super) fn has_finalizer(&self, finalizer: &str) -> bool {
        self.metadata.finalizers.iter().flatten().any(|one| one == finalizer)
    }
}

/// Path of all LogConfigs.
pub(super) fn all() -> String {
    format!("{API}/logconfigs")
}

/// Path of one.
pub(super) fn path(name: &str) -> String {
    format!("{API}/logconfigs/{name}")
}
