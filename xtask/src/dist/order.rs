//! In which order the linker lays functions out.
//!
//! In: how often each function ran, as `llvm-profdata show` tells it, and the linker's map of a first link, which knows
//! the names that functions have in the end. Out: names, the most used first. What is not named comes after them.
//!
//! The kernel maps a program's file in pieces of 64 KiB and more around each page that is touched, so a process pays for
//! the neighbours of what it runs.

use std::collections::HashMap;

/// The greatest count of a part of each function that ran.
pub(super) fn counts(profile: &str) -> HashMap<&str, u64> {
    let mut counts: HashMap<&str, u64> = HashMap::new();
    let mut name = "";
    for line in profile.lines() {
        if let Some(blocks) = line.trim_start().strip_prefix("Block counts: ") {
            let blocks = blocks.trim_matches(['[', ']']).split(", ");
            let most: u64 = blocks.filter_map(|count| count.parse().ok()).max().unwrap_or_default();
            if most > 0 {
                let known = counts.entry(name).or_default();
                *known = most.max(*known);
            }
        } else if let Some(function) = line.strip_suffix(':') {
            // A function that others of its name exist beside is named with the unit it is in.
            name = function.trim_start().rsplit(';').next().unwrap_or_default();
        }
    }
    counts
}

/// The functions of a linker's map that are to lie together: those that nobody counted, which are C and the standard
/// library, and those that ran, by how often.
pub(super) fn order<'m>(map: &'m str, counts: &HashMap<&str, u64>) -> Vec<&'m str> {
    let mut found: Vec<(u64, &str)> = map
        .lines()
        .filter_map(|line| {
            let (_, section) = line.rsplit_once(":(.text.")?;
            let section = section.strip_suffix(')')?;
            let (cold, name) = match section.split_once('.') {
                Some(("hot" | "startup" | "exit", name)) => (false, name),
                Some(("unlikely", name)) => (true, name),
                _ => (false, section),
            };
            match counts.get(counted(name)) {
                Some(count) => Some((*count, name)),
                None if cold => None,
                None => Some((u64::MAX, name)),
            }
        })
        .collect();
    found.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    found.into_iter().map(|(_, name)| name).collect()
}

/// The name that a function had when it was counted: optimisation across crates adds a suffix to those it makes visible.
fn counted(name: &str) -> &str {
    name.split_once(".llvm.").map_or(name, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROFILE: &str = "\
Counters:
  _ZN1a4idleE:
    Hash: 0x1
    Counters: 1
    Block counts: [0]
  _ZN1a4onceE:
    Hash: 0x1
    Counters: 2
    Block counts: [1, 0]
  unit-cgu.1;_ZN1a4busyE:
    Hash: 0x1
    Counters: 3
    Block counts: [7, 900, 0]
  unit-cgu.2;_ZN1a4busyE:
    Hash: 0x1
    Counters: 1
    Block counts: [3]
Functions shown: 4
";

    const MAP: &str = "\
             VMA              LMA     Size Align Out     In      Symbol
          dedec0           dedec0       88    16         /t/a.o:(.text.unlikely._ZN1a4idleE)
          dedf70           dedf70       28    16         /t/a.o:(.text._ZN1a4onceE)
          dedfa0           dedfa0      121    16         /t/a.o:(.text.hot._ZN1a4busyE.llvm.12)
          dedfa0           dedfa0      121     1                 _ZN1a4busyE.llvm.12
          dee0d0           dee0d0       52    16         /t/b.rlib(c.o):(.text.mi_malloc)
          dee0d0           dee0d0       52    16         /t/a.o:(.text.unlikely._ZN1a5panicE)
          dee0d0           dee0d0       52    16         /t/a.o:(.rodata.cst16)
";

    #[test]
    fn a_function_counts_as_its_busiest_part() {
        assert_eq!(counts(PROFILE), HashMap::from([("_ZN1a4onceE", 1), ("_ZN1a4busyE", 900)]));
    }

    #[test]
    fn what_ran_and_what_nobody_counted_lies_together() {
        assert_eq!(order(MAP, &counts(PROFILE)), ["mi_malloc", "_ZN1a4busyE.llvm.12", "_ZN1a4onceE"]);
    }
}
