//! What happens to pods on a node that is withheld: the answer, and the form it has in settings. In: settings of a
//! policy; out: a [`Reclaim`] for its answers. Invariant: `Graceful(0)` never reaches the host.

use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::Deserialize;

/// What happens to pods already on a node that is withheld.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reclaim {
    /// They stay.
    #[default]
    Keep,
    /// They are evicted after this many seconds; 0 is the same as [`Reclaim::Force`].
    Graceful(u32),
    /// They are evicted at once.
    Force,
}

/// The `reclaim` member of settings: `{mode: Graceful, graceSeconds: 600}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ReclaimSettings {
    /// How; default: Keep
    #[serde(default)]
    pub mode: ReclaimMode,
    /// Seconds until pods are evicted; required for Graceful
    #[serde(default)]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub grace_seconds: Option<u32>,
}

/// Seconds that Kubernetes accepts as a grace period, without the zero that means at once.
const GRACE_SECONDS: RangeInclusive<u32> = 1..=2_147_483_647;

/// How pods are reclaimed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum ReclaimMode {
    /// Pods stay
    #[default]
    Keep,
    /// Pods are evicted after graceSeconds
    Graceful,
    /// Pods are evicted at once
    Force,
}

impl ReclaimSettings {
    /// The reclaim value.
    ///
    /// # Errors
    ///
    /// Mode Graceful without seconds, or seconds outside the schema's range.
    pub fn resolve(self) -> Result<Reclaim, String> {
        if let Some(seconds) = self.grace_seconds.filter(|seconds| !GRACE_SECONDS.contains(seconds)) {
            let (least, most) = (GRACE_SECONDS.start(), GRACE_SECONDS.end());
            return Err(format!(
                "settings.reclaim.graceSeconds: {seconds} is not between {least} and {most}"
            ));
        }
        match (self.mode, self.grace_seconds) {
            (ReclaimMode::Keep, _) => Ok(Reclaim::Keep),
            (ReclaimMode::Force, _) => Ok(Reclaim::Force),
            (ReclaimMode::Graceful, Some(seconds)) => Ok(Reclaim::Graceful(seconds)),
            (ReclaimMode::Graceful, None) => {
                Err("settings.reclaim.graceSeconds: is required for mode Graceful".to_owned())
            }
        }
    }
}
