//! From a policy's spec to its pipeline (PO-541, PO-542): the legacy fields are a short form of three modules.
//!
//! Pure. In: the wire form of a policy's spec, or a binding's selector. Out: [`EntrySpec`]s in order.
//! Invariant: there is no second code path; what the legacy fields mean is what these settings mean.

use std::fmt;

pub use kubeocean_api::place::OnError;
use kubeocean_api::policy::{PolicyEntry, ResourceLimit};
use kubeocean_api::{NodeSelector, ResourceLeasingPolicySpec};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::config::{BUILTIN_TIMEOUT_MS, MEMORY_MIB};
use crate::module::ModuleLimits;

/// Name of the implicit first entry of every pipeline (PO-532).
pub const BINDING_SELECTOR: &str = "binding-selector";
/// Name of the entry made from `spec.nodeSelector`.
pub const LEGACY_NODE_SELECTOR: &str = "legacy-node-selector";
/// Name of the entry made from `spec.timeWindows` and the reclaim fields.
pub const LEGACY_TIME_WINDOWS: &str = "legacy-time-windows";
/// Name of the entry made from `spec.resourceLimits`.
pub const LEGACY_RESOURCE_LIMITS: &str = "legacy-resource-limits";

/// Where the bytes of a module come from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ModuleSource {
    /// Embedded in the program.
    Builtin {
        /// Its name.
        name: String,
        /// `sha256:<hex>` the policy names, if it does: another version of the program may have other bytes.
        digest: Option<String>,
    },
    /// Fetched by the caller of the engine.
    Fetched {
        /// `sha256:<hex>` the policy names, if it does.
        digest: Option<String>,
        /// A digest is required (PO-706): ConfigMap and OCI.
        must_pin: bool,
    },
    /// The entry names no source, or more than one: an object written past the CRD's rules.
    Missing,
}

impl ModuleSource {
    /// It came with the program.
    pub(crate) fn is_builtin(&self) -> bool {
        matches!(self, Self::Builtin { .. })
    }
}

/// Whether an entry counts (PO-805).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Enforcement {
    /// It decides.
    #[default]
    Enforce,
    /// It only reports what it would change.
    Audit,
}

/// A kind of decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// What of a node is leased.
    Lease,
    /// Which pod may go to a vnode.
    Place,
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Lease => "lease",
            Self::Place => "place",
        })
    }
}

/// One entry of a pipeline with defaults applied.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EntrySpec {
    /// Name, unique within the policy.
    pub name: String,
    /// The module.
    pub module: ModuleSource,
    /// Its settings, an object.
    pub settings: Value,
    /// Whether it counts.
    pub enforcement: Enforcement,
    /// What holds while it gives no answer.
    pub on_error: OnError,
    /// Decisions it is used for; `None` = all it makes.
    pub decisions: Option<Vec<Decision>>,
    /// Weight of its placement score, 1..=100.
    pub weight: u8,
    /// Time of one call in milliseconds, 10..=1000.
    pub timeout_ms: u32,
    /// Linear memory in MiB, 1..=128.
    pub memory_mib: u32,
}

impl EntrySpec {
    fn builtin(name: &str, module: &str, settings: Value) -> Self {
        Self {
            name: name.to_owned(),
            module: ModuleSource::Builtin { name: module.to_owned(), digest: None },
            settings,
            enforcement: Enforcement::Enforce,
            on_error: OnError::LastKnown,
            decisions: None,
            weight: 1,
            timeout_ms: BUILTIN_TIMEOUT_MS,
            memory_mib: MEMORY_MIB,
        }
    }
}

/// The entry that stands for a binding's `spec.nodeSelector`; `None` when it selects everything.
pub fn from_binding_selector(selector: Option<&NodeSelector>) -> Option<EntrySpec> {
    selector_entry(BINDING_SELECTOR, selector)
}

fn selector_entry(name: &str, selector: Option<&NodeSelector>) -> Option<EntrySpec> {
    let selector = selector.filter(|selector| !selector.selects_everything())?;
    Some(EntrySpec::builtin(name, "node-labels", json!({ "nodeSelector": selector })))
}

/// The entries the legacy fields stand for, in order. The spec must have passed `kubeocean_api::validate::policy`.
pub fn from_legacy(spec: &ResourceLeasingPolicySpec) -> Vec<EntrySpec> {
    [
        selector_entry(LEGACY_NODE_SELECTOR, spec.node_selector.as_ref()),
        time_windows_entry(spec),
        resource_limits_entry(&spec.resource_limits),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// Also without windows when pods are to be reclaimed: the module then announces how (PO-208), which is what holds
/// when the policy is lost (BU-907).
fn time_windows_entry(spec: &ResourceLeasingPolicySpec) -> Option<EntrySpec> {
    if spec.time_windows.is_empty() && !spec.force_reclaim {
        return None;
    }
    let windows: Vec<Value> = spec
        .time_windows
        .iter()
        .map(|window| {
            if window.days.is_empty() {
                json!({ "start": window.start, "end": window.end })
            } else {
                json!({ "start": window.start, "end": window.end, "days": window.days })
            }
        })
        .collect();
    let reclaim = match (spec.force_reclaim, spec.graceful_reclaim_period_seconds) {
        (false, _) => json!({ "mode": "Keep" }),
        (true, seconds) if seconds > 0 => json!({ "mode": "Graceful", "graceSeconds": seconds }),
        (true, _) => json!({ "mode": "Force" }),
    };
    let settings =
        json!({ "windows": windows, "overnight": "sameDay", "endMinute": "inclusive", "reclaim": reclaim });
    Some(EntrySpec::builtin(LEGACY_TIME_WINDOWS, "time-windows", settings))
}

/// A limit with neither `quantity` nor `percent` caps nothing, and no node has a resource without a name.
fn resource_limits_entry(limits: &[ResourceLimit]) -> Option<EntrySpec> {
    let limits: Vec<Value> = limits
        .iter()
        .filter(|limit| !limit.resource.is_empty() && limit.resource.len() <= 253)
        .filter(|limit| limit.quantity.is_some() || limit.percent.is_some())
        .map(|limit| {
            let mut out = serde_json::Map::new();
            out.insert("resource".to_owned(), json!(limit.resource));
            if let Some(percent) = limit.percent {
                out.insert("percent".to_owned(), json!(percent));
            }
            if let Some(quantity) = &limit.quantity {
                out.insert("quantity".to_owned(), json!(quantity.0));
            }
            Value::Object(out)
        })
        .collect();
    let some = !limits.is_empty();
    some.then(|| EntrySpec::builtin(LEGACY_RESOURCE_LIMITS, "cpu-percentage", json!({ "limits": limits })))
}

/// An item of `spec.policies` with defaults applied. Values the CRD refuses read as the default, because an object
/// may have been stored under an older CRD.
pub fn from_entry(entry: &PolicyEntry) -> EntrySpec {
    let module = &entry.module;
    let digest = module.digest.clone();
    let source = match (&module.builtin, &module.config_map, &module.oci, &module.file) {
        (Some(name), None, None, None) => ModuleSource::Builtin { name: name.clone(), digest },
        (None, Some(_), None, None) | (None, None, Some(_), None) => {
            ModuleSource::Fetched { digest, must_pin: true }
        }
        (None, None, None, Some(_)) => ModuleSource::Fetched { digest, must_pin: false },
        _ => ModuleSource::Missing,
    };
    let limits = entry.limits.as_ref().map(ModuleLimits::of_entry).unwrap_or_default();
    let decisions: Vec<Decision> = entry
        .decisions
        .iter()
        .filter_map(|name| match name.as_str() {
            "lease" => Some(Decision::Lease),
            "place" => Some(Decision::Place),
            _ => None,
        })
        .collect();
    EntrySpec {
        name: entry.name.clone(),
        module: source,
        settings: entry.settings.clone().unwrap_or_else(|| json!({})),
        enforcement: match entry.enforcement.as_deref() {
            Some("Audit") => Enforcement::Audit,
            _ => Enforcement::Enforce,
        },
        on_error: match entry.on_error.as_deref() {
            Some("Deny") => OnError::Deny,
            Some("Ignore") => OnError::Ignore,
            _ => OnError::LastKnown,
        },
        decisions: (!decisions.is_empty()).then_some(decisions),
        weight: entry
            .weight
            .filter(|w| (1..=100).contains(w))
            .and_then(|w| u8::try_from(w).ok())
            .unwrap_or(1),
        timeout_ms: limits.timeout_ms,
        memory_mib: limits.memory_mib,
    }
}

#[cfg(test)]
mod tests;
