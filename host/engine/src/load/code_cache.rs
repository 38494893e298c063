//! Machine code on disk, so that a Syncer that starts again compiles nothing (PO-905).
//!
//! In: digests of modules whose bytes are at hand and were checked. Out: code that a compiler of this very program and
//! configuration made of them. To load code is to trust it: the folder is this process's alone, and what does not fit is
//! compiled anew. Layout: `<sha256 of the module>-<fingerprint>.cwasm`.

use std::hash::{Hash, Hasher};
use std::path::PathBuf;

use kubeocean_private_folder::{PrivateFolder, is_hex};
use sha2::{Digest as _, Sha256};

use super::cache::Digest;

/// Bytes of all code together; the least recently used goes first.
const MAX_CACHE_BYTES: u64 = 256 << 20;

/// See the module documentation.
#[derive(Debug)]
pub(crate) struct CodeCache {
    folder: PrivateFolder,
    /// Of the runtime, its configuration, the machine and this program's version.
    fingerprint: String,
}

impl CodeCache {
    /// Uses the first of these folders that can be used; without one nothing is kept.
    pub(crate) fn open(folders: &[PathBuf], engine: &wasmtime::Engine) -> Option<Self> {
        let folder = folders.iter().find_map(|folder| {
            let opened = PrivateFolder::open_trusted(folder, is_kept);
            if let Err(error) = &opened {
                let cause = std::error::Error::source(error).map(ToString::to_string);
                tracing::warn!(%error, cause, "compiled policy modules are not kept there");
            }
            opened.ok()
        })?;
        Some(Self { folder, fingerprint: fingerprint(engine) })
    }

    /// Whether there seems to be code of a module.
    pub(crate) fn has(&self, module: Digest) -> bool {
        self.folder.path(&self.name(module)).is_file()
    }

    /// The code of a module.
    pub(crate) fn get(&self, module: Digest) -> Option<Vec<u8>> {
        self.folder.read(&self.name(module), MAX_CACHE_BYTES)
    }

    /// Keeps the code of a module. A disk that is full costs the time of the next start, nothing else.
    pub(crate) fn put(&self, module: Digest, code: &[u8]) {
        let kept = self.folder.write(&self.name(module), code);
        if let Err(error) = kept.and_then(|()| self.folder.keep_below(MAX_CACHE_BYTES)) {
            tracing::warn!(%error, "the code of a policy module is not kept");
        }
    }

    /// What was kept is of no use.
    pub(crate) fn forget(&self, module: Digest) {
        // Where it cannot be removed it is found useless again.
        drop(self.folder.remove(&self.name(module)));
    }

    fn name(&self, module: Digest) -> String {
        format!("{}-{}.cwasm", module.hex(), self.fingerprint)
    }
}

fn is_kept(name: &str) -> bool {
    let name = name.strip_suffix(".cwasm").and_then(|name| name.split_once('-'));
    name.is_some_and(|(module, fingerprint)| module.len() == 64 && is_hex(module) && is_hex(fingerprint))
}

fn fingerprint(engine: &wasmtime::Engine) -> String {
    let mut hasher = Sha(Sha256::new());
    engine.precompile_compatibility_hash().hash(&mut hasher);
    env!("CARGO_PKG_VERSION").hash(&mut hasher);
    let digest = hasher.0.finalize();
    hex::encode(digest.get(..8).unwrap_or_default())
}

/// A hash that is the same wherever and whenever the program was built.
struct Sha(Sha256);

impl Hasher for Sha {
    fn write(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn finish(&self) -> u64 {
        let digest = self.0.clone().finalize();
        digest.iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wasm::runtime::start;

    #[test]
    fn code_is_of_one_configuration() {
        let home = tempfile::tempdir().unwrap();
        let folders = [home.path().join("code")];
        let open = |metered: bool| CodeCache::open(&folders, &start(false, metered).unwrap()).unwrap();
        let module = Digest::of(b"m");
        assert!(!open(false).has(module));
        open(false).put(module, b"code");
        assert!(open(false).has(module) && !open(true).has(module));
        assert_eq!(open(false).get(module).as_deref(), Some(&b"code"[..]));
        assert_eq!(open(true).get(module), None, "that code would not count fuel");
        assert_eq!(open(false).get(Digest::of(b"n")), None);
        let cache = open(false);
        assert!(is_kept(&cache.name(module)) && !is_kept("main.rs"), "{}", cache.name(module));
        open(false).forget(module);
        assert_eq!(open(false).get(module), None);
    }

    fn with_mode(path: &std::path::Path, mode: u32) {
        use std::os::unix::fs::PermissionsExt;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn the_first_folder_that_is_private_is_used() {
        let home = tempfile::tempdir().unwrap();
        let [elsewhere, link, own] = ["elsewhere", "link", "own"].map(|name| home.path().join(name));
        std::fs::create_dir(&elsewhere).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        let engine = start(false, false).unwrap();
        let cache = CodeCache::open(&[link, own.clone()], &engine).unwrap();
        cache.put(Digest::of(b"m"), b"code");
        assert!(std::fs::read_dir(elsewhere).unwrap().next().is_none());
        assert!(std::fs::read_dir(own).unwrap().next().is_some());
        assert!(CodeCache::open(&[], &engine).is_none());
    }

    /// A kubelet lets the group of a volume write. Code is run as it is.
    #[test]
    fn code_that_others_could_write_is_not_used() {
        let home = tempfile::tempdir().unwrap();
        let folder = home.path().join("code");
        let (engine, module) = (start(false, false).unwrap(), Digest::of(b"m"));
        let open = || CodeCache::open(std::slice::from_ref(&folder), &engine).unwrap();
        open().put(module, b"code");
        with_mode(&open().folder.path(&open().name(module)), 0o660);
        assert_eq!(open().get(module), None, "the file was open to others");
        open().put(module, b"code");
        assert!(open().get(module).is_some());
        with_mode(&folder, 0o2770);
        assert!(!open().has(module), "the folder was");
    }
}
