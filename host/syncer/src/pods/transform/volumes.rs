//! Volumes: downward API files that speak of the vpod (TD-604), and tokens of the computing cluster, which come from
//! a Secret instead of the worker's kubelet (TD-705), and generic ephemeral volumes, whose claims exist already (TD section
//! 6 *Do better*).

use kubeocean_api::name::phys_name;
use serde_json::{Value, json};

use super::{VpodIdentity, containers::rewrite_field};
use crate::pods::{
    references::ephemeral_claim,
    tokens::{secret_name, token_key},
};

/// Rewrites what is not a plain name in the volumes of `spec`.
pub(super) fn rewrite(spec: &mut Value, identity: &VpodIdentity) {
    for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
        let name = volume.get("name").and_then(Value::as_str).unwrap_or_default().to_owned();
        if let Some(fields) = volume.as_object_mut()
            && fields.remove("ephemeral").is_some_and(|source| source.is_object())
        {
            // The computing cluster has made the claim; the worker would make another one.
            let claim = ephemeral_claim(&identity.key.name, &name);
            let copy = phys_name(&claim, &identity.key.namespace);
            fields.insert("persistentVolumeClaim".to_owned(), json!({"claimName": copy}));
        }
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

#[cfg(test)]
mod tests {
    use kubeocean_api::name::ObjectKey;

    use super::*;

    #[test]
    fn an_ephemeral_volume_is_the_claim_that_was_made_for_it() {
        let identity = VpodIdentity { key: ObjectKey::new("team", "web"), uid: "u".to_owned() };
        let mut spec = json!({"volumes": [
            {"name": "scratch", "ephemeral": {"volumeClaimTemplate": {"spec": {"accessModes": ["ReadWriteOnce"]}}}},
            {"name": "tmp", "emptyDir": {}},
        ]});
        rewrite(&mut spec, &identity);
        assert_eq!(
            spec["volumes"],
            json!([
                {"name": "scratch", "persistentVolumeClaim": {"claimName": phys_name("web-scratch", "team")}},
                {"name": "tmp", "emptyDir": {}},
            ])
        );
    }
}
