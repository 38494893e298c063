//! What simulations share: repeatable chance, and the sweep over seeds.
//!
//! A failure prints its seed; `KUBEOCEAN_SIM_SEED=<seed>` replays it, `KUBEOCEAN_SIM_SEEDS=<n>` widens the sweep.

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
pub(crate) fn sweep<S: Default>(run: impl Fn(u64) -> S, add: impl Fn(&mut S, S)) -> Option<S> {
    if let Some(seed) = setting("KUBEOCEAN_SIM_SEED") {
        run(seed);
        return None;
    }
    let mut seen = S::default();
    for seed in 0..setting("KUBEOCEAN_SIM_SEEDS").unwrap_or(SEEDS) {
        let met = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(seed)));
        let Ok(met) = met else { panic!("replay with KUBEOCEAN_SIM_SEED={seed}") };
        add(&mut seen, met);
    }
    Some(seen)
}

/// Tells what happens, in the replay of a single seed.
pub(crate) fn trace(what: impl FnOnce() -> String) {
    if setting("KUBEOCEAN_SIM_SEED").is_some() {
        eprintln!("{}", what());
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}
