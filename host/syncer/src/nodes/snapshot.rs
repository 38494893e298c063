//! What the policy engine is told about a node.
//!
//! In: worker node, sums of requests, vnode. Out: [`NodeFacts`] in base units. Nothing here depends on the clock.

use std::collections::BTreeMap;

use kubeocean_api::{
    keys::{annotation, taint},
    quantity::Rounding,
    resource::to_base_units,
};
use kubeocean_engine::{NodeFacts, Published};
use kubeocean_runtime::packed::PackedTexts;
use serde_json::Value;

use super::view::{NodeView, Taint, Texts};

/// Amounts in base units by resource.
pub type Amounts = BTreeMap<String, i64>;

/// What is used of a node. Requests of this binding's pods and of everybody else's, each pod counting once under `pods`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Everybody else's, other bindings' included.
    pub others: Amounts,
    /// This binding's.
    pub own: Amounts,
    /// Measured, whoever uses it; empty without a measurement.
    pub measured: Amounts,
}

/// Base B of BU-501: allocatable, or capacity where a node reports no allocatable.
pub fn base(pnode: &NodeView) -> Amounts {
    let written =
        if pnode.status.allocatable.is_empty() { &pnode.status.capacity } else { &pnode.status.allocatable };
    in_base_units(written, Rounding::Down)
}

/// What others leave of B (BU-503).
pub fn available(base: &Amounts, others: &Amounts) -> Amounts {
    base.iter()
        .map(|(resource, total)| {
            let used = others.get(resource).copied().unwrap_or(0);
            (resource.clone(), total.saturating_sub(used).max(0))
        })
        .collect()
}

pub(crate) fn in_base_units(written: &PackedTexts, rounding: Rounding) -> Amounts {
    written
        .iter()
        .filter_map(|(resource, text)| {
            Some((resource.to_owned(), to_base_units(resource, text, rounding).ok()?))
        })
        .collect()
}

/// Facts about one node.
pub fn facts(pnode: &NodeView, vnode_name: &str, vnode: Option<&NodeView>, usage: &Usage) -> NodeFacts {
    let node_info = pnode.status.node_info.to_map();
    let info = |key: &str| node_info.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    NodeFacts {
        node_name: pnode.name().to_owned(),
        vnode_name: vnode_name.to_owned(),
        labels: pnode.labels.to_map(),
        annotations: pnode.annotations.to_map(),
        taints: taints(&pnode.spec.taints),
        arch: info("architecture"),
        os: info("operatingSystem"),
        allocatable: base(pnode),
        used: usage.others.clone(),
        leased: usage.own.clone(),
        usage: usage.measured.clone(),
        ready: pnode.ready(),
        schedulable: !pnode.spec.unschedulable,
        created_unix: pnode.metadata.created.map_or(0, jiff::Timestamp::as_second),
        vnode_exists: vnode.is_some(),
        published: vnode.map(published),
    }
}

/// What a vnode publishes. A closed lease does not open because somebody took its taint off: it is told by what was decided
/// and by a reclaim that runs as well.
pub fn published(vnode: &NodeView) -> Published {
    let decision = vnode
        .annotation(annotation::POLICY_DECISION)
        .and_then(|text| serde_json::from_str::<Value>(text).ok())
        .unwrap_or_default();
    let valid_until = decision["validUntil"].as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    Published {
        amounts: in_base_units(&vnode.status.allocatable, Rounding::Down),
        offered: vnode.taint(taint::OUT_OF_TIME_WINDOWS).is_none()
            && vnode.annotation(annotation::RECLAIM_SINCE).is_none()
            && decision["verdict"] != "withhold",
        valid_until: valid_until.map(jiff::Timestamp::as_second),
    }
}

/// Taint key -> `value:Effect`, several joined in order.
pub(crate) fn taints(taints: &[Taint]) -> Texts {
    let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for taint in taints {
        let text = format!("{}:{}", taint.value.as_deref().unwrap_or_default(), taint.effect);
        by_key.entry(taint.key.to_string()).or_default().push(text);
    }
    by_key
        .into_iter()
        .map(|(key, mut texts)| {
            texts.sort();
            (key, texts.join(","))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[test]
    fn facts_carry_base_units_and_sorted_taints() {
        let pnode: NodeView = serde_saphyr::from_str(
            "{metadata: {name: n, labels: {a: b}}, spec: {unschedulable: true, taints: [{key: k, effect: NoSchedule}, {key: k, value: v, effect: NoExecute}]}, \
              status: {capacity: {cpu: 9}, allocatable: {cpu: 3900m, memory: 8Gi, pods: 110}, nodeInfo: {architecture: arm64, operatingSystem: linux}, \
              conditions: [{type: Ready, status: 'True'}]}}",
        )
        .unwrap();
        let usage = Usage {
            others: Amounts::from([("cpu".into(), 1000)]),
            measured: Amounts::from([("cpu".into(), 700)]),
            ..Usage::default()
        };
        let facts = facts(&pnode, "vnode-n", None, &usage);
        assert_eq!(facts.allocatable["cpu"], 3900);
        assert_eq!(facts.allocatable["memory"], 8 << 30);
        assert_eq!((facts.used["cpu"], facts.usage["cpu"]), (1000, 700));
        assert_eq!(facts.taints["k"], ":NoSchedule,v:NoExecute");
        assert_eq!((facts.arch.as_str(), facts.ready, facts.schedulable), ("arm64", true, false));
        assert_eq!(available(&facts.allocatable, &usage.others)["cpu"], 2900);
        assert_eq!(facts.published, None);
    }

    #[test]
    fn a_vnode_tells_what_it_publishes() {
        let vnode: NodeView = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "v", "annotations": {
                annotation::POLICY_DECISION: "{\"validUntil\":\"2027-01-15T08:00:00Z\"}"
            }},
            "spec": {"taints": [{"key": taint::OUT_OF_TIME_WINDOWS, "effect": "NoSchedule"}]},
            "status": {"allocatable": {"cpu": "1500m"}},
        }))
        .unwrap();
        let published = published(&vnode);
        assert_eq!(published.amounts["cpu"], 1500);
        assert!(!published.offered);
        assert_eq!(published.valid_until, Some(1_800_000_000));
    }

    /// Whatever a user takes off, one of what says that the lease is closed is enough.
    #[rstest]
    #[case::open(json!({annotation::POLICY_DECISION: "{\"verdict\":\"offer\"}"}), json!([]), true)]
    #[case::nothing_said(json!({}), json!([]), true)]
    #[case::broken(json!({annotation::POLICY_DECISION: "x"}), json!([]), true)]
    #[case::the_taint(json!({}), json!([{"key": taint::OUT_OF_TIME_WINDOWS, "effect": "NoSchedule"}]), false)]
    #[case::what_was_decided(json!({annotation::POLICY_DECISION: "{\"verdict\":\"withhold\"}"}), json!([]), false)]
    #[case::a_reclaim(json!({annotation::RECLAIM_SINCE: "2027-01-15T08:00:00Z"}), json!([]), false)]
    fn what_says_that_a_lease_is_closed(
        #[case] annotations: Value,
        #[case] taints: Value,
        #[case] offered: bool,
    ) {
        let vnode =
            json!({"metadata": {"name": "v", "annotations": annotations}, "spec": {"taints": taints}});
        assert_eq!(published(&serde_json::from_value(vnode).unwrap()).offered, offered);
    }
}
