//! Twin of `cpu-percentage` (PO-511, PO-512).

use std::collections::BTreeMap;

use serde_json::Value;

use crate::amount::{ceil, floor};

/// Parsed settings, for benches that decide many times.
#[derive(Clone, Debug, Default)]
pub struct CpuPercentageTwin {
    limits: Vec<Limit>,
}

#[derive(Clone, Debug)]
struct Limit {
    resource: String,
    percent: Option<i128>,
    quantity: Option<i64>,
    reserve: Option<i64>,
    of: Of,
}

#[derive(Clone, Copy, Debug)]
enum Of {
    Remaining,
    Available,
    Allocatable,
}

impl CpuPercentageTwin {
    /// Reads valid settings.
    pub fn new(settings: &Value) -> Self {
        let mut limits = Vec::new();
        if let Some(percent) = settings["cpuPercent"].as_i64() {
            limits.push(Limit {
                resource: "cpu".to_owned(),
                percent: Some(percent.into()),
                quantity: None,
                reserve: None,
                of: Of::Remaining,
            });
        }
        for limit in settings["limits"].as_array().into_iter().flatten() {
            let resource = limit["resource"].as_str().unwrap_or_default().to_owned();
            let text = |member: &str| match &limit[member] {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            };
            limits.push(Limit {
                percent: limit["percent"].as_i64().map(i128::from),
                quantity: text("quantity").and_then(|text| floor(&resource, &text)),
                reserve: text("reserve").and_then(|text| ceil(&resource, &text)),
                of: match limit["of"].as_str() {
                    Some("available") => Of::Available,
                    Some("allocatable") => Of::Allocatable,
                    _ => Of::Remaining,
                },
                resource,
            });
        }
        Self { limits }
    }

    /// The caps of a node, by resource; amounts in base units, a missing resource is 0.
    pub fn caps(
        &self,
        available: &BTreeMap<String, i64>,
        allocatable: &BTreeMap<String, i64>,
    ) -> BTreeMap<String, i64> {
        let amount = |amounts: &BTreeMap<String, i64>, resource: &str| {
            amounts.get(resource).copied().unwrap_or(0).max(0)
        };
        let mut remaining: BTreeMap<String, i64> = BTreeMap::new();
        for limit in &self.limits {
            let free = amount(available, &limit.resource);
            let before = remaining.get(&limit.resource).copied().unwrap_or(free);
            let mut candidates = vec![before];
            candidates.extend(limit.quantity);
            candidates.extend(limit.reserve.map(|reserve| free.saturating_sub(reserve)));
            if let Some(percent) = limit.percent {
                let base = match limit.of {
                    Of::Remaining => before,
                    Of::Available => free,
                    Of::Allocatable => amount(allocatable, &limit.resource),
                };
                candidates.push(i64::try_from(i128::from(base) * percent / 100).unwrap_or(i64::MAX));
            }
            let after = candidates.into_iter().min().unwrap_or(0).max(0);
            remaining.insert(limit.resource.clone(), after);
        }
        remaining
    }
}

/// The caps of one node.
pub fn cpu_percentage(
    settings: &Value,
    available: &BTreeMap<String, i64>,
    allocatable: &BTreeMap<String, i64>,
) -> BTreeMap<String, i64> {
    CpuPercentageTwin::new(settings).caps(available, allocatable)
}
