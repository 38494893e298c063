//! PO-802: what ends a quarantine before its next probe is due.

use kubeocean_engine::{EntryState, PolicySpec, Verdict};
use rstest::rstest;
use serde_json::{Value, json};

use crate::support::*;
use kubeocean_hostile_policies::guest;

/// An entry that traps at a poisoned node; its cap tells which module it is.
fn trapping(cap: i64, more: Value) -> PolicySpec {
    policy(json!({})).module("bad", &guest().cap(cap).with("POISONED", "(unreachable)").bytes(), more)
}

#[rstest]
#[case::another_module(200, json!({}))]
#[case::other_settings(100, json!({"settings": {"a": 1}}))]
fn a_change_of_module_or_settings_begins_anew(#[case] cap: i64, #[case] more: Value) {
    let host = host(vec![trapping(100, json!({}))]);
    for second in 0..3 {
        host.one(seconds(second), poisoned(node("a")));
    }
    assert_eq!(host.state("bad"), EntryState::Quarantined);
    // A new version is tried on nodes as they were seen last, so this one must be well again.
    assert_eq!(host.one(seconds(3), node("a")).verdict, Verdict::Withhold);
    host.set(vec![trapping(100, json!({"onError": "Ignore"}))]);
    assert_eq!(host.state("bad"), EntryState::Quarantined, "the same module with the same settings");
    host.host.set_policies(vec![trapping(cap, more)]);
    host.wait(|_| host.state("bad") == EntryState::Active);
    let calls = host.numbers("p/bad").counters.calls;
    // The first probe is due half a minute after the third fault.
    let decision = host.one(seconds(4), node("b"));
    assert_eq!((decision.verdict, cpu(&decision)), (Verdict::Offer, cap));
    assert_eq!(host.numbers("p/bad").counters.calls, calls + 1);
    host.one(seconds(5), poisoned(node("c")));
    assert_eq!(host.state("bad"), EntryState::Active, "faults of the version before do not count");
}
