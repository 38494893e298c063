//! Amounts of resources that are not counted one by one, and of those that nobody counts (BU section 5).

use std::sync::Arc;

use jiff::tz::TimeZone;
use kubeocean_engine::{BindingFacts, PolicyHost, PolicySpec};
use rstest::rstest;
use serde_json::{Value, json};

use super::model::{Model, VNODE, at, engine};
use crate::nodes::{
    decision::Decision,
    snapshot::{Usage, facts},
    view::NodeView,
};

const HUGE: &str = "hugepages-2Mi";
const VOLUMES: &str = "attachable-volumes-x";

/// A node with this much of a resource, of which others use some.
fn node(resource: &str, there: &str, used: i64) -> Model {
    let mut model = Model::new();
    model.pnode.as_mut().unwrap()["status"]["allocatable"][resource] = there.into();
    if used > 0 {
        model.used.insert(resource.into(), used);
    }
    model
}

/// What the real engine makes of these limits.
fn decide(limits: &Value, model: &Model) -> Decision {
    let facts_of_binding = BindingFacts { name: "dc-east".into(), cluster_id: "cls-a".into() };
    let host = PolicyHost::new(engine(), facts_of_binding, TimeZone::UTC, Box::new(|| {}));
    host.set_policies(vec![PolicySpec {
        name: "p".into(),
        uid: "u".into(),
        created_unix: 1,
        generation: 1,
        spec: serde_json::from_value(json!({"resourceLimits": limits})).unwrap(),
        modules: std::collections::BTreeMap::new(),
    }]);
    let pnode: NodeView = serde_json::from_value(model.pnode.clone().unwrap()).unwrap();
    let usage = Usage { others: model.used.clone(), ..Usage::default() };
    host.decide(at(model.now), &[Arc::new(facts(&pnode, VNODE, None, &usage))]).pop().unwrap()
}

/// What the vnode says of a resource, and whether there is nothing left to write then.
fn published(model: &mut Model, resource: &str) -> [Value; 2] {
    model.settle();
    assert!(model.plan().actions.is_empty());
    let status = &model.vnode.as_ref().unwrap()["status"];
    ["allocatable", "capacity"].map(|part| status[part][resource].clone())
}

#[rstest]
#[case::half_of_five_pages(HUGE, "10Mi", 0, json!([{"resource": HUGE, "percent": 50}]), "4Mi")]
#[case::half_of_four_pages(HUGE, "8Mi", 0, json!([{"resource": HUGE, "percent": 50}]), "4Mi")]
#[case::a_quantity_between_pages(HUGE, "10Mi", 0, json!([{"resource": HUGE, "quantity": "7Mi"}]), "6Mi")]
#[case::less_than_a_page(HUGE, "10Mi", 0, json!([{"resource": HUGE, "quantity": "1Mi"}]), "0")]
#[case::a_page_of_another_size("hugepages-1Gi", "3Gi", 0, json!([{"resource": "hugepages-1Gi", "percent": 50}]), "1Gi")]
#[case::pages_of_others(HUGE, "10Mi", 4 << 20, json!([]), "6Mi")]
#[case::a_share_of_what_others_leave(HUGE, "10Mi", 4 << 20, json!([{"resource": HUGE, "percent": 50}]), "2Mi")]
#[case::volumes_are_passed_on(VOLUMES, "25", 0, json!([{"resource": "cpu", "percent": 50}]), "25")]
#[case::of_volumes_a_share_in_whole_ones(VOLUMES, "25", 0, json!([{"resource": VOLUMES, "percent": 50}]), "12")]
#[case::no_volumes(VOLUMES, "0", 0, json!([]), "0")]
fn a_vnode_publishes_of_what_its_node_has(
    #[case] resource: &str,
    #[case] there: &str,
    #[case] used: i64,
    #[case] limits: Value,
    #[case] expected: &str,
) {
    let mut model = node(resource, there, used);
    model.decision = Some(decide(&limits, &model));
    assert_eq!(published(&mut model, resource), [expected, expected]);
}

/// BU-501: so little some nodes report.
#[test]
fn of_a_node_without_allocatable_its_capacity_counts() {
    let mut model = node(HUGE, "10Mi", 4 << 20);
    let status = model.pnode.as_mut().unwrap()["status"].as_object_mut().unwrap();
    let there = status.remove("allocatable").unwrap();
    status.insert("capacity".into(), there);
    assert_eq!(published(&mut model, HUGE), ["6Mi", "6Mi"]);
}

/// While nothing is decided (BU-906).
#[rstest]
#[case::part_of_a_page(HUGE, "10Mi", 1, "8Mi")]
#[case::a_page(HUGE, "10Mi", 2 << 20, "8Mi")]
#[case::every_page(HUGE, "10Mi", 10 << 20, "0")]
#[case::volumes(VOLUMES, "25", 2, "23")]
fn what_others_take_lowers_what_is_published_without_a_decision(
    #[case] resource: &str,
    #[case] there: &str,
    #[case] used: i64,
    #[case] expected: &str,
) {
    let mut model = node(resource, there, 0);
    assert_eq!(published(&mut model, resource), [there, there]);
    model.decision = None;
    assert!(model.plan().actions.is_empty());
    model.used.insert(resource.into(), used);
    assert_eq!(published(&mut model, resource), [expected, expected]);
    model.used.clear();
    assert_eq!(published(&mut model, resource), [expected, expected], "nothing is offered anew");
}
