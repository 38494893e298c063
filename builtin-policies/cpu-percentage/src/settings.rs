//! Settings of `cpu-percentage` as an owner writes them. In: JSON; out: checked limits. Read once per evaluator.

use kubeocean_policy_sdk::prelude::*;

/// Caps on resources. Resources that are not named are leased whole.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Settings {
    /// Shorthand for a first limit on cpu: a share of what is free, in percent
    #[serde(default)]
    #[schemars(range(max = 100))]
    pub cpu_percent: Option<u8>,
    /// Limits, applied in order; several for one resource compound
    #[serde(default)]
    pub limits: Vec<Limit>,
}

/// One limit. Of several bounds in it the smallest holds.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("anyOf" = [{"required": ["percent"]}, {"required": ["quantity"]}, {"required": ["reserve"]}]))]
pub struct Limit {
    /// Resource name, such as cpu, memory or nvidia.com/gpu
    #[schemars(length(min = 1, max = 253))]
    pub resource: String,
    /// A share in percent, rounded down; 0 leases nothing
    #[serde(default)]
    #[schemars(range(max = 100))]
    pub percent: Option<u8>,
    /// A fixed amount; 0 leases nothing
    #[serde(default)]
    pub quantity: Option<Quantity>,
    /// Leave at least this much of the available amount free
    #[serde(default)]
    pub reserve: Option<Quantity>,
    /// What percent is a share of; default: what earlier limits left of the available amount
    #[serde(default)]
    pub of: Option<Base>,
}

/// What a share is taken of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Base {
    /// What earlier limits left
    #[default]
    Remaining,
    /// Allocatable minus what others request
    Available,
    /// The node's allocatable amount
    Allocatable,
}

impl Limit {
    /// The limit that `cpuPercent` stands for.
    pub(crate) fn cpu_percent(percent: u8) -> Self {
        Self { resource: "cpu".to_owned(), percent: Some(percent), quantity: None, reserve: None, of: None }
    }
}

/// Longest resource name, in characters.
const MAX_RESOURCE_NAME: usize = 253;

fn check_percent(percent: Option<u8>, at: impl Fn() -> String) -> Result<(), String> {
    match percent {
        Some(percent) if percent > 100 => {
            Err(format!("{}: {percent} is greater than the maximum of 100", at()))
        }
        _ => Ok(()),
    }
}

impl Settings {
    /// The bounds of the schema (the module leaves the schema code out), and what the schema cannot say: that a quantity
    /// is not below zero, and that a `null` bound counts as absent.
    pub(crate) fn check(&self) -> Result<(), String> {
        check_percent(self.cpu_percent, || "settings.cpuPercent".to_owned())?;
        for (index, limit) in self.limits.iter().enumerate() {
            let at = |member: &str| format!("settings.limits[{index}]{member}");
            if limit.resource.is_empty() || limit.resource.chars().count() > MAX_RESOURCE_NAME {
                return Err(format!("{}: must have 1 to {MAX_RESOURCE_NAME} characters", at(".resource")));
            }
            check_percent(limit.percent, || at(".percent"))?;
            if limit.percent.is_none() && limit.quantity.is_none() && limit.reserve.is_none() {
                return Err(format!("{}: needs one of percent, quantity, reserve", at("")));
            }
            if limit.quantity.is_some_and(Quantity::is_negative) {
                return Err(format!("{}: is less than 0", at(".quantity")));
            }
            if limit.reserve.is_some_and(Quantity::is_negative) {
                return Err(format!("{}: is less than 0", at(".reserve")));
            }
        }
        Ok(())
    }
}
