use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::answer::Reason;
use crate::facts::Published;

fn node() -> NodeFacts {
    NodeFacts {
        node_name: "n".into(),
        allocatable: [("cpu".to_owned(), 1000), ("pods".to_owned(), 10)].into(),
        used: [("cpu".to_owned(), 200)].into(),
        ..NodeFacts::default()
    }
}

fn answer(verdict: EntryVerdict, reclaim: Reclaim, cpu: i64, valid_until: Option<i64>) -> Answer {
    Answer {
        verdict,
        reclaim,
        valid_until,
        reason: Some(Arc::new(Reason { code: format!("Cap{}", cpu.max(0)), message: "m".into() })),
        caps: [cpu][..].into(),
        cap_names: Arc::from([Arc::from("cpu")]),
    }
}

fn finish(node: &NodeFacts, answers: &[(&str, Answer)]) -> NodeDecision {
    let mut draft = Draft::new(node, false);
    for (name, answer) in answers {
        draft.answer(&Arc::from(*name), answer);
    }
    draft.finish("p", 1)
}

const OFFER: EntryVerdict = EntryVerdict::Offer;
const WITHHOLD: EntryVerdict = EntryVerdict::Withhold;

#[test]
fn the_smallest_cap_wins_and_is_named_with_its_reason() {
    let node = node();
    let decision = finish(
        &node,
        &[
            ("a", answer(OFFER, Reclaim::Keep, 500, Some(9))),
            ("b", answer(OFFER, Reclaim::Keep, 700, Some(5))),
            ("c", answer(OFFER, Reclaim::Keep, -1, None)),
        ],
    );
    assert_eq!(decision.amounts, BTreeMap::from([("cpu".into(), 500), ("pods".into(), 10)]));
    assert_eq!(decision.limited_by, BTreeMap::from([("cpu".into(), "a".into())]));
    assert_eq!(
        (decision.verdict, decision.valid_until, decision.wake_at),
        (Verdict::Offer, Some(5), Some(5))
    );
    assert_eq!(decision.reason.unwrap().code, "Cap500");
}

#[test]
fn only_withholding_entries_say_what_happens_now() {
    let node = node();
    let offered = [
        ("a", answer(OFFER, Reclaim::Graceful(600), -1, None)),
        ("b", answer(OFFER, Reclaim::Graceful(60), -1, None)),
    ];
    assert_eq!(finish(&node, &offered).reclaim, Reclaim::Graceful(60));
    let withheld = [
        ("a", answer(WITHHOLD, Reclaim::Graceful(600), -1, None)),
        ("b", answer(OFFER, Reclaim::Force, -1, None)),
        ("c", answer(WITHHOLD, Reclaim::Keep, 3, None)),
    ];
    let decision = finish(&node, &withheld);
    assert_eq!((decision.verdict, decision.reclaim), (Verdict::Withhold, Reclaim::Graceful(600)));
    assert_eq!(decision.reason.unwrap().entry, "a", "the first one that withholds");
    assert_eq!(decision.amounts["cpu"], 3, "caps count all the same");
}

#[test]
fn an_audit_entry_names_the_first_difference() {
    let node = node();
    let mut draft = Draft::new(&node, false);
    draft.answer(&Arc::from("a"), &answer(OFFER, Reclaim::Keep, 500, None));
    let difference = |answer: &Answer| draft.audit_difference(answer);
    assert_eq!(difference(&answer(OFFER, Reclaim::Keep, 500, None)), None);
    assert_eq!(difference(&answer(OFFER, Reclaim::Keep, 0, None)).unwrap(), "n: cpu 500 -> 0 (Cap0)");
    assert_eq!(difference(&answer(WITHHOLD, Reclaim::Keep, 0, None)).unwrap(), "n: withheld (Cap0)");
}

#[test]
fn the_engine_failing_itself_changes_nothing() {
    let mut with = node();
    with.published =
        Some(Published { amounts: [("cpu".to_owned(), 300)].into(), offered: true, valid_until: None });
    let decision = undecided(&with);
    assert_eq!((decision.verdict, decision.withheld, decision.amounts["cpu"]), (Verdict::Held, false, 300));
    let decision = undecided(&node());
    assert!(!decision.may_create && !decision.announce);
}

#[test]
fn a_decision_survives_json() {
    let node = node();
    let decision = finish(&node, &[("a", answer(WITHHOLD, Reclaim::Graceful(5), 1, None))]);
    let text = serde_json::to_string(&decision).unwrap();
    assert_eq!(serde_json::from_str::<NodeDecision>(&text).unwrap(), decision);
}

/// What one entry contributes.
#[derive(Clone, Debug)]
enum Contribution {
    Good(Answer),
    Failing(StandIn),
}

fn reclaims() -> impl Strategy<Value = Reclaim> {
    prop_oneof![Just(Reclaim::Keep), (1..100_u32).prop_map(Reclaim::Graceful), Just(Reclaim::Force)]
}

fn answers() -> impl Strategy<Value = Answer> {
    (prop::sample::select(vec![OFFER, WITHHOLD]), reclaims(), -1..1000_i64)
        .prop_map(|(verdict, reclaim, cpu)| answer(verdict, reclaim, cpu, None))
}

fn failures() -> impl Strategy<Value = StandIn> {
    prop_oneof![
        Just(StandIn::Skip),
        Just(StandIn::Published),
        answers().prop_map(|answer| StandIn::Last(Arc::new(answer))),
        prop::option::of(reclaims()).prop_map(StandIn::Deny),
    ]
}

fn contributions() -> impl Strategy<Value = Vec<Contribution>> {
    let one = prop_oneof![answers().prop_map(Contribution::Good), failures().prop_map(Contribution::Failing)];
    prop::collection::vec(one, 0..5)
}

fn compose(node: &NodeFacts, contributions: &[Contribution]) -> NodeDecision {
    let mut draft = Draft::new(node, false);
    let why = NoAnswer { text: "Trap".into(), loading: false, pending: false, retry_at: None };
    for contribution in contributions {
        match contribution {
            Contribution::Good(answer) => draft.answer(&Arc::from("e"), answer),
            Contribution::Failing(stand) => draft.no_answer(&Arc::from("e"), &why, stand),
        }
    }
    draft.finish("p", 1)
}

/// What evicts pods although nobody does so yet.
fn starts(decision: &NodeDecision) -> Reclaim {
    if decision.withheld { decision.reclaim } else { Reclaim::Keep }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// PO-108, PO-601, PO-804: one entry more never opens a node, raises an amount or weakens the reclaim; one that fails
    /// starts no eviction; and what starts one is a good answer that withholds.
    #[test]
    fn an_entry_more_only_tightens_and_an_error_evicts_nobody(
        before in contributions(),
        good in answers(),
        failing in failures(),
        place in any::<prop::sample::Index>(),
        offered in any::<bool>(),
    ) {
        let mut node = node();
        node.published = Some(Published { amounts: [("cpu".to_owned(), 300)].into(), offered, valid_until: None });
        let with = |one: Contribution| {
            let mut all = before.clone();
            all.insert(place.index(before.len() + 1), one);
            compose(&node, &all)
        };
        let was = compose(&node, &before);
        for now in [with(Contribution::Good(good.clone())), with(Contribution::Failing(failing.clone()))] {
            prop_assert!(now.withheld || !was.withheld, "{now:?} opens {was:?}");
            prop_assert!(now.amounts.iter().all(|(resource, amount)| amount <= &was.amounts[resource]));
            prop_assert_eq!(starts(&now).stricter(starts(&was)), starts(&now), "weaker than {:?}", was);
        }
        let failed = with(Contribution::Failing(failing));
        prop_assert_eq!(starts(&failed), starts(&was), "an error starts an eviction");
        let withholding = before.iter().filter_map(|one| match one {
            Contribution::Good(answer) if answer.verdict == WITHHOLD => Some(answer.reclaim),
            Contribution::Good(_) | Contribution::Failing(_) => None,
        });
        prop_assert_eq!(starts(&was), withholding.fold(Reclaim::Keep, Reclaim::stricter));
    }
}
