//! How long a key waits after a failure. In: how often it failed in a row, and the key; out: a pause. Pure.

use std::{hash::Hash, time::Duration};

use super::hash;

/// First retry delay of a failed key (TD-103).
pub(super) const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// Longest retry delay of a failed key (TD-103).
const BACKOFF_MAX: Duration = Duration::from_mins(5);
/// Longest retry delay of a key that failed because the API server did, or because its object goes on changing: recovery
/// takes no longer than that.
pub(super) const SOON_MAX: Duration = Duration::from_secs(10);
/// First delay of a key whose object changed meanwhile: its event is under way.
pub(super) const STALE_FIRST: Duration = Duration::from_millis(50);

/// After so many failures in a row.
pub(super) fn failed<K: Hash>(failures: u32, key: &K) -> Duration {
    backoff(BACKOFF_FIRST, failures, key)
}

/// After so many failures in a row, of which the API server had the last.
pub(super) fn unanswered<K: Hash>(failures: u32, key: &K) -> Duration {
    failed(failures, key).min(spread(SOON_MAX, key))
}

/// After its object changed so many times in a row while it was worked on.
pub(super) fn outdated<K: Hash>(times: u32, key: &K) -> Duration {
    backoff(STALE_FIRST, times, key).min(spread(SOON_MAX, key))
}

/// `first`, twice that, four times, ... 5 min, spread by up to a tenth so that keys that failed together do not return
/// together. The spread comes from the key, so it needs no randomness.
pub fn backoff<K: Hash>(first: Duration, failures: u32, key: &K) -> Duration {
    let exponent = failures.saturating_sub(1).min(16);
    let plain = first.saturating_mul(1 << exponent).min(BACKOFF_MAX);
    spread(plain, &(key, failures))
}

/// A pause shortened by up to a tenth, which `key` decides.
pub(crate) fn spread<K: Hash>(pause: Duration, key: &K) -> Duration {
    let place = hash(key) % 100;
    pause.mul_f64(0.9 + f64::from(u32::try_from(place).unwrap_or(0)) / 1000.0)
}
