//! PersistentVolumes (TD-1014, TD-1015 and TD section 10 *Do better*).
//!
//! The copy stands for the same storage. It is kept for the copy of its claim and for nobody else, and the worker never
//! deletes what is behind it.

use kubeocean_api::{keys::label, name::phys_name};
use serde_json::{Map, Value, json};

use super::{
    Around, Change, Content, MappedKind, Needs, Neighbour, Reach, Scope, Weight, WorkerCopy, is_larger,
    is_storage_bookkeeping, node_affinity, storage_class, text, volume_secrets, volume_source,
};
use crate::objects::{ObjectKind, ObjectRef};

const CAPACITY: &str = "/spec/capacity/storage";
const RECLAIM_POLICY: &str = "persistentVolumeReclaimPolicy";

/// `v1` PersistentVolume.
pub(in crate::objects) struct Volumes;

/// The claim a volume is bound to.
fn claim_of(volume: &Value) -> Option<ObjectRef> {
    let (namespace, name) = (text(volume, "/spec/claimRef/namespace")?, text(volume, "/spec/claimRef/name")?);
    Some(ObjectRef::new(ObjectKind::PersistentVolumeClaim, namespace, name))
}

impl MappedKind for Volumes {
    fn name(&self) -> &'static str {
        "PersistentVolume"
    }
    fn plural(&self) -> &'static str {
        "persistentvolumes"
    }
    fn reach(&self) -> Reach {
        Reach::Cluster
    }
    fn weight(&self) -> Weight {
        Weight::Volume
    }
    fn dependent(&self) -> Option<ObjectKind> {
        Some(ObjectKind::PersistentVolumeClaim)
    }
    /// A volume is bound to one claim, and bindings with different mount namespaces have one each; computing clusters
    /// may have volumes of one name. Whoever finds the first name taken uses the second, which is its own (TD-1016).
    fn places(&self, object: &ObjectRef, scope: &Scope) -> Vec<String> {
        vec![phys_name(&object.key.name, &scope.mount_namespace), object.copy_name()]
    }
    /// Marks on a volume can be forged by whoever may write volumes; the namespace of its claim is bounded by the worker's
    /// admission.
    fn is_elsewhere(&self, copy: &WorkerCopy, scope: &Scope) -> bool {
        let namespace = copy.content.text("/spec/claimRef/namespace");
        namespace.is_some_and(|namespace| namespace != scope.mount_namespace)
    }
    fn bearing(&self, original: &Value) -> Content {
        self.stored(original)
    }
    /// Of the same storage.
    fn is_of(&self, bearing: &Content, copy: &Content, _: &Scope) -> bool {
        volume_source::is_same(bearing, copy)
    }
    fn is_of_a_node(&self, original: &Value) -> bool {
        volume_source::is_of_a_node(original)
    }
    fn stays(&self, annotation: &str) -> bool {
        is_storage_bookkeeping(annotation)
    }
    fn neighbour(&self, original: &Value) -> Option<Neighbour> {
        claim_of(original).map(Neighbour::Copy)
    }
    fn needs(&self, _: &ObjectRef, original: &Value, _: Option<&Value>) -> Needs {
        match claim_of(original) {
            Some(claim) => {
                let spec = original.get("spec").unwrap_or(&Value::Null);
                Needs::Objects(volume_secrets::secrets(spec, &claim.key.namespace))
            }
            None => Needs::Unbound,
        }
    }
    fn wanted(&self, original: &Value, around: &Around<'_>) -> Content {
        let mut spec = original.get("spec").and_then(Value::as_object).cloned().unwrap_or_default();
        // A class of attributes is an object of its own cluster.
        spec.remove("volumeAttributesClassName");
        spec.insert("storageClassName".to_owned(), storage_class(original).into());
        spec.insert(RECLAIM_POLICY.to_owned(), "Retain".into());
        if let Some(claim) = claim_of(original) {
            let mount_namespace = &around.scope.mount_namespace;
            let reference = json!({
                "apiVersion": "v1", "kind": "PersistentVolumeClaim",
                "namespace": mount_namespace, "name": claim.copy_name(),
            });
            spec.insert("claimRef".to_owned(), reference);
            volume_secrets::rewrite(&mut spec, &claim.key.namespace, mount_namespace, around.place_of);
        }
        node_affinity::generalise(&mut spec);
        Content::from(Map::from_iter([("spec".to_owned(), spec.into())]))
    }
    fn stored(&self, object: &Value) -> Content {
        Content::of(object, &["spec"])
    }
    /// The storage itself cannot be changed; what can is compared.
    fn change(&self, wanted: &Content, copy: &WorkerCopy, around: &Around<'_>) -> Change {
        let stored = &copy.content;
        // A copy never changes what storage it stands for, so somebody else made it and stamped it as ours.
        if !volume_source::is_same(wanted, stored) {
            return Change::Replace;
        }
        // It cannot be changed, and nobody can be using such a copy.
        if stored.get("/spec/nodeAffinity").is_some_and(node_affinity::names_vnodes) {
            return Change::Replace;
        }
        let mut spec = Map::new();
        if is_larger(wanted, stored, CAPACITY) {
            spec.insert("capacity".to_owned(), json!({"storage": wanted.text(CAPACITY)}));
        }
        for field in [RECLAIM_POLICY, "mountOptions"] {
            let pointer = format!("/spec/{field}");
            let value = wanted.get(&pointer);
            if value != stored.get(&pointer) {
                spec.insert(field.to_owned(), value.cloned().unwrap_or_default());
            }
        }
        let differs = |field: &str| {
            let pointer = format!("/spec/claimRef/{field}");
            wanted.text(&pointer) != stored.text(&pointer)
        };
        // A claim that was made anew under its name is not the one the volume was bound to.
        let bound = stored.text("/spec/claimRef/uid");
        let present = around.neighbour.filter(|claim| is_managed(claim));
        let stale = bound.is_some_and(|uid| present.is_none_or(|it| text(it, "/metadata/uid") != Some(uid)));
        if differs("namespace") || differs("name") || stale {
            let mut reference = wanted.get("/spec/claimRef").cloned().unwrap_or_default();
            if let Some(fields) = reference.as_object_mut() {
                fields.extend(["uid", "resourceVersion"].map(|field| (field.to_owned(), Value::Null)));
            }
            spec.insert("claimRef".to_owned(), reference);
        }
        if spec.is_empty() {
            return Change::None;
        }
        Change::Patch(Map::from_iter([("spec".to_owned(), spec.into())]))
    }
}

fn is_managed(object: &Value) -> bool {
    let labels = object.pointer("/metadata/labels");
    labels.and_then(|all| all.get(label::MANAGED_BY)).is_some_and(|value| value == label::MANAGED_BY_VALUE)
}
