//! A host with policies, nodes, and waiting for background loads.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use kubeocean_engine::{
    BindingFacts, Engine, EngineConfig, EntryMetrics, EntryState, EntryStatus, ModuleFetch, NodeDecision,
    NodeFacts, PolicyHost, PolicySpec, Published,
};
use serde_json::{Value, json};

use kubeocean_hostile_policies::{Guest, digest};

/// Longest wait for a background load.
const DEADLINE: Duration = Duration::from_mins(1);

/// One engine for all tests of the binary, as in a real process.
pub(crate) fn engine() -> &'static Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(|| Engine::start(EngineConfig { threads: 4, ..EngineConfig::default() }).unwrap())
}

/// Times are asserted as they are promised: in a run of one test on an idle machine.
pub(crate) fn strict() -> bool {
    std::env::var_os("KUBEOCEAN_STRICT_BOUNDS").is_some()
}

pub(crate) fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Monday noon.
pub(crate) fn noon() -> Timestamp {
    at("2026-03-02T12:00:00Z")
}

pub(crate) fn seconds(n: i64) -> Timestamp {
    noon() + jiff::SignedDuration::from_secs(n)
}

pub(crate) struct Host {
    pub(crate) host: PolicyHost,
    changes: Receiver<()>,
}

/// An engine that runs every second batch of several rows again (PO-1005).
pub(crate) fn rechecking_engine() -> Engine {
    let config = EngineConfig { threads: 1, recheck_every: 2, pooling: false, ..EngineConfig::default() };
    Engine::start(config).unwrap()
}

/// A host with these policies, everything loaded or failed.
pub(crate) fn host(policies: Vec<PolicySpec>) -> Host {
    host_of(engine(), policies)
}

/// As [`host`], with an engine of its own.
pub(crate) fn host_of(engine: &Engine, policies: Vec<PolicySpec>) -> Host {
    let (sender, changes) = channel();
    let binding = BindingFacts { name: "binding".into(), cluster_id: "c1".into() };
    let on_change = Box::new(move || {
        // A host may outlive the test that waits for it.
        let _ = sender.send(());
    });
    let host = PolicyHost::new(engine, binding, TimeZone::UTC, on_change);
    let this = Host { host, changes };
    this.set(policies);
    this
}

impl Host {
    pub(crate) fn set(&self, policies: Vec<PolicySpec>) {
        self.host.set_policies(policies);
        self.settle();
    }

    /// Waits until every entry whose bytes are there has loaded or failed.
    pub(crate) fn settle(&self) {
        let deadline = Instant::now() + DEADLINE;
        while !self.host.ready() {
            let left = deadline.saturating_duration_since(Instant::now());
            self.changes.recv_timeout(left).expect("an entry neither loads nor fails");
        }
    }

    /// Waits for a change until `done`.
    pub(crate) fn wait(&self, done: impl Fn(&PolicyHost) -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !done(&self.host) {
            let left = deadline.saturating_duration_since(Instant::now());
            self.changes.recv_timeout(left).expect("the awaited change does not come");
        }
    }

    pub(crate) fn one(&self, now: Timestamp, node: NodeFacts) -> NodeDecision {
        self.host.decide(now, &[Arc::new(node)]).pop().unwrap()
    }

    pub(crate) fn entry(&self, name: &str) -> EntryStatus {
        let policies = self.host.status(noon());
        policies.into_iter().flat_map(|policy| policy.entries).find(|entry| entry.name == name).unwrap()
    }

    pub(crate) fn state(&self, name: &str) -> EntryState {
        self.entry(name).state
    }

    pub(crate) fn error(&self, name: &str) -> String {
        self.entry(name).last_error.map(|(text, _)| text).unwrap_or_default()
    }

    pub(crate) fn numbers(&self, label: &str) -> EntryMetrics {
        self.host.metrics().into_iter().find(|entry| entry.entry == label).unwrap()
    }
}

/// A policy named `p`; `entries` are items of `spec.policies` with their bytes.
pub(crate) fn policy(spec: Value) -> PolicySpec {
    PolicySpec {
        name: "p".into(),
        uid: "u".into(),
        created_unix: 1,
        generation: 1,
        spec: serde_json::from_value(spec).unwrap(),
        modules: BTreeMap::new(),
    }
}

pub(crate) trait PolicyExt {
    fn named(self, name: &str, created: i64) -> Self;
    /// Adds an entry with a module from a ConfigMap, pinned by its digest.
    fn module(self, name: &str, bytes: &Arc<[u8]>, more: Value) -> Self;
    fn guest(self, name: &str, guest: &Guest) -> Self;
    fn builtin(self, name: &str, builtin: &str, settings: Value) -> Self;
    fn raw(self, entry: Value, fetch: Option<ModuleFetch>) -> Self;
}

impl PolicyExt for PolicySpec {
    fn named(mut self, name: &str, created: i64) -> Self {
        self.name = name.into();
        self.created_unix = created;
        self
    }

    fn module(self, name: &str, bytes: &Arc<[u8]>, more: Value) -> Self {
        let mut entry =
            json!({"name": name, "module": {"configMap": {"name": name}, "digest": digest(bytes)}});
        for (key, value) in more.as_object().unwrap() {
            entry[key] = value.clone();
        }
        self.raw(entry, Some(ModuleFetch::Ready(Arc::clone(bytes).into())))
    }

    fn guest(self, name: &str, guest: &Guest) -> Self {
        self.module(name, &guest.bytes(), json!({}))
    }

    fn builtin(self, name: &str, builtin: &str, settings: Value) -> Self {
        self.raw(json!({"name": name, "module": {"builtin": builtin}, "settings": settings}), None)
    }

    fn raw(mut self, entry: Value, fetch: Option<ModuleFetch>) -> Self {
        if let Some(fetch) = fetch {
            self.modules.insert(entry["name"].as_str().unwrap().to_owned(), fetch);
        }
        self.spec.policies.push(serde_json::from_value(entry).unwrap());
        self
    }
}

/// The node of the worked example in the specification: 11.8 cpu, 44Gi and 6 GPUs are free.
pub(crate) fn node(name: &str) -> NodeFacts {
    let amounts = |cpu, memory_gib: i64, gpu| -> BTreeMap<String, i64> {
        [("cpu".into(), cpu), ("memory".into(), memory_gib << 30), ("nvidia.com/gpu".into(), gpu)].into()
    };
    NodeFacts {
        node_name: name.into(),
        vnode_name: format!("vnode-c1-{name}"),
        labels: [("pool".to_owned(), "online".to_owned())].into(),
        allocatable: amounts(16_000, 64, 8),
        used: amounts(4200, 20, 2),
        ready: true,
        schedulable: true,
        created_unix: 1,
        ..NodeFacts::default()
    }
}

/// A node whose vnode publishes so much cpu.
pub(crate) fn published(name: &str, cpu: i64, offered: bool) -> NodeFacts {
    let mut node = node(name);
    node.vnode_exists = true;
    let amounts = [("cpu".to_owned(), cpu), ("memory".to_owned(), 1 << 30)].into();
    node.published = Some(Published { amounts, offered, valid_until: None });
    node
}

/// The node at which a guest's `;;POISONED` code runs.
pub(crate) fn poisoned(mut node: NodeFacts) -> NodeFacts {
    node.created_unix = 666;
    node
}

pub(crate) fn cpu(decision: &NodeDecision) -> i64 {
    decision.amounts["cpu"]
}
