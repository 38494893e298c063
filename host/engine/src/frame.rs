//! Rows as bytes (the memo key) and as the frame a guest reads (PO-102): one projection serves both.
//!
//! In: an evaluator's [`Needs`] and node facts. Out: [`RowKey`]s, and buffers borrowed by a frame.
//! Invariant: a frame is built from row keys alone, so what is memoised is exactly what the guest saw (PO-1001).

use std::sync::Arc;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::facts::{NodeFacts, NumberFact, PolicyFacts, TextFact, UnknownFact};
use crate::wasm::bindings::{lease_abi, types};

/// Entries of one list in `needs`.
pub(crate) const MAX_FACTS: usize = 64;
/// Resources one evaluator may cap.
const MAX_CAPS: usize = 32;

/// What a lease evaluator reads and caps, names resolved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    pub(crate) texts: Vec<TextFact>,
    pub(crate) numbers: Vec<NumberFact>,
    pub(crate) caps: Arc<[Arc<str>]>,
    /// Names as the module gave them, for `inspect`.
    pub(crate) names: Vec<String>,
}

impl Needs {
    /// Checks and resolves what `needs()` of a lease evaluator returned.
    pub(crate) fn of_lease(said: &lease_abi::Needs) -> Result<Self, UnknownFact> {
        if !said.pod_texts.is_empty() || !said.pod_numbers.is_empty() {
            return Err(UnknownFact("a lease evaluator cannot read facts about a pod".to_owned()));
        }
        distinct("texts", &said.texts, MAX_FACTS)?;
        distinct("numbers", &said.numbers, MAX_FACTS)?;
        distinct("caps", &said.caps, MAX_CAPS)?;
        if let Some(bad) = said.caps.iter().find(|c| c.is_empty() || c.len() > 253) {
            return Err(UnknownFact(format!("{:?} is not a resource", crate::text::printable(bad, 80))));
        }
        Ok(Self {
            texts: said.texts.iter().map(|n| TextFact::parse(n)).collect::<Result<_, _>>()?,
            numbers: said.numbers.iter().map(|n| NumberFact::parse(n)).collect::<Result<_, _>>()?,
            caps: said.caps.iter().map(|c| Arc::from(c.as_str())).collect(),
            names: said.texts.iter().chain(&said.numbers).cloned().collect(),
        })
    }
}

pub(crate) fn distinct(list: &str, names: &[String], max: usize) -> Result<(), UnknownFact> {
    if names.len() > max {
        return Err(UnknownFact(format!("needs.{list} has {} entries, the limit is {max}", names.len())));
    }
    // They are shown to whoever looks at the module.
    if let Some(name) = names.iter().find(|name| !name.chars().all(crate::text::is_plain)) {
        return Err(UnknownFact(format!(
            "needs.{list} has control characters: {:?}",
            crate::text::printable(name, 80)
        )));
    }
    let mut seen = std::collections::BTreeSet::new();
    match names.iter().find(|name| !seen.insert(name.as_str())) {
        Some(name) => {
            Err(UnknownFact(format!("{:?} occurs twice in needs.{list}", crate::text::printable(name, 80))))
        }
        None => Ok(()),
    }
}

/// One projected row: per text a length (0 = absent, n + 1 otherwise) and its bytes, then the numbers, then the
/// zone offset, all little endian.
pub(crate) type RowKey = Arc<[u8]>;

/// Appends the row of `node` to `out`, which the caller cleared.
pub(crate) fn project(
    needs: &Needs,
    node: &NodeFacts,
    policy: &PolicyFacts,
    proposed: &dyn Fn(&str) -> i64,
    utc_offset: i32,
    out: &mut Vec<u8>,
) {
    for fact in &needs.texts {
        put_text(fact.read(node, policy), out);
    }
    for fact in &needs.numbers {
        out.extend_from_slice(&fact.read(node, proposed).to_le_bytes());
    }
    out.extend_from_slice(&utc_offset.to_le_bytes());
}

/// Appends one text to a row.
pub(crate) fn put_text(text: Option<&str>, out: &mut Vec<u8>) {
    match text {
        None => out.extend_from_slice(&0_u32.to_le_bytes()),
        Some(text) => {
            // Object names, labels and annotations are far below 4 GiB: the API server limits them to 256 KiB.
            let length = u32::try_from(text.len()).unwrap_or(u32::MAX - 1);
            out.extend_from_slice(&(length + 1).to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
    }
}

/// Owns the columns of a frame; reused from call to call.
#[derive(Debug, Default)]
pub(crate) struct FrameBuffers<'k> {
    rows: u32,
    strings: Vec<&'k str>,
    texts: Vec<u32>,
    numbers: Vec<i64>,
}

impl<'k> FrameBuffers<'k> {
    /// The frame of these rows, in this order; `texts` and `numbers` are the cells of each.
    pub(crate) fn of_rows(
        texts: usize,
        numbers: usize,
        keys: impl ExactSizeIterator<Item = &'k [u8]>,
    ) -> Self {
        let count = keys.len();
        let mut this = Self {
            rows: u32::try_from(count).unwrap_or(u32::MAX),
            strings: Vec::new(),
            texts: Vec::with_capacity(count * texts),
            numbers: Vec::with_capacity(count * numbers),
        };
        let mut interned = Interned::for_rows(if texts == 0 { 0 } else { count });
        // The string of a column is often that of the row above; comparing is cheaper than hashing.
        let mut above: Vec<(&'k [u8], u32)> = vec![(&[], 0); texts];
        for key in keys {
            let mut reader = Reader { rest: key };
            for cell in &mut above {
                let index = match reader.text() {
                    None => 0,
                    Some(bytes) if cell.1 != 0 && cell.0 == bytes => cell.1,
                    Some(bytes) => {
                        let index = interned.index(bytes, &mut this.strings);
                        *cell = (bytes, index);
                        index
                    }
                };
                this.texts.push(index);
            }
            this.numbers.extend((0..numbers).map(|_| reader.number()));
        }
        this
    }

    /// What the guest gets.
    pub(crate) fn frame(&self) -> types::Frame<'_> {
        types::Frame { rows: self.rows, strings: &self.strings, texts: &self.texts, numbers: &self.numbers }
    }
}

/// Finds the strings of a frame by their bytes.
struct Interned {
    /// What a cell of the frame says: one more than the place in its strings.
    indices: HashTable<u32>,
    hasher: ahash::RandomState,
}

impl Interned {
    /// Most frames have at most one column whose string is another in every row.
    fn for_rows(rows: usize) -> Self {
        Self { indices: HashTable::with_capacity(rows), hasher: ahash::RandomState::default() }
    }

    fn index<'k>(&mut self, bytes: &'k [u8], strings: &mut Vec<&'k str>) -> u32 {
        let hasher = &self.hasher;
        let of = |index: &u32| -> &[u8] {
            let place = usize::try_from(*index).unwrap_or(0).wrapping_sub(1);
            strings.get(place).map_or(&[], |string| string.as_bytes())
        };
        let (same, rehash) = (|index: &u32| of(index) == bytes, |index: &u32| hasher.hash_one(of(index)));
        match self.indices.entry(hasher.hash_one(bytes), same, rehash) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                strings.push(std::str::from_utf8(bytes).unwrap_or_default());
                let index = u32::try_from(strings.len()).unwrap_or(0);
                entry.insert(index);
                index
            }
        }
    }
}

/// Reads a row key front to back. A key is made by [`project`], so it never ends early; were it to, the rest reads
/// as absent.
struct Reader<'k> {
    rest: &'k [u8],
}

impl<'k> Reader<'k> {
    fn text(&mut self) -> Option<&'k [u8]> {
        let (head, rest) = self.rest.split_first_chunk::<4>()?;
        self.rest = rest;
        let length = usize::try_from(u32::from_le_bytes(*head).checked_sub(1)?).ok()?;
        let (text, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(text)
    }

    fn number(&mut self) -> i64 {
        let Some((head, rest)) = self.rest.split_first_chunk::<8>() else {
            return crate::facts::ABSENT_NUMBER;
        };
        self.rest = rest;
        i64::from_le_bytes(*head)
    }
}

/// The row key of recorded names and values: what [`readable`] made of it. Facts that are not recorded are named.
pub(crate) fn recorded(
    needs: &Needs,
    facts: &std::collections::BTreeMap<String, serde_json::Value>,
    utc_offset: i32,
) -> Result<RowKey, String> {
    let mut key = recorded_cells(&needs.names, needs.texts.len(), facts)?;
    key.extend_from_slice(&utc_offset.to_le_bytes());
    Ok(key.into())
}

/// The cells of recorded names and values; the first `texts` names are of texts.
pub(crate) fn recorded_cells(
    names: &[String],
    texts: usize,
    facts: &std::collections::BTreeMap<String, serde_json::Value>,
) -> Result<Vec<u8>, String> {
    let fact = |name: &String| facts.get(name).ok_or_else(|| format!("fact {name} was not recorded"));
    let (texts, numbers) = names.split_at(texts.min(names.len()));
    let mut key = Vec::new();
    for name in texts {
        let value = fact(name)?;
        match value.as_str() {
            Some(text) => put_text(Some(text), &mut key),
            None if value.is_null() => put_text(None, &mut key),
            None => return Err(format!("fact {name} was recorded as {value}, which is no text")),
        }
    }
    for name in numbers {
        let value = fact(name)?;
        let number = match value.as_i64() {
            Some(number) => number,
            None if value.is_null() => crate::facts::ABSENT_NUMBER,
            None => return Err(format!("fact {name} was recorded as {value}, which is no number")),
        };
        key.extend_from_slice(&number.to_le_bytes());
    }
    Ok(key)
}

/// A row key as names and values, for records and explanations.
pub(crate) fn readable(needs: &Needs, key: &[u8]) -> std::collections::BTreeMap<String, serde_json::Value> {
    readable_cells(&needs.names, needs.texts.len(), key)
}

/// Cells as names and values; the first `texts` names are of texts.
pub(crate) fn readable_cells(
    names: &[String],
    texts: usize,
    key: &[u8],
) -> std::collections::BTreeMap<String, serde_json::Value> {
    let mut reader = Reader { rest: key };
    let mut out = std::collections::BTreeMap::new();
    let (texts, numbers) = names.split_at(texts.min(names.len()));
    for name in texts {
        let text = reader.text().map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        out.insert(name.clone(), serde_json::json!(text));
    }
    for name in numbers {
        let number = reader.number();
        let value = (number != crate::facts::ABSENT_NUMBER).then_some(number);
        out.insert(name.clone(), serde_json::json!(value));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn needs() -> Needs {
        Needs {
            texts: vec![TextFact::Label("pool".into()), TextFact::NodeName],
            numbers: vec![NumberFact::Available("cpu".into())],
            caps: Arc::from([]),
            names: vec!["label/pool".into(), "node.name".into(), "available/cpu".into()],
        }
    }

    fn key(name: &str, pool: Option<&str>, cpu: i64) -> Vec<u8> {
        let node = NodeFacts {
            node_name: name.into(),
            labels: pool.map(|p| ("pool".to_owned(), p.to_owned())).into_iter().collect(),
            allocatable: [("cpu".to_owned(), cpu)].into(),
            ..NodeFacts::default()
        };
        let mut out = Vec::new();
        project(&needs(), &node, &PolicyFacts::default(), &|_| 0, 3600, &mut out);
        out
    }

    #[test]
    fn a_frame_holds_each_distinct_string_once_and_zero_for_absent() {
        let keys = [key("a", Some("x"), 1), key("b", None, 2), key("c", Some("x"), 3), key("x", Some(""), 4)];
        let buffers = FrameBuffers::of_rows(2, 1, keys.iter().map(Vec::as_slice));
        let frame = buffers.frame();
        assert_eq!(frame.rows, 4);
        assert_eq!(frame.strings, ["x", "a", "b", "c", ""]);
        assert_eq!(frame.texts, [1, 2, 0, 3, 1, 4, 5, 1]);
        assert_eq!(frame.numbers, [1, 2, 3, 4]);
    }

    #[test]
    fn absent_and_empty_text_are_different_rows() {
        assert_ne!(key("a", None, 1), key("a", Some(""), 1));
    }

    #[test]
    fn a_key_reads_back_as_names_and_values() {
        let read = readable(&needs(), &key("a", None, 5));
        assert_eq!(
            serde_json::to_string(&read).unwrap(),
            r#"{"available/cpu":5,"label/pool":null,"node.name":"a"}"#
        );
        for (pool, cpu) in [(None, 5), (Some(""), 0), (Some("ä\n"), i64::MAX), (Some("x"), i64::MIN)] {
            let key = key("a", pool, cpu);
            let again = recorded(&needs(), &readable(&needs(), &key), 3600).unwrap();
            assert_eq!(*again, *key);
        }
        let missing = recorded(&needs(), &std::collections::BTreeMap::new(), 0).unwrap_err();
        assert!(missing.contains("label/pool"), "{missing}");
    }

    #[test]
    fn needs_are_bounded_and_without_duplicates() {
        let said = |texts: Vec<&str>, caps: Vec<&str>| lease_abi::Needs {
            texts: texts.into_iter().map(Into::into).collect(),
            numbers: vec![],
            pod_texts: vec![],
            pod_numbers: vec![],
            caps: caps.into_iter().map(Into::into).collect(),
        };
        assert!(Needs::of_lease(&said(vec!["label/a"], vec!["cpu"])).is_ok());
        assert!(Needs::of_lease(&said(vec!["label/a", "label/a"], vec![])).is_err());
        assert!(Needs::of_lease(&said(vec![], vec!["cpu"; 2])).is_err());
        let many: Vec<String> = (0..65).map(|i| format!("label/{i}")).collect();
        assert!(Needs::of_lease(&said(many.iter().map(String::as_str).collect(), vec![])).is_err());
    }
}
