//! PO-704: a new version takes over only when it has loaded, and no decision is lost meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use kubeocean_engine::{EntryState, PolicySpec, Verdict};
use serde_json::json;

use crate::support::*;
use kubeocean_hostile_policies::{digest, guest};

fn with_cap(cap: i64) -> PolicySpec {
    policy(json!({})).guest("x", &guest().cap(cap))
}

#[test]
fn a_broken_update_leaves_the_old_version_running() {
    let host = host(vec![with_cap(100)]);
    assert_eq!(cpu(&host.one(noon(), node("a"))), 100);
    let old = host.entry("x").digest;
    let broken = guest().cap(200).with("DESCRIBE", "(unreachable)");
    host.host.set_policies(vec![policy(json!({})).guest("x", &broken)]);
    host.wait(|_| host.state("x") == EntryState::Degraded);
    assert_eq!(
        (cpu(&host.one(noon(), node("a"))), host.one(noon(), node("a")).verdict),
        (100, Verdict::Offer)
    );
    let status = host.entry("x");
    assert_eq!(status.digest, old);
    assert_eq!(status.desired_digest, Some(digest(&broken.bytes())));
    assert!(status.last_error.unwrap().0.starts_with("DescribeFailed"));
    host.host.set_policies(vec![with_cap(300)]);
    host.wait(|_| host.entry("x").desired_digest.is_none());
    assert_eq!(host.state("x"), EntryState::Active);
    assert_eq!(cpu(&host.one(noon(), node("a"))), 300);
    assert_eq!(host.entry("x").desired_digest, None);
}

#[test]
fn bad_settings_of_a_builtin_leave_the_old_ones_running() {
    let spec =
        |percent: i64| policy(json!({})).builtin("x", "cpu-percentage", json!({"cpuPercent": percent}));
    let host = host(vec![spec(50)]);
    host.set(vec![spec(500)]);
    assert_eq!((host.state("x"), cpu(&host.one(noon(), node("a")))), (EntryState::Degraded, 5900));
    host.set(vec![spec(25)]);
    assert_eq!((host.state("x"), cpu(&host.one(noon(), node("a")))), (EntryState::Active, 2950));
}

#[test]
fn an_unchanged_entry_is_not_loaded_again() {
    let host = host(vec![with_cap(100)]);
    host.one(noon(), node("a"));
    let mut again = with_cap(100);
    again.generation = 2;
    again.spec.resource_limits =
        serde_json::from_value(json!([{"resource": "memory", "percent": 50}])).unwrap();
    host.set(vec![again]);
    host.one(noon(), node("a"));
    assert_eq!(host.numbers("p/x").counters.calls, 1, "its memo survives an edit elsewhere in the policy");
    assert_eq!(host.host.status(noon())[0].generation, 2);
    host.set(Vec::new());
    assert!(host.host.metrics().is_empty());
    assert_eq!(host.one(noon(), node("a")).governed_by, None);
}

#[test]
fn every_decision_during_a_swap_is_of_one_version() {
    let host = host(vec![with_cap(100)]);
    let stop = AtomicBool::new(false);
    let inner = &host.host;
    std::thread::scope(|scope| {
        let decider = scope.spawn(|| {
            let mut seen = std::collections::BTreeSet::new();
            let mut round = 0_i64;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let mut node = node("a");
                node.created_unix = 1000 + round;
                let decision = inner.decide(noon(), &[Arc::new(node)]).pop().unwrap();
                assert_eq!((decision.verdict, decision.announce), (Verdict::Offer, true));
                seen.insert(cpu(&decision));
            }
            seen
        });
        for cap in [200, 300, 400] {
            host.host.set_policies(vec![with_cap(cap)]);
            host.wait(|inner| {
                let mut fresh = node("b");
                fresh.created_unix = cap;
                cpu(&inner.decide(noon(), &[Arc::new(fresh)]).pop().unwrap()) == cap
            });
        }
        stop.store(true, Ordering::Relaxed);
        let seen = decider.join().unwrap();
        assert!(seen.iter().all(|cap| [100, 200, 300, 400].contains(cap)), "{seen:?}");
    });
}
