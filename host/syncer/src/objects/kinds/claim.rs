//! PersistentVolumeClaims (TD-1013 and TD section 10 *Do better*).
//!
//! Only a bound claim is copied, after its volume. The copy names the copy of the volume, which in turn names the copy
//! of the claim, so that the worker's binder has no choice, and is of the volume's storage class, so that it gets no other
//! one. What made the computing cluster choose or fill the volume stays there.

use serde_json::{Map, Value, json};

use super::{
    Around, Change, Content, MappedKind, Needs, Neighbour, Scope, Weight, WorkerCopy, is_larger,
    is_storage_bookkeeping, storage_class, text,
};
use crate::objects::ObjectRef;

const REQUEST: &str = "/spec/resources/requests/storage";

/// What of a claim only means something in its own cluster.
const LOCAL_FIELDS: [&str; 5] =
    ["dataSource", "dataSourceRef", "selector", "volumeAttributesClassName", "storageClassName"];

/// `v1` PersistentVolumeClaim.
pub(in crate::objects) struct Claims;

/// The volume a claim says it is bound to.
fn volume_of(claim: &Value) -> Option<ObjectRef> {
    let bound = text(claim, "/status/phase") == Some("Bound");
    text(claim, "/spec/volumeName").filter(|_| bound).map(ObjectRef::volume)
}

/// Whether the volume says so too: whoever may write a claim can name any volume in it.
fn is_bound_to(volume: &Value, claim: &Value) -> bool {
    let same = |reference: &str, field: &str| {
        text(volume, &format!("/spec/claimRef/{reference}"))
            .is_some_and(|value| text(claim, &format!("/metadata/{field}")) == Some(value))
    };
    same("namespace", "namespace") && same("name", "name") && same("uid", "uid")
}

impl MappedKind for Claims {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaim"
    }
    fn plural(&self) -> &'static str {
        "persistentvolumeclaims"
    }
    fn weight(&self) -> Weight {
        Weight::Volume
    }
    fn bearing(&self, original: &Value) -> Content {
        self.stored(original)
    }
    /// Of the same volume.
    fn is_of(&self, bearing: &Content, copy: &Content, scope: &Scope) -> bool {
        let volume = bearing.text("/spec/volumeName").map(ObjectRef::volume);
        volume.is_none_or(|volume| {
            let copies = volume.kind.mapped().places(&volume, scope);
            copy.text("/spec/volumeName").is_some_and(|name| copies.iter().any(|copy| copy == name))
        })
    }
    fn stays(&self, annotation: &str) -> bool {
        is_storage_bookkeeping(annotation)
    }
    fn neighbour(&self, original: &Value) -> Option<Neighbour> {
        volume_of(original).map(Neighbour::Original)
    }
    fn needs(&self, _: &ObjectRef, original: &Value, volume: Option<&Value>) -> Needs {
        match (volume_of(original), volume) {
            // A volume that is missing is waited for as any other object.
            (Some(named), None) => Needs::Objects(vec![named]),
            (Some(named), Some(volume)) if is_bound_to(volume, original) => Needs::Objects(vec![named]),
            (Some(_), Some(_)) | (None, _) => Needs::Unbound,
        }
    }
    fn wanted(&self, original: &Value, around: &Around<'_>) -> Content {
        let mut spec = original.get("spec").and_then(Value::as_object).cloned().unwrap_or_default();
        for field in LOCAL_FIELDS {
            spec.remove(field);
        }
        let class = around.neighbour.map(storage_class).unwrap_or_default();
        // Empty is not absent: an absent class becomes the worker's default one.
        spec.insert("storageClassName".to_owned(), class.into());
        if let Some(volume) = volume_of(original) {
            spec.insert("volumeName".to_owned(), (around.place_of)(&volume).into());
        }
        Content::from(Map::from_iter([("spec".to_owned(), spec.into())]))
    }
    fn stored(&self, object: &Value) -> Content {
        Content::of(object, &["spec"])
    }
    fn change(&self, wanted: &Content, copy: &WorkerCopy, _: &Around<'_>) -> Change {
        let volume = |content: &Content| content.text("/spec/volumeName").map(str::to_owned);
        if volume(wanted) != volume(&copy.content) {
            return Change::Replace;
        }
        // Nothing else of a claim's spec can be changed.
        if is_larger(wanted, &copy.content, REQUEST) {
            let request = wanted.text(REQUEST);
            let spec = json!({"resources": {"requests": {"storage": request}}});
            return Change::Grow(Map::from_iter([("spec".to_owned(), spec)]));
        }
        Change::None
    }
}
