//! Where and with what priority a ppod runs: on the worker node behind its vnode, and nowhere else.

use kubeocean_api::keys::taint;
use serde_json::{Map, Value, json};

use super::TransformContext;

/// How a ppod gets to its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheduling {
    /// The worker's scheduler puts it there, because of a required node affinity.
    ByAffinity,
    /// The node is written into the pod, past the worker's scheduler.
    Direct,
}

/// Fields that mean something to the computing cluster's scheduler or admission only, and would be refused, ignored or
/// make the pod wait for ever in the worker.
const DROPPED: [&str; 11] = [
    "nodeName",
    "affinity",
    "nodeSelector",
    "schedulerName",
    "priority",
    // The worker's priority admission refuses a policy other than its class's.
    "preemptionPolicy",
    // The worker's RuntimeClass admission sets it.
    "overhead",
    "topologySpreadConstraints",
    "schedulingGates",
    // Objects of the computing cluster that say which pods start together; its scheduler has waited for them.
    "workloadRef",
    "schedulingGroup",
];

pub(super) fn rewrite(spec: &mut Map<String, Value>, ctx: &TransformContext<'_>) {
    for field in DROPPED {
        spec.remove(field);
    }
    spec.insert("priorityClassName".to_owned(), ctx.priority_class.into());
    match ctx.scheduling {
        Scheduling::Direct => {
            spec.insert("nodeName".to_owned(), ctx.worker_node.into());
        }
        Scheduling::ByAffinity => {
            spec.insert("affinity".to_owned(), affinity(ctx.worker_node));
        }
    }
    if let Some(Value::Array(tolerations)) = spec.get_mut("tolerations") {
        translate(tolerations);
    }
}

/// The tolerations a ppod must have for those of its vpod.
pub fn worker_tolerations(tolerations: &[Value]) -> Vec<Value> {
    let mut translated = tolerations.to_vec();
    translate(&mut translated);
    translated
}

/// The vnode's taint for a cordoned node has a key of our own; the node itself carries Kubernetes' key.
fn translate(tolerations: &mut Vec<Value>) {
    let key = |toleration: &Value| toleration.get("key").and_then(Value::as_str).map(str::to_owned);
    let for_node: Vec<Value> = tolerations
        .iter()
        .filter(|toleration| key(toleration).as_deref() == Some(taint::PHYSICAL_NODE_UNSCHEDULABLE))
        .map(|toleration| {
            let mut copy = toleration.clone();
            copy["key"] = taint::NODE_UNSCHEDULABLE.into();
            copy
        })
        .collect();
    for toleration in for_node {
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
}

fn affinity(worker_node: &str) -> Value {
    json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [
        {"matchFields": [{"key": "metadata.name", "operator": "In", "values": [worker_node]}]},
    ]}}})
}
