//! Pods as an API server would answer them, changed where a test needs it.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use jiff::Timestamp;
use kubeocean_api::{
    keys::{annotation, label},
    name::{ObjectKey, phys_name},
};
use serde_json::{Value, json};

use crate::config::StatusMessages;
use crate::pods::{
    metadata::Expected,
    ownership::Stamp,
    snapshot::{Absence, LostPpod, PodScope, PodSnapshot, VnodeState},
    view::{Ppod, Vpod},
};

pub(super) const NOW: &str = "2026-01-05T12:00:00Z";
pub(super) const VNODE: &str = "vnode-cls-a-node-1";
pub(super) const MOUNT: &str = "kubeocean-worker";

pub(super) fn now() -> Timestamp {
    NOW.parse().unwrap()
}

pub(super) fn key() -> ObjectKey {
    ObjectKey::new("default", "web-0")
}

pub(crate) fn scope() -> PodScope {
    PodScope {
        stamp: Stamp { binding: "east".into(), computing_cluster_uid: "computing".into() },
        mount_namespace: MOUNT.into(),
        binding_deleting: false,
        direct_scheduling: false,
        priority_class_name: "".into(),
        running_daemonset_by_default: false,
        system_namespace: "ocean".into(),
        scheduling_timeout: Duration::from_mins(5),
        messages: StatusMessages::Full,
        metadata_deny: Vec::new(),
    }
}

/// A pod in JSON that a test changes.
#[derive(Clone)]
pub(super) struct Pod(pub(super) Value);

impl Pod {
    /// Sets the value at a path, making objects on the way.
    pub(super) fn set(mut self, path: &[&str], value: impl Into<Value>) -> Self {
        let at = path.iter().fold(&mut self.0, |value, member| &mut value[*member]);
        *at = value.into();
        self
    }
    pub(super) fn annotate(self, key: &str, value: &str) -> Self {
        self.set(&["metadata", "annotations", key], value)
    }
    pub(super) fn label(self, key: &str, value: &str) -> Self {
        self.set(&["metadata", "labels", key], value)
    }
    pub(super) fn without_label(mut self, key: &str) -> Self {
        self.0["metadata"]["labels"].as_object_mut().unwrap().remove(key);
        self
    }
    pub(super) fn phase(self, phase: &str) -> Self {
        self.set(&["status", "phase"], phase)
    }
    pub(super) fn running(self) -> Self {
        self.phase("Running")
            .set(&["status", "hostIP"], "10.1.0.1")
            .set(&["status", "hostIPs"], json!([{"ip": "10.1.0.1"}]))
            .set(&["status", "podIP"], "10.2.0.1")
            .set(
                &["status", "conditions"],
                json!([{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}]),
            )
    }
    pub(super) fn deleting(self, grace_seconds: i64) -> Self {
        self.set(&["metadata", "deletionTimestamp"], "2026-01-05T12:00:30Z")
            .set(&["metadata", "deletionGracePeriodSeconds"], grace_seconds)
    }
    pub(super) fn vpod(&self) -> Vpod {
        Vpod::from_json(&self.0).expect("it is on a vnode")
    }
    pub(super) fn ppod(&self) -> Ppod {
        Ppod::from_json(&self.0).expect("it is a pod")
    }
}

/// A vpod, scheduled to our vnode, never seen before.
pub(super) fn vpod() -> Pod {
    Pod(json!({
        "metadata": {"namespace": "default", "name": "web-0", "uid": "v1", "resourceVersion": "10",
            "labels": {"app": "web"}, "annotations": {"note": "a"}},
        "spec": {"nodeName": VNODE},
        "status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]},
    }))
}

/// The same, mapped.
pub(super) fn mapped() -> Pod {
    vpod()
        .annotate(annotation::PHYSICAL_POD_NAMESPACE, MOUNT)
        .annotate(annotation::PHYSICAL_POD_NAME, &phys_name("web-0", "default"))
}

/// The same, with the UID of its ppod.
pub(super) fn recorded() -> Pod {
    mapped().annotate(annotation::PHYSICAL_POD_UID, "p1")
}

/// The same, with the proof that there is a ppod which has reported nothing yet.
pub(super) fn marked(mut pod: Pod) -> Pod {
    let mut conditions = pod.0["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.push(json!({
        "type": "WorkerPodCreated", "status": "True", "reason": "Created",
        "message": "the worker cluster has the pod", "lastTransitionTime": "2026-01-05T11:59:00Z",
    }));
    pod.0["status"]["conditions"] = conditions.into();
    pod
}

/// The ppod of [`vpod`], on its node, created a minute ago.
pub(super) fn ppod() -> Pod {
    let original = vpod().vpod();
    let expected = Expected::of(&original.labels, &original.annotations).encode().unwrap();
    Pod(json!({
        "metadata": {"namespace": MOUNT, "name": phys_name("web-0", "default"), "uid": "p1", "resourceVersion": "50",
            "creationTimestamp": "2026-01-05T11:59:00Z",
            "labels": {
                "app": "web",
                label::MANAGED_BY: "kubeocean", label::CLUSTER_BINDING: "east",
                label::VIRTUAL_NAMESPACE: "default",
            },
            "annotations": {
                "note": "a",
                annotation::VIRTUAL_POD_NAMESPACE: "default", annotation::VIRTUAL_POD_NAME: "web-0",
                annotation::VIRTUAL_POD_UID: "v1", annotation::VIRTUAL_NODE_NAME: VNODE,
                annotation::COMPUTING_CLUSTER_UID: "computing", annotation::EXPECTED_METADATA: expected,
            }},
        "spec": {"nodeName": "node-1"},
        "status": {"phase": "Pending"},
    }))
}

/// The same, as the original made it.
pub(super) fn unstamped() -> Pod {
    let mut pod = ppod().without_label(label::CLUSTER_BINDING);
    pod.0["metadata"]["annotations"].as_object_mut().unwrap().remove(annotation::COMPUTING_CLUSTER_UID);
    pod
}

/// What the planner sees of a vpod and, unless absent, its ppod.
pub(super) fn snapshot(vpod: Option<&Pod>, ppod: Option<&Pod>) -> PodSnapshot {
    PodSnapshot {
        admission: crate::pods::admission::Admission::default(),
        key: key(),
        now: now(),
        scope: Arc::new(scope()),
        vpod: vpod.map(|pod| Arc::new(pod.vpod())),
        gone_vpods: BTreeSet::new(),
        forced_vpods: BTreeSet::new(),
        node_is_dead: false,
        vnode: VnodeState::Ours { worker_node: Some("node-1".into()), deleting: false },
        ppod: ppod.map(|pod| Arc::new(pod.ppod())),
        unscheduled_for: Duration::ZERO,
        strays: Vec::new(),
        absence: Absence::Unproven,
        mirrored: None,
        status_written: None,
    }
}

/// The DELETED event of a ppod.
pub(super) fn witnessed(ppod: &Pod) -> Absence {
    let ppod = ppod.ppod();
    Absence::Witnessed(Arc::new(LostPpod {
        uid: ppod.uid.clone(),
        virtual_uid: ppod.back_reference().unwrap().uid,
        certain: true,
        status: ppod.status,
    }))
}

/// The same event of a ppod that was not being deleted: it may only have lost its label.
pub(super) fn not_shown(ppod: &Pod) -> Absence {
    let Absence::Witnessed(mut lost) = witnessed(ppod) else { return Absence::Unproven };
    Arc::make_mut(&mut lost).certain = false;
    Absence::Witnessed(lost)
}
