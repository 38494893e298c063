//! Both clusters and a Syncer in one loop: the real stores, queue, engine and planner against a model of two API
//! servers. Watches lag, each for itself; writes conflict, fail, or lose their answer; the Syncer stops between any two
//! writes and begins anew with lists that arrive one by one.
//!
//! Grammar ([`users`]): worker nodes come, change, go and return with another UID; pods of four kinds of owners come, end
//! and go on them; policies of every kind of window, limit and reclaim appear, change and go; pods come and go on
//! vnodes; users edit and delete vnodes; the binding's selector changes, and at the end the binding goes. The worker
//! is lost and comes back. Withdrawals are paced in half of the runs.
//! Only time and events make the Syncer look at a node: a forgotten wake-up is a wrong end.
//!
//! Invariants of every write ([`writes`]) are judged by what the Syncer may know, computed by an [`oracle`] from plain
//! objects. At rest, everything is as the oracle computes it from what is, and another round writes nothing, nor does
//! time alone.
//! A failure prints its seed and can be replayed (see [`crate::simulation`]).

mod clusters;
mod directed;
mod end;
pub(super) mod oracle;
mod promise;
mod syncer;
mod users;
mod writes;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use kubeocean_api::keys::annotation;
use serde_json::Value;
use tokio::time::Instant;

use clusters::{BINDING, Clusters, KINDS, Kind};
use syncer::Syncer;
use users::UserKeys;
use writes::Met;

use super::super::{
    decide::{NoPlan, look_again},
    index::VnodeName,
    loss::WorkerLoss,
};
use crate::{
    policies::finalizer::{FinalizerChange, release},
    simulation::{Random, sweep, trace},
};

const STEPS: usize = 140;
/// Time in which everything must come to rest: the longest grace period twice, and waits between retries.
const REST: Duration = Duration::from_mins(25);

/// Everything there is.
struct World {
    random: Random,
    clusters: Clusters,
    /// How many nodes may lose their lease per minute; 0 is unlimited.
    per_minute: u32,
    syncer: Syncer,
    keys: UserKeys,
    /// Start of a reclaim, as the first write of it said, by vnode UID.
    since: BTreeMap<String, String>,
    /// How pods are reclaimed when the policy is lost, as the last valid one said: see [`promise`].
    announced: BTreeMap<String, Option<i64>>,
    /// Answers that are under way while nobody waits for them.
    late: Vec<(Kind, Value)>,
    began: Instant,
    /// Writes fail, and the Syncer crashes.
    faults: bool,
    /// The next answer about a vnode is lost.
    loses_next: bool,
    /// What was written for which vnode, events included, since somebody emptied it.
    actions: Vec<(VnodeName, String)>,
    met: Met,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let per_minute = random.pick(&[0, 0, 1, 2]);
        let mut world = Self {
            random,
            clusters: Clusters::new(),
            per_minute,
            syncer: Syncer::new(per_minute),
            keys: UserKeys::new(),
            since: BTreeMap::new(),
            announced: BTreeMap::new(),
            late: Vec::new(),
            began: Instant::now(),
            faults: true,
            loses_next: false,
            actions: Vec::new(),
            met: Met::default(),
        };
        world.restart();
        world
    }

    fn now(&self) -> Timestamp {
        let start: Timestamp = "2026-03-02T12:00:00Z".parse().unwrap();
        start + SignedDuration::try_from(self.began.elapsed()).unwrap()
    }

    /// All a Syncer knows are lists, which come one by one.
    fn restart(&mut self) {
        self.syncer = Syncer::new(self.per_minute);
        self.clusters.events.values_mut().for_each(VecDeque::clear);
        self.late.clear();
    }

    /// A late answer comes.
    fn answer_late(&mut self) {
        if self.late.is_empty() {
            return;
        }
        let (kind, answer) = self.late.swap_remove(self.random.below(self.late.len()));
        trace(|| format!("  hears late of {kind:?} {}", answer["metadata"]["name"]));
        match kind {
            Kind::Policy => self.syncer.policies.saw(serde_json::from_value(answer).unwrap()),
            _ => self.syncer.store.saw_vnode(serde_json::from_value(answer).unwrap()),
        }
    }

    /// One watch makes progress.
    fn deliver(&mut self) {
        if !self.syncer.unlisted.is_empty() {
            let kind = self.random.below(self.syncer.unlisted.len());
            return self.list(self.syncer.unlisted[kind]);
        }
        if self.random.once_in(30) {
            self.answer_late();
        }
        let kind = self.random.pick(&KINDS);
        if self.random.once_in(40) {
            return self.list(kind);
        }
        match self.clusters.events.get_mut(&kind).unwrap().pop_front() {
            Some(change) => self.syncer.deliver(kind, &change),
            None if self.syncer.hungry => self.syncer.feed(),
            None => {}
        }
    }

    fn list(&mut self, kind: Kind) {
        self.clusters.events.get_mut(&kind).unwrap().clear();
        let first = self.syncer.unlisted.contains(&kind);
        self.syncer.list(kind, &self.clusters.listed(kind));
        if first && kind == Kind::Vnode {
            let identity = self.syncer.store.identity().clone();
            for vnode in self.clusters.mark_anew(&identity) {
                self.syncer.store.saw_vnode(serde_json::from_value(vnode).unwrap());
            }
        }
    }

    /// Looks at the next node whose turn has come. Says whether there was one.
    async fn work(&mut self) -> bool {
        self.work_until(Instant::now()).await
    }

    async fn work_until(&mut self, until: Instant) -> bool {
        let Some(key) = self.syncer.take(until).await else { return false };
        let (work, considered) = self.syncer.consider(key.clone(), self.now());
        let lease = self.judge(&work);
        trace(|| match &considered {
            Ok(considered) => format!("{} {key} plans: {}", self.now(), considered.plan),
            Err(none) => format!("{} {key}: {none:?}", self.now()),
        });
        let outcome = match considered {
            Err(NoPlan::Later(outcome)) => outcome,
            Err(NoPlan::ReadFirst) => self.read_again(&key),
            Ok(considered) => {
                let mut soft = None;
                let mut version = work.snapshot.vnode.as_ref().map(|it| it.resource_version().to_owned());
                let mut failed = None;
                for action in considered.plan.actions {
                    if self.faults && self.random.once_in(25) {
                        self.met.crashes += 1;
                        trace(|| "crash".to_owned());
                        self.restart();
                        return true;
                    }
                    if self.faults && self.random.once_in(10) {
                        users::act(&mut self.clusters, &mut self.random, &mut self.keys);
                    }
                    match self.perform(&work, lease.as_ref(), action, &mut version) {
                        Ok(true) => {}
                        Ok(false) => soft = Some(Duration::from_secs(1)),
                        Err(outcome) => {
                            failed = Some(outcome);
                            break;
                        }
                    }
                }
                let next = look_again([soft, considered.wait], considered.plan.next_wake, self.now());
                if failed.is_none()
                    && soft.is_none()
                    && let Some(vnode) = self.syncer.store.snapshot(&work.key).vnode
                {
                    self.check_offer(&work, &vnode);
                }
                failed.unwrap_or(next)
            }
        };
        self.syncer.store.queue.done(&key, outcome);
        true
    }

    /// Finalizers of policies that no vnode is built from go.
    fn release_policies(&mut self) {
        if !self.syncer.store.is_settled() {
            return;
        }
        for name in self.syncer.policies.names() {
            let Some(policy) = self.syncer.policies.get(&name) else { continue };
            let built = self.syncer.store.policy_usage(&name).built;
            let ours = self.syncer.policies.was_ours(&policy);
            let Some(FinalizerChange::Release(patch)) = release(&policy, "computing", ours, built) else {
                continue;
            };
            trace(|| format!("release {name}"));
            let built = self.built_from(&name).next();
            assert_eq!(built, None, "policy {name} is released under its vnodes");
            if let Ok(answer) = self.clusters.patch(Kind::Policy, &name, &patch) {
                self.syncer.policies.saw(serde_json::from_value(answer).unwrap());
            }
        }
    }

    /// Vnodes that say they are built from a policy.
    fn built_from(&self, policy: &str) -> impl Iterator<Item = &String> {
        let named =
            move |vnode: &Value| vnode["metadata"]["annotations"][annotation::POLICIES_APPLIED] == policy;
        self.clusters.all(Kind::Vnode).iter().filter(move |(_, vnode)| named(vnode)).map(|(name, _)| name)
    }

    /// Faults stop and nobody acts any more: watches catch up, kubelets end what was deleted, time passes.
    async fn settle(&mut self) {
        self.faults = false;
        self.syncer.store.set_loss(None);
        self.rest(REST).await;
    }

    /// This time passes, and everything that time and events ask for is done.
    async fn rest(&mut self, time: Duration) {
        let end = Instant::now() + time;
        let mut rounds = 0;
        loop {
            while !self.syncer.unlisted.is_empty() || self.clusters.events.values().any(|it| !it.is_empty()) {
                self.deliver();
            }
            if self.syncer.hungry {
                self.syncer.feed();
            }
            while !self.late.is_empty() {
                self.answer_late();
            }
            self.end_pods();
            self.release_policies();
            let quiet = self.clusters.events.values().all(VecDeque::is_empty);
            // Once nothing is left to be told, the next node is one whose time has come.
            let worked = self.work_until(if quiet { end } else { Instant::now() }).await;
            if quiet && !worked {
                return;
            }
            rounds += 1;
            assert!(rounds < 2000, "it does not come to rest");
        }
    }

    fn end_pods(&mut self) {
        let going = |pod: &&Value| pod["metadata"].get("deletionTimestamp").is_some();
        for kind in [Kind::Vpod, Kind::Pnode, Kind::WorkerPod] {
            let ended: Vec<String> = self
                .clusters
                .all(kind)
                .iter()
                .filter(|(_, it)| going(it))
                .map(|(name, _)| name.clone())
                .collect();
            for name in &ended {
                self.clusters.remove(kind, name);
            }
        }
    }

    async fn run(mut self) -> Met {
        for _ in 0..STEPS {
            match self.random.below(12) {
                0..=3 => users::act(&mut self.clusters, &mut self.random, &mut self.keys),
                4..=7 => self.deliver(),
                8 => {
                    let seconds = self.random.pick(&[1, 5, 30, 61, 300]);
                    tokio::time::advance(Duration::from_secs(seconds)).await;
                    self.release_policies();
                    if self.random.once_in(3) {
                        let lost = self.random.once_in(2).then_some(WorkerLoss::Silent);
                        self.met.lost += usize::from(self.syncer.store.set_loss(lost));
                    }
                }
                _ => drop(self.work().await),
            }
        }
        self.settle().await;
        self.check_end().await;
        self.check_quiet().await;
        self.clusters.edit(Kind::Binding, BINDING, |binding| binding["deleting"] = true.into());
        self.settle().await;
        assert!(self.clusters.all(Kind::Vnode).is_empty(), "the binding left vnodes behind");
        let held = self.clusters.all(Kind::Policy).values().find(|policy| clusters::is_held(policy));
        assert!(held.is_none(), "the binding left a finalizer behind: {held:?}");
        self.met
    }
}

/// A clock that only goes when everybody waits.
fn clock() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
}

fn run(seed: u64) -> Met {
    clock().block_on(async { World::new(seed).run().await })
}

#[test]
fn any_order_of_events_writes_and_crashes_leads_to_what_the_clusters_ask_for() {
    let Some(met) = sweep(run, |all: &mut Met, met| all.add(&met)) else { return };
    assert!(met.everything(), "{met:?}");
}
