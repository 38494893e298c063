//! Labels, annotations, quantities and verbatim parts of objects that stay in memory.
//!
//! A process keeps thousands of such maps, of mostly a handful of entries, for as long as it runs. A `BTreeMap` takes
//! some 550 bytes for its first entry and two allocations for each; [`PackedTexts`] takes one allocation in all, and a byte
//! or two for each of the keys that most objects have.

mod known_keys;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::iter::Peekable;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, Visitor};
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
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct PackedTexts(
    /// Entries one after the other: a number, the key unless the number says which one it is, the length of the value, the
    /// value. See [`number`].
    Box<str>,
);

impl PackedTexts {
    /// The value of a key. Looks at all smaller keys: whoever has many to ask for takes [`PackedTexts::ascending`].
    pub fn get(&self, key: &str) -> Option<&str> {
        self.ascending().get(key)
    }

    /// Answers for many keys, in ascending order, in one pass.
    pub fn ascending(&self) -> Ascending<'_> {
        Ascending(self.entries().peekable())
    }

    /// Whether there is such a key.
    pub fn contains_key(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries().count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All entries, sorted by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries()
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

    fn entries(&self) -> Entries<'_> {
        Entries(&self.0)
    }
}

/// See [`PackedTexts::ascending`].
pub struct Ascending<'a>(Peekable<Entries<'a>>);

impl<'a> Ascending<'a> {
    /// The value of a key that is not smaller than the one before.
    pub fn get(&mut self, key: &str) -> Option<&'a str> {
        while self.0.next_if(|(known, _)| *known < key).is_some() {}
        self.0.peek().filter(|(known, _)| *known == key).map(|(_, value)| *value)
    }
}

impl fmt::Debug for Ascending<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ascending").finish_non_exhaustive()
    }
}

/// The entries of packed texts that are yet to come.
struct Entries<'a>(&'a str);

impl<'a> Entries<'a> {
    fn number(&mut self) -> Option<usize> {
        let (number, rest) = number::read(self.0)?;
        self.0 = rest;
        Some(number)
    }

    fn text(&mut self, length: usize) -> Option<&'a str> {
        let (text, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(text)
    }
}

impl<'a> Iterator for Entries<'a> {
    type Item = (&'a str, &'a str);

    fn next(&mut self) -> Option<Self::Item> {
        let key = self.number()?;
        let key = match known_keys::of_number(key) {
            Ok(known) => known,
            Err(length) => self.text(length)?,
        };
        let length = self.number()?;
        Some((key, self.text(length)?))
    }
}

mod number {
    //! Numbers within a text: six bits in each ASCII character, the lowest first, and one that says that more follow.

    const BITS: u32 = 6;
    const MORE: u8 = 1 << BITS;

    pub(super) fn write(mut number: usize, text: &mut String) {
        loop {
            let low = u8::try_from(number % usize::from(MORE)).unwrap_or_default();
            number >>= BITS;
            text.push(char::from(if number == 0 { low } else { low | MORE }));
            if number == 0 {
                return;
            }
        }
    }

    /// The number at the start of a text, and the rest of it.
    pub(super) fn read(text: &str) -> Option<(usize, &str)> {
        let mut number = 0;
        for (place, byte) in text.bytes().enumerate() {
            let shift = BITS * u32::try_from(place).ok()?;
            number |= usize::from(byte & (MORE - 1)).checked_shl(shift)?;
            if byte & MORE == 0 {
                return Some((number, text.get(place + 1..)?));
            }
        }
        None
    }
}

/// Of several values of a key the last one counts.
impl<'a> FromIterator<(&'a str, &'a str)> for PackedTexts {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(entries: I) -> Self {
        let sorted: BTreeMap<&str, &str> = entries.into_iter().collect();
        Packing::of(sorted.into_iter())
    }
}

impl From<&BTreeMap<String, String>> for PackedTexts {
    fn from(map: &BTreeMap<String, String>) -> Self {
        Packing::of(map.iter().map(|(key, value)| (key.as_str(), value.as_str())))
    }
}

/// Where texts are put together before it is known how long they are. Each thread has one that it uses again and again:
/// what stays is allocated once, in its size.
#[derive(Debug, Default)]
struct Packing(String);

/// No longer text is kept by a thread for the next time, in bytes.
const KEPT: usize = 64 << 10;

impl Packing {
    fn with<T>(work: impl FnOnce(&mut Self) -> T) -> T {
        thread_local!(static PACKING: RefCell<Packing> = RefCell::default());
        let mut packing = PACKING.take();
        packing.0.clear();
        let result = work(&mut packing);
        if packing.0.capacity() <= KEPT {
            PACKING.set(packing);
        }
        result
    }

    /// Entries in ascending order of their keys.
    fn of<'a>(entries: impl Iterator<Item = (&'a str, &'a str)>) -> PackedTexts {
        Self::with(|packing| {
            for (key, value) in entries {
                packing.push_key(key);
                packing.push_value(value);
            }
            packing.packed()
        })
    }

    fn push_key(&mut self, key: &str) {
        match known_keys::number_of(key) {
            Ok(known) => number::write(known, &mut self.0),
            Err(unknown) => {
                number::write(unknown, &mut self.0);
                self.0.push_str(key);
            }
        }
    }

    fn push_value(&mut self, value: &str) {
        number::write(value.len(), &mut self.0);
        self.0.push_str(value);
    }

    /// What was pushed: key, value, key, value; the keys in ascending order.
    fn packed(&self) -> PackedTexts {
        PackedTexts(self.0.as_str().into())
    }
}

/// Entries as they come off the wire, without a copy of each in between. API servers sort them.
impl<'de> Deserialize<'de> for PackedTexts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(TextsVisitor)
    }
}

struct TextsVisitor;

impl<'de> Visitor<'de> for TextsVisitor {
    type Value = PackedTexts;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map of texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PackedTexts, A::Error> {
        Packing::with(|packing| {
            while map.next_key_seed(Pushed(packing, Packing::push_key))?.is_some() {
                map.next_value_seed(Pushed(packing, Packing::push_value))?;
            }
            let packed = packing.packed();
            let sorted = packed.keys().zip(packed.keys().skip(1)).all(|(one, next)| one < next);
            Ok(if sorted { packed } else { packed.iter().collect() })
        })
    }
}

/// A key or a value that is decoded to the end of the others.
struct Pushed<'a>(&'a mut Packing, fn(&mut Packing, &str));

impl<'de> DeserializeSeed<'de> for Pushed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Pushed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        let Self(packing, push) = self;
        push(packing, text);
        Ok(())
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

impl fmt::Debug for PackedTexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

/// Hands `work` the JSON text of a value, without an allocation for it that would have to grow.
pub fn with_json_text<T>(value: &impl Serialize, work: impl FnOnce(&str) -> T) -> T {
    thread_local!(static BUFFER: RefCell<Vec<u8>> = RefCell::default());
    let mut buffer = BUFFER.take();
    buffer.clear();
    // Values and maps of texts always serialise.
    let written = serde_json::to_writer(&mut buffer, value);
    let text = if written.is_ok() { std::str::from_utf8(&buffer).unwrap_or_default() } else { "" };
    let result = work(text);
    if buffer.capacity() <= KEPT {
        BUFFER.set(buffer);
    }
    result
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
        Self(if object.is_empty() { "".into() } else { with_json_text(&object, |text| text.into()) })
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

    #[test]
    fn what_comes_unsorted_or_twice_is_a_map_too() {
        let packed: PackedTexts =
            serde_json::from_str(r#"{"b": "1", "a": "\u0041", "b": "2"}"#).expect("texts");
        assert_eq!(packed.iter().collect::<Vec<_>>(), [("a", "A"), ("b", "2")]);
        assert_eq!(packed.get("b"), Some("2"));
        for bad in [r#"{"a": 1}"#, r#"{"a": null}"#, "null", "[]", r#"{"a": "1""#] {
            assert!(serde_json::from_str::<PackedTexts>(bad).is_err(), "{bad}");
        }
        assert_eq!(
            serde_json::from_str::<PackedTexts>("{}").expect("after an error"),
            PackedTexts::default()
        );
    }

    fn key() -> impl Strategy<Value = String> {
        prop_oneof![
            ".{0,8}",
            "[a-b]{31,33}",
            "c{317}|d{2048}",
            "(app|job-name|kubernetes\\.io/(os|arch|hostname)|kubeocean\\.io/virtual-pod-uid)"
        ]
    }

    /// Also texts whose length takes two and three characters.
    fn value() -> impl Strategy<Value = String> {
        prop_oneof![4 => ".{0,20}", 1 => "x{60,70}", 1 => "ä{2040,2060}"]
    }

    proptest! {
        #[test]
        fn it_is_a_map(map in proptest::collection::btree_map(key(), value(), 0..20), other in key()) {
            let packed = PackedTexts::from(&map);
            prop_assert_eq!(packed.to_map(), map.clone());
            prop_assert_eq!(packed.len(), map.len());
            prop_assert_eq!(packed.is_empty(), map.is_empty());
            for key in map.keys().chain([&other]) {
                prop_assert_eq!(packed.get(key), map.get(key).map(String::as_str));
            }
            let asked: std::collections::BTreeSet<&String> = map.keys().chain([&other]).collect();
            let mut ascending = packed.ascending();
            for key in asked {
                for _ in 0..2 {
                    prop_assert_eq!(ascending.get(key), map.get(key).map(String::as_str));
                }
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
