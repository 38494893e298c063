//! PO-704: a new version takes over only when it has loaded, and no decision is lost meanwhile.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kubeocean_engine::{EntryState, NodeFacts, PolicySpec, Verdict};
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

/// Caps cpu and memory of every row at the same number, as one version of a module.
fn twice_capped(version: i64) -> PolicySpec {
    let needs = "(i32.store (i32.const 100) (i32.const 2)) (i32.store (i32.const 144) (i32.const 1200)) \
                 (i32.store (i32.const 148) (i32.const 6))";
    let lease = format!(
        "(i32.store (i32.const 284) (call $alloc (i32.mul (call $rows (local.get $args)) (i32.const 16))))
         (i32.store (i32.const 288) (i32.mul (call $rows (local.get $args)) (i32.const 2)))
         (block $done (loop $next
           (br_if $done (i32.ge_u (local.get $i) (i32.load (i32.const 288))))
           (i64.store (i32.add (i32.load (i32.const 284)) (i32.mul (local.get $i) (i32.const 8))) (i64.const {version}))
           (local.set $i (i32.add (local.get $i) (i32.const 1)))
           (br $next)))"
    );
    let guest = guest().with("NEEDS", needs).with("LEASE", &lease);
    policy(json!({})).guest("x", &guest.with("START", "(data (i32.const 1200) \"memory\")"))
}

/// Nodes nobody was asked about before: each is a row of its own.
fn never_seen(round: i64) -> Vec<Arc<NodeFacts>> {
    let node = |i: i64| NodeFacts { created_unix: 1000 + round * 256 + i, ..node(&format!("n{i}")) };
    (0..256).map(|i| Arc::new(node(i))).collect()
}

#[test]
fn every_decision_during_a_swap_is_of_one_version() {
    let host = host(vec![twice_capped(100)]);
    let stop = AtomicBool::new(false);
    let inner = &host.host;
    let seen = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        let decider = scope.spawn(|| {
            let mut round = 0;
            while !stop.load(Ordering::Relaxed) {
                round += 1;
                let nodes = never_seen(round);
                let mut versions = BTreeSet::new();
                for decision in inner.decide(noon(), &nodes) {
                    assert_eq!((decision.verdict, decision.announce), (Verdict::Offer, true));
                    assert_eq!(cpu(&decision), decision.amounts["memory"], "one row, two versions");
                    versions.insert(cpu(&decision));
                }
                assert_eq!(versions.len(), 1, "one call, {versions:?}");
                seen.lock().unwrap().extend(versions);
            }
        });
        // The next version is compiled and tried while the decider goes on.
        for version in [200, 300, 400] {
            host.host.set_policies(vec![twice_capped(version)]);
            let deadline = Instant::now() + Duration::from_mins(1);
            while !seen.lock().unwrap().contains(&version) && !decider.is_finished() {
                assert!(Instant::now() < deadline, "version {version} does not come");
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
        decider.join().unwrap();
    });
    assert_eq!(seen.into_inner().unwrap(), [100, 200, 300, 400].into(), "old and new versions have decided");
}
