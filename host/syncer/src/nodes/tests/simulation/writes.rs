//! What the API servers make of the Syncer's writes, and what every write is held to.

use jiff::Timestamp;
use kubeocean_api::keys::{annotation, label, taint};
use kubeocean_runtime::{clock::rfc3339, queue::Outcome};
use serde_json::{Value, json};

use super::{
    World,
    clusters::{Kind, Refusal},
    oracle::{self, Lease},
    users::{blocks, is_exempt},
};
use crate::{
    nodes::{
        action::{Action, PodDeletion, status_patch},
        decide::Work,
        decision::Verdict,
        snapshot::published,
        view::NodeView,
        vnode::Written,
    },
    policies::finalizer::{FinalizerChange, hold},
    simulation::trace,
};

/// What a sweep met.
#[derive(Debug, Default)]
pub(super) struct Met {
    pub(super) created: usize,
    pub(super) updated: usize,
    pub(super) evicting: usize,
    pub(super) reclaimed: usize,
    pub(super) drained: usize,
    pub(super) called_off: usize,
    pub(super) waited: usize,
    pub(super) released: usize,
    pub(super) conflicts: usize,
    pub(super) lost_answers: usize,
    pub(super) crashes: usize,
    pub(super) held: usize,
    pub(super) lowered: usize,
    pub(super) settled: usize,
    pub(super) opened: usize,
    pub(super) lost: usize,
    pub(super) quiet: usize,
    pub(super) quietly_closed: usize,
}

impl Met {
    fn counts(&self) -> [usize; 18] {
        [
            self.created,
            self.updated,
            self.evicting,
            self.reclaimed,
            self.drained,
            self.called_off,
            self.waited,
            self.released,
            self.conflicts,
            self.lost_answers,
            self.crashes,
            self.held,
            self.lowered,
            self.settled,
            self.opened,
            self.lost,
            self.quiet,
            self.quietly_closed,
        ]
    }

    pub(super) fn everything(&self) -> bool {
        self.counts().iter().all(|count| *count > 0)
    }

    pub(super) fn add(&mut self, more: &Self) {
        let [
            created,
            updated,
            evicting,
            reclaimed,
            drained,
            called_off,
            waited,
            released,
            conflicts,
            lost_answers,
            crashes,
            held,
            lowered,
            settled,
            opened,
            lost,
            quiet,
            quietly_closed,
        ] = std::array::from_fn(|at| self.counts()[at] + more.counts()[at]);
        *self = Self {
            created,
            updated,
            evicting,
            reclaimed,
            drained,
            called_off,
            waited,
            released,
            conflicts,
            lost_answers,
            crashes,
            held,
            lowered,
            settled,
            opened,
            lost,
            quiet,
            quietly_closed,
        };
    }
}

impl World {
    /// The decision must be what the oracle makes of the same facts. Returns that.
    pub(super) fn judge(&mut self, work: &Work) -> Option<Lease> {
        let node = work.key.strip_prefix("vnode-cls-a-").unwrap();
        let lease = oracle::lease(&self.syncer.view(), node, self.now());
        let Some(decision) = &work.decision else { return lease };
        let context = format!("{lease:?} but {decision:?}");
        assert_eq!(decision.governed_by.as_ref(), lease.as_ref().map(|it| &it.policy), "{context}");
        let lease = lease?;
        assert_eq!(decision.policy_invalid, !lease.valid, "{context}");
        if lease.valid {
            assert_eq!(
                (decision.verdict == Verdict::Offer, decision.withheld),
                (lease.open, !lease.open),
                "{context}"
            );
            assert_eq!(decision.amounts, lease.caps, "{context}");
        } else {
            self.met.held += 1;
            assert!(decision.withheld && !decision.may_create && !decision.announce, "{context}");
            assert!(decision.amounts.iter().all(|(name, it)| *it <= lease.available[name]), "{context}");
        }
        Some(lease)
    }

    /// One write. Ok(false): not done, it is judged anew a second later.
    pub(super) fn perform(
        &mut self,
        work: &Work,
        lease: Option<&Lease>,
        action: Action,
        version: &mut Option<String>,
    ) -> Result<bool, Outcome> {
        let names_policy = action.names_policy();
        let labels = matches!(action, Action::LabelWorkerNode { .. });
        if self.faults && self.random.once_in(20) {
            self.met.conflicts += 1;
            if self.random.once_in(2) {
                return Err(Outcome::Stale);
            }
            if names_policy {
                self.syncer.store.not_answered(&work.key);
            }
            return Err(Outcome::Retry);
        }
        let text = action.to_string();
        self.actions.push((work.key.clone(), text.clone()));
        let done = self.write(work, lease, action, version);
        trace(|| format!("{} {}: {text} -> {done:?}", self.now(), work.key));
        self.check_vnode(work, lease, &text);
        match done {
            Ok(()) => {}
            Err(Refusal::Conflict) if labels => return Ok(false),
            Err(Refusal::Conflict) => {
                self.met.conflicts += 1;
                self.syncer.store.conflicted(work.snapshot.vnode.as_deref());
                return Err(Outcome::Stale);
            }
            Err(Refusal::NoAnswer) => {
                if names_policy {
                    self.syncer.store.not_answered(&work.key);
                }
                return Err(Outcome::Retry);
            }
            Err(Refusal::NotFound) => {
                if let Some(gone) = &work.snapshot.vnode {
                    self.syncer.store.lost_vnode(gone.name(), gone.uid(), u64::MAX);
                }
                return Err(Outcome::Stale);
            }
        }
        Ok(true)
    }

    /// A vnode whose last write nobody answered is read, as `apply` does it.
    pub(super) fn read_again(&mut self, vnode: &str) -> Outcome {
        if self.faults && self.random.once_in(10) {
            return Outcome::Retry;
        }
        let live =
            self.clusters.get(Kind::Vnode, vnode).map(|live| serde_json::from_value(live.clone()).unwrap());
        trace(|| format!("{} {vnode} is read: {}", self.now(), live.is_some()));
        let known = self.syncer.store.vnode(vnode).map(|known| known.uid);
        self.syncer.store.settle_vnode(vnode, known.as_deref(), live);
        self.met.settled += 1;
        Outcome::Stale
    }

    /// Whether the answer to a write that was done is lost; it may come later, when nobody waits for it.
    fn loses_answer(&mut self, kind: Kind, answer: &Value) -> bool {
        let lost = kind == Kind::Vnode && std::mem::take(&mut self.loses_next)
            || self.faults && self.random.once_in(20);
        self.met.lost_answers += usize::from(lost);
        if lost && self.random.once_in(2) {
            self.late.push((kind, answer.clone()));
        }
        lost
    }

    fn write(
        &mut self,
        work: &Work,
        lease: Option<&Lease>,
        action: Action,
        version: &mut Option<String>,
    ) -> Result<(), Refusal> {
        let (now, key) = (self.now(), &*work.key);
        match action {
            Action::HoldPolicy { policy } => {
                let known = self.syncer.policies.get(&policy).filter(|known| !known.deleting());
                let known = known.ok_or(Refusal::Conflict)?;
                if let Some(FinalizerChange::Hold(patch)) = hold(&known, self.syncer.store.identity()) {
                    // From a policy that is gone nothing is built.
                    let answer = self.clusters.patch(Kind::Policy, &policy, &patch);
                    let answer = answer.map_err(|_| Refusal::Conflict)?;
                    if self.loses_answer(Kind::Policy, &answer) {
                        return Err(Refusal::NoAnswer);
                    }
                    self.syncer.policies.saw(serde_json::from_value(answer).unwrap());
                }
            }
            Action::CreateVnode { name, body, written } => {
                let lease = lease.unwrap_or_else(|| panic!("{name} is made without a lease"));
                assert!(lease.valid, "{name} is made by an invalid policy");
                Self::check_amounts(&body, lease);
                if let Some(there) = self.clusters.get(Kind::Vnode, &name) {
                    self.syncer.store.saw_vnode(serde_json::from_value(there.clone()).unwrap());
                    return Err(Refusal::Conflict);
                }
                let mut body = body;
                let uid = self.clusters.uid();
                body["metadata"]["uid"] = uid.into();
                let made = self.clusters.put(Kind::Vnode, body);
                self.announce(&made, lease);
                self.met.created += 1;
                self.answer(key, Some(written), version)?;
            }
            Action::PatchVnode(mut changes) => {
                if let Some(version) = version.as_ref() {
                    changes.resource_version.clone_from(version);
                }
                let begins = changes.taints.iter().flatten().any(|it| it.key == taint::VNODE_DELETING);
                let before = self.clusters.get(Kind::Vnode, key).cloned();
                let terms = changes.terms;
                let answer = self.clusters.patch(Kind::Vnode, key, &changes.patch())?;
                let before = before.unwrap();
                if takes_pods(&answer) && !takes_pods(&before) {
                    self.met.opened += 1;
                    self.check_offer(work, &serde_json::from_value(answer.clone()).unwrap());
                }
                if begins && !has_taint(&before, taint::VNODE_DELETING) {
                    assert!(
                        Self::may_withdraw(work, lease),
                        "{key} is withdrawn although it is leased: {lease:?}"
                    );
                }
                if !begins && has_taint(&before, taint::VNODE_DELETING) && changes.taints.is_some() {
                    self.met.called_off += 1;
                }
                if evicts(&answer) && !evicts(&before) {
                    self.met.evicting += 1;
                    self.check_grace(&answer, lease);
                }
                self.answer(key, None, version)?;
                if let Some(terms) = terms {
                    self.syncer.store.set_terms(key, terms);
                }
            }
            Action::UpdateVnode { mut patch, written, .. } => {
                let lease = lease.unwrap_or_else(|| panic!("{key} is updated without a lease"));
                if let Some(version) = version.as_ref() {
                    patch["metadata"]["resourceVersion"] = version.as_str().into();
                }
                let answer = self.clusters.patch(Kind::Vnode, key, &patch)?;
                Self::check_amounts(&answer, lease);
                self.announce(&answer, lease);
                self.met.updated += 1;
                self.answer(key, Some(written), version)?;
            }
            Action::PatchStatus {
                uid, resource_version, conditions, addresses, lowered, written, ..
            } => {
                let resource_version = version.clone().unwrap_or(resource_version);
                let patch = json!({
                    "metadata": {"uid": uid, "resourceVersion": resource_version},
                    "status": status_patch(&conditions, addresses.as_deref(), &lowered),
                });
                self.clusters.patch(Kind::Vnode, key, &patch)?;
                self.met.lowered += usize::from(!lowered.is_empty());
                self.answer(key, written, version)?;
            }
            Action::LabelWorkerNode { node, policy } => {
                let judged = work.snapshot.pnode.as_deref();
                let patch = json!({"metadata": {
                    "uid": judged.map(NodeView::uid), "resourceVersion": judged.map(NodeView::resource_version),
                    "labels": {label::POLICY_APPLIED: policy},
                }});
                // A node that is gone needs no label.
                let done = self.clusters.patch(Kind::Pnode, &node, &patch);
                done.map(drop)
                    .or_else(|refusal| if refusal == Refusal::NotFound { Ok(()) } else { Err(refusal) })?;
            }
            Action::DeletePod { key: pod, uid, why } => self.delete_pod(work, lease, &pod.name, &uid, why)?,
            Action::DeleteVnode { name, uid } => {
                let vnode = self.clusters.get(Kind::Vnode, &name).ok_or(Refusal::NotFound)?;
                if vnode["metadata"]["uid"] == *uid {
                    assert!(
                        Self::may_withdraw(work, lease),
                        "{name} is deleted although it is leased: {lease:?}"
                    );
                    self.check_promise(work, now);
                }
                self.clusters.delete(Kind::Vnode, &name, Some(&uid))?;
                match self.clusters.get(Kind::Vnode, &name) {
                    Some(_) => self.answer(key, None, version)?,
                    None => self.syncer.store.lost_vnode(&name, &uid, u64::MAX),
                }
            }
            Action::ReleaseVnode { name, uid } => self.release_vnode(&name, &uid)?,
            Action::Event(_) => {}
        }
        Ok(())
    }

    /// Feeds the answer of a write on a vnode, unless it is lost.
    fn answer(
        &mut self,
        key: &str,
        written: Option<Written>,
        version: &mut Option<String>,
    ) -> Result<(), Refusal> {
        if let Some(vnode) = self.clusters.get(Kind::Vnode, key).cloned() {
            if self.loses_answer(Kind::Vnode, &vnode) {
                return Err(Refusal::NoAnswer);
            }
            let vnode: NodeView = serde_json::from_value(vnode).unwrap();
            *version = Some(vnode.resource_version().to_owned());
            self.syncer.store.saw_vnode(vnode);
        }
        if let Some(written) = written {
            self.syncer.store.set_written(key, written);
        }
        Ok(())
    }

    fn delete_pod(
        &mut self,
        work: &Work,
        lease: Option<&Lease>,
        name: &str,
        uid: &str,
        why: PodDeletion,
    ) -> Result<(), Refusal> {
        let Some(pod) = self.clusters.get(Kind::Vpod, name).filter(|pod| pod["metadata"]["uid"] == uid)
        else {
            return Ok(());
        };
        let vnode = self.clusters.get(Kind::Vnode, &work.key);
        match why {
            PodDeletion::Reclaimed => {
                assert!(!is_exempt(pod), "an exempt pod is evicted: {pod}");
                if let Some(vnode) = vnode.filter(|it| it["metadata"]["uid"] == known_uid(work)) {
                    self.check_grace(vnode, lease);
                }
                self.met.reclaimed += 1;
            }
            PodDeletion::Drained => {
                let live = vnode.is_some_and(|it| it["metadata"].get("deletionTimestamp").is_none());
                assert!(!live, "{name} is drained from a live vnode");
                self.met.drained += 1;
            }
        }
        self.clusters.delete(Kind::Vpod, name, Some(uid))
    }

    /// The finalizer goes after a live look, as `apply` does it.
    fn release_vnode(&mut self, name: &str, uid: &str) -> Result<(), Refusal> {
        if self.clusters.pods_on(name).any(blocks) {
            return Err(Refusal::Conflict);
        }
        let Some(vnode) = self.clusters.get(Kind::Vnode, name).filter(|it| it["metadata"]["uid"] == uid)
        else {
            return Err(Refusal::NotFound);
        };
        let patch = json!({"metadata": {"uid": uid, "resourceVersion": vnode["metadata"]["resourceVersion"], "finalizers": []}});
        if vnode["metadata"].get("deletionTimestamp").is_none() {
            return Err(Refusal::Conflict);
        }
        self.clusters.patch(Kind::Vnode, name, &patch)?;
        self.syncer.store.lost_vnode(name, uid, u64::MAX);
        self.met.released += 1;
        Ok(())
    }

    /// A vnode that begins to take pods, or takes some after a plan that was carried out, offers no more than what others
    /// leave, as far as the Syncer may know: whether it is leased, held, or waits for its turn to be withdrawn.
    pub(super) fn check_offer(&self, work: &Work, vnode: &NodeView) {
        let node = work.key.strip_prefix("vnode-cls-a-").unwrap();
        let view = self.syncer.view();
        let Some(pnode) = view.pnodes.get(node).filter(|_| self.syncer.unlisted.is_empty()) else { return };
        let uid = pnode["metadata"]["uid"].as_str();
        let replaced = vnode.annotation_or_label(annotation::PHYSICAL_NODE_UID) != uid;
        if replaced || vnode.terminating() || vnode.taint(taint::VNODE_DELETING).is_some() {
            return;
        }
        let available = oracle::available(&view, node);
        for (resource, amount) in published(vnode).amounts {
            let left = available[&resource];
            assert!(amount <= left, "{resource} {amount} is offered where {left} are left: {vnode:?}");
        }
    }

    /// Never above what others leave, nor above the policy's cap.
    fn check_amounts(body: &Value, lease: &Lease) {
        let says: NodeView = serde_json::from_value(body.clone()).unwrap();
        for (resource, amount) in published(&says).amounts {
            assert!(
                amount <= lease.available[&resource],
                "{resource} {amount} is more than is free: {lease:?}"
            );
            assert!(
                !lease.valid || amount <= lease.caps[&resource],
                "{resource} {amount} is above the cap: {lease:?}"
            );
        }
    }

    /// Pods are evicted only by a valid policy, outside its windows, when the grace since the first write is over.
    fn check_grace(&self, vnode: &Value, lease: Option<&Lease>) {
        let grace = lease.and_then(Lease::reclaims);
        let grace = grace.unwrap_or_else(|| panic!("eviction without a reclaim: {lease:?} {vnode}"));
        let uid = vnode["metadata"]["uid"].as_str().unwrap();
        let said = vnode["metadata"]["annotations"][annotation::RECLAIM_SINCE].as_str();
        let since = self.since.get(uid).map(String::as_str).or(said);
        let since: Timestamp =
            since.unwrap_or_else(|| panic!("eviction without a start: {vnode}")).parse().unwrap();
        let passed = self.now().duration_since(since).as_secs();
        // Written times have whole seconds.
        assert!(passed + 1 >= grace, "evicted {passed} s after {since}, promised were {grace}: {vnode}");
    }

    /// Not leased as far as the Syncer may know, or not this vnode.
    fn may_withdraw(work: &Work, lease: Option<&Lease>) -> bool {
        let Some(vnode) = &work.snapshot.vnode else { return true };
        let same = work.snapshot.pnode.as_ref().is_some_and(|pnode| {
            vnode.annotation_or_label(annotation::PHYSICAL_NODE_UID) == Some(pnode.uid())
        });
        lease.is_none() || !same || vnode.terminating()
    }

    /// What holds for a vnode after every write to it.
    fn check_vnode(&mut self, work: &Work, lease: Option<&Lease>, action: &str) {
        let Some(vnode) = self.clusters.get(Kind::Vnode, &work.key) else { return };
        self.check_announced(vnode, action);
        let (metadata, uid) = (&vnode["metadata"], vnode["metadata"]["uid"].as_str().unwrap().to_owned());
        for key in self.keys.get(&uid).into_iter().flatten() {
            let kept = metadata["labels"][key] == "mine"
                && metadata["annotations"][key] == "mine"
                && has_taint(vnode, key);
            assert!(kept, "{action}: a user's key {key} is gone: {vnode}");
        }
        match metadata["annotations"][annotation::RECLAIM_SINCE].as_str() {
            Some(now) => {
                let first = self.since.entry(uid).or_insert_with(|| now.to_owned());
                assert_eq!(first, now, "{action}: a grace period began anew");
            }
            None => {
                if self.since.remove(&uid).is_some() {
                    let reclaims = lease.and_then(Lease::reclaims);
                    assert_eq!(
                        reclaims,
                        None,
                        "{action}: a grace period is forgotten at {}",
                        rfc3339(self.now())
                    );
                }
            }
        }
    }
}

/// Neither cordoned nor tainted, but for the taint that pods of a vnode tolerate.
fn takes_pods(vnode: &Value) -> bool {
    let keeps_away = |it: &Value| {
        it["key"] != taint::VNODE && (it["effect"] == "NoSchedule" || it["effect"] == "NoExecute")
    };
    vnode["spec"]["unschedulable"] != true
        && !vnode["spec"]["taints"].as_array().is_some_and(|all| all.iter().any(keeps_away))
}

fn evicts(vnode: &Value) -> bool {
    let evicting = |it: &Value| it["key"] == taint::OUT_OF_TIME_WINDOWS && it["effect"] == "NoExecute";
    vnode["spec"]["taints"].as_array().is_some_and(|all| all.iter().any(evicting))
}

pub(super) fn has_taint(vnode: &Value, key: &str) -> bool {
    vnode["spec"]["taints"].as_array().is_some_and(|all| all.iter().any(|taint| taint["key"] == key))
}

fn known_uid(work: &Work) -> String {
    work.snapshot.vnode.as_ref().map(|vnode| vnode.uid().to_owned()).unwrap_or_default()
}
