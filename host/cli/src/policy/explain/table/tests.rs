//! The table of the policy specification's example, and what it looks like when something is wrong.

use std::collections::BTreeMap;

use kubeocean_engine::{DecisionReason, NodeFacts, Reason};

use super::super::evaluate::PolicySteps;
use super::*;
use crate::policy::local::NotRunning;

const GI: i64 = 1 << 30;

fn amounts(cpu: i64, memory: i64, gpu: i64) -> Amounts {
    BTreeMap::from([("cpu".into(), cpu), ("memory".into(), memory), ("nvidia.com/gpu".into(), gpu)])
}

fn step(entry: &str) -> Step {
    Step {
        entry: entry.into(),
        audit: false,
        verdict: Some(EntryVerdict::Offer),
        reclaim: Reclaim::Keep,
        caps: BTreeMap::new(),
        valid_until: None,
        reason: None,
        error: None,
        proposed: BTreeMap::new(),
    }
}

fn reason(code: &str, message: &str) -> Reason {
    Reason { code: code.into(), message: message.into() }
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn report() -> Report {
    let until = at("2026-03-07T14:00:00Z").as_second();
    Report {
        node: "node-7".into(),
        binding: "gpu-binding".into(),
        vnode: Some("vnode-c1-node-7".into()),
        at: at("2026-03-07T06:02:00Z"),
        zone: "Asia/Shanghai".into(),
        facts: NodeFacts {
            allocatable: amounts(16_000, 64 * GI, 8),
            used: amounts(4_200, 20 * GI, 2),
            ..NodeFacts::default()
        },
        available: amounts(11_800, 44 * GI, 6),
        policies: vec![
            PolicySteps { policy: String::new(), steps: vec![step("binding-selector")] },
            PolicySteps {
                policy: "night-and-half".into(),
                steps: vec![
                    step("legacy-node-selector"),
                    Step { caps: BTreeMap::from([("cpu".into(), 5_900)]), ..step("half") },
                    Step {
                        audit: true,
                        caps: BTreeMap::from([("nvidia.com/gpu".into(), 0)]),
                        reason: Some(reason("NightGpu", "GPUs are leased at night only")),
                        valid_until: Some(until),
                        ..step("night-gpu")
                    },
                ],
            },
        ],
        decision: NodeDecision {
            governed_by: Some("night-and-half".into()),
            selected: true,
            amounts: amounts(5_900, 44 * GI, 6),
            may_create: true,
            ..NodeDecision::default()
        },
        not_running: Vec::new(),
        notes: Vec::new(),
    }
}

#[test]
fn the_example_of_the_specification() {
    insta::assert_snapshot!(text(&report()));
}

#[test]
fn a_node_that_is_withheld_and_an_entry_that_does_not_run() {
    let mut report = report();
    let decision = &mut report.decision;
    decision.verdict = Verdict::Withhold;
    decision.withheld = true;
    decision.reclaim = Reclaim::Graceful(600);
    decision.valid_until = Some(at("2026-03-07T23:00:30Z").as_second());
    decision.shadowed = vec!["younger".into()];
    decision.reason =
        Some(DecisionReason { entry: "hours".into(), code: "Closed".into(), message: "by day".into() });
    report.policies[1].steps = vec![
        Step {
            verdict: Some(EntryVerdict::Withhold),
            reclaim: Reclaim::Graceful(600),
            reason: Some(reason("Closed", "by day")),
            valid_until: Some(at("2026-03-07T23:00:30Z").as_second()),
            ..step("hours")
        },
        Step { verdict: None, error: Some("ModuleNotFound: ConfigMap a/b not found".into()), ..step("half") },
    ];
    report.not_running = vec![NotRunning {
        policy: "night-and-half".into(),
        entry: "half".into(),
        error: "ModuleNotFound: ConfigMap a/b not found".into(),
    }];
    report.notes = vec!["the node is being deleted".into()];
    insta::assert_snapshot!(text(&report));
}

#[test]
fn a_node_no_policy_governs() {
    let mut report = report();
    report.vnode = None;
    report.decision = NodeDecision { selected: true, ..NodeDecision::default() };
    report.policies[1].steps.truncate(1);
    report.policies[1].steps[0] = Step {
        verdict: Some(EntryVerdict::NotApplicable),
        reason: Some(reason("NotSelected", "no term matches")),
        ..step("legacy-node-selector")
    };
    insta::assert_snapshot!(text(&report));
}

#[test]
fn cpu_is_shown_in_cores() {
    assert_eq!((amount("cpu", 5_900).as_str(), amount("cpu", 16_000).as_str()), ("5.9", "16"));
    assert_eq!((amount("cpu", 50).as_str(), amount("memory", 44 * GI).as_str()), ("0.05", "44Gi"));
}
