//! Names as types: a function that wants a vnode name cannot be given a pod's.
//!
//! Parsing is the only constructor. All names are cheap to clone (`Arc<str>`), ordered and hashable.

mod derive;
mod port;
#[cfg(test)]
mod tests;

pub use derive::{
    LABEL_VALUE_MAX_BYTES, distinct_label_value, fit_label_value, phys_name, proxier_csr_name,
    proxier_csr_prefix, proxier_name, proxier_service_name, proxier_tls_secret_name, syncer_name,
    token_secret_name, vnode_name, vnode_name_prefix,
};
pub use port::{PORT_MAX, PORT_MIN, PortTable, PortsExhausted, preferred_port};

use std::{fmt, sync::Arc};

/// Why a string is not the wanted kind of name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {value:?} is invalid: {problem}")]
pub struct InvalidName {
    /// The wanted kind, for example `clusterID`.
    pub kind: &'static str,
    /// The string as given.
    pub value: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

/// Which strings a name type takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// `[a-z0-9]([-a-z0-9]*[a-z0-9])?`
    Dns1123Label,
    /// Dot separated labels.
    Dns1123Subdomain,
}

pub(crate) fn check(kind: &'static str, value: &str, max: usize, syntax: Syntax) -> Result<(), InvalidName> {
    let problem = |problem| Err(InvalidName { kind, value: value.to_owned(), problem });
    if value.is_empty() {
        return problem("it is empty");
    }
    if value.len() > max {
        return problem("it is too long");
    }
    let is_label = |label: &str| {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = label.as_bytes();
        matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if inner(*first) && inner(*last))
            && bytes.iter().all(|byte| inner(*byte) || *byte == b'-')
    };
    let valid = match syntax {
        Syntax::Dns1123Label => is_label(value),
        Syntax::Dns1123Subdomain => value.split('.').all(is_label),
    };
    if valid { Ok(()) } else { problem("it must consist of lower-case letters, digits and '-'") }
}

macro_rules! string_name {
    ($(#[$doc:meta])* $name:ident, kind = $kind:literal, max = $max:literal, syntax = $syntax:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Longest accepted value in bytes.
            pub const MAX_BYTES: usize = $max;

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidName;
            fn from_str(value: &str) -> Result<Self, InvalidName> {
                check($kind, value, $max, Syntax::$syntax)?;
                Ok(Self(value.into()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

string_name! {
    /// Short id of a leased worker cluster; part of names, finalizers and labels. Example: `cls-dc-east`.
    /// Source: `ClusterBinding.spec.clusterID`.
    ClusterId, kind = "clusterID", max = 24, syntax = Dns1123Label
}
string_name! {
    /// Name of a ClusterBinding. It becomes a label value. Source: `ClusterBinding.metadata.name`.
    BindingName, kind = "ClusterBinding name", max = 63, syntax = Dns1123Subdomain
}

/// Namespace and name of a pod or another namespaced object; `namespace` is empty for cluster-scoped ones.
/// Shown as `namespace/name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Namespace, empty for cluster-scoped objects.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// A key from its two parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}
