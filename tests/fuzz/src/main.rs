//! The program of `cargo xtask fuzz`: libFuzzer around one target.
//!
//! `KUBEOCEAN_FUZZ_TARGET` names the target. With `KUBEOCEAN_FUZZ_PREPARE` it writes what a run needs into that folder, for
//! every target, and ends: `<target>/seeds/*`, `<target>/options` (one a line) and `words`.

#![no_main]
#![expect(clippy::unwrap_used, reason = "a developer's program says what is missing by its end")]

use std::{path::Path, sync::OnceLock};

use kubeocean_fuzz::{TARGETS, Target, words};
use libfuzzer_sys::fuzz_target;

static TARGET: OnceLock<Target> = OnceLock::new();

fuzz_target!(init: start(), |bytes: &[u8]| (TARGET.get().unwrap().run)(bytes));

fn start() {
    if let Some(folder) = std::env::var_os("KUBEOCEAN_FUZZ_PREPARE") {
        prepare(Path::new(&folder));
        std::process::exit(0);
    }
    let name = std::env::var("KUBEOCEAN_FUZZ_TARGET").unwrap();
    let target = TARGETS.iter().find(|target| target.name == name).unwrap();
    (target.prepare)();
    TARGET.set(*target).unwrap();
    // The engine catches what a compiler does to hostile bytes. Only a panic that leaves the target is a finding; the
    // hook that libfuzzer-sys has set ends the process at every one.
    let _ = std::panic::take_hook();
}

fn prepare(folder: &Path) {
    for target in TARGETS {
        let folder = folder.join(target.name);
        let seeds = folder.join("seeds");
        std::fs::create_dir_all(&seeds).unwrap();
        for (number, seed) in target.all_seeds().iter().enumerate() {
            std::fs::write(seeds.join(format!("{number:03}")), seed).unwrap();
        }
        let Target { max_bytes, max_seconds, max_mebibytes, .. } = target;
        // Slow is what takes too long; libFuzzer would keep other inputs of a busy machine as well.
        let options = format!(
            "-max_len={max_bytes}\n-timeout={max_seconds}\n-report_slow_units={max_seconds}\n-rss_limit_mb={max_mebibytes}\n"
        );
        std::fs::write(folder.join("options"), options).unwrap();
    }
    let quoted = words().map(|word| format!("\"{}\"\n", word.replace('\\', "\\\\").replace('"', "\\\"")));
    std::fs::write(folder.join("words"), quoted.collect::<String>()).unwrap();
}
