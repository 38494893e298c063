//! What must be when nobody acts any more and nothing fails.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use kubeocean_api::keys::{annotation, label, taint};
use serde_json::Value;

use super::{
    World,
    clusters::{BINDING, Kind, is_held},
    oracle::{self, Lease, Objects},
    writes::has_taint,
};
use crate::nodes::{snapshot::published, view::NodeView};

/// Longer than the time after which everything is decided again.
const QUIET_MINUTES: usize = 11;

/// What time alone may change of a vnode: its lease, and the effect of the taint that a reclaim set.
type Course = Option<(Lease, Option<&'static str>)>;

impl World {
    /// Compares everything with the oracle, then looks at every node once more.
    pub(super) async fn check_end(&mut self) {
        let nodes: Vec<String> = self.clusters.all(Kind::Pnode).keys().cloned().collect();
        for node in &nodes {
            let lease = oracle::lease(&self.clusters.truth(), node, self.now());
            self.check_node(node, lease.as_ref());
        }
        for (name, vnode) in self.clusters.all(Kind::Vnode) {
            let node = name.strip_prefix("vnode-cls-a-").unwrap();
            assert!(nodes.iter().any(|it| it == node), "{name} is left behind: {vnode}");
            assert!(self.clusters.listed(Kind::Vnode).contains_key(name), "{name} is not watched: {vnode}");
        }
        for (name, policy) in self.clusters.all(Kind::Policy) {
            assert_eq!(
                is_held(policy),
                self.built_from(name).next().is_some(),
                "finalizer of {name}: {policy}"
            );
            assert!(policy["metadata"].get("deletionTimestamp").is_none(), "{name} does not go");
        }
        let before = self.clusters.objects.clone();
        self.syncer.store.wake_all();
        while self.work().await {}
        for (kind, objects) in before {
            assert_eq!(&objects, self.clusters.all(kind), "another round still writes: {kind:?}");
        }
    }

    /// Time passes, the worker says nothing new, and everything is decided again each minute: nothing is written, and no
    /// event is sent, for a node whose windows neither open nor close and whose grace period does not end meanwhile.
    pub(super) async fn check_quiet(&mut self) {
        let vnodes = self.clusters.all(Kind::Vnode).clone();
        let before = self.clusters.objects.clone();
        let at_first = self.courses(&vnodes);
        let mut quiet = at_first.clone();
        self.actions.clear();
        for _ in 0..QUIET_MINUTES {
            self.syncer.store.wake_all();
            self.rest(Duration::from_mins(1)).await;
            let now = self.courses(&vnodes);
            quiet.retain(|vnode, course| now[vnode] == *course);
        }
        let moved = |vnode: &str| at_first.contains_key(vnode) && !quiet.contains_key(vnode);
        let written = self.actions.iter().find(|(vnode, _)| !moved(vnode));
        assert!(written.is_none(), "time alone writes at {}: {written:?}", self.now());
        for (kind, objects) in before {
            let of = |name: &str, object: &Value| match kind {
                Kind::Vnode => moved(name),
                Kind::Vpod => object["spec"]["nodeName"].as_str().is_some_and(moved),
                _ => false,
            };
            let standing = |all: &Objects| -> Objects {
                let standing = all.iter().filter(|(name, object)| !of(name, object));
                standing.map(|(name, object)| (name.clone(), object.clone())).collect()
            };
            assert_eq!(standing(&objects), standing(self.clusters.all(kind)), "time alone changes: {kind:?}");
        }
        self.met.quiet += quiet.values().flatten().filter(|(lease, _)| lease.open).count();
        self.met.quietly_closed += quiet.values().flatten().filter(|(lease, _)| !lease.open).count();
    }

    /// By vnode, for every worker node; the vnodes are as they were when nothing had happened yet.
    fn courses(&self, vnodes: &Objects) -> BTreeMap<String, Course> {
        let course = |node: &String| {
            let name = format!("vnode-cls-a-{node}");
            let lease = oracle::lease(&self.clusters.truth(), node, self.now()).zip(vnodes.get(&name));
            let course = lease.map(|(lease, vnode)| {
                // A window that closes while time passes is a change anyway.
                let counts = lease.reclaims().is_none() || effect(vnode).is_some();
                let effect = counts.then(|| self.wanted_effect(&lease, vnode)).flatten();
                (lease, effect)
            });
            (name, course)
        };
        self.clusters.all(Kind::Pnode).keys().map(course).collect()
    }

    fn check_node(&self, node: &str, lease: Option<&Lease>) {
        let pnode = &self.clusters.all(Kind::Pnode)[node];
        let vnode = self.clusters.get(Kind::Vnode, &format!("vnode-cls-a-{node}"));
        let shown = pnode["metadata"]["labels"][label::POLICY_APPLIED].as_str();
        // What names a policy of another binding is not ours to change.
        let others = |name: &&str| {
            let policy = self.clusters.get(Kind::Policy, name);
            policy.is_some_and(|policy| policy["spec"]["cluster"] != BINDING)
        };
        let shown = shown.filter(|name| !others(name));
        let Some((lease, vnode)) = lease.zip(vnode) else {
            assert!(vnode.is_none(), "{node} is not leased, but {}", vnode.unwrap());
            assert!(lease.is_none_or(|it| !it.valid), "{node} has no vnode: {lease:?}");
            assert_eq!(shown, None, "label of {node}");
            return;
        };
        let context = format!("{lease:?}\n{pnode}\n{vnode}");
        if pnode["metadata"]["labels"].get(label::POLICY_APPLIED).is_none() || shown.is_some() {
            assert_eq!(shown, Some(&*lease.policy), "label of {context}");
        }
        let metadata = &vnode["metadata"];
        assert!(metadata.get("deletionTimestamp").is_none(), "{context}");
        assert_eq!(
            metadata["annotations"][annotation::PHYSICAL_NODE_UID],
            pnode["metadata"]["uid"],
            "{context}"
        );
        assert_eq!(metadata["annotations"][annotation::POLICIES_APPLIED], *lease.policy, "{context}");
        assert_eq!(metadata["annotations"].get(annotation::DELETION_TAINT_TIME), None, "{context}");
        for key in ["pool", "zone"] {
            assert_eq!(metadata["labels"][key], pnode["metadata"]["labels"][key], "{context}");
        }
        let disabled = self.clusters.truth().binding["disableDefaultTaint"] == true;
        assert_eq!(has_taint(vnode, taint::VNODE), !disabled, "{context}");
        assert!(!has_taint(vnode, taint::VNODE_DELETING), "{context}");
        let cordoned = pnode["spec"]["unschedulable"] == true;
        assert_eq!(has_taint(vnode, taint::PHYSICAL_NODE_UNSCHEDULABLE), cordoned, "{context}");
        assert_eq!(effect(vnode), self.wanted_effect(lease, vnode), "{context}");
        let view: NodeView = serde_json::from_value(vnode.clone()).unwrap();
        let says = published(&view).amounts;
        if lease.valid {
            assert_eq!(says, lease.caps, "{context}");
        } else {
            assert!(says.iter().all(|(name, it)| *it <= lease.available[name]), "{context}");
        }
        assert_eq!(view.ready(), pnode["status"]["conditions"][0]["status"] == "True", "{context}");
        let renewed = self.syncer.store.lease_targets(self.now()).iter().any(|it| it.uid == view.uid());
        assert_eq!(renewed, view.ready(), "{context}");
        if effect(vnode) == Some("NoExecute") {
            let staying = |pod: &&Value| !super::users::is_exempt(pod) && pod["status"]["phase"] == "Running";
            let left = self.clusters.pods_on(view.name()).find(staying);
            assert!(left.is_none(), "{} stays on {context}", left.unwrap());
        }
    }

    fn wanted_effect(&self, lease: &Lease, vnode: &Value) -> Option<&'static str> {
        if lease.valid && lease.open {
            return None;
        }
        let Some(grace) = lease.reclaims() else { return Some("NoSchedule") };
        let since = vnode["metadata"]["annotations"][annotation::RECLAIM_SINCE].as_str().unwrap();
        let since: Timestamp = since.parse().unwrap();
        let over = self.now().duration_since(since) >= jiff::SignedDuration::from_secs(grace);
        Some(if over { "NoExecute" } else { "NoSchedule" })
    }
}

fn effect(vnode: &Value) -> Option<&str> {
    let taints = vnode["spec"]["taints"].as_array()?;
    taints.iter().find(|it| it["key"] == taint::OUT_OF_TIME_WINDOWS)?["effect"].as_str()
}
