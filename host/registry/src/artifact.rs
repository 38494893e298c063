//! Manifest and config of a policy module (PO-1201, PO-1202).
//!
//! Pure. The same module and labels give the same bytes: keys are sorted, and no clock is read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::digest::Digest;

/// Media type of a manifest.
pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// Media type of a list of manifests.
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Media type of the config.
const CONFIG: &str = "application/vnd.wasm.config.v0+json";
/// Media type of the module.
pub const WASM_LAYER: &str = "application/wasm";
/// What other tools call the module.
const OTHER_WASM_LAYER: &str = "application/vnd.wasm.content.layer.v1+wasm";
/// Largest accepted manifest in bytes. Ours have 2 KiB.
pub(crate) const MAX_MANIFEST_BYTES: u64 = 1 << 20;

const TITLE: &str = "org.opencontainers.image.title";
const VERSION: &str = "org.opencontainers.image.version";

/// One blob as a manifest names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    pub(crate) media_type: String,
    pub(crate) digest: String,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
}

impl Descriptor {
    pub(crate) fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest: Digest::of(bytes).to_string(),
            size: bytes.len() as u64,
            annotations: BTreeMap::new(),
            artifact_type: None,
        }
    }
}

/// A manifest, or the parts of one that matter here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub(crate) schema_version: u32,
    #[serde(default)]
    pub(crate) media_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact_type: Option<String>,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) subject: Option<Descriptor>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

/// What a module says about itself, and where it comes from: hints for people (PO-1202).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Labels {
    /// The module's name.
    pub title: String,
    /// The module's version.
    pub version: String,
    /// What it does.
    pub description: String,
    /// Address of its source.
    pub source: Option<String>,
    /// Revision of its source.
    pub revision: Option<String>,
    /// RFC 3339; from the source's date, never from a clock.
    pub created: Option<String>,
    /// Decisions it makes: `lease`, `place`.
    pub decisions: Vec<String>,
    /// Digest of its settings schema.
    pub schema_digest: Option<Digest>,
    /// Interfaces it uses.
    pub imports: Vec<String>,
    /// Interfaces it offers.
    pub exports: Vec<String>,
}

/// What is pushed beside the module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// The config blob.
    pub config: Vec<u8>,
    /// The manifest.
    pub manifest: Vec<u8>,
    /// Its digest, which is what a signature signs.
    pub manifest_digest: Digest,
    /// Digest of the module, which is what a policy pins.
    pub module_digest: Digest,
}

/// Config and manifest of a module.
pub fn package(module: &[u8], labels: &Labels) -> Package {
    let module_digest = Digest::of(module);
    // Other tools require a date. The first second of the epoch says that none is known.
    let created = labels.created.as_deref().unwrap_or("1970-01-01T00:00:00Z");
    let config = canonical(&json!({
        "created": created,
        "architecture": "wasm",
        "os": "wasip2",
        "layerDigests": [module_digest.to_string()],
        "component": { "imports": labels.imports, "exports": labels.exports },
    }));
    let mut annotations = BTreeMap::from([
        (TITLE.to_owned(), labels.title.clone()),
        (VERSION.to_owned(), labels.version.clone()),
        ("org.opencontainers.image.description".to_owned(), labels.description.clone()),
        ("io.kubeocean.policy.abi".to_owned(), "1.0".to_owned()),
        ("io.kubeocean.policy.worlds".to_owned(), labels.decisions.join(",")),
    ]);
    let optional = [
        ("org.opencontainers.image.source", labels.source.clone()),
        ("org.opencontainers.image.revision", labels.revision.clone()),
        ("org.opencontainers.image.created", labels.created.clone()),
        ("io.kubeocean.policy.schema-digest", labels.schema_digest.map(|digest| digest.to_string())),
    ];
    annotations.extend(optional.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
    let manifest = Manifest {
        schema_version: 2,
        media_type: MANIFEST.to_owned(),
        artifact_type: None,
        config: Descriptor::of(CONFIG, &config),
        layers: vec![Descriptor::of(WASM_LAYER, module)],
        subject: None,
        annotations,
    };
    let manifest = canonical(&manifest);
    Package { manifest_digest: Digest::of(&manifest), config, manifest, module_digest }
}

/// JSON with sorted keys: `serde_json` keeps the order of a struct's fields and sorts maps.
pub(crate) fn canonical(value: &impl Serialize) -> Vec<u8> {
    // A value of strings, numbers, lists and maps with string keys always has a JSON form.
    serde_json::to_vec(value).unwrap_or_default()
}

/// Why a manifest is none of a policy module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArtifactError {
    /// No manifest at all.
    #[error("the manifest cannot be read: {0}")]
    Unreadable(String),
    /// An index of several manifests.
    #[error("this is an index of several artifacts; name one of them")]
    Index,
    /// Not one WebAssembly layer.
    #[error("a policy has exactly one layer of type {WASM_LAYER}, this artifact has {0}")]
    Layers(String),
    /// The layer has no usable digest.
    #[error("the layer's digest {0:?} is no SHA-256 digest")]
    Digest(String),
}

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Artifact {
    /// Digest of the module.
    pub module_digest: Digest,
    /// Bytes of the module.
    pub module_bytes: u64,
    /// Name it should have.
    pub title: Option<String>,
    /// Version it should have.
    pub version: Option<String>,
    /// All annotations.
    pub annotations: BTreeMap<String, String>,
}

/// Reads a manifest of a policy module.
pub fn parse_manifest(bytes: &[u8]) -> Result<Artifact, ArtifactError> {
    let value: serde_json::Value =
        serde_json::from_slice(bytes).map_err(|error| ArtifactError::Unreadable(error.to_string()))?;
    let is_index = value.get("manifests").is_some()
        || value.get("mediaType").and_then(serde_json::Value::as_str) == Some(INDEX);
    if is_index {
        return Err(ArtifactError::Index);
    }
    let manifest: Manifest =
        serde_json::from_value(value).map_err(|error| ArtifactError::Unreadable(error.to_string()))?;
    let [layer] = manifest.layers.as_slice() else {
        return Err(ArtifactError::Layers(format!("{} layers", manifest.layers.len())));
    };
    if ![WASM_LAYER, OTHER_WASM_LAYER].contains(&layer.media_type.as_str()) {
        return Err(ArtifactError::Layers(format!("one of type {:?}", layer.media_type)));
    }
    let module_digest = layer.digest.parse().map_err(|_| ArtifactError::Digest(layer.digest.clone()))?;
    let said = |key: &str| manifest.annotations.get(key).cloned();
    Ok(Artifact {
        module_digest,
        module_bytes: layer.size,
        title: said(TITLE),
        version: said(VERSION),
        annotations: manifest.annotations,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    fn labels() -> Labels {
        Labels {
            title: "night-gpu".into(),
            version: "1.2.0".into(),
            decisions: vec!["lease".into()],
            imports: vec!["kubeocean:policy/host@1.0.0".into()],
            exports: vec!["kubeocean:policy/lease@1.0.0".into()],
            ..Labels::default()
        }
    }

    #[test]
    fn the_same_module_gives_the_same_manifest() {
        let once = package(b"\0asm", &labels());
        assert_eq!(once, package(b"\0asm", &labels()));
        assert_ne!(once.manifest_digest, package(b"\0asn", &labels()).manifest_digest);
        let other = Labels { version: "1.2.1".into(), ..labels() };
        assert_ne!(once.manifest_digest, package(b"\0asm", &other).manifest_digest);
    }

    #[test]
    fn what_is_packed_is_read_back() {
        let packed = package(b"\0asm", &Labels { created: Some("2026-03-07T00:00:00Z".into()), ..labels() });
        let artifact = parse_manifest(&packed.manifest).unwrap();
        assert_eq!(artifact.module_digest, packed.module_digest);
        assert_eq!((artifact.module_bytes, artifact.title.as_deref()), (4, Some("night-gpu")));
        assert_eq!(artifact.version.as_deref(), Some("1.2.0"));
        assert_eq!(artifact.annotations["io.kubeocean.policy.worlds"], "lease");
        assert_eq!(artifact.annotations["org.opencontainers.image.created"], "2026-03-07T00:00:00Z");
        let config: serde_json::Value = serde_json::from_slice(&packed.config).unwrap();
        assert_eq!((&config["architecture"], &config["os"]), (&json!("wasm"), &json!("wasip2")));
        assert_eq!(config["layerDigests"], json!([packed.module_digest.to_string()]));
    }

    #[rstest]
    #[case::index(json!({"schemaVersion": 2, "manifests": []}), "index")]
    #[case::typed_index(json!({"schemaVersion": 2, "mediaType": INDEX}), "index")]
    #[case::no_layer(json!({"schemaVersion": 2, "config": config(), "layers": []}), "0 layers")]
    #[case::two_layers(json!({"schemaVersion": 2, "config": config(), "layers": [layer(WASM_LAYER), layer(WASM_LAYER)]}), "2 layers")]
    #[case::an_image(json!({"schemaVersion": 2, "config": config(), "layers": [layer("application/vnd.oci.image.layer.v1.tar+gzip")]}), "tar+gzip")]
    #[case::nothing(json!([]), "cannot be read")]
    fn no_policy(#[case] manifest: serde_json::Value, #[case] expected: &str) {
        let error = parse_manifest(manifest.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }

    #[test]
    fn the_layer_type_of_other_tools_is_accepted() {
        let manifest = json!({"schemaVersion": 2, "config": config(), "layers": [layer(OTHER_WASM_LAYER)]});
        assert_eq!(parse_manifest(manifest.to_string().as_bytes()).unwrap().title, None);
        let sha512 = json!({"mediaType": WASM_LAYER, "digest": "sha512:00", "size": 1});
        let manifest = json!({"schemaVersion": 2, "config": config(), "layers": [sha512]});
        let error = parse_manifest(manifest.to_string().as_bytes()).unwrap_err();
        assert_eq!(error, ArtifactError::Digest("sha512:00".into()));
    }

    fn config() -> serde_json::Value {
        json!({"mediaType": CONFIG, "digest": Digest::of(b"{}").to_string(), "size": 2})
    }

    fn layer(media_type: &str) -> serde_json::Value {
        json!({"mediaType": media_type, "digest": Digest::of(b"x").to_string(), "size": 1})
    }
}
