//! Values that very many objects have alike, such as a namespace's name: kept once, for all that have it.
//!
//! Anybody who makes objects makes such values, so those that nobody uses any more go, and a long one is not shared: what is
//! kept for a while without a user is at most 256 values, or as many as are in use, of 1 KiB each.

use std::collections::HashSet;
use std::fmt;
use std::hash::Hash;
use std::ops::Deref;
use std::sync::{Arc, LazyLock};

use parking_lot::Mutex;
use serde::de::{Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// One `Arc` for each value that is in use.
///
/// ```
/// # use std::sync::Arc;
/// # use kubeocean_runtime::shared::Shared;
/// static ZONES: Shared<str> = Shared::new();
/// assert!(Arc::ptr_eq(&ZONES.get("north"), &ZONES.get("north")));
/// ```
#[derive(Debug)]
pub struct Shared<T: ?Sized + Eq + Hash>(LazyLock<Mutex<Known<T>>>);

impl<T: ?Sized + Eq + Hash> Shared<T> {
    /// None in use yet.
    #[expect(clippy::new_without_default, reason = "it is made for statics")]
    pub const fn new() -> Self {
        Self(LazyLock::new(Mutex::default))
    }

    /// This value.
    pub fn get<'a>(&self, value: &'a T) -> Arc<T>
    where
        Arc<T>: From<&'a T>,
    {
        self.0.lock().get(value)
    }
}

/// A text that very many objects have alike: a namespace, the name of a resource.
pub fn text(text: &str) -> Arc<str> {
    static TEXTS: Shared<str> = Shared::new();
    TEXTS.get(text)
}

/// The same as a type that is a text on the wire, such as the message of a condition.
///
/// ```
/// # use kubeocean_runtime::shared::SharedText;
/// let status = SharedText::from("True");
/// assert!(status == "True" && status.len() == 4);
/// ```
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SharedText(Arc<str>);

impl SharedText {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl From<&str> for SharedText {
    fn from(value: &str) -> Self {
        Self(text(value))
    }
}

impl From<String> for SharedText {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl Default for SharedText {
    fn default() -> Self {
        "".into()
    }
}

impl Deref for SharedText {
    type Target = str;

    fn deref(&self) -> &str {
        self.as_str()
    }
}

impl PartialEq<str> for SharedText {
    fn eq(&self, other: &str) -> bool {
        self.as_str() == other
    }
}

impl PartialEq<&str> for SharedText {
    fn eq(&self, other: &&str) -> bool {
        self.as_str() == *other
    }
}

impl fmt::Debug for SharedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl fmt::Display for SharedText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self)
    }
}

impl Serialize for SharedText {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self)
    }
}

impl<'de> Deserialize<'de> for SharedText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(TextVisitor)
    }
}

struct TextVisitor;

impl Visitor<'_> for TextVisitor {
    type Value = SharedText;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E>(self, text: &str) -> Result<SharedText, E> {
        Ok(text.into())
    }
}

#[derive(Debug)]
struct Known<T: ?Sized> {
    values: HashSet<Arc<T>>,
    /// How many were in use when that was last looked at.
    used: usize,
}

impl<T: ?Sized + Eq + Hash> Default for Known<T> {
    fn default() -> Self {
        Self { values: HashSet::new(), used: 0 }
    }
}

/// So many values are not worth a look.
const FEW: usize = 256;
/// In bytes. What many objects have alike is shorter; a condition's message may be as long as an object.
const LONGEST: usize = 1024;

impl<T: ?Sized + Eq + Hash> Known<T> {
    fn get<'a>(&mut self, value: &'a T) -> Arc<T>
    where
        Arc<T>: From<&'a T>,
    {
        if size_of_val(value) > LONGEST {
            return value.into();
        }
        if let Some(known) = self.values.get(value) {
            return Arc::clone(known);
        }
        if self.values.len() >= FEW.max(2 * self.used) {
            self.values.retain(|value| Arc::strong_count(value) > 1);
            self.used = self.values.len();
            self.values.shrink_to(2 * self.used);
        }
        let value: Arc<T> = value.into();
        self.values.insert(Arc::clone(&value));
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_use_is_kept_once_and_what_is_not_goes() {
        for used in [10, 1000] {
            let mut known = Known::<str>::default();
            let used: Vec<Arc<str>> = (0..used).map(|number| known.get(&format!("used {number}"))).collect();
            for number in 0..10_000 {
                known.get(&number.to_string());
            }
            let kept = known.values.len();
            assert!(kept <= FEW.max(2 * used.len()), "{kept} are kept of {} in use", used.len());
            for (number, value) in used.iter().enumerate() {
                assert!(Arc::ptr_eq(value, &known.get(&format!("used {number}"))));
            }
        }
    }

    #[test]
    fn a_long_value_goes_with_its_owner() {
        let mut known = Known::<str>::default();
        let (longest, longer) = ("x".repeat(LONGEST), "x".repeat(LONGEST + 1));
        assert!(Arc::ptr_eq(&known.get(&longest), &known.get(&longest)));
        assert_eq!(&*known.get(&longer), longer);
        assert_eq!(known.values.len(), 1);
    }

    #[test]
    fn a_shared_text_is_a_text_on_the_wire() {
        let text: SharedText = serde_json::from_str(r#""Tru\u0065""#).expect("a text");
        assert_eq!(text, "True");
        assert!(Arc::ptr_eq(&text.0, &SharedText::from("True".to_owned()).0));
        assert_eq!(serde_json::to_string(&text).expect("JSON"), r#""True""#);
        assert_eq!((format!("{text:>5}"), format!("{text:?}")), (" True".to_owned(), r#""True""#.to_owned()));
        assert_eq!(SharedText::default(), "");
        for bad in ["1", "null", "{}"] {
            assert!(serde_json::from_str::<SharedText>(bad).is_err(), "{bad}");
        }
    }
}
