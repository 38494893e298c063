//! The Secrets a PersistentVolume names, for its driver or for an in-tree plugin (TD section 10 *Do better*).

use serde_json::{Map, Value};

use crate::objects::{ObjectKind, ObjectRef};

/// One place of a volume's spec that names a Secret.
struct Site {
    /// Member of the spec: the plugin.
    plugin: &'static str,
    /// Member of the plugin that holds name and namespace; `None`: the plugin itself does.
    holder: Option<&'static str>,
    name: &'static str,
    namespace: &'static str,
}

const fn reference(plugin: &'static str, holder: &'static str) -> Site {
    Site { plugin, holder: Some(holder), name: "name", namespace: "namespace" }
}

const SITES: &[Site] = &[
    reference("csi", "nodePublishSecretRef"),
    reference("csi", "nodeStageSecretRef"),
    reference("csi", "controllerPublishSecretRef"),
    reference("csi", "controllerExpandSecretRef"),
    reference("csi", "nodeExpandSecretRef"),
    reference("cephfs", "secretRef"),
    reference("cinder", "secretRef"),
    reference("flexVolume", "secretRef"),
    reference("iscsi", "secretRef"),
    reference("rbd", "secretRef"),
    reference("scaleIO", "secretRef"),
    reference("storageos", "secretRef"),
    Site { plugin: "azureFile", holder: None, name: "secretName", namespace: "secretNamespace" },
];

/// Every Secret the volume names, once. A reference without namespace means that of the claim.
pub(super) fn secrets(spec: &Value, claim_namespace: &str) -> Vec<ObjectRef> {
    let mut found = Vec::new();
    for site in SITES {
        let holder = spec.get(site.plugin).and_then(|plugin| match site.holder {
            Some(holder) => plugin.get(holder),
            None => Some(plugin),
        });
        let Some(secret) = holder.and_then(Value::as_object).and_then(|it| named(site, it, claim_namespace))
        else {
            continue;
        };
        if !found.contains(&secret) {
            found.push(secret);
        }
    }
    found
}

/// Makes every reference one to the copy in `mount_namespace`.
pub(super) fn rewrite(
    spec: &mut Map<String, Value>,
    claim_namespace: &str,
    mount_namespace: &str,
    place_of: &dyn Fn(&ObjectRef) -> String,
) {
    for site in SITES {
        let holder = spec.get_mut(site.plugin).and_then(|plugin| match site.holder {
            Some(holder) => plugin.get_mut(holder),
            None => Some(plugin),
        });
        let Some(holder) = holder.and_then(Value::as_object_mut) else { continue };
        if let Some(secret) = named(site, holder, claim_namespace) {
            holder.insert(site.name.to_owned(), place_of(&secret).into());
            holder.insert(site.namespace.to_owned(), mount_namespace.into());
        }
    }
}

fn named(site: &Site, holder: &Map<String, Value>, claim_namespace: &str) -> Option<ObjectRef> {
    let text = |field: &str| holder.get(field).and_then(Value::as_str).filter(|text| !text.is_empty());
    let namespace = text(site.namespace).unwrap_or(claim_namespace);
    Some(ObjectRef::new(ObjectKind::Secret, namespace, text(site.name)?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn exactly_the_found_secrets_are_renamed() {
        for site in SITES {
            let reference = json!({(site.name): "keys", (site.namespace): "vault"});
            let plugin = match site.holder {
                Some(holder) => json!({(holder): reference, "other": "kept"}),
                None => reference,
            };
            let mut spec = json!({(site.plugin): plugin, "capacity": {"storage": "1Gi"}});
            let keys = ObjectRef::new(ObjectKind::Secret, "vault", "keys");
            assert_eq!(secrets(&spec, "team"), std::slice::from_ref(&keys), "{spec}");
            let fields = spec.as_object_mut().unwrap();
            rewrite(fields, "team", "mount", &|secret| format!("copy-of-{}", secret.key.name));
            let renamed = ObjectRef::new(ObjectKind::Secret, "mount", "copy-of-keys");
            assert_eq!(secrets(&spec, "team"), [renamed], "{spec}");
        }
    }

    #[test]
    fn a_secret_named_twice_is_one_and_one_without_namespace_is_the_claims() {
        let spec = json!({
            "csi": {
                "nodePublishSecretRef": {"name": "keys", "namespace": "vault"},
                "nodeStageSecretRef": {"name": "keys", "namespace": "vault"},
                "controllerExpandSecretRef": {"name": ""},
            },
            "azureFile": {"secretName": "azure", "secretNamespace": null},
        });
        let found: Vec<_> = secrets(&spec, "team").iter().map(ToString::to_string).collect();
        assert_eq!(found, ["Secret vault/keys", "Secret team/azure"]);
    }
}
