//! What a sweep met once in thousands of seeds, step by step.

use std::time::Duration;

use kubeocean_api::keys::{annotation, label};
use kubeocean_runtime::queue::Outcome;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{
    World,
    clusters::{KINDS, Kind},
};
use crate::nodes::decide::NoPlan;

const VNODE: &str = "vnode-cls-a-n1";

fn policy(world: &mut World, name: &str, created: &str) {
    let uid = world.clusters.uid();
    world.clusters.put(
        Kind::Policy,
        json!({
            "metadata": {"name": name, "uid": uid, "generation": 1, "creationTimestamp": created},
            "spec": {"cluster": "dc-east", "resourceLimits": [], "timeWindows": []},
        }),
    );
}

/// One watch catches up; the others tell nothing.
fn show(world: &mut World, kind: Kind) {
    while let Some(change) = world.clusters.events.get_mut(&kind).unwrap().pop_front() {
        world.syncer.deliver(kind, &change);
    }
    if world.syncer.hungry {
        world.syncer.feed();
    }
}

/// One node with a vnode built from `younger`.
async fn leased() -> World {
    let mut world = World::new(0);
    world.faults = false;
    let uid = world.clusters.uid();
    world.clusters.put(
        Kind::Pnode,
        json!({
            "metadata": {"name": "n1", "uid": uid},
            "status": {
                "allocatable": {"cpu": "4000m", "memory": "8192Mi", "pods": "110"},
                "conditions": [{"type": "Ready", "status": "True", "reason": "KubeletReady"}],
            },
        }),
    );
    policy(&mut world, "younger", "2026-03-02T11:30:00Z");
    for kind in KINDS {
        world.list(kind);
    }
    while world.work().await {}
    assert_eq!(named(&world), "younger");
    // Who holds the policy has changed by that.
    show(&mut world, Kind::Policy);
    world
}

fn named(world: &World) -> &Value {
    &world.clusters.get(Kind::Vnode, VNODE).unwrap()["metadata"]["annotations"][annotation::POLICIES_APPLIED]
}

/// The answer to the write that names a policy is lost, and the policy loses the node before a watch shows the write: its
/// finalizer stays until the vnode names another one.
#[test]
fn a_policy_that_an_unanswered_write_names_is_not_released() {
    super::clock().block_on(async {
        let mut world = leased().await;
        policy(&mut world, "older", "2026-03-02T11:00:00Z");
        show(&mut world, Kind::Policy);
        world.loses_next = true;
        while world.work().await {}
        assert_eq!(named(&world), "older");
        world.clusters.delete(Kind::Policy, "older", None).unwrap();
        show(&mut world, Kind::Policy);
        let end = Instant::now() + Duration::from_mins(1);
        while world.work_until(end).await {
            world.release_policies();
            show(&mut world, Kind::Policy);
        }
        assert_eq!(named(&world), "younger");
        assert!(world.clusters.get(Kind::Policy, "older").is_none(), "its last vnode names another one");
    });
}

/// The same for a vnode that nobody has seen yet: it is found, and withdrawn, before its policy goes.
#[test]
fn a_policy_is_not_released_under_a_vnode_whose_creation_was_not_answered() {
    super::clock().block_on(async {
        let mut world = leased().await;
        world.clusters.remove(Kind::Vnode, VNODE);
        show(&mut world, Kind::Vnode);
        world.loses_next = true;
        while world.work().await {}
        world.clusters.delete(Kind::Policy, "younger", None).unwrap();
        show(&mut world, Kind::Policy);
        let end = Instant::now() + Duration::from_mins(1);
        while world.work_until(end).await {
            world.release_policies();
            show(&mut world, Kind::Policy);
        }
        assert!(world.clusters.get(Kind::Vnode, VNODE).is_none(), "no policy, no lease");
        assert!(world.clusters.get(Kind::Policy, "younger").is_none(), "nothing is built from it");
    });
}

/// A decision that closes a lease waits for its turn to be written, and a window opens meanwhile: nobody is evicted by it.
#[test]
fn an_answer_that_closes_a_lease_is_not_carried_out_after_its_end() {
    super::clock().block_on(async {
        let world = leased().await;
        let now = world.now();
        let (mut work, _) = world.syncer.consider(VNODE.into(), now);
        let decision = work.decision.as_mut().unwrap();
        decision.withheld = true;
        decision.valid_until = Some(now.as_second() + 1);
        assert!(world.syncer.plan(&work, now).is_ok());
        let late = now + jiff::SignedDuration::from_secs(1);
        assert_eq!(world.syncer.plan(&work, late).err(), Some(NoPlan::Later(Outcome::Stale)));
    });
}

/// The same for an owner who corrects a policy meanwhile: what was decided before is decided again, closed or withdrawn.
#[test]
fn an_answer_that_ends_a_lease_is_not_carried_out_once_a_policy_was_edited() {
    super::clock().block_on(async {
        let mut world = leased().await;
        let now = world.now();
        let (mut closed, _) = world.syncer.consider(VNODE.into(), now);
        closed.decision.as_mut().unwrap().withheld = true;
        let (mut unselected, _) = world.syncer.consider(VNODE.into(), now);
        unselected.decision.as_mut().unwrap().selected = false;
        let (open, _) = world.syncer.consider(VNODE.into(), now);
        for work in [&closed, &unselected, &open] {
            assert!(world.syncer.plan(work, now).is_ok());
        }
        // The engine need not know of it yet.
        world.clusters.edit(Kind::Policy, "younger", |policy| policy["metadata"]["generation"] = 2.into());
        while let Some(change) = world.clusters.events.get_mut(&Kind::Policy).unwrap().pop_front() {
            world.syncer.deliver(Kind::Policy, &change);
        }
        for work in [&closed, &unselected] {
            assert_eq!(world.syncer.plan(work, now).err(), Some(NoPlan::Later(Outcome::Stale)));
        }
        assert!(world.syncer.plan(&open, now).is_ok(), "what offers waits for nobody");
        let again = world.syncer.consider(VNODE.into(), now).0;
        assert_ne!(again.policies, world.syncer.policies.changes(), "the engine has not taken it");
        world.syncer.feed();
        let (mut again, _) = world.syncer.consider(VNODE.into(), now);
        again.decision.as_mut().unwrap().withheld = true;
        assert!(world.syncer.plan(&again, now).is_ok());
    });
}

/// An owner puts a deleted policy back while the grace period it announced ends: the vnode is not deleted by what was
/// decided before.
#[test]
fn a_vnode_is_not_deleted_once_its_policy_is_back() {
    super::clock().block_on(async {
        let mut world = leased().await;
        world.clusters.edit(Kind::Policy, "younger", |policy| {
            policy["metadata"]["generation"] = 2.into();
            policy["spec"]["forceReclaim"] = true.into();
            policy["spec"]["gracefulReclaimPeriodSeconds"] = 60.into();
        });
        show(&mut world, Kind::Policy);
        while world.work().await {}
        world.clusters.delete(Kind::Policy, "younger", None).unwrap();
        show(&mut world, Kind::Policy);
        while world.work().await {}
        let over = world.now() + jiff::SignedDuration::from_secs(60);
        let (work, considered) = world.syncer.consider(VNODE.into(), over);
        let plan = considered.map(|considered| considered.plan.to_string());
        assert_eq!(plan, Ok(format!("delete vnode {VNODE}")));
        policy(&mut world, "back", "2026-03-02T12:01:00Z");
        while let Some(change) = world.clusters.events.get_mut(&Kind::Policy).unwrap().pop_front() {
            world.syncer.deliver(Kind::Policy, &change);
        }
        assert_eq!(world.syncer.plan(&work, over).err(), Some(NoPlan::Later(Outcome::Stale)));
        world.syncer.feed();
        while world.work().await {}
        assert_eq!(named(&world), "back");
    });
}

/// Without its labels no watch tells what others do to a vnode: it is read again before it is written.
#[test]
fn a_vnode_that_is_not_watched_is_withdrawn_whatever_others_do_to_it() {
    super::clock().block_on(async {
        let mut world = leased().await;
        let edit = |world: &mut World, key: &str, value: Value| {
            world.clusters.edit(Kind::Vnode, VNODE, |vnode| vnode["metadata"]["labels"][key] = value);
        };
        world.clusters.edit(Kind::Vnode, VNODE, |vnode| {
            vnode["metadata"]["labels"].as_object_mut().unwrap().remove(label::CLUSTER_BINDING);
        });
        show(&mut world, Kind::Vnode);
        // It has been read, and the plan made from that is not carried out.
        let (key, now) = (world.syncer.take(Instant::now()).await.unwrap(), world.now());
        assert_eq!(world.syncer.consider(key.clone(), now).1.err(), Some(NoPlan::ReadFirst));
        world.read_again(&key);
        world.syncer.store.queue.done(&key, Outcome::Done);
        edit(&mut world, "users.example/a", "b".into());
        world.clusters.delete(Kind::Policy, "younger", None).unwrap();
        show(&mut world, Kind::Policy);
        let end = Instant::now() + Duration::from_mins(1);
        for _ in 0..50 {
            world.work_until(end).await;
            show(&mut world, Kind::Vnode);
        }
        assert!(world.clusters.get(Kind::Vnode, VNODE).is_none(), "no policy, no lease");
    });
}
