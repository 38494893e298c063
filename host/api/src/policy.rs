//! ResourceLeasingPolicy: what the owner of a worker cluster leases, when and how much (API section 2, PO section 7).

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{Condition, GROUP, NodeSelector, VERSION};

/// What the owner of a worker cluster leases. Cluster-scoped, in the worker cluster.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceLeasingPolicy {
    /// `cloud.tencent.com/v1beta1`.
    #[serde(default = "api_version")]
    pub api_version: String,
    /// `ResourceLeasingPolicy`.
    #[serde(default = "kind")]
    pub kind: String,
    /// Standard object metadata.
    pub metadata: ObjectMeta,
    /// What is leased.
    #[serde(default)]
    pub spec: ResourceLeasingPolicySpec,
    /// What was observed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<ResourceLeasingPolicyStatus>,
}

fn api_version() -> String {
    format!("{GROUP}/{VERSION}")
}
fn kind() -> String {
    "ResourceLeasingPolicy".to_owned()
}

impl kube::Resource for ResourceLeasingPolicy {
    type DynamicType = ();
    type Scope = kube::core::ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "ResourceLeasingPolicy".into()
    }
    fn group((): &()) -> Cow<'_, str> {
        GROUP.into()
    }
    fn version((): &()) -> Cow<'_, str> {
        VERSION.into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        "resourceleasingpolicies".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// What is leased. The fields `nodeSelector`, `timeWindows` and `resourceLimits` are a short form
/// of three built-in policy modules; `policies` names further modules, which can only shrink what these leave.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["cluster"]))]
pub struct ResourceLeasingPolicySpec {
    /// Name of the ClusterBinding (not its clusterID) in the computing cluster that leases under this policy.
    #[serde(default)]
    pub cluster: String,
    /// Which nodes this policy covers, among those the binding selects; absent or without terms means all of them.
    /// The oldest policy that covers a node governs it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<NodeSelector>,
    /// When leasing is active; absent or empty means always.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub time_windows: Vec<TimeWindow>,
    /// Caps per resource, applied in order to what other pods leave free. A resource not listed is leased completely.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub resource_limits: Vec<ResourceLimit>,
    /// Whether pods are evicted when the time windows close. By default they stay and no new ones come.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub force_reclaim: bool,
    /// With `forceReclaim`: seconds between the end of a time window and the eviction; 0 evicts at once.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub graceful_reclaim_period_seconds: i32,
    /// Time zone of the time windows and of what modules see as local time, as IANA name, for example
    /// `Asia/Shanghai`. By default the local zone of the Syncer process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub time_zone: Option<String>,
    /// Further policy modules, evaluated in order after the fields above. Each may only shrink what the ones before
    /// left.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub policies: Vec<PolicyEntry>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(value: &i32) -> bool {
    *value == 0
}

/// A daily time span. Both ends are inclusive to the minute; an end before the start wraps around midnight.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TimeWindow {
    /// First minute, `HH:MM` in 24 hours, for example `18:00`.
    pub start: String,
    /// Last minute, `HH:MM` in 24 hours, for example `08:00`.
    pub end: String,
    /// English day names in any letter case; empty means every day. The day is that of the moment asked about, also
    /// for the part after midnight.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub days: Vec<String>,
}

/// A cap on one resource. With both `quantity` and `percent` the smaller one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResourceLimit {
    /// Resource name, for example `cpu` or `nvidia.com/gpu`.
    pub resource: String,
    /// Largest amount leased of a node; 0 leases nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantity: Option<WireQuantity>,
    /// Share of what other pods leave free on the node, 0 to 100; 0 leases nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<i32>,
}

/// A quantity as written: a string, or an integer kept as its digits (API-1103).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct WireQuantity(pub String);

impl<'de> Deserialize<'de> for WireQuantity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum IntOrString {
            Int(i64),
            String(String),
        }
        Ok(Self(match IntOrString::deserialize(deserializer)? {
            IntOrString::Int(value) => value.to_string(),
            IntOrString::String(value) => value,
        }))
    }
}

impl JsonSchema for WireQuantity {
    fn schema_name() -> Cow<'static, str> {
        "Quantity".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$",
            "x-kubernetes-int-or-string": true,
        })
    }
}

/// One use of a policy module.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyEntry {
    /// Name of this use, unique in the list.
    #[schemars(length(max = 16), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Where the module comes from.
    pub module: ModuleRef,
    /// Settings of the module; its schema says what it takes. By default `{}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "free_object")]
    pub settings: Option<serde_json::Value>,
    /// Which of the module's decisions are used: `lease`, `place`. By default all it makes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "decision_set")]
    pub decisions: Vec<String>,
    /// `Enforce` (default) or `Audit`, which only reports what the module would change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["Enforce", "Audit"]))]
    pub enforcement: Option<String>,
    /// What holds while the module cannot answer: `LastKnown` (default), `Deny` or `Ignore`. An error never evicts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["LastKnown", "Deny", "Ignore"]))]
    pub on_error: Option<String>,
    /// Weight of the module's placement score, 1 (default) to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub weight: Option<i32>,
    /// Limits of one call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<EntryLimits>,
}

fn free_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

fn decision_set(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "items": {"type": "string", "enum": ["lease", "place"]},
        "minItems": 1,
        "maxItems": 2,
        "x-kubernetes-list-type": "set",
    })
}

/// Source of a policy module; exactly one of `builtin`, `configMap`, `oci` and `file`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ModuleRef {
    /// Name of a built-in module: `cpu-percentage`, `time-windows` or `node-labels`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub builtin: Option<String>,
    /// A ConfigMap of the worker cluster that holds the module in `binaryData`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map: Option<ConfigMapModule>,
    /// An artifact in an OCI registry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oci: Option<OciModule>,
    /// A file of the Syncer's policy development directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileModule>,
    /// SHA-256 of the module's bytes, `sha256:<64 hex digits>`. Required for `configMap` and `oci` unless signatures
    /// are verified or unpinned policies are allowed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = r"^sha256:[0-9a-f]{64}$"))]
    pub digest: Option<String>,
}

/// A module in a ConfigMap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigMapModule {
    /// Name of the ConfigMap.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its namespace; by default the Syncer's policy namespace, `kubeocean-worker-system`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
    /// Key in `binaryData`, by default `policy.wasm`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub key: Option<String>,
}

/// A module in an OCI registry.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OciModule {
    /// Image reference.
    #[schemars(length(max = 512))]
    pub image: String,
    /// Secret of type `kubernetes.io/dockerconfigjson` in the worker cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pull_secret: Option<PullSecret>,
}

/// A pull Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PullSecret {
    /// Name of the Secret.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its namespace; by default the Syncer's policy namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub namespace: Option<String>,
}

/// A module in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileModule {
    /// Path below the development directory.
    #[schemars(length(max = 255))]
    pub path: String,
}

/// Limits of one call of a module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EntryLimits {
    /// Time of one call in milliseconds, 10 to 1000, by default 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 10, max = 1000))]
    pub timeout_milliseconds: Option<i32>,
    /// Linear memory in MiB, 1 to 128, by default 32.
    #[serde(default, rename = "memoryMiB", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 128))]
    pub memory_mib: Option<i32>,
}

/// What was observed of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ResourceLeasingPolicyStatus {
    /// `Active` inside the time windows, `Inactive` outside, `Failed` when the spec is invalid.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub phase: String,
    /// Whether this moment is inside the time windows; absent means no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub active_time_window: bool,
    /// When the phase last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last_applied_time: Option<String>,
    /// What was observed, one condition per aspect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Generation of the spec the status describes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Number of nodes this policy governs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nodes: Option<i32>,
    /// One item per item of `spec.policies`, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub policies: Vec<PolicyEntryStatus>,
}

/// State of one use of a module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyEntryStatus {
    /// Name of the entry.
    pub name: String,
    /// `Loading`, `Active`, `Degraded`, `Invalid` or `Quarantined`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Name the running module gives itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub module: Option<String>,
    /// Version the running module gives itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Digest of the running module.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// Digest of the wanted module, when another one runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub desired_digest: Option<String>,
    /// Decisions the module is used for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<String>,
    /// `Enforce` or `Audit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforcement: Option<String>,
    /// Rows evaluated since the Syncer started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub evaluations: Option<i64>,
    /// Rows that ended in an error since the Syncer started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errors: Option<i64>,
    /// `<code>: <text>` of the last error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// When the last error happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last_error_time: Option<String>,
    /// What an `Audit` entry would change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audit: Option<AuditStatus>,
}

/// What an `Audit` entry would change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AuditStatus {
    /// Nodes whose lease would differ.
    pub nodes_affected: i32,
    /// Some of the differences, for example `node-7: gpu 6 -> 0 (NightGpu)`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 5))]
    pub sample: Vec<String>,
}
