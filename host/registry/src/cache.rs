//! Artifacts on disk, so that a Syncer that starts while a registry is down has its modules (PO-704, PO-705).
//!
//! Nothing here is believed: what is read passes [`crate::accept()`] like something that was fetched, signatures included.
//! Layout: `<sha256 of the module>.wasm`, and `<sha256 of the name and pin>.json` with the rest.

use std::path::Path;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kubeocean_private_folder::{FolderError, PrivateFolder, is_hex};
use serde::{Deserialize, Serialize};

use crate::{
    accept::Bundle, artifact::MAX_MANIFEST_BYTES, digest::Digest, reference::Reference,
    signature::SignedPayload,
};

/// Bytes of all files together; the least recently used go first.
const MAX_CACHE_BYTES: u64 = 256 << 20;
/// Most bytes of the file about one artifact.
const MAX_RECORD_BYTES: u64 = 8 * MAX_MANIFEST_BYTES;

/// See the module documentation.
#[derive(Clone, Debug)]
pub struct BundleCache {
    folder: PrivateFolder,
}

#[derive(Serialize, Deserialize)]
struct Record {
    image: String,
    module: String,
    manifest: String,
    signatures: Vec<(String, String)>,
}

impl BundleCache {
    /// Makes the folder if it is missing, with mode 700.
    pub fn open(folder: &Path) -> Result<Self, FolderError> {
        Ok(Self { folder: PrivateFolder::open(folder, is_kept)? })
    }

    /// What was kept for an artifact and a pin. Anything odd is nothing.
    pub fn get(&self, reference: &Reference, pin: Option<Digest>) -> Option<Bundle> {
        let record = self.folder.read(&record_name(reference, pin), MAX_RECORD_BYTES)?;
        let record: Record = serde_json::from_slice(&record).ok()?;
        if record.image != reference.to_string() {
            return None;
        }
        let digest: Digest = record.module.parse().ok()?;
        let module = self.folder.read(&module_name(digest), MAX_CACHE_BYTES)?;
        let decoded = |text: &str| STANDARD.decode(text).ok();
        let signatures = record.signatures.iter().map(|(payload, signature)| {
            Some(SignedPayload { payload: decoded(payload)?, signature: decoded(signature)? })
        });
        Some(Bundle {
            manifest: decoded(&record.manifest)?,
            module: module.into(),
            signatures: signatures.collect::<Option<_>>()?,
            incomplete: None,
        })
    }

    /// Keeps an artifact. The module is there before what names it.
    pub fn put(&self, reference: &Reference, pin: Option<Digest>, bundle: &Bundle) -> std::io::Result<()> {
        let digest = Digest::of(&bundle.module);
        let encoded = |bytes: &[u8]| STANDARD.encode(bytes);
        let record = Record {
            image: reference.to_string(),
            module: digest.to_string(),
            manifest: encoded(&bundle.manifest),
            signatures: bundle
                .signatures
                .iter()
                .map(|signed| (encoded(&signed.payload), encoded(&signed.signature)))
                .collect(),
        };
        self.folder.write(&module_name(digest), &bundle.module)?;
        self.folder.write(&record_name(reference, pin), &serde_json::to_vec(&record)?)?;
        self.folder.keep_below(MAX_CACHE_BYTES)
    }
}

fn is_kept(name: &str) -> bool {
    let digest = name.strip_suffix(".wasm").or_else(|| name.strip_suffix(".json"));
    digest.is_some_and(|digest| digest.len() == 64 && is_hex(digest))
}

fn module_name(digest: Digest) -> String {
    format!("{}.wasm", digest.hex())
}

fn record_name(reference: &Reference, pin: Option<Digest>) -> String {
    let pin = pin.map(|pin| pin.to_string()).unwrap_or_default();
    format!("{}.json", Digest::of(format!("{reference} {pin}").as_bytes()).hex())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs, sync::Arc};

    fn bundle() -> Bundle {
        let signatures = vec![SignedPayload { payload: b"p".to_vec(), signature: b"s".to_vec() }];
        Bundle { manifest: b"{}".to_vec(), module: Arc::from(&b"\0asm"[..]), signatures, incomplete: None }
    }

    fn reference() -> Reference {
        "r.example/p:1".parse().unwrap()
    }

    #[test]
    fn what_is_kept_is_found_again_by_name_and_pin() {
        let home = tempfile::tempdir().unwrap();
        let cache = BundleCache::open(&home.path().join("a/b")).unwrap();
        let pin = Some(Digest::of(b"\0asm"));
        assert_eq!(cache.get(&reference(), pin), None);
        cache.put(&reference(), pin, &bundle()).unwrap();
        assert_eq!(cache.get(&reference(), pin), Some(bundle()));
        assert_eq!(cache.get(&reference(), None), None);
        assert_eq!(cache.get(&reference().with_tag("2"), pin), None);
        for name in [module_name(Digest::of(b"m")), record_name(&reference(), pin)] {
            assert!(is_kept(&name), "{name}");
        }
        assert!(!is_kept("night-gpu.wasm") && !is_kept("package.json"), "a folder of modules is no cache");
        let again = BundleCache::open(&home.path().join("a/b")).unwrap();
        assert_eq!(again.get(&reference(), pin), Some(bundle()));
    }

    #[test]
    fn half_a_record_and_a_module_that_is_gone_are_nothing() {
        let home = tempfile::tempdir().unwrap();
        let cache = BundleCache::open(&home.path().join("c")).unwrap();
        cache.put(&reference(), None, &bundle()).unwrap();
        let record = cache.folder.path(&record_name(&reference(), None));
        let text = fs::read(&record).unwrap();
        fs::write(&record, &text[..text.len() / 2]).unwrap();
        assert_eq!(cache.get(&reference(), None), None, "half a record");
        fs::write(&record, &text).unwrap();
        assert_eq!(cache.get(&reference(), None), Some(bundle()));
        cache.folder.remove(&module_name(Digest::of(b"\0asm"))).unwrap();
        assert_eq!(cache.get(&reference(), None), None, "no module");
    }
}
