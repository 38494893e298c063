//! Artifacts on disk, so that a Syncer that starts while a registry is down has its modules (PO-704, PO-705).
//!
//! Nothing here is believed: what is read passes [`crate::accept()`] like something that was fetched, signatures included.
//! The folder is the process's own all the same (owner and mode are checked), because whoever can write there could take
//! a running policy away. Layout: `<sha256 of the module>.wasm`, and `<sha256 of the name and pin>.json` with the rest.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};

use crate::{
    accept::Bundle, artifact::MAX_MANIFEST_BYTES, digest::Digest, reference::Reference,
    signature::SignedPayload,
};

/// Bytes of all files together; the least recently used go first.
const MAX_CACHE_BYTES: u64 = 256 << 20;
/// Most bytes of the file about one artifact.
const MAX_RECORD_BYTES: u64 = 8 * MAX_MANIFEST_BYTES;

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// It cannot be made or read.
    #[error("{}", path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Others may write there.
    #[error("{} belongs to user {owner} with mode {mode:o}; it must be this process's own with mode 700", path.display())]
    NotPrivate {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its mode.
        mode: u32,
    },
}

/// See the module documentation.
#[derive(Clone, Debug)]
pub struct BundleCache {
    folder: PathBuf,
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
    pub fn open(folder: &Path) -> Result<Self, CacheError> {
        let failed = |source| CacheError::Io { path: folder.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let meta = fs::symlink_metadata(folder).map_err(failed)?;
        let (owner, mode) = (meta.uid(), meta.permissions().mode() & 0o7777);
        let ours = owner == rustix::process::geteuid().as_raw();
        if !(meta.is_dir() && ours && mode == 0o700) {
            return Err(CacheError::NotPrivate { path: folder.to_owned(), owner, mode });
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// What was kept for an artifact and a pin. Anything odd is nothing.
    pub fn get(&self, reference: &Reference, pin: Option<Digest>) -> Option<Bundle> {
        let path = self.record_path(reference, pin);
        let record: Record = serde_json::from_slice(&Self::read(&path, MAX_RECORD_BYTES)?).ok()?;
        if record.image != reference.to_string() {
            return None;
        }
        let digest: Digest = record.module.parse().ok()?;
        let module = Self::read(&self.module_path(digest), MAX_CACHE_BYTES)?;
        let decoded = |text: &str| STANDARD.decode(text).ok();
        let signatures = record.signatures.iter().map(|(payload, signature)| {
            Some(SignedPayload { payload: decoded(payload)?, signature: decoded(signature)? })
        });
        let bundle = Bundle {
            manifest: decoded(&record.manifest)?,
            module: module.into(),
            signatures: signatures.collect::<Option<_>>()?,
        };
        // Used now: it goes last.
        for path in [path, self.module_path(digest)] {
            let touched = fs::File::options()
                .append(true)
                .open(path)
                .and_then(|file| file.set_modified(SystemTime::now()));
            drop(touched);
        }
        Some(bundle)
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
        self.write(&self.module_path(digest), &bundle.module)?;
        self.write(&self.record_path(reference, pin), &serde_json::to_vec(&record)?)?;
        self.make_room()
    }

    fn module_path(&self, digest: Digest) -> PathBuf {
        self.folder.join(format!("{}.wasm", digest.hex()))
    }

    fn record_path(&self, reference: &Reference, pin: Option<Digest>) -> PathBuf {
        let pin = pin.map(|pin| pin.to_string()).unwrap_or_default();
        let key = Digest::of(format!("{reference} {pin}").as_bytes());
        self.folder.join(format!("{}.json", key.hex()))
    }

    /// A regular file of ours that nobody else may write.
    fn read(path: &Path, limit: u64) -> Option<Vec<u8>> {
        let file = fs::File::options().read(true).custom_flags(no_follow()).open(path).ok()?;
        let meta = file.metadata().ok()?;
        let ours =
            meta.uid() == rustix::process::geteuid().as_raw() && meta.permissions().mode() & 0o022 == 0;
        if !(meta.is_file() && ours && meta.len() <= limit) {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> std::io::Result<()> {
        let temporary = self.folder.join(format!(".{}-{:x}", std::process::id(), unique()));
        let written = fs::File::options().write(true).create_new(true).mode(0o600).open(&temporary).and_then(
            |mut file| {
                file.write_all(bytes)?;
                file.sync_all()?;
                fs::rename(&temporary, path)
            },
        );
        written.inspect_err(|_| drop(fs::remove_file(&temporary)))
    }

    /// Removes what was not used for longest, and what a process that died left half written.
    fn make_room(&self) -> std::io::Result<()> {
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            files.push((meta.modified()?, meta.len(), entry.path()));
        }
        files.sort();
        let mut all: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, bytes, path) in files {
            if all <= MAX_CACHE_BYTES {
                break;
            }
            fs::remove_file(path)?;
            all -= bytes;
        }
        Ok(())
    }
}

/// A link in place of a file is no file of ours.
fn no_follow() -> i32 {
    i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0)
}

/// A number no other write of this process has.
fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn bundle() -> Bundle {
        let signatures = vec![SignedPayload { payload: b"p".to_vec(), signature: b"s".to_vec() }];
        Bundle { manifest: b"{}".to_vec(), module: Arc::from(&b"\0asm"[..]), signatures }
    }

    fn reference() -> Reference {
        "r.example/p:1".parse().unwrap()
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
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
        let again = BundleCache::open(&home.path().join("a/b")).unwrap();
        assert_eq!(again.get(&reference(), pin), Some(bundle()));
    }

    #[test]
    fn a_folder_that_others_may_use_is_refused() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("open");
        fs::create_dir(&folder).unwrap();
        mode(&folder, 0o770);
        assert!(matches!(BundleCache::open(&folder), Err(CacheError::NotPrivate { mode: 0o770, .. })));
        mode(&folder, 0o700);
        BundleCache::open(&folder).unwrap();
        let link = home.path().join("link");
        std::os::unix::fs::symlink(&folder, &link).unwrap();
        assert!(BundleCache::open(&link).is_err(), "a link may point elsewhere tomorrow");
    }

    #[test]
    fn files_that_others_wrote_or_cut_are_nothing() {
        let home = tempfile::tempdir().unwrap();
        let cache = BundleCache::open(&home.path().join("c")).unwrap();
        cache.put(&reference(), None, &bundle()).unwrap();
        let (record, module) =
            (cache.record_path(&reference(), None), cache.module_path(Digest::of(b"\0asm")));
        mode(&module, 0o666);
        assert_eq!(cache.get(&reference(), None), None, "others may write it");
        mode(&module, 0o600);
        let text = fs::read(&record).unwrap();
        fs::write(&record, &text[..text.len() / 2]).unwrap();
        assert_eq!(cache.get(&reference(), None), None, "half a record");
        fs::write(&record, &text).unwrap();
        assert_eq!(cache.get(&reference(), None), Some(bundle()));
        fs::rename(&module, home.path().join("moved")).unwrap();
        std::os::unix::fs::symlink(home.path().join("moved"), &module).unwrap();
        assert_eq!(cache.get(&reference(), None), None, "a link");
    }
}
