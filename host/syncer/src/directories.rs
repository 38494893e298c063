//! What nodes ask of pods, and pods of nodes.

use std::sync::Arc;

use serde_json::Value;

use crate::{
    nodes::{
        decide::PodsOnVnode,
        store::{NodeStore, Readiness},
        withdraw::PodOnVnode,
    },
    pods::{
        apply::VnodeDirectory,
        index::PodStore,
        snapshot::VnodeState,
        view::{Phase, Vpod},
    },
};

/// The pods of a vnode as the node planner wants them.
#[derive(Debug)]
pub(crate) struct PodsByVnode(pub(crate) Arc<PodStore>);

impl PodsOnVnode for PodsByVnode {
    fn on_vnode(&self, vnode: &str) -> Vec<PodOnVnode> {
        let view = |pod: crate::pods::index::VpodOnNode| PodOnVnode {
            terminal: matches!(pod.phase, Phase::Succeeded | Phase::Failed),
            uid: pod.uid.to_string(),
            key: pod.key,
            deleting: pod.deleting,
            daemonset: pod.daemonset,
            system: pod.system,
            tolerates_reclaim: pod.tolerates_out_of_window,
        };
        self.0.on_vnode(vnode).into_iter().map(view).collect()
    }

    fn saw(&self, pod: &Value) {
        if let Some(vpod) = Vpod::from_json(pod) {
            self.0.saw_vpod(vpod);
        }
    }
}

/// The vnodes as the pod planner wants them.
#[derive(Debug)]
pub(crate) struct Vnodes(pub(crate) Arc<NodeStore>);

impl VnodeDirectory for Vnodes {
    fn vnode(&self, name: &str) -> VnodeState {
        match self.0.vnode(name) {
            None => VnodeState::Missing,
            Some(vnode) if !vnode.ours => VnodeState::NotOurs,
            Some(vnode) => {
                VnodeState::Ours { worker_node: vnode.worker_node.map(Into::into), deleting: vnode.deleting }
            }
        }
    }

    fn node_is_dead(&self, vnode: &str) -> bool {
        // Before the first lists every node seems to be gone.
        self.0.readiness() == Readiness::Ready
            && self.0.snapshot(vnode).pnode.is_none_or(|pnode| !pnode.ready())
    }
}

#[cfg(test)]
mod tests {
    use kubeocean_runtime::sink::Sink;
    use rstest::rstest;
    use serde_json::json;

    use super::*;
    use crate::{
        nodes::{index::Identity, vnode::BindingView, watch::WorkerNodes},
        pods::tests::builders::scope,
    };

    /// The end of a pod waits for a kubelet as long as there may be one (TD section 9).
    #[rstest]
    #[case::ready(Some("True"), false)]
    #[case::its_kubelet_says_no(Some("False"), true)]
    #[case::silent(Some("Unknown"), true)]
    #[case::gone(None, true)]
    fn a_node_is_dead_when_no_kubelet_will_answer(#[case] ready: Option<&str>, #[case] dead: bool) {
        let identity =
            Identity { binding: "dc-east".into(), cluster_id: "cls-a".into(), computing_uid: "c-1".into() };
        let nodes = NodeStore::new(identity, BindingView::default(), Arc::default());
        let node = |status: &str| {
            let conditions = json!([{"type": "Ready", "status": status}]);
            serde_json::from_value(json!({
                "metadata": {"name": "n1", "uid": "p-1", "resourceVersion": "1"}, "status": {"conditions": conditions},
            }))
            .unwrap()
        };
        WorkerNodes(Arc::clone(&nodes)).reset(ready.map(node).into_iter().collect());
        let vnodes = Vnodes(Arc::clone(&nodes));
        assert!(!vnodes.node_is_dead("vnode-cls-a-n1"), "before the first lists nothing is known");
        nodes.set_readiness(Readiness::Ready);
        assert_eq!(vnodes.node_is_dead("vnode-cls-a-n1"), dead);
    }

    /// A pod that the node tasks delete is ended by the pod tasks, whichever of answer and event comes first.
    #[test]
    fn the_answer_to_an_eviction_wakes_the_tasks_of_pods() {
        let store = PodStore::new("cls-a", scope());
        let pods = PodsByVnode(Arc::clone(&store));
        let metadata = json!({
            "namespace": "default", "name": "web-0", "uid": "v-1", "resourceVersion": "7",
            "deletionTimestamp": "2026-01-05T12:00:30Z", "deletionGracePeriodSeconds": 30,
        });
        pods.saw(&json!({"metadata": metadata, "spec": {"nodeName": "vnode-cls-a-n1"}, "status": {}}));
        assert_eq!(store.queue().len(), 1);
        let seen: Vec<bool> = pods.on_vnode("vnode-cls-a-n1").iter().map(|pod| pod.deleting).collect();
        assert_eq!(seen, [true]);
    }
}
