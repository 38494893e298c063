//! Who a vpod is: what every back reference to it carries.

use kubeocean_api::name::ObjectKey;
use serde_json::Value;

/// Namespace, name and UID of a vpod.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VpodIdentity {
    /// Namespace and name in the computing cluster.
    pub key: ObjectKey,
    /// UID in the computing cluster.
    pub uid: String,
}

impl VpodIdentity {
    /// The identity in a pod's JSON; `None` if a part is missing, which no stored pod is.
    pub fn of(vpod: &Value) -> Option<Self> {
        let text = |field: &str| {
            vpod.pointer("/metadata")
                .and_then(|meta| meta.get(field))
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
        };
        Some(Self { key: ObjectKey::new(text("namespace")?, text("name")?), uid: text("uid")?.to_owned() })
    }
}
