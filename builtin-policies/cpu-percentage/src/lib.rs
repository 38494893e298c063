//! Built-in policy `cpu-percentage`: caps on any resource (the name is the original's).
//!
//! In: available (and, where asked for, allocatable) amounts of the named resources; out: one cap per resource. Runs as
//! an ordinary module; `spec.resourceLimits` of a `ResourceLeasingPolicy` is translated to its settings.
//! Invariant: limits only reduce, in the order they are written (PO-511, PO-512).

mod settings;

use kubeocean_policy_sdk::prelude::*;
use kubeocean_policy_sdk::{CapColumn, NumberColumn, parse_plain_settings};

pub use settings::{Base, Limit, Settings};

/// Caps on resources: a share of what is free, a fixed amount, a reserve that stays.
#[derive(Clone, Debug, Deserialize, JsonSchema)]
#[serde(try_from = "Settings")]
#[schemars(with = "Settings")]
pub struct CpuPercentage {
    needs: Needs,
    resources: Vec<Resource>,
}

/// The limits of one resource.
#[derive(Clone, Debug)]
struct Resource {
    name: String,
    available: NumberColumn,
    cap: CapColumn,
    steps: Vec<Step>,
}

/// One limit in base units.
#[derive(Clone, Debug)]
struct Step {
    base: StepBase,
    percent: Option<u8>,
    quantity: Option<i64>,
    reserve: Option<i64>,
}

#[derive(Clone, Copy, Debug)]
enum StepBase {
    Remaining,
    Available,
    Allocatable(NumberColumn),
}

/// Resources one policy may cap (PO section 4).
const MAX_RESOURCES: usize = 32;

impl TryFrom<Settings> for CpuPercentage {
    type Error = String;

    fn try_from(settings: Settings) -> Result<Self, String> {
        settings.check()?;
        let mut policy = Self { needs: Needs::new(), resources: Vec::new() };
        let shorthand = settings.cpu_percent.map(Limit::cpu_percent);
        for limit in shorthand.iter().chain(&settings.limits) {
            policy.add(limit);
        }
        if policy.resources.len() > MAX_RESOURCES {
            return Err(format!("settings.limits: names more than {MAX_RESOURCES} resources"));
        }
        Ok(policy)
    }
}

impl CpuPercentage {
    fn add(&mut self, limit: &Limit) {
        let name = limit.resource.as_str();
        let step = Step {
            base: match limit.of.unwrap_or_default() {
                Base::Remaining => StepBase::Remaining,
                Base::Available => StepBase::Available,
                Base::Allocatable => {
                    StepBase::Allocatable(self.needs.add_number(format!("allocatable/{name}")))
                }
            },
            percent: limit.percent,
            quantity: limit.quantity.map(|quantity| quantity.base_units(name, Rounding::Down)),
            // What stays free rounds up, as every request does (PO-202).
            reserve: limit.reserve.map(|reserve| reserve.base_units(name, Rounding::Up)),
        };
        match self.resources.iter_mut().find(|resource| resource.name == name) {
            Some(resource) => resource.steps.push(step),
            None => self.resources.push(Resource {
                name: name.to_owned(),
                available: self.needs.add_number(format!("available/{name}")),
                cap: self.needs.add_cap(name),
                steps: vec![step],
            }),
        }
    }
}

/// `percent` of `amount`, rounded down; exact for every amount.
fn share(amount: i64, percent: u8) -> i64 {
    let (whole, rest) = (amount / 100, amount % 100);
    whole * i64::from(percent) + rest * i64::from(percent) / 100
}

impl Resource {
    fn cap(&self, node: Node<'_>) -> i64 {
        let available = node.number_at(self.available).unwrap_or(0).max(0);
        self.steps.iter().fold(available, |remaining, step| step.apply(node, available, remaining))
    }
}

impl Step {
    fn apply(&self, node: Node<'_>, available: i64, remaining: i64) -> i64 {
        let mut cap = remaining;
        if let Some(quantity) = self.quantity {
            cap = cap.min(quantity);
        }
        if let Some(percent) = self.percent {
            let base = match self.base {
                StepBase::Remaining => remaining,
                StepBase::Available => available,
                StepBase::Allocatable(column) => node.number_at(column).unwrap_or(0).max(0),
            };
            cap = cap.min(share(base, percent));
        }
        if let Some(reserve) = self.reserve {
            cap = cap.min(available.saturating_sub(reserve));
        }
        cap.max(0)
    }
}

impl LeasePolicy for CpuPercentage {
    fn parse_settings(settings: &str) -> Result<Self, String> {
        parse_plain_settings::<Settings>(settings)?.try_into()
    }

    fn needs(&self) -> Needs {
        self.needs.clone()
    }

    fn lease(&self, _now: &Now, node: Node<'_>) -> Lease {
        let mut lease = Lease::offer();
        for resource in &self.resources {
            lease.add_cap(resource.cap, resource.cap(node));
        }
        lease
    }
}

export_policy!(CpuPercentage: lease, schema = include_str!("../settings.schema.json"));

#[cfg(test)]
mod tests;
