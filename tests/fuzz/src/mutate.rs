//! A few changes of an input, decided by a number: what `cargo test` tries beside the seeds.

/// Numbers that look like chance and are the same in every run (splitmix64).
#[derive(Clone, Copy, Debug)]
pub struct Chance(u64);

impl Chance {
    /// Another number, another sequence.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        let end = u64::try_from(end).unwrap_or(u64::MAX).max(1);
        usize::try_from(self.next() % end).unwrap_or(0)
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }
}

/// One to four changes: a byte, a bit, a part left out, a part of the same input or of `other` put in, or a word.
pub fn mutant(chance: &mut Chance, input: &[u8], other: &[u8], words: &[&str]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=chance.below(4) {
        let at = chance.below(bytes.len() + 1);
        let part = |chance: &mut Chance, of: &[u8]| {
            let from = chance.below(of.len() + 1);
            of[from..(from + chance.below(64)).min(of.len())].to_vec()
        };
        match chance.below(6) {
            0 if at < bytes.len() => bytes[at] = chance.byte(),
            1 if at < bytes.len() => bytes[at] ^= 1 << chance.below(8),
            2 => drop(bytes.drain(at..(at + chance.below(16)).min(bytes.len()))),
            3 => {
                let own = part(chance, &bytes);
                drop(bytes.splice(at..at, own));
            }
            4 => {
                let others = part(chance, other);
                drop(bytes.splice(at..at, others));
            }
            _ => {
                let word = words[chance.below(words.len())].as_bytes();
                drop(bytes.splice(at..at, word.iter().copied()));
            }
        }
    }
    bytes
}
