//! A ClusterBinding as the controllers see it.

use kubeocean_api::{ClusterBinding, ClusterBindingSpec, keys::annotation, keys::finalizer};

/// The current state of the served binding. Controllers read it at the start of each reconcile (API-111).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Binding {
    /// `metadata.name`.
    pub name: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// Whether the binding is being deleted.
    pub deleting: bool,
    /// Whether our finalizer is on it.
    pub has_finalizer: bool,
    /// Whether a user gave the worker up: the Syncer then makes no further write (BU section 14).
    pub force_detach: bool,
    /// Which cluster it was connected to: the UID of its namespace `kube-system`.
    pub worker_cluster_uid: Option<String>,
    /// `spec.clusterID`.
    pub cluster_id: String,
    /// The whole spec.
    pub spec: ClusterBindingSpec,
}

impl Binding {
    /// The view of a stored object.
    pub fn of(object: &ClusterBinding) -> Self {
        let meta = &object.metadata;
        let annotation = |key: &str| meta.annotations.as_ref().and_then(|all| all.get(key));
        let annotated = |key: &str| annotation(key).is_some_and(|value| value == "true");
        Self {
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            generation: meta.generation.unwrap_or_default(),
            deleting: meta.deletion_timestamp.is_some(),
            has_finalizer: meta
                .finalizers
                .as_ref()
                .is_some_and(|all| all.iter().any(|one| one == finalizer::BINDING_SYNCER)),
            force_detach: meta.deletion_timestamp.is_some() && annotated(annotation::FORCE_DETACH),
            worker_cluster_uid: annotation(annotation::WORKER_CLUSTER_UID).cloned(),
            cluster_id: object.spec.cluster_id.clone(),
            spec: object.spec.clone(),
        }
    }
}
