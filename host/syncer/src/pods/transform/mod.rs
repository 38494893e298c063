//! Makes the pod of the worker cluster out of the pod of the computing cluster (TD section 6).
//!
//! A pure function on JSON values, called by the pods' apply stage right before it creates a ppod. JSON, because a pod
//! spec is copied between clusters: fields newer than our types must survive. Whatever a tenant writes into its pod,
//! the result carries our identity, lands in the mount namespace, has no ServiceAccount and gets no token of the worker
//! cluster.

mod containers;
mod metadata;
mod scheduling;
#[cfg(test)]
mod tests;
mod volumes;

use kubeocean_api::name::phys_name;
use serde_json::{Map, Value, json};

pub use metadata::{travelling_annotations, travelling_labels};
pub use scheduling::{Scheduling, worker_tolerations};

use super::{
    references::{references, rename},
    service_environment::{DnsNeed, ServiceEnvironment, dns_need, set_dns},
    vpod_identity::VpodIdentity,
};

/// Longest host name of a pod in bytes.
const HOSTNAME_MAX_BYTES: usize = 63;

/// What the transformation needs beside the vpod.
#[derive(Debug, Clone, Copy)]
pub struct TransformContext<'a> {
    /// Name of the binding, for the stamp (TD-1103).
    pub binding: &'a str,
    /// UID of the computing cluster's namespace `kube-system`, for the stamp (TD-1103).
    pub computing_uid: &'a str,
    /// Namespace of the ppod: `spec.mountNamespace` of the binding.
    pub mount_namespace: &'a str,
    /// Worker node behind the vnode the vpod is bound to.
    pub worker_node: &'a str,
    /// How the ppod gets to that node: `spec.directScheduling` of the binding.
    pub scheduling: Scheduling,
    /// PriorityClass of the ppod: the binding's, or the default (TD-509).
    pub priority_class: &'a str,
    /// Label value (TD-508); empty writes no label.
    pub workload_type: &'a str,
    /// Label value (TD-508); empty writes no label.
    pub workload_name: &'a str,
    /// Encoded metadata for later three-way merges (TD-801).
    pub expected_metadata: Option<&'a str>,
    /// Addresses of the computing cluster's API server and DNS.
    pub services: &'a ServiceEnvironment,
}

/// Why a vpod cannot be made into a ppod. It stays so until the vpod is another one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reject {
    /// It asks for what is not mapped. Condition reason `NotSupported`.
    #[error("not supported on leased nodes: {}", what.join(", "))]
    Unsupported {
        /// In words for the pod's owner.
        what: Vec<String>,
    },
    /// It is not a pod as an API server stores it.
    #[error("the pod has no {missing}")]
    Malformed {
        /// The missing part.
        missing: &'static str,
    },
}

/// The ppod for `vpod` (TD-507, TD-600..604, TD-702..705).
pub fn to_worker_pod(vpod: &Value, ctx: &TransformContext<'_>) -> Result<Value, Reject> {
    let identity = VpodIdentity::of(vpod).ok_or(Reject::Malformed { missing: "namespace, name or uid" })?;
    let spec = vpod.get("spec").ok_or(Reject::Malformed { missing: "spec" })?;
    let unsupported = references(&identity.key.name, spec).unsupported;
    if !unsupported.is_empty() {
        return Err(Reject::Unsupported { what: unsupported });
    }

    let mut copy = spec.clone();
    rename(&mut copy, &|name| phys_name(name, &identity.key.namespace));
    volumes::rewrite(&mut copy, &identity);
    containers::rewrite(&mut copy, &identity, ctx.services);
    let Value::Object(copy) = &mut copy else { return Err(Reject::Malformed { missing: "spec" }) };
    let need = dns_need(spec);
    if need == DnsNeed::Cluster && ctx.services.dns_address.is_none() {
        return Err(Reject::Malformed { missing: "address of cluster DNS" });
    }
    set_dns(copy, &identity.key.namespace, need, ctx.services);
    scheduling::rewrite(copy, ctx);
    identify(copy, &identity, ctx.services);

    Ok(json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata::metadata(vpod, &identity, ctx),
        "spec": copy,
    }))
}

/// The debug containers of a vpod, as they are to be added to its ppod (TD-803 *Do better*).
pub fn worker_debug_containers(vpod: &Value, services: &ServiceEnvironment) -> Result<Vec<Value>, Reject> {
    let identity = VpodIdentity::of(vpod).ok_or(Reject::Malformed { missing: "namespace, name or uid" })?;
    let mut spec = vpod.get("spec").cloned().ok_or(Reject::Malformed { missing: "spec" })?;
    rename(&mut spec, &|name| phys_name(name, &identity.key.namespace));
    containers::rewrite(&mut spec, &identity, services);
    match spec.get_mut("ephemeralContainers").map(Value::take) {
        Some(Value::Array(containers)) => Ok(containers),
        _ => Ok(Vec::new()),
    }
}

/// Cuts the pod off the worker cluster's identity: no ServiceAccount, no token, no environment of the mount namespace.
fn identify(spec: &mut Map<String, Value>, identity: &VpodIdentity, services: &ServiceEnvironment) {
    for field in [
        "serviceAccountName",
        "serviceAccount",
        // Nobody sets the gates' conditions on the ppod; they are evaluated on the vpod.
        "readinessGates",
        // The API server forbids these at creation; they are added afterwards.
        "ephemeralContainers",
    ] {
        spec.remove(field);
    }
    spec.insert("automountServiceAccountToken".to_owned(), false.into());
    spec.insert("enableServiceLinks".to_owned(), false.into());
    if spec.get("hostname").and_then(Value::as_str).is_none_or(str::is_empty) {
        spec.insert("hostname".to_owned(), host_name(&identity.key.name).into());
    }
    let aliases = spec.entry("hostAliases").or_insert_with(|| json!([]));
    match aliases {
        Value::Array(aliases) => aliases.push(services.host_alias()),
        other => *other = json!([services.host_alias()]),
    }
}

/// The host name a pod of that name has: a label, so dots become dashes.
fn host_name(pod: &str) -> String {
    // Pod names are ASCII, so bytes are characters.
    let label: String =
        pod.chars().take(HOSTNAME_MAX_BYTES).map(|c| if c == '.' { '-' } else { c }).collect();
    label.trim_end_matches('-').to_owned()
}
