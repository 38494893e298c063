//! The kinds of objects that are copied for pods, and the few things in which they differ.

use std::fmt;

use kubeocean_api::name::{ObjectKey, phys_name};
use serde::Serialize;

/// A copied kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum ObjectKind {
    /// `v1` ConfigMap.
    ConfigMap,
    /// `v1` Secret.
    Secret,
}

impl ObjectKind {
    /// Every copied kind.
    pub const ALL: [Self; 2] = [Self::ConfigMap, Self::Secret];

    /// The kind as manifests name it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }

    /// The kind as request paths name it.
    pub fn plural(self) -> &'static str {
        match self {
            Self::ConfigMap => "configmaps",
            Self::Secret => "secrets",
        }
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
    /// Namespace and name in the computing cluster.
    pub key: ObjectKey,
}

impl ObjectRef {
    /// A reference from its parts.
    pub fn new(kind: ObjectKind, namespace: &str, name: &str) -> Self {
        Self { kind, key: ObjectKey::new(namespace, name) }
    }

    /// Name of the copy in the mount namespace (TD-301). A pure function: it is never read from an annotation.
    pub fn copy_name(&self) -> String {
        phys_name(&self.key.name, &self.key.namespace)
    }
}

impl fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.key)
    }
}
