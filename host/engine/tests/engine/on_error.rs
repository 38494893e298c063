//! PO-803 and PO-804: what holds when an entry gives no answer, at every stage.

use std::sync::Arc;

use kubeocean_engine::{
    LoadCode, ModuleFetch, NodeDecision, NodeFacts, PolicySpec, Reclaim, Standing, Verdict, builtin,
};
use rstest::rstest;
use serde_json::json;

use crate::support::*;
use kubeocean_hostile_policies::{digest, guest};

/// How the entry fails to answer.
#[derive(Clone, Copy, Debug)]
enum Failure {
    Pending,
    FetchFailed,
    WrongDigest,
    NoModule,
    NoCode,
    Trap,
    Timeout,
    Err,
    Invalid,
}

const ALL: [Failure; 9] = [
    Failure::Pending,
    Failure::FetchFailed,
    Failure::WrongDigest,
    Failure::NoModule,
    Failure::NoCode,
    Failure::Trap,
    Failure::Timeout,
    Failure::Err,
    Failure::Invalid,
];

/// An entry that fails, in front of one that leases half the cpu. It is Audit-free and has never answered.
fn failing(failure: Failure, on_error: &str) -> PolicySpec {
    let bad = |code: &str| guest().with("POISONED", code).bytes();
    let err = "(i32.store8 (i32.const 272) (i32.const 1)) (i32.store (i32.const 276) (i32.const 1120)) (i32.store (i32.const 280) (i32.const 7))";
    let (bytes, fetch, pin): (Arc<[u8]>, Option<ModuleFetch>, Option<String>) = match failure {
        Failure::Pending => (guest().bytes(), None, None),
        Failure::FetchFailed => {
            let fetch = ModuleFetch::Failed { code: LoadCode::FetchFailed, message: "no route".into() };
            (guest().bytes(), Some(fetch), None)
        }
        Failure::WrongDigest => (guest().bytes(), None, Some(format!("sha256:{}", "1".repeat(64)))),
        Failure::NoModule => (Arc::from(*b"text"), None, None),
        Failure::NoCode => {
            let whole = builtin("cpu-percentage").unwrap();
            (whole[..whole.len() / 2].into(), None, None)
        }
        Failure::Timeout => (bad("(call $forever)"), None, None),
        Failure::Trap => (bad("(unreachable)"), None, None),
        Failure::Err => (bad(err), None, None),
        Failure::Invalid => (bad("(i32.store (i32.const 280) (i32.const 0))"), None, None),
    };
    let pending = matches!(failure, Failure::Pending);
    let fetch = fetch.or((!pending).then(|| ModuleFetch::Ready(Arc::clone(&bytes).into())));
    let pin = pin.unwrap_or_else(|| digest(&bytes));
    policy(json!({}))
        .raw(json!({"name": "bad", "module": {"configMap": {"name": "m"}, "digest": pin}, "onError": on_error}), fetch)
        .builtin("half", "cpu-percentage", json!({"cpuPercent": 50}))
}

fn decide(failure: Failure, on_error: &str, node: NodeFacts) -> NodeDecision {
    // A host that is not waited for: `Pending` never settles.
    let host = unsettled(vec![failing(failure, on_error)]);
    if !matches!(failure, Failure::Pending) {
        host.settle();
    }
    host.one(noon(), poisoned(node))
}

fn unsettled(policies: Vec<PolicySpec>) -> Host {
    let host = host(Vec::new());
    host.host.set_policies(policies);
    host
}

#[test]
fn ignore_leaves_the_entry_out() {
    for failure in ALL {
        let decision = decide(failure, "Ignore", node("a"));
        assert_eq!((decision.verdict, cpu(&decision)), (Verdict::Offer, 5900), "{failure:?}");
        assert_eq!(decision.loading, matches!(failure, Failure::Pending));
        assert!(decision.announce && decision.may_create, "{failure:?}");
    }
}

#[test]
fn deny_withholds_without_reclaim_and_makes_no_vnode() {
    for failure in ALL {
        let without = decide(failure, "Deny", node("a"));
        assert_eq!((without.verdict, without.reclaim), (Verdict::Withhold, Reclaim::Keep), "{failure:?}");
        assert!(!without.may_create && !without.announce, "{failure:?}");
        let with = decide(failure, "Deny", published("a", 9000, true));
        assert_eq!((with.verdict, with.withheld, cpu(&with)), (Verdict::Withhold, true, 5900), "{failure:?}");
        assert!(with.may_create, "{failure:?}");
        let less = decide(failure, "Deny", published("a", 4000, true));
        assert_eq!(cpu(&less), 4000, "{failure:?}: never more than is published");
    }
}

#[test]
fn last_known_of_an_entry_that_never_answered_is_what_is_published() {
    for failure in ALL {
        let offered = decide(failure, "LastKnown", published("a", 4000, true));
        assert_eq!(
            (offered.verdict, offered.withheld, cpu(&offered)),
            (Verdict::Held, false, 4000),
            "{failure:?}"
        );
        assert_eq!((offered.announce, offered.reclaim), (false, Reclaim::Keep), "{failure:?}");
        let withheld = decide(failure, "LastKnown", published("a", 4000, false));
        assert_eq!(
            (withheld.verdict, withheld.withheld, withheld.reclaim),
            (Verdict::Held, true, Reclaim::Keep)
        );
        let none = decide(failure, "LastKnown", node("a"));
        assert_eq!((none.verdict, none.may_create), (Verdict::Withhold, false), "{failure:?}");
        let code = offered.reason.unwrap().code;
        let loading = matches!(failure, Failure::Pending | Failure::FetchFailed);
        assert_eq!(code, if loading { "PoliciesLoading" } else { "ModuleFailed" }, "{failure:?}");
    }
}

#[test]
fn what_is_published_stands_until_its_valid_until() {
    let mut node = published("a", 4000, true);
    node.published.as_mut().unwrap().valid_until = Some(seconds(10).as_second());
    let host = unsettled(vec![failing(Failure::Pending, "LastKnown")]);
    let before = host.one(seconds(9), node.clone());
    assert_eq!((before.verdict, before.valid_until), (Verdict::Held, Some(seconds(10).as_second())));
    assert_eq!(host.one(seconds(10), node).verdict, Verdict::Withhold);
}

#[rstest]
#[case::offer("", Verdict::Held, false, Reclaim::Keep)]
#[case::withhold_by_force(
    "(i32.store8 (i32.load (i32.const 276)) (i32.const 1)) (i32.store8 offset=4 (i32.load (i32.const 276)) (i32.const 2)) (i32.store8 offset=32 (i32.load (i32.const 276)) (i32.const 1))",
    Verdict::Held,
    true,
    Reclaim::Force
)]
fn the_last_good_answer_of_a_node_stands(
    #[case] row: &str,
    #[case] verdict: Verdict,
    #[case] withheld: bool,
    #[case] reclaim: Reclaim,
) {
    // Real nodes only: a trial row is not of the year 1970.
    let code = format!(
        "(call $cap_all (local.get $args) (i64.const 700)) (if (i64.eq (call $number (local.get $args) (i32.const 0)) (i64.const 1)) (then {row}))"
    );
    let bytes = guest().with("LEASE", &code).with("POISONED", "(unreachable)").bytes();
    let host = host(vec![policy(json!({})).module("bad", &bytes, json!({}))]);
    let good = host.one(noon(), node("a"));
    assert_eq!((cpu(&good), good.withheld, good.announce), (700, withheld, true));
    let bad = host.one(seconds(1), poisoned(node("a")));
    assert_eq!((cpu(&bad), bad.verdict, bad.withheld), (700, verdict, withheld));
    let standing = Standing::Mode(reclaim);
    assert_eq!((bad.reclaim, bad.standing), (Reclaim::Keep, standing), "an error starts no eviction");
    assert!(!bad.announce, "an error announces nothing");
    assert!(bad.may_create);
    assert!(!host.host.status(seconds(3600))[0].stale);
    assert!(host.host.status(seconds(3602))[0].stale);
    let mut small = poisoned(node("a"));
    small.used.insert("cpu".into(), 15_500);
    assert_eq!(cpu(&host.one(seconds(2), small)), 500, "clamped by what is free today");
}

/// PO-801 and PO-803: a node without an answer is asked again soon, and less often while the entry goes on failing.
#[rstest]
#[case::a_fault("(unreachable)")]
#[case::its_own_err(
    "(i32.store8 (i32.const 272) (i32.const 1)) (i32.store (i32.const 276) (i32.const 1120)) (i32.store (i32.const 280) (i32.const 7))"
)]
fn a_node_without_an_answer_is_decided_again_soon(#[case] code: &str) {
    let host =
        host(vec![policy(json!({})).module("bad", &guest().with("POISONED", code).bytes(), json!({}))]);
    let mut now = 0;
    for wait in [2, 4] {
        let decision = host.one(seconds(now), poisoned(node("a")));
        assert_eq!((decision.may_create, decision.wake_at), (false, Some(seconds(now + wait).as_second())));
        now += 61;
    }
    host.one(seconds(now), node("b"));
    let decision = host.one(seconds(now), poisoned(node("a")));
    assert_eq!(decision.wake_at, Some(seconds(now + 2).as_second()), "a good answer begins anew");
}

/// PO-804: what stands for a node ends when the entry has no say about it any more.
#[test]
fn a_policy_that_lost_its_nodes_is_not_stale() {
    let bytes = guest().with("POISONED", "(unreachable)").bytes();
    let selector = json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "In", "values": ["online"]}]}]});
    let spec = || policy(json!({"nodeSelector": selector})).module("bad", &bytes, json!({}));
    let host = host(vec![spec()]);
    host.one(noon(), node("a"));
    host.one(seconds(1), poisoned(node("a")));
    assert!(host.host.status(seconds(3700))[0].stale);
    let mut moved = poisoned(node("a"));
    moved.labels.insert("pool".into(), "batch".into());
    host.one(seconds(2), moved);
    assert!(!host.host.status(seconds(3700))[0].stale, "the selector no longer covers the node");
    host.one(seconds(3), poisoned(node("a")));
    assert!(host.host.status(seconds(3700))[0].stale);
    host.set(vec![spec(), policy(json!({})).named("older", 0)]);
    host.one(seconds(4), poisoned(node("a")));
    assert!(!host.host.status(seconds(3700))[1].stale, "an older policy governs the node");
    host.set(vec![spec()]);
    host.one(seconds(5), poisoned(node("a")));
    host.host.retain_nodes(&["b"].into());
    assert!(!host.host.status(seconds(3700))[0].stale, "the node is gone");
}

/// PO-704: only what is loading and has a say holds a node back; policies of built-in modules never do.
#[test]
fn loading_is_told_per_node_and_for_enforce_entries() {
    let batch = json!({"nodeSelectorTerms": [{"matchExpressions": [{"key": "pool", "operator": "In", "values": ["batch"]}]}]});
    let entry = |name: &str, enforcement: &str| json!({"name": name, "module": {"configMap": {"name": "m"}, "digest": digest(b"x")}, "enforcement": enforcement});
    let host = unsettled(vec![
        policy(json!({"nodeSelector": batch})).named("waits", 1).raw(entry("x", "Enforce"), None),
        policy(json!({"resourceLimits": [{"resource": "cpu", "percent": 50}]}))
            .named("built-in", 2)
            .raw(entry("y", "Audit"), None),
    ]);
    let mut of_batch = node("b");
    of_batch.labels.insert("pool".into(), "batch".into());
    assert!(host.one(noon(), of_batch).loading);
    let other = host.one(noon(), node("a"));
    assert_eq!((other.loading, other.governed_by.as_deref()), (false, Some("built-in")));
}

#[test]
fn a_good_entry_still_withholds_beside_a_failing_one() {
    let mut spec = failing(Failure::Trap, "LastKnown");
    spec.spec.time_windows = serde_json::from_value(json!([{"start": "01:00", "end": "02:00"}])).unwrap();
    spec.spec.force_reclaim = true;
    let host = host(vec![spec]);
    let decision = host.one(noon(), poisoned(published("a", 4000, true)));
    assert_eq!((decision.verdict, decision.reclaim), (Verdict::Withhold, Reclaim::Force));
    assert_eq!(decision.reason.unwrap().code, "OutsideTimeWindow");
    assert!(!decision.announce);
}
