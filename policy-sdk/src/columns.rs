//! Declared facts, looked up by name for each row. In: names as `needs()` declares them; out: column numbers. Used by
//! [`crate::Needs`] and the row accessors. Invariant: a lookup allocates only on the way to a trap, and compares numbers
//! before texts: a module's comparison of texts goes byte by byte and was most of what a row cost.

/// What kind of name a fact has: the part up to `/` of those that accessors have a method for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Label,
    Annotation,
    Taint,
    Allocatable,
    Available,
    Proposed,
    Used,
    Leased,
    Usage,
    Request,
    Limit,
    /// All others, such as `node.name`, and resources that may be capped.
    Other,
}

impl Family {
    const ALL: [Self; 11] = [
        Self::Label,
        Self::Annotation,
        Self::Taint,
        Self::Allocatable,
        Self::Available,
        Self::Proposed,
        Self::Used,
        Self::Leased,
        Self::Usage,
        Self::Request,
        Self::Limit,
    ];

    const fn prefix(self) -> &'static str {
        match self {
            Self::Label => "label/",
            Self::Annotation => "annotation/",
            Self::Taint => "taint/",
            Self::Allocatable => "allocatable/",
            Self::Available => "available/",
            Self::Proposed => "proposed/",
            Self::Used => "used/",
            Self::Leased => "leased/",
            Self::Usage => "usage/",
            Self::Request => "request/",
            Self::Limit => "limit/",
            Self::Other => "",
        }
    }

    /// The family of a fact, and its name within.
    fn split(fact: &str) -> (Self, &str) {
        let found = Self::ALL.iter().find_map(|family| Some((*family, fact.strip_prefix(family.prefix())?)));
        found.unwrap_or((Self::Other, fact))
    }

    /// The fact `key` of this family.
    pub(crate) fn fact(self, key: &str) -> String {
        format!("{}{key}", self.prefix())
    }
}

/// What a name is told from others by: exact for keys of up to 16 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mark {
    /// Family and length: by these most names differ, and they are one number to compare.
    shape: usize,
    start: u64,
    end: u64,
}

/// Bytes a mark holds of a key.
const MARKED: usize = 16;

impl Mark {
    #[inline]
    fn new(family: Family, key: &str) -> Self {
        let bytes = key.as_bytes();
        let (start, end) =
            if let (Some(start), Some(end)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
                (u64::from_le_bytes(*start), u64::from_le_bytes(*end))
            } else if let (Some(start), Some(end)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
                (u32::from_le_bytes(*start).into(), u32::from_le_bytes(*end).into())
            } else {
                // At most three bytes: the first, the last, and the one between them.
                let middle = bytes.get(1).copied().unwrap_or_default();
                let ends = [bytes.first(), bytes.last()].map(|byte| byte.copied().unwrap_or_default());
                (ends[0].into(), u16::from_le_bytes([middle, ends[1]]).into())
            };
        Self { shape: bytes.len() << 4 | family as usize, start, end }
    }
}

impl Mark {
    #[inline]
    fn is(&self, other: &Self) -> bool {
        self.shape == other.shape && self.start == other.start && self.end == other.end
    }
}

/// The declared facts of one list: the n-th is column n of its frame, and none is there twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Columns(Vec<(Mark, String)>);

impl Columns {
    /// As they were declared, optional ones with their leading `?`.
    pub(crate) fn names(&self) -> Vec<String> {
        self.0.iter().map(|(_, name)| name.clone()).collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Appends the fact `name` unless it is there; answers its column.
    pub(crate) fn intern(&mut self, name: String) -> usize {
        let (family, key) = Family::split(name.strip_prefix('?').unwrap_or(&name));
        self.add(Mark::new(family, key), name)
    }

    /// The same for a resource, whose name has no family, whatever it begins with.
    pub(crate) fn intern_resource(&mut self, name: String) -> usize {
        self.add(Mark::new(Family::Other, &name), name)
    }

    fn add(&mut self, mark: Mark, name: String) -> usize {
        let known = self.0.iter().position(|(known, text)| known.is(&mark) && *text == name);
        known.unwrap_or_else(|| {
            self.0.push((mark, name));
            self.0.len() - 1
        })
    }

    /// The column of the fact `key` of a family, declared as optional or not.
    #[inline]
    pub(crate) fn find(&self, family: Family, key: &str) -> Option<usize> {
        let mark = Mark::new(family, key);
        if key.len() > MARKED {
            return self.find_long(&mark, key);
        }
        self.0.iter().position(|(known, _)| known.is(&mark))
    }

    fn find_long(&self, mark: &Mark, key: &str) -> Option<usize> {
        self.0.iter().position(|(known, name)| known.is(mark) && name.ends_with(key))
    }

    /// As [`Columns::find`]; reading a fact that `needs()` does not name is a mistake of the policy (PO-303).
    #[expect(
        clippy::panic,
        reason = "PO-303: an undeclared fact traps; check and the trial call find it before use"
    )]
    #[inline]
    pub(crate) fn require(&self, family: Family, key: &str) -> usize {
        match self.find(family, key) {
            Some(column) => column,
            None => panic!("fact {:?} is not declared in needs()", family.fact(key)),
        }
    }

    /// As [`Columns::require`], by the full name.
    pub(crate) fn require_fact(&self, fact: &str) -> usize {
        let (family, key) = Family::split(fact);
        self.require(family, key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(names: &[&str]) -> Columns {
        let mut columns = Columns::default();
        for name in names {
            columns.intern((*name).to_owned());
        }
        columns
    }

    #[test]
    fn facts_are_found_in_their_family_only() {
        let columns = declared(&["label/zone", "annotation/zone", "?taint/zone", "zone", "label/zones"]);
        let families = [Family::Label, Family::Annotation, Family::Taint, Family::Other];
        assert_eq!(families.map(|family| columns.find(family, "zone")), [Some(0), Some(1), Some(2), Some(3)]);
        assert_eq!(columns.find(Family::Used, "zone"), None);
        assert_eq!([columns.require_fact("taint/zone"), columns.require_fact("label/zones")], [2, 4]);
    }

    /// Every length on both sides of what a mark holds, each beside names that differ in one byte.
    #[test]
    fn names_of_any_length_are_told_apart() {
        for length in 0..=40 {
            let key: String = ('a'..='z').cycle().take(length).collect();
            let mut names: Vec<String> = (0..length)
                .map(|at| {
                    let mut other = key.clone();
                    other.replace_range(at..=at, "-");
                    format!("used/{other}")
                })
                .collect();
            names.push(format!("used/{key}a"));
            names.push(format!("used/{key}"));
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let columns = declared(&names);
            assert_eq!(columns.find(Family::Used, &key), Some(names.len() - 1), "{length}");
            for (column, name) in names.iter().enumerate() {
                assert_eq!(columns.require_fact(name), column, "{name}");
            }
        }
    }

    #[test]
    fn a_resource_may_be_named_like_a_fact() {
        let mut caps = Columns::default();
        let names = ["cpu", "usage/x", "limit/a-resource-with-a-long-name"];
        assert_eq!(names.map(|name| caps.intern_resource(name.to_owned())), [0, 1, 2]);
        assert_eq!(names.map(|name| caps.find(Family::Other, name)), [Some(0), Some(1), Some(2)]);
    }

    #[test]
    fn a_name_is_one_column_however_often_it_is_declared() {
        let mut columns = declared(&["a", "b"]);
        assert_eq!([columns.intern("b".to_owned()), columns.intern("c".to_owned())], [1, 2]);
        assert_eq!((columns.len(), columns.names().concat()), (3, "abc".to_owned()));
    }

    #[test]
    #[should_panic(expected = "fact \"label/zone\" is not declared in needs()")]
    fn what_is_not_declared_is_named() {
        declared(&["label/zones"]).require(Family::Label, "zone");
    }
}
