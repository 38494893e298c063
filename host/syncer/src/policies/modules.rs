//! Which modules a policy names, and what a ConfigMap holds for one (PO-706 to PO-708).
//!
//! Pure. Out: the [`ModuleFetch`] the engine is given per entry.

use std::sync::Arc;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kubeocean_api::{
    keys::{label, namespace},
    policy::{ModuleRef, PolicyEntry},
};
use kubeocean_engine::{LoadCode, ModuleFetch, module_digest};
use serde_json::Value;

/// Default key in `binaryData`.
const DEFAULT_KEY: &str = "policy.wasm";

/// Where a module's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModuleKey {
    /// Namespace of the ConfigMap.
    pub namespace: String,
    /// Name of the ConfigMap.
    pub name: String,
    /// Key in `binaryData`.
    pub key: String,
}

/// Namespaces that matter for modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModuleNamespaces {
    /// Where ConfigMaps without a namespace are (`--policy-namespace`).
    pub default: String,
    /// Receives copies made for users of the computing cluster; never a source.
    pub mount: String,
}

impl ModuleNamespaces {
    /// The usual namespace, and the binding's mount namespace.
    pub fn new(mount: &str) -> Self {
        Self { default: namespace::POLICIES.to_owned(), mount: mount.to_owned() }
    }
}

/// How an entry's module is obtained.
#[derive(Clone, Debug)]
pub enum Source {
    /// Comes with the binary.
    Builtin,
    /// Is read from a ConfigMap.
    ConfigMap(ModuleKey),
    /// Cannot be obtained.
    Refused(ModuleFetch),
}

fn failed(code: LoadCode, message: impl Into<String>) -> ModuleFetch {
    ModuleFetch::Failed { code, message: message.into() }
}

fn refused(code: LoadCode, message: impl Into<String>) -> Source {
    Source::Refused(ModuleFetch::Refused { code, message: message.into() })
}

/// Source of an entry's module.
pub fn source(entry: &PolicyEntry, namespaces: &ModuleNamespaces) -> Source {
    let ModuleRef { builtin, config_map, oci, file, .. } = &entry.module;
    if builtin.is_some() {
        return Source::Builtin;
    }
    if let Some(config_map) = config_map {
        let place = config_map.namespace.clone().unwrap_or_else(|| namespaces.default.clone());
        if place == namespaces.mount {
            let message = format!("namespace {place} can be written by users of the computing cluster");
            return refused(LoadCode::FetchForbidden, message);
        }
        return Source::ConfigMap(ModuleKey {
            namespace: place,
            name: config_map.name.clone(),
            key: config_map.key.clone().unwrap_or_else(|| DEFAULT_KEY.to_owned()),
        });
    }
    let message = match (oci, file) {
        (Some(_), _) => "modules in OCI registries are not supported by this version",
        (_, Some(_)) => "modules in files need a policy development directory",
        _ => "the entry names no module",
    };
    refused(LoadCode::ModuleNotFound, message)
}

/// What the ConfigMap holds for `key`. A copy made for a user of the computing cluster is refused (PO-707).
pub fn from_config_map(config_map: Option<&Value>, key: &ModuleKey) -> ModuleFetch {
    let Some(config_map) = config_map else {
        return failed(
            LoadCode::ModuleNotFound,
            format!("ConfigMap {}/{} not found", key.namespace, key.name),
        );
    };
    let managed = config_map.pointer("/metadata/labels").and_then(|labels| labels.get(label::MANAGED_BY));
    if managed.is_some_and(|by| by == label::MANAGED_BY_VALUE) {
        let message = format!("ConfigMap {}/{} is a copy of a user's", key.namespace, key.name);
        return failed(LoadCode::FetchForbidden, message);
    }
    let Some(encoded) =
        config_map.get("binaryData").and_then(|data| data.get(&key.key)).and_then(Value::as_str)
    else {
        let message =
            format!("ConfigMap {}/{} has no key {:?} in binaryData", key.namespace, key.name, key.key);
        return failed(LoadCode::ModuleNotFound, message);
    };
    match STANDARD.decode(encoded) {
        Ok(bytes) => ModuleFetch::Ready(Arc::from(bytes)),
        Err(error) => failed(LoadCode::FetchFailed, format!("binaryData of {:?}: {error}", key.key)),
    }
}

/// A failed fetch does not take away bytes that are exactly what the policy names (PO-705).
pub fn keep_pinned(known: Option<&ModuleFetch>, new: ModuleFetch, digests: &[String]) -> ModuleFetch {
    match (known, &new) {
        (Some(ModuleFetch::Ready(bytes)), ModuleFetch::Failed { .. })
            if digests.contains(&module_digest(bytes)) =>
        {
            ModuleFetch::Ready(Arc::clone(bytes))
        }
        _ => new,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;
    use serde_json::json;

    fn key() -> ModuleKey {
        ModuleKey { namespace: "kubeocean-worker-system".into(), name: "m".into(), key: "policy.wasm".into() }
    }

    fn code(fetch: &ModuleFetch) -> Option<LoadCode> {
        match fetch {
            ModuleFetch::Failed { code, .. } | ModuleFetch::Refused { code, .. } => Some(*code),
            ModuleFetch::Ready(_) | ModuleFetch::Pending => None,
        }
    }

    #[rstest]
    #[case::there(Some(json!({"binaryData": {"policy.wasm": "AGFzbQ=="}})), None)]
    #[case::gone(None, Some(LoadCode::ModuleNotFound))]
    #[case::other_key(Some(json!({"binaryData": {"x": "AGFzbQ=="}})), Some(LoadCode::ModuleNotFound))]
    #[case::text_is_no_module(Some(json!({"data": {"policy.wasm": "AGFzbQ=="}})), Some(LoadCode::ModuleNotFound))]
    #[case::broken(Some(json!({"binaryData": {"policy.wasm": "%"}})), Some(LoadCode::FetchFailed))]
    #[case::a_users_copy(Some(json!({"metadata": {"labels": {label::MANAGED_BY: "kubeocean"}}, "binaryData": {"policy.wasm": "AGFzbQ=="}})), Some(LoadCode::FetchForbidden))]
    fn what_a_config_map_gives(#[case] config_map: Option<Value>, #[case] expected: Option<LoadCode>) {
        assert_eq!(code(&from_config_map(config_map.as_ref(), &key())), expected);
    }

    #[rstest]
    #[case("{builtin: time-windows}", "builtin")]
    #[case("{configMap: {name: m}}", "kubeocean-worker-system/m/policy.wasm")]
    #[case("{configMap: {name: m, namespace: n, key: k}}", "n/m/k")]
    #[case("{configMap: {name: m, namespace: lease-area}}", "refused FetchForbidden")]
    #[case("{oci: {image: example.com/p}}", "refused ModuleNotFound")]
    #[case("{file: {path: p}}", "refused ModuleNotFound")]
    fn where_a_module_comes_from(#[case] module: &str, #[case] expected: &str) {
        let entry: PolicyEntry = serde_saphyr::from_str(&format!("{{name: e, module: {module}}}")).unwrap();
        let shown = match source(&entry, &ModuleNamespaces::new("lease-area")) {
            Source::Builtin => "builtin".to_owned(),
            Source::ConfigMap(key) => format!("{}/{}/{}", key.namespace, key.name, key.key),
            Source::Refused(fetch) => format!("refused {:?}", code(&fetch).unwrap()),
        };
        assert_eq!(shown, expected);
    }

    #[test]
    fn pinned_bytes_outlive_their_config_map() {
        let bytes: Arc<[u8]> = Arc::from(&b"\0asm"[..]);
        let ready = ModuleFetch::Ready(Arc::clone(&bytes));
        let lost = || failed(LoadCode::ModuleNotFound, "");
        assert_eq!(code(&keep_pinned(Some(&ready), lost(), &[module_digest(&bytes)])), None);
        assert_eq!(code(&keep_pinned(Some(&ready), lost(), &[])), Some(LoadCode::ModuleNotFound));
        assert_eq!(
            code(&keep_pinned(None, lost(), &[module_digest(&bytes)])),
            Some(LoadCode::ModuleNotFound)
        );
    }
}
