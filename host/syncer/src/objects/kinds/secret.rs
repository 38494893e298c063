//! Secrets (TD-1012).

use serde_json::Value;

use super::{Around, Change, Content, MappedKind, ObjectKind, WorkerCopy, data_change, text};

/// Type of Secrets that Kubernetes itself fills; the worker's controller would delete such a copy.
const SERVICE_ACCOUNT_TOKEN: &str = "kubernetes.io/service-account-token";
const OPAQUE: &str = "Opaque";

/// `v1` Secret.
pub(in crate::objects) struct Secrets;

impl MappedKind for Secrets {
    fn name(&self) -> &'static str {
        "Secret"
    }
    fn plural(&self) -> &'static str {
        "secrets"
    }
    fn dependent(&self) -> Option<ObjectKind> {
        Some(ObjectKind::PersistentVolume)
    }
    fn wanted(&self, original: &Value, _: &Around<'_>) -> Content {
        let content = self.stored(original);
        // Never of a type that a controller of the worker acts on (TD section 7).
        if content.text("/type") == Some(SERVICE_ACCOUNT_TOKEN) {
            return content.with("type", OPAQUE.into());
        }
        content
    }
    fn stored(&self, object: &Value) -> Content {
        let secret_type = text(object, "/type").unwrap_or(OPAQUE);
        Content::of(object, &["data"]).with("type", secret_type.into())
    }
    fn change(&self, wanted: &Content, copy: &WorkerCopy, _: &Around<'_>) -> Change {
        // The type of a stored Secret cannot be changed.
        if wanted.text("/type") != copy.content.text("/type") {
            return Change::Replace;
        }
        data_change(wanted, copy)
    }
}
