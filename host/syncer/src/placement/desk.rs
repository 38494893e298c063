//! Where placement is decided for one binding: gathers the facts, asks the engine.
//!
//! In: a pod, names of vnodes. Out: one answer per vnode of ours. Callers: the pod loop before it makes a copy
//! (PO-606), the scheduler extender of this process, the policy server. Facts of vnodes are kept until something about
//! them changes: a scheduler asks about all of them for every pod. Invariant: before the first lists are complete, and
//! while the policies of a fresh leader load, nobody is admitted (PO-704).

use std::{
    collections::HashMap,
    fmt,
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use kubeocean_engine::{
    Fit, NodeFacts, OnError, PlaceNode, PlaceRequest, Placement, PodFacts, PolicyHost, Recorded, Stage,
};
use parking_lot::Mutex;

use super::facts::vnode_facts;
use crate::{
    nodes::{
        snapshot::Usage,
        store::{NodeStore, Readiness},
        view::NodeView,
    },
    pods::{
        admission::{Admission, Denial},
        index::PodStore,
        view::Vpod,
    },
};
use kubeocean_runtime::clock::Clock;

/// How long an admission waits for its entries: longer than the longest call.
const ADMISSION_WAIT: Duration = Duration::from_secs(5);
/// After how long a pod that policies reject is asked about again though nothing has changed: a module may look at the clock.
const REJECTED_AGAIN: Duration = Duration::from_mins(5);
/// Longest further wait, so that pods rejected together are not asked about together.
const REJECTED_SPREAD: Duration = Duration::from_mins(1);

/// One vnode's answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceRow {
    /// The vnode.
    pub node: String,
    /// What holds.
    pub placement: Placement,
}

/// Answer to a scheduler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlaceAnswer {
    /// What holds for the vnodes of this binding while it cannot be asked.
    pub on_error: OnError,
    /// One per vnode that is ours, in the order asked.
    pub rows: Vec<PlaceRow>,
}

/// See the module documentation.
pub struct PlaceDesk {
    nodes: Arc<NodeStore>,
    pods: Arc<PodStore>,
    host: Arc<PolicyHost>,
    clock: Arc<dyn Clock>,
    facts: Mutex<HashMap<Arc<str>, Arc<NodeFacts>, ahash::RandomState>>,
    /// Counts what made kept facts outdated.
    changes: AtomicU64,
}

impl fmt::Debug for PlaceDesk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PlaceDesk").field("host", &self.host).finish_non_exhaustive()
    }
}

impl PlaceDesk {
    /// A desk that follows both stores.
    pub fn new(
        nodes: &Arc<NodeStore>,
        pods: &Arc<PodStore>,
        host: &Arc<PolicyHost>,
        clock: &Arc<dyn Clock>,
    ) -> Arc<Self> {
        let desk = Arc::new(Self {
            nodes: Arc::clone(nodes),
            pods: Arc::clone(pods),
            host: Arc::clone(host),
            clock: Arc::clone(clock),
            facts: Mutex::default(),
            changes: AtomicU64::new(0),
        });
        // The stores outlive the desk, which holds them.
        let follow = |forget: &Arc<Self>| {
            let desk = Arc::downgrade(forget);
            move |vnode: Option<&str>| {
                if let Some(desk) = desk.upgrade() {
                    desk.changed(vnode);
                }
            }
        };
        let (facts, bound) = (follow(&desk), follow(&desk));
        nodes.on_facts_change(facts);
        pods.on_vpod_change(move |vnode| bound(Some(vnode)));
        desk
    }

    /// Something about a vnode, or about all, is not as it was.
    fn changed(&self, vnode: Option<&str>) {
        {
            let mut facts = self.facts.lock();
            self.changes.fetch_add(1, Ordering::SeqCst);
            match vnode {
                Some(vnode) => drop(facts.remove(vnode)),
                None => facts.clear(),
            }
        }
        self.pods.wake_denied(vnode);
    }

    /// Policies changed, or a module has loaded: whoever was denied is asked about again.
    pub fn policies_changed(&self) {
        self.pods.wake_denied(None);
    }

    /// Whether a pod may have a copy now.
    pub(crate) async fn admit(self: &Arc<Self>, vpod: &Vpod) -> Admission {
        let surroundings = self.nodes.surroundings();
        if surroundings.readiness != Readiness::Ready {
            return Admission::Wait(None);
        }
        if !self.host.has_placement() {
            return Admission::Granted;
        }
        if let Some(left) = surroundings.loading_left.filter(|_| !self.host.ready()) {
            return Admission::Wait(Some(left));
        }
        self.nodes.asked_usage(&self.host).await;
        let (Some(pod), Some(node)) = (&vpod.place, self.nodes.vnode_view(&vpod.node)) else {
            return Admission::Granted;
        };
        let node = PlaceNode {
            facts: Arc::new(self.facts(&node, Some(vpod))),
            policy: self.nodes.governing([&*vpod.node]).pop().flatten(),
        };
        let request = PlaceRequest {
            stage: Stage::Admit,
            pod: Arc::clone(pod),
            nodes: vec![node],
            deadline: Instant::now() + ADMISSION_WAIT,
        };
        let (host, now) = (Arc::clone(&self.host), self.clock.now());
        let asking = tokio::task::spawn_blocking(move || host.place(now, request).pop());
        match asking.await {
            Ok(Some(placement)) => admission(placement, &vpod.uid),
            Ok(None) | Err(_) => Admission::Wait(Some(Duration::from_secs(1))),
        }
    }

    /// The last decisions of the policies, about a worker node or vnode or about all (PO-1007).
    pub fn decisions(&self, node: Option<&str>) -> Vec<Recorded> {
        self.host.decisions(node)
    }

    /// Asks about vnodes for a scheduler; names that are not ours are left out. `None`: the first lists are not complete,
    /// so that nobody knows yet which vnodes are ours and what governs them. Blocks.
    pub fn place(
        &self,
        stage: Stage,
        pod: &Arc<PodFacts>,
        names: &[String],
        deadline: Instant,
    ) -> Option<PlaceAnswer> {
        if self.nodes.surroundings().readiness != Readiness::Ready {
            return None;
        }
        let on_error = self.host.place_on_error();
        let ours: Vec<(&String, Arc<NodeFacts>)> = self
            .facts_of(names)
            .into_iter()
            .zip(names)
            .filter_map(|(facts, name)| Some((name, facts?)))
            .collect();
        let policies = self.nodes.governing(ours.iter().map(|(name, _)| name.as_str()));
        let (names, nodes): (Vec<&String>, Vec<PlaceNode>) = ours
            .into_iter()
            .zip(policies)
            .map(|((name, facts), policy)| (name, PlaceNode { facts, policy }))
            .unzip();
        let request = PlaceRequest { stage, pod: Arc::clone(pod), nodes, deadline };
        let placements = self.host.place(self.clock.now(), request);
        let rows = names
            .into_iter()
            .zip(placements)
            .map(|(name, placement)| PlaceRow { node: name.clone(), placement })
            .collect();
        Some(PlaceAnswer { on_error, rows })
    }

    fn facts_of(&self, names: &[String]) -> Vec<Option<Arc<NodeFacts>>> {
        let mut found: Vec<Option<Arc<NodeFacts>>> = {
            let facts = self.facts.lock();
            names.iter().map(|name| facts.get(name.as_str()).cloned()).collect()
        };
        for (name, place) in names.iter().zip(&mut found).filter(|(_, place)| place.is_none()) {
            let since = self.changes.load(Ordering::SeqCst);
            let Some(vnode) = self.nodes.vnode_view(name) else { continue };
            let facts = Arc::new(self.facts(&vnode, None));
            *place = Some(Arc::clone(&facts));
            self.keep(name, since, facts);
        }
        found
    }

    /// Keeps facts, unless something has changed since they were made.
    fn keep(&self, name: &str, since: u64, facts: Arc<NodeFacts>) {
        let mut kept = self.facts.lock();
        if self.changes.load(Ordering::SeqCst) == since {
            kept.insert(name.into(), facts);
        }
    }

    /// Facts about a vnode. The pods bound to it count, but for one: their copies, and those that have none yet.
    fn facts(&self, vnode: &NodeView, except: Option<&Vpod>) -> NodeFacts {
        let Usage { own: mut used, measured, .. } = self.nodes.snapshot(vnode.name()).usage;
        for pod in self.pods.without_copy(vnode.name()) {
            if except.is_some_and(|except| except.uid == pod.uid) {
                continue;
            }
            for (resource, amount) in pod.place.iter().flat_map(|facts| &facts.requests) {
                let sum = used.entry(resource.clone()).or_default();
                *sum = sum.saturating_add(*amount);
            }
        }
        vnode_facts(vnode, used, measured)
    }
}

/// When a rejected pod is asked about again by itself; the same for one pod, so that a denial told again is no other one.
fn rejected_again(uid: &str) -> Duration {
    let mut hasher = DefaultHasher::new();
    uid.hash(&mut hasher);
    REJECTED_AGAIN + Duration::from_secs(hasher.finish() % REJECTED_SPREAD.as_secs())
}

pub(super) fn admission(placement: Placement, uid: &str) -> Admission {
    let retry = match placement.fit {
        Fit::Accept => return Admission::Granted,
        Fit::Later(seconds) => Some(Duration::from_secs(seconds.into())),
        Fit::Reject => Some(rejected_again(uid)),
    };
    let (code, message) = match placement.reason {
        Some(said) => (said.reason.code.clone(), format!("{} (policy {})", said.reason.message, said.entry)),
        // The engine says why; without a reason there is nothing better to tell.
        None => ("Rejected".to_owned(), String::new()),
    };
    Admission::Denied(Denial { code, message, retry })
}
