//! Keys with a time and a few bytes each, one behind the other: thousands of lines cost their bytes and a place in a table
//! of offsets.
//!
//! In: lines. Out: lines by key. Caller: [`super::answers`], which knows what the bytes mean. Invariant: what has been
//! replaced or dropped is at most as much as what is there.

use std::ops::Range;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

/// Bits of an offset inside a chunk.
const CHUNK_BITS: u32 = 12;
/// Bytes of a chunk. Chunks do not grow: a buffer that did would leave holes of every size in the heap.
const CHUNK_BYTES: usize = 1 << CHUNK_BITS;
/// Chunks whose offsets have 32 bits.
const MAX_CHUNKS: usize = 1 << (u32::BITS - CHUNK_BITS);

/// See the module documentation.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    /// Where each line begins.
    starts: HashTable<u32>,
    chunks: Chunks,
    /// Bytes of lines that are no longer in `starts`.
    garbage: usize,
    hasher: ahash::RandomState,
}

/// One line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line<'p> {
    pub(crate) key: &'p [u8],
    /// Unix second.
    pub(crate) at: i64,
    pub(crate) value: &'p [u8],
}

impl Packed {
    pub(crate) fn len(&self) -> usize {
        self.starts.len()
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Line<'_>> {
        let same = |start: &u32| self.chunks.line(*start).key == key;
        let start = self.starts.find(self.hasher.hash_one(key), same)?;
        Some(self.chunks.line(*start))
    }

    /// Depends on the table, too: another one gives another number.
    pub(crate) fn hash(&self, of: &impl std::hash::Hash) -> u64 {
        self.hasher.hash_one(of)
    }

    /// Every line, in no order.
    pub(crate) fn lines(&self) -> impl Iterator<Item = Line<'_>> {
        self.starts.iter().map(|start| self.chunks.line(*start))
    }

    /// Stores a line in place of the one with its key. A table of 4 GiB takes no more lines.
    pub(crate) fn put(&mut self, line: Line<'_>) {
        let Self { starts, chunks, garbage, hasher } = self;
        let same = |start: &u32| chunks.line(*start).key == line.key;
        let rehash = |start: &u32| hasher.hash_one(chunks.line(*start).key);
        match starts.entry(hasher.hash_one(line.key), same, rehash) {
            Entry::Occupied(mut entry) => {
                let (chunk, place) = chunks.place(*entry.get());
                let (at, length) = number_bytes(zigzag(line.at));
                if place.value.len() == line.value.len() && place.at.len() == length {
                    chunks.overwrite(chunk, place.at, at.get(..length).unwrap_or_default());
                    chunks.overwrite(chunk, place.value, line.value);
                    return;
                }
                // A line that finds no room is forgotten, since what it said before no longer holds.
                *garbage += place.whole.len();
                match chunks.append(line) {
                    Some(start) => *entry.get_mut() = start,
                    None => drop(entry.remove()),
                }
            }
            Entry::Vacant(entry) => {
                if let Some(start) = chunks.append(line) {
                    entry.insert(start);
                }
            }
        }
        self.tidy();
    }

    /// Drops all lines but those.
    pub(crate) fn retain(&mut self, mut keep: impl FnMut(Line<'_>) -> bool) {
        let Self { starts, chunks, garbage, .. } = self;
        starts.retain(|start| {
            let kept = keep(chunks.line(*start));
            if !kept {
                *garbage += chunks.place(*start).1.whole.len();
            }
            kept
        });
        self.tidy();
    }

    /// Moves what is there to new chunks once there is more garbage.
    fn tidy(&mut self) {
        if 2 * self.garbage <= self.chunks.bytes || self.chunks.bytes <= CHUNK_BYTES {
            return;
        }
        let before = std::mem::take(&mut self.chunks);
        self.garbage = 0;
        let Self { starts, chunks, .. } = self;
        // There are fewer bytes than before, so there is room.
        starts.retain(|start| match chunks.append(before.line(*start)) {
            Some(new) => {
                *start = new;
                true
            }
            None => false,
        });
    }

    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        self.chunks.chunks.iter().map(Vec::capacity).sum()
    }
}

/// An offset is the number of a chunk and a place in it. A line that is longer than a chunk has one of its own.
#[derive(Debug, Default)]
struct Chunks {
    chunks: Vec<Vec<u8>>,
    /// Sum of their lengths.
    bytes: usize,
}

/// Where the parts of a line are in its chunk: length of the key, length of the value, time, key, value.
#[derive(Clone, Debug, Default)]
struct Place {
    whole: Range<usize>,
    at: Range<usize>,
    key: Range<usize>,
    value: Range<usize>,
}

impl Chunks {
    fn chunk(&self, chunk: usize) -> &[u8] {
        self.chunks.get(chunk).map_or(&[], Vec::as_slice)
    }

    /// Chunk and place of the line that begins there.
    fn place(&self, start: u32) -> (usize, Place) {
        // A u32 fits: where the engine runs, there are 64 bits.
        let start = usize::try_from(start).unwrap_or(usize::MAX);
        let (chunk, start) = (start >> CHUNK_BITS, start % CHUNK_BYTES);
        let bytes = self.chunk(chunk);
        let mut reader = Reader { rest: bytes.get(start..).unwrap_or_default() };
        let length = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        let (key, value) = (length(reader.number()), length(reader.number()));
        let at = bytes.len() - reader.rest.len();
        reader.number();
        let key_at = bytes.len() - reader.rest.len();
        let value_at = key_at.saturating_add(key);
        let end = value_at.saturating_add(value);
        (chunk, Place { whole: start..end, at: at..key_at, key: key_at..value_at, value: value_at..end })
    }

    /// The line that begins there. Offsets come from [`Self::append`], so there always is one.
    fn line(&self, start: u32) -> Line<'_> {
        let (chunk, place) = self.place(start);
        let part = |range| self.chunk(chunk).get(range).unwrap_or_default();
        let at = Reader { rest: part(place.at) }.number();
        Line { key: part(place.key), at: from_zigzag(at), value: part(place.value) }
    }

    fn overwrite(&mut self, chunk: usize, range: Range<usize>, with: &[u8]) {
        if let Some(part) = self.chunks.get_mut(chunk).and_then(|chunk| chunk.get_mut(range)) {
            part.copy_from_slice(with);
        }
    }

    /// Where the line begins; `None`: there is no room.
    fn append(&mut self, line: Line<'_>) -> Option<u32> {
        let most = line.key.len() + line.value.len() + 3 * LONGEST_NUMBER;
        if self.chunks.last().is_none_or(|last| last.len() + most > CHUNK_BYTES) {
            if self.chunks.len() >= MAX_CHUNKS {
                return None;
            }
            // The first one grows: most tables are small.
            let bytes = if self.chunks.is_empty() { most } else { most.max(CHUNK_BYTES) };
            self.chunks.push(Vec::with_capacity(bytes));
        }
        let number = self.chunks.len() - 1;
        let chunk = self.chunks.last_mut()?;
        let before = chunk.len();
        if chunk.capacity() - before < most {
            chunk.reserve_exact(most.max(before.min(CHUNK_BYTES - before)));
        }
        put_number(line.key.len() as u64, chunk);
        put_number(line.value.len() as u64, chunk);
        put_number(zigzag(line.at), chunk);
        chunk.extend_from_slice(line.key);
        chunk.extend_from_slice(line.value);
        self.bytes += chunk.len() - before;
        u32::try_from(number << CHUNK_BITS | before).ok()
    }
}

/// Bytes of the longest number.
const LONGEST_NUMBER: usize = 10;

/// Appends a number: seven bits a byte, the lowest first, so that small ones are short.
pub(crate) fn put_number(number: u64, out: &mut Vec<u8>) {
    let (bytes, length) = number_bytes(number);
    out.extend_from_slice(bytes.get(..length).unwrap_or_default());
}

/// What [`put_number`] appends, and how many bytes of it.
fn number_bytes(mut number: u64) -> ([u8; LONGEST_NUMBER], usize) {
    let (mut bytes, mut length) = ([0; LONGEST_NUMBER], 0);
    for byte in &mut bytes {
        length += 1;
        let low = number.to_le_bytes()[0];
        number >>= 7;
        if number == 0 {
            *byte = low & 0x7f;
            break;
        }
        *byte = low | 0x80;
    }
    (bytes, length)
}

/// A number without sign that is small for small numbers of either sign.
fn zigzag(number: i64) -> u64 {
    (number << 1 ^ number >> 63).cast_unsigned()
}

fn from_zigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

/// Reads front to back. What is missing reads as zero: whoever reads has written it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reader<'b> {
    pub(crate) rest: &'b [u8],
}

impl Reader<'_> {
    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *first
    }

    pub(crate) fn number(&mut self) -> u64 {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte();
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        number
    }

    pub(crate) fn instant(&mut self) -> i64 {
        let Some((head, rest)) = self.rest.split_first_chunk::<8>() else { return 0 };
        self.rest = rest;
        i64::from_le_bytes(*head)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn line<'p>(key: &'p [u8], at: i64, value: &'p [u8]) -> Line<'p> {
        Line { key, at, value }
    }

    #[test]
    fn a_line_replaced_a_hundred_thousand_times_leaves_no_garbage() {
        let mut packed = Packed::default();
        for i in 0..100_000_i64 {
            let value = vec![1; usize::try_from(i % 50).unwrap()];
            packed.put(line(&[u8::try_from(i % 7).unwrap()], i, &value));
            assert!(packed.held_bytes() <= 2 * CHUNK_BYTES, "{}", packed.held_bytes());
        }
        assert_eq!(packed.len(), 7);
        packed.retain(|line| line.key == [3]);
        let left: Vec<Line<'_>> = packed.lines().collect();
        assert_eq!((left.len(), left[0].key), (1, &[3][..]));
    }

    #[test]
    fn what_is_dropped_is_given_back() {
        let mut packed = Packed::default();
        for i in 0..10_000_u32 {
            packed.put(line(&i.to_le_bytes(), 0, &[0; 20]));
        }
        let full = packed.held_bytes();
        packed.retain(|line| line.key[1] == 0);
        assert!(packed.len() < 300 && packed.held_bytes() < full / 20, "{}", packed.held_bytes());
        assert!(packed.get(&7_u32.to_le_bytes()).is_some_and(|line| line.value == [0; 20]));
    }

    proptest! {
        #[test]
        fn numbers_read_back(numbers in prop::collection::vec(prop_oneof![any::<u64>(), 0..300_u64], 0..20)) {
            let mut bytes = Vec::new();
            for number in &numbers {
                let before = bytes.len();
                put_number(*number, &mut bytes);
                prop_assert!(bytes.len() - before <= LONGEST_NUMBER);
            }
            let mut reader = Reader { rest: &bytes };
            for number in &numbers {
                prop_assert_eq!(reader.number(), *number);
            }
            prop_assert!(reader.rest.is_empty());
        }

        #[test]
        fn it_answers_as_a_map_does(
            steps in prop::collection::vec((0_u8..20, 0_usize..900, any::<i64>(), any::<bool>()), 0..400)
        ) {
            let (mut packed, mut map) = (Packed::default(), BTreeMap::new());
            for (key, length, at, drop) in steps {
                // Some are longer than a chunk.
                let (key, value) = (vec![key; usize::from(key) * 10], vec![key; length * usize::from(key / 2)]);
                if drop {
                    packed.retain(|line| line.key != key);
                    map.remove(&key);
                } else {
                    packed.put(line(&key, at, &value));
                    map.insert(key.clone(), (at, value));
                }
                prop_assert_eq!(packed.len(), map.len());
                prop_assert_eq!(packed.get(&key).is_some(), map.contains_key(&key));
            }
            for (key, (at, value)) in &map {
                prop_assert_eq!(packed.get(key), Some(line(key, *at, value)));
            }
            prop_assert_eq!(packed.lines().count(), map.len());
        }
    }
}
