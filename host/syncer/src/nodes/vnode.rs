//! What a vnode shall say (BU section 6): labels, annotations, taints, amounts, conditions, addresses.
//!
//! Pure. In: worker node, decision, reclaim state, where the Proxier is. Out: [`Content`]; `bodies` write it.
//! Nothing in it changes with the clock alone, so that a converged vnode is not written.

use std::{collections::BTreeMap, net::IpAddr};

use jiff::Timestamp;
use kubeocean_api::{
    keys::{self, annotation, condition_type, label, taint},
    name::fit_label_value,
    resource::floor_to_granularity,
};
use serde_json::{Map, Value, json};

use super::{
    conditions::{
        lease_condition, mirrored_conditions, mirrored_types, proxier_condition, reachable_condition, stated,
        statements,
    },
    decision::{Decision, Verdict},
    loss::WorkerLoss,
    metadata::{DenyList, ExpectedMetadata, merge_taints},
    reclaim::{LeaseState, Reclaiming, format_reclaim},
    snapshot::Amounts,
    view::{HOSTNAME, INTERNAL_IP, NO_SCHEDULE, NodeAddress, NodeCondition, NodeView, Taint, Texts},
};
use kubeocean_runtime::clock::rfc3339;

/// Longest value of annotation `policy-decision` in bytes (PO-1503).
const DECISION_MAX_BYTES: usize = 1024;

/// The API server takes 256 KiB of annotations, keys and values together; what is left is for users.
const ANNOTATIONS_MAX_BYTES: usize = 224 << 10;

/// The used part of the binding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BindingView {
    /// `metadata.name`.
    pub name: String,
    /// `spec.clusterID`.
    pub cluster_id: String,
    /// Being deleted: every vnode is withdrawn.
    pub deleting: bool,
    /// Vnodes come without the taint `vnode`.
    pub disable_default_taint: bool,
}

/// What does not change while the process runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// Keys that are not mirrored.
    pub deny: DenyList,
    /// Port of `prometheus-url`.
    pub prometheus_port: u16,
}

/// The used part of the policy that governs a node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GoverningPolicy {
    /// Name.
    pub name: String,
    /// Value of annotation `policy-details`.
    pub details: String,
    /// Our finalizer is on it.
    pub held: bool,
}

/// Everything a vnode is made of.
#[derive(Clone, Copy, Debug)]
pub struct Ingredients<'a> {
    /// Now; only used for times of what changes.
    pub now: Timestamp,
    /// The binding.
    pub binding: &'a BindingView,
    /// Settings.
    pub settings: &'a Settings,
    /// Name of the vnode.
    pub name: &'a str,
    /// The worker node.
    pub pnode: &'a NodeView,
    /// The vnode as it is.
    pub vnode: Option<&'a NodeView>,
    /// What others leave.
    pub available: &'a Amounts,
    /// The decision.
    pub decision: &'a Decision,
    /// The policy that governs.
    pub policy: &'a GoverningPolicy,
    /// What the decision means now.
    pub reclaiming: &'a Reclaiming,
    /// Its kubelet port.
    pub port: u16,
    /// Addresses of the Proxier.
    pub proxier: &'a [IpAddr],
    /// Why the worker has been out of reach for too long, if it has.
    pub loss: Option<WorkerLoss>,
    /// Node conditions last written, if this process wrote them.
    pub written: Option<&'a Written>,
}

/// What this process last wrote to a vnode, where that differs from what is on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Digest of the worker node's conditions, without times.
    pub conditions: u64,
    /// The worker node's taints of [`LIFECYCLE_TAINTS`]; `None` while only the vnode remembers them.
    pub lifecycle_taints: Option<Vec<Taint>>,
    /// Ready was True.
    pub ready: bool,
    /// When amounts were last written.
    pub amounts_at: Option<Timestamp>,
    /// When an event about changed amounts was last sent.
    pub event_at: Option<Timestamp>,
    /// When the lease was last opened again.
    pub opened_at: Option<Timestamp>,
}

/// What a vnode shall say.
#[derive(Clone, Debug, PartialEq)]
pub struct Content {
    /// Labels we set.
    pub labels: Texts,
    /// Annotations we set, without `last-sync-time`.
    pub annotations: Texts,
    /// Annotations of the worker node that are too large to be mirrored.
    pub left_out: Vec<String>,
    /// All taints, users' included.
    pub taints: Vec<Taint>,
    /// Capacity and allocatable in base units.
    pub amounts: Amounts,
    /// Conditions we set; the first ones are the worker node's.
    pub conditions: Vec<NodeCondition>,
    /// Verbatim.
    pub node_info: Map<String, Value>,
    /// Verbatim.
    pub phase: Option<String>,
    /// Addresses.
    pub addresses: Vec<NodeAddress>,
    /// Types of conditions that were mirrored, are still shown, and that the worker node has no more.
    pub vanished: Vec<String>,
    /// Kubelet port.
    pub port: u16,
}

/// Taints the node lifecycle controller of the computing cluster derives from conditions by itself. They are mirrored
/// when the worker's change, and otherwise left to it; two writers of one taint would never come to rest.
pub const LIFECYCLE_TAINTS: [&str; 6] = [
    "node.kubernetes.io/not-ready",
    "node.kubernetes.io/unreachable",
    "node.kubernetes.io/memory-pressure",
    "node.kubernetes.io/disk-pressure",
    "node.kubernetes.io/pid-pressure",
    "node.kubernetes.io/network-unavailable",
];

/// See the module documentation.
pub fn content(from: &Ingredients<'_>) -> Content {
    let labels = labels(from);
    let address = address(from.name, from.vnode, from.proxier);
    let before =
        ExpectedMetadata::decode(from.vnode.and_then(|v| v.annotation(annotation::EXPECTED_METADATA)));
    let wanted = taints(from, &before);
    let mut annotations = annotations(from, address.as_deref());
    let mut remembered = ExpectedMetadata::of(
        &labels,
        &annotations,
        &with_lifecycle(from, &wanted),
        mirrored_types(from.pnode),
    );
    annotations.insert(annotation::EXPECTED_METADATA.into(), remembered.encode());
    let mut left_out = Vec::new();
    while size(&annotations) > ANNOTATIONS_MAX_BYTES {
        let Some(key) = largest_mirrored(&annotations, from.pnode) else { break };
        annotations.remove(&key);
        remembered.annotations.remove(&key);
        annotations.insert(annotation::EXPECTED_METADATA.into(), remembered.encode());
        left_out.push(key);
    }
    let there = from.vnode.map(|vnode| &*vnode.spec.taints).unwrap_or_default();
    Content {
        taints: merge_taints(&before.taints, &wanted, there),
        labels,
        annotations,
        left_out,
        amounts: amounts(from),
        conditions: conditions(from),
        node_info: from.pnode.status.node_info.to_map(),
        phase: from.pnode.status.phase.clone(),
        addresses: addresses(from.name, address),
        vanished: vanished(&before.conditions, from),
        port: from.port,
    }
}

fn size(annotations: &Texts) -> usize {
    annotations.iter().map(|(key, value)| key.len() + value.len()).sum()
}

fn largest_mirrored(annotations: &Texts, pnode: &NodeView) -> Option<String> {
    let mut there = pnode.annotations.ascending();
    let mirrored = annotations.iter().filter(|(key, _)| there.get(key).is_some() && !keys::is_internal(key));
    mirrored.max_by_key(|(_, value)| value.len()).map(|(key, _)| key.clone())
}

fn vanished(before: &[String], from: &Ingredients<'_>) -> Vec<String> {
    let shown = |type_: &str| from.vnode.is_some_and(|vnode| vnode.condition(type_).is_some());
    let gone = |type_: &&String| from.pnode.condition(type_).is_none() && shown(type_);
    before.iter().filter(gone).cloned().collect()
}

fn labels(from: &Ingredients<'_>) -> Texts {
    let mut labels = from.settings.deny.mirrored(from.pnode.labels.iter());
    let mut set = |key: &str, value: &str| {
        labels.insert(key.to_owned(), value.to_owned());
    };
    set(label::MANAGED_BY, label::MANAGED_BY_VALUE);
    set(label::CLUSTER_BINDING, &fit_label_value(&from.binding.name));
    set(label::PHYSICAL_CLUSTER_ID, &from.binding.cluster_id);
    set(label::PHYSICAL_NODE_NAME, &fit_label_value(from.pnode.name()));
    set(label::PHYSICAL_NODE_UID, &fit_label_value(from.pnode.uid()));
    set(label::PROXIER_PORT, &from.port.to_string());
    set(label::TYPE, label::TYPE_VIRTUAL_KUBELET);
    set(label::INSTANCE_TYPE, label::INSTANCE_TYPE_VNODE);
    set(label::INSTANCE_TYPE_BETA, label::INSTANCE_TYPE_VNODE);
    set(label::HOSTNAME, from.name);
    set(label::EXCLUDE_FROM_LOAD_BALANCERS, "true");
    if let Some(address) = from.pnode.address(INTERNAL_IP) {
        set(label::PHYSICAL_NODE_INNER_IP, &address_label(address));
    }
    labels
}

/// An address as a label value: IPv6 with `-` for `:` (BU section 4).
fn address_label(address: &str) -> String {
    let plain = address.replace(':', "-");
    fit_label_value(plain.trim_start_matches(|c: char| !c.is_ascii_alphanumeric()))
}

fn annotations(from: &Ingredients<'_>, address: Option<&str>) -> Texts {
    let mut annotations = from.settings.deny.mirrored(from.pnode.annotations.iter());
    let mut set = |key: &str, value: String| {
        annotations.insert(key.to_owned(), value);
    };
    set(annotation::PHYSICAL_NODE_NAME, from.pnode.name().to_owned());
    set(annotation::PHYSICAL_NODE_UID, from.pnode.uid().to_owned());
    set(annotation::POLICIES_APPLIED, from.policy.name.clone());
    set(annotation::POLICY_DETAILS, from.policy.details.clone());
    let host = match address {
        Some(address) if address.contains(':') => format!("[{address}]"),
        Some(address) => address.to_owned(),
        None => "<pending>".to_owned(),
    };
    set(annotation::PROMETHEUS_URL, format!("{host}:{}/{}", from.settings.prometheus_port, from.name));
    if let Some(address) = from.pnode.address(INTERNAL_IP)
        && address_label(address) != address
    {
        set(annotation::PHYSICAL_NODE_INNER_IP, address.to_owned());
    }
    set(annotation::POLICY_DECISION, decision_text(from.policy, from.decision));
    if from.decision.announce {
        set(annotation::RECLAIM, format_reclaim(from.decision.reclaim));
    } else if let Some(kept) = from.vnode.and_then(|vnode| vnode.annotation(annotation::RECLAIM)) {
        set(annotation::RECLAIM, kept.to_owned());
    }
    if let Some(since) = from.reclaiming.since {
        set(annotation::RECLAIM_SINCE, rfc3339(since));
    }
    annotations
}

/// Value of annotation `policy-decision` (PO-1503). Limits are left out, last name first, until it fits.
fn decision_text(policy: &GoverningPolicy, decision: &Decision) -> String {
    let verdict = match decision.verdict {
        Verdict::Offer => "offer",
        Verdict::Withhold => "withhold",
        Verdict::Held => "held",
    };
    let mut limited_by: BTreeMap<&String, &String> = decision.limited_by.iter().collect();
    loop {
        let mut value = json!({
            "rlp": policy.name, "generation": decision.generation, "verdict": verdict, "limitedBy": limited_by,
        });
        if let Some(reason) = &decision.reason {
            value["reason"] = reason.code.as_str().into();
        }
        if let Some(until) = decision.valid_until.and_then(|until| Timestamp::from_second(until).ok()) {
            value["validUntil"] = rfc3339(until).into();
        }
        let text = value.to_string();
        if text.len() <= DECISION_MAX_BYTES || limited_by.pop_last().is_none() {
            return text;
        }
    }
}

/// Taints we want, users' excluded, in the order of BU-602. After a restart `before`, what the vnode remembers, tells which
/// lifecycle taints were written.
fn taints(from: &Ingredients<'_>, before: &ExpectedMetadata) -> Vec<Taint> {
    let mut wanted = Vec::new();
    let lifecycle = lifecycle_taints(&from.pnode.spec.taints);
    let settled = match from.written.and_then(|written| written.lifecycle_taints.as_ref()) {
        Some(written) => *written == lifecycle,
        None => lifecycle_taints(&before.taints) == lifecycle,
    };
    for taint in &from.pnode.spec.taints {
        match taint.key.as_str() {
            taint::OUT_OF_TIME_WINDOWS | taint::VNODE_DELETING | taint::WORKER_UNREACHABLE => {}
            taint::NODE_UNSCHEDULABLE => wanted.push(Taint {
                key: taint::PHYSICAL_NODE_UNSCHEDULABLE.into(),
                time_added: None,
                ..taint.clone()
            }),
            key if settled && LIFECYCLE_TAINTS.contains(&key) => {}
            _ => wanted.push(taint.clone()),
        }
    }
    if let (true, Some(vnode)) = (settled, from.vnode) {
        wanted
            .extend(vnode.spec.taints.iter().filter(|t| LIFECYCLE_TAINTS.contains(&t.key.as_str())).cloned());
    }
    if !from.binding.disable_default_taint {
        wanted.push(Taint::new(taint::VNODE, None, NO_SCHEDULE));
    }
    wanted.extend(from.reclaiming.taint.clone());
    if from.loss.is_some() {
        wanted.push(unreachable_taint());
    }
    distinct(wanted)
}

/// The first taint of each (key, effect): the API server refuses two of them.
fn distinct(taints: Vec<Taint>) -> Vec<Taint> {
    let mut kept: Vec<Taint> = Vec::with_capacity(taints.len());
    for taint in taints {
        if !kept.iter().any(|other| other.is_same_as(&taint)) {
            kept.push(taint);
        }
    }
    kept
}

/// The wanted taints with the worker's own lifecycle taints, whatever became of them on the vnode: what we remember
/// must not follow the computing cluster's controllers.
fn with_lifecycle(from: &Ingredients<'_>, wanted: &[Taint]) -> Vec<Taint> {
    let lifecycle = |taint: &&Taint| LIFECYCLE_TAINTS.contains(&taint.key.as_str());
    let ours = wanted.iter().filter(|taint| !lifecycle(taint));
    ours.chain(from.pnode.spec.taints.iter().filter(lifecycle)).cloned().collect()
}

/// Set while the worker's API is out of reach.
pub fn unreachable_taint() -> Taint {
    Taint::new(taint::WORKER_UNREACHABLE, Some("true"), NO_SCHEDULE)
}

/// The taints of [`LIFECYCLE_TAINTS`], sorted, without times.
pub fn lifecycle_taints(taints: &[Taint]) -> Vec<Taint> {
    let mut found: Vec<Taint> = taints
        .iter()
        .filter(|taint| LIFECYCLE_TAINTS.contains(&taint.key.as_str()))
        .map(Taint::timeless)
        .collect();
    found.sort();
    found
}

/// R of BU-504: never above what others leave, in whole units the API server accepts. Resources the worker node no
/// longer has are published as 0, as kubelets do.
fn amounts(from: &Ingredients<'_>) -> Amounts {
    let mut amounts: Amounts = from
        .available
        .iter()
        .map(|(resource, available)| {
            let granted = from.decision.amounts.get(resource).copied().unwrap_or(0).clamp(0, *available);
            (resource.clone(), floor_to_granularity(resource, granted))
        })
        .collect();
    if let Some(vnode) = from.vnode {
        for resource in vnode.status.allocatable.keys().chain(vnode.status.capacity.keys()) {
            amounts.entry(resource.to_owned()).or_insert(0);
        }
    }
    amounts
}

fn conditions(from: &Ingredients<'_>) -> Vec<NodeCondition> {
    let mut conditions = mirrored_conditions(from.pnode, from.vnode, from.written);
    conditions.push(stated(from.vnode, lease_condition(from.decision, from.reclaiming), from.now));
    conditions.push(stated(from.vnode, reachable_condition(from.loss), from.now));
    conditions.push(stated(from.vnode, proxier_condition(from.proxier), from.now));
    conditions
}

impl Written {
    /// What is to be remembered when the content was written.
    pub fn of(pnode: &NodeView, before: Option<&Self>) -> Self {
        Self {
            conditions: statements(pnode),
            lifecycle_taints: Some(lifecycle_taints(&pnode.spec.taints)),
            ready: pnode.ready(),
            amounts_at: before.and_then(|before| before.amounts_at),
            event_at: before.and_then(|before| before.event_at),
            opened_at: before.and_then(|before| before.opened_at),
        }
    }

    /// As [`Written::of`] when conditions were written and taints were not.
    pub fn conditions_of(pnode: &NodeView, before: Option<&Self>) -> Self {
        let lifecycle_taints = before.and_then(|before| before.lifecycle_taints.clone());
        Self { lifecycle_taints, ..Self::of(pnode, before) }
    }
}

/// The Proxier address of a vnode: the one it has while that is served, else one by the vnode's name; without any
/// Proxier the last one stays.
pub fn address(name: &str, vnode: Option<&NodeView>, proxier: &[IpAddr]) -> Option<String> {
    let current = vnode.and_then(|vnode| vnode.address(INTERNAL_IP));
    if proxier.is_empty() || proxier.iter().any(|ip| Some(ip.to_string().as_str()) == current) {
        return current.map(str::to_owned);
    }
    let spread =
        name.bytes().fold(0_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(usize::from(byte)));
    proxier.get(spread % proxier.len()).map(IpAddr::to_string)
}

/// The address list of a vnode.
pub fn addresses(name: &str, address: Option<String>) -> Vec<NodeAddress> {
    let entry = |type_: &str, address: String| NodeAddress { type_: type_.into(), address };
    address.map(|ip| entry(INTERNAL_IP, ip)).into_iter().chain([entry(HOSTNAME, name.to_owned())]).collect()
}

impl Content {
    /// State shown by condition `Lease`.
    pub fn lease_status(&self) -> &str {
        self.conditions
            .iter()
            .find(|condition| condition.type_ == condition_type::LEASE)
            .map_or("", |condition| condition.status.as_str())
    }
}

/// Whether pods are being evicted in this state.
pub fn evicts(state: LeaseState) -> bool {
    state == LeaseState::Closed
}
