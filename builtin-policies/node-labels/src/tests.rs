use std::collections::BTreeMap;

use kubeocean_policy_sdk::prelude::*;
use kubeocean_policy_sdk::{assert_parser_follows_schema, settings_schema};
use kubeocean_policy_twins::node_labels;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::NodeLabels;

fn node() -> Fixture {
    node! { "name": "node-7", "labels": {"pool": "online", "gen": "7", "empty": ""} }
}

fn requirement(key: &str, operator: &str, values: &[&str]) -> Value {
    json!({"key": key, "operator": operator, "values": values})
}

/// Whether the worked node matches one term of these expressions.
fn matches(expressions: &Value) -> bool {
    let terms = json!([{ "matchExpressions": expressions }]);
    verdict(&json!({"nodeSelector": {"nodeSelectorTerms": terms}})) == Verdict::Offer
}

fn verdict(settings: &Value) -> Verdict {
    Harness::<NodeLabels>::new(settings).node(node()).lease().verdict
}

#[rstest]
#[case::in_one("pool", "In", &["online"], true)]
#[case::in_several("pool", "In", &["batch", "online"], true)]
#[case::in_other("pool", "In", &["batch"], false)]
#[case::in_absent("zone", "In", &["a"], false)]
#[case::in_empty_value("empty", "In", &[""], true)]
#[case::not_in("pool", "NotIn", &["batch"], true)]
#[case::not_in_hit("pool", "NotIn", &["online"], false)]
#[case::not_in_absent("zone", "NotIn", &["a"], true)]
#[case::exists("pool", "Exists", &[], true)]
#[case::exists_absent("zone", "Exists", &[], false)]
#[case::does_not_exist("zone", "DoesNotExist", &[], true)]
#[case::does_not_exist_present("pool", "DoesNotExist", &[], false)]
#[case::gt("gen", "Gt", &["6"], true)]
#[case::gt_equal("gen", "Gt", &["7"], false)]
#[case::lt("gen", "Lt", &["8"], true)]
#[case::gt_absent("zone", "Gt", &["1"], false)]
#[case::lt_not_a_number("pool", "Lt", &["1"], false)]
#[case::bad_operator("pool", "Is", &["online"], false)]
#[case::in_without_values("pool", "In", &[], false)]
#[case::not_in_without_values("zone", "NotIn", &[], false)]
#[case::exists_with_values("pool", "Exists", &["online"], false)]
#[case::gt_not_an_integer("gen", "Gt", &["six"], false)]
#[case::gt_two_values("gen", "Gt", &["1", "2"], false)]
#[case::bad_key("po ol", "DoesNotExist", &[], false)]
#[case::bad_prefix("Example.com/pool", "DoesNotExist", &[], false)]
#[case::prefixed_key("example.com/pool", "DoesNotExist", &[], true)]
#[case::bad_value("zone", "NotIn", &["a b"], false)]
fn operators(#[case] key: &str, #[case] operator: &str, #[case] values: &[&str], #[case] expected: bool) {
    assert_eq!(matches(&json!([requirement(key, operator, values)])), expected);
}

#[rstest]
#[case::absent_selector(json!({}), Verdict::Offer)]
#[case::null_selector(json!({"nodeSelector": null}), Verdict::Offer)]
#[case::no_terms(json!({"nodeSelector": {"nodeSelectorTerms": []}}), Verdict::Offer)]
#[case::term_without_requirements(json!({"nodeSelector": {"nodeSelectorTerms": [{}]}}), Verdict::NotApplicable)]
#[case::withhold(json!({"nodeSelector": {"nodeSelectorTerms": [{}]}, "onMismatch": "Withhold"}), Verdict::Withhold)]
fn selectors(#[case] settings: Value, #[case] expected: Verdict) {
    assert_eq!(verdict(&settings), expected);
}

#[rstest]
#[case::name("In", &["node-7"], true)]
#[case::one_of_names("In", &["node-1", "node-7"], true)]
#[case::other_name("In", &["node-1"], false)]
#[case::not_name("NotIn", &["node-1"], true)]
#[case::not_this_name("NotIn", &["node-7"], false)]
#[case::not_two_names("NotIn", &["node-1", "node-2"], false)]
#[case::exists("Exists", &[], false)]
fn fields(#[case] operator: &str, #[case] values: &[&str], #[case] expected: bool) {
    let term = json!({"matchFields": [requirement("metadata.name", operator, values)]});
    let settings = json!({"nodeSelector": {"nodeSelectorTerms": [term]}});
    assert_eq!(verdict(&settings) == Verdict::Offer, expected);
}

#[test]
fn requirements_are_anded_and_terms_ored() {
    let hit = requirement("pool", "In", &["online"]);
    let miss = requirement("pool", "In", &["batch"]);
    let malformed = requirement("pool", "Is", &[]);
    assert!(!matches(&json!([hit, miss])));
    let either = |a: &Value, b: &Value| json!({"nodeSelector": {"nodeSelectorTerms": [{"matchExpressions": [a]}, {"matchExpressions": [b]}]}});
    assert_eq!(verdict(&either(&miss, &hit)), Verdict::Offer);
    assert_eq!(verdict(&either(&malformed, &hit)), Verdict::Offer);
    assert_eq!(verdict(&either(&malformed, &miss)), Verdict::NotApplicable);
}

#[test]
fn a_mismatch_says_why_and_announces_reclaim() {
    let settings = json!({
        "nodeSelector": {"nodeSelectorTerms": [{}]},
        "onMismatch": "Withhold",
        "reclaim": {"mode": "Graceful", "graceSeconds": 60}
    });
    let answer = Harness::<NodeLabels>::new(settings).node(node()).lease();
    assert_eq!((answer.code(), answer.reclaim), ("NodeSelectorMismatch", Reclaim::Graceful(60)));
}

#[test]
fn reads_the_name_only_for_fields_and_nothing_of_dropped_terms() {
    let needs = |terms: Value| {
        Harness::<NodeLabels>::new(json!({"nodeSelector": {"nodeSelectorTerms": terms}})).lease_needs()
    };
    let labels = needs(json!([{"matchExpressions": [requirement("pool", "Exists", &[])]}]));
    assert_eq!(labels, Ok(Needs::new().label("pool")));
    let names = needs(json!([{"matchFields": [requirement("metadata.name", "In", &["a"])]}]));
    assert_eq!(names, Ok(Needs::new().text("node.name")));
    let dropped = needs(
        json!([{"matchExpressions": [requirement("pool", "Exists", &[]), requirement("x", "Is", &[])]}]),
    );
    assert_eq!(dropped, Ok(Needs::new()));
}

fn any_requirement() -> impl Strategy<Value = Value> {
    let key = prop::sample::select(vec!["pool", "gen", "zone", "bad key", "example.com/x"]);
    let operator = prop::sample::select(vec!["In", "NotIn", "Exists", "DoesNotExist", "Gt", "Lt", "Is"]);
    let value = prop::sample::select(vec!["online", "batch", "5", "9", "", "not ok"]);
    (key, operator, prop::collection::vec(value, 0..3))
        .prop_map(|(key, operator, values)| json!({"key": key, "operator": operator, "values": values}))
}

fn any_term() -> impl Strategy<Value = Value> {
    let field = (
        prop::sample::select(vec!["In", "NotIn"]),
        prop::collection::vec(prop::sample::select(vec!["node-7", "node-8"]), 0..3),
    )
        .prop_map(
            |(operator, values)| json!({"key": "metadata.name", "operator": operator, "values": values}),
        );
    (prop::collection::vec(any_requirement(), 0..3), prop::collection::vec(field, 0..2))
        .prop_map(|(expressions, fields)| json!({"matchExpressions": expressions, "matchFields": fields}))
}

proptest! {
    #[test]
    fn equals_its_twin(
        terms in prop::collection::vec(any_term(), 0..4),
        pool in prop::option::of(prop::sample::select(vec!["online", "batch", ""])),
        generation in prop::option::of(0i32..12),
    ) {
        let selector = json!({ "nodeSelectorTerms": terms });
        let mut labels = BTreeMap::new();
        labels.extend(pool.map(|pool| ("pool".to_owned(), pool.to_owned())));
        labels.extend(generation.map(|generation| ("gen".to_owned(), generation.to_string())));
        let answer = Harness::<NodeLabels>::new(json!({"nodeSelector": selector}))
            .node(Fixture::node(&json!({"name": "node-7", "labels": labels})))
            .lease();
        prop_assert_eq!(answer.verdict == Verdict::Offer, node_labels(&selector, &labels, "node-7"));
    }
}

#[test]
fn the_stored_schema_is_that_of_the_settings() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/settings.schema.json");
    let schema = settings_schema::<NodeLabels>();
    if std::env::var_os("KUBEOCEAN_REGENERATE").is_some() {
        std::fs::write(file, format!("{schema:#}\n")).unwrap();
    }
    let stored: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    assert_eq!(stored, schema);
}

#[test]
fn the_module_accepts_exactly_what_the_schema_accepts() {
    let sample = json!({
        "nodeSelector": {"nodeSelectorTerms": [{
            "matchExpressions": [{"key": "pool", "operator": "In", "values": ["online"]}],
            "matchFields": [{"key": "metadata.name", "operator": "In", "values": ["a"]}]
        }]},
        "onMismatch": "Withhold",
        "reclaim": {"mode": "Graceful", "graceSeconds": 600}
    });
    assert_parser_follows_schema::<NodeLabels>(&sample);
}
