//! What is to be done about the port reservation of one vnode (BU-1201 to BU-1203).
//!
//! Pure. In: [`Input`], a snapshot of one key. Out: actions in an order for which every prefix is repairable: the new
//! reservation comes before the old one goes, and of several the one that fits is kept.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kubeocean_api::keys::{label, namespace};
use serde_json::{Value, json};

use super::view::{FakePod, POD_SCHEDULED};
use crate::nodes::{host_ports::HostPort, store::VnodeRef};

/// What the API server completes names with (BU-1202).
const GENERATE_NAME: &str = "fake-pod-for-hostport-";
const CONTAINER: &str = "fake-container";
/// Whatever evicts pods takes this one last.
const PRIORITY_CLASS: &str = "system-node-critical";

/// Everything about one vnode's reservation at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Value of label `cluster-binding`.
    pub binding: &'a str,
    /// Image that the pod names; it is never pulled.
    pub image: &'a str,
    /// The vnode.
    pub vnode: Option<&'a VnodeRef>,
    /// Ports that others' pods hold on the worker node, sorted, each once.
    pub held: &'a [HostPort],
    /// Reservations on the vnode, by name.
    pub fakes: &'a [std::sync::Arc<FakePod>],
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// POST a reservation.
    Create {
        /// Whole pod.
        body: Value,
    },
    /// Merge patch that hands a reservation to the vnode as it is now.
    Adopt {
        /// Name.
        name: String,
        /// The patch, with the UID.
        patch: Value,
    },
    /// Merge patch of the status: the pod is bound, as far as anybody cares.
    ShowScheduled {
        /// Name.
        name: String,
        /// The patch, with UID and version.
        patch: Value,
    },
    /// DELETE with grace 0: nothing runs.
    Delete {
        /// Name.
        name: String,
        /// UID.
        uid: String,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Create { .. } => write!(f, "reserve host ports"),
            Self::Adopt { name, .. } => write!(f, "adopt port reservation {name}"),
            Self::ShowScheduled { name, .. } => write!(f, "show port reservation {name} as scheduled"),
            Self::Delete { name, .. } => write!(f, "delete port reservation {name}"),
        }
    }
}

/// See the module documentation.
pub fn plan(input: &Input<'_>) -> Vec<Action> {
    let keeper = match input.vnode {
        // Its labels are not as we write them. They will be, and then this is planned again.
        Some(vnode) if !vnode.ours && !vnode.deleting => return Vec::new(),
        // No pod comes to a vnode that goes away, and a reservation would come after its drain.
        Some(vnode) if !vnode.deleting && !input.held.is_empty() => Some(vnode),
        _ => None,
    };
    let mut actions = Vec::new();
    let kept = keeper.and_then(|vnode| keep(input, vnode, &mut actions));
    let others = input
        .fakes
        .iter()
        .filter(|fake| kept != Some(fake.uid()) && (!fake.deleting() || fake.waits_for_its_end()));
    actions.extend(
        others.map(|fake| Action::Delete { name: fake.name().to_owned(), uid: fake.uid().to_owned() }),
    );
    actions
}

/// Makes sure that there is a reservation that fits. Returns the UID of the one that is there.
fn keep<'a>(input: &Input<'a>, vnode: &VnodeRef, actions: &mut Vec<Action>) -> Option<&'a str> {
    let fits =
        |fake: &&std::sync::Arc<FakePod>| !fake.deleting() && !fake.terminal && *fake.ports == *input.held;
    let Some(fake) = input.fakes.iter().find(fits) else {
        actions.push(Action::Create { body: reservation(input, vnode) });
        return None;
    };
    if !fake.is_owned_by(&vnode.uid) {
        let owners = json!({"uid": fake.uid(), "ownerReferences": [owner(vnode)]});
        actions.push(Action::Adopt { name: fake.name().to_owned(), patch: json!({"metadata": owners}) });
    }
    if !fake.is_scheduled() {
        let mut conditions = fake.conditions.clone();
        conditions.retain(|condition| condition["type"] != POD_SCHEDULED);
        conditions.push(json!({"type": POD_SCHEDULED, "status": "True"}));
        let seen = json!({"uid": fake.uid(), "resourceVersion": fake.metadata.resource_version});
        let patch = json!({"metadata": seen, "status": {"conditions": conditions}});
        actions.push(Action::ShowScheduled { name: fake.name().to_owned(), patch });
    }
    Some(fake.uid())
}

fn reservation(input: &Input<'_>, vnode: &VnodeRef) -> Value {
    let ports: Vec<Value> = (0..)
        .zip(input.held)
        .map(|(index, held): (usize, _)| {
            json!({
                "name": format!("port-{index}"),
                "containerPort": held.port,
                "hostPort": held.port,
                "protocol": held.protocol,
                "hostIP": held.ip,
            })
        })
        .collect();
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "generateName": GENERATE_NAME,
            "namespace": namespace::FAKE,
            "labels": {
                label::HOSTPORT_FAKE_POD: "true",
                label::MANAGED_BY: label::MANAGED_BY_VALUE,
                label::CLUSTER_BINDING: input.binding,
            },
            "ownerReferences": [owner(vnode)],
        },
        "spec": {
            "nodeName": vnode.name,
            "containers": [{"name": CONTAINER, "image": input.image, "ports": ports}],
            "restartPolicy": "Never",
            "priorityClassName": PRIORITY_CLASS,
            "tolerations": [{"operator": "Exists"}],
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            // There is no kubelet that would end it: whoever deletes it shall need none.
            "terminationGracePeriodSeconds": 0,
        },
    })
}

fn owner(vnode: &VnodeRef) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: vnode.name.clone(),
        uid: vnode.uid.clone(),
        ..OwnerReference::default()
    }
}

/// The namespace of reservations. What a pod must not do there where Pod Security has a stricter default is the one thing
/// these pods are for.
pub fn fake_namespace() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {
            "name": namespace::FAKE,
            "labels": {
                label::MANAGED_BY: label::MANAGED_BY_VALUE,
                "pod-security.kubernetes.io/enforce": "privileged",
            },
        },
    })
}
