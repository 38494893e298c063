//! What an object contains, apart from everything around it. Never shown.

use std::fmt;

use serde_json::{Map, Value};

/// Members of an object beside its metadata. Its `Debug` form shows the keys of their members only.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Content(Map<String, Value>);

impl From<Map<String, Value>> for Content {
    fn from(members: Map<String, Value>) -> Self {
        Self(members)
    }
}

impl Content {
    /// These members of an object; empty ones count as absent, as API servers have it.
    pub(super) fn of(object: &Value, members: &[&str]) -> Self {
        let present = |name: &&str| {
            let value = object.get(*name)?;
            let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
            (!empty).then(|| ((*name).to_owned(), value.clone()))
        };
        Self(members.iter().filter_map(present).collect())
    }

    /// The same with another member.
    pub(super) fn with(mut self, member: &str, value: Value) -> Self {
        self.0.insert(member.to_owned(), value);
        self
    }

    /// What stands at a JSON pointer.
    pub(super) fn get(&self, pointer: &str) -> Option<&Value> {
        let (member, rest) = pointer.strip_prefix('/')?.split_once('/').unwrap_or((&pointer[1..], ""));
        let member = self.0.get(member)?;
        if rest.is_empty() { Some(member) } else { member.pointer(&format!("/{rest}")) }
    }

    /// A string at a JSON pointer; `None` if it is empty or none.
    pub(super) fn text(&self, pointer: &str) -> Option<&str> {
        self.get(pointer).and_then(Value::as_str).filter(|text| !text.is_empty())
    }

    /// The members, for a manifest.
    pub(super) fn manifest(&self) -> Map<String, Value> {
        self.0.clone()
    }

    /// Merge patch that turns `stored` into `self`: sets what differs, removes what is gone.
    pub(super) fn patch(&self, stored: &Self) -> Map<String, Value> {
        difference(&self.0, &stored.0)
    }
}

/// Merge patch that turns `stored` into `wanted`.
pub(crate) fn difference(wanted: &Map<String, Value>, stored: &Map<String, Value>) -> Map<String, Value> {
    let mut patch = Map::new();
    for (key, value) in wanted {
        match (value, stored.get(key)) {
            (value, Some(stored)) if value == stored => {}
            (Value::Object(value), Some(Value::Object(stored))) => {
                patch.insert(key.clone(), difference(value, stored).into());
            }
            (value, _) => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    let gone = stored.keys().filter(|key| !wanted.contains_key(*key));
    patch.extend(gone.map(|key| (key.clone(), Value::Null)));
    patch
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.0.values().filter_map(Value::as_object).flat_map(Map::keys);
        f.debug_tuple("Content").field(&keys.collect::<Vec<_>>()).finish()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn content_is_compared_and_never_shown() {
        let of = |value: Value| Content::of(&value, &["data", "binaryData"]);
        let content = of(json!({"data": {"k": "aHVudGVyMg=="}, "immutable": true}));
        assert_eq!(content, of(json!({"data": {"k": "aHVudGVyMg=="}, "binaryData": {}})));
        assert_ne!(content, of(json!({"binaryData": {"k": "aHVudGVyMg=="}})));
        assert_eq!(format!("{:?}", content.with("type", "Opaque".into())), "Content([\"k\"])");
    }

    #[test]
    fn a_patch_sets_what_differs_and_removes_what_is_gone() {
        let content = |value: Value| Content::of(&value, &["data", "binaryData"]);
        let wanted = content(json!({"data": {"same": "1", "new": "2", "changed": "3"}}));
        let stored =
            content(json!({"data": {"same": "1", "gone": "x", "changed": "y"}, "binaryData": {"b": "AA=="}}));
        assert_eq!(
            Value::Object(wanted.patch(&stored)),
            json!({"data": {"new": "2", "changed": "3", "gone": null}, "binaryData": null})
        );
        assert!(wanted.patch(&wanted).is_empty());
    }

    #[test]
    fn members_are_found_at_any_depth() {
        let content = Content::of(&json!({"spec": {"a": {"b": "c"}}, "type": "t"}), &["spec", "type"]);
        assert_eq!((content.text("/spec/a/b"), content.text("/type")), (Some("c"), Some("t")));
        assert_eq!((content.text("/spec/a"), content.text("/none/x")), (None, None));
    }
}
