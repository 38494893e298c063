//! A folder of files that only this user may touch, of bounded size.
//!
//! Programs keep there what they can make or fetch again: policy modules from registries, and machine code. Whoever can
//! write there could take a running policy away, or run code in the program, so owner and mode of the folder and of each
//! file are checked, links are not followed, and a file appears as a whole or not at all.

#![forbid(unsafe_code)]

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::SystemTime,
};

/// Why a folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
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

/// See the module documentation. Cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrivateFolder {
    path: PathBuf,
}

impl PrivateFolder {
    /// Makes the folder if it is missing, with mode 700.
    ///
    /// # Errors
    /// It cannot be made, or it is a link, somebody else's, or open to others.
    pub fn open(path: &Path) -> Result<Self, FolderError> {
        let failed = |source| FolderError::Io { path: path.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let meta = fs::symlink_metadata(path).map_err(failed)?;
        let (owner, mode) = (meta.uid(), meta.permissions().mode() & 0o7777);
        if !(meta.is_dir() && owner == user() && mode == 0o700) {
            return Err(FolderError::NotPrivate { path: path.to_owned(), owner, mode });
        }
        Ok(Self { path: path.to_owned() })
    }

    /// Where a file of this name is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A regular file of ours that nobody else may write, of at most `limit` bytes; anything else is nothing. It counts
    /// as used now.
    pub fn read(&self, name: &str, limit: u64) -> Option<Vec<u8>> {
        let path = self.path(name);
        let file = fs::File::options().read(true).custom_flags(no_follow()).open(&path).ok()?;
        let meta = file.metadata().ok()?;
        let ours = meta.uid() == user() && meta.permissions().mode() & 0o022 == 0;
        if !(meta.is_file() && ours && meta.len() <= limit) {
            return None;
        }
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes).ok()?;
        let touched = fs::File::options()
            .append(true)
            .custom_flags(no_follow())
            .open(path)
            .and_then(|file| file.set_modified(SystemTime::now()));
        // A file that cannot be touched goes earlier than it might.
        drop(touched);
        Some(bytes)
    }

    /// Writes a file as a whole, in place of one of this name.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = self.path.join(format!(".{}-{number:x}", std::process::id()));
        let written = fs::File::options().write(true).create_new(true).mode(0o600).open(&temporary).and_then(
            |mut file| {
                file.write_all(bytes)?;
                file.sync_all()?;
                fs::rename(&temporary, self.path(name))
            },
        );
        written.inspect_err(|_| drop(fs::remove_file(&temporary)))
    }

    /// Removes a file.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self, name: &str) -> std::io::Result<()> {
        fs::remove_file(self.path(name))
    }

    /// Removes what was not used for longest, and what a process that died left half written, until all files together
    /// have at most `bytes`.
    ///
    /// # Errors
    /// The file system's.
    pub fn keep_below(&self, bytes: u64) -> std::io::Result<()> {
        let mut files: Vec<(SystemTime, u64, PathBuf)> = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            let meta = entry.metadata()?;
            files.push((meta.modified()?, meta.len(), entry.path()));
        }
        files.sort();
        let mut all: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, size, path) in files {
            if all <= bytes {
                break;
            }
            fs::remove_file(path)?;
            all -= size;
        }
        Ok(())
    }
}

fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// A link in place of a file is no file of ours.
fn no_follow() -> i32 {
    i32::try_from(rustix::fs::OFlags::NOFOLLOW.bits()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
    }

    fn folder() -> (tempfile::TempDir, PrivateFolder) {
        let home = tempfile::tempdir().expect("a directory");
        let folder = PrivateFolder::open(&home.path().join("a/b")).expect("a folder");
        (home, folder)
    }

    #[test]
    fn a_folder_that_others_may_use_is_refused() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("open");
        fs::create_dir(&path).expect("a folder");
        mode(&path, 0o770);
        assert!(matches!(PrivateFolder::open(&path), Err(FolderError::NotPrivate { mode: 0o770, .. })));
        mode(&path, 0o700);
        PrivateFolder::open(&path).expect("a folder");
        let link = home.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        assert!(PrivateFolder::open(&link).is_err(), "a link may point elsewhere tomorrow");
    }

    #[test]
    fn files_that_others_may_write_are_nothing() {
        let (home, folder) = folder();
        assert_eq!(folder.read("x", 10), None);
        folder.write("x", b"one").expect("a file");
        folder.write("x", b"two").expect("a file");
        assert_eq!(folder.read("x", 10).as_deref(), Some(&b"two"[..]));
        assert_eq!(folder.read("x", 2), None, "too large");
        mode(&folder.path("x"), 0o620);
        assert_eq!(folder.read("x", 10), None, "others may write it");
        mode(&folder.path("x"), 0o600);
        fs::rename(folder.path("x"), home.path().join("moved")).expect("a move");
        std::os::unix::fs::symlink(home.path().join("moved"), folder.path("x")).expect("a link");
        assert_eq!(folder.read("x", 10), None, "a link");
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let (_home, folder) = folder();
        let hour = Duration::from_hours(1);
        for (age, name) in ["old", "older", "oldest"].into_iter().enumerate() {
            folder.write(name, &[0; 100]).expect("a file");
            let file = fs::File::options().append(true).open(folder.path(name)).expect("a file");
            let age = hour * u32::try_from(age + 1).expect("small");
            file.set_modified(SystemTime::now() - age).expect("a time");
        }
        assert!(folder.read("oldest", 100).is_some(), "and it was used now");
        folder.keep_below(250).expect("room");
        let there = |name: &str| folder.path(name).exists();
        assert_eq!((there("old"), there("older"), there("oldest")), (true, false, true));
        folder.remove("old").expect("no file");
        assert!(!there("old"));
    }
}
