//! In which order the linker lays functions out.
//!
//! In: how often each function ran, as `llvm-profdata show` tells it, and the linker's map of a first link, which knows
//! the names that functions have in the end. Out: names, the most used first. What is not named comes after them.
//!
//! The kernel maps a program's file in pieces of 64 KiB and more around each page that is touched, so a process pays for
//! the neighbours of what it runs.

use std::collections::HashMap;

/// The greatest count of a part of each function.
pub(super) fn counts(profile: &str) -> HashMap<&str, u64> {
    let mut counts: HashMap<&str, u64> = HashMap::new();
    let mut name = "";
    for line in profile.lines() {
        if let Some(blocks) = line.trim_start().strip_prefix("Block counts: ") {
            let blocks = blocks.trim_matches(['[', ']']).split(", ");
            let most: u64 = blocks.filter_map(|count| count.parse().ok()).max().unwrap_or_default();
            let known = counts.entry(name).or_default();
            *known = most.max(*known);
        } else if let Some(function) = line.strip_suffix(':') {
            // A function that others of its name exist beside is named with the unit it is in.
            name = function.trim_start().rsplit(';').next().unwrap_or_default();
        }
    }
    counts
}

/// What is to lie together.
pub(super) struct Order<'m> {
    /// The names, the most used first.
    pub(super) names: Vec<&'m str>,
    /// How much of what the compiler made the profile knows: little of it if it is of another version of the program.
    pub(super) known: f64,
}

/// The functions of a linker's map that are to lie together: those that nobody could count, which are C and the standard
/// library, and those that ran, by how often. What the profile does not know although it could did not run when it was
/// recorded.
pub(super) fn order<'m>(map: &'m str, counts: &HashMap<&str, u64>) -> Order<'m> {
    let mut found: Vec<(u64, &str)> = Vec::new();
    let (mut known, mut all) = (0_u32, 0_u32);
    for line in map.lines() {
        let Some((object, section)) = line.rsplit_once(":(.text.") else { continue };
        let Some(section) = section.strip_suffix(')') else { continue };
        let (cold, name) = match section.split_once('.') {
            Some(("hot" | "startup" | "exit", name)) => (false, name),
            Some(("unlikely", name)) => (true, name),
            _ => (false, section),
        };
        let count = counts.get(counted(name));
        let could_be_counted = object.contains(".rcgu.o") && !is_standard(object);
        if could_be_counted && !cold {
            all += 1;
            known += u32::from(count.is_some());
        }
        match count {
            Some(0) => {}
            Some(count) => found.push((*count, name)),
            None if cold || could_be_counted => {}
            None => found.push((u64::MAX, name)),
        }
    }
    found.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
    let names = found.into_iter().map(|(_, name)| name).collect();
    Order { names, known: f64::from(known) / f64::from(all.max(1)) }
}

/// Whether an object file is of the standard library, which comes compiled.
fn is_standard(object: &str) -> bool {
    ["std", "core", "alloc", "compiler_builtins"].iter().any(|name| object.contains(&format!(".{name}-")))
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
          dedec0           dedec0       88    16         /t/a.1-cgu.0.rcgu.o:(.text.unlikely._ZN1a4idleE)
          dedf70           dedf70       28    16         /t/a.1-cgu.0.rcgu.o:(.text._ZN1a4onceE)
          dedfa0           dedfa0      121    16         /t/a.1-cgu.0.rcgu.o:(.text.hot._ZN1a4busyE.llvm.12)
          dedfa0           dedfa0      121     1                 _ZN1a4busyE.llvm.12
          dee0d0           dee0d0       52    16         /t/b.rlib(c.o):(.text.ring_mul)
          dee0d0           dee0d0       52    16         /t/a.1-cgu.0.rcgu.o:(.text._ZN1a3newE)
          dee0d0           dee0d0       52    16         /t/p-1.std-d1.std.e2-cgu.0.rcgu.o.rcgu.o:(.text._ZN3std4readE)
          dee0d0           dee0d0       52    16         /t/p-1.std-d1.std.e2-cgu.0.rcgu.o.rcgu.o:(.text.unlikely._ZN3std5panicE)
          dee0d0           dee0d0       52    16         /t/a.1-cgu.0.rcgu.o:(.rodata.cst16)
";

    #[test]
    fn a_function_counts_as_its_busiest_part() {
        let expected = HashMap::from([("_ZN1a4idleE", 0), ("_ZN1a4onceE", 1), ("_ZN1a4busyE", 900)]);
        assert_eq!(counts(PROFILE), expected);
    }

    #[test]
    fn what_ran_and_what_nobody_could_count_lies_together() {
        let order = order(MAP, &counts(PROFILE));
        assert_eq!(order.names, ["ring_mul", "_ZN3std4readE", "_ZN1a4busyE.llvm.12", "_ZN1a4onceE"]);
        // Of three functions that could be counted one is newer than the profile; what is unlikely tells nothing.
        assert!((order.known - 2.0 / 3.0).abs() < 0.01, "{}", order.known);
    }
}
