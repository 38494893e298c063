use std::panic::{AssertUnwindSafe, catch_unwind};

use crate as kubeocean_policy_sdk;
use crate::bindings::types as wire;
use crate::evaluator::LeaseEvaluator;
use crate::prelude::*;

/// Caps as many times as its settings say, by column, by static and by made name.
#[derive(Deserialize, JsonSchema)]
struct Capping {
    times: i64,
}

impl LeasePolicy for Capping {
    fn needs(&self) -> Needs {
        Needs::new().cap("cpu").cap("memory").cap("pods")
    }

    fn lease(&self, _now: &Now, _node: Node<'_>) -> Lease {
        let column = self.needs().add_cap("cpu");
        let mut lease = Lease::offer();
        for time in (1..=self.times).rev() {
            lease.add_cap(column, time);
            lease.add_cap("memory", 10 * time);
            lease.add_cap("pods".to_owned(), 100 * time);
        }
        lease
    }
}

#[test]
fn of_any_number_of_caps_the_smallest_hold() {
    for times in 1..5 {
        let answer = Harness::<Capping>::new(format!(r#"{{"times": {times}}}"#)).lease();
        assert_eq!(
            [answer.cap("cpu"), answer.cap("memory"), answer.cap("pods")],
            [Some(1), Some(10), Some(100)]
        );
    }
    assert!(Harness::<Capping>::new(r#"{"times": 0}"#).lease().caps.is_empty());
}

/// What the test policy does with a node, chosen by label.
#[derive(Deserialize, JsonSchema)]
struct Scripted {}

impl LeasePolicy for Scripted {
    fn needs(&self) -> Needs {
        Needs::new().label("do").available("cpu").number("?usage/cpu").cap("cpu").cap("memory")
    }

    fn lease(&self, now: &Now, node: Node<'_>) -> Lease {
        match node.label("do").unwrap_or_default() {
            "read-time" => Lease::offer().cap("cpu", i64::from(now.minute_of_day())),
            "own-until" => Lease::offer().until(now.unix_seconds() + 7),
            "never" => {
                let _ = now.hour();
                Lease::offer().until(None).reclaim(Reclaim::Graceful(0))
            }
            "past" => Lease::offer().until(1),
            "undeclared-fact" => Lease::offer().cap("cpu", node.available("memory")),
            "undeclared-cap" => Lease::offer().cap("nvidia.com/gpu", 1),
            "bad-code" => Lease::withhold("not a code", ""),
            "two-caps" => Lease::offer().cap("cpu", 5).cap("cpu", 3).cap("memory", -7),
            "usage" => Lease::offer().cap("cpu", node.usage("cpu").unwrap_or(-1)),
            "withhold" => Lease::withhold("Closed", "closed"),
            _ => Lease::offer(),
        }
    }
}

fn scripted(action: &str) -> Harness<Scripted> {
    Harness::new("{}").node(node! { "labels": {"do": action} }).at("2026-03-07T23:30:20", "UTC")
}

fn panic_text(action: &str) -> String {
    let panic = catch_unwind(AssertUnwindSafe(|| scripted(action).lease())).expect_err("the test fails");
    panic.downcast_ref::<String>().cloned().unwrap_or_default()
}

#[test]
fn reading_the_clock_promises_one_minute() {
    let answer = scripted("read-time").lease();
    assert_eq!(answer.valid_until_local.as_deref(), Some("2026-03-07T23:31"));
    assert_eq!(scripted("").lease().valid_until, None);
}

#[test]
fn a_policy_may_say_until_when_itself() {
    assert_eq!(scripted("own-until").lease().valid_until_local.as_deref(), Some("2026-03-07T23:30:27"));
    let never = scripted("never").lease();
    assert_eq!((never.valid_until, never.reclaim), (None, Reclaim::Force));
}

#[test]
fn the_smaller_of_two_caps_holds_and_none_is_negative() {
    let answer = scripted("two-caps").lease();
    assert_eq!((answer.cap("cpu"), answer.cap("memory")), (Some(3), Some(0)));
}

#[test]
fn absent_usage_is_absent() {
    assert_eq!(scripted("usage").lease().cap("cpu"), Some(0));
    let measured =
        Harness::<Scripted>::new("{}").node(node! { "labels": {"do": "usage"}, "usage": {"cpu": "2"} });
    assert_eq!(measured.lease().cap("cpu"), Some(2_000));
}

#[test]
fn mistakes_fail_with_the_words_of_the_host() {
    assert_eq!(panic_text("undeclared-fact"), "fact \"available/memory\" is not declared in needs()");
    assert_eq!(panic_text("undeclared-cap"), "cap \"nvidia.com/gpu\" is not declared in needs()");
    assert!(panic_text("past").contains("valid-until of row 0 is not after now"));
    assert!(panic_text("bad-code").contains("is not an UpperCamelCase code"));
}

#[test]
fn rows_are_independent_and_reasons_shared() {
    let harness = ["withhold", "read-time", "", "withhold"]
        .into_iter()
        .fold(Harness::<Scripted>::new("{}"), |harness, action| {
            harness.node(node! { "labels": {"do": action} })
        });
    let answers = harness.lease_all().unwrap();
    let untils: Vec<bool> = answers.iter().map(|answer| answer.valid_until.is_some()).collect();
    assert_eq!(untils, [false, true, false, false]);
    assert_eq!(answers[0], answers[3]);
    assert_eq!(answers[0].code(), "Closed");
}

#[test]
fn a_frame_that_does_not_fit_is_refused() {
    let evaluator = LeaseEvaluator::<Scripted>::create("{}").unwrap();
    let frame = wire::Frame { rows: 2, strings: Vec::new(), texts: vec![0], numbers: vec![0, 0, 0, 0] };
    let now = scripted("").moment().now();
    assert!(evaluator.lease(now, &frame, |row| row).is_err());
}

/// Packs pods of a team onto its nodes.
#[derive(Deserialize, JsonSchema)]
struct Team {
    team: String,
}

impl PlacePolicy for Team {
    fn validate(&self) -> Result<(), String> {
        if self.team.is_empty() { Err("settings.team: must not be empty".to_owned()) } else { Ok(()) }
    }

    fn needs(&self) -> Needs {
        Needs::new()
            .label("team")
            .available("cpu")
            .pod_text("pod.namespace")
            .pod_request("cpu")
            .pod_limit("cpu")
    }

    fn place(&self, stage: Stage, _now: &Now, pod: Pod<'_>, node: Node<'_>) -> Fit {
        let ours = pod.text("pod.namespace") == Some(self.team.as_str());
        if (node.label("team") == Some(self.team.as_str())) != ours {
            return Fit::reject("OtherTeam", "the node is another team's");
        }
        if stage == Stage::Admit && pod.limit("cpu").is_none() {
            return Fit::later(0, "NoLimit", "set a limit");
        }
        Fit::accept().score(if pod.request("cpu") * 2 > node.available("cpu") { 200 } else { 10 })
    }
}

export_policy!(Team: place);

#[test]
fn placement_answers() {
    let harness = Harness::<Team>::new(r#"{"team": "ci"}"#)
        .pod(pod! { "namespace": "ci", "requests": {"cpu": "2"} })
        .node(node! { "labels": {"team": "ci"}, "allocatable": {"cpu": "3"} })
        .node(node! { "labels": {"team": "ci"}, "allocatable": {"cpu": "16"} })
        .node(node! { "allocatable": {"cpu": "16"} });
    let answers = harness.place_all(Stage::Schedule).unwrap();
    let scores: Vec<_> = answers.iter().map(|answer| (answer.accepted, answer.score)).collect();
    assert_eq!(scores, [(true, Some(100)), (true, Some(10)), (false, None)]);
    assert_eq!(answers[2].reason.as_ref().map(|reason| reason.code.as_str()), Some("OtherTeam"));
    assert_eq!(harness.place(Stage::Admit).later_seconds, Some(1));
    let refused = Harness::<Team>::new(r#"{"team": ""}"#).place_all(Stage::Admit);
    assert_eq!(refused.err().as_deref(), Some("settings.team: must not be empty"));
}

#[test]
fn a_misspelt_fact_fails() {
    #[derive(Deserialize, JsonSchema)]
    struct Misspelt {}
    impl LeasePolicy for Misspelt {
        fn needs(&self) -> Needs {
            Needs::new().number("avalable/cpu")
        }
        fn lease(&self, _now: &Now, _node: Node<'_>) -> Lease {
            Lease::offer()
        }
    }
    let panic = catch_unwind(|| Harness::<Misspelt>::new("{}").lease()).expect_err("the test fails");
    assert!(panic.downcast_ref::<String>().unwrap().starts_with("UnknownFact"));
}

mod both {
    use super::*;

    #[derive(Deserialize, JsonSchema)]
    struct Both {}

    impl LeasePolicy for Both {
        fn needs(&self) -> Needs {
            Needs::new()
        }
        fn lease(&self, _now: &Now, _node: Node<'_>) -> Lease {
            Lease::offer()
        }
    }

    impl PlacePolicy for Both {
        fn needs(&self) -> Needs {
            Needs::new()
        }
        fn place(&self, _stage: Stage, _now: &Now, _pod: Pod<'_>, _node: Node<'_>) -> Fit {
            Fit::accept()
        }
    }

    kubeocean_policy_sdk::export_policy!(Both: lease, place);

    #[test]
    fn one_type_may_decide_both() {
        let harness = Harness::<Both>::new("{}");
        assert_eq!(harness.lease().verdict, Verdict::Offer);
        assert!(harness.place(Stage::Schedule).accepted);
    }
}
