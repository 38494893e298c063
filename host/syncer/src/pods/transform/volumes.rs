//! Volumes: downward API files that speak of the vpod (TD-604), and tokens of the computing cluster, which come from
//! a Secret instead of the worker's kubelet (TD-705).

use serde_json::{Value, json};

use super::{VpodIdentity, containers::rewrite_field};
use crate::pods::tokens::{secret_name, token_key};

/// Rewrites what is not a plain name in the volumes of `spec`.
pub(super) fn rewrite(spec: &mut Value, identity: &VpodIdentity) {
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        let name = volume.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if let Some(files) = volume.get_mut("downwardAPI") {
            rewrite_files(files);
        }
        let sources = volume.pointer_mut("/projected/sources").and_then(Value::as_array_mut);
        let mut tokens = 0;
        for source in sources.into_iter().flatten() {
            if let Some(files) = source.get_mut("downwardAPI") {
                rewrite_files(files);
            }
            let Some(fields) = source.as_object_mut() else { continue };
            if let Some(token) = fields.remove("serviceAccountToken").filter(Value::is_object) {
                let path = token.get("path").cloned().unwrap_or_default();
                let items = json!([{"key": token_key(tokens), "path": path}]);
                fields.insert(
                    "secret".to_owned(),
                    json!({"name": secret_name(identity, &name), "items": items}),
                );
                tokens += 1;
            }
        }
    }
}

fn rewrite_files(files: &mut Value) {
    for item in files.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(field) = item.get_mut("fieldRef") {
            rewrite_field(field);
        }
    }
}
