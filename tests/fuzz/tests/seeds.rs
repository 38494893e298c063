//! Every target with all its seeds, and with as many mutants of them as a test has time for.
//!
//! `KUBEOCEAN_FUZZ_CASES` sets the number of mutants. They are the same in every run; looking for new ones is what
//! `cargo xtask fuzz` does.

use kubeocean_fuzz::{
    TARGETS,
    mutate::{Chance, mutant},
    words,
};
use rstest::rstest;

#[rstest]
fn seeds_and_some_mutants_find_nothing(#[values("module", "settings", "record", "place")] name: &str) {
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    let seeds = target.all_seeds();
    assert!(!seeds.is_empty());
    for seed in &seeds {
        assert!(seed.len() <= target.max_bytes, "a seed of {} bytes is never changed", seed.len());
        try_one(name, target.run, seed);
    }
    let asked = std::env::var("KUBEOCEAN_FUZZ_CASES").ok().and_then(|cases| cases.parse().ok());
    let words: Vec<&str> = words().collect();
    let mut chance = Chance::new(1);
    for _ in 0..asked.unwrap_or(target.mutants) {
        let (seed, other) = (&seeds[chance.below(seeds.len())], &seeds[chance.below(seeds.len())]);
        try_one(name, target.run, &mutant(&mut chance, seed, other, &words));
    }
}

/// Says which input it was.
fn try_one(name: &str, run: fn(&[u8]), input: &[u8]) {
    if let Err(cause) = std::panic::catch_unwind(|| run(input)) {
        let file = std::env::temp_dir().join(format!("kubeocean-fuzz-{name}"));
        std::fs::write(&file, input).expect("a temporary folder that can be written to");
        eprintln!("{name}: the input is in {}: {:?}", file.display(), String::from_utf8_lossy(input));
        std::panic::resume_unwind(cause);
    }
}

#[test]
fn every_target_is_tried_here() {
    assert_eq!(TARGETS.map(|target| target.name), ["module", "settings", "record", "place"]);
}
