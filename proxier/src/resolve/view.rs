//! The fields of pods that decide whose they are.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kubeocean_api::keys::{annotation, label};
use kubeocean_runtime::{meta::trimmed_meta, partial_resource};
use serde::Deserialize;

/// A pod of either cluster, as the API server sends it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct PodView {
    #[serde(deserialize_with = "trimmed_meta")]
    pub(crate) metadata: ObjectMeta,
    #[serde(default)]
    pub(crate) spec: PodSpecView,
    #[serde(default)]
    pub(crate) status: PodStatusView,
}
partial_resource!(PodView, k8s_openapi::api::core::v1::Pod);

/// Where it runs and what runs in it.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct PodSpecView {
    pub(crate) node_name: String,
    containers: Vec<ContainerView>,
    init_containers: Vec<ContainerView>,
    ephemeral_containers: Vec<ContainerView>,
}

#[derive(Debug, Clone, Deserialize)]
struct ContainerView {
    name: String,
}

/// Whether it failed, and why.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(crate) struct PodStatusView {
    pub(crate) phase: String,
    pub(crate) reason: String,
}

impl PodView {
    pub(crate) fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    pub(crate) fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    pub(crate) fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.as_ref()?.get(key).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether it has a container of that name, of any kind.
    pub(crate) fn has_container(&self, name: &str) -> bool {
        let spec = &self.spec;
        let all = [&spec.containers, &spec.init_containers, &spec.ephemeral_containers];
        all.into_iter().flatten().any(|container| container.name == name)
    }
}

/// A ppod: what the Syncer wrote on it in the worker cluster, where users of the computing cluster cannot write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ppod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    /// Whether it carries the label of our copies.
    pub(crate) managed: bool,
    /// Of the vpod; copies of old versions have none.
    pub(crate) virtual_uid: Option<String>,
    pub(crate) virtual_namespace: String,
    pub(crate) virtual_name: String,
    pub(crate) vnode: String,
}

impl Ppod {
    /// What is kept of a pod of the worker cluster.
    pub(crate) fn of(pod: &PodView) -> Self {
        let text = |key: &str| pod.annotation(key).unwrap_or_default().to_owned();
        let managed = pod
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(label::MANAGED_BY))
            .is_some_and(|value| value == label::MANAGED_BY_VALUE);
        Self {
            namespace: pod.namespace().to_owned(),
            name: pod.name().to_owned(),
            uid: pod.uid().to_owned(),
            managed,
            virtual_uid: pod.annotation(annotation::VIRTUAL_POD_UID).map(str::to_owned),
            virtual_namespace: text(annotation::VIRTUAL_POD_NAMESPACE),
            virtual_name: text(annotation::VIRTUAL_POD_NAME),
            vnode: text(annotation::VIRTUAL_NODE_NAME),
        }
    }
}
