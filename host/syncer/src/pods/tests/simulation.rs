//! Both clusters in one loop: the real store and planner against a model of two API servers, with events that arrive
//! late, writes that lose their answer, and a Syncer that stops between any two actions. It looks at a pod when the store's
//! queue says so, or again after a failure, and at no other time.
//!
//! Grammar: users create, delete (with grace or by force) and re-create vpods; the Syncer's own node tasks evict them, of
//! which the answer may come before the event; the worker schedules, starts, ends and deletes ppods; the Syncer gets
//! events, reconciles, crashes. Invariants, checked after every step: at most one ppod
//! per vpod name; no ppod is made twice for a vpod whose status says that it ran; foreign pods are never touched;
//! a terminal phase never changes. At the end, when everything was delivered: nothing leaks and nothing hangs.
//! A failure prints its seed and can be replayed (see [`crate::simulation`]).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use futures::FutureExt;
use kubeocean_api::{
    keys::{annotation, label},
    name::{ObjectKey, phys_name},
};
use serde::Deserialize;
use serde_json::{Value, json};

use super::builders::{MOUNT, VNODE, now, scope};
use crate::pods::{
    action::{PodAction, Wake},
    index::PodStore,
    metadata::{Expected, KeyChanges},
    plan::plan_pod,
    snapshot::{PodSnapshot, VnodeState, ppod_key},
    status::lost_fields,
    view::{Deletion, Ppod, PpodObject, Vpod, VpodObject},
};
use crate::simulation::{Random, sweep};
use kubeocean_runtime::{queue::Outcome, sink::Sink};

const STEPS: usize = 120;
const NAMES: [&str; 3] = ["web-0", "web-1", "web-2"];
/// Rounds after which everything must be at rest.
const SETTLE: usize = 200;
/// Condition that somebody else writes on vpods.
const GATE: &str = "corp/Gate";

enum Event {
    Vpod(Change, Value),
    Ppod(Change, Value),
}

#[derive(Clone, Copy)]
enum Change {
    Put,
    Delete,
}

/// Two API servers and one Syncer.
struct World {
    random: Random,
    version: u64,
    vpods: BTreeMap<ObjectKey, Value>,
    ppods: BTreeMap<ObjectKey, Value>,
    events: VecDeque<Event>,
    store: Arc<PodStore>,
    /// What it did not bring to an end.
    retries: BTreeSet<ObjectKey>,
    /// Vpod UIDs whose ppod was created, with how often after the vpod had shown a status.
    created: BTreeMap<String, usize>,
    ran: BTreeSet<String>,
    ended: BTreeMap<String, String>,
    crashes: usize,
    lost_answers: usize,
    evicted: usize,
    gated: usize,
    forced: usize,
}

/// What the model answers to a write.
enum Answer {
    Done,
    Replan,
    Failed,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            random: Random(seed),
            version: 100,
            vpods: BTreeMap::new(),
            ppods: BTreeMap::new(),
            events: VecDeque::new(),
            store: PodStore::new("cls-a", scope()),
            retries: BTreeSet::new(),
            created: BTreeMap::new(),
            ran: BTreeSet::new(),
            ended: BTreeMap::new(),
            crashes: 0,
            lost_answers: 0,
            evicted: 0,
            gated: 0,
            forced: 0,
        };
        let foreign = json!({"metadata": {"namespace": MOUNT, "name": phys_name("web-2", "default"), "uid": "foreign",
            "labels": {label::MANAGED_BY: "kubeocean", label::CLUSTER_BINDING: "west"},
            "annotations": {annotation::VIRTUAL_POD_NAMESPACE: "default", annotation::VIRTUAL_POD_NAME: "web-2",
                annotation::VIRTUAL_POD_UID: "other", annotation::COMPUTING_CLUSTER_UID: "computing"}},
            "spec": {"nodeName": "node-1"}, "status": {"phase": "Running"}});
        world.put_ppod(foreign);
        world.store.vnode_changed(VNODE, true);
        world
    }

    fn put_vpod(&mut self, mut pod: Value) -> Value {
        self.version += 1;
        pod["metadata"]["resourceVersion"] = self.version.to_string().into();
        let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
        let phase = pod["status"]["phase"].as_str().unwrap_or("Pending").to_owned();
        if let Some(end) = self.ended.get(&uid) {
            assert_eq!(*end, phase, "a terminal phase changed");
        }
        if matches!(&*phase, "Succeeded" | "Failed") {
            self.ended.insert(uid.clone(), phase.clone());
        }
        if phase != "Pending" {
            self.ran.insert(uid);
        }
        self.vpods.insert(key_of(&pod), pod.clone());
        self.events.push_back(Event::Vpod(Change::Put, pod.clone()));
        pod
    }

    fn put_ppod(&mut self, mut pod: Value) -> Value {
        self.version += 1;
        pod["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.ppods.insert(key_of(&pod), pod.clone());
        self.events.push_back(Event::Ppod(Change::Put, pod.clone()));
        pod
    }

    fn remove_vpod(&mut self, key: &ObjectKey) {
        if let Some(pod) = self.vpods.remove(key) {
            self.version += 1;
            self.events.push_back(Event::Vpod(Change::Delete, pod));
        }
    }

    fn remove_ppod(&mut self, key: &ObjectKey) {
        if let Some(pod) = self.ppods.remove(key) {
            assert_ne!(pod["metadata"]["uid"], "foreign", "a foreign pod was deleted");
            self.version += 1;
            self.events.push_back(Event::Ppod(Change::Delete, pod));
        }
    }

    /// Users and the worker cluster do something.
    fn outside(&mut self) {
        let key = ObjectKey::new("default", NAMES[self.random.below(NAMES.len())]);
        let place = ppod_key(&scope().mount_namespace, &key);
        match self.random.below(9) {
            0 | 1 if !self.vpods.contains_key(&key) => {
                self.version += 1;
                let uid = format!("v{}", self.version);
                self.put_vpod(json!({"metadata": {"namespace": "default", "name": &*key.name, "uid": uid},
                    "spec": {"nodeName": VNODE, "readinessGates": [{"conditionType": GATE}]},
                    "status": {"phase": "Pending"}}));
            }
            2 => {
                if let Some(mut pod) = self.vpods.get(&key).cloned() {
                    pod["metadata"]["deletionTimestamp"] = "2026-01-05T12:00:30Z".into();
                    pod["metadata"]["deletionGracePeriodSeconds"] = 30.into();
                    let answer = self.put_vpod(pod);
                    if self.random.once_in(2) {
                        self.store.saw_vpod(Vpod::from_json(&answer).unwrap());
                        self.evicted += 1;
                    }
                }
            }
            3 => {
                // By force, which the event of its end tells.
                if let Some(pod) = self.vpods.get_mut(&key).filter(|_| self.random.once_in(2)) {
                    pod["metadata"]["deletionTimestamp"] = "2026-01-05T12:00:00Z".into();
                    pod["metadata"]["deletionGracePeriodSeconds"] = 0.into();
                    self.forced += 1;
                }
                self.remove_vpod(&key);
            }
            4 => {
                if let Some(mut pod) = self.vpods.get(&key).cloned() {
                    let forged = [annotation::PHYSICAL_POD_UID, annotation::PHYSICAL_POD_NAME];
                    let which = forged[self.random.below(2)];
                    pod["metadata"]["annotations"][which] = "foreign".into();
                    self.put_vpod(pod);
                }
            }
            step => {
                let Some(mut pod) =
                    self.ppods.get(&place).filter(|pod| pod["metadata"]["uid"] != "foreign").cloned()
                else {
                    return;
                };
                let terminating = pod["metadata"].get("deletionTimestamp").is_some();
                match step {
                    5 if terminating => return self.remove_ppod(&place),
                    6 => return self.remove_ppod(&place),
                    7 => {
                        pod["spec"]["nodeName"] = "node-1".into();
                        let conditions = json!([
                            {"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"},
                        ]);
                        pod["status"] = json!({
                            "phase": "Running", "hostIP": "h", "podIP": "p", "conditions": conditions,
                        });
                    }
                    _ if pod["status"]["phase"] == "Running" => pod["status"]["phase"] = "Succeeded".into(),
                    _ => return,
                }
                self.put_ppod(pod);
            }
        }
    }

    /// A controller of readiness gates may answer to a status at once; its event may be here before our own answer.
    fn gate(&mut self, key: &ObjectKey) {
        let Some(mut pod) = self.vpods.get(key).filter(|_| self.random.once_in(4)).cloned() else { return };
        let status = if status_of(&pod, GATE) == "True" { "False" } else { "True" };
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        let others = conditions.filter(|it| it["type"] != GATE).cloned();
        pod["status"]["conditions"] = others.chain([json!({"type": GATE, "status": status})]).collect();
        self.put_vpod(pod);
        self.gated += 1;
        if self.random.once_in(2) {
            while !self.events.is_empty() {
                self.deliver();
            }
        }
    }

    fn deliver(&mut self) {
        match self.events.pop_front() {
            Some(Event::Vpod(Change::Put, pod)) => self.store.apply(VpodObject::deserialize(&pod).unwrap()),
            Some(Event::Vpod(Change::Delete, pod)) => {
                self.store.delete(VpodObject::deserialize(&pod).unwrap());
            }
            Some(Event::Ppod(Change::Put, pod)) => self.store.apply(PpodObject::deserialize(&pod).unwrap()),
            Some(Event::Ppod(Change::Delete, pod)) => {
                self.store.delete(PpodObject::deserialize(&pod).unwrap());
            }
            None => {}
        }
    }

    /// The Syncer starts anew: all it knows are two lists.
    fn restart(&mut self) {
        self.events.clear();
        self.retries.clear();
        self.store = PodStore::new("cls-a", scope());
        self.store.vnode_changed(VNODE, true);
        self.store
            .reset(self.vpods.values().map(|pod| VpodObject::deserialize(pod).unwrap()).collect::<Vec<_>>());
        self.store
            .reset(self.ppods.values().map(|pod| PpodObject::deserialize(pod).unwrap()).collect::<Vec<_>>());
    }

    fn snapshot(&self, key: &ObjectKey) -> PodSnapshot {
        let ours = VnodeState::Ours { worker_node: Some("node-1".into()), deleting: false };
        // An hour later, so that nothing waits for its second.
        let now = now() + jiff::SignedDuration::from_hours(1);
        self.store.snapshot(key, now, |_| ours)
    }

    /// Looks at the next pod of the queue; `crash_after` actions it stops. `None`: no pod waits. Says whether there was
    /// nothing to do.
    fn work(&mut self, crash_after: usize) -> Option<bool> {
        let queue = Arc::clone(self.store.queue());
        let key = if queue.is_empty() { None } else { queue.next().now_or_never() }?;
        self.retries.remove(&key);
        let (idle, ended) = self.reconcile(&key, crash_after);
        queue.done(&key, Outcome::Done);
        if !ended {
            self.retries.insert(key);
        }
        Some(idle)
    }

    /// One reconcile, as `apply.rs` does it. Says whether there was nothing to do, and whether the next event will do.
    fn reconcile(&mut self, key: &ObjectKey, mut crash_after: usize) -> (bool, bool) {
        let mut idle = true;
        for _ in 0..6 {
            let snapshot = self.snapshot(key);
            let plan = plan_pod(&snapshot);
            if let Some(vpod) = snapshot.vpod.as_ref().filter(|_| plan.mirrored) {
                self.mark(&snapshot, vpod.status.hashes.total());
            }
            if plan.actions.is_empty() {
                return (idle, plan.wake == Wake::OnEvent);
            }
            if matches!(&*plan.actions, [PodAction::Refuse(_)]) {
                return (idle, false);
            }
            idle = false;
            for action in plan.actions {
                if crash_after == 0 {
                    self.crashes += 1;
                    self.restart();
                    return (false, true);
                }
                crash_after -= 1;
                match self.perform(&snapshot, action) {
                    Answer::Done => {}
                    Answer::Replan => break,
                    Answer::Failed => return (false, false),
                }
            }
        }
        (idle, false)
    }

    fn mark(&self, snapshot: &PodSnapshot, status: u64) {
        if let (Some(vpod), Some(ppod)) = (&snapshot.vpod, &snapshot.ppod) {
            self.store.mirrored(&snapshot.key, &vpod.uid, status, ppod);
        }
    }

    /// The vpod a write with these preconditions meets.
    fn vpod_at(&self, key: &ObjectKey, uid: &str, version: Option<&str>) -> Result<Value, Answer> {
        let Some(pod) = self.vpods.get(key) else {
            self.store.vpod_gone(key, uid);
            return Err(Answer::Replan);
        };
        let fits = pod["metadata"]["uid"] == uid
            && version.is_none_or(|it| pod["metadata"]["resourceVersion"] == it);
        if fits { Ok(pod.clone()) } else { Err(Answer::Failed) }
    }

    fn perform(&mut self, snapshot: &PodSnapshot, action: PodAction) -> Answer {
        self.try_perform(snapshot, action).unwrap_or_else(|answer| answer)
    }

    fn try_perform(&mut self, snapshot: &PodSnapshot, action: PodAction) -> Result<Answer, Answer> {
        let key = &snapshot.key;
        let place = snapshot.ppod_key();
        match action {
            PodAction::ConfirmVpodGone => {
                let live = self.vpods.get(key).cloned();
                let uid = live.as_ref().and_then(|pod| pod["metadata"]["uid"].as_str());
                self.store.confirm_vpod_gone(key, uid);
                if let Some(vpod) = live.as_ref().and_then(Vpod::from_json) {
                    self.store.saw_vpod(vpod);
                }
                return Ok(Answer::Replan);
            }
            PodAction::ConfirmPpodGone => {
                match self.ppods.get(&place).and_then(Ppod::from_json) {
                    Some(ppod) => self.store.saw_ppod(ppod),
                    None => self.store.confirm_ppod_gone(key),
                }
                return Ok(Answer::Replan);
            }
            PodAction::ReadPpod { ppod } => {
                match (self.ppods.get(&ppod).and_then(Ppod::from_json), &snapshot.ppod) {
                    (Some(live), _) => self.store.reread_ppod(live),
                    (None, Some(known)) => self.store.ppod_gone(&ppod, &known.uid),
                    (None, None) => {}
                }
                return Ok(Answer::Replan);
            }
            PodAction::ConfirmUnscheduled { ppod } => {
                match self.ppods.get(ppod.key()).and_then(Ppod::from_json) {
                    Some(live) if !live.scheduled && *live.uid == *ppod.uid() => return Ok(Answer::Done),
                    Some(live) => self.store.saw_ppod(live),
                    None => self.store.ppod_gone(ppod.key(), ppod.uid()),
                }
                return Ok(Answer::Replan);
            }
            PodAction::WriteMapping { uid, resource_version, ppod, clear_uid } => {
                let mut pod = self.vpod_at(key, &uid, Some(&resource_version))?;
                let annotations = &mut pod["metadata"]["annotations"];
                annotations[annotation::PHYSICAL_POD_NAMESPACE] = (&*ppod.namespace).into();
                annotations[annotation::PHYSICAL_POD_NAME] = (&*ppod.name).into();
                if clear_uid {
                    annotations.as_object_mut().unwrap().remove(annotation::PHYSICAL_POD_UID);
                }
                let pod = self.put_vpod(pod);
                self.store.feed_vpod(Vpod::from_json(&pod).unwrap());
            }
            PodAction::CreatePpod { uid, .. } => return self.create(snapshot, &uid, &place),
            PodAction::PatchPpod { ppod, change, .. } => {
                let Some(mut pod) = self.ppods.get(ppod.key()).cloned() else {
                    self.store.ppod_gone(ppod.key(), ppod.uid());
                    return Ok(Answer::Replan);
                };
                if pod["metadata"]["resourceVersion"] != ppod.resource_version() {
                    return Ok(Answer::Failed);
                }
                merge(&mut pod["metadata"]["annotations"], &change.annotations);
                let pod = self.put_ppod(pod);
                self.store.feed_ppod(Ppod::from_json(&pod).unwrap());
            }
            PodAction::PatchVpod { uid, resource_version, status, change } => {
                let mut pod = self.vpod_at(key, &uid, Some(&resource_version))?;
                merge(&mut pod["metadata"]["annotations"], &change.annotations);
                for (field, value) in status {
                    pod["status"][field.as_str()] = value;
                }
                let answer = Vpod::from_json(&self.put_vpod(pod)).unwrap();
                let written = answer.status.hashes.total();
                self.gate(key);
                self.store.feed_vpod(answer);
                self.mark(snapshot, written);
            }
            PodAction::FailVpod { uid, message, .. } => {
                let mut pod = self.vpod_at(key, &uid, None)?;
                self.store.saw_vpod(Vpod::from_json(&pod).unwrap());
                if let Some(fields) = lost_fields(&pod["status"], &message, now()) {
                    for (field, value) in fields {
                        pod["status"][field.as_str()] = value;
                    }
                    let pod = self.put_vpod(pod);
                    self.store.feed_vpod(Vpod::from_json(&pod).unwrap());
                }
            }
            PodAction::DeletePpod { ppod, grace_seconds, .. } => {
                let Some(mut pod) =
                    self.ppods.get(ppod.key()).filter(|pod| pod["metadata"]["uid"] == ppod.uid()).cloned()
                else {
                    self.store.ppod_gone(ppod.key(), ppod.uid());
                    return Ok(Answer::Done);
                };
                if pod["spec"]["nodeName"] == "" || grace_seconds == Some(0) {
                    self.remove_ppod(ppod.key());
                    self.store.ppod_gone(ppod.key(), ppod.uid());
                } else {
                    pod["metadata"]["deletionTimestamp"] = "2026-01-05T12:00:30Z".into();
                    pod["metadata"]["deletionGracePeriodSeconds"] = 30.into();
                    self.put_ppod(pod);
                    let deletion = Deletion { deadline: now(), grace_seconds: Some(30) };
                    self.store.ppod_deleting(ppod.key(), ppod.uid(), deletion);
                }
            }
            PodAction::FinishVpod { uid } => {
                if self.vpods.get(key).is_some_and(|pod| pod["metadata"]["uid"] == *uid) {
                    self.remove_vpod(key);
                }
                self.store.vpod_gone(key, &uid);
            }
            PodAction::ReleaseTokens { .. }
            | PodAction::Refuse(_)
            | PodAction::TellAdmission(_)
            | PodAction::FollowSpec { .. }
            | PodAction::AddEphemeralContainers { .. } => {}
        }
        // Some answers get lost although the write was done.
        Ok(if self.random.below(20) == 0 { self.lose_answer() } else { Answer::Done })
    }

    fn create(&mut self, snapshot: &PodSnapshot, uid: &str, place: &ObjectKey) -> Result<Answer, Answer> {
        let original = self.vpod_at(&snapshot.key, uid, None)?;
        let vpod = Vpod::from_json(&original).unwrap();
        let deleting = vpod.deletion.is_some();
        self.store.saw_vpod(vpod);
        if deleting {
            return Ok(Answer::Replan);
        }
        if let Some(found) = self.ppods.get(place) {
            self.store.saw_ppod(Ppod::from_json(found).unwrap());
            return Ok(Answer::Replan);
        }
        assert!(!self.ran.contains(uid), "{uid} ran already");
        *self.created.entry(uid.to_owned()).or_default() += 1;
        let scope = scope();
        self.version += 1;
        let copy = self.put_ppod(json!({
            "metadata": {"namespace": &*place.namespace, "name": &*place.name, "uid": format!("p{}", self.version),
                "creationTimestamp": "2026-01-05T12:59:00Z",
                "labels": {label::MANAGED_BY: "kubeocean", label::CLUSTER_BINDING: &*scope.stamp.binding},
                "annotations": {
                    annotation::VIRTUAL_POD_NAMESPACE: &*snapshot.key.namespace,
                    annotation::VIRTUAL_POD_NAME: &*snapshot.key.name,
                    annotation::VIRTUAL_POD_UID: uid,
                    annotation::COMPUTING_CLUSTER_UID: &*scope.stamp.computing_cluster_uid,
                    annotation::EXPECTED_METADATA: Expected::default().encode().unwrap(),
                }},
            "spec": {"nodeName": ""}, "status": {"phase": "Pending"},
        }));
        // The answer of a creation may be lost too; the next round finds the pod.
        if self.random.below(5) > 0 {
            self.store.feed_ppod(Ppod::from_json(&copy).unwrap());
            return Ok(Answer::Done);
        }
        Ok(self.lose_answer())
    }

    fn lose_answer(&mut self) -> Answer {
        self.lost_answers += 1;
        Answer::Failed
    }

    /// Delivers everything and lets the Syncer and the kubelet finish.
    fn settle(&mut self) {
        for _ in 0..SETTLE {
            while !self.events.is_empty() {
                self.deliver();
            }
            let going =
                self.ppods.iter().filter(|(_, pod)| pod["metadata"].get("deletionTimestamp").is_some());
            let going: Vec<_> = going.map(|(key, _)| key.clone()).collect();
            for key in &going {
                self.remove_ppod(key);
            }
            self.store.queue().add_all(std::mem::take(&mut self.retries));
            let mut idle = true;
            while let Some(nothing) = self.work(usize::MAX) {
                idle &= nothing;
            }
            if idle && self.events.is_empty() {
                return;
            }
        }
        panic!("it does not come to rest");
    }

    fn check_end(&self) {
        for (key, pod) in &self.vpods {
            let place = ppod_key(&scope().mount_namespace, key);
            let uid = pod["metadata"]["uid"].as_str().unwrap();
            let copy = self.ppods.get(&place);
            let occupied = copy.is_some_and(|copy| copy["metadata"]["uid"] == "foreign");
            assert!(pod["metadata"].get("deletionTimestamp").is_none(), "{key} hangs: {pod}");
            let terminal = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
            let fits =
                copy.is_some_and(|copy| copy["metadata"]["annotations"][annotation::VIRTUAL_POD_UID] == uid);
            assert!(fits || terminal || occupied, "{key} has no copy: {pod}");
            if fits && !terminal {
                let copy = copy.unwrap();
                assert_eq!(pod["status"]["phase"], copy["status"]["phase"], "{key} is not mirrored");
                let (ready, gate) = (status_of(pod, "Ready"), status_of(pod, GATE));
                if copy["status"]["phase"] == "Running" {
                    let expected = if gate == "True" { "True" } else { "False" };
                    assert_eq!(ready, expected, "the gate of {key} is {gate:?}: {pod}");
                }
                let recorded = &pod["metadata"]["annotations"];
                for (member, name) in [
                    ("uid", annotation::PHYSICAL_POD_UID),
                    ("namespace", annotation::PHYSICAL_POD_NAMESPACE),
                    ("name", annotation::PHYSICAL_POD_NAME),
                ] {
                    assert_eq!(recorded[name], copy["metadata"][member], "{key} does not name its copy");
                }
            }
        }
        for pod in self.ppods.values().filter(|pod| pod["metadata"]["uid"] != "foreign") {
            let annotations = &pod["metadata"]["annotations"];
            let name = annotations[annotation::VIRTUAL_POD_NAME].as_str().unwrap();
            let vpod = self.vpods.get(&ObjectKey::new("default", name));
            let uid = &annotations[annotation::VIRTUAL_POD_UID];
            assert!(vpod.is_some_and(|vpod| vpod["metadata"]["uid"] == *uid), "{pod} leaked");
        }
        assert_eq!(
            self.ppods[&ppod_key(&scope().mount_namespace, &ObjectKey::new("default", "web-2"))]["metadata"]
                ["uid"],
            "foreign"
        );
    }
}

fn merge(annotations: &mut Value, changes: &KeyChanges) {
    for (key, value) in changes {
        match value {
            Some(value) => annotations[key.as_str()] = value.clone().into(),
            None => {
                annotations.as_object_mut().map(|all| all.remove(key));
            }
        }
    }
}

/// The status of a condition; empty without it.
fn status_of<'p>(pod: &'p Value, of_type: &str) -> &'p str {
    let mut conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    conditions.find(|it| it["type"] == of_type).and_then(|it| it["status"].as_str()).unwrap_or_default()
}

fn key_of(pod: &Value) -> ObjectKey {
    let text = |member: &str| pod["metadata"][member].as_str().unwrap().to_owned();
    ObjectKey::new(text("namespace"), text("name"))
}

fn run(seed: u64) -> Seen {
    let mut world = World::new(seed);
    for _ in 0..STEPS {
        match world.random.below(10) {
            0..=2 => world.outside(),
            3..=5 => world.deliver(),
            6 if world.random.below(4) == 0 => world.restart(),
            _ => {
                if world.random.once_in(8) {
                    let retries = std::mem::take(&mut world.retries);
                    world.store.queue().add_all(retries);
                }
                let crash_after = if world.random.below(3) == 0 { world.random.below(4) } else { usize::MAX };
                world.work(crash_after);
            }
        }
    }
    world.settle();
    world.check_end();
    let ended = |phase: &str| world.ended.values().filter(|end| *end == phase).count();
    Seen {
        created: world.created.len(),
        created_again: world.created.values().filter(|times| **times > 1).count(),
        succeeded: ended("Succeeded"),
        lost: ended("Failed"),
        crashes: world.crashes,
        lost_answers: world.lost_answers,
        evicted: world.evicted,
        gated: world.gated,
        forced: world.forced,
    }
}

#[test]
fn any_order_of_events_writes_and_crashes_converges() {
    let Some(seen) = sweep(run, |seen: &mut Seen, met| seen.add(&met)) else { return };
    // A sweep that never meets a case proves nothing about it.
    let Seen { created, created_again, succeeded, lost, crashes, lost_answers, evicted, gated, forced } =
        seen;
    let all = [created, created_again, succeeded, lost, crashes, lost_answers, evicted, gated, forced];
    assert!(all.iter().all(|count| *count > 0), "{seen:?}");
}

/// How often a sweep met what it is about.
#[derive(Debug, Default)]
struct Seen {
    created: usize,
    created_again: usize,
    succeeded: usize,
    lost: usize,
    crashes: usize,
    lost_answers: usize,
    evicted: usize,
    gated: usize,
    forced: usize,
}

impl Seen {
    fn add(&mut self, other: &Self) {
        self.created += other.created;
        self.created_again += other.created_again;
        self.succeeded += other.succeeded;
        self.lost += other.lost;
        self.crashes += other.crashes;
        self.lost_answers += other.lost_answers;
        self.evicted += other.evicted;
        self.gated += other.gated;
        self.forced += other.forced;
    }
}

#[test]
fn a_hundred_pods_are_created_once_each_however_often_the_syncer_is_killed() {
    let mut world = World::new(7);
    let keys: Vec<_> = (0..100).map(|number| ObjectKey::new("batch", format!("job-{number}"))).collect();
    for key in &keys {
        world.put_vpod(
            json!({"metadata": {"namespace": "batch", "name": &*key.name, "uid": format!("v-{}", key.name)},
            "spec": {"nodeName": VNODE}, "status": {"phase": "Pending"}}),
        );
    }
    for (number, key) in keys.iter().enumerate() {
        while !world.events.is_empty() {
            world.deliver();
        }
        // Killed before the mapping, after it, after the creation, and not at all.
        world.reconcile(key, number % 4);
        world.restart();
    }
    for key in &keys {
        loop {
            while !world.events.is_empty() {
                world.deliver();
            }
            if world.reconcile(key, usize::MAX).0 && world.events.is_empty() {
                break;
            }
        }
    }
    assert_eq!(world.created.len(), 100);
    assert!(world.created.values().all(|times| *times == 1), "{:?}", world.created);
}
