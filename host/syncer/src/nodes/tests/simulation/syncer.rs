//! One life of a Syncer: the real stores, engine, queue and planner. Its memory goes with it.

use std::{net::IpAddr, sync::Arc};

use jiff::{Timestamp, tz::TimeZone};
use kubeocean_engine::{BindingFacts, PolicyHost};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    clusters::{Change, KINDS, Kind, view},
    oracle::{Objects, View},
};
use crate::{
    directories::PodsByVnode,
    nodes::{
        decide::{Considered, Desk, NoPlan, Work, consider},
        index::{Identity, VnodeName},
        pace::Pace,
        store::{NodeStore, Readiness},
        tests::model::engine,
        vnode::{BindingView, Settings},
        watch::{Vnodes, WorkerNodes, WorkerPods},
    },
    pods::{index::PodStore, ownership::Stamp, snapshot::PodScope, view::VpodObject},
    policies::{modules::ModulePlaces, store::PolicyStore, view::PolicyView},
    simulation::trace,
};
use kubeocean_runtime::sink::Sink;

pub(super) struct Syncer {
    pub(super) store: Arc<NodeStore>,
    pub(super) policies: Arc<PolicyStore>,
    pods: Arc<PodStore>,
    directory: PodsByVnode,
    host: PolicyHost,
    settings: Settings,
    pace: Pace,
    /// Objects as the watches have shown them so far.
    seen: std::collections::BTreeMap<Kind, Objects>,
    /// Policies as the engine has them.
    fed: Objects,
    /// Watches whose first list is outstanding.
    pub(super) unlisted: Vec<Kind>,
    /// The engine's list is outdated.
    pub(super) hungry: bool,
}

fn read<T: DeserializeOwned>(object: &Value) -> T {
    T::deserialize(object).unwrap()
}

fn tell<T: DeserializeOwned>(sink: &impl Sink<T>, (object, there): &Change) {
    if *there { sink.apply(read(object)) } else { sink.delete(read(object)) }
}

fn list<T: DeserializeOwned>(sink: &impl Sink<T>, all: &Objects) {
    sink.reset(all.values().map(read).collect());
}

impl Syncer {
    /// `per_minute`: how many nodes may lose their lease per minute.
    pub(super) fn new(per_minute: u32) -> Self {
        let identity = Identity {
            binding: "dc-east".into(),
            cluster_id: "cls-a".into(),
            computing_uid: "computing".into(),
        };
        let binding = BindingView {
            name: "dc-east".into(),
            cluster_id: "cls-a".into(),
            deleting: false,
            disable_default_taint: false,
        };
        let store = NodeStore::new(identity.clone(), binding, Arc::default());
        store.set_proxier(["192.0.2.1".parse::<IpAddr>().unwrap()]);
        let stamp = Stamp { binding: "dc-east".into(), computing_cluster_uid: "computing".into() };
        let scope = PodScope { stamp, ..crate::pods::tests::builders::scope() };
        let pods = PodStore::new("cls-a", scope);
        let places = ModulePlaces { default: "policies".into(), mount: "mount".into(), files: false };
        let policies = PolicyStore::new(identity, places);
        {
            let nodes = Arc::clone(&store);
            pods.on_vpod_change(move |vnode| nodes.pods_changed(vnode));
        }
        {
            let policies = Arc::clone(&policies);
            store.on_policy_usage_change(move |policy| policies.remember_ours(policy));
        }
        let facts = BindingFacts { name: "dc-east".into(), cluster_id: "cls-a".into() };
        Self {
            store,
            policies,
            directory: PodsByVnode(Arc::clone(&pods)),
            pods,
            host: PolicyHost::new(engine(), facts, TimeZone::UTC, Box::new(|| {})),
            settings: Settings { prometheus_port: 9006, ..Settings::default() },
            pace: Pace::new(per_minute),
            seen: KINDS.map(|kind| (kind, Objects::new())).into(),
            fed: Objects::new(),
            unlisted: KINDS.to_vec(),
            hungry: false,
        }
    }

    /// A watch shows one change.
    pub(super) fn deliver(&mut self, kind: Kind, change: &Change) {
        let (object, there) = change;
        trace(|| format!("  sees {kind:?} {} ({there})", object["metadata"]["name"]));
        let name = object["metadata"]["name"].as_str().unwrap().to_owned();
        if *there {
            self.seen.get_mut(&kind).unwrap().insert(name, object.clone());
        } else {
            self.seen.get_mut(&kind).unwrap().remove(&name);
        }
        match kind {
            Kind::Vnode => tell(&Vnodes(Arc::clone(&self.store)), change),
            Kind::Vpod => tell::<VpodObject>(&*self.pods, change),
            Kind::Pnode => tell(&WorkerNodes(Arc::clone(&self.store)), change),
            Kind::WorkerPod => tell(&WorkerPods(Arc::clone(&self.store)), change),
            Kind::Policy => {
                tell::<PolicyView>(&*self.policies, change);
                self.hungry = true;
            }
            Kind::Binding => self.set_binding(object),
        }
    }

    /// A watch starts anew with a complete list.
    pub(super) fn list(&mut self, kind: Kind, all: &Objects) {
        self.seen.insert(kind, all.clone());
        match kind {
            Kind::Vnode => list(&Vnodes(Arc::clone(&self.store)), all),
            Kind::Vpod => list::<VpodObject>(&*self.pods, all),
            Kind::Pnode => list(&WorkerNodes(Arc::clone(&self.store)), all),
            Kind::WorkerPod => list(&WorkerPods(Arc::clone(&self.store)), all),
            Kind::Policy => {
                list::<PolicyView>(&*self.policies, all);
                self.feed();
            }
            Kind::Binding => {
                for binding in all.values() {
                    self.set_binding(binding);
                }
            }
        }
        self.unlisted.retain(|other| *other != kind);
        if self.unlisted.is_empty() {
            self.store.set_readiness(Readiness::Ready);
        }
    }

    fn set_binding(&mut self, binding: &Value) {
        let selector = &binding["nodeSelector"];
        let selector = (!selector.is_null()).then(|| read(selector));
        self.host.set_binding_selector(selector.as_ref());
        self.policies.set_binding_selector(selector.as_ref());
        self.hungry = true;
        self.store.set_binding(BindingView {
            name: "dc-east".into(),
            cluster_id: "cls-a".into(),
            deleting: binding["deleting"] == true,
            disable_default_taint: binding["disableDefaultTaint"] == true,
        });
        self.store.wake_all();
    }

    /// The engine takes the policies, and every node is looked at again.
    pub(super) fn feed(&mut self) {
        self.hungry = false;
        let changes = self.policies.changes();
        self.host.set_policies(self.policies.engine_list());
        self.policies.engine_took(changes);
        self.store.leased_pods_matter(self.host.reads_leased());
        self.fed = self.seen[&Kind::Policy].clone();
        self.store.wake_all();
    }

    /// What decisions are made from.
    pub(super) fn view(&self) -> View<'_> {
        View { policies: &self.fed, ..view(&self.seen) }
    }

    /// A key whose turn comes until then. Waiting costs nothing: time jumps to what is next.
    pub(super) async fn take(&self, until: Instant) -> Option<VnodeName> {
        tokio::time::timeout_at(until, self.store.queue.next()).await.ok()
    }

    /// From a key to its plan, as the loop does it.
    pub(super) fn consider(&self, key: VnodeName, now: Timestamp) -> (Work, Result<Considered, NoPlan>) {
        let surroundings = self.store.surroundings();
        let policies = self.policies.known_to_engine();
        let mut work = Work { snapshot: self.store.snapshot(&key), key, decision: None, policies };
        if let Some(question) = work.question(&surroundings) {
            work.decision = self.host.decide(now, &[Arc::new(question)]).pop();
        }
        let considered = self.plan(&work, now);
        (work, considered)
    }

    /// From what was decided to its plan.
    pub(super) fn plan(&self, work: &Work, now: Timestamp) -> Result<Considered, NoPlan> {
        let desk = Desk {
            store: &self.store,
            policies: Some(&self.policies),
            host: Some(&self.host),
            pods: &self.directory,
            settings: &self.settings,
            pace: &self.pace,
        };
        consider(&desk, &self.store.surroundings(), work, &work.snapshot, now)
    }
}
