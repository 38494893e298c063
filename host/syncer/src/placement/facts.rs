//! What the policy engine is told about a pod and about a vnode it may go to (policy spec section 4).
//!
//! Pure. A pod may come from a watch, from a scheduler or from a test: what is missing or malformed counts as absent.

use std::collections::BTreeMap;

use kubeocean_api::{keys::annotation, quantity::Rounding};
use kubeocean_engine::{NodeFacts, PodFacts};
use kubeocean_runtime::meta::PackedMeta;
use serde::Deserialize;
use serde_json::Value;

use crate::nodes::{
    requests::{limits_of, requests_of},
    snapshot::{Amounts, in_base_units, taints},
    view::NodeView,
};

/// Facts about a pod, from its metadata and its spec as JSON.
pub fn pod_facts(metadata: &PackedMeta, spec: &Value) -> PodFacts {
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let owners = metadata.owner_references.as_deref().unwrap_or_default();
    let owner = owners.iter().find(|owner| owner.controller == Some(true)).or_else(|| owners.first());
    PodFacts {
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        service_account: text(&spec["serviceAccountName"]),
        priority_class: text(&spec["priorityClassName"]),
        scheduler_name: text(&spec["schedulerName"]),
        owner_kind: owner.map(|owner| owner.kind.clone()),
        owner_name: owner.map(|owner| owner.name.clone()),
        labels: metadata.labels.to_map(),
        annotations: metadata.annotations.to_map(),
        node_selector: texts(&spec["nodeSelector"]),
        requests: requests_of(spec),
        limits: limits_of(spec),
        priority: spec["priority"].as_i64(),
        containers: spec["containers"]
            .as_array()
            .map_or(0, |list| i64::try_from(list.len()).unwrap_or(i64::MAX)),
        host_network: spec["hostNetwork"].as_bool().unwrap_or(false),
        created_unix: metadata.creation_timestamp.as_ref().map(|at| at.0.as_second()),
    }
}

/// Facts about a pod, from the whole of it as JSON.
pub fn facts_of_pod(pod: &Value) -> PodFacts {
    pod_facts(&PackedMeta::deserialize(&pod["metadata"]).unwrap_or_default(), &pod["spec"])
}

fn texts(value: &Value) -> BTreeMap<String, String> {
    let members = value.as_object().into_iter().flatten();
    members.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// Facts about a vnode. `used` is what the pods bound to it request, `measured` what is used of its worker node.
pub fn vnode_facts(vnode: &NodeView, used: Amounts, measured: Amounts) -> NodeFacts {
    let node_info = vnode.status.node_info.to_map();
    let info = |key: &str| node_info.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    NodeFacts {
        node_name: vnode.annotation_or_label(annotation::PHYSICAL_NODE_NAME).unwrap_or_default().to_owned(),
        vnode_name: vnode.name().to_owned(),
        labels: vnode.labels.to_map(),
        annotations: vnode.annotations.to_map(),
        taints: taints(&vnode.spec.taints),
        arch: info("architecture"),
        os: info("operatingSystem"),
        allocatable: in_base_units(&vnode.status.allocatable, Rounding::Down),
        used,
        usage: measured,
        ready: vnode.ready(),
        schedulable: !vnode.spec.unschedulable,
        vnode_exists: true,
        ..NodeFacts::default()
    }
}
