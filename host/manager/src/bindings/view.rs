//! A ClusterBinding as the Manager sees it.

use jiff::Timestamp;
use kubeocean_api::{
    ClusterBinding, ClusterBindingStatus, Condition, binding::SecretRef, keys::finalizer::BINDING_MANAGER,
};
use kubeocean_runtime::binding::Binding;

/// A binding with its status.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ManagedBinding {
    /// What all programs see of it.
    pub binding: Binding,
    /// `metadata.creationTimestamp`; decides who owns a clusterID.
    pub created: Timestamp,
    /// `metadata.deletionTimestamp`.
    pub deleted_at: Option<Timestamp>,
    /// Whether the Manager's finalizer is on it.
    pub has_manager_finalizer: bool,
    /// The stored status.
    pub status: ClusterBindingStatus,
}

impl ManagedBinding {
    /// The view of a stored object.
    pub fn of(object: &ClusterBinding) -> Self {
        let meta = &object.metadata;
        Self {
            binding: Binding::of(object),
            created: meta.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0),
            deleted_at: meta.deletion_timestamp.as_ref().map(|time| time.0),
            has_manager_finalizer: meta
                .finalizers
                .as_ref()
                .is_some_and(|all| all.iter().any(|one| one == BINDING_MANAGER)),
            status: object.status.clone().unwrap_or_default(),
        }
    }

    /// A stored condition.
    pub fn condition(&self, type_: &str) -> Option<&Condition> {
        self.status.conditions.iter().find(|condition| condition.type_ == type_)
    }

    /// Which worker the binding names; `None` while its spec does not say.
    pub fn target(&self) -> Option<Target> {
        let spec = &self.binding.spec;
        let complete = !spec.secret_ref.name.is_empty()
            && !spec.secret_ref.namespace.is_empty()
            && !spec.mount_namespace.is_empty();
        complete.then(|| Target {
            binding: self.binding.name.clone(),
            uid: self.binding.uid.clone(),
            secret: spec.secret_ref.clone(),
            mount_namespace: spec.mount_namespace.clone(),
        })
    }
}

/// The worker cluster of a binding: what must be the same for an answer of it to count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Name of the binding.
    pub binding: String,
    /// UID of the binding.
    pub uid: String,
    /// Where the kubeconfig is.
    pub secret: SecretRef,
    /// Worker namespace of the copies.
    pub mount_namespace: String,
}

impl Target {
    /// `namespace/name` of the Secret, for messages.
    pub fn secret_key(&self) -> String {
        format!("{}/{}", self.secret.namespace, self.secret.name)
    }
}
