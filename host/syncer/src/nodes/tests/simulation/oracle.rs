//! What shall be, computed from plain objects by brute force: no index, no sums, no order of events.

use std::collections::BTreeMap;

use jiff::{Timestamp, Zoned, tz::TimeZone};
use kubeocean_api::keys::{annotation, label};
use serde_json::Value;

use crate::nodes::snapshot::Amounts;

/// Objects by name.
pub(super) type Objects = BTreeMap<String, Value>;

/// The part of the two clusters a lease depends on.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) pnodes: &'a Objects,
    pub(super) wpods: &'a Objects,
    pub(super) policies: &'a Objects,
    pub(super) binding: &'a Value,
}

/// What is leased of a node.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Lease {
    pub(super) policy: String,
    /// An invalid policy holds what is there and changes nothing else.
    pub(super) valid: bool,
    pub(super) open: bool,
    /// Grace in seconds where pods are evicted outside the windows.
    pub(super) evicts_after: Option<i64>,
    pub(super) available: Amounts,
    pub(super) caps: Amounts,
}

impl Lease {
    /// Pods are, or soon will be, evicted because the lease is closed.
    pub(super) fn reclaims(&self) -> Option<i64> {
        self.evicts_after.filter(|_| self.valid && !self.open)
    }
}

/// The lease of a node, if it has one.
pub(super) fn lease(view: &View<'_>, node: &str, now: Timestamp) -> Option<Lease> {
    let pnode = view.pnodes.get(node)?;
    if must_go(view, node) || !selects(&view.binding["nodeSelector"], pnode) {
        return None;
    }
    let mut policies: Vec<&Value> = view.policies.values().collect();
    policies.sort_by_key(|policy| {
        (policy["metadata"]["creationTimestamp"].to_string(), policy["metadata"]["name"].to_string())
    });
    let policy = policies.into_iter().find(|policy| {
        policy["metadata"].get("deletionTimestamp").is_none()
            && policy["spec"]["cluster"] == "dc-east"
            && selects(&policy["spec"]["nodeSelector"], pnode)
    })?;
    let spec = &policy["spec"];
    let available = available(view, node);
    let mut caps = available.clone();
    for limit in list(&spec["resourceLimits"]) {
        let Some(amount) = caps.get_mut(limit["resource"].as_str().unwrap()) else { continue };
        if let Some(percent) = limit["percent"].as_i64() {
            *amount = (*amount).min(*amount * percent / 100);
        }
        if let Some(cores) = limit["quantity"].as_str() {
            *amount = (*amount).min(cores.parse::<i64>().unwrap() * 1000);
        }
    }
    let wrong = |window: &Value| window["start"] == "25:00";
    let grace = spec["gracefulReclaimPeriodSeconds"].as_i64().unwrap_or(0);
    Some(Lease {
        policy: policy["metadata"]["name"].as_str().unwrap().to_owned(),
        valid: !list(&spec["timeWindows"]).iter().any(wrong)
            && !list(&spec["resourceLimits"]).iter().any(|limit| limit["percent"] == 101),
        open: is_open(&spec["timeWindows"], &now.to_zoned(TimeZone::UTC)),
        evicts_after: (spec["forceReclaim"] == true).then_some(grace),
        available,
        caps,
    })
}

/// Gone, going, of a kind that is never leased, or of a binding that is being deleted: nothing is waited for.
pub(super) fn must_go(view: &View<'_>, node: &str) -> bool {
    view.pnodes.get(node).is_none_or(|pnode| {
        let excluded = pnode["metadata"]["labels"][label::INSTANCE_TYPE] == "eklet";
        excluded || pnode["metadata"].get("deletionTimestamp").is_some()
    }) || view.binding["deleting"] == true
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn selects(selector: &Value, pnode: &Value) -> bool {
    let wanted = &selector["nodeSelectorTerms"][0]["matchExpressions"][0];
    wanted.is_null() || pnode["metadata"]["labels"]["pool"] == wanted["values"][0]
}

/// BU-802 and BU-803 in their plainest form.
pub(in crate::nodes::tests) fn is_open(windows: &Value, local: &Zoned) -> bool {
    let clock = local.strftime("%H:%M").to_string();
    let today = local.strftime("%A").to_string();
    let inside = |window: &Value| {
        let (start, end) = (window["start"].as_str().unwrap(), window["end"].as_str().unwrap());
        let days = list(&window["days"]);
        let hours =
            if end < start { *clock >= *start || *clock <= *end } else { *clock >= *start && *clock <= *end };
        hours && (days.is_empty() || days.iter().any(|day| *day == *today))
    };
    let windows = list(windows);
    windows.is_empty() || windows.iter().any(inside)
}

/// What the pods of others leave of a node.
pub(super) fn available(view: &View<'_>, node: &str) -> Amounts {
    let pnode = &view.pnodes[node]["status"]["allocatable"];
    let amount = |value: &Value| -> i64 {
        let text = value.as_str().unwrap();
        text.strip_suffix('m').or(text.strip_suffix("Mi")).unwrap_or(text).parse().unwrap()
    };
    let (mut cpu, mut mib, mut pods) =
        (amount(&pnode["cpu"]), amount(&pnode["memory"]), amount(&pnode["pods"]));
    for pod in view.wpods.values().filter(|pod| pod["spec"]["nodeName"] == node && is_foreign(pod, node)) {
        if pod["status"]["phase"] == "Succeeded" || pod["status"]["phase"] == "Failed" {
            continue;
        }
        let requests = &pod["spec"]["containers"][0]["resources"]["requests"];
        cpu -= amount(&requests["cpu"]);
        mib -= amount(&requests["memory"]);
        pods -= 1;
    }
    [("cpu", cpu.max(0)), ("memory", mib.max(0) << 20), ("pods", pods.max(0))]
        .map(|(resource, amount)| (resource.to_owned(), amount))
        .into()
}

fn is_foreign(pod: &Value, node: &str) -> bool {
    let (labels, annotations) = (&pod["metadata"]["labels"], &pod["metadata"]["annotations"]);
    if labels[label::MANAGED_BY] != "kubeocean" {
        return true;
    }
    let (binding, cluster) =
        (&labels[label::CLUSTER_BINDING], &annotations[annotation::COMPUTING_CLUSTER_UID]);
    if binding.is_null() && cluster.is_null() {
        return annotations[annotation::VIRTUAL_NODE_NAME] != format!("vnode-cls-a-{node}");
    }
    !(binding == "dc-east" && cluster == "computing")
}
