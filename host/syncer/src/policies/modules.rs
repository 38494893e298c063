//! Which modules a policy names, what a ConfigMap holds for one, and what outlives a failed fetch (PO-705 to PO-708).
//!
//! Pure. Out: the [`ModuleFetch`] the engine is given per entry.

use std::{fmt, path::Path, sync::Arc};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kubeocean_api::{
    keys::{label, namespace},
    policy::{ModuleRef, OciModule, PolicyEntry},
};
use kubeocean_engine::{LoadCode, LoadError, ModuleFetch, module_digest};
use kubeocean_registry::{Digest, Reference};
use serde_json::Value;

/// Default key in `binaryData`.
const DEFAULT_KEY: &str = "policy.wasm";

/// Where a module's bytes are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ModuleKey {
    /// In a ConfigMap of the worker cluster.
    ConfigMap(ConfigMapKey),
    /// In a registry.
    Oci(OciKey),
    /// Below the Syncer's development folder, with this relative path.
    File(String),
}

/// A module in a ConfigMap.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConfigMapKey {
    /// Namespace of the ConfigMap.
    pub namespace: String,
    /// Name of the ConfigMap.
    pub name: String,
    /// Key in `binaryData`.
    pub key: String,
}

/// A module in a registry. The digest belongs to it: what a tag means depends on what is wanted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OciKey {
    /// Name of the artifact.
    pub image: Reference,
    /// Secret with the credentials.
    pub pull_secret: Option<SecretKey>,
    /// Digest of the module that the policy names.
    pub digest: Option<Digest>,
}

/// A Secret of the worker cluster.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SecretKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl fmt::Display for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret {}/{}", self.namespace, self.name)
    }
}

/// What the Syncer's configuration says about places of modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModulePlaces {
    /// Where ConfigMaps and Secrets without a namespace are (`--policy-namespace`).
    pub default: String,
    /// Receives copies made for users of the computing cluster; never a source.
    pub mount: String,
    /// There is a development folder, so modules may be files.
    pub files: bool,
}

impl ModulePlaces {
    /// The usual namespace, and the binding's mount namespace.
    pub fn new(mount: &str) -> Self {
        Self { default: namespace::POLICIES.to_owned(), mount: mount.to_owned(), files: false }
    }

    /// A namespace that no user of the computing cluster writes to.
    fn safe(&self, named: Option<&String>) -> Result<String, ModuleFetch> {
        let place = named.unwrap_or(&self.default);
        if *place == self.mount {
            let message = format!("namespace {place} can be written by users of the computing cluster");
            return Err(refused(LoadCode::FetchForbidden, message));
        }
        Ok(place.clone())
    }
}

/// What a read gave.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The module, or why there is none.
    pub module: ModuleFetch,
    /// Why the module is only what was there before.
    pub stale: Option<LoadError>,
}

impl From<ModuleFetch> for Fetched {
    /// The latest word.
    fn from(module: ModuleFetch) -> Self {
        Self { module, stale: None }
    }
}

/// How an entry's module is obtained.
#[derive(Clone, Debug)]
pub enum Source {
    /// Comes with the binary.
    Builtin,
    /// Is fetched.
    Fetched(ModuleKey),
    /// Cannot be obtained.
    Refused(ModuleFetch),
}

pub(super) fn failed(code: LoadCode, message: impl Into<String>) -> ModuleFetch {
    ModuleFetch::Failed { code, message: message.into() }
}

fn refused(code: LoadCode, message: impl Into<String>) -> ModuleFetch {
    ModuleFetch::Refused { code, message: message.into() }
}

/// Source of an entry's module.
pub fn source(entry: &PolicyEntry, places: &ModulePlaces) -> Source {
    let ModuleRef { builtin, config_map, oci, file, digest } = &entry.module;
    let found = if builtin.is_some() {
        return Source::Builtin;
    } else if let Some(config_map) = config_map {
        places.safe(config_map.namespace.as_ref()).map(|namespace| {
            ModuleKey::ConfigMap(ConfigMapKey {
                namespace,
                name: config_map.name.clone(),
                key: config_map.key.clone().unwrap_or_else(|| DEFAULT_KEY.to_owned()),
            })
        })
    } else if let Some(oci) = oci {
        oci_key(oci, digest.as_deref(), places).map(ModuleKey::Oci)
    } else if let Some(file) = file {
        file_key(&file.path, places).map(ModuleKey::File)
    } else {
        Err(refused(LoadCode::ModuleNotFound, "the entry names no module"))
    };
    found.map_or_else(Source::Refused, Source::Fetched)
}

fn oci_key(oci: &OciModule, digest: Option<&str>, places: &ModulePlaces) -> Result<OciKey, ModuleFetch> {
    let image = oci.image.parse().map_err(|error| {
        refused(LoadCode::ModuleNotFound, format!("{:?} names no artifact: {error}", oci.image))
    })?;
    let digest = digest.map(str::parse).transpose();
    let digest =
        digest.map_err(|error| refused(LoadCode::DigestMismatch, format!("module.digest: {error}")))?;
    let pull_secret = match &oci.pull_secret {
        Some(secret) => {
            let namespace = places.safe(secret.namespace.as_ref())?;
            Some(SecretKey { namespace, name: secret.name.clone() })
        }
        None => None,
    };
    Ok(OciKey { image, pull_secret, digest })
}

fn file_key(path: &str, places: &ModulePlaces) -> Result<String, ModuleFetch> {
    if !places.files {
        let message = "modules in files need a Syncer with --policy-dev-dir";
        return Err(refused(LoadCode::FetchForbidden, message));
    }
    let inside = |part: std::path::Component<'_>| matches!(part, std::path::Component::Normal(_));
    if path.is_empty() || !Path::new(path).components().all(inside) {
        return Err(refused(LoadCode::FetchForbidden, format!("{path:?} is no relative path without ..")));
    }
    Ok(path.to_owned())
}

/// A copy made for a user of the computing cluster, which the user writes (PO-707).
pub(super) fn is_users_copy(object: &Value) -> bool {
    let labels = object.pointer("/metadata/labels");
    labels.and_then(|labels| labels.get(label::MANAGED_BY)).is_some_and(|by| by == label::MANAGED_BY_VALUE)
}

/// What the ConfigMap holds for `key`.
pub fn from_config_map(config_map: Option<&Value>, key: &ConfigMapKey) -> ModuleFetch {
    let Some(config_map) = config_map else {
        return failed(
            LoadCode::ModuleNotFound,
            format!("ConfigMap {}/{} not found", key.namespace, key.name),
        );
    };
    if is_users_copy(config_map) {
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
        Ok(bytes) => ModuleFetch::Ready(Arc::<[u8]>::from(bytes).into()),
        Err(error) => failed(LoadCode::FetchFailed, format!("binaryData of {:?}: {error}", key.key)),
    }
}

/// What holds after a fetch. A failed one does not take away bytes that are exactly what the policy names, and an outage
/// of a registry takes nothing away (PO-705).
pub fn keep_good(key: &ModuleKey, known: Option<&ModuleFetch>, new: Fetched, digests: &[String]) -> Fetched {
    let Some(ModuleFetch::Ready(module)) = known else { return new };
    let failure = match (&new.module, &new.stale) {
        (ModuleFetch::Failed { code, message }, _) => LoadError::new(*code, message),
        // A disk that was full has an older one.
        (ModuleFetch::Ready(_), Some(failure)) => failure.clone(),
        (ModuleFetch::Ready(_) | ModuleFetch::Pending | ModuleFetch::Refused { .. }, _) => return new,
    };
    let keep = match key {
        ModuleKey::ConfigMap(_) => digests.contains(&module_digest(&module.bytes)),
        ModuleKey::Oci(_) => failure.code.is_fetch(),
        ModuleKey::File(_) => false,
    };
    if keep { Fetched { module: ModuleFetch::Ready(module.clone()), stale: Some(failure) } } else { new }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kubeocean_engine::FetchedModule;
    use rstest::rstest;
    use serde_json::json;

    const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn key() -> ConfigMapKey {
        ConfigMapKey {
            namespace: "kubeocean-worker-system".into(),
            name: "m".into(),
            key: "policy.wasm".into(),
        }
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

    fn shown(module: &str, files: bool) -> String {
        let entry: PolicyEntry = serde_saphyr::from_str(&format!("{{name: e, module: {module}}}")).unwrap();
        match source(&entry, &ModulePlaces { files, ..ModulePlaces::new("lease-area") }) {
            Source::Builtin => "builtin".to_owned(),
            Source::Fetched(ModuleKey::ConfigMap(key)) => {
                format!("{}/{}/{}", key.namespace, key.name, key.key)
            }
            Source::Fetched(ModuleKey::Oci(key)) => {
                let secret = key.pull_secret.map(|secret| format!(" by {secret}")).unwrap_or_default();
                format!("{}{secret}{}", key.image, if key.digest.is_some() { " pinned" } else { "" })
            }
            Source::Fetched(ModuleKey::File(path)) => format!("file {path}"),
            Source::Refused(fetch) => format!("refused {:?}", code(&fetch).unwrap()),
        }
    }

    #[rstest]
    #[case("{builtin: time-windows}", "builtin")]
    #[case("{configMap: {name: m}}", "kubeocean-worker-system/m/policy.wasm")]
    #[case("{configMap: {name: m, namespace: n, key: k}}", "n/m/k")]
    #[case("{configMap: {name: m, namespace: lease-area}}", "refused FetchForbidden")]
    #[case("{oci: {image: example.com/p}}", "example.com/p:latest")]
    #[case("{oci: {image: policies/p}}", "refused ModuleNotFound")]
    #[case(
        "{oci: {image: 'r.io/p:1', pullSecret: {name: s}}}",
        "r.io/p:1 by Secret kubeocean-worker-system/s"
    )]
    #[case("{oci: {image: 'r.io/p:1', pullSecret: {name: s, namespace: n}}}", "r.io/p:1 by Secret n/s")]
    #[case(
        "{oci: {image: 'r.io/p:1', pullSecret: {name: s, namespace: lease-area}}}",
        "refused FetchForbidden"
    )]
    #[case(&format!("{{oci: {{image: 'r.io/p:1'}}, digest: '{HEX}'}}"), "r.io/p:1 pinned")]
    #[case("{oci: {image: 'r.io/p:1'}, digest: 'sha256:1'}", "refused DigestMismatch")]
    #[case("{file: {path: p}}", "refused FetchForbidden")]
    #[case("{}", "refused ModuleNotFound")]
    fn where_a_module_comes_from(#[case] module: &str, #[case] expected: &str) {
        assert_eq!(shown(module, false), expected);
    }

    #[rstest]
    #[case("a/p.wasm", "file a/p.wasm")]
    #[case("../p.wasm", "refused FetchForbidden")]
    #[case("a/../../p.wasm", "refused FetchForbidden")]
    #[case("/etc/passwd", "refused FetchForbidden")]
    #[case("", "refused FetchForbidden")]
    fn a_file_is_below_the_development_folder(#[case] path: &str, #[case] expected: &str) {
        assert_eq!(shown(&format!("{{file: {{path: '{path}'}}}}"), true), expected);
    }

    #[test]
    fn pinned_bytes_outlive_their_config_map() {
        let bytes: Arc<[u8]> = Arc::from(&b"\0asm"[..]);
        let ready = ModuleFetch::Ready(Arc::clone(&bytes).into());
        let config_map = ModuleKey::ConfigMap(key());
        let kept = |known: Option<&ModuleFetch>, digests: &[String]| {
            code(&keep_good(&config_map, known, failed(LoadCode::ModuleNotFound, "").into(), digests).module)
        };
        assert_eq!(kept(Some(&ready), &[module_digest(&bytes)]), None);
        assert_eq!(kept(Some(&ready), &[]), Some(LoadCode::ModuleNotFound));
        assert_eq!(kept(None, &[module_digest(&bytes)]), Some(LoadCode::ModuleNotFound));
    }

    #[test]
    fn an_outage_of_a_registry_takes_nothing_away_but_its_answer_does() {
        let image = "r.io/p:1".parse().unwrap();
        let oci = ModuleKey::Oci(OciKey { image, pull_secret: None, digest: None });
        let ready = ModuleFetch::Ready(FetchedModule::from(Arc::<[u8]>::from(&b"\0asm"[..])));
        let kept = |key: &ModuleKey, new| {
            let fetched = keep_good(key, Some(&ready), failed(new, "why").into(), &[]);
            let told = fetched.stale.map(|failure| (failure.code, failure.message));
            let expected = matches!(fetched.module, ModuleFetch::Ready(_)).then(|| (new, "why".to_owned()));
            assert_eq!(told, expected, "what is kept is known to be old");
            code(&fetched.module)
        };
        assert_eq!(kept(&oci, LoadCode::FetchFailed), None);
        assert_eq!(kept(&oci, LoadCode::FetchForbidden), None);
        assert_eq!(kept(&oci, LoadCode::SignatureRejected), Some(LoadCode::SignatureRejected));
        let file = ModuleKey::File("p".into());
        assert_eq!(kept(&file, LoadCode::ModuleNotFound), Some(LoadCode::ModuleNotFound));
    }

    #[test]
    fn what_the_disk_has_does_not_replace_what_memory_has() {
        let image = "r.io/p:1".parse().unwrap();
        let oci = ModuleKey::Oci(OciKey { image, pull_secret: None, digest: None });
        let of = |bytes: &'static [u8]| ModuleFetch::Ready(Arc::<[u8]>::from(bytes).into());
        let bytes = |stale: Option<LoadError>| {
            let new = Fetched { module: of(b"old"), stale };
            match keep_good(&oci, Some(&of(b"new")), new, &[]).module {
                ModuleFetch::Ready(module) => module.bytes,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(*bytes(Some(LoadError::new(LoadCode::FetchFailed, "down"))), *b"new");
        assert_eq!(*bytes(None), *b"old", "the registry says so");
    }
}
