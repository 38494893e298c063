//! What strangers send, each kind as a function of bytes that panics when something is wrong.
//!
//! ```text
//! cargo test ─────────► seeds, and a few mutants of each ─┐
//!                                                         ├─► Target::run(bytes)
//! cargo xtask fuzz ───► libFuzzer, guided by coverage ────┘
//! ```
//!
//! A target accepts its input or refuses it by name. It never panics, and neither its time nor its memory depends on what
//! the input claims. An input that once did otherwise is kept in `seeds/<target>/`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a step that fails is a finding")]

mod module;
pub mod mutate;
mod place;
mod record;
mod seeds;
mod settings;

pub use seeds::words;

/// One kind of input.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name on the command line, and of its folder in `seeds`.
    pub name: &'static str,
    /// Does everything that is done with such bytes. Panics: a finding.
    pub run: fn(&[u8]),
    /// What takes long and is done once, before any input and its time.
    pub prepare: fn(),
    /// Inputs to begin with, beside those in its folder.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Longer inputs are not tried: what is found with long ones is found with short ones, sooner.
    pub max_bytes: usize,
    /// Seconds that one input may take in a build with counters on a busy machine.
    pub max_seconds: u32,
    /// Memory of the whole process under libFuzzer in MiB, with an engine and its pool where there is one: no input may cost
    /// more than a few.
    pub max_mebibytes: u32,
    /// Mutants that `cargo test` tries.
    pub mutants: u32,
}

/// All of them.
pub const TARGETS: [Target; 4] = [module::TARGET, settings::TARGET, record::TARGET, place::TARGET];

impl Target {
    /// Inputs to begin with, those of the folder included, in a fixed order.
    pub fn all_seeds(&self) -> Vec<Vec<u8>> {
        let mut all = (self.seeds)();
        all.extend(seeds::kept(self.name));
        all
    }
}
