use super::*;
use crate::wasm::bindings::lease_abi::{LeaseOutput, LeaseRow, Verdict};

fn row(verdict: Verdict, reason: Option<u32>) -> LeaseRow {
    LeaseRow { verdict, reclaim: lease_abi::Reclaim::Keep, valid_until: None, reason }
}

fn raw_reason(code: &str) -> lease_abi::Reason {
    lease_abi::Reason { code: code.into(), message: "m\n".into() }
}

fn check(output: &LeaseOutput) -> Result<Vec<Arc<Answer>>, String> {
    check_output(output, 1, 100, &Arc::from([Arc::from("cpu")])).map_err(|fault| fault.message)
}

#[test]
fn a_plain_offer_needs_nothing() {
    let answers =
        check(&LeaseOutput { rows: vec![row(Verdict::Offer, None)], caps: vec![], reasons: vec![] }).unwrap();
    assert_eq!(answers[0].caps().count(), 0);
    let answers =
        check(&LeaseOutput { rows: vec![row(Verdict::Offer, None)], caps: vec![5], reasons: vec![] })
            .unwrap();
    assert_eq!(
        answers[0].caps().map(|(r, c)| (r.to_string(), c)).collect::<Vec<_>>(),
        [("cpu".to_owned(), 5)]
    );
}

#[test]
fn every_forbidden_output_is_named() {
    let offer = || row(Verdict::Offer, None);
    let cases: Vec<(LeaseOutput, &str)> = vec![
        (LeaseOutput { rows: vec![], caps: vec![], reasons: vec![] }, "0 rows"),
        (LeaseOutput { rows: vec![offer(), offer()], caps: vec![], reasons: vec![] }, "2 rows"),
        (LeaseOutput { rows: vec![offer()], caps: vec![1, 2], reasons: vec![] }, "2 caps"),
        (LeaseOutput { rows: vec![offer()], caps: vec![-2], reasons: vec![] }, "below -1"),
        (
            LeaseOutput { rows: vec![row(Verdict::Withhold, None)], caps: vec![], reasons: vec![] },
            "no reason",
        ),
        (
            LeaseOutput { rows: vec![row(Verdict::Withhold, Some(1))], caps: vec![], reasons: vec![] },
            "reason 1",
        ),
        (
            LeaseOutput {
                rows: vec![LeaseRow { valid_until: Some(100), ..offer() }],
                caps: vec![],
                reasons: vec![],
            },
            "valid-until",
        ),
        (
            LeaseOutput {
                rows: vec![LeaseRow { reclaim: lease_abi::Reclaim::Graceful(0), ..offer() }],
                caps: vec![],
                reasons: vec![],
            },
            "graceful(0)",
        ),
        (
            LeaseOutput { rows: vec![offer()], caps: vec![], reasons: vec![raw_reason("lower")] },
            "reason code",
        ),
        (
            LeaseOutput {
                rows: vec![offer()],
                caps: vec![],
                reasons: (0..65).map(|_| raw_reason("A")).collect(),
            },
            "65 reasons",
        ),
    ];
    for (output, text) in cases {
        let message = check(&output).unwrap_err();
        assert!(message.contains(text), "{message:?} should contain {text:?}");
    }
}

#[test]
fn the_stricter_reclaim_wins() {
    assert_eq!(Reclaim::Keep.stricter(Reclaim::Graceful(9)), Reclaim::Graceful(9));
    assert_eq!(Reclaim::Graceful(3).stricter(Reclaim::Graceful(9)), Reclaim::Graceful(3));
    assert_eq!(Reclaim::Graceful(3).stricter(Reclaim::Force), Reclaim::Force);
    assert_eq!(Reclaim::Keep.stricter(Reclaim::Keep), Reclaim::Keep);
}
