//! What annotation `policy-decision` says (PO-1503), and as what it is read back (PO-803).

use kubeocean_api::keys::annotation;
use proptest::prelude::*;
use rstest::rstest;
use serde_json::{Value, json};

use super::model::{Model, at, held, offer, reason, withhold};
use crate::nodes::{
    decision::{Decision, Reclaim},
    snapshot::published,
    view::NodeView,
};

/// Of PO-1503, in bytes.
const LONGEST: usize = 1024;

/// A leased node of which this was decided.
fn decided(decision: Decision) -> Model {
    let mut model = Model::leased();
    model.decision = Some(decision);
    model.settle();
    model
}

fn written(decision: Decision) -> String {
    decided(decision).vnode().annotation(annotation::POLICY_DECISION).unwrap().to_owned()
}

fn until(second: i64, decision: Decision) -> Decision {
    Decision { valid_until: Some(at(second).as_second()), ..decision }
}

fn limited(limits: impl IntoIterator<Item = (String, String)>, decision: Decision) -> Decision {
    Decision { limited_by: limits.into_iter().collect(), ..decision }
}

fn limits(count: usize) -> impl Iterator<Item = (String, String)> {
    (0..count).map(|nr| (format!("example.com/gpu-{nr:03}"), format!("share-{nr}")))
}

#[rstest]
#[case::an_offer(offer(&[]), json!({"verdict": "offer"}))]
#[case::an_offer_with_an_end(until(3600, offer(&[])), json!({"verdict": "offer", "validUntil": "2027-01-15T09:00:00Z"}))]
#[case::an_end_no_calendar_has(Decision { valid_until: Some(i64::MAX), ..offer(&[]) }, json!({"verdict": "offer"}))]
#[case::a_limited_offer(
    limited([("cpu".into(), "share".into()), ("memory".into(), "night".into())], Decision { reason: Some(reason("ShareOfNode")), ..offer(&[]) }),
    json!({"verdict": "offer", "reason": "ShareOfNode", "limitedBy": {"cpu": "share", "memory": "night"}}),
)]
#[case::withheld(withhold(Reclaim::Keep), json!({"verdict": "withhold", "reason": "OutsideTimeWindow"}))]
#[case::withheld_with_an_end(
    until(60, withhold(Reclaim::Force)),
    json!({"verdict": "withhold", "reason": "OutsideTimeWindow", "validUntil": "2027-01-15T08:01:00Z"}),
)]
#[case::held_open(held("ModuleFailed", false), json!({"verdict": "held", "reason": "ModuleFailed"}))]
#[case::held_closed(held("PolicyInvalid", true), json!({"verdict": "held", "reason": "PolicyInvalid"}))]
#[case::held_with_an_end(until(0, held("ModuleFailed", false)), json!({"verdict": "held", "reason": "ModuleFailed", "validUntil": "2027-01-15T08:00:00Z"}))]
fn what_was_decided_is_written_as(#[case] decision: Decision, #[case] expected: Value) {
    let mut whole = json!({"rlp": "p", "generation": 3, "limitedBy": {}});
    super::model::merge(&mut whole, &expected);
    assert_eq!(serde_json::from_str::<Value>(&written(decision)).unwrap(), whole);
}

#[test]
fn of_too_many_limits_the_first_that_fit_are_kept_and_everything_else_is() {
    let decision = until(3600, withhold(Reclaim::Keep));
    let text = written(limited(limits(200), decision.clone()));
    assert!(text.len() <= LONGEST, "{}", text.len());
    let mut value: Value = serde_json::from_str(&text).unwrap();
    let kept = value["limitedBy"].take();
    let kept = kept.as_object().unwrap();
    let (name, entry) = limits(200).nth(kept.len()).unwrap();
    assert!(text.len() + format!(r#","{name}":"{entry}""#).len() > LONGEST, "one more would fit: {text}");
    let first: serde_json::Map<String, Value> =
        limits(kept.len()).map(|(name, entry)| (name, entry.into())).collect();
    assert_eq!(*kept, first);
    let mut unlimited: Value = serde_json::from_str(&written(decision)).unwrap();
    unlimited["limitedBy"].take();
    assert_eq!(value, unlimited);
}

#[rstest]
#[case::it_fits(LONGEST, true)]
#[case::a_byte_too_much(LONGEST + 1, false)]
fn a_limit_is_kept_when(#[case] bytes: usize, #[case] kept: bool) {
    let limit = |entry: String| written(limited([("cpu".into(), entry)], offer(&[])));
    let text = limit("e".repeat(bytes - limit(String::new()).len()));
    assert_eq!(text.contains("cpu"), kept, "{text}");
    assert_eq!(text.len() == bytes, kept, "{text}");
}

#[rstest]
#[case::an_offer(offer(&[]), true)]
#[case::a_limited_offer(limited(limits(200), offer(&[])), true)]
#[case::withheld(withhold(Reclaim::Keep), false)]
#[case::withheld_for_many_reasons(limited(limits(200), withhold(Reclaim::Keep)), false)]
#[case::withheld_after_a_countdown(withhold(Reclaim::Graceful(60)), false)]
#[case::withheld_at_once(withhold(Reclaim::Force), false)]
#[case::held_open(held("ModuleFailed", false), true)]
#[case::held_closed(held("PolicyInvalid", true), false)]
fn what_was_written_is_read_as_it_was_decided(
    #[case] decision: Decision,
    #[case] offered: bool,
    #[values(None, Some(0), Some(3600))] end: Option<i64>,
) {
    let valid_until = end.map(|second| at(second).as_second());
    let read = published(&decided(Decision { valid_until, ..decision }).vnode());
    assert_eq!((read.offered, read.valid_until), (offered, valid_until));
}

/// BU-909: a user may take the taint off, and what tells of a reclaim.
#[rstest]
#[case::an_offer(offer(&[]), true)]
#[case::withheld(withhold(Reclaim::Keep), false)]
#[case::withheld_for_many_reasons(limited(limits(200), withhold(Reclaim::Keep)), false)]
#[case::withheld_after_a_countdown(withhold(Reclaim::Graceful(60)), false)]
#[case::withheld_at_once(withhold(Reclaim::Force), false)]
fn what_was_written_says_alone_whether_the_lease_is_open(#[case] decision: Decision, #[case] offered: bool) {
    let bare: NodeView = serde_json::from_value(
        json!({"metadata": {"name": "v", "annotations": {annotation::POLICY_DECISION: written(decision)}}}),
    )
    .unwrap();
    assert_eq!(published(&bare).offered, offered);
}

#[test]
fn it_is_written_only_when_it_differs() {
    let mut model = decided(until(3600, offer(&[])));
    assert_eq!(model.settle(), Vec::<String>::new());
    model.decision = Some(until(7200, offer(&[])));
    assert_eq!(model.settle(), ["update vnode vnode-cls-a-n1"]);
    assert_eq!(published(&model.vnode()).valid_until, Some(at(7200).as_second()));
}

proptest! {
    /// Whatever the names are: at most 1 KiB, valid JSON, and the end is read back.
    #[test]
    fn any_limits_leave_what_can_be_read(
        names in prop::collection::btree_map("\\PC{0,40}", "\\PC{0,16}", 0..60),
        second in 0_i64..100_000_000,
    ) {
        let decision = until(second, limited(names.clone(), offer(&[])));
        let end = decision.valid_until;
        let model = decided(decision);
        let vnode = model.vnode();
        let text = vnode.annotation(annotation::POLICY_DECISION).unwrap();
        prop_assert!(text.len() <= LONGEST);
        let value: Value = serde_json::from_str(text).unwrap();
        let kept = value["limitedBy"].as_object().unwrap();
        prop_assert!(kept.iter().all(|(name, entry)| names.get(name).is_some_and(|it| entry == it)));
        prop_assert_eq!(published(&vnode).valid_until, end);
    }
}
