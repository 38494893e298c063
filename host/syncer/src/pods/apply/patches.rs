//! The bodies of merge patches.

use kubeocean_api::{
    keys::{annotation, label},
    name::ObjectKey,
};
use serde_json::{Map, Value, json};

use super::super::metadata::{KeyChanges, MetadataChange};

pub(super) fn preconditions(uid: &str, resource_version: &str) -> Value {
    json!({"uid": uid, "resourceVersion": resource_version})
}

pub(super) fn set_metadata(patch: &mut Value, change: &MetadataChange) {
    for (field, keys) in [("labels", &change.labels), ("annotations", &change.annotations)] {
        if !keys.is_empty() {
            patch["metadata"][field] = Value::Object(as_json(keys));
        }
    }
}

fn as_json(keys: &KeyChanges) -> Map<String, Value> {
    keys.iter().map(|(key, value)| (key.clone(), value.clone().map_or(Value::Null, Value::String))).collect()
}

pub(super) fn mapping_patch(uid: &str, resource_version: &str, ppod: &ObjectKey, clear_uid: bool) -> Value {
    let mut patch = json!({"metadata": preconditions(uid, resource_version)});
    patch["metadata"]["labels"] = json!({ label::MANAGED_BY: label::MANAGED_BY_VALUE });
    patch["metadata"]["annotations"] = json!({
        annotation::PHYSICAL_POD_NAMESPACE: &*ppod.namespace,
        annotation::PHYSICAL_POD_NAME: &*ppod.name,
    });
    if clear_uid {
        patch["metadata"]["annotations"][annotation::PHYSICAL_POD_UID] = Value::Null;
    }
    patch
}
