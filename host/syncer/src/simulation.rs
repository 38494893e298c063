//! What simulations share: repeatable chance, and the sweep over seeds.
//!
//! A failure prints its seed; `KUBEOCEAN_SIM_SEED=<seed>` replays it, `KUBEOCEAN_SIM_SEEDS=<n>` widens the sweep.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use serde_json::{Value, json};

/// Seeds of a sweep.
const SEEDS: u64 = 256;

/// Repeatable chance.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        // SplitMix64: good enough, and the same everywhere.
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        usize::try_from((z ^ (z >> 31)) % limit as u64).unwrap()
    }

    /// True once in so many times.
    pub(crate) fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    /// One of several.
    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// Runs every seed of the sweep and adds up what the runs met: a sweep that never meets a case proves nothing about it.
/// `None` after the replay of a single seed.
pub(crate) fn sweep<S: Default + Send>(
    run: impl Fn(u64) -> S + Sync,
    add: impl Fn(&mut S, S) + Sync,
) -> Option<S> {
    if let Some(seed) = setting("KUBEOCEAN_SIM_SEED") {
        run(seed);
        return None;
    }
    let seeds = setting("KUBEOCEAN_SIM_SEEDS").unwrap_or(SEEDS);
    let (next, seen, failed) = (AtomicU64::new(0), Mutex::new(S::default()), Mutex::new(None));
    let work = || {
        while failed.lock().is_none() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return;
            }
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed))) {
                Ok(met) => add(&mut seen.lock(), met),
                Err(_) => *failed.lock() = Some(seed),
            }
        }
    };
    std::thread::scope(|threads| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            threads.spawn(work);
        }
    });
    if let Some(seed) = failed.into_inner() {
        panic!("replay with KUBEOCEAN_SIM_SEED={seed}");
    }
    Some(seen.into_inner())
}

/// Tells what happens, in the replay of a single seed.
pub(crate) fn trace(what: impl FnOnce() -> String) {
    if setting("KUBEOCEAN_SIM_SEED").is_some() {
        eprintln!("{}", what());
    }
}

/// Applies a JSON merge patch as API servers do (RFC 7386).
pub(crate) fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().unwrap();
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key.clone()).or_insert(Value::Null), value);
        }
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
