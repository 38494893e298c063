//! What a ConfigMap or Secret contains, apart from everything around it. Never shown.

use std::{collections::BTreeMap, fmt};

use serde_json::{Map, Value, json};

use super::kind::ObjectKind;

/// Type of Secrets that Kubernetes itself fills; the worker's controller would delete such a copy.
const SERVICE_ACCOUNT_TOKEN: &str = "kubernetes.io/service-account-token";
const OPAQUE: &str = "Opaque";

/// Content of one object. Its `Debug` form shows the keys only.
#[derive(Clone, PartialEq, Eq)]
pub struct Content {
    /// Field (`data`, `binaryData`) to key to value, as JSON has it.
    fields: BTreeMap<&'static str, BTreeMap<String, String>>,
    /// Secrets only.
    secret_type: Option<String>,
}

impl Content {
    /// The content of an object as stored.
    pub fn of(kind: ObjectKind, object: &Value) -> Self {
        let names: &[&'static str] = match kind {
            ObjectKind::ConfigMap => &["data", "binaryData"],
            ObjectKind::Secret => &["data"],
        };
        let fields = names
            .iter()
            .filter_map(|name| {
                let entries = object.get(*name)?.as_object()?.iter();
                let entries: BTreeMap<String, String> = entries
                    .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
                    .collect();
                (!entries.is_empty()).then_some((*name, entries))
            })
            .collect();
        let secret_type = match kind {
            ObjectKind::ConfigMap => None,
            ObjectKind::Secret => Some(
                object
                    .get("type")
                    .and_then(Value::as_str)
                    .filter(|t| !t.is_empty())
                    .unwrap_or(OPAQUE)
                    .to_owned(),
            ),
        };
        Self { fields, secret_type }
    }

    /// The content a copy has: the same, but never of a type that a controller of the worker acts on (TD section 7).
    pub fn for_copy(mut self) -> Self {
        if self.secret_type.as_deref() == Some(SERVICE_ACCOUNT_TOKEN) {
            self.secret_type = Some(OPAQUE.to_owned());
        }
        self
    }

    /// Whether both are Secrets of one type, or no Secrets: the type of a stored Secret cannot be changed.
    pub fn same_type(&self, other: &Self) -> bool {
        self.secret_type == other.secret_type
    }

    /// The fields of a manifest.
    pub(super) fn manifest(&self) -> Map<String, Value> {
        let mut fields: Map<String, Value> =
            self.fields.iter().map(|(name, entries)| ((*name).to_owned(), json!(entries))).collect();
        if let Some(secret_type) = &self.secret_type {
            fields.insert("type".to_owned(), secret_type.as_str().into());
        }
        fields
    }

    /// Merge patch that turns `stored` into `self`: sets what differs, removes what is gone.
    pub(super) fn patch(&self, stored: &Self) -> Map<String, Value> {
        let mut patch = Map::new();
        for name in ["data", "binaryData"] {
            let empty = BTreeMap::new();
            let wanted = self.fields.get(name).unwrap_or(&empty);
            let have = stored.fields.get(name).unwrap_or(&empty);
            let changed = wanted.iter().filter(|(key, value)| have.get(*key) != Some(value));
            let mut entries: Map<String, Value> =
                changed.map(|(key, value)| (key.clone(), value.as_str().into())).collect();
            entries.extend(
                have.keys().filter(|key| !wanted.contains_key(*key)).map(|key| (key.clone(), Value::Null)),
            );
            if !entries.is_empty() {
                patch.insert(name.to_owned(), entries.into());
            }
        }
        patch
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.fields.values().flat_map(BTreeMap::keys);
        f.debug_tuple("Content").field(&keys.collect::<Vec<_>>()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_compared_with_its_type_and_never_shown() {
        let of = |kind, value: Value| Content::of(kind, &value);
        let config_map = of(ObjectKind::ConfigMap, json!({"data": {"k": "v"}, "immutable": true}));
        assert_eq!(config_map, of(ObjectKind::ConfigMap, json!({"data": {"k": "v"}, "binaryData": {}})));
        assert_ne!(config_map, of(ObjectKind::ConfigMap, json!({"binaryData": {"k": "v"}})));
        let secret = |secret_type: &str| json!({"data": {"k": "aGlkZGVu"}, "type": secret_type});
        let opaque = of(ObjectKind::Secret, secret("Opaque"));
        assert_ne!(opaque, of(ObjectKind::Secret, secret("kubernetes.io/tls")));
        assert_eq!(format!("{opaque:?}"), "Content([\"k\"])");
    }

    #[test]
    fn account_token_secrets_are_copied_as_opaque() {
        let stored = Content::of(
            ObjectKind::Secret,
            &json!({"type": "kubernetes.io/service-account-token", "data": {"token": "dA=="}}),
        );
        assert_eq!(stored.for_copy().manifest()["type"], "Opaque");
    }

    #[test]
    fn a_patch_sets_what_differs_and_removes_what_is_gone() {
        let content = |value: Value| Content::of(ObjectKind::ConfigMap, &value);
        let wanted = content(json!({"data": {"same": "1", "new": "2", "changed": "3"}}));
        let stored =
            content(json!({"data": {"same": "1", "gone": "x", "changed": "y"}, "binaryData": {"b": "AA=="}}));
        assert_eq!(
            Value::Object(wanted.patch(&stored)),
            json!({"data": {"new": "2", "changed": "3", "gone": null}, "binaryData": {"b": null}})
        );
        assert!(wanted.patch(&wanted).is_empty());
    }

    #[test]
    fn content_is_not_shown() {
        let secret = Content::of(ObjectKind::Secret, &json!({"data": {"password": "aHVudGVyMg=="}}));
        assert!(!format!("{secret:?}").contains("aHVudGVyMg"));
    }
}
