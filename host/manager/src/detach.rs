//! The computing cluster's half of a binding's end, without its worker (MC section 5): a user has given the worker up.
//!
//! In: a binding whose Syncer has been stopped. Out: what stays behind in the worker. Its vnodes' pods end as Failed, the
//! vnodes go with their CSINodes and Leases, and what was copied is let go. Each step looks at what is there, so that a
//! run that was cut off is finished by the next. What somebody else changes meanwhile is changed again at once: the next
//! run would not count what this one did.

use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kubeocean_api::{
    keys::{self, annotation, finalizer, label, manager, namespace},
    vnode::{self, label_of},
};
use kubeocean_runtime::{
    binding::Binding,
    error::ApplyError,
    request::{
        DeleteOptions, PAGE, create_json, delete_json, get_metadata, list_metadata, merge_patch_only, paths,
    },
};
use serde_json::{Map, Value, json};

use crate::bindings::action::Reach;

/// Reason of a pod whose worker was given up.
const DETACHED: &str = "WorkerDetached";
/// So many of the objects that stay in the worker are named.
const NAMED: usize = 10;
/// Attempts to change an object that others change, too.
const ATTEMPTS: usize = 8;
/// Collections of what may have copies in the worker.
const COPIED: [&str; 5] = [
    "/api/v1/configmaps",
    "/api/v1/secrets",
    "/api/v1/persistentvolumeclaims",
    "/api/v1/persistentvolumes",
    "/apis/cls.cloud.tencent.com/v1/logconfigs",
];

/// What stays in the worker, as far as the computing cluster knows.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers {
    mount_namespace: String,
    cluster_id: String,
    /// Copies of pods, by their names in the worker.
    pods: Vec<String>,
    /// Copies of other objects: `configmaps/<name>`.
    objects: Vec<String>,
}

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mount_namespace, cluster_id, pods, objects } = self;
        write!(
            f,
            "the worker was given up; {} pods and {} other objects may be left in its namespace \
             {mount_namespace}, with label {}",
            pods.len(),
            objects.len(),
            keys::synced_by(cluster_id)
        )?;
        let pods = pods.iter().map(|name| format!("pods/{name}"));
        let named: Vec<String> = pods.chain(objects.iter().cloned()).take(NAMED).collect();
        if named.is_empty() { Ok(()) } else { write!(f, ": {}", named.join(", ")) }
    }
}

/// Whether the role allows it, by the right that is used last: the chart grants all of them or none.
pub async fn may_detach(computing: &Client) -> Result<bool, ApplyError> {
    let review = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {
            "group": "coordination.k8s.io", "resource": "leases", "verb": "delete",
            "namespace": namespace::NODE_LEASE,
        }},
    });
    let answer = create_json(computing, paths::ACCESS_REVIEWS, &review).await?;
    Ok(answer.pointer("/status/allowed") == Some(&Value::Bool(true)))
}

/// Does it. The binding itself is left to the caller.
pub async fn detach(computing: &Client, binding: &Binding, reach: Reach) -> Result<Leftovers, ApplyError> {
    let Binding { name, cluster_id, .. } = binding;
    let mut left = Leftovers {
        mount_namespace: binding.spec.mount_namespace.clone(),
        cluster_id: cluster_id.clone(),
        ..Leftovers::default()
    };
    let selector = format!("labelSelector={}", vnode::selector(name));
    let nodes = list_metadata(computing, &paths::nodes(), PAGE).await?;
    for vnode in nodes.iter().filter(|node| is_ours(node, binding, reach)) {
        end_pods(computing, text(vnode.name.as_ref()), &mut left).await?;
        end_vnode(computing, vnode).await?;
    }
    for copy in
        list_metadata(computing, &format!("/apis/storage.k8s.io/v1/csinodes?{selector}"), PAGE).await?
    {
        delete(computing, &paths::csi_node(text(copy.name.as_ref())), copy.uid.as_ref(), None).await?;
    }
    // What is marked with a clusterID is its owner's.
    if reach == Reach::ClusterId {
        for collection in COPIED {
            release(computing, collection, cluster_id, &mut left).await?;
        }
    }
    Ok(left)
}

/// Whether a node is a vnode to take away. One without labels is whose its name says: the owner's of the clusterID.
fn is_ours(node: &ObjectMeta, binding: &Binding, reach: Reach) -> bool {
    let Binding { name, cluster_id, .. } = binding;
    let of_cluster = label_of(node, label::PHYSICAL_CLUSTER_ID).is_none_or(|of| of == cluster_id);
    let marked = vnode::is_marked(|key| label_of(node, key), name) && of_cluster;
    marked || (reach == Reach::ClusterId && vnode::is_left(node, name, cluster_id))
}

fn text(value: Option<&String>) -> &str {
    value.map(String::as_str).unwrap_or_default()
}

async fn delete(
    computing: &Client,
    path: &str,
    uid: Option<&String>,
    grace_seconds: Option<i64>,
) -> Result<(), ApplyError> {
    let options = DeleteOptions { uid: uid.cloned(), grace_seconds };
    delete_json(computing, path, &options).await.map(drop)
}

/// An object that is changed, as it is now.
trait Changing {
    /// Changes it as it was in `seen`.
    fn change(&mut self, seen: &ObjectMeta) -> impl Future<Output = Result<(), ApplyError>> + Send;
    /// What is there now under its name.
    fn look(&mut self) -> impl Future<Output = Result<Option<ObjectMeta>, ApplyError>> + Send;
}

/// Changes an object until nobody else was faster. One that has gone, also if another has its name, needs no change.
async fn change(first: &ObjectMeta, object: &mut impl Changing) -> Result<(), ApplyError> {
    let mut seen = first.clone();
    for _ in 1..ATTEMPTS {
        match object.change(&seen).await {
            Err(ApplyError::Conflict { .. }) => {}
            Err(ApplyError::NotFound { .. }) => return Ok(()),
            done => return done,
        }
        match object.look().await? {
            Some(now) if now.uid == first.uid => seen = now,
            _ => return Ok(()),
        }
    }
    object.change(&seen).await
}

/// A change by patches, each made from what was seen last.
struct Patching<'a> {
    computing: &'a Client,
    path: String,
    /// Lists it alone, where the role does not allow to read it.
    list: Option<String>,
    patch: &'a (dyn Fn(&ObjectMeta) -> Value + Send + Sync),
}

impl Changing for Patching<'_> {
    async fn change(&mut self, seen: &ObjectMeta) -> Result<(), ApplyError> {
        let path = format!("{}?fieldManager={}", self.path, manager::MANAGER);
        let patch = (self.patch)(seen);
        merge_patch_only(self.computing, &path, &patch).await
    }

    async fn look(&mut self) -> Result<Option<ObjectMeta>, ApplyError> {
        match &self.list {
            Some(list) => Ok(list_metadata(self.computing, list, PAGE).await?.pop()),
            None => get_metadata(self.computing, &self.path).await,
        }
    }
}

/// The list of one object, by its collection and name.
fn list_of(collection: &str, name: &str) -> String {
    format!("{collection}?fieldSelector=metadata.name%3D{name}")
}

/// Nobody runs them any more, and no kubelet would end them: they fail, so that their owners see it, and go at once.
async fn end_pods(computing: &Client, vnode: &str, left: &mut Leftovers) -> Result<(), ApplyError> {
    let on_vnode = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{vnode}");
    let unfinished = format!("{on_vnode},status.phase!%3DSucceeded,status.phase!%3DFailed");
    for pod in list_metadata(computing, &unfinished, PAGE).await? {
        let (home, name) = (text(pod.namespace.as_ref()), text(pod.name.as_ref()));
        let status = |pod: &ObjectMeta| {
            json!({
                "metadata": {"uid": pod.uid},
                "status": {"phase": "Failed", "reason": DETACHED, "message": "its worker cluster was given up"},
            })
        };
        let path = paths::pod_status(home, name);
        let list = Some(list_of(&paths::pods(home), name));
        change(&pod, &mut Patching { computing, path, list, patch: &status }).await?;
    }
    for pod in list_metadata(computing, &on_vnode, PAGE).await? {
        let (home, name) = (text(pod.namespace.as_ref()), text(pod.name.as_ref()));
        let copy = pod.annotations.as_ref().and_then(|all| all.get(annotation::PHYSICAL_POD_NAME));
        left.pods.extend(copy.cloned());
        delete(computing, &paths::pod(home, name), pod.uid.as_ref(), Some(0)).await?;
    }
    Ok(())
}

async fn end_vnode(computing: &Client, vnode: &ObjectMeta) -> Result<(), ApplyError> {
    let name = text(vnode.name.as_ref());
    tracing::info!(vnode = name, "removing a vnode without its worker");
    delete(computing, &paths::node(name), vnode.uid.as_ref(), None).await?;
    let live = get_metadata(computing, &paths::node(name)).await?;
    if let Some(live) = live.filter(|live| live.uid == vnode.uid) {
        let without = |node: &ObjectMeta| {
            let held = node.finalizers.iter().flatten();
            let kept: Vec<&String> = held.filter(|one| *one != finalizer::VNODE).collect();
            let version = &node.resource_version;
            json!({"metadata": {"uid": node.uid, "resourceVersion": version, "finalizers": kept}})
        };
        let path = paths::node(name);
        change(&live, &mut Patching { computing, path, list: None, patch: &without }).await?;
    }
    delete(computing, &paths::lease(namespace::NODE_LEASE, name), None, None).await
}

/// Lets the originals of a kind go. Kinds that the cluster does not serve, or the role does not name, have none.
async fn release(
    computing: &Client,
    collection: &str,
    cluster_id: &str,
    left: &mut Leftovers,
) -> Result<(), ApplyError> {
    let held = format!("{collection}?labelSelector={}=true", keys::synced_by(cluster_id));
    let optional = !collection.starts_with("/api/v1/");
    let originals = match list_metadata(computing, &held, PAGE).await {
        Err(ApplyError::NotFound { .. } | ApplyError::Forbidden { .. }) if optional => return Ok(()),
        originals => originals?,
    };
    let (api, plural) = collection.rsplit_once('/').unwrap_or_default();
    for original in originals {
        let name = text(original.name.as_ref());
        let home = match &original.namespace {
            Some(home) => format!("{api}/namespaces/{home}/{plural}"),
            None => collection.to_owned(),
        };
        let copy = original.annotations.as_ref().and_then(|all| all.get(annotation::PHYSICAL_NAME));
        left.objects.push(format!("{plural}/{}", copy.map_or(name, String::as_str)));
        let (path, list) = (format!("{home}/{name}"), Some(list_of(&home, name)));
        let patch = |now: &ObjectMeta| released(now, cluster_id);
        change(&original, &mut Patching { computing, path, list, patch: &patch }).await?;
    }
    Ok(())
}

/// Takes off what a Syncer put on an original. The marks that all clusters share go with the last of them.
fn released(original: &ObjectMeta, cluster_id: &str) -> Value {
    let own = keys::object_finalizer(cluster_id);
    let kept: Vec<&String> = original.finalizers.iter().flatten().filter(|one| **one != own).collect();
    let last = !kept.iter().any(|one| one.starts_with(finalizer::OBJECT_PREFIX));
    let (mut labels, mut annotations) = (Map::new(), Map::new());
    labels.insert(keys::synced_by(cluster_id), Value::Null);
    annotations.insert(keys::deleting(cluster_id), Value::Null);
    if last {
        labels.extend([label::MANAGED_BY, label::USED_BY_PV].map(|key| (key.to_owned(), Value::Null)));
        let shared = [annotation::PHYSICAL_NAME, annotation::PHYSICAL_NAMESPACE];
        annotations.extend(shared.map(|key| (key.to_owned(), Value::Null)));
    }
    json!({"metadata": {
        "uid": original.uid, "resourceVersion": original.resource_version,
        "labels": labels, "annotations": annotations, "finalizers": kept,
    }})
}

#[cfg(test)]
mod tests {
    use kubeocean_runtime::error::Verb;

    use super::*;

    fn original(finalizers: &[&str]) -> ObjectMeta {
        serde_json::from_value(json!({"name": "a", "uid": "u", "finalizers": finalizers})).unwrap()
    }

    #[test]
    fn what_clusters_share_goes_with_the_last_of_them() {
        let alone = released(&original(&["kubeocean.io/finalizer-a", "users/x"]), "a");
        assert_eq!(alone["metadata"]["finalizers"], json!(["users/x"]));
        let marks = alone["metadata"]["annotations"].as_object().unwrap();
        assert!(marks.contains_key(annotation::PHYSICAL_NAME) && marks.values().all(Value::is_null));
        let shared = released(&original(&["kubeocean.io/finalizer-a", "kubeocean.io/finalizer-b"]), "a");
        assert_eq!(shared["metadata"]["finalizers"], json!(["kubeocean.io/finalizer-b"]));
        assert_eq!(shared["metadata"]["labels"], json!({"kubeocean.io/synced-by-a": null}));
        assert_eq!(shared["metadata"]["annotations"], json!({"kubeocean.io/deleting-a": null}));
    }

    /// An object that others change a few times, and that may be made anew meanwhile.
    struct Busy {
        conflicts: usize,
        uid: &'static str,
        /// The versions that changes were made from.
        from: Vec<String>,
    }

    impl Changing for Busy {
        async fn change(&mut self, seen: &ObjectMeta) -> Result<(), ApplyError> {
            self.from.push(seen.resource_version.clone().unwrap_or_default());
            if self.from.len() <= self.conflicts {
                return Err(ApplyError::Conflict { verb: Verb::Patch, object: "nodes/a".to_owned() });
            }
            Ok(())
        }

        async fn look(&mut self) -> Result<Option<ObjectMeta>, ApplyError> {
            let version = self.from.len().to_string();
            let uid = Some(self.uid.to_owned());
            Ok(Some(ObjectMeta { uid, resource_version: Some(version), ..ObjectMeta::default() }))
        }
    }

    #[tokio::test]
    async fn what_others_change_is_changed_again_at_once() {
        let changed = async |conflicts: usize, uid: &'static str| {
            let first = json!({"uid": "u", "resourceVersion": "0"});
            let first: ObjectMeta = serde_json::from_value(first).unwrap();
            let mut object = Busy { conflicts, uid, from: Vec::new() };
            (change(&first, &mut object).await.is_ok(), object.from.join(" "))
        };
        assert_eq!(changed(0, "u").await, (true, "0".to_owned()));
        assert_eq!(changed(2, "u").await, (true, "0 1 2".to_owned()));
        assert_eq!(changed(2, "another").await, (true, "0".to_owned()), "it has gone");
        let (done, from) = changed(usize::MAX, "u").await;
        assert!(!done && from.split(' ').count() == ATTEMPTS, "{from}");
    }

    #[test]
    fn who_lost_the_cluster_id_takes_away_only_what_has_its_own_label() {
        let binding = |name: &str| Binding {
            name: name.to_owned(),
            cluster_id: "cls-a".to_owned(),
            ..Binding::default()
        };
        let node = |labels: Value| -> ObjectMeta {
            serde_json::from_value(json!({
                "name": "vnode-cls-a-n1", "uid": "u", "finalizers": [finalizer::VNODE], "labels": labels,
                "annotations": {annotation::PHYSICAL_NODE_NAME: "n1"},
            }))
            .unwrap()
        };
        let of = |name: &str| {
            node(json!({label::MANAGED_BY: label::MANAGED_BY_VALUE, label::CLUSTER_BINDING: name}))
        };
        let ours = |node: &ObjectMeta| {
            [Reach::ClusterId, Reach::OwnVnodes].map(|reach| is_ours(node, &binding("loser"), reach))
        };
        assert_eq!(ours(&of("loser")), [true, true]);
        assert_eq!(ours(&of("owner")), [false, false]);
        // One that lost its labels may be the owner's.
        assert_eq!(ours(&node(json!({}))), [true, false]);
    }

    #[test]
    fn leftovers_are_counted_and_some_are_named() {
        let pods = (0..9).map(|n| format!("p{n}")).collect();
        let objects = vec!["secrets/s0".to_owned(), "secrets/s1".to_owned()];
        let left =
            Leftovers { mount_namespace: "mount".to_owned(), cluster_id: "a".to_owned(), pods, objects };
        let told = left.to_string();
        assert!(told.contains("9 pods and 2 other objects may be left in its namespace mount"), "{told}");
        assert!(told.ends_with("pods/p8, secrets/s0"), "{told}");
    }
}
