//! Labels, annotations, quantities and verbatim parts of objects that stay in memory.
//!
//! A process keeps thousands of such maps, of mostly a handful of entries, for as long as it runs. A `BTreeMap` takes
//! some 550 bytes for its first entry and two allocations for each; [`PackedTexts`] takes two allocations in all.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize, Serializer, ser::SerializeMap};
use serde_json::{Map, Value};

/// Text by key, sorted by key, not to be changed in place.
///
/// ```
/// # use kubeocean_runtime::packed::PackedTexts;
/// let labels: PackedTexts = [("tier", "web"), ("app", "shop")].into_iter().collect();
/// assert_eq!(labels.get("app"), Some("shop"));
/// assert_eq!(labels.iter().next(), Some(("app", "shop")));
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(from = "BTreeMap<String, String>")]
pub struct PackedTexts {
    /// All keys and values, one after the other: key, value, key, value.
    text: Box<str>,
    /// Where each of them ends.
    ends: Box<[u32]>,
}

impl PackedTexts {
    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&str> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = low.midpoint(high);
            match self.text(2 * middle).cmp(key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Greater => high = middle,
                std::cmp::Ordering::Equal => return Some(self.text(2 * middle + 1)),
            }
        }
        None
    }

    /// Whether there is such a key.
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.ends.len() / 2
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// All entries, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        (0..self.len()).map(|entry| (self.text(2 * entry), self.text(2 * entry + 1)))
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(key, _)| key)
    }

    /// As a map that can be changed.
    pub fn to_map(&self) -> BTreeMap<String, String> {
        self.iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    /// These entries but for one key.
    #[must_use]
    pub fn without(&self, key: &str) -> Self {
        self.iter().filter(|(known, _)| *known != key).collect()
    }

    /// These entries with a key that has this value.
    #[must_use]
    pub fn with(&self, key: &str, value: &str) -> Self {
        self.iter().chain([(key, value)]).collect()
    }

    fn text(&self, number: usize) -> &str {
        self.range(number).and_then(|range| self.text.get(range)).unwrap_or_default()
    }

    fn range(&self, number: usize) -> Option<Range<usize>> {
        let end = |number: usize| self.ends.get(number).and_then(|end| usize::try_from(*end).ok());
        let start = number.checked_sub(1).map_or(Some(0), end)?;
        Some(start..end(number)?)
    }
}

/// Of several values of a key the last one counts.
impl<'a> FromIterator<(&'a str, &'a str)> for PackedTexts {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(entries: I) -> Self {
        let sorted: BTreeMap<&str, &str> = entries.into_iter().collect();
        let bytes = sorted.iter().map(|(key, value)| key.len() + value.len()).sum();
        let mut text = String::with_capacity(bytes);
        let mut ends = Vec::with_capacity(2 * sorted.len());
        for (key, value) in sorted {
            for part in [key, value] {
                text.push_str(part);
                // An object is at most 1.5 MiB (etcd's limit); what does not fit is no API object.
                ends.push(u32::try_from(text.len()).unwrap_or(u32::MAX));
            }
        }
        Self { text: text.into(), ends: ends.into() }
    }
}

impl From<&BTreeMap<String, String>> for PackedTexts {
    fn from(map: &BTreeMap<String, String>) -> Self {
        map.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
    }
}

impl From<BTreeMap<String, String>> for PackedTexts {
    fn from(map: BTreeMap<String, String>) -> Self {
        Self::from(&map)
    }
}

impl From<Option<BTreeMap<String, String>>> for PackedTexts {
    fn from(map: Option<BTreeMap<String, String>>) -> Self {
        map.as_ref().map(Self::from).unwrap_or_default()
    }
}

impl Serialize for PackedTexts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.len()))?;
        for (key, value) in self.iter() {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl std::fmt::Debug for PackedTexts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// A JSON object that is kept and handed on as it is, as text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(from = "Map<String, Value>")]
pub struct PackedObject(Box<str>);

impl PackedObject {
    /// The object.
    pub fn to_map(&self) -> Map<String, Value> {
        serde_json::from_str(&self.0).unwrap_or_default()
    }
}

impl From<Map<String, Value>> for PackedObject {
    fn from(object: Map<String, Value>) -> Self {
        Self(if object.is_empty() { "".into() } else { Value::Object(object).to_string().into() })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_object_is_handed_on_as_it_is() {
        for text in ["{}", r#"{"swap":{"capacity":17},"osImage":"a \"b\""}"#] {
            let object: PackedObject = serde_json::from_str(text).expect("an object");
            assert_eq!(Value::Object(object.to_map()), serde_json::from_str::<Value>(text).expect("JSON"));
        }
        assert_eq!(serde_json::from_str::<PackedObject>("{}").expect("an object"), PackedObject::default());
    }

    proptest! {
        #[test]
        fn it_is_a_map(map in proptest::collection::btree_map(".{0,8}", ".{0,20}", 0..20), other in ".{0,8}") {
            let packed = PackedTexts::from(&map);
            prop_assert_eq!(packed.to_map(), map.clone());
            prop_assert_eq!(packed.len(), map.len());
            prop_assert_eq!(packed.is_empty(), map.is_empty());
            for key in map.keys().chain([&other]) {
                prop_assert_eq!(packed.get(key), map.get(key).map(String::as_str));
            }
            let mut fewer = map.clone();
            fewer.remove(&other);
            prop_assert_eq!(packed.without(&other).to_map(), fewer);
            let mut more = map.clone();
            more.insert(other.clone(), "x".to_owned());
            prop_assert_eq!(packed.with(&other, "x").to_map(), more);
            let json = serde_json::to_string(&map).expect("JSON");
            prop_assert_eq!(&serde_json::from_str::<PackedTexts>(&json).expect("texts"), &packed);
            prop_assert_eq!(serde_json::to_string(&packed).expect("JSON"), json);
        }
    }
}
