//! Metadata of a ppod (TD-507): what the user put on the vpod, under our identity, back reference and stamps.

use std::collections::BTreeMap;

use kubeocean_api::{
    keys::{self, annotation, label},
    name::phys_name,
};
use serde_json::{Value, json};

use super::{TransformContext, VpodIdentity};
use crate::pods::in_place::Mutable;

/// Labels of an object that go to the other cluster: all but our own bookkeeping.
pub fn travelling_labels(object: &Value) -> BTreeMap<String, String> {
    travelling(object, "/metadata/labels")
}

/// Annotations of an object that go to the other cluster: all but our own bookkeeping and kubectl's copy of the manifest.
pub fn travelling_annotations(object: &Value) -> BTreeMap<String, String> {
    travelling(object, "/metadata/annotations")
}

fn travelling(object: &Value, pointer: &str) -> BTreeMap<String, String> {
    let entries = object.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
    entries
        .filter(|(key, _)| !keys::is_internal(key) && key.as_str() != annotation::LAST_APPLIED)
        .filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned())))
        .collect()
}

pub(super) fn metadata(vpod: &Value, identity: &VpodIdentity, ctx: &TransformContext<'_>) -> Value {
    let mut labels = travelling_labels(vpod);
    let own_labels = [
        (label::MANAGED_BY, label::MANAGED_BY_VALUE),
        (label::CLUSTER_BINDING, ctx.binding),
        (label::VIRTUAL_NAMESPACE, &*identity.key.namespace),
        (label::WORKLOAD_TYPE, ctx.workload_type),
        (label::WORKLOAD_NAME, ctx.workload_name),
    ];
    labels.extend(own_labels.iter().filter(|(_, value)| !value.is_empty()).map(owned));

    let mut annotations = travelling_annotations(vpod);
    let vnode = vpod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or_default();
    let mutable = Mutable::of(vpod.get("spec").unwrap_or(&Value::Null)).encode();
    let own_annotations = [
        (annotation::EXPECTED_SPEC, mutable.as_str()),
        (annotation::VIRTUAL_POD_NAMESPACE, &*identity.key.namespace),
        (annotation::VIRTUAL_POD_NAME, &*identity.key.name),
        (annotation::VIRTUAL_POD_UID, identity.uid.as_str()),
        (annotation::VIRTUAL_NODE_NAME, vnode),
        (annotation::COMPUTING_CLUSTER_UID, ctx.computing_uid),
    ];
    annotations.extend(own_annotations.iter().map(owned));
    if let Some(expected) = ctx.expected_metadata {
        annotations.insert(annotation::EXPECTED_METADATA.to_owned(), expected.to_owned());
    }

    json!({
        "name": phys_name(&identity.key.name, &identity.key.namespace),
        "namespace": ctx.mount_namespace,
        "labels": labels,
        "annotations": annotations,
    })
}

fn owned((key, value): &(&str, &str)) -> (String, String) {
    ((*key).to_owned(), (*value).to_owned())
}
