//! A folder of files that only this user may touch, of bounded size.
//!
//! Programs keep there what they can make or fetch again: policy modules from registries, and machine code. Whoever can
//! write there could take a running policy away, or run code in the program, so owner and mode of the folder and of each
//! file are checked, links are not followed, and a file appears as a whole or not at all.

#![forbid(unsafe_code)]

use std::{
    ffi::OsStr,
    fs,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    io::{ErrorKind, Read as _, Write as _},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

/// New files of a folder with this bit have the folder's group, which lets nobody in.
const SET_GROUP: u32 = 0o2000;
/// Write permission of all but the owner, and of all but owner and group.
const OTHERS_WRITE: u32 = 0o022;
const STRANGERS_WRITE: u32 = 0o002;

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
    /// It is a link or somebody else's, or it stays open to others.
    #[error("{} belongs to user {owner} with mode {mode:o}; it must be a folder of this process's own user", path.display())]
    NotPrivate {
        /// The folder.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its mode.
        mode: u32,
    },
    /// It is open to others and has something else in it, so it is for something else, too.
    #[error("{} is open to others (mode {mode:o}) and holds {other:?}; give it mode 700, or name another folder", path.display())]
    Shared {
        /// The folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// A name in it.
        other: String,
    },
}

/// Whether a file of this name is one that the folder is for. No other is ever removed.
pub type Names = fn(&str) -> bool;

/// See the module documentation. Cheap to clone.
#[derive(Clone, Debug)]
pub struct PrivateFolder {
    path: PathBuf,
    names: Names,
    /// What is read is believed as it is.
    trusted: bool,
}

/// One file: when it was used last, its bytes, where it is.
type Kept = (SystemTime, u64, PathBuf);

impl PrivateFolder {
    /// Makes the folder if it is missing, with mode 700. One of ours gets that mode back: a kubelet lets the group of a
    /// volume in (`fsGroup`). For files whose content is checked by whoever reads it, so those that the group was let in to
    /// stay.
    ///
    /// # Errors
    /// It cannot be made, or it is a link, somebody else's, cannot be closed to others, or would have to be closed although
    /// it holds files of other `names`.
    pub fn open(path: &Path, names: Names) -> Result<Self, FolderError> {
        Self::opened(path, names, false)
    }

    /// The same for files that are believed as they are: what others could have put there goes.
    ///
    /// # Errors
    /// As of [`PrivateFolder::open`], or something cannot be removed.
    pub fn open_trusted(path: &Path, names: Names) -> Result<Self, FolderError> {
        Self::opened(path, names, true)
    }

    fn opened(path: &Path, names: Names, trusted: bool) -> Result<Self, FolderError> {
        let failed = |source| FolderError::Io { path: path.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let meta = fs::symlink_metadata(path).map_err(failed)?;
        let (owner, found) = (meta.uid(), meta.permissions().mode() & 0o7777);
        let is_ours = meta.is_dir() && owner == user();
        let is_closed = |mode: u32| mode & !SET_GROUP == 0o700;
        let folder = Self { path: path.to_owned(), names, trusted };
        if is_ours
            && !is_closed(found)
            && let Some(other) = folder.other().map_err(failed)?
        {
            return Err(FolderError::Shared { path: path.to_owned(), mode: found, other });
        }
        let mode = if is_ours && !is_closed(found) { close(path).map_err(failed)? } else { found };
        if !(is_ours && is_closed(mode)) {
            return Err(FolderError::NotPrivate { path: path.to_owned(), owner, mode });
        }
        if trusted && found & OTHERS_WRITE != 0 {
            folder.keep_below(0).map_err(failed)?;
        }
        Ok(folder)
    }

    /// Where a file of this name is.
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// A regular file of ours that nobody else may write, of at most `limit` bytes; anything else is nothing. Where content
    /// is checked its group may write it. It counts as used now.
    pub fn read(&self, name: &str, limit: u64) -> Option<Vec<u8>> {
        let path = self.path(name);
        let file = fs::File::options().read(true).custom_flags(no_follow()).open(&path).ok()?;
        let meta = file.metadata().ok()?;
        let nobody_of = if self.trusted { OTHERS_WRITE } else { STRANGERS_WRITE };
        let ours = meta.uid() == user() && meta.permissions().mode() & nobody_of == 0;
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

    /// Writes a file as a whole, in place of one of this name. On a full disk what was not used for longest makes room.
    ///
    /// # Errors
    /// The file system's.
    pub fn write(&self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        self.with_room(bytes.len() as u64, || self.write_once(name, bytes))
    }

    /// Where the disk is full, half of what is here goes, or more if `bytes` need it, and the write is tried once more. A
    /// folder that has less gives nothing: that would not help.
    fn with_room(&self, bytes: u64, mut write: impl FnMut() -> std::io::Result<()>) -> std::io::Result<()> {
        let full = match write() {
            Err(error) if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => error,
            written => return written,
        };
        let files = self.files()?;
        let all = total(&files);
        let Some(rest) = all.checked_sub(bytes) else { return Err(full) };
        evict(files, rest.min(all / 2))?;
        write()
    }

    fn write_once(&self, name: &str, bytes: &[u8]) -> std::io::Result<()> {
        let temporary = self.path.join(temporary_name());
        let mut file = fs::File::options().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        let written = written.and_then(|()| fs::rename(&temporary, self.path(name)));
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
        evict(self.files()?, bytes)
    }

    /// Whether the folder is for a file of this name, or one that a write left.
    fn is_for(&self, name: &OsStr) -> bool {
        name.to_str().is_some_and(|name| (self.names)(name) || is_temporary(name))
    }

    /// Something in it that it is not for.
    fn other(&self) -> std::io::Result<Option<String>> {
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if !self.is_for(&name) {
                return Ok(Some(name.to_string_lossy().into_owned()));
            }
        }
        Ok(None)
    }

    fn files(&self) -> std::io::Result<Vec<Kept>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let entry = entry?;
            if !self.is_for(&entry.file_name()) {
                continue;
            }
            let Some(meta) = unless_gone(entry.metadata())? else { continue };
            if !meta.is_dir() {
                files.push((meta.modified()?, meta.len(), entry.path()));
            }
        }
        Ok(files)
    }
}

fn total(files: &[Kept]) -> u64 {
    files.iter().map(|(_, bytes, _)| bytes).sum()
}

/// Removes the files that were not used for longest until the others have at most `bytes`.
fn evict(mut files: Vec<Kept>, bytes: u64) -> std::io::Result<()> {
    files.sort();
    let mut all = total(&files);
    for (_, size, path) in files {
        if all <= bytes {
            break;
        }
        unless_gone(fs::remove_file(path))?;
        all -= size;
    }
    Ok(())
}

/// Others that use the folder remove files, too.
fn unless_gone<T>(result: std::io::Result<T>) -> std::io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Closes a folder to all others; returns the mode it has then. A link that came in its place is not followed.
fn close(path: &Path) -> std::io::Result<u32> {
    let folder = fs::File::options().read(true).custom_flags(no_follow()).open(path)?;
    folder.set_permissions(fs::Permissions::from_mode(0o700))?;
    Ok(folder.metadata()?.permissions().mode() & 0o7777)
}

/// A name that no other write uses, nor one of a process that was killed: in containers process numbers come again.
fn temporary_name() -> String {
    // The standard library's hashers have random keys.
    let random = RandomState::new().build_hasher().finish();
    format!(".{}-{random:016x}", std::process::id())
}

fn is_temporary(name: &str) -> bool {
    let parts = name.strip_prefix('.').and_then(|name| name.split_once('-'));
    parts.is_some_and(|(process, random)| is_hex(process) && is_hex(random))
}

/// Whether a part of a name has hexadecimal digits and nothing else, as digests and fingerprints do.
pub fn is_hex(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit())
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

    const ANY: Names = |name| name != "other";

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
    }

    fn folder() -> (tempfile::TempDir, PrivateFolder) {
        let home = tempfile::tempdir().expect("a directory");
        let folder = PrivateFolder::open(&home.path().join("a/b"), ANY).expect("a folder");
        (home, folder)
    }

    fn mode_of(path: &Path) -> u32 {
        fs::metadata(path).expect("a folder").permissions().mode() & 0o777
    }

    #[test]
    fn a_folder_of_ours_is_closed_to_others() {
        let home = tempfile::tempdir().expect("a directory");
        let path = home.path().join("ours");
        fs::create_dir(&path).expect("a folder");
        // A kubelet with fsGroup makes the third of the second.
        for found in [0o755, 0o2700, 0o2770, 0o1777] {
            mode(&path, found);
            PrivateFolder::open(&path, ANY).unwrap_or_else(|error| panic!("{found:o}: {error}"));
            assert_eq!(mode_of(&path), 0o700, "{found:o}");
        }
        let link = home.path().join("link");
        std::os::unix::fs::symlink(&path, &link).expect("a link");
        let refused = PrivateFolder::open(&link, ANY);
        assert!(
            matches!(refused, Err(FolderError::NotPrivate { .. })),
            "a link may point elsewhere tomorrow"
        );
        fs::write(path.join("other"), b"").expect("a file");
        PrivateFolder::open(&path, ANY).expect("it is closed");
        mode(&path, 0o755);
        let shared = PrivateFolder::open(&path, ANY);
        assert!(matches!(&shared, Err(FolderError::Shared { other, .. }) if other == "other"), "{shared:?}");
        assert_eq!(mode_of(&path), 0o755, "it is for something else, too");
        let file = home.path().join("file");
        fs::write(&file, b"").expect("a file");
        assert!(matches!(PrivateFolder::open(&file, ANY), Err(FolderError::Io { .. })));
    }

    #[test]
    fn what_is_believed_goes_when_others_could_write_it() {
        let (_home, folder) = folder();
        folder.write("x", b"one").expect("a file");
        fs::create_dir(folder.path("folder")).expect("a folder");
        for (found, stays) in [(0o2700, true), (0o755, true), (0o2770, false)] {
            mode(&folder.path, found);
            let trusted = PrivateFolder::open_trusted(&folder.path, ANY).expect("a folder");
            assert_eq!(trusted.read("x", 10).is_some(), stays, "{found:o}");
            assert_eq!(mode_of(&folder.path), 0o700, "{found:o}");
        }
    }

    #[test]
    fn files_that_others_may_write_are_nothing() {
        let (home, folder) = folder();
        let trusted = PrivateFolder::open_trusted(&folder.path, ANY).expect("a folder");
        assert_eq!(folder.read("x", 10), None);
        folder.write("x", b"one").expect("a file");
        folder.write("x", b"two").expect("a file");
        assert_eq!(folder.read("x", 10).as_deref(), Some(&b"two"[..]));
        assert_eq!(folder.read("x", 2), None, "too large");
        for (found, checked, believed) in
            [(0o600, true, true), (0o644, true, true), (0o660, true, false), (0o602, false, false)]
        {
            mode(&folder.path("x"), found);
            let read = (folder.read("x", 10).is_some(), trusted.read("x", 10).is_some());
            assert_eq!(read, (checked, believed), "{found:o}");
        }
        mode(&folder.path("x"), 0o600);
        fs::rename(folder.path("x"), home.path().join("moved")).expect("a move");
        std::os::unix::fs::symlink(home.path().join("moved"), folder.path("x")).expect("a link");
        assert_eq!(folder.read("x", 10), None, "a link");
    }

    /// Fills a folder with files of 100 bytes, the first of which was used last.
    fn fill(folder: &PrivateFolder, names: &[&str]) {
        for (age, name) in (1_u32..).zip(names) {
            folder.write(name, &[0; 100]).expect("a file");
            let file = fs::File::options().append(true).open(folder.path(name)).expect("a file");
            file.set_modified(SystemTime::now() - Duration::from_hours(1) * age).expect("a time");
        }
    }

    #[test]
    fn a_full_disk_makes_room_once() {
        let (_home, folder) = folder();
        let there = || ["a", "b", "c", "d"].map(|name| folder.path(name).exists());
        // Bytes to be written, how often the disk is full, how often it is tried, what stays.
        for (bytes, full, tries, stays) in [
            (10, 1, 2, [true, true, false, false]),
            (300, 1, 2, [true, false, false, false]),
            (10, 2, 2, [true, true, false, false]),
            (500, 1, 1, [true; 4]),
        ] {
            fill(&folder, &["a", "b", "c", "d"]);
            let mut tried = 0;
            let written = folder.with_room(bytes, || {
                tried += 1;
                if tried > full { Ok(()) } else { Err(ErrorKind::StorageFull.into()) }
            });
            assert_eq!((tried, there()), (tries, stays), "{bytes} {full}");
            assert_eq!(written.is_ok(), tries > full, "{bytes} {full}");
        }
        fill(&folder, &["a", "b", "c", "d"]);
        let other = folder.with_room(10, || Err(ErrorKind::PermissionDenied.into()));
        assert_eq!((other.is_ok(), there()), (false, [true; 4]), "room would not help");
    }

    /// A container's program has the same process number each time.
    #[test]
    fn what_a_killed_process_left_is_in_nobodys_way() {
        let (_home, folder) = folder();
        let left = |number: u32| folder.path(&format!(".{}-{number:x}", std::process::id()));
        for number in 0..256 {
            fs::write(left(number), b"half").expect("a file");
        }
        folder.write("x", b"one").expect("a file");
        assert!((0..256).all(|number| left(number).exists()), "who did not make it does not remove it");
        assert_ne!(temporary_name(), temporary_name());
        fs::create_dir(folder.path("taken")).expect("a folder");
        let before = fs::read_dir(&folder.path).expect("a folder").count();
        folder.write("taken", b"one").expect_err("a folder is there");
        assert_eq!(
            fs::read_dir(&folder.path).expect("a folder").count(),
            before,
            "nothing half written stays"
        );
    }

    #[test]
    fn a_file_that_another_process_removed_is_gone() {
        let (_home, folder) = folder();
        fill(&folder, &["a", "b", "c"]);
        let files = folder.files().expect("files");
        folder.remove("c").expect("no file");
        evict(files, 100).expect("room");
        assert_eq!(["a", "b", "c"].map(|name| folder.path(name).exists()), [true, false, false]);
        let gone = fs::symlink_metadata(folder.path("c"));
        assert!(unless_gone(gone).is_ok_and(|meta| meta.is_none()));
    }

    #[test]
    fn what_was_not_used_for_longest_goes_first() {
        let (_home, folder) = folder();
        fill(&folder, &["old", "older", "oldest", "other"]);
        assert!(folder.read("oldest", 100).is_some(), "and it was used now");
        folder.keep_below(250).expect("room");
        let there = |name: &str| folder.path(name).exists();
        assert_eq!((there("old"), there("older"), there("oldest")), (true, false, true));
        assert!(there("other"), "it is none of ours, and does not count");
        folder.remove("old").expect("no file");
        assert!(!there("old"));
    }
}
