//! All bindings, and what their workers answered. Marks what has news in the queue of the reconciler.

use std::{collections::BTreeMap, sync::Arc};

use jiff::Timestamp;
use kubeocean_api::{ClusterBinding, condition::binding_type::CONNECTED};
use kubeocean_runtime::{queue::Queue, sink::Sink};
use parking_lot::Mutex;

use super::{
    snapshot::Snapshot,
    view::{ManagedBinding, Target},
};
use crate::{components::Running, extender::places::Served, worker::report::Report};

/// The store. One writer per kind: the watch of bindings, and each binding's attendant.
#[derive(Debug)]
pub struct Index {
    state: Mutex<State>,
    queue: Arc<Queue<String>>,
}

#[derive(Debug, Default)]
struct State {
    bindings: BTreeMap<String, Arc<ManagedBinding>>,
    reports: BTreeMap<String, (Target, Report)>,
}

/// Number of bindings in each phase of `kubeocean_clusterbindings_total`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Phases {
    /// Being deleted.
    pub deleting: i64,
    /// In no other state.
    pub pending: i64,
    /// Ready.
    pub ready: i64,
    /// Failed.
    pub failed: i64,
}

impl Index {
    /// An empty index.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), queue: Queue::new("bindings") })
    }

    /// Names of bindings to reconcile.
    pub fn queue(&self) -> &Arc<Queue<String>> {
        &self.queue
    }

    /// Names of all bindings.
    pub fn names(&self) -> Vec<String> {
        self.state.lock().bindings.keys().cloned().collect()
    }

    /// What is known of a binding; `None` if there is no such binding.
    pub fn snapshot(&self, name: &str, running: Running, now: Timestamp) -> Option<Snapshot> {
        let state = self.state.lock();
        let managed = Arc::clone(state.bindings.get(name)?);
        let target = managed.target();
        let report = state.reports.get(name).filter(|(of, _)| Some(of) == target.as_ref());
        Some(Snapshot {
            owner: state.owner(&managed),
            report: report.map(|(_, report)| report.clone()),
            managed,
            running,
            detach_forbidden: false,
            now,
        })
    }

    /// The owners of clusterIDs that a Syncer has served: they may have vnodes.
    pub(crate) fn served(&self) -> Vec<Served> {
        let state = self.state.lock();
        let mut owners: BTreeMap<&str, &ManagedBinding> = BTreeMap::new();
        for one in state.bindings.values().filter(|one| one.binding.has_finalizer) {
            let owner = owners.entry(&one.binding.cluster_id).or_insert(one);
            if rank(one) < rank(owner) {
                *owner = one;
            }
        }
        let owners = owners.into_iter().filter(|(cluster_id, _)| !cluster_id.is_empty());
        owners
            .map(|(cluster_id, owner)| Served {
                binding: owner.binding.name.clone(),
                cluster_id: cluster_id.to_owned(),
            })
            .collect()
    }

    /// UID of a binding.
    pub(crate) fn uid(&self, name: &str) -> Option<String> {
        self.state.lock().bindings.get(name).map(|one| one.binding.uid.clone())
    }

    /// Takes what an attendant found. A report about what the binding named earlier is not used.
    pub fn set_report(&self, target: &Target, report: Report) {
        let mut state = self.state.lock();
        if !state.bindings.get(&target.binding).is_some_and(|one| one.target().as_ref() == Some(target)) {
            return;
        }
        let entry = (target.clone(), report);
        if state.reports.get(&target.binding) == Some(&entry) {
            return;
        }
        state.reports.insert(target.binding.clone(), entry);
        drop(state);
        self.queue.add(target.binding.clone());
    }

    /// Whether the binding was last said to be connected.
    pub fn was_connected(&self, name: &str) -> bool {
        let state = self.state.lock();
        let condition = state.bindings.get(name).and_then(|one| one.condition(CONNECTED));
        condition.is_some_and(|condition| condition.status == "True")
    }

    /// Counts bindings by phase.
    pub fn phases(&self) -> Phases {
        use kubeocean_api::condition::phase::{FAILED, READY};
        let mut phases = Phases::default();
        for managed in self.state.lock().bindings.values() {
            let count = match managed.status.phase.as_str() {
                _ if managed.binding.deleting => &mut phases.deleting,
                READY => &mut phases.ready,
                FAILED => &mut phases.failed,
                _ => &mut phases.pending,
            };
            *count += 1;
        }
        phases
    }
}

/// Of several bindings with one clusterID the least owns it: one that was served, which must not lose to one that was
/// not; else the older; with the same age the one whose name comes first.
fn rank(one: &ManagedBinding) -> (bool, Timestamp, &str) {
    (!one.binding.has_finalizer, one.created, one.binding.name.as_str())
}

impl State {
    /// Another binding that owns the clusterID (API-108).
    fn owner(&self, managed: &ManagedBinding) -> Option<String> {
        let cluster_id = &managed.binding.cluster_id;
        if cluster_id.is_empty() {
            return None;
        }
        let same = self.bindings.values().filter(|other| other.binding.cluster_id == *cluster_id);
        let first = same.min_by(|one, other| rank(one).cmp(&rank(other)))?;
        (first.binding.name != managed.binding.name).then(|| first.binding.name.clone())
    }

    /// Whom a change of `name` concerns: itself, and those that share a clusterID with it.
    fn concerned(&self, name: &str, cluster_ids: &[String]) -> Vec<String> {
        let peers = self.bindings.values().filter(|other| cluster_ids.contains(&other.binding.cluster_id));
        let mut names: Vec<String> = peers.map(|other| other.binding.name.clone()).collect();
        names.push(name.to_owned());
        names
    }
}

impl Sink<ClusterBinding> for Index {
    fn apply(&self, object: ClusterBinding) {
        let managed = ManagedBinding::of(&object);
        let name = managed.binding.name.clone();
        let mut state = self.state.lock();
        let mut cluster_ids = vec![managed.binding.cluster_id.clone()];
        let before = state.bindings.insert(name.clone(), Arc::new(managed));
        cluster_ids.extend(before.map(|before| before.binding.cluster_id.clone()));
        let concerned = state.concerned(&name, &cluster_ids);
        drop(state);
        self.queue.add_all(concerned);
    }

    fn delete(&self, object: ClusterBinding) {
        let name = object.metadata.name.unwrap_or_default();
        let mut state = self.state.lock();
        state.bindings.remove(&name);
        state.reports.remove(&name);
        let concerned = state.concerned(&name, &[object.spec.cluster_id]);
        drop(state);
        self.queue.add_all(concerned);
    }

    fn reset(&self, all: Vec<ClusterBinding>) {
        let mut state = self.state.lock();
        let mut names: Vec<String> = state.bindings.keys().cloned().collect();
        state.bindings = all
            .iter()
            .map(ManagedBinding::of)
            .map(|managed| (managed.binding.name.clone(), Arc::new(managed)))
            .collect();
        names.extend(state.bindings.keys().cloned());
        let State { bindings, reports } = &mut *state;
        reports.retain(|name, _| bindings.contains_key(name));
        drop(state);
        self.queue.add_all(names);
    }
}
