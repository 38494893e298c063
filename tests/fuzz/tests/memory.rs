//! What one input may cost in memory: a test of its own, since the memory is that of the whole process.

use kubeocean_fuzz::{
    TARGETS,
    mutate::{Chance, mutant},
    words,
};

/// Most that one pair of schema and settings may need beside itself.
const MAX_BYTES: u64 = 32 << 20;
/// Mutants that are tried beside the seeds.
const MUTANTS: usize = 200;

#[test]
fn no_schema_and_no_settings_take_much_memory() {
    let target = TARGETS.iter().find(|target| target.name == "settings").unwrap();
    let seeds = target.all_seeds();
    let words: Vec<&str> = words().collect();
    let mut chance = Chance::new(2);
    let mutants: Vec<Vec<u8>> = (0..MUTANTS)
        .map(|_| {
            let (seed, other) = (&seeds[chance.below(seeds.len())], &seeds[chance.below(seeds.len())]);
            mutant(&mut chance, seed, other, &words)
        })
        .collect();
    for input in seeds.iter().chain(&mutants) {
        let before = kibibytes("VmRSS:");
        std::fs::write("/proc/self/clear_refs", "5").unwrap();
        (target.run)(input);
        let grown = kibibytes("VmHWM:").saturating_sub(before) << 10;
        assert!(grown < MAX_BYTES, "{grown} bytes for {}", String::from_utf8_lossy(input));
    }
}

fn kibibytes(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("a process knows its status");
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or_default()
}
