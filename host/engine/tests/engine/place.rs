//! Placement with real modules: composition, stages, `onError`, Audit, what is remembered, deadlines and quarantine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kubeocean_engine::{
    EntryState, FaultKind, Fit, ModuleLimits, NodeFacts, OnError, PlaceNode, PlaceRecord, PlaceRequest,
    Placement, PodFacts, PolicySpec, Recorded, Stage, Verdict,
};
use kubeocean_hostile_policies::{digest, guest, place_guest};
use rstest::rstest;
use serde_json::json;

use crate::support::*;

/// Longer than any answer takes, on any machine.
const PATIENCE: Duration = Duration::from_secs(20);

fn pod(priority: i64) -> Arc<PodFacts> {
    Arc::new(PodFacts {
        name: "web".into(),
        namespace: "shop".into(),
        priority: Some(priority),
        ..PodFacts::default()
    })
}

/// A vnode of policy `p` that tells each guest its answer: letter, fit, score.
fn vnode(name: &str, answers: &[(char, i64, i64)]) -> PlaceNode {
    let amounts = answers.iter().flat_map(|(letter, fit, score)| {
        [(format!("{letter}.test/fit"), *fit), (format!("{letter}.test/score"), *score)]
    });
    let facts = NodeFacts {
        node_name: name.into(),
        vnode_name: format!("vnode-{name}"),
        allocatable: amounts.collect(),
        ready: true,
        ..NodeFacts::default()
    };
    PlaceNode { facts: Arc::new(facts), policy: Some("p".into()) }
}

/// As [`pod`], by another name.
fn pod_named(namespace: &str, name: &str, priority: i64) -> Arc<PodFacts> {
    let named =
        PodFacts { namespace: namespace.into(), name: name.into(), ..PodFacts::clone(&pod(priority)) };
    Arc::new(named)
}

fn ask_about(host: &Host, at: i64, stage: Stage, pod: &Arc<PodFacts>, nodes: &[PlaceNode]) -> Vec<Placement> {
    let deadline = Instant::now() + PATIENCE;
    let request = PlaceRequest { stage, pod: Arc::clone(pod), nodes: nodes.to_vec(), deadline };
    host.host.place(seconds(at), request)
}

fn ask_within(host: &Host, at: i64, stage: Stage, nodes: &[PlaceNode], time: Duration) -> Vec<Placement> {
    let request = PlaceRequest { stage, pod: pod(0), nodes: nodes.to_vec(), deadline: Instant::now() + time };
    host.host.place(seconds(at), request)
}

fn ask(host: &Host, at: i64, stage: Stage, nodes: &[PlaceNode]) -> Vec<Placement> {
    ask_within(host, at, stage, nodes, PATIENCE)
}

fn reason(placement: &Placement) -> String {
    let reason = placement.reason.as_ref().unwrap();
    format!("{}: {} ({})", reason.reason.code, reason.reason.message, reason.entry)
}

fn placing(entries: &[(char, serde_json::Value)]) -> PolicySpec {
    entries.iter().fold(policy(json!({"cluster": "b"})), |policy, (letter, more)| {
        policy.module(&letter.to_string(), &place_guest(*letter).bytes(), more.clone())
    })
}

#[test]
fn entries_are_composed_and_only_those_of_the_governing_policy_count() {
    let host = host(vec![placing(&[('a', json!({"weight": 3})), ('b', json!({})), ('c', json!({}))])]);
    let mut foreign = vnode("foreign", &[('a', 1, 0)]);
    foreign.policy = Some("other".into());
    let mut free = vnode("free", &[('a', 1, 0)]);
    free.policy = None;
    let nodes = [
        vnode("scored", &[('a', 0, 81), ('b', 0, 21)]),
        vnode("rejected", &[('a', 5, 0), ('b', 1, 0)]),
        vnode("later", &[('a', 5, 0), ('b', 60, 0)]),
        vnode("silent", &[]),
        foreign,
        free,
    ];
    let answers = ask(&host, 0, Stage::Schedule, &nodes);
    let fits: Vec<(Fit, u8)> = answers.iter().map(|answer| (answer.fit, answer.score)).collect();
    let accept = (Fit::Accept, 0);
    assert_eq!(fits, [(Fit::Accept, 65), (Fit::Reject, 0), (Fit::Later(60), 0), accept, accept, accept]);
    assert_eq!(reason(&answers[1]), "Hostile: on purpose (p/b)");
    let counters = host.numbers("p/b").counters;
    assert_eq!((counters.place.accepted, counters.place.rejected, counters.place.later), (2, 1, 1));
    assert_eq!((counters.place.calls, counters.calls), (1, 0), "one call for all candidates");
    assert_eq!(host.entry("b").counters.evaluations(), 4);
}

#[test]
fn a_policy_that_only_leases_has_no_say_and_one_that_only_places_does_not_lease() {
    let lease = guest().cap(7).bytes();
    let policy = placing(&[('a', json!({}))]).module("lease", &lease, json!({})).builtin(
        "half",
        "cpu-percentage",
        json!({"cpuPercent": 50}),
    );
    let host = host(vec![policy]);
    assert_eq!(cpu(&host.one(noon(), node("n"))), 7);
    assert_eq!(ask(&host, 0, Stage::Schedule, &[vnode("n", &[])])[0].fit, Fit::Accept);
    assert_eq!(host.numbers("p/lease").counters.place.calls, 0);
    assert_eq!(host.numbers("p/a").counters.calls, 0);
}

#[test]
fn stage_and_pod_reach_the_module() {
    let code = "(if (i32.eqz (call $stage (local.get $args))) (then (unreachable)))";
    let trap_for_a_priority =
        "(if (i64.eq (call $priority (local.get $args)) (i64.const 7)) (then (unreachable)))";
    let admit_only = place_guest('a').with("POISONED", code).bytes();
    let picky = place_guest('b').with("PLACE", trap_for_a_priority).bytes();
    let spec = policy(json!({"cluster": "b"}))
        .module("admit", &admit_only, json!({"onError": "Ignore"}))
        .module("picky", &picky, json!({}));
    let host = host(vec![spec]);
    let nodes = [vnode("n", &[('a', 666, 51)])];
    assert_eq!(ask(&host, 0, Stage::Schedule, &nodes)[0].score, 0, "it traps, and is ignored");
    assert_eq!(ask(&host, 0, Stage::Admit, &nodes)[0].score, 50);
    let request = PlaceRequest {
        stage: Stage::Schedule,
        pod: pod(7),
        nodes: nodes.to_vec(),
        deadline: Instant::now() + PATIENCE,
    };
    assert_eq!(host.host.place(noon(), request)[0].fit, Fit::Reject);
}

/// A scheduler asks about thousands of nodes, and is told the text for each.
#[test]
fn the_text_of_an_err_is_short_and_of_one_line() {
    let err = "(i32.store8 (i32.const 272) (i32.const 1)) (i32.store (i32.const 276) (i32.const 40000)) \
               (i32.store (i32.const 280) (i32.const 1000000)) (memory.fill (i32.const 40000) (i32.const 10) (i32.const 1000000)) \
               (i32.store8 (i32.const 40000) (i32.const 88)) (return (i32.const 272))";
    let bytes = place_guest('a').with("POISONED", err).bytes();
    let host = host(vec![policy(json!({"cluster": "b"})).module("x", &bytes, json!({}))]);
    assert_eq!(host.state("x"), EntryState::Active, "{}", host.error("x"));
    for stage in [Stage::Schedule, Stage::Admit] {
        let nodes: Vec<PlaceNode> = (0..100).map(|i| vnode(&format!("n{i}"), &[('a', 666, 0)])).collect();
        for answer in ask(&host, 0, stage, &nodes) {
            let text = reason(&answer);
            assert!(text.starts_with("ModuleFailed: Err: X "), "{}", &text[..80]);
            assert!(text.len() < 600 && !text.chars().any(char::is_control), "{} bytes", text.len());
        }
    }
}

/// PO-801, PO-803. A module's own `Err` and a lost time limit leave all rows of the call without an answer, any other
/// fault only the row that causes it.
#[rstest]
#[case::trap("(unreachable)", 1000, Some(FaultKind::Trap), false)]
#[case::memory(
    "(loop $again (drop (memory.grow (i32.const 64))) (br $again))",
    1000,
    Some(FaultKind::Memory),
    false
)]
#[case::invalid("(i32.store (i32.const 280) (i32.const 0))", 1000, Some(FaultKind::Invalid), false)]
#[case::endless_loop("(call $forever)", 200, Some(FaultKind::Timeout), true)]
#[case::its_own_err(
    "(i32.store8 (i32.const 272) (i32.const 1)) (i32.store (i32.const 276) (i32.const 1184)) (i32.store (i32.const 280) (i32.const 7)) (return (i32.const 272))",
    1000,
    None,
    true
)]
fn what_stands_for_a_missing_answer_follows_on_error_and_stage(
    #[case] code: &str,
    #[case] timeout: u32,
    #[case] fault: Option<FaultKind>,
    #[case] all_rows: bool,
    #[values(Stage::Schedule, Stage::Admit)] stage: Stage,
) {
    let bytes = place_guest('a').with("POISONED", code).bytes();
    let nodes = [vnode("good", &[]), vnode("bad", &[('a', 666, 0)]), vnode("good2", &[('a', 1, 0)])];
    let denied = if stage == Stage::Schedule { Fit::Reject } else { Fit::Later(30) };
    for (on_error, stands, whole) in [
        ("Deny", denied, OnError::Deny),
        ("LastKnown", denied, OnError::Deny),
        ("Ignore", Fit::Accept, OnError::Ignore),
    ] {
        let more = json!({"onError": on_error, "limits": {"timeoutMilliseconds": timeout}});
        let host = host(vec![policy(json!({"cluster": "b"})).module("x", &bytes, more)]);
        assert_eq!(host.host.place_on_error(), whole);
        let answers = ask(&host, 0, stage, &nodes);
        let fits: Vec<Fit> = answers.iter().map(|answer| answer.fit).collect();
        let others = if all_rows { [stands; 2] } else { [Fit::Accept, Fit::Reject] };
        assert_eq!(fits, [others[0], stands, others[1]], "{on_error}");
        let kind = fault.map_or("Err", FaultKind::as_str);
        assert!(host.error("x").starts_with(&format!("{kind}: ")), "{on_error}: {}", host.error("x"));
        if stands == Fit::Accept {
            assert_eq!(answers[1].reason, None, "{on_error}");
        } else {
            let text = reason(&answers[1]);
            assert!(
                text.starts_with(&format!("ModuleFailed: {kind}: ")) && text.ends_with(" (p/x)"),
                "{text}"
            );
        }
        let faults = host.numbers("p/x").counters.faults;
        for (counted, of_kind) in faults.into_iter().zip(FaultKind::ALL) {
            assert_eq!(counted > 0, Some(of_kind) == fault, "{on_error}: {of_kind}: {faults:?}");
        }
        assert_eq!(host.state("x"), EntryState::Active, "{on_error}: all about one pod");
    }
}

#[test]
fn a_module_that_is_not_there_stands_as_on_error_says_if_it_may_place() {
    let missing = |more: serde_json::Value| {
        let mut entry = json!({"name": "x", "module": {"configMap": {"name": "m"}, "digest": "sha256:00"}});
        for (key, value) in more.as_object().unwrap() {
            entry[key] = value.clone();
        }
        policy(json!({"cluster": "b"})).raw(entry, None)
    };
    let fit = |spec: PolicySpec| {
        let (host, nodes) = (host(vec![]), [vnode("n", &[])]);
        host.host.set_policies(vec![spec]);
        ask(&host, 0, Stage::Schedule, &nodes).remove(0)
    };
    let pending = fit(missing(json!({})));
    assert_eq!((pending.fit, reason(&pending)), (Fit::Reject, "PoliciesLoading: Loading (p/x)".to_owned()));
    assert_eq!(fit(missing(json!({"decisions": ["lease"]}))).fit, Fit::Accept);
    assert_eq!(fit(missing(json!({"onError": "Ignore"}))).fit, Fit::Accept);
    let mut invalid = placing(&[('a', json!({}))]);
    invalid.spec.time_zone = Some("Atlantis".into());
    let invalid = fit(invalid);
    assert_eq!(invalid.fit, Fit::Reject, "an invalid policy runs no module");
    assert!(reason(&invalid).contains("the policy is invalid"), "{}", reason(&invalid));
}

#[test]
fn an_audit_entry_reports_and_changes_nothing() {
    let host = host(vec![placing(&[('a', json!({"enforcement": "Audit"})), ('b', json!({}))])]);
    let nodes = [vnode("n", &[('a', 1, 0), ('b', 0, 51)]), vnode("m", &[('a', 0, 101)]), vnode("o", &[])];
    let answers = ask(&host, 0, Stage::Schedule, &nodes);
    assert!(answers.iter().all(|answer| answer.fit == Fit::Accept));
    assert_eq!(answers[1].score, 0);
    assert_eq!(
        host.entry("a").audit,
        Some((
            2,
            vec![
                "vnode-m: shop/web score 0 -> 100 (no reason)".to_owned(),
                "vnode-n: shop/web accept -> reject (Hostile)".to_owned(),
            ]
        ))
    );
    let counted = || host.numbers("p/a").counters.audit_differences;
    assert_eq!(counted(), 2);
    ask(&host, 1, Stage::Schedule, &nodes);
    assert_eq!(counted(), 2, "asked again about the same pod: no news");
    ask(&host, 1, Stage::Schedule, &[vnode("n", &[('a', 0, 0), ('b', 0, 51)])]);
    let (left, sample) = host.entry("a").audit.unwrap();
    assert_eq!(left, 1, "it would change nothing about n now: {sample:?}");
    ask(&host, 2, Stage::Schedule, &nodes);
    assert_eq!(counted(), 3, "the difference about n is back, the one about m never went");
}

#[test]
fn an_admission_is_remembered_and_a_schedule_is_not() {
    let host = host(vec![placing(&[('a', json!({}))])]);
    let calls = || host.numbers("p/a").counters.place.calls;
    let nodes = [vnode("n", &[('a', 20, 0)])];
    for at in [0, 1] {
        ask(&host, at, Stage::Schedule, &nodes);
    }
    assert_eq!(calls(), 2);
    for at in [2, 3, 21] {
        assert_eq!(ask(&host, at, Stage::Admit, &nodes)[0].fit, Fit::Later(20));
    }
    assert_eq!(calls(), 3, "the same question has the same answer");
    ask(&host, 22, Stage::Admit, &nodes);
    assert_eq!(calls(), 4, "later has come");
    ask(&host, 23, Stage::Admit, &[vnode("n", &[('a', 1, 0)])]);
    assert_eq!(calls(), 5, "a fact has changed");
    let rejected = [vnode("n", &[('a', 1, 0)])];
    ask(&host, 59, Stage::Admit, &rejected);
    assert_eq!(calls(), 5);
    ask(&host, 60, Stage::Admit, &rejected);
    assert_eq!(calls(), 6, "a module may look at the clock, so its answer holds for the minute");
    let long = [vnode("n", &[('a', 300, 0)])];
    ask(&host, 90, Stage::Admit, &long);
    ask(&host, 119, Stage::Admit, &long);
    assert_eq!(calls(), 7);
    ask(&host, 120, Stage::Admit, &long);
    assert_eq!(calls(), 8, "a later is no promise either");
    let counters = host.numbers("p/a").counters;
    assert_eq!(counters.evaluations(), 8, "remembered answers are none of the module's (PO-1501)");
    assert_eq!(counters.impure, 0, "placement promises nothing");
}

#[test]
fn a_looping_entry_costs_its_time_limit_and_soon_nothing_and_nobody_waits_beyond_the_deadline() {
    let forever = place_guest('z').with("POISONED", "(call $forever)").bytes();
    let limits = json!({"limits": {"timeoutMilliseconds": 1000}, "onError": "Ignore"});
    let spec = placing(&[('a', json!({})), ('b', json!({}))]).module("loops", &forever, limits);
    let host = host(vec![spec]);
    let nodes = [vnode("n", &[('a', 0, 11), ('z', 666, 0)]), vnode("m", &[('b', 1, 0)])];
    let started = Instant::now();
    let answers = ask_within(&host, 0, Stage::Schedule, &nodes, Duration::from_millis(400));
    let took = started.elapsed();
    let over = host.numbers("p/loops").counters.faults.iter().sum::<u64>();
    assert_eq!(over, 0, "{took:?}: it waits for the deadline, not for the module");
    assert!(!strict() || took < Duration::from_millis(450), "{took:?}");
    assert_eq!((answers[0].score, answers[1].fit), (10, Fit::Reject), "the others have answered");
    for (at, name) in [(1, "web-1"), (2, "web-2")] {
        ask_about(&host, at, Stage::Schedule, &pod_named("shop", name, 0), &nodes);
    }
    host.wait(|host| host.metrics().iter().any(|entry| entry.state == EntryState::Quarantined));
    let calls = host.numbers("p/loops").counters.place.calls;
    let answers = ask(&host, 3, Stage::Schedule, &nodes);
    assert_eq!(answers[0].fit, Fit::Accept);
    assert_eq!(host.numbers("p/loops").counters.place.calls, calls, "not called in quarantine");
    let healthy = [vnode("n", &[])];
    ask(&host, 60, Stage::Schedule, &healthy);
    assert_eq!(host.state("loops"), EntryState::Active, "a good probe");
}

/// An owner's module takes no time of those of other owners, whoever is asked first.
#[test]
fn a_looping_entry_of_one_policy_takes_nothing_of_another() {
    let forever = place_guest('z').with("POISONED", "(call $forever)").bytes();
    let limits = json!({"limits": {"timeoutMilliseconds": 1000}});
    for [loops, good] in [[0, 1], [1, 0]] {
        let looping =
            policy(json!({"cluster": "b"})).named("loops", loops).module("z", &forever, limits.clone());
        let host = host(vec![
            looping,
            policy(json!({"cluster": "b"})).named("good", good).module(
                "a",
                &place_guest('a').bytes(),
                json!({}),
            ),
        ]);
        let of = |policy: &str, node: PlaceNode| PlaceNode { policy: Some(policy.into()), ..node };
        let nodes = [of("loops", vnode("n", &[('z', 666, 0)])), of("good", vnode("m", &[('a', 0, 11)]))];
        let answers = ask_within(&host, 0, Stage::Schedule, &nodes, Duration::from_millis(400));
        assert_eq!((answers[0].fit, answers[1].fit, answers[1].score), (Fit::Reject, Fit::Accept, 10));
    }
}

/// A tenant writes annotations and labels as long as it likes, and as many pods as it may.
#[test]
fn what_is_kept_of_questions_is_bounded_in_bytes() {
    const LONG: usize = 256 << 10;
    let host = host(vec![placing(&[('a', json!({}))])]);
    let mut node = vnode("n", &[('a', 0, 0)]);
    let facts =
        NodeFacts { labels: [("pool".to_owned(), "x".repeat(LONG))].into(), ..NodeFacts::clone(&node.facts) };
    node.facts = Arc::new(facts);
    let calls = || host.numbers("p/a").counters.place.calls;
    for number in 0..50 {
        let pod = pod_named("shop", &format!("web-{number}"), number);
        ask_about(&host, 0, Stage::Admit, &pod, std::slice::from_ref(&node));
    }
    let told = host.host.decisions(None).len();
    assert!((10..=16).contains(&told), "{told} answers about 256 KiB each are kept");
    assert_eq!(calls(), 50);
    ask_about(&host, 0, Stage::Admit, &pod_named("shop", "web-0", 0), &[node]);
    assert_eq!(calls(), 51, "so long a question is not remembered");
}

/// Whoever may write a pod may write one on which a module fails.
#[test]
fn a_pod_on_which_a_module_traps_takes_the_module_from_nobody_else() {
    let trap_for_a_priority =
        "(if (i64.eq (call $priority (local.get $args)) (i64.const 7)) (then (unreachable)))";
    let picky = place_guest('a').leasing().with("PLACE", trap_for_a_priority).bytes();
    let host = host(vec![policy(json!({"cluster": "b"})).module("picky", &picky, json!({}))]);
    let nodes: Vec<PlaceNode> = (0..5).map(|i| vnode(&i.to_string(), &[])).collect();
    let fits = |at, pod: &Arc<PodFacts>| -> Vec<Fit> {
        ask_about(&host, at, Stage::Schedule, pod, &nodes).iter().map(|answer| answer.fit).collect()
    };
    for at in 0..5 {
        assert_eq!(fits(at, &pod_named("shop", "poisoned", 7)), [Fit::Reject; 5]);
    }
    assert_eq!(host.state("picky"), EntryState::Active);
    assert_eq!(fits(5, &pod_named("shop", "good", 0)), [Fit::Accept; 5]);
    for at in 6..9 {
        fits(at, &pod_named("shop", &format!("poisoned-{at}"), 7));
    }
    assert_eq!(host.state("picky"), EntryState::Quarantined);
    assert_eq!(fits(9, &pod_named("shop", "good", 0)), [Fit::Reject; 5], "three pods of its namespace");
    assert_eq!(fits(9, &pod_named("bank", "good", 0)), [Fit::Accept; 5]);
    let lease = host.one(seconds(9), node("n"));
    assert_eq!((lease.verdict, cpu(&lease)), (Verdict::Offer, 11_800), "a lease does not read pods");
    assert_eq!(fits(40, &pod_named("shop", "good", 0)), [Fit::Accept; 5], "a good probe");
    assert_eq!(host.state("picky"), EntryState::Active);
}

#[test]
fn a_question_that_is_over_is_not_asked() {
    let host = host(vec![placing(&[('a', json!({}))])]);
    let answers = ask_within(&host, 0, Stage::Schedule, &[vnode("n", &[])], Duration::ZERO);
    assert_eq!(answers[0].fit, Fit::Reject);
    assert_eq!(host.entry("a").counters.place.calls, 0);
}

#[test]
fn more_candidates_than_a_call_may_have_are_split() {
    let host = host(vec![placing(&[('a', json!({}))])]);
    let nodes: Vec<PlaceNode> =
        (0..5001).map(|i| vnode(&i.to_string(), &[('a', i64::from(i == 5000), 0)])).collect();
    let answers = ask(&host, 0, Stage::Schedule, &nodes);
    assert_eq!(answers.iter().filter(|answer| answer.fit == Fit::Reject).count(), 1);
    assert_eq!(answers[5000].fit, Fit::Reject);
    assert_eq!(host.numbers("p/a").counters.place.calls, 2);
}

#[test]
fn a_module_with_state_in_its_answers_does_not_load_for_placement() {
    let code = "(global.set $top (i32.add (global.get $top) (i32.const 16)))
        (if (i64.eqz (call $number (local.get $args) (i32.const 0) (i32.const 0)))
          (then (i32.store8 offset=8 (local.get $at) (i32.const 1))))";
    let bytes = place_guest('a').with("PLACE", code).bytes();
    let spec = policy(json!({"cluster": "b"})).module("x", &bytes, json!({}));
    let host = host(vec![spec]);
    assert_eq!(host.state("x"), EntryState::Invalid);
    assert!(host.error("x").starts_with("NotPure"), "{}", host.error("x"));
}

/// Rejects the first of several candidates. Loading asks about two, so it cannot notice.
const REJECTS_THE_FIRST_OF_MANY: &str = "(if (i32.gt_u (call $rows (local.get $args)) (i32.const 2)) \
    (then (i32.store8 (local.get $at) (i32.const 1)) (i32.store8 offset=12 (local.get $at) (i32.const 1)))) \
    (local.set $row (call $rows (local.get $args)))";

/// PO-1005: one in so many batches of several candidates is run again with them reversed, and nothing else comes of it.
#[rstest]
#[case::answers_by_position(REJECTS_THE_FIRST_OF_MANY, [Fit::Reject, Fit::Accept, Fit::Accept], 1)]
#[case::a_pure_one("", [Fit::Accept, Fit::Later(7), Fit::Reject], 0)]
fn a_module_that_looks_at_the_order_of_candidates_is_reported(
    #[case] code: &str,
    #[case] fits: [Fit; 3],
    #[case] impure: u64,
    #[values(Stage::Schedule, Stage::Admit)] stage: Stage,
) {
    let bytes = place_guest('a').with("PLACE", code).bytes();
    let engine = rechecking_engine();
    let host = host_of(&engine, vec![policy(json!({"cluster": "b"})).module("x", &bytes, json!({}))]);
    assert_eq!(host.state("x"), EntryState::Active, "loading sees nothing: {}", host.error("x"));
    let counted = || host.numbers("p/x").counters.impure;
    // Others each time: what is remembered is not asked again.
    let batch = |number: usize| {
        let nodes = [("a", 0), ("b", 7), ("c", 1)]
            .map(|(name, fit)| vnode(&format!("{name}{number}"), &[('a', fit, 0)]));
        let answers: Vec<Fit> = ask(&host, 0, stage, &nodes).iter().map(|answer| answer.fit).collect();
        assert_eq!(answers, fits, "batch {number}");
    };
    batch(1);
    ask(&host, 0, stage, &[vnode("alone", &[])]);
    assert_eq!(counted(), 0, "the first batch is not run again, and a single candidate is none");
    batch(2);
    assert_eq!(counted(), impure);
    batch(3);
    assert_eq!(counted(), impure, "only every second one");
    batch(4);
    assert_eq!(counted(), 2 * impure);
    assert_eq!(host.error("x").starts_with("NotPure: "), impure > 0, "{}", host.error("x"));
    assert_eq!(host.state("x"), EntryState::Active);
    assert_eq!(host.numbers("p/x").counters.errors, 0);
}

#[test]
fn answers_are_recorded_and_replay_bit_for_bit() {
    let trap = place_guest('b').with("POISONED", "(unreachable)").bytes();
    let host = host(vec![placing(&[('a', json!({}))]).module("b", &trap, json!({"onError": "Ignore"}))]);
    let nodes = [
        vnode("one", &[('a', 0, 41)]),
        vnode("two", &[('a', 1, 0), ('b', 666, 0)]),
        vnode("three", &[('a', 7, 1)]),
    ];
    ask(&host, 0, Stage::Schedule, &nodes);
    // What is remembered is not asked again, and so not recorded again.
    for _ in 0..2 {
        ask(&host, 60, Stage::Admit, &nodes[2..]);
    }
    let about = |node: &str| -> Vec<PlaceRecord> {
        let decisions = host.host.decisions(Some(node)).into_iter();
        decisions
            .map(|decision| match Recorded::from_json(&serde_json::to_string(&decision).unwrap()).unwrap() {
                Recorded::Place(record) => record,
                Recorded::Lease(record) => panic!("{record:?}"),
            })
            .collect()
    };
    let who = |records: &[PlaceRecord]| -> Vec<(String, Stage, Fit)> {
        records.iter().map(|one| (one.entry.clone(), one.stage, one.answer.fit)).collect()
    };
    let (a, b) = ("p/a".to_owned(), "p/b".to_owned());
    let mut three = who(&about("three"));
    three.sort_by_key(|(entry, stage, _)| (entry.clone(), *stage == Stage::Admit));
    let later = Fit::Later(7);
    assert_eq!(
        three,
        [
            (a.clone(), Stage::Schedule, later),
            (a.clone(), Stage::Admit, later),
            (b.clone(), Stage::Schedule, Fit::Accept),
            (b, Stage::Admit, Fit::Accept),
        ]
    );
    assert_eq!(who(&about("two")), [(a, Stage::Schedule, Fit::Reject)], "a trap is no answer");
    assert_eq!(about("vnode-one").len(), 2, "by the name of the vnode as well");

    let modules = [place_guest('a').bytes(), trap].map(|bytes| {
        let module = engine().load_module(&bytes, &json!({}), ModuleLimits::default(), &[]).unwrap();
        (digest(&bytes), module)
    });
    let all: Vec<PlaceRecord> = ["one", "two", "three"].into_iter().flat_map(about).collect();
    for record in all {
        assert_eq!((record.pod.as_str(), &record.pod_facts["pod.priority"]), ("shop/web", &json!(0)));
        let module = &modules.iter().find(|(digest, _)| *digest == record.digest).unwrap().1;
        assert_eq!(module.replay_place(&record).unwrap(), record.answer);
        let mut other = record.clone();
        other.facts.insert(format!("allocatable/{}.test/fit", &record.entry[2..]), json!(9));
        assert_eq!(module.replay_place(&other).unwrap().fit, Fit::Later(9));
        other.pod_facts.clear();
        assert!(module.replay_place(&other).unwrap_err().to_string().contains("pod.priority"));
    }
}

#[test]
fn the_last_thousand_answers_are_kept_and_more_cost_no_more() {
    let host = host(vec![placing(&[('a', json!({}))])]);
    let nodes: Vec<PlaceNode> =
        (0..1500).map(|number| vnode(&format!("n{number}"), &[('a', 0, 1)])).collect();
    ask(&host, 0, Stage::Schedule, &nodes[..10]);
    ask(&host, 0, Stage::Schedule, &nodes);
    let kept = host.host.decisions(None);
    assert_eq!(kept.len(), 1000);
    assert!(matches!(&kept[0], Recorded::Place(record) if record.vnode == "vnode-n500"));
    assert!(host.host.decisions(Some("n499")).is_empty());
    // One answer more takes the place of one.
    ask(&host, 0, Stage::Schedule, &nodes[..1]);
    let kept = host.host.decisions(None);
    assert_eq!(kept.len(), 1000);
    let vnode_of = |recorded: &Recorded| match recorded {
        Recorded::Place(record) => record.vnode.clone(),
        Recorded::Lease(_) => String::new(),
    };
    assert_eq!([&kept[0], &kept[998], &kept[999]].map(vnode_of), ["vnode-n501", "vnode-n1499", "vnode-n0"]);
    ask(&host, 0, Stage::Schedule, &nodes[..999]);
    let kept = host.host.decisions(None);
    assert_eq!([&kept[0], &kept[1], &kept[999]].map(vnode_of), ["vnode-n0", "vnode-n0", "vnode-n998"]);
}

#[test]
fn an_explanation_of_a_place_says_what_each_entry_says() {
    let trap = place_guest('x').with("POISONED", "(unreachable)").bytes();
    let spec = placing(&[('a', json!({"weight": 3})), ('b', json!({"enforcement": "Audit"}))]).module(
        "x",
        &trap,
        json!({}),
    );
    let host = host(vec![spec]);
    let node = vnode("n", &[('a', 0, 81), ('b', 1, 0), ('x', 666, 0)]);
    let request = PlaceRequest {
        stage: Stage::Admit,
        pod: pod(0),
        nodes: vec![node.clone()],
        deadline: Instant::now() + PATIENCE,
    };
    let (placement, steps) = host.host.explain_place(noon(), request.clone());
    assert_eq!(placement, host.host.place(noon(), request.clone())[0]);
    assert_eq!(placement.fit, Fit::Later(30), "what stands for the entry that fails");
    let told: Vec<_> = steps.iter().map(|s| (s.entry.as_str(), s.audit, s.fit, s.score, s.so_far)).collect();
    assert_eq!(
        told,
        [
            ("a", false, Some(Fit::Accept), Some(80), Fit::Accept),
            ("x", false, None, None, Fit::Later(30)),
            ("b", true, Some(Fit::Reject), None, Fit::Later(30)),
        ]
    );
    assert!(steps[1].error.as_ref().unwrap().starts_with("Trap"), "{steps:?}");
    let free = PlaceRequest { nodes: vec![PlaceNode { policy: None, ..node }], ..request };
    assert_eq!(host.host.explain_place(noon(), free), (Placement::default(), Vec::new()));
}
