//! What is to be done about the CSINode of one vnode (BU-1101, BU-1102).
//!
//! Pure. In: [`Input`], a snapshot of one key. Out: [`Plan`]. The copy is ours as a whole: what its original does not say
//! does not stay on it. Each prefix of a plan is repairable: a copy that is gone is made by the next plan.

use std::fmt;

use jiff::Timestamp;
use k8s_openapi::{api::storage::v1::CSINodeDriver, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kubeocean_api::{
    keys::{annotation, label},
    name::fit_label_value,
};
use kubeocean_runtime::clock::rfc3339;
use serde_json::{Map, Value, json};

use super::{index::Original, view::CsiNode};
use crate::nodes::{index::Identity, metadata::DenyList, store::VnodeRef, view::Texts};

/// Everything about one CSINode at one moment.
#[derive(Clone, Copy, Debug)]
pub struct Input<'a> {
    /// Now; only for the time of what is written.
    pub now: Timestamp,
    /// Who we are.
    pub identity: &'a Identity,
    /// Keys that are not copied.
    pub deny: &'a DenyList,
    /// Name of the vnode and of the copy.
    pub name: &'a str,
    /// The vnode.
    pub vnode: Option<&'a VnodeRef>,
    /// The worker's CSINode; only looked at if there is a vnode.
    pub original: &'a Original,
    /// What is known under the vnode's name.
    pub copy: Option<&'a CsiNode>,
}

/// What to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Plan {
    /// These, in order; nothing if all is as it shall be.
    Do(Vec<Action>),
    /// The vnode's labels are not as we write them. They will be, and then this is planned again.
    NotOurVnode,
    /// Somebody else's CSINode has the name.
    Taken,
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// POST.
    Create {
        /// Whole object.
        body: Value,
    },
    /// Merge patch with UID and version.
    Update {
        /// The patch.
        patch: Value,
    },
    /// DELETE.
    Delete {
        /// UID of the copy.
        uid: String,
    },
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Create { .. } => "create CSINode",
            Self::Update { .. } => "update CSINode",
            Self::Delete { .. } => "delete CSINode",
        })
    }
}

/// See the module documentation.
pub fn plan(input: &Input<'_>) -> Plan {
    let copy = input.copy.filter(|copy| !copy.deleting());
    let nothing_to_mirror = || {
        let ours = copy.filter(|copy| is_ours(copy, input.identity, input.vnode));
        Plan::Do(ours.map(delete).into_iter().collect())
    };
    let Some(vnode) = input.vnode else { return nothing_to_mirror() };
    if !vnode.ours {
        return Plan::NotOurVnode;
    }
    let original = match input.original {
        Original::Known(original) if !original.deleting() => original.as_ref(),
        Original::Known(_) | Original::Absent => return nothing_to_mirror(),
        // It was not to be read, because the vnode does not name its node: nobody knows that there is none.
        Original::Unread => return Plan::NotOurVnode,
    };
    if vnode.worker_node.as_deref() != Some(original.name()) {
        return Plan::NotOurVnode;
    }
    let wanted = Wanted::of(input, vnode, original);
    match input.copy {
        // A former copy is still going; its DELETED event is an event of this key.
        Some(copy) if copy.deleting() => Plan::Do(Vec::new()),
        Some(copy) if !is_ours(copy, input.identity, input.vnode) => Plan::Taken,
        // What a vnode has that goes away is left to the garbage collector, which takes dependents in turn.
        Some(copy) if must_be_replaced(copy, original) && vnode.deleting => Plan::Do(Vec::new()),
        Some(copy) if must_be_replaced(copy, original) => {
            Plan::Do(vec![delete(copy), Action::Create { body: wanted.body(input, original) }])
        }
        Some(copy) => Plan::Do(
            wanted.changes(input, original, copy).map(|patch| Action::Update { patch }).into_iter().collect(),
        ),
        None if vnode.deleting => Plan::Do(Vec::new()),
        None => Plan::Do(vec![Action::Create { body: wanted.body(input, original) }]),
    }
}

/// Whether an object of a vnode's name was made by us: it says so and names no other binding, or it bears the vnode's
/// UID and what only we write, whatever became of its labels.
pub fn is_ours(found: &CsiNode, identity: &Identity, vnode: Option<&VnodeRef>) -> bool {
    let says = |key: &str, value: &str| found.label(key).is_none_or(|said| said == value);
    let marked = found.is_managed()
        && says(label::CLUSTER_BINDING, &fit_label_value(&identity.binding))
        && says(label::PHYSICAL_CLUSTER_ID, &identity.cluster_id);
    let owned = vnode.is_some_and(|vnode| found.owners().iter().any(|owner| owner.uid == vnode.uid))
        && found.annotation(annotation::PHYSICAL_CSINODE_UID).is_some();
    marked || owned
}

fn delete(copy: &CsiNode) -> Action {
    Action::Delete { uid: copy.uid().to_owned() }
}

/// The API server lets nobody change a driver that is there, only add and remove drivers.
fn must_be_replaced(copy: &CsiNode, original: &CsiNode) -> bool {
    let changed =
        |wanted: &CSINodeDriver| copy.driver(&wanted.name).is_some_and(|there| !same_driver(there, wanted));
    original.spec.drivers.iter().any(changed)
}

fn same_driver(a: &CSINodeDriver, b: &CSINodeDriver) -> bool {
    let keys = |driver: &CSINodeDriver| driver.topology_keys.clone().unwrap_or_default();
    let count = |driver: &CSINodeDriver| driver.allocatable.as_ref().and_then(|volumes| volumes.count);
    a.node_id == b.node_id && keys(a) == keys(b) && count(a) == count(b)
}

fn texts(map: Option<&Texts>) -> impl Iterator<Item = (&str, &str)> {
    map.into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()))
}

/// Metadata of a copy, but for the time.
struct Wanted {
    labels: Texts,
    annotations: Texts,
    owners: Vec<OwnerReference>,
}

impl Wanted {
    fn of(input: &Input<'_>, vnode: &VnodeRef, original: &CsiNode) -> Self {
        let Identity { binding, cluster_id, .. } = input.identity;
        let mut labels = input.deny.mirrored(texts(original.metadata.labels.as_ref()));
        for (key, value) in [
            (label::MANAGED_BY, label::MANAGED_BY_VALUE.to_owned()),
            (label::CLUSTER_BINDING, fit_label_value(binding)),
            (label::PHYSICAL_CLUSTER_ID, cluster_id.clone()),
            (label::PHYSICAL_NODE_NAME, fit_label_value(original.name())),
        ] {
            labels.insert(key.to_owned(), value);
        }
        let mut annotations = input.deny.mirrored(texts(original.metadata.annotations.as_ref()));
        annotations.insert(annotation::PHYSICAL_NODE_NAME.to_owned(), original.name().to_owned());
        annotations.insert(annotation::PHYSICAL_CSINODE_UID.to_owned(), original.uid().to_owned());
        Self { labels, annotations, owners: vec![owned_by(vnode)] }
    }

    fn body(&self, input: &Input<'_>, original: &CsiNode) -> Value {
        let mut annotations = self.annotations.clone();
        annotations.insert(annotation::LAST_SYNC_TIME.to_owned(), rfc3339(input.now));
        json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "CSINode",
            "metadata": {
                "name": input.name,
                "labels": self.labels,
                "annotations": annotations,
                "ownerReferences": self.owners,
            },
            "spec": {"drivers": original.spec.drivers},
        })
    }

    /// What makes a copy as it shall be; `None` if it is.
    fn changes(&self, input: &Input<'_>, original: &CsiNode, copy: &CsiNode) -> Option<Value> {
        let labels = difference(&self.labels, &copy.labels());
        let mut annotations = difference(&self.annotations, &copy.annotations());
        let mut patch = json!({"metadata": {"uid": copy.uid(), "resourceVersion": copy.resource_version()}});
        let mut changed = !labels.is_empty() || !annotations.is_empty();
        if copy.owners() != self.owners {
            patch["metadata"]["ownerReferences"] = json!(self.owners);
            changed = true;
        }
        if !same_drivers(copy, original) {
            patch["spec"] = json!({"drivers": original.spec.drivers});
            changed = true;
        }
        annotations.insert(annotation::LAST_SYNC_TIME.to_owned(), rfc3339(input.now).into());
        patch["metadata"]["labels"] = labels.into();
        patch["metadata"]["annotations"] = annotations.into();
        changed.then_some(patch)
    }
}

/// Owned as by a kubelet, so that the copy never outlives its vnode.
fn owned_by(vnode: &VnodeRef) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Node".to_owned(),
        name: vnode.name.clone(),
        uid: vnode.uid.clone(),
        ..OwnerReference::default()
    }
}

/// Same drivers in any order, given that those of one name are the same.
fn same_drivers(copy: &CsiNode, original: &CsiNode) -> bool {
    copy.spec.drivers.len() == original.spec.drivers.len()
        && original.spec.drivers.iter().all(|driver| copy.driver(&driver.name).is_some())
}

/// Merge patch from one to the other.
fn difference(wanted: &Texts, there: &Texts) -> Map<String, Value> {
    let gone = there.keys().filter(|key| !wanted.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let set = wanted.iter().filter(|(key, value)| there.get(*key) != Some(value));
    gone.chain(set.map(|(key, value)| (key.clone(), value.as_str().into()))).collect()
}
