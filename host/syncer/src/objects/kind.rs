//! The kinds of objects that are copied for pods. What differs between them stands in [`super::kinds`].

use std::fmt;

use kubeocean_api::name::{ObjectKey, phys_name};
use kubeocean_runtime::request::paths;
use serde::Serialize;

use super::{
    kinds::{Claims, ConfigMaps, MappedKind, Reach, Secrets, Volumes},
    plan::Scope,
};

/// A copied kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum ObjectKind {
    /// `v1` ConfigMap.
    ConfigMap,
    /// `v1` Secret.
    Secret,
    /// `v1` PersistentVolumeClaim.
    PersistentVolumeClaim,
    /// `v1` PersistentVolume. Pods do not name it: it is copied for the claim that is bound to it.
    PersistentVolume,
}

impl ObjectKind {
    /// Every copied kind.
    pub const ALL: [Self; 4] =
        [Self::ConfigMap, Self::Secret, Self::PersistentVolumeClaim, Self::PersistentVolume];

    /// What is particular to the kind.
    pub(super) fn mapped(self) -> &'static dyn MappedKind {
        match self {
            Self::ConfigMap => &ConfigMaps,
            Self::Secret => &Secrets,
            Self::PersistentVolumeClaim => &Claims,
            Self::PersistentVolume => &Volumes,
        }
    }

    /// The kind as manifests name it.
    pub fn as_str(self) -> &'static str {
        self.mapped().name()
    }

    /// The kind as request paths name it.
    pub fn plural(self) -> &'static str {
        self.mapped().plural()
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Kind, namespace and name of an object of the computing cluster. Shown as `ConfigMap default/settings`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectRef {
    /// Kind.
    pub kind: ObjectKind,
    /// Namespace and name in the computing cluster; the namespace of a PersistentVolume is empty.
    pub key: ObjectKey,
}

impl ObjectRef {
    /// A reference from its parts.
    pub fn new(kind: ObjectKind, namespace: &str, name: &str) -> Self {
        Self { kind, key: ObjectKey::new(namespace, name) }
    }

    /// A PersistentVolume.
    pub fn volume(name: &str) -> Self {
        Self::new(ObjectKind::PersistentVolume, "", name)
    }

    /// Name of the copy (TD-301), a pure function: it is never read from an annotation. That of a PersistentVolume may
    /// be another one, see `MappedKind::places`.
    pub fn copy_name(&self) -> String {
        phys_name(&self.key.name, &self.key.namespace)
    }

    /// Request path of the vobj.
    pub(super) fn path(&self) -> String {
        match self.kind.mapped().reach() {
            Reach::Namespace => paths::core(self.kind.plural(), &self.key.namespace, &self.key.name),
            Reach::Cluster => paths::cluster_core(self.kind.plural(), &self.key.name),
        }
    }

    /// Request path of the pobj of this name.
    pub(super) fn copy_path(&self, scope: &Scope, name: &str) -> String {
        match self.kind.mapped().reach() {
            Reach::Namespace => paths::core(self.kind.plural(), &scope.mount_namespace, name),
            Reach::Cluster => paths::cluster_core(self.kind.plural(), name),
        }
    }
}

/// Request path of the collection that has the copies of a kind.
pub(super) fn copies_path(kind: ObjectKind, scope: &Scope) -> String {
    match kind.mapped().reach() {
        Reach::Namespace => paths::core_all(kind.plural(), &scope.mount_namespace),
        Reach::Cluster => paths::cluster_core_all(kind.plural()),
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind.mapped().reach() {
            Reach::Namespace => write!(f, "{} {}", self.kind, self.key),
            Reach::Cluster => write!(f, "{} {}", self.kind, self.key.name),
        }
    }
}
