//! Keeps a long-running program small.
//!
//! One heap for all threads: the C library would give each thread one of its own, and what one thread freed would be of no
//! use to the others; a program that mostly waits has no use for heaps side by side. What was needed for a moment, by the
//! start or a burst, lies between what stays and would never go back by itself: every ten seconds it does. Code goes more
//! often: the start touches most of it once (flags, schemas, TLS, the compiler of modules), a burst much of it, each touch
//! maps pages around it, and they stay mapped, which is what a memory limit counts. Pages of the program and its libraries
//! are let go, to be mapped again where they are needed.

#![allow(unsafe_code, reason = "no safe call gives pages or free heap back")]

#[cfg(target_os = "linux")]
use std::time::Duration;

#[cfg(target_os = "linux")]
use tokio::time::MissedTickBehavior;

/// Whoever works maps again what code it needs in some 0.3 ms.
#[cfg(target_os = "linux")]
const PAUSE: Duration = Duration::from_millis(2500);
/// Heap goes back each so many times: to look through 20 MiB of it takes about a millisecond.
#[cfg(target_os = "linux")]
const HEAP_EACH: u32 = 4;

/// One heap for all threads that are yet to begin.
pub(crate) fn share_one_heap() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    heap::share();
}

/// Gives memory back from time to time, for ever, and not before the start is over.
#[cfg(target_os = "linux")]
pub(crate) async fn keep_small() {
    let files = code::files();
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + PAUSE, PAUSE);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks.tick().await;
    let code = code::unchanged_pages(&files);
    for round in (1..=HEAP_EACH).cycle() {
        code::let_go(&code);
        if round == HEAP_EACH {
            #[cfg(target_env = "gnu")]
            heap::trim();
        }
        ticks.tick().await;
    }
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod heap {
    //! The heap of the C library.

    /// Blocks of this size and more are mappings of their own, which go back as soon as they are freed. Named, because
    /// the library would raise its limit to the largest such block that was ever freed.
    const MAPPED_FROM: std::ffi::c_int = 256 << 10;
    /// The end of the heap goes back when so much of it is free.
    const FREE_AT_THE_END: std::ffi::c_int = 512 << 10;

    pub(super) fn share() {
        let options = [
            (libc::M_ARENA_MAX, 1),
            (libc::M_MMAP_THRESHOLD, MAPPED_FROM),
            (libc::M_TRIM_THRESHOLD, FREE_AT_THE_END),
        ];
        for (option, value) in options {
            // SAFETY: it sets a number of the allocator, under the allocator's own lock.
            unsafe { libc::mallopt(option, value) };
        }
    }

    /// Gives free pages back, wherever they are in the heap.
    pub(super) fn trim() {
        // SAFETY: it may be called at any time by any thread; it frees nothing that is in use.
        unsafe { libc::malloc_trim(0) };
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        fn resident_mib() -> u64 {
            let status = std::fs::read_to_string("/proc/self/status").expect("a status");
            let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
            kib.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") / 1024
        }

        #[test]
        fn what_was_freed_between_what_stays_goes_back() {
            share();
            let before = resident_mib();
            let blocks: Vec<_> = (0..128 << 10).map(|_| Box::new([1_u8; 1024])).collect();
            let full = resident_mib();
            // Of each four pages one block stays, so that the end of the heap is not free.
            let kept: Vec<_> = blocks.into_iter().step_by(16).collect();
            trim();
            let after = resident_mib();
            // Other tests of this process run beside it and have heap too.
            assert!(full >= before + 112, "{before} MiB before, {full} MiB with 128 MiB more");
            assert!(after + 64 <= full, "{full} MiB with 128 MiB more, {after} MiB with a sixteenth of it");
            drop(kept);
        }
    }
}

#[cfg(target_os = "linux")]
mod code {
    //! The mapped pages of the program's own file and of the libraries it was linked with.

    use std::{collections::BTreeSet, ffi::c_void, fs, ops::Range};

    /// The files of the code that runs now. To be called early: what the program was linked with stays until its end,
    /// a library that is loaded later may go again.
    pub(super) fn files() -> BTreeSet<String> {
        let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
        let mappings = maps.lines().filter_map(mapping);
        let code =
            mappings.filter(|mapping| mapping.rights.starts_with("r-x") && mapping.path.starts_with('/'));
        code.map(|mapping| mapping.path.to_owned()).collect()
    }

    /// Pages of these files that are as the files have them, and will be as long as nobody traces the process (a breakpoint is
    /// a changed page, and would go): the process itself cannot write them. To be asked once, the answer takes milliseconds.
    pub(super) fn unchanged_pages(files: &BTreeSet<String>) -> Vec<Range<usize>> {
        fs::read_to_string("/proc/self/smaps").map(|maps| unchanged(&maps, files)).unwrap_or_default()
    }

    /// Lets go of pages that [`unchanged_pages`] found.
    pub(super) fn let_go(code: &[Range<usize>]) {
        for pages in code {
            let start = std::ptr::without_provenance_mut::<c_void>(pages.start);
            // SAFETY: the mapping cannot be written and has no page of its own, so each page comes back from the file
            // with the same content when it is touched. Nothing unmaps or changes mappings of these files.
            let done = unsafe {
                rustix::mm::madvise(start, pages.end - pages.start, rustix::mm::Advice::LinuxDontNeed)
            };
            if let Err(error) = done {
                tracing::debug!(%error, "pages of the program stay mapped");
            }
        }
    }

    /// A line of `/proc/self/maps`, which begins each paragraph of `/proc/self/smaps`.
    struct Mapping<'a> {
        pages: Range<usize>,
        rights: &'a str,
        path: &'a str,
    }

    fn mapping(line: &str) -> Option<Mapping<'_>> {
        // Range, rights, offset, device, inode, and then the path, which may have blanks.
        let mut words = line.splitn(6, ' ');
        let (start, end) = words.next()?.split_once('-')?;
        let rights = words.next().filter(|rights| rights.len() == 4)?;
        let address = |text: &str| usize::from_str_radix(text, 16).ok();
        let pages = address(start)?..address(end)?;
        Some(Mapping { pages, rights, path: words.nth(3).unwrap_or_default().trim_start() })
    }

    fn is_zero(line: &str) -> bool {
        line.split_ascii_whitespace().skip(1).eq(["0", "kB"])
    }

    /// Addresses of the mappings of some files in `/proc/self/smaps` that cannot be written and have no changed page, in
    /// memory or swapped out: pages that the dynamic linker wrote, and then protected, exist there alone. In a paragraph
    /// swapped pages come after those in memory.
    fn unchanged(maps: &str, files: &BTreeSet<String>) -> Vec<Range<usize>> {
        let mut found = Vec::new();
        let mut candidate = None;
        for line in maps.lines() {
            if let Some(mapping) = mapping(line) {
                let of_a_file = mapping.rights.starts_with('r')
                    && mapping.rights.ends_with('p')
                    && !mapping.rights.contains('w')
                    && files.contains(mapping.path);
                candidate = of_a_file.then_some(mapping.pages);
            } else if line.starts_with("Anonymous:") && !is_zero(line) {
                candidate = None;
            } else if line.starts_with("Swap:") && is_zero(line) {
                found.extend(candidate.take());
            }
        }
        found
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        const MAPS: &str = "\
55d000000000-55d000100000 r--p 00000000 fe:00 42                         /usr/bin/kube ocean
Rss:                 900 kB
Anonymous:             0 kB
Swap:                  0 kB
SwapPss:               0 kB
VmFlags: rd mr mw me sd
55d000100000-55d000900000 r-xp 00100000 fe:00 42                         /usr/bin/kube ocean
Anonymous:             0 kB
Swap:                  0 kB
55d000900000-55d0009f0000 r--p 00900000 fe:00 42                         /usr/bin/kube ocean
Anonymous:            64 kB
Swap:                  0 kB
55d0009f0000-55d000a00000 r--p 009f0000 fe:00 42                         /usr/bin/kube ocean
Anonymous:             0 kB
Swap:                 64 kB
55d000a00000-55d000b00000 rw-p 00a00000 fe:00 42                         /usr/bin/kube ocean
Anonymous:             0 kB
Swap:                  0 kB
55d000b00000-55d000c00000 rw-p 00000000 00:00 0 
Anonymous:             0 kB
Swap:                  0 kB
7f0000000000-7f0000100000 r-xp 00000000 fe:00 43                         /usr/lib/libc.so.6
Anonymous:             0 kB
Swap:                  0 kB
";

        #[test]
        fn only_unchanged_pages_of_the_file_are_let_go() {
            let program = BTreeSet::from(["/usr/bin/kube ocean".to_owned()]);
            let expected = [0x55d0_0000_0000..0x55d0_0010_0000, 0x55d0_0010_0000..0x55d0_0090_0000];
            assert_eq!(unchanged(MAPS, &program), expected);
            let library = BTreeSet::from(["/usr/lib/libc.so.6".to_owned()]);
            let code = 0x7f00_0000_0000..0x7f00_0010_0000;
            assert_eq!(unchanged(MAPS, &library), std::slice::from_ref(&code));
        }

        #[test]
        fn the_code_runs_on_and_takes_less_memory_for_a_moment() {
            let files = files();
            let program = fs::read_link("/proc/self/exe").expect("a path");
            assert!(files.contains(program.to_str().expect("a path")), "{files:?}");
            let resident = || {
                let maps = fs::read_to_string("/proc/self/smaps").expect("maps");
                let mut ours = false;
                let mut kib = 0;
                for line in maps.lines() {
                    if let Some(mapping) = mapping(line) {
                        ours = mapping.rights == "r-xp" && files.contains(mapping.path);
                    } else if let Some(rss) = line.strip_prefix("Rss:").filter(|_| ours) {
                        kib += rss.trim().trim_end_matches(" kB").parse::<u64>().expect("a number");
                    }
                }
                kib
            };
            let before = resident();
            let_go(&unchanged_pages(&files));
            let after = resident();
            assert!(after < before, "{before} KiB of code before, {after} KiB after");
        }
    }
}
